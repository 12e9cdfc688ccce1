// SPDX-License-Identifier: Apache-2.0
// Choice of instruction set at run time: once per process, overridable by PYPRUNE_CPU_ISA.
#pragma once

#include "element_type.h"
#include "sparse_rows_view.h"
#include "sparse_windows_view.h"

#include <cstdint>
#include <string>
#include <vector>

#define PYPRUNE_ISA baseline
#include "../cpu/kernels.h"
#undef PYPRUNE_ISA

namespace pyprune {

struct Kernels {
    const char* isa;
    decltype(&baseline::gram) gram;
    decltype(&baseline::cross_gram) cross_gram;
    decltype(&baseline::matmul) matmul;
    decltype(&baseline::cholesky) cholesky;
    decltype(&baseline::symmetrise) symmetrise;
    decltype(&baseline::rescale) rescale;
    decltype(&baseline::select) select;
    decltype(&baseline::nm) nm;
    decltype(&baseline::masked_lstsq) masked_lstsq;
    decltype(&baseline::masked_cg) masked_cg;
    decltype(&baseline::admm_step) admm_step;
    decltype(&baseline::obs) obs;
    decltype(&baseline::sparsegpt) sparsegpt;
    decltype(&baseline::block_obs) block_obs;
    decltype(&baseline::peak) peak;
    decltype(&baseline::swap) swap;
    decltype(&baseline::draw_counts) draw_counts;
    decltype(&baseline::bank_scores) bank_scores;
    decltype(&baseline::bank_scores_gradient) bank_scores_gradient;
    decltype(&baseline::spmm) spmm;
    decltype(&baseline::spmm_tile) spmm_tile;
    decltype(&baseline::spmm_windows) spmm_windows;
    decltype(&baseline::window_kind) window_kind;
    decltype(&baseline::encoder) encoder;
};

// The kernels of the best instruction set this machine has, or of the one PYPRUNE_CPU_ISA names.
// Throws std::runtime_error when that one is unknown, not built, or not supported here.
const Kernels& kernels();

// Instruction sets that were built and that this processor supports, best first.
std::vector<std::string> available_isas();

}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

#if defined(PYPRUNE_X86)
#define PYPRUNE_ISA avx2
#include "../cpu/kernels.h"
#undef PYPRUNE_ISA
#define PYPRUNE_ISA avx512
#include "../cpu/kernels.h"
#undef PYPRUNE_ISA
#define PYPRUNE_ISA avx512bf16
#include "../cpu/kernels.h"
#undef PYPRUNE_ISA
#endif

namespace pyprune {
namespace {

#define PYPRUNE_KERNELS(isa)                                                                                           \
    {#isa,           &isa::gram,         &isa::cross_gram,   &isa::matmul,                                             \
     &isa::cholesky, &isa::symmetrise,   &isa::rescale,      &isa::select,                                             \
     &isa::nm,       &isa::masked_lstsq, &isa::masked_cg,    &isa::admm_step,                                          \
     &isa::obs,      &isa::sparsegpt,    &isa::block_obs,    &isa::peak,                                               \
     &isa::swap,     &isa::draw_counts,  &isa::bank_scores,  &isa::bank_scores_gradient,                               \
     &isa::spmm,     &isa::spmm_tile,    &isa::spmm_windows, &isa::window_kind,                                        \
     &isa::encoder}

#if defined(PYPRUNE_X86)
const Kernels kAvx512Bf16 = PYPRUNE_KERNELS(avx512bf16);
const Kernels kAvx512 = PYPRUNE_KERNELS(avx512);
const Kernels kAvx2 = PYPRUNE_KERNELS(avx2);
#endif
const Kernels kBaseline = PYPRUNE_KERNELS(baseline);

std::vector<const Kernels*> supported() {
    std::vector<const Kernels*> found;
#if defined(PYPRUNE_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&kAvx512Bf16);
    if (avx512) found.push_back(&kAvx512);
    if (avx2) found.push_back(&kAvx2);
#endif
    found.push_back(&kBaseline);
    return found;
}

const Kernels& pick() {
    const std::vector<const Kernels*> found = supported();
    const char* wanted = std::getenv("PYPRUNE_CPU_ISA");
    if (wanted == nullptr || *wanted == '\0') return *found.front();
    std::string names;
    for (const Kernels* candidate : found) {
        if (std::string(candidate->isa) == wanted) return *candidate;
        names += std::string(names.empty() ? "" : ", ") + candidate->isa;
    }
    throw std::runtime_error("PYPRUNE_CPU_ISA=" + std::string(wanted) + " is not available here; this machine has " +
                             names);
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& chosen = pick();
    return chosen;
}

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Kernels* candidate : supported()) names.push_back(candidate->isa);
    return names;
}

}  // namespace pyprune

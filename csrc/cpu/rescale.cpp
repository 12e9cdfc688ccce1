// SPDX-License-Identifier: Apache-2.0
// rescale: out_ij = s_i s_j (a_ij + ridge δ_ij) + shift δ_ij                    a [k, k] float64, out float32 or float64
//
// Algorithm: one pass. Memory: a read once, out written once, which is all there is to it: as four torch expressions it
//   was four passes and three temporaries, each of fresh pages.
#include "../common/element_type.h"

#include <cstdint>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

template <class Real>
void rescale_to(Real* out, const double* a, const double* scale, double ridge, double shift, int64_t k, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < k; ++i) {
        const double own = scale[i];
        for (int64_t j = 0; j < k; ++j) out[i * k + j] = static_cast<Real>(own * scale[j] * a[i * k + j]);
        out[i * k + i] = static_cast<Real>(own * own * (a[i * k + i] + ridge) + shift);
    }
}

}  // namespace

void rescale(void* out, ElementType type, const double* a, const double* scale, double ridge, double shift, int64_t k,
             int threads) {
    if (type == ElementType::float64)
        rescale_to(static_cast<double*>(out), a, scale, ridge, shift, k, threads);
    else
        rescale_to(static_cast<float*>(out), a, scale, ridge, shift, k, threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

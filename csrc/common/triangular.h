// SPDX-License-Identifier: Apache-2.0
// The vectorised axpy-chain that lazy OBS and the blocked Cholesky share.
#pragma once

#include "simd.h"

namespace pyprune {
namespace PYPRUNE_ISA {

// Columns handled per register block; rows that take part must be padded to a multiple of it.
constexpr int64_t kStrip = 4 * Simd<double>::lanes;

inline int64_t padded(int64_t columns) {
    return (columns + kStrip - 1) / kStrip * kStrip;
}

struct Strip {
    Simd<double>::Vector value[4];

    inline void load(const double* source) {
        for (int v = 0; v < 4; ++v) value[v] = Simd<double>::load(source + v * Simd<double>::lanes);
    }
    inline void store(double* target) const {
        for (int v = 0; v < 4; ++v) Simd<double>::store(target + v * Simd<double>::lanes, value[v]);
    }
};

// strip[s] -= Σ_q coefficient[q] · matrix[q][s · apart .. + kStrip), `stride` between rows of the matrix. Two strips at a
// time hide the latency of the sums.
template <int count>
inline void subtract_chain(Strip (&strip)[count], const double* coefficient, const double* matrix, int64_t stride,
                           int64_t apart, int64_t depth) {
    using S = Simd<double>;
    for (int64_t q = 0; q < depth; ++q, matrix += stride) {
        const S::Vector c = S::broadcast(coefficient[q]);
        for (int s = 0; s < count; ++s)
            for (int v = 0; v < 4; ++v) strip[s].value[v] -= c * S::load(matrix + s * apart + v * S::lanes);
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

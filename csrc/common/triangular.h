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

// row[0..kStrip) -= Σ_q coefficient[q] · matrix[q][0..kStrip), `stride` between rows of the matrix.
struct Strip {
    Simd<double>::Vector value[4];

    inline void load(const double* source) {
        for (int v = 0; v < 4; ++v) value[v] = Simd<double>::load(source + v * Simd<double>::lanes);
    }
    inline void store(double* target) const {
        for (int v = 0; v < 4; ++v) Simd<double>::store(target + v * Simd<double>::lanes, value[v]);
    }
    inline void subtract(const double* coefficient, const double* matrix, int64_t stride, int64_t depth) {
        for (int64_t q = 0; q < depth; ++q, matrix += stride) {
            const auto c = Simd<double>::broadcast(coefficient[q]);
            for (int v = 0; v < 4; ++v) value[v] -= c * Simd<double>::load(matrix + v * Simd<double>::lanes);
        }
    }
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

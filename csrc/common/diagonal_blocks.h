// SPDX-License-Identifier: Apache-2.0
// The small square blocks on the diagonal of a matrix, many at a time.
//
// The matrix lies in planes: with n blocks of `width` columns, column a of block t is at a n + t. Entry (a, b) of the
// blocks, b <= a, then is a row of n numbers, D[pair][stride], and a vector holds that entry of as many blocks.
#pragma once

#include "simd.h"

#include <algorithm>
#include <limits>

namespace pyprune {
namespace PYPRUNE_ISA {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

// One block instead of a vector of blocks.
struct Single {
    static constexpr int lanes = 1;
    typedef double Vector;
    static inline Vector load(const double* source) { return *source; }
    static inline void store(double* target, Vector value) { *target = value; }
    static inline Vector broadcast(double value) { return value; }
};

inline int64_t pair_index(int64_t a, int64_t b) {
    return a * (a + 1) / 2 + b;
}

// Length of a row of D. One block alone is treated alone, which saves the memory of a vector of very wide ones.
inline int64_t block_stride(int64_t blocks) {
    constexpr int64_t lanes = Simd<double>::lanes;
    return blocks == 1 ? 1 : (blocks + lanes - 1) / lanes * lanes;
}

// The blocks on the diagonal of a base in planes, lower triangles, from its upper triangle: D[pair][stride].
inline void read_diagonal(double* diagonal, const double* base, int64_t width, int64_t blocks) {
    const int64_t stride = block_stride(blocks), live = blocks * width;
    for (int64_t a = 0; a < width; ++a)
        for (int64_t b = 0; b <= a; ++b) {
            double* target = diagonal + pair_index(a, b) * stride;
            for (int64_t t = 0; t < blocks; ++t) target[t] = base[(b * blocks + t) * live + a * blocks + t];
            std::fill(target + blocks, target + stride, a == b ? 1.0 : 0.0);
        }
}

// LDLᵀ of the diagonal blocks t .. t + lanes of D[pair][stride]: into l[pair][lanes] the factors, on their diagonals the
// reciprocals of the pivots, and after them 0 or, where a pivot is not above its floor, infinity.
template <class S>
inline void factor_blocks(double* l, const double* diagonal, const double* floor, int64_t t, int64_t blocks,
                          int64_t stride, int64_t width) {
    using Vector = typename S::Vector;
    Vector bar = S::broadcast(0.0);
    for (int64_t a = 0; a < width; ++a) {
        double* row = l + pair_index(a, 0) * S::lanes;
        for (int64_t b = 0; b <= a; ++b) {
            // Entries b < a hold L · pivot until the row is complete.
            const double* above = l + pair_index(b, 0) * S::lanes;
            Vector sum = S::load(diagonal + pair_index(a, b) * stride + t);
            if (b < a) {
                for (int64_t c = 0; c < b; ++c) sum -= S::load(row + c * S::lanes) * S::load(above + c * S::lanes);
                S::store(row + b * S::lanes, sum);
                continue;
            }
            for (int64_t c = 0; c < a; ++c) {
                const Vector scaled = S::load(row + c * S::lanes);
                const Vector entry = scaled * S::load(l + pair_index(c, c) * S::lanes);
                sum -= scaled * entry;
                S::store(row + c * S::lanes, entry);
            }
            const auto positive = sum > S::load(floor + a * blocks + t);
            bar = positive ? bar : S::broadcast(kInfinite);
            S::store(row + a * S::lanes, S::broadcast(1.0) / (positive ? sum : S::broadcast(1.0)));
        }
    }
    S::store(l + pair_index(width, 0) * S::lanes, bar);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

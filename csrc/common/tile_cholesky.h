// SPDX-License-Identifier: Apache-2.0
// Cholesky factor and its inverse of one diagonal block of kPanel x kPanel, the sequential heart of every blocked
// factorisation here. A block is kTileVectors² squares of lanes x lanes: squares are factored and inverted in registers,
// row by row with broadcasts, and multiplied a row of vectors at a time. Plain loops here cost a 384 x 384 float64
// factorisation nearly half of its time (0.60 ms with them, 0.33 ms with this).
#pragma once

#include "panel.h"

#include <cmath>

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Real>
class TileCholesky {
    using S = Simd<Real>;
    using Vector = typename S::Vector;
    static constexpr int lanes = S::lanes, width = kPanel<Real>;

  public:
    // u[width][width]: upper triangle in, U out (below it zeros); inverse[width][width] = U⁻¹, zeros below.
    // Returns -1, or the first pivot not above floor[pivot].
    static int run(Real* u, Real* inverse, const Real* floor) {
        std::fill(inverse, inverse + width * width, Real(0));
        for (int b = 0; b < kTileVectors; ++b) {
            const int failed = square(u + at(b, b), inverse + at(b, b), floor + b * lanes);
            if (failed >= 0) return b * lanes + failed;
            for (int c = b + 1; c < kTileVectors; ++c) {
                Vector row[lanes];
                transposed_product(row, inverse + at(b, b), u + at(b, c));
                for (int i = 0; i < lanes; ++i) {
                    S::store(u + at(b, c) + i * width, row[i]);
                    S::store(u + at(c, b) + i * width, Vector{});
                }
            }
            for (int d = b + 1; d < kTileVectors; ++d)
                for (int c = d; c < kTileVectors; ++c) {
                    Vector row[lanes];
                    transposed_product(row, u + at(b, d), u + at(b, c));
                    for (int i = 0; i < lanes; ++i) {
                        Real* target = u + at(d, c) + i * width;
                        S::store(target, S::load(target) - row[i]);
                    }
                }
        }
        for (int b = kTileVectors - 2; b >= 0; --b)  // U⁻¹_bc = −U⁻¹_bb Σ_d U_bd U⁻¹_dc
            for (int c = b + 1; c < kTileVectors; ++c) {
                Vector sum[lanes] = {}, row[lanes] = {};
                for (int d = b + 1; d <= c; ++d) add_product(sum, u + at(b, d), width, inverse + at(d, c));
                Real packed[lanes * lanes];
                for (int i = 0; i < lanes; ++i) S::store(packed + i * lanes, sum[i]);
                for (int i = 0; i < lanes; ++i)
                    for (int q = i; q < lanes; ++q)
                        row[i] -= S::broadcast(inverse[at(b, b) + i * width + q]) * S::load(packed + q * lanes);
                for (int i = 0; i < lanes; ++i) S::store(inverse + at(b, c) + i * width, row[i]);
            }
        return -1;
    }

  private:
    static constexpr int at(int b, int c) { return b * lanes * width + c * lanes; }

    static int square(Real* u, Real* inverse, const Real* floor) {
        Vector row[lanes];
        Real scale[lanes];
        for (int i = 0; i < lanes; ++i) row[i] = S::load(u + i * width);
#pragma GCC unroll 16
        for (int j = 0; j < lanes; ++j) {
            const Real pivot = row[j][j];
            if (!(pivot > floor[j])) return j;
            scale[j] = Real(1) / std::sqrt(pivot);
            row[j] *= S::broadcast(scale[j]);
#pragma GCC unroll 16
            for (int i = j + 1; i < lanes; ++i) row[i] -= S::broadcast(row[j][i]) * row[j];
        }
        Vector solved[lanes];  // U⁻¹, from its last row up: each finished row is taken from those above it
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
            solved[i] = Vector{};
            solved[i][i] = Real(1);
        }
#pragma GCC unroll 16
        for (int q = lanes - 1; q >= 0; --q) {
            solved[q] *= S::broadcast(scale[q]);
#pragma GCC unroll 16
            for (int i = 0; i < q; ++i) solved[i] -= S::broadcast(row[i][q]) * solved[q];
        }
        for (int i = 0; i < lanes; ++i) {
            for (int j = 0; j < i; ++j) row[i][j] = Real(0);
            S::store(u + i * width, row[i]);
            S::store(inverse + i * width, solved[i]);
        }
        return -1;
    }

    // out[i] = Σ_q a[q][i] b[q], both with row stride `width`.
    static void transposed_product(Vector (&out)[lanes], const Real* a, const Real* b) {
        for (int i = 0; i < lanes; ++i) out[i] = Vector{};
        for (int q = 0; q < lanes; ++q) {
            const Vector right = S::load(b + q * width);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) out[i] += S::broadcast(a[q * width + i]) * right;
        }
    }

    // out[i] += Σ_q a[i][q] b[q].
    static void add_product(Vector (&out)[lanes], const Real* a, int stride, const Real* b) {
        for (int q = 0; q < lanes; ++q) {
            const Vector right = S::load(b + q * width);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) out[i] += S::broadcast(a[i * stride + q]) * right;
        }
    }
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

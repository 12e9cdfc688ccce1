// SPDX-License-Identifier: Apache-2.0
// The one compute-bound loop of the library: C += sign * AᵀB on tiles, from packed panels.
//
// A panel holds `depth` rows of kPanel<Real> consecutive columns, zero-padded, so that the micro-kernel
// reads both operands with unit stride: kTileRows x kTileVectors vector accumulators stay in registers for the
// whole depth. Per micro-tile and unit of depth: kTileVectors loads, kTileRows broadcasts,
// kTileRows * kTileVectors fused multiply-adds. Used by gram (C += XᵀX), cross_gram (C += YᵀX), obs (Schur
// complement C -= VᵀV), masked_lstsq (Cholesky trailing update) and sparsegpt (lazy block update).
#pragma once

#include "buffer.h"
#include "simd.h"

#include <algorithm>

namespace pyprune {
namespace PYPRUNE_ISA {

// Columns of a panel: a multiple of both sides of the micro-tile for every instruction set.
template <class Real>
constexpr int kPanel = kTileVectors * Simd<Real>::lanes;
static_assert(kPanel<float> % kTileRows == 0 && kPanel<double> % kTileRows == 0, "tile must divide panel");

inline int64_t panels(int64_t columns, int64_t width) {
    return (columns + width - 1) / width;
}

// Copy `depth` rows of `width` <= kPanel columns (row stride `stride`) into a zero-padded panel.
template <class Real>
inline void pack_panel(Real* panel, const Real* source, int64_t depth, int64_t stride, int64_t width) {
    for (int64_t row = 0; row < depth; ++row, panel += kPanel<Real>, source += stride) {
        std::memcpy(panel, source, width * sizeof(Real));
        for (int64_t column = width; column < kPanel<Real>; ++column) panel[column] = Real(0);
    }
}

// tile[kTileRows][kPanel] = Σ_depth a[depth][row]ᵀ b[depth][:], for kTileRows rows of the left panel.
template <class Real>
inline void micro_tile(Real* tile, const Real* left, const Real* right, int64_t depth) {
    using S = Simd<Real>;
    typename S::Vector sum[kTileRows][kTileVectors];
    for (int row = 0; row < kTileRows; ++row)
        for (int v = 0; v < kTileVectors; ++v) sum[row][v] = typename S::Vector{};
    for (int64_t k = 0; k < depth; ++k, left += kPanel<Real>, right += kPanel<Real>) {
        typename S::Vector b[kTileVectors];
        for (int v = 0; v < kTileVectors; ++v) b[v] = S::load(right + v * S::lanes);
#pragma GCC unroll 8
        for (int row = 0; row < kTileRows; ++row) {
            const typename S::Vector a = S::broadcast(left[row]);
#pragma GCC unroll 4
            for (int v = 0; v < kTileVectors; ++v) sum[row][v] += a * b[v];
        }
    }
    for (int row = 0; row < kTileRows; ++row)
        for (int v = 0; v < kTileVectors; ++v) S::store(tile + row * kPanel<Real> + v * S::lanes, sum[row][v]);
}

// C[rows][columns] += sign * (left panel)ᵀ (right panel); `mirror` also writes the transpose at C[j][i].
template <class Real, class Out>
inline void panel_product(Out* out, int64_t stride, const Real* left, const Real* right, int64_t depth, int64_t rows,
                          int64_t columns, Out sign, Out* mirror = nullptr) {
    alignas(64) Real tile[kTileRows * kPanel<Real>];
    for (int64_t base = 0; base < rows; base += kTileRows) {
        micro_tile(tile, left + base, right, depth);
        const int64_t count = std::min<int64_t>(kTileRows, rows - base);
        for (int64_t row = 0; row < count; ++row) {
            Out* target = out + (base + row) * stride;
            const Real* source = tile + row * kPanel<Real>;
            for (int64_t column = 0; column < columns; ++column)
                target[column] += sign * static_cast<Out>(source[column]);
        }
        if (mirror == nullptr) continue;
        for (int64_t column = 0; column < columns; ++column)
            for (int64_t row = 0; row < count; ++row)
                mirror[column * stride + base + row] = out[(base + row) * stride + column];
    }
}

// Upper triangle of C[n][n] += sign * VᵀV for V[depth][n] with row stride `v_stride` (entries of the diagonal tiles
// below the diagonal are touched too). `packed` holds depth * (n rounded up to panels) elements.
template <class Real>
inline void symmetric_update(Real* out, int64_t stride, const Real* v, int64_t v_stride, int64_t depth, int64_t n,
                             Real sign, Real* packed) {
    constexpr int64_t width = kPanel<Real>;
    const int64_t count = panels(n, width);
    for (int64_t p = 0; p < count; ++p)
        pack_panel(packed + p * depth * width, v + p * width, depth, v_stride, std::min(width, n - p * width));
    for (int64_t i = 0; i < count; ++i)
        for (int64_t j = i; j < count; ++j)
            panel_product(out + i * width * stride + j * width, stride, packed + i * depth * width,
                          packed + j * depth * width, depth, std::min(width, n - i * width),
                          std::min(width, n - j * width), sign);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

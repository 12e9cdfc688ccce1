// SPDX-License-Identifier: Apache-2.0
// The one compute-bound loop of the library: products on tiles, from packed panels.
//
// A panel holds `depth` rows of kPanel<Real> consecutive columns, zero-padded, so that the micro-kernel reads the right
// operand with unit stride; the left one comes from a panel too (AᵀB) or from the rows of a matrix as they lie (AB).
// kTileRows x kTileVectors vector accumulators stay in registers for the whole depth. Per micro-tile and unit of depth:
// kTileVectors loads, kTileRows broadcasts, kTileRows * kTileVectors fused multiply-adds: 87 % of the peak of one core
// (AVX-512, Zen 5: 231 of 266 GFLOP/s in float32, 116 of 133 in float64, from depth 128 on); 89 to 96 % with AVX2 (Zen 3,
// peak 100 in float32, from depth 48 on, panels in the second-level cache; 83 % at depth 24).
#pragma once

#include "buffer.h"
#include "simd.h"

#include <algorithm>
#include <type_traits>

namespace pyprune {
namespace PYPRUNE_ISA {

// Columns of a panel: a multiple of both sides of the micro-tile for every instruction set.
template <class Real>
constexpr int kPanel = kTileVectors * Simd<Real>::lanes;
// Depth to go through at a time, so that this part of a panel (kPanelBytes) stays in the cache while rows pass by.
template <class Real>
constexpr int64_t kDepth = kPanelBytes / (kPanel<Real> * static_cast<int64_t>(sizeof(Real))) / 8 * 8;
static_assert(kPanel<float> % kTileRows == 0 && kPanel<double> % kTileRows == 0, "tile must divide panel");

inline int64_t panels(int64_t columns, int64_t width) {
    return (columns + width - 1) / width;
}

// Tile number `tile` of those on and above the diagonal of a square of `count` x `count` tiles, row by row.
struct UpperTile {
    int64_t row = 0, column;

    UpperTile(int64_t tile, int64_t count) : column(tile) {
        for (; column >= count - row; ++row) column -= count - row;
        column += row;
    }
};
inline int64_t upper_tiles(int64_t count) {
    return count * (count + 1) / 2;
}

// Copy `depth` rows of `width` <= kPanel columns (row stride `stride`) into a zero-padded panel.
template <class Real, class Source>
inline void pack_panel(Real* panel, const Source* source, int64_t depth, int64_t stride, int64_t width) {
    for (int64_t row = 0; row < depth; ++row, panel += kPanel<Real>, source += stride) {
        for (int64_t column = 0; column < width; ++column) panel[column] = static_cast<Real>(source[column]);
        for (int64_t column = width; column < kPanel<Real>; ++column) panel[column] = Real(0);
    }
}

// Where the micro-kernel finds its left operand: `depth` runs over the sum, `row` over rows of the result.
template <class Real>
struct PanelLeft {                        // packed like the right operand: the product is left panelᵀ · right panel
    static constexpr bool padded = true;  // whole tiles may be read whatever the number of rows
    const Real* panel;
    inline Real at(int64_t depth, int row) const { return panel[depth * kPanel<Real> + row]; }
    inline PanelLeft from(int64_t row) const { return {panel + row}; }
};
template <class Real>
struct RowsLeft {  // a row-major matrix as it is: the product is rows · right panel
    static constexpr bool padded = false;
    const Real* matrix;
    int64_t stride;
    inline Real at(int64_t depth, int row) const { return matrix[row * stride + depth]; }
    inline RowsLeft from(int64_t row) const { return {matrix + row * stride, stride}; }
};

template <class Real>
struct Tile {
    typename Simd<Real>::Vector sum[kTileRows][kTileVectors];
};

// tile.sum[row][:] = Σ_depth left(depth, row) right[depth][:] in registers, for the first `used` <= kTileRows rows.
template <int used, class Left, class Real>
inline __attribute__((always_inline)) void micro_tile(Tile<Real>& tile, Left left, const Real* right, int64_t depth) {
    using S = Simd<Real>;
    for (int row = 0; row < used; ++row)
        for (int v = 0; v < kTileVectors; ++v) tile.sum[row][v] = typename S::Vector{};
    for (int64_t k = 0; k < depth; ++k, right += kPanel<Real>) {
        typename S::Vector b[kTileVectors];
        for (int v = 0; v < kTileVectors; ++v) b[v] = S::load(right + v * S::lanes);
#pragma GCC unroll 8
        for (int row = 0; row < used; ++row) {
            const typename S::Vector a = S::broadcast(left.at(k, row));
#pragma GCC unroll 4
            for (int v = 0; v < kTileVectors; ++v) tile.sum[row][v] += a * b[v];
        }
    }
}

// out[row][:] = add · out + sign · sum, add 0 or 1, for the rows and columns of the tile that exist. A whole tile goes
// from registers to memory; anything else takes the way over a line on the stack.
template <class Real>
inline __attribute__((always_inline)) void store_whole(Real* out, int64_t stride, const Tile<Real>& tile, Real add,
                                                       Real sign) {
    using S = Simd<Real>;
    for (int row = 0; row < kTileRows; ++row)
        for (int v = 0; v < kTileVectors; ++v) {
            Real* place = out + row * stride + v * S::lanes;
            const typename S::Vector value = tile.sum[row][v] * S::broadcast(sign);
            S::store(place, add == Real(0) ? value : S::load(place) + value);
        }
}
// The same from sums in float32 to a matrix in float64.
inline __attribute__((always_inline)) void store_whole(double* out, int64_t stride, const Tile<float>& tile, double add,
                                                       double sign) {
    constexpr int half = Simd<double>::lanes;
    typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
    alignas(64) float lines[kTileRows][kPanel<float>];
    for (int row = 0; row < kTileRows; ++row)
        for (int v = 0; v < kTileVectors; ++v)
            Simd<float>::store(lines[row] + v * Simd<float>::lanes, tile.sum[row][v]);
    for (int row = 0; row < kTileRows; ++row)
        for (int v = 0; v < 2 * kTileVectors; ++v) {
            Half narrow;
            std::memcpy(&narrow, lines[row] + v * half, sizeof(narrow));
            double* place = out + row * stride + v * half;
            const auto value = __builtin_convertvector(narrow, Simd<double>::Vector) * Simd<double>::broadcast(sign);
            Simd<double>::store(place, add == 0.0 ? value : Simd<double>::load(place) + value);
        }
}
template <int used, class Real, class Out>
inline __attribute__((always_inline)) void store_part(Out* out, int64_t stride, const Tile<Real>& tile, int64_t rows,
                                                      int64_t columns, Out add, Out sign) {
    alignas(64) Real lines[used][kPanel<Real>];
    for (int row = 0; row < used; ++row)
        for (int v = 0; v < kTileVectors; ++v) Simd<Real>::store(lines[row] + v * Simd<Real>::lanes, tile.sum[row][v]);
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < columns; ++column) {
            Out* place = out + row * stride + column;
            *place = (add == Out(0) ? Out(0) : *place) + sign * static_cast<Out>(lines[row][column]);
        }
}

template <int used, class Left, class Real, class Out>
inline __attribute__((always_inline)) void one_tile(Out* out, int64_t stride, Left left, const Real* right,
                                                    int64_t depth, int64_t rows, int64_t columns, Out add, Out sign) {
    Tile<Real> tile;
    micro_tile<used>(tile, left, right, depth);
    if constexpr (used == kTileRows)
        if (rows == kTileRows && columns == kPanel<Real>) return store_whole(out, stride, tile, add, sign);
    if (columns == kPanel<Real>)
        store_part<used>(out, stride, tile, rows, kPanel<Real>, add, sign);  // a constant the compiler can unroll
    else
        store_part<used>(out, stride, tile, rows, columns, add, sign);
}

// C[rows][columns] = add · C + sign · left · (right panel); rows and columns at most one panel, add 0 or 1.
template <class Left, class Real, class Out>
inline void tile_product(Out* out, int64_t stride, Left left, const Real* right, int64_t depth, int64_t rows,
                         int64_t columns, Out add, Out sign) {
    int64_t row = 0;
    for (; row + kTileRows <= rows || (Left::padded && row < rows); row += kTileRows)
        one_tile<kTileRows>(out + row * stride, stride, left.from(row), right, depth,
                            std::min<int64_t>(kTileRows, rows - row), columns, add, sign);
    for (; row + 2 <= rows; row += 2)
        one_tile<2>(out + row * stride, stride, left.from(row), right, depth, 2, columns, add, sign);
    if (row < rows) one_tile<1>(out + row * stride, stride, left.from(row), right, depth, 1, columns, add, sign);
}

// C[rows][columns] += sign * (left panel)ᵀ (right panel)
template <class Real, class Out>
inline void panel_product(Out* out, int64_t stride, const Real* left, const Real* right, int64_t depth, int64_t rows,
                          int64_t columns, Out sign) {
    tile_product(out, stride, PanelLeft<Real>{left}, right, depth, rows, columns, Out(1), sign);
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

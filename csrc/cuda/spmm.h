// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "../common/element_type.h"
#include "../common/sparse_rows_view.h"  // what the CPU's products share: types of values, activations

namespace pyprune::cuda {

/// Warps of a block at most.
constexpr std::int64_t kSpmmWarps = 8;

/// A matrix in the arrangement "tiles" (pyprune/ops/sparse_tiles.py): cells of 16 rows by 64 columns.
struct Tiles {
    std::int64_t rows, columns;
    const std::uint32_t* bits;   // [cells, 32]
    const std::int32_t* starts;  // [cells + 1], in units of 16 bytes
    const void* values;          // aligned to 16 bytes
    ValueType type;
    std::int64_t largest;  // bytes of a cell's values at most, a multiple of 16
};

/// How a product is divided among blocks of threads.
struct SpmmCut {
    std::int64_t tokens;  // of one block: 8, 16 or 32 on tensor cores, 2 or 8 in float32
    std::int64_t warps;   // of one block, 1 to kSpmmWarps: they take turns along the columns
    std::int64_t splits;  // of the columns
};

/// What follows the product.
struct SpmmEnd {
    const float* scale;  // [rows] or null
    const void* bias;    // [rows] or null
    ElementType bias_type;
    Activation activation;  // GELU is the exact one (erf)
};

/// y = activation(scale (x W^T) + bias), sums in float32.
///
/// y           [tokens, rows] of `y_type`, contiguous
/// x           [tokens, columns] of `x_type`, rows `x_stride` elements apart; 16-bit x is multiplied on tensor cores,
///             by values of its own type or int8, float32 on float32 lanes, by values of any type. x and its rows are
///             aligned to 16 bytes, and columns beyond the last are zero up to the next 16 bytes.
/// parts       [splits, tokens, rows] float32, where there are splits; else null
/// stream      a cudaStream_t of the current device; null is the default stream
///
/// The call only enqueues: no synchronisation, no allocation, no atomics; equal input and an equal cut give equal bits.
/// Throws std::runtime_error with CUDA's text.
void spmm(void* y, ElementType y_type, const void* x, ElementType x_type, std::int64_t tokens, std::int64_t x_stride,
          const Tiles& weight, const SpmmEnd& end, const SpmmCut& cut, float* parts, void* stream);

}  // namespace pyprune::cuda

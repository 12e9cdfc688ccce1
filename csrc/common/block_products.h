// SPDX-License-Identifier: Apache-2.0
// Activations in token-blocks [block][feature][kBlockTokens], and the one loop of dense products on them.
//
// The tokens of a block lie along the lanes: a weight is broadcast and multiplies whole vectors of tokens, and whatever
// reduces over features or keys (LayerNorm, softmax) adds vectors, never across lanes. A lane's arithmetic does not depend
// on its neighbours, so that a token has the same bits wherever it lies and whatever else is in the batch.
#pragma once

#include "sparse_rows.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pyprune {
namespace PYPRUNE_ISA {

constexpr int kTokenLanes = Simd<float>::lanes;

// Half a block is what attention and LayerNorm work on.
constexpr int kGroupVectors = 2;
constexpr int kGroupTokens = kGroupVectors * kTokenLanes;
constexpr int kBlockGroups = kBlockVectors / kGroupVectors;

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kGroupRows = 8;  // rows of sums of a group in registers: 8 x 2 of 32
#else
constexpr int kGroupRows = 6;  // 6 x 2 of 16
#endif

using TokenVector = Simd<float>::Vector;

// The larger and the smaller of two in every lane, b where one is NaN: one instruction, which compilers do not find in
// a > b ? a : b.
inline TokenVector larger(TokenVector a, TokenVector b) {
#if defined(__AVX512F__)
    return (TokenVector)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (TokenVector)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}
inline TokenVector smaller(TokenVector a, TokenVector b) {
#if defined(__AVX512F__)
    return (TokenVector)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (TokenVector)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return a < b ? a : b;
#endif
}
inline TokenVector at_least(TokenVector value, float bound) {
    return larger(Simd<float>::broadcast(bound), value);  // NaN stays
}
inline TokenVector at_most(TokenVector value, float bound) {
    return smaller(Simd<float>::broadcast(bound), value);
}

// sum[row][v] += Σ_k left[row · row_stride + k · depth_stride] right[k · right_stride + lane of v], in order of k.
template <int rows, int vectors>
inline __attribute__((always_inline)) void accumulate(TokenVector (&sum)[rows][vectors], const float* left,
                                                      int64_t row_stride, int64_t depth_stride, const float* right,
                                                      int64_t right_stride, int64_t depth) {
    using S = Simd<float>;
    for (int64_t k = 0; k < depth; ++k, left += depth_stride, right += right_stride) {
        TokenVector b[vectors];
        for (int v = 0; v < vectors; ++v) b[v] = S::load(right + v * kTokenLanes);
#pragma GCC unroll 8
        for (int row = 0; row < rows; ++row) {
            const TokenVector a = S::broadcast(left[row * row_stride]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sum[row][v] += a * b[v];
        }
    }
}
// The same with strides that the compiler knows.
template <int row_stride, int depth_stride, int rows, int vectors>
inline __attribute__((always_inline)) void accumulate(TokenVector (&sum)[rows][vectors], const float* left,
                                                      const float* right, int right_stride, int64_t depth) {
    accumulate(sum, left, row_stride, depth_stride, right, right_stride, depth);
}

template <int rows, class Run>
inline __attribute__((always_inline)) void last_tile(int64_t first, int64_t left, Run& run) {
    if constexpr (rows > 0) {
        if (left == rows) return run(first, std::integral_constant<int, rows>());
        last_tile<rows - 1>(first, left, run);
    }
}

// Calls run(first row, std::integral_constant<int, rows>) for tiles of `most` rows, and one of those that are left.
template <int most, class Run>
inline __attribute__((always_inline)) void in_tiles(int64_t count, Run&& run) {
    int64_t row = 0;
    for (; row + most <= count; row += most) run(row, std::integral_constant<int, most>());
    last_tile<most - 1>(row, count - row, run);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

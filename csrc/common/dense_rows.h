// SPDX-License-Identifier: Apache-2.0
// A linear with all of its weights on a token-block: for every row of W a sum over the features of the block.
//
// W is stored in tiles of kDenseRows rows, [tile][in][kDenseRows], zero-padded. A tile stays in the first-level cache while the vectors of the block pass by. Per tile and feature: kDenseVectors loads,
// kDenseRows broadcasts, kDenseRows · kDenseVectors fused multiply-adds.
#pragma once

#include "block_products.h"
#include "encoder_view.h"

#include <algorithm>

namespace pyprune {
namespace PYPRUNE_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kDenseVectors = kBlockVectors;  // 6 x 4 of 32 registers
#else
constexpr int kDenseVectors = kGroupVectors;  // 6 x 2 of 16
#endif

// Tiles `first` to `last` of W x for the first `vectors` vectors of the block x [in][kBlockTokens]; every sum is handed
// to finish(row, first vector, sums of consecutive vectors).
template <class Finish>
inline void dense_rows(const float* weight, int64_t out, int64_t in, const float* x, int vectors, int64_t first,
                       int64_t last, Finish&& finish) {
    for (int64_t tile = first; tile < last; ++tile)
        for (int vector = 0; vector < vectors; vector += kDenseVectors) {
            TokenVector sum[kDenseRows][kDenseVectors] = {};
            accumulate<1, kDenseRows>(sum, weight + tile * in * kDenseRows, x + vector * kTokenLanes, kBlockTokens, in);
            const int64_t rows = std::min<int64_t>(kDenseRows, out - tile * kDenseRows);
            for (int row = 0; row < rows; ++row) finish(tile * kDenseRows + row, vector, sum[row]);
        }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

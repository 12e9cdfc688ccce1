// SPDX-License-Identifier: Apache-2.0
// Packing of kept tokens into panels, and their products in chains; shared by gram and cross_gram.
#pragma once

#include "buffer.h"
#include "convert.h"
#include "panel.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace pyprune {
namespace PYPRUNE_ISA {

// Tokens whose products are summed in the working precision before they are added to the float64 result.
// Two panels of a chain fit the first-level cache.
constexpr int64_t kChain = kVectorBytes == 64 ? 256 : 128;
// Tokens packed between two barriers. Twice as many were slower at 1536 columns on a Zen 3, and no faster below.
constexpr int64_t kChunk = 8 * kChain;

// Next tokens to use: fills `rows` with the indices of up to kChunk kept tokens and returns how many; `next`
// moves on. Dropped tokens are skipped here and never read, so that NaN in padding cannot enter a sum.
inline int64_t next_chunk(int64_t* rows, int64_t& next, int64_t tokens, const uint8_t* keep) {
    int64_t count = 0;
    for (; next < tokens && count < kChunk; ++next)
        if (keep == nullptr || keep[next] != 0) rows[count++] = next;
    return count;
}

// Tokens of one element type in panels. float64 stays, everything else is widened to float32.
template <class Element>
struct TokenPanels {
    using Real = typename std::conditional<std::is_same<Element, double>::value, double, float>::type;
    static constexpr int64_t width = kPanel<Real>;

    // Elements of `Real` that the panel of `count` tokens occupies.
    static int64_t size(int64_t count) { return count * width; }

    // panel[t][:] = x[rows[t]][first : first + columns], zero-padded.
    static void pack(Real* panel, const Element* x, int64_t stride, const int64_t* rows, int64_t count, int64_t first,
                     int64_t columns) {
        for (int64_t t = 0; t < count; ++t, panel += width) {
            const Element* source = x + rows[t] * stride + first;
            for (int64_t column = 0; column < columns; ++column) panel[column] = widen(source[column]);
            for (int64_t column = columns; column < width; ++column) panel[column] = Real(0);
        }
    }

    // out tile += left panelᵀ · right panel over `count` tokens, in chains of kChain.
    static void multiply(double* out, int64_t stride, const Real* left, const Real* right, int64_t count, int64_t rows,
                         int64_t columns) {
        for (int64_t first = 0; first < count; first += kChain)
            panel_product<Real, double>(out, stride, left + size(first), right + size(first),
                                        std::min(kChain, count - first), rows, columns, 1.0);
    }
};

#if defined(__AVX512BF16__)
// bfloat16 where the processor multiplies it: two tokens of a column in one 32-bit word, their two products added to a
// float32 sum by one instruction. Products are exact; the sum is rounded twice a pair, as in float32.
template <>
struct TokenPanels<BFloat16> {
    using Real = uint32_t;
    static constexpr int64_t width = kPanel<float>;

    static int64_t size(int64_t count) { return (count + 1) / 2 * width; }

    static void pack(Real* panel, const BFloat16* x, int64_t stride, const int64_t* rows, int64_t count, int64_t first,
                     int64_t columns) {
        static const BFloat16 none[kPanel<float>] = {};
        for (int64_t t = 0; t < count; t += 2, panel += width) {
            const BFloat16* even = x + rows[t] * stride + first;
            const BFloat16* odd = t + 1 < count ? x + rows[t + 1] * stride + first : none;
            for (int64_t column = 0; column < columns; ++column)
                panel[column] = even[column].bits | static_cast<uint32_t>(odd[column].bits) << 16;
            for (int64_t column = columns; column < width; ++column) panel[column] = 0;
        }
    }

    static void multiply(double* out, int64_t stride, const Real* left, const Real* right, int64_t count, int64_t rows,
                         int64_t columns) {
        for (int64_t first = 0; first < count; first += kChain)
            for (int64_t row = 0; row < rows; row += kTileRows) {
                Tile<float> tile;
                micro_tile(tile, left + size(first) + row, right + size(first),
                           (std::min(kChain, count - first) + 1) / 2);
                store_part<kTileRows>(out + row * stride, stride, tile, std::min<int64_t>(kTileRows, rows - row),
                                      columns, 1.0, 1.0);
            }
    }

  private:
    static inline __attribute__((always_inline)) void micro_tile(Tile<float>& tile, const Real* left, const Real* right,
                                                                 int64_t pairs) {
        __m512 total[kTileRows][kTileVectors];
        for (auto& row : total)
            for (auto& value : row) value = _mm512_setzero_ps();
        for (int64_t p = 0; p < pairs; ++p, left += width, right += width) {
            __m512bh b[kTileVectors];
            for (int v = 0; v < kTileVectors; ++v) b[v] = (__m512bh)_mm512_loadu_si512(right + 16 * v);
#pragma GCC unroll 8
            for (int row = 0; row < kTileRows; ++row) {
                const __m512bh a = (__m512bh)_mm512_set1_epi32(static_cast<int>(left[row]));
#pragma GCC unroll 4
                for (int v = 0; v < kTileVectors; ++v) total[row][v] = _mm512_dpbf16_ps(total[row][v], a, b[v]);
            }
        }
        for (int row = 0; row < kTileRows; ++row)
            for (int v = 0; v < kTileVectors; ++v) tile.sum[row][v] = (Simd<float>::Vector)total[row][v];
    }
};
#endif

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

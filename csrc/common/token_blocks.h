// SPDX-License-Identifier: Apache-2.0
// Between rows of tokens, x[token][column], and blocks, x[column][width], that hold the same columns of `width` tokens
// side by side: squares are transposed in registers. A vector of tokens goes along its rows to their end before the next
// one: rows of 768, 1,536 or 3,072 columns lie in few sets of the cache, which do not hold a line of each of 32 of them.
#pragma once

#include "convert.h"
#include "simd.h"

#include <algorithm>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Element>
inline Simd<float>::Vector load_wide(const Element* source) {
    Simd<float>::Vector wide;
    for (int lane = 0; lane < Simd<float>::lanes; ++lane) wide[lane] = widen(source[lane]);
    return wide;
}
inline Simd<float>::Vector load_wide(const float* source) {
    return Simd<float>::load(source);
}
inline Simd<float>::Vector load_wide(const BFloat16* source) {
    typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
    typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
    Halves halves;
    std::memcpy(&halves, source, sizeof(halves));
    const Words words = __builtin_convertvector(halves, Words) << 16;
    Simd<float>::Vector wide;
    std::memcpy(&wide, &words, sizeof(wide));
    return wide;
}
#if defined(__AVX512F__)
inline Simd<float>::Vector load_wide(const Float16* source) {
    return (Simd<float>::Vector)_mm512_maskz_cvtph_ps(static_cast<__mmask16>(-1),
                                                      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}
#elif defined(__F16C__)
inline Simd<float>::Vector load_wide(const Float16* source) {
    return (Simd<float>::Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}
#endif

template <class Element>
inline void store_narrow(Element* target, const Simd<float>::Vector value, int64_t count) {
    for (int64_t lane = 0; lane < count; ++lane) narrow(value[lane], target[lane]);
}
inline void store_narrow(float* target, const Simd<float>::Vector value, int64_t count) {
    if (count == Simd<float>::lanes)
        Simd<float>::store(target, value);
    else
        std::memcpy(target, &value, static_cast<size_t>(count) * sizeof(float));
}

// block[column][width] = x[token][column] for `columns` columns of `tokens` <= width tokens; zeros for the tokens that
// are not there. Up to a cache line of columns more is written; a row of x can be read up to `readable`.
template <int64_t width, class Element>
inline void to_block(float* block, const Element* x, int64_t stride, int64_t tokens, int64_t columns,
                     int64_t readable) {
    using S = Simd<float>;
    constexpr int64_t lanes = S::lanes;
    const auto square = [&](int64_t token, int64_t column) {
        typename S::Vector row[lanes];
        const int64_t there = std::min(lanes, tokens - token);
        const Element* source = x + token * stride + column;
        if (there == lanes && column + lanes <= readable) {
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) row[i] = load_wide(source + i * stride);
        } else {
            const size_t bytes = static_cast<size_t>(std::min(lanes, readable - column)) * sizeof(Element);
            for (int64_t i = 0; i < lanes; ++i) {
                Element part[lanes] = {};
                if (i < there) std::memcpy(part, source + i * stride, bytes);
                row[i] = load_wide(part);
            }
        }
        transpose<float>(row);
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) S::store(block + (column + i) * width + token, row[i]);
    };
    for (int64_t token = 0; token < width; token += lanes)
        for (int64_t column = 0; column < columns; column += lanes) square(token, column);
}

// The same for bfloat16 left in 16 bits: each two vectors of tokens in the order that Pairs (sparse_rows.h) takes.
template <int64_t width>
inline void to_block(BFloat16* block, const BFloat16* x, int64_t stride, int64_t tokens, int64_t columns,
                     int64_t readable) {
    using S = Simd<float>;
    constexpr int64_t lanes = S::lanes;
    typedef uint16_t Halves __attribute__((vector_size(kVectorBytes)));
    typedef int16_t Places __attribute__((vector_size(kVectorBytes)));
    Places upper{};  // four of one vector and four of the other in turn, the upper half of each word
    for (int i = 0; i < 2 * lanes; ++i) upper[i] = i / 8 * 8 + i % 4 * 2 + 1 + i % 8 / 4 * 2 * lanes;
    alignas(64) float wide[lanes * 2 * lanes];
    for (int64_t column = 0; column < columns; column += lanes)
        for (int64_t token = 0; token < width; token += 2 * lanes) {
            to_block<2 * lanes>(wide, x + token * stride + column, stride, tokens - token,
                                std::min(lanes, columns - column), readable - column);
            for (int64_t i = 0; i < lanes; ++i) {
                Halves two[2];
                std::memcpy(two, wide + i * 2 * lanes, sizeof(two));
                const Halves packed = __builtin_shuffle(two[0], two[1], upper);
                std::memcpy(block + (column + i) * width + token, &packed, sizeof(packed));
            }
        }
}

// y[token][row] = change(row, block[row][:]) for `rows` rows of the first `tokens` tokens of a block. Up to one vector of
// rows more is read.
template <int64_t width, class Element, class Change>
inline void from_block(Element* y, int64_t stride, const float* block, int64_t tokens, int64_t rows, Change&& change) {
    using S = Simd<float>;
    constexpr int64_t lanes = S::lanes;
    const auto square = [&](int64_t token, int64_t first) {
        typename S::Vector row[lanes];
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i)
            row[i] = change(std::min(first + i, rows - 1), S::load(block + (first + i) * width + token));
        transpose<float>(row);
        Element* target = y + token * stride + first;
        if (std::min(rows - first, tokens - token) >= lanes) {
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) store_narrow(target + i * stride, row[i], lanes);
        } else {
            for (int64_t i = 0; i < std::min(lanes, tokens - token); ++i)
                store_narrow(target + i * stride, row[i], std::min(lanes, rows - first));
        }
    };
    for (int64_t token = 0; token < tokens; token += lanes)
        for (int64_t row = 0; row < rows; row += lanes) square(token, row);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

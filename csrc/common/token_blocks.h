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
inline void store_narrow(BFloat16* target, const Simd<float>::Vector value, int64_t count) {
    typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
    typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
    Words bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const Words quiet = bits >> 16 | 0x40u, rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const Halves halves = __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, Halves);
    if (count == Simd<float>::lanes)
        std::memcpy(target, &halves, sizeof(halves));
    else
        std::memcpy(target, &halves, static_cast<size_t>(count) * sizeof(BFloat16));
}
#if defined(__AVX512F__)
inline void store_narrow(Float16* target, const Simd<float>::Vector value, int64_t count) {
    const __m256i halves = _mm512_maskz_cvtps_ph(static_cast<__mmask16>(-1), (__m512)value, _MM_FROUND_TO_NEAREST_INT);
    if (count == Simd<float>::lanes)
        std::memcpy(target, &halves, sizeof(halves));
    else
        std::memcpy(target, &halves, static_cast<size_t>(count) * sizeof(Float16));
}
#elif defined(__F16C__)
inline void store_narrow(Float16* target, const Simd<float>::Vector value, int64_t count) {
    const __m128i halves = _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
    if (count == Simd<float>::lanes)
        std::memcpy(target, &halves, sizeof(halves));
    else
        std::memcpy(target, &halves, static_cast<size_t>(count) * sizeof(Float16));
}
#endif
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

// The same for bfloat16 left in 16 bits: each two vectors of tokens in the order that Pairs (sparse_rows.h) takes. Two
// columns lie in a word, so that a square of words holds twice as many, and one shuffle parts them.
template <int64_t width>
inline void to_block(BFloat16* block, const BFloat16* x, int64_t stride, int64_t tokens, int64_t columns,
                     int64_t readable) {
    using S = Simd<float>;
    constexpr int64_t lanes = S::lanes;
    typedef uint16_t Halves __attribute__((vector_size(kVectorBytes)));
    typedef int16_t Places __attribute__((vector_size(kVectorBytes)));
    Places even{};  // four tokens of one vector and four of the other in turn
    for (int i = 0; i < 2 * lanes; ++i) even[i] = i / 8 * 8 + i % 4 * 2 + i % 8 / 4 * 2 * lanes;
    const Places odd = even + 1;
    const auto square = [&](typename S::Vector(&row)[lanes], int64_t token, int64_t column) {
        const BFloat16* source = x + token * stride + column;
        const int64_t there = std::clamp<int64_t>(tokens - token, 0, lanes);
        if (there == lanes && column + 2 * lanes <= readable) {
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) std::memcpy(row + i, source + i * stride, sizeof(row[i]));
        } else {
            const size_t bytes = static_cast<size_t>(std::min(2 * lanes, readable - column)) * sizeof(BFloat16);
            for (int64_t i = 0; i < lanes; ++i) {
                row[i] = S::Vector{};
                if (i < there) std::memcpy(row + i, source + i * stride, bytes);
            }
        }
        transpose<float>(row);
    };
    for (int64_t token = 0; token < width; token += 2 * lanes)
        for (int64_t column = 0; column < columns; column += 2 * lanes) {
            S::Vector first[lanes], second[lanes];
            square(first, token, column);
            square(second, token + lanes, column);
#pragma GCC unroll 16
            for (int64_t i = 0; i < lanes; ++i) {
                const Halves both[2] = {__builtin_shuffle((Halves)first[i], (Halves)second[i], even),
                                        __builtin_shuffle((Halves)first[i], (Halves)second[i], odd)};
                std::memcpy(block + (column + 2 * i) * width + token, both, sizeof(both[0]));
                std::memcpy(block + (column + 2 * i + 1) * width + token, both + 1, sizeof(both[1]));
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

// SPDX-License-Identifier: Apache-2.0
// Between rows of tokens, x[token][column], and blocks, x[column][width], that hold the same columns of `width` tokens
// side by side: squares are transposed in registers.
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
// are not there. Up to one vector of columns more is written, and read where a row has them: it ends after `readable`.
template <int64_t width, class Element>
inline void to_block(float* block, const Element* x, int64_t stride, int64_t tokens, int64_t columns,
                     int64_t readable) {
    using S = Simd<float>;
    constexpr int64_t lanes = S::lanes;
    for (int64_t column = 0; column < columns; column += lanes)
        for (int64_t token = 0; token < width; token += lanes) {
            typename S::Vector square[lanes];
            for (int64_t i = 0; i < lanes; ++i) {
                if (token + i >= tokens) {
                    square[i] = typename S::Vector{};
                    continue;
                }
                const Element* source = x + (token + i) * stride + column;
                if (column + lanes <= readable) {
                    square[i] = load_wide(source);
                } else {
                    Element rest[lanes] = {};
                    std::memcpy(rest, source, static_cast<size_t>(readable - column) * sizeof(Element));
                    square[i] = load_wide(rest);
                }
            }
            transpose<float>(square);
            for (int64_t i = 0; i < lanes; ++i) S::store(block + (column + i) * width + token, square[i]);
        }
}

// y[token][row] = change(row, block[row][:]) for `rows` rows of the first `tokens` tokens of a block. Up to one vector of
// rows more is read.
template <int64_t width, class Element, class Change>
inline void from_block(Element* y, int64_t stride, const float* block, int64_t tokens, int64_t rows, Change&& change) {
    using S = Simd<float>;
    constexpr int64_t lanes = S::lanes;
    for (int64_t row = 0; row < rows; row += lanes)
        for (int64_t token = 0; token < tokens; token += lanes) {
            typename S::Vector square[lanes];
            for (int64_t i = 0; i < lanes; ++i)
                square[i] = change(std::min(row + i, rows - 1), S::load(block + (row + i) * width + token));
            transpose<float>(square);
            for (int64_t i = 0; i < std::min(lanes, tokens - token); ++i)
                store_narrow(y + (token + i) * stride + row, square[i], std::min(lanes, rows - row));
        }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// The inner loop of few tokens: a panel of a matrix in windows (sparse_windows_view.h) times up to kFewTokens tokens.
//
// Sixteen rows advance together, one in each lane. The two vectors of a window are a table in registers: one instruction
// (vpermt2ps, vpermt2w) gives each lane the element of x that its weight meets, one more multiplies and adds. Gathers take
// 20 cycles for the same, and expanding a bit mask 5. A slot is loads of its values and columns, once for all tokens, and
// of two vectors of x a token: with one token they are what limits the loop.
// x lies in blocks, x[step][token][vector], so that loads are aligned, their addresses known when the code is compiled,
// and a window two blocks. Two slots have sums of their own; the order of all additions is the same for any number of
// tokens. Padding meets no element of x: the lane that looks up nothing is zero.
#pragma once

#include "convert.h"
#include "simd.h"
#include "sparse_windows_view.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#define PYPRUNE_WINDOWS 1
#include <immintrin.h>

namespace pyprune {
namespace PYPRUNE_ISA {

constexpr int64_t kFewTokens = 8;

// All lanes: GCC 12 takes the unmasked forms of some instructions for uses of what is not initialised.
constexpr __mmask16 kAll = static_cast<__mmask16>(-1);

inline __m512i words_of(__m128i bytes) {
    return _mm512_maskz_cvtepu8_epi32(kAll, bytes);
}
inline __m512 of_upper_halves(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, halves), 16));
}

// table[index] for 16 · vectors floats, by as many bits of the index as that takes.
template <int vectors>
inline __attribute__((always_inline)) __m512 look_up(__m512i index, const float* table) {
    if constexpr (vectors == 2) {
        return _mm512_permutex2var_ps(_mm512_load_ps(table), index, _mm512_load_ps(table + 16));
    } else {
        const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(8 * vectors));
        return _mm512_mask_blend_ps(upper, look_up<vectors / 2>(index, table),
                                    look_up<vectors / 2>(index, table + 8 * vectors));
    }
}

inline __m512 load_lanes(const float* source) {
    return _mm512_loadu_ps(source);
}
inline __m512 load_lanes(const BFloat16* source) {
    return of_upper_halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}
inline __m512 load_lanes(const Float16* source) {
    return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}
inline __m512 load_lanes(const int8_t* source) {
    return _mm512_maskz_cvtepi32_ps(
        kAll, _mm512_maskz_cvtepi8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
}

// The weights of a slot, and what they add to the sums of one token. A block of x is one vector wide.
template <class Value_>
struct WindowSingles {
    using Value = Value_;
    using Input = float;
    static constexpr int64_t step = kVectorWords, weights = kSliceRows;

    __m512i column;
    __m512 value;
    __mmask16 there;

    inline __attribute__((always_inline)) void read(const Value* values, const uint8_t* offsets) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets));
        there = _mm_movepi8_mask(bytes);
        column = words_of(bytes);
        value = load_lanes(values);
    }
    inline __attribute__((always_inline)) __m512 add(__m512 sum, const float* low, const float* high) const {
        const __m512 met = _mm512_maskz_permutex2var_ps(there, _mm512_load_ps(low), column, _mm512_load_ps(high));
        return _mm512_fmadd_ps(value, met, sum);
    }
};

#if defined(__AVX512BF16__)
struct WindowPairs {
    using Value = BFloat16;
    using Input = BFloat16;
    static constexpr int64_t step = 2 * kVectorWords, weights = 2 * kSliceRows;

    __m512i column, value;
    __mmask32 there;

    inline __attribute__((always_inline)) void read(const Value* values, const uint8_t* offsets) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offsets));
        there = _mm256_movepi8_mask(bytes);
        column = _mm512_maskz_cvtepu8_epi16(static_cast<__mmask32>(-1), bytes);
        value = _mm512_loadu_si512(values);
    }
    inline __attribute__((always_inline)) __m512 add(__m512 sum, const BFloat16* low, const BFloat16* high) const {
        const __m512i met =
            _mm512_maskz_permutex2var_epi16(there, _mm512_load_si512(low), column, _mm512_load_si512(high));
        return _mm512_dpbf16_ps(sum, (__m512bh)met, (__m512bh)value);
    }
};
#endif

// sums[token][kWindowPanel], in the order of the panel: one slice.
template <class Slot, int tokens>
inline __attribute__((always_inline)) void multiply_slice(const WindowsView& w, int64_t slice,
                                                          const typename Slot::Input* x, float* sums) {
    constexpr int chains = 2;
    __m512 sum[chains][tokens];
#pragma GCC unroll 2
    for (int c = 0; c < chains; ++c)
#pragma GCC unroll 8
        for (int t = 0; t < tokens; ++t) sum[c][t] = _mm512_setzero_ps();
    const auto* values = static_cast<const typename Slot::Value*>(w.values);
    for (int64_t slot = w.starts[slice], end = w.starts[slice + 1]; slot < end; slot += chains)
#pragma GCC unroll 2
        for (int c = 0; c < chains; ++c) {
            Slot own;
            own.read(values + (slot + c) * Slot::weights, w.offsets + (slot + c) * Slot::weights);
            const typename Slot::Input* block = x + w.steps[slot + c] * (tokens * Slot::step);
#pragma GCC unroll 8
            for (int t = 0; t < tokens; ++t)
                sum[c][t] = own.add(sum[c][t], block + t * Slot::step, block + (tokens + t) * Slot::step);
        }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) _mm512_store_ps(sums + t * kWindowPanel, _mm512_add_ps(sum[0][t], sum[1][t]));
}

template <class Slot, int tokens>
__attribute__((noinline)) void multiply_panel(const WindowsView& w, int64_t panel, const typename Slot::Input* x,
                                              float* sums) {
    for (int64_t slice = 0; slice < kPanelSlices; ++slice)
        multiply_slice<Slot, tokens>(w, panel * kPanelSlices + slice, x, sums + slice * kSliceRows);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune
#endif

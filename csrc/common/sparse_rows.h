// SPDX-License-Identifier: Apache-2.0
// The inner loop of sparse products: rows of a sparse matrix (sparse_rows_view.h) times a block of tokens.
//
// A block holds its tokens side by side, x[column][width], width = `vectors` vectors, so that a kept weight is one
// broadcast and `vectors` fused multiply-adds whose other operand comes from memory. Two rows advance together, and where
// a block is narrow also two steps, so that there are eight sums in flight (four with one vector). Four weights are read
// by one load and spread by shuffles: loads are what limits the loop, 17 for 16 multiply-adds. A tile of x must stay in
// the first-level cache: tile_width. Weights are widened to float32 on the way, sums are float32.
//
// Callers give two functors: where a tile of the block's x lies (spmm transposes it there), and what to do with a panel's
// finished sums [rows][width] (bias, activation, layout). encoder_layer keeps its activations in blocks, spmm does not.
#pragma once

#include "convert.h"
#include "simd.h"
#include "sparse_rows_view.h"

#include <algorithm>
#include <type_traits>

#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

namespace pyprune {
namespace PYPRUNE_ISA {

constexpr int kBlockVectors = 4;  // of the widest block
constexpr int64_t kBlockTokens = kBlockVectors * Simd<float>::lanes;
constexpr int64_t kChunkPanels = 32;  // panels whose sums are kept until all tiles have passed by

// Columns of a tile, a pure function: a tile of x takes 24 KiB of the first-level cache, or all of 32 KiB where rows
// keep so little that the cost of a row counts for more than that of a miss.
inline int64_t tile_width(int64_t in, double density) {
    constexpr int64_t bytes = kBlockTokens * static_cast<int64_t>(sizeof(float));
    const int64_t most = (kVectorBytes == 64 || density < 0.15 ? 32 << 10 : 24 << 10) / bytes;
    const int64_t tiles = std::max<int64_t>(1, (in + most - 1) / most);
    return std::max<int64_t>(8, ((in + tiles - 1) / tiles + 7) / 8 * 8);
}

typedef float Quad __attribute__((vector_size(16)));

inline Quad load_quad(const float* source) {
    Quad value;
    std::memcpy(&value, source, sizeof(value));
    return value;
}
inline Quad load_quad(const BFloat16* source) {
    typedef uint16_t Halves __attribute__((vector_size(8)));
    typedef uint32_t Words __attribute__((vector_size(16)));
    Halves halves;
    std::memcpy(&halves, source, sizeof(halves));
    const Words words = __builtin_convertvector(halves, Words) << 16;
    Quad value;
    std::memcpy(&value, &words, sizeof(value));
    return value;
}
inline Quad load_quad(const Float16* source) {
#if defined(__F16C__)
    long long bits;
    std::memcpy(&bits, source, sizeof(bits));
    return (Quad)_mm_cvtph_ps(_mm_cvtsi64_si128(bits));
#else
    return Quad{widen(source[0]), widen(source[1]), widen(source[2]), widen(source[3])};
#endif
}
inline Quad load_quad(const int8_t* source) {
#if defined(__SSE4_1__)  // GCC takes vectors of four bytes apart
    int bits;
    std::memcpy(&bits, source, sizeof(bits));
    return (Quad)_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bits)));
#else
    return Quad{widen(source[0]), widen(source[1]), widen(source[2]), widen(source[3])};
#endif
}

// The quad in every 128 bits of a vector, and one of its four in all lanes.
inline Simd<float>::Vector repeat(Quad quad) {
#if defined(__AVX512F__)
    return __builtin_shufflevector(quad, quad, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
#elif defined(__AVX2__)
    return __builtin_shufflevector(quad, quad, 0, 1, 2, 3, 0, 1, 2, 3);
#else
    return quad;
#endif
}
template <int which>
inline Simd<float>::Vector pick(Simd<float>::Vector repeated) {
    Lanes<float>::Indices place{};
    for (int lane = 0; lane < Simd<float>::lanes; ++lane) place[lane] = lane / 4 * 4 + which;
    return __builtin_shuffle(repeated, place);
}

// Two rows times `vectors` vectors of tokens.
template <int vectors>
struct PairSums {
    using S = Simd<float>;
    S::Vector sum[2][vectors];

    inline __attribute__((always_inline)) void add(int row, S::Vector weight, const float* x) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[row][v] += weight * S::load(x + v * S::lanes);
    }
};

// What a quad of weights, two of each row, adds to the sums: one weight at a time, x in float32.
template <int vectors_, class Value_>
struct Singles {
    static constexpr int vectors = vectors_;
    static constexpr bool apart = vectors < kBlockVectors;  // narrow blocks sum every other step apart
    using Value = Value_;
    using Input = float;

    static inline __attribute__((always_inline)) void add(PairSums<vectors>& even, PairSums<vectors>& odd,
                                                          const Value* value, uint64_t at, const float* x) {
        constexpr int64_t width = vectors * Simd<float>::lanes;
        PairSums<vectors>& other = apart ? odd : even;
        const Simd<float>::Vector four = repeat(load_quad(value));
        even.add(0, pick<0>(four), x + (at & 0xffff) * width);
        even.add(1, pick<2>(four), x + (at >> 32 & 0xffff) * width);
        other.add(0, pick<1>(four), x + (at >> 16 & 0xffff) * width);
        other.add(1, pick<3>(four), x + (at >> 48) * width);
    }
};

// The same with x in bfloat16, two weights of a row at a time: their x are interleaved, so that one instruction
// (AVX-512 BF16) takes two products and adds them. Elsewhere the same sums are made of several.
// x[column] holds, for each two vectors of tokens, four of the first and four of the second in turn: interleaving puts
// them in order (to_pair_block in token_blocks.h).
template <int vectors_>
struct Pairs {
    static constexpr int vectors = vectors_;
    static constexpr bool apart = false;
    static_assert(vectors % 2 == 0, "tokens are interleaved by two vectors");
    using Value = BFloat16;
    using Input = BFloat16;
    using S = Simd<float>;
    static constexpr int halves = kVectorBytes / 2;
    typedef uint16_t Halves __attribute__((vector_size(kVectorBytes)));
    typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

    static inline __attribute__((always_inline)) void add(PairSums<vectors>& sums, PairSums<vectors>&,
                                                          const BFloat16* value, uint64_t at, const BFloat16* x) {
        constexpr int64_t width = vectors * S::lanes;
#pragma GCC unroll 2
        for (int row = 0; row < 2; ++row) {
            uint32_t two;
            std::memcpy(&two, value + 2 * row, sizeof(two));
            const BFloat16* first = x + (at >> (32 * row) & 0xffff) * width;
            const BFloat16* second = x + (at >> (32 * row + 16) & 0xffff) * width;
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v += 2) {
                const Halves a = load(first + v * S::lanes), b = load(second + v * S::lanes);
                sums.sum[row][v] = dot(sums.sum[row][v], interleave<0>(a, b), two);
                sums.sum[row][v + 1] = dot(sums.sum[row][v + 1], interleave<4>(a, b), two);
            }
        }
    }

  private:
    static inline Halves load(const BFloat16* source) {
        Halves value;
        std::memcpy(&value, source, sizeof(value));
        return value;
    }
    template <int from>
    static inline Halves interleave(Halves a, Halves b) {
        typedef int16_t Places __attribute__((vector_size(kVectorBytes)));
        Places place{};
        for (int i = 0; i < halves; ++i) place[i] = i / 8 * 8 + i % 8 / 2 + from + i % 2 * halves;
        return __builtin_shuffle(a, b, place);
    }
    static inline S::Vector dot(S::Vector sum, Halves x, uint32_t weights) {
#if defined(__AVX512BF16__)
        return (S::Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x,
                                           (__m512bh)_mm512_set1_epi32(static_cast<int>(weights)));
#else
        const Words both = (Words)x;
        sum += (S::Vector)(both & 0xffff0000u) * S::broadcast(widen(BFloat16{static_cast<uint16_t>(weights >> 16)}));
        return sum + (S::Vector)(both << 16) * S::broadcast(widen(BFloat16{static_cast<uint16_t>(weights)}));
#endif
    }
};

// sums[row][:] (+)= Σ weights of the cell's rows times x[column][:], x the tile's first column; `fresh`: = for +=.
template <class Steps>
__attribute__((noinline)) void multiply_cell(const SparseRows& w, int64_t panel, int64_t tile, bool fresh,
                                             const typename Steps::Input* x, float* sums) {
    using S = Simd<float>;
    constexpr int vectors = Steps::vectors;
    constexpr int64_t width = vectors * S::lanes;
    const int64_t cell = panel * w.tiles() + tile;
    const auto* value = static_cast<const typename Steps::Value*>(w.values) + w.starts[cell];
    const uint16_t* column = w.columns + w.starts[cell];
    const uint8_t* rows = w.rows + cell * kPanelRows;
    const uint16_t* lengths = w.lengths + cell * kPanelRows;
    for (int64_t row = 0, count = w.panel_rows(panel); row < count; row += 2) {
        float* const place[2] = {sums + rows[row] * width, sums + rows[row + 1] * width};
        PairSums<vectors> even, odd;
        for (int r = 0; r < 2; ++r)
            for (int v = 0; v < vectors; ++v) {
                even.sum[r][v] = fresh ? typename S::Vector{} : S::load(place[r] + v * S::lanes);
                odd.sum[r][v] = typename S::Vector{};
            }
        for (int64_t quads = pair_quads(lengths[row]); quads > 0; --quads, value += 4, column += 4) {
            uint64_t at;
            std::memcpy(&at, column, sizeof(at));
            asm("" : "+r"(at));  // one load: compilers would load each of the four columns
            Steps::add(even, odd, value, at, x);
        }
        for (int r = 0; r < 2; ++r)
            for (int v = 0; v < vectors; ++v)
                S::store(place[r] + v * S::lanes, Steps::apart ? even.sum[r][v] + odd.sum[r][v] : even.sum[r][v]);
    }
}

// Panels first … last − 1 of the matrix times one block of tokens.
//   locate(tile) -> const Input*      x[tile's columns][width]; asked again for every chunk of panels
//   finish(panel, const float* sums)  the panel's sums [kPanelRows][width], rows beyond the matrix undefined
// `sums` holds kChunkPanels · kPanelRows · width floats.
template <class Steps, class Locate, class Finish>
inline void multiply_steps(const SparseRows& w, int64_t first, int64_t last, float* sums, Locate&& locate,
                           Finish&& finish) {
    constexpr int64_t panel_sums = kPanelRows * Steps::vectors * Simd<float>::lanes;
    for (int64_t chunk = first; chunk < last; chunk += kChunkPanels) {
        const int64_t end = std::min(last, chunk + kChunkPanels), tiles = w.tiles();
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const typename Steps::Input* x = locate(tile);
            for (int64_t panel = chunk; panel < end; ++panel) {
                float* own = sums + (panel - chunk) * panel_sums;
                multiply_cell<Steps>(w, panel, tile, tile == 0, x, own);
                if (tile == tiles - 1) finish(panel, static_cast<const float*>(own));
            }
        }
    }
}

template <int vectors, class Value, class Locate, class Finish>
inline void multiply_block(const SparseRows& w, int64_t first, int64_t last, float* sums, Locate&& locate,
                           Finish&& finish) {
    multiply_steps<Singles<vectors, Value>>(w, first, last, sums, locate, finish);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

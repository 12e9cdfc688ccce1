// SPDX-License-Identifier: Apache-2.0
// The inner loop of sparse products: rows of a sparse matrix (sparse_rows_view.h) times a block of tokens.
//
// A block holds its tokens side by side, x[column][width], width = `vectors` vectors, so that a kept weight is one
// broadcast and `vectors` fused multiply-adds whose other operand comes from memory. Two rows advance together, and where
// a block is narrow also two steps, so that there are eight sums in flight (four with one vector). Four weights are read
// by one load and spread by shuffles: loads are what limits the loop, 17 for 16 multiply-adds. Where they go is read two
// quads before: of the loads that are ready a processor takes the oldest, so that columns read when they are needed would
// wait for all of x that is still to come (204 instead of 181 GFLOP/s of 270 on a Zen 5 at half the weights). A tile of x
// must stay in the first-level cache: tile_width. Weights are widened to float32 on the way, sums are float32.
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

// Whether weights and x of bfloat16 are multiplied two by two without being asked to be.
#if defined(__AVX512BF16__)
constexpr bool kMultipliesPairs = true;
#else
constexpr bool kMultipliesPairs = false;
#endif

// What a tile of x may take of the first-level cache: processors with AVX-512 have 48 KiB (Zen 5, Ice Lake and later), and
// blocks of twice the bytes there.
constexpr int64_t kTileCache = (kVectorBytes == 64 ? 48 : 32) << 10;

// Columns of a tile, a pure function: its x takes three quarters of that, two thirds with AVX-512, or all of it where rows
// keep so little that the cost of a row counts for more than that of a miss. `pairs`: x will be bfloat16, half as wide.
inline int64_t tile_width(int64_t in, double density, bool pairs) {
    const int64_t bytes = kBlockTokens * (pairs && kMultipliesPairs ? 2 : 4);
    const int64_t most = (density < 0.15       ? kTileCache
                          : kVectorBytes == 64 ? kTileCache * 2 / 3
                                               : kTileCache * 3 / 4) /
                         bytes;
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
#if defined(__AVX512F__)  // GCC goes through memory for __builtin_shufflevector, and waits for the store
    return (Simd<float>::Vector)_mm512_maskz_broadcast_f32x4(static_cast<__mmask16>(-1), (__m128)quad);
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
    static constexpr bool quads_apart = false;
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
    static constexpr bool apart = vectors < kBlockVectors;
    static constexpr bool quads_apart = apart;  // a quad is one step of a row: every other quad
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

inline uint64_t four_columns(const uint16_t* columns) {
    uint64_t four;
    std::memcpy(&four, columns, sizeof(four));
    asm("" : "+r"(four));  // one load: compilers would load each of the four
    return four;
}

// Weights come from memory once and are needed soon: asked for some pairs before, a line at a time. (Zen 5, weights out of
// the cache, 32 tokens: 1.25 to 1.5 times as fast; in the cache 1 to 2 % slower.)
template <class Value>
inline void fetch_ahead(const Value* value, const uint16_t* column, int64_t quads) {
    constexpr int64_t distance = 768, line = 64;  // weights, bytes
    const auto* values = reinterpret_cast<const char*>(value + distance);
    const auto* columns = reinterpret_cast<const char*>(column + distance);
    for (int64_t quad = 0; quad < quads; quad += 8) {
        for (int64_t byte = 0; byte < 32 * static_cast<int64_t>(sizeof(Value)); byte += line)
            __builtin_prefetch(values + quad * 4 * static_cast<int64_t>(sizeof(Value)) + byte, 0, 2);
        __builtin_prefetch(columns + quad * 4 * static_cast<int64_t>(sizeof(*column)), 0, 2);
    }
}

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
    uint64_t at = four_columns(column), next = four_columns(column + 4);
    for (int64_t row = 0, count = w.panel_rows(panel); row < count; row += 2) {
        float* const place[2] = {sums + rows[row] * width, sums + rows[row + 1] * width};
        const int64_t quads = pair_quads(lengths[row]);
        fetch_ahead(value, column, quads);
        PairSums<vectors> even, odd;
        for (int r = 0; r < 2; ++r)
            for (int v = 0; v < vectors; ++v) {
                even.sum[r][v] = fresh ? typename S::Vector{} : S::load(place[r] + v * S::lanes);
                odd.sum[r][v] = typename S::Vector{};
            }
        int64_t left = quads;
        if constexpr (Steps::quads_apart)
            for (; left >= 2; left -= 2, value += 8, column += 8) {
                const uint64_t ahead = four_columns(column + kColumnsAhead);
                const uint64_t further = four_columns(column + kColumnsAhead + 4);
                Steps::add(even, odd, value, at, x);
                Steps::add(odd, even, value + 4, next, x);
                at = ahead, next = further;
            }
        for (; left > 0; --left, value += 4, column += 4) {
            const uint64_t ahead = four_columns(column + kColumnsAhead);
            Steps::add(even, odd, value, at, x);
            at = next, next = ahead;
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

// SPDX-License-Identifier: Apache-2.0
// spmm: y = activation(scale ∘ (x Wᵀ) + bias)       x [tokens, in], W [out, in] in the arrangement "rows", y [tokens, out]
//
// Algorithm: tokens in blocks of up to kBlockTokens, transposed tile by tile as they are needed; a weight is one broadcast
//   and as many multiply-adds as the block has vectors (sparse_rows.h). Sums of up to kChunkPanels panels wait in the
//   second-level cache for the next tile; after the last one they are scaled, activated and transposed back. One token
//   needs no block: four weights and the four elements of x that they meet are one multiply-add. Where x and W are bfloat16
//   and the processor has AVX-512 BF16, weights go two by two (`pairs` asks for the same arithmetic elsewhere: for tests).
// Operations: 2 · kept · tokens. Memory: W once per block, x once per block and 2,048 rows, y once.
//   768 x 768 with 50 / 70 / 90 / 95 % zeros, GFLOP/s of kept weights with both layouts. One core of a Zen 5 (AVX-512, peak
//   270), without Python: 32 tokens 174 / 162 / 133 / 103, 128 tokens 193 / 181 / 135 / 105, 128 in pairs of bfloat16
//   272 / 259 / 196 / 154. One core of a Zen 3 (AVX2, peak 100), calls from Python, 32 tokens, before columns were read
//   ahead: 69 / 64 / 50 / 39; 0.3 ns a weight with one token.
// Threads share blocks times panels in one line, cut where the work is equal; every sum is made by one thread in one order:
// bits do not depend on their number.
#include "../common/buffer.h"
#include "../common/gelu.h"
#include "../common/sparse_rows.h"
#include "../common/token_blocks.h"

#include "kernels.h"

#include <omp.h>

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kLanes = Simd<float>::lanes;
constexpr int64_t kThreadWork = 60000;  // steps times vectors below which another thread costs more than it brings

struct Epilogue {
    const float *scale, *bias;  // [out] or null
    Activation activation;

    inline Simd<float>::Vector affine(int64_t row, Simd<float>::Vector sum) const {
        if (scale != nullptr) sum *= Simd<float>::broadcast(scale[row]);
        if (bias != nullptr) sum += Simd<float>::broadcast(bias[row]);
        return sum;
    }
    inline Simd<float>::Vector activate(Simd<float>::Vector value) const {
        if (activation == Activation::gelu) return gelu(value);
        if (activation == Activation::relu) return value < Simd<float>::Vector{} ? Simd<float>::Vector{} : value;
        return value;
    }
};

template <class Element>
struct Tokens {
    const Element* x;
    Element* y;
    int64_t count, stride;
};

// Vectors of the block that starts at a token: the narrowest that holds what is left.
int64_t block_vectors(int64_t left) {
    return left > 2 * kLanes ? 4 : left > kLanes ? 2 : 1;
}

// Where each thread begins on the line of blocks times panels.
struct Share {
    int64_t block, panel;
};
class Line {
  public:
    Line(const SparseRows& w, int64_t tokens) : w_(w), blocks_(panels(tokens)), last_(block_vectors(rest(tokens))) {}

    int64_t blocks() const { return blocks_; }
    int64_t work() const { return (blocks_ - 1) * cost(kBlockVectors) + cost(last_); }

    Share begin(int64_t part, int64_t parts) const {
        if (part == parts) return {blocks_, 0};
        int64_t before = static_cast<int64_t>(static_cast<double>(work()) * part / parts);
        const int64_t block = std::min(before / cost(kBlockVectors), blocks_ - 1);
        before -= block * cost(kBlockVectors);
        const int64_t vectors = block == blocks_ - 1 ? last_ : kBlockVectors;
        int64_t low = 0, high = w_.panels();
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (to_panel(middle) * (vectors + 1) < before)
                low = middle + 1;
            else
                high = middle;
        }
        return low == w_.panels() ? Share{block + 1, 0} : Share{block, low};
    }

  private:
    static int64_t panels(int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }
    static int64_t rest(int64_t tokens) { return tokens - (panels(tokens) - 1) * kBlockTokens; }
    // Steps before a panel; a row of a cell costs about as much as eight of its weights.
    int64_t to_panel(int64_t panel) const {
        return w_.starts[panel * w_.tiles()] + 8 * panel * w_.tiles() * kPanelRows;
    }
    int64_t cost(int64_t vectors) const { return to_panel(w_.panels()) * (vectors + 1); }

    const SparseRows& w_;
    int64_t blocks_, last_;
};

// Layout and epilogue do not depend on the type of the weights, products not on that of x: calls apart from each other keep
// the number of their combinations, and with it the time to compile, small.
template <int64_t width, class Input, class Element>
__attribute__((noinline)) void read_tile(Input* to, const SparseRows& w, int64_t tile, const Tokens<Element>& tokens,
                                         int64_t token) {
    const Element* x = tokens.x + token * tokens.stride + tile * w.tile;
    to_block<width>(to, x, tokens.stride, std::min(width, tokens.count - token), w.tile_columns(tile),
                    w.in - tile * w.tile);
}

template <int64_t width, class Element>
__attribute__((noinline)) void write_panel(const Tokens<Element>& tokens, const SparseRows& w, int64_t panel,
                                           int64_t token, const Epilogue& epilogue, const float* sums) {
    const int64_t row = panel * kPanelRows;
    from_block<width>(
        tokens.y + token * w.out + row, w.out, sums, std::min(width, tokens.count - token), w.panel_rows(panel),
        [&](int64_t i, Simd<float>::Vector sum) { return epilogue.activate(epilogue.affine(row + i, sum)); });
}

template <class Steps, class Element>
void block_rows(const SparseRows& w, int64_t first, int64_t last, const Tokens<Element>& tokens, int64_t token,
                const Epilogue& epilogue, float* memory, float* sums) {
    constexpr int64_t width = Steps::vectors * kLanes;
    auto* const x_tile = reinterpret_cast<typename Steps::Input*>(memory);
    multiply_steps<Steps>(
        w, first, last, sums,
        [&](int64_t tile) {
            read_tile<width>(x_tile, w, tile, tokens, token);
            return x_tile;
        },
        [&](int64_t panel, const float* own) { write_panel<width>(tokens, w, panel, token, epilogue, own); });
}

// sums[row] of one panel and one token.
template <class Value>
__attribute__((noinline)) void gather_panel(const SparseRows& w, int64_t panel, const float* x, float* sums) {
    std::fill_n(sums, kPanelRows, 0.0f);
    const int64_t tiles = w.tiles();
    const Value* value = static_cast<const Value*>(w.values) + w.starts[panel * tiles];
    const uint16_t* column = w.columns + w.starts[panel * tiles];
    for (int64_t tile = 0; tile < tiles; ++tile, x += w.tile) {
        const uint8_t* rows = w.rows + (panel * tiles + tile) * kPanelRows;
        const uint16_t* lengths = w.lengths + (panel * tiles + tile) * kPanelRows;
        for (int64_t row = 0, count = w.panel_rows(panel); row < count; row += 2) {
            Quad even{}, odd{};
            const auto four = [&](int64_t i) {
                uint64_t at;
                std::memcpy(&at, column + i, sizeof(at));
                const Quad met{x[at & 0xffff], x[at >> 16 & 0xffff], x[at >> 32 & 0xffff], x[at >> 48]};
                return load_quad(value + i) * met;
            };
            int64_t quads = pair_quads(lengths[row]);
            for (; quads >= 2; quads -= 2, value += 8, column += 8) {
                even += four(0);
                odd += four(4);
            }
            if (quads != 0) {
                even += four(0);
                value += 4, column += 4;
            }
            even += odd;
            sums[rows[row]] += even[0] + even[1];
            sums[rows[row + 1]] += even[2] + even[3];
        }
    }
}

template <class Element>
__attribute__((noinline)) void write_row(Element* y, const SparseRows& w, int64_t panel, const Epilogue& epilogue,
                                         float* sums) {
    const int64_t start = panel * kPanelRows, rows = w.panel_rows(panel);
    for (int64_t row = 0; row < rows; ++row)
        sums[row] = epilogue.affine(start + row, sums[row] - Simd<float>::Vector{})[0];
    for (int64_t row = 0; row < rows; row += kLanes)
        store_narrow(y + start + row, epilogue.activate(Simd<float>::load(sums + row)),
                     std::min<int64_t>(kLanes, rows - row));
}

template <class Value, class Element>
void gather_rows(const SparseRows& w, int64_t first, int64_t last, const float* x, Element* y,
                 const Epilogue& epilogue) {
    float sums[kPanelRows];
    for (int64_t panel = first; panel < last; ++panel) {
        gather_panel<Value>(w, panel, x, sums);
        write_row(y, w, panel, epilogue, sums);
    }
}

template <class Value, class Element>
void multiply_one(const SparseRows& w, const Tokens<Element>& tokens, const Epilogue& epilogue, int threads) {
    const Line line(w, 1);
    Buffer<float> wide(std::is_same<Element, float>::value ? 0 : static_cast<size_t>(w.in));
    const float* x = wide.data();
    if constexpr (std::is_same<Element, float>::value)
        x = tokens.x;
    else
        for (int64_t i = 0; i < w.in; ++i) wide[i] = widen(tokens.x[i]);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int parts = omp_get_num_threads(), part = omp_get_thread_num();
        const Share begin = line.begin(part, parts), end = line.begin(part + 1, parts);
        gather_rows<Value>(w, begin.block == 0 ? begin.panel : w.panels(), end.block == 0 ? end.panel : w.panels(), x,
                           tokens.y, epilogue);
    }
}

template <class Value, class Element>
void multiply_many(const SparseRows& w, const Tokens<Element>& tokens, const Epilogue& epilogue,
                   [[maybe_unused]] bool pairs, int threads) {
    const Line line(w, tokens.count);
    const int64_t tile = (w.tile + 16) * kBlockTokens;
    const int64_t sums = std::min(kChunkPanels, w.panels()) * kPanelRows * kBlockTokens;
    Buffer<float> memory(static_cast<size_t>(threads * (tile + sums)));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int parts = omp_get_num_threads(), part = omp_get_thread_num();
        float* const own = memory.data() + part * (tile + sums);
        const Share begin = line.begin(part, parts), end = line.begin(part + 1, parts);
        for (int64_t block = begin.block; block < line.blocks() && block <= end.block; ++block) {
            const int64_t first = block == begin.block ? begin.panel : 0;
            const int64_t last = block == end.block ? end.panel : w.panels(), token = block * kBlockTokens;
            const auto run = [&](auto steps) {
                block_rows<decltype(steps)>(w, first, last, tokens, token, epilogue, own, own + tile);
            };
            const int64_t vectors = block_vectors(tokens.count - token);
            if constexpr (std::is_same<Value, BFloat16>::value && std::is_same<Element, BFloat16>::value) {
                if (pairs) {
                    vectors == 4 ? run(Pairs<4>{}) : run(Pairs<2>{});
                    continue;
                }
            }
            // A tile arranged for pairs is too wide for four vectors of float32.
            const bool halves =
                vectors == 4 && w.tile * kBlockTokens * static_cast<int64_t>(sizeof(float)) > kTileCache;
            if (halves)
                for (const int64_t half : {token, token + kBlockTokens / 2})
                    block_rows<Singles<2, Value>>(w, first, last, tokens, half, epilogue, own, own + tile);
            else if (vectors == 4)
                run(Singles<4, Value>{});
            else if (vectors == 2)
                run(Singles<2, Value>{});
            else
                run(Singles<1, Value>{});
        }
    }
}

template <class Value, class Element>
void multiply(const SparseRows& w, void* y, const void* x, int64_t tokens, int64_t stride, const Epilogue& epilogue,
              bool pairs, int threads) {
    const Tokens<Element> ends{static_cast<const Element*>(x), static_cast<Element*>(y), tokens, stride};
    const int64_t worth = std::max<int64_t>(1, Line(w, tokens).work() / kThreadWork);
    const int used = static_cast<int>(std::min<int64_t>(threads, worth));
    if (tokens == 1)
        multiply_one<Value>(w, ends, epilogue, used);
    else
        multiply_many<Value>(w, ends, epilogue, pairs, used);
}

template <class Element>
void by_value(const SparseRows& w, void* y, const void* x, int64_t tokens, int64_t stride, const Epilogue& epilogue,
              bool pairs, int threads) {
    switch (w.type) {
        case ValueType::bfloat16:
            return multiply<BFloat16, Element>(w, y, x, tokens, stride, epilogue, pairs, threads);
        case ValueType::float16:
            return multiply<Float16, Element>(w, y, x, tokens, stride, epilogue, pairs, threads);
        case ValueType::int8:
            return multiply<int8_t, Element>(w, y, x, tokens, stride, epilogue, pairs, threads);
        default:
            return multiply<float, Element>(w, y, x, tokens, stride, epilogue, pairs, threads);
    }
}

}  // namespace

void spmm(void* y, const void* x, ElementType type, int64_t tokens, int64_t stride, const SparseRows& w,
          const float* scale, const float* bias, Activation activation, bool pairs, int threads) {
    if (tokens == 0 || w.out == 0) return;
    const Epilogue epilogue{scale, bias, activation};
    pairs = pairs || kMultipliesPairs;
    switch (type) {
        case ElementType::bfloat16:
            return by_value<BFloat16>(w, y, x, tokens, stride, epilogue, pairs, threads);
        case ElementType::float16:
            return by_value<Float16>(w, y, x, tokens, stride, epilogue, pairs, threads);
        default:
            return by_value<float>(w, y, x, tokens, stride, epilogue, pairs, threads);
    }
}

int64_t spmm_tile(int64_t in, double density, bool pairs) {
    return tile_width(in, density, pairs);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

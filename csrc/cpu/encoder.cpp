// SPDX-License-Identifier: Apache-2.0
// encoder: a stack of Transformer layers with norms behind the residual sums, on packed tokens
//   hidden, out [sequences, length, hidden]; tokens with keep = 0 are no queries, no keys, and zero in `out`
//   a = norm(x + W_o attention(W_qkv x)),   x <- norm(a + W_d f(W_u a))
//
// Algorithm: the kept tokens of all sequences are packed one after another into token-blocks (block_products.h) and stay in
//   that layout through all layers. Weights are sparse (sparse_rows.h) or dense (dense_rows.h); bias, activation and
//   residual are applied to sums as they leave the registers. Attention goes through the blocks head by head, a few
//   blocks at a time, so that keys and values are in the second-level cache. With many blocks a thread then takes a block
//   to the end of the layer, where it stays in that cache; with few, the rows of every product are shared out.
// FLOPs per token and layer: 2 · kept weights + 2 · (queries + values) · length: what a layer lacks of heads, of their
//   channels or of neurons is not computed. Memory: weights once per block; activations
//   (4 · hidden) a token, and `inner` for a block of each thread.
//   8 x 128 tokens, 384 features, one core of a Zen 3 (AVX2, peak 101 GFLOP/s in float32): 91 GFLOP/s with all weights, 63
//   with 30 % of them and 53 with 10 %; attention alone 72 with heads of 32, 81 with heads of 64.
// A token's sums run over weights, features and keys in a fixed order: bits depend neither on threads nor on the batch.
#include "../common/attention.h"
#include "../common/buffer.h"
#include "../common/dense_rows.h"
#include "../common/encoder_view.h"
#include "../common/gelu.h"
#include "../common/panel.h"

#include "kernels.h"

#include <cmath>
#include <omp.h>
#include <vector>

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

using S = Simd<float>;

// Panels of a sparse product taken at a time: their sums share the second-level cache with all that a block has there.
// 32 at a time cost a layer 8 % on a Zen 3, 4 at a time 5 %.
constexpr int64_t kPanelsAtOnce = 8;
static_assert(kPanelsAtOnce <= kChunkPanels, "a chunk of panels must hold them");
// Floats that a thread needs for that.
constexpr int64_t kProductWork = kPanelsAtOnce * kPanelRows * kBlockTokens;

// What becomes of the sums of a row: called with consecutive vectors of the block.
struct Store {
    float* out;
    const float* bias;

    template <int count>
    void operator()(int64_t row, int first, const TokenVector (&sum)[count]) const {
        const TokenVector shift = S::broadcast(bias[row]);
        for (int v = 0; v < count; ++v) S::store(out + row * kBlockTokens + (first + v) * kTokenLanes, sum[v] + shift);
    }
};
struct AddTo {
    float* out;
    const float* bias;

    template <int count>
    void operator()(int64_t row, int first, const TokenVector (&sum)[count]) const {
        const TokenVector shift = S::broadcast(bias[row]);
        for (int v = 0; v < count; ++v) {
            float* const place = out + row * kBlockTokens + (first + v) * kTokenLanes;
            S::store(place, S::load(place) + (sum[v] + shift));
        }
    }
};
struct Activate {
    float* out;
    const float* bias;
    FeedForward kind;

    template <int count>
    void operator()(int64_t row, int first, const TokenVector (&sum)[count]) const {
        const TokenVector shift = S::broadcast(bias[row]);
        for (int v = 0; v < count; ++v)
            S::store(out + row * kBlockTokens + (first + v) * kTokenLanes, activated(sum[v] + shift));
    }
    TokenVector activated(TokenVector value) const {
        if (kind == FeedForward::gelu) return gelu(value);
        return kind == FeedForward::relu ? at_least(value, 0.0f) : gelu_tanh(value);
    }
};

// Rows are shared out in tiles or panels.
int64_t units(const LayerLinear& linear) {
    return linear.dense != nullptr ? panels(linear.sparse.out, kDenseRows) : linear.sparse.panels();
}

template <class Value, class Finish>
void sparse_units(const SparseRows& sparse, const float* x, float* sums, int64_t first, int64_t last,
                  const Finish& finish) {
    const auto locate = [&](int64_t tile) { return x + tile * sparse.tile * kBlockTokens; };
    const auto each_row = [&](int64_t panel, const float* own) {
        for (int64_t row = 0; row < sparse.panel_rows(panel); ++row) {
            TokenVector sum[kBlockVectors];
            for (int v = 0; v < kBlockVectors; ++v) sum[v] = S::load(own + row * kBlockTokens + v * kTokenLanes);
            finish(panel * kPanelRows + row, 0, sum);
        }
    };
    for (; first < last; first += kPanelsAtOnce)
        multiply_block<kBlockVectors, Value>(sparse, first, std::min(last, first + kPanelsAtOnce), sums, locate,
                                             each_row);
}

template <class Finish>
void product_units(const LayerLinear& linear, const float* x, int vectors, float* sums, int64_t first, int64_t last,
                   const Finish& finish) {
    const SparseRows& sparse = linear.sparse;
    if (linear.dense != nullptr)
        dense_rows(linear.dense, sparse.out, sparse.in, x, vectors, first, last, finish);
    else if (sparse.type == ValueType::bfloat16)
        sparse_units<BFloat16>(sparse, x, sums, first, last, finish);
    else if (sparse.type == ValueType::float16)
        sparse_units<Float16>(sparse, x, sums, first, last, finish);
    else
        sparse_units<float>(sparse, x, sums, first, last, finish);
}

// x [features][kBlockTokens] of a group, in place: (x − mean) / √(variance + eps) · gain + shift.
void layer_norm(float* x, int64_t features, const float* gain, const float* shift, float eps) {
    TokenVector sum[2][kGroupVectors] = {}, square[2][kGroupVectors] = {};  // even and odd features
    const auto each = [&](auto&& visit) {
        for (int64_t feature = 0; feature < features; ++feature)
            for (int v = 0; v < kGroupVectors; ++v) visit(feature, v, x + feature * kBlockTokens + v * kTokenLanes);
    };
    const TokenVector share = S::broadcast(1.0f / static_cast<float>(features));
    TokenVector mean[kGroupVectors], inverse[kGroupVectors];
    each([&](int64_t feature, int v, const float* place) { sum[feature & 1][v] += S::load(place); });
    for (int v = 0; v < kGroupVectors; ++v) mean[v] = (sum[0][v] + sum[1][v]) * share;
    each([&](int64_t feature, int v, const float* place) {
        const TokenVector centred = S::load(place) - mean[v];
        square[feature & 1][v] += centred * centred;
    });
    for (int v = 0; v < kGroupVectors; ++v) {
        const TokenVector variance = (square[0][v] + square[1][v]) * share + S::broadcast(eps);
        for (int lane = 0; lane < kTokenLanes; ++lane) inverse[v][lane] = 1.0f / std::sqrt(variance[lane]);
    }
    each([&](int64_t feature, int v, float* place) {
        S::store(place,
                 (S::load(place) - mean[v]) * inverse[v] * S::broadcast(gain[feature]) + S::broadcast(shift[feature]));
    });
}

// The kept tokens, packed: where each lies in `hidden`, and the first of every sequence that has any, then the end.
struct Packing {
    std::vector<int64_t> rows, starts, sequence;  // sequence: of the first token of every group

    Packing(const uint8_t* keep, int64_t sequences, int64_t length) {
        for (int64_t s = 0; s < sequences; ++s) {
            const size_t before = rows.size();
            for (int64_t row = s * length; row < (s + 1) * length; ++row)
                if (keep == nullptr || keep[row] != 0) rows.push_back(row);
            if (rows.size() > before) starts.push_back(static_cast<int64_t>(before));
        }
        starts.push_back(tokens());
        for (int64_t token = 0, s = 0; token < tokens(); token += kGroupTokens) {
            while (starts[s + 1] <= token) ++s;
            sequence.push_back(s);
        }
    }
    int64_t tokens() const { return static_cast<int64_t>(rows.size()); }
    int64_t sequences() const { return static_cast<int64_t>(starts.size()) - 1; }
    int64_t blocks() const { return panels(tokens(), kBlockTokens); }
};

class Encoder {
  public:
    Encoder(const EncoderShape& shape, const uint8_t* keep, std::vector<EncoderLayer> layers, int threads)
        : shape_(shape), layers_(std::move(layers)), packing_(keep, shape.sequences, shape.length),
          blocks_(packing_.blocks()), threads_(useful_threads(blocks_, threads)), parts_(parts(blocks_, threads_)),
          x_(blocks_ * block_size(shape.hidden)), projections_(blocks_ * block_size(largest(&EncoderLayer::projected))),
          inner_((parts_ == 1 ? threads_ : blocks_) * block_size(largest(&EncoderLayer::inner))),
          work_(threads_ * work_size()) {}

    void run(float* out, const float* hidden, const uint8_t* keep) {
#pragma omp parallel num_threads(threads_)
        {
#pragma omp for schedule(static)
            for (int64_t block = 0; block < blocks_; ++block) pack(block, hidden);
            for (const EncoderLayer& layer : layers_) parts_ == 1 ? whole_blocks(layer) : parts_of_blocks(layer);
#pragma omp for schedule(static) nowait
            for (int64_t block = 0; block < blocks_; ++block) unpack(block, out);
            if (keep != nullptr) {
#pragma omp for schedule(static)
                for (int64_t row = 0; row < shape_.sequences * shape_.length; ++row)
                    if (keep[row] == 0) std::fill_n(out + row * shape_.hidden, shape_.hidden, 0.0f);
            }
        }
    }

  private:
    // With fewer than kFewBlocks blocks for each thread, blocks are cut into parts.
    static constexpr int64_t kFewBlocks = 4;
    static constexpr int64_t kAttentionBlocks = 4;
    static int64_t parts(int64_t blocks, int threads) {
        const int64_t wanted = kFewBlocks * threads;
        return threads == 1 || blocks >= wanted ? 1 : panels(wanted, blocks);
    }
    // A block has work for a few threads: its output product has no more panels, and others would only wait.
    static constexpr int64_t kBlockThreads = 8;
    static int useful_threads(int64_t blocks, int threads) {
        return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, kBlockThreads * blocks)));
    }
    static int64_t block_size(int64_t features) { return features * kBlockTokens; }
    int64_t largest(int64_t (EncoderLayer::*size)() const) const {
        int64_t most = 0;
        for (const EncoderLayer& layer : layers_) most = std::max(most, (layer.*size)());
        return most;
    }
    int64_t work_size() const {
        int64_t most = 0;
        for (const EncoderLayer& layer : layers_) most = std::max(most, attention_workspace(layer));
        return kProductWork + most;
    }

    float* x(int64_t block) { return x_.data() + block * block_size(shape_.hidden); }
    float* projections(const EncoderLayer& layer, int64_t block) {
        return projections_.data() + block * block_size(layer.projected());
    }
    float* inner(const EncoderLayer& layer, int64_t block) {
        return inner_.data() + (parts_ == 1 ? omp_get_thread_num() : block) * block_size(layer.inner());
    }
    float* work() { return work_.data() + omp_get_thread_num() * work_size(); }
    int64_t groups(int64_t block) const {
        return std::min<int64_t>(kBlockGroups, panels(packing_.tokens() - block * kBlockTokens, kGroupTokens));
    }
    int vectors(int64_t block) const { return static_cast<int>(groups(block)) * kGroupVectors; }

    void whole_blocks(const EncoderLayer& layer) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t block = 0; block < blocks_; ++block) project(layer, block, 0, units(layer.project));
        attention(layer, kAttentionBlocks);
#pragma omp for schedule(dynamic, 1)
        for (int64_t block = 0; block < blocks_; ++block) {
            output(layer, block, 0, units(layer.output));
            for (int64_t group = 0; group < groups(block); ++group) attention_norm(layer, block, group);
            widen(layer, block, 0, units(layer.up));
            narrow(layer, block, 0, units(layer.down));
            for (int64_t group = 0; group < groups(block); ++group) output_norm(layer, block, group);
        }
    }

    void parts_of_blocks(const EncoderLayer& layer) {
        shared(layer.project, [&](int64_t b, int64_t first, int64_t last) { project(layer, b, first, last); });
        attention(layer, 1);
        shared(layer.output, [&](int64_t b, int64_t first, int64_t last) { output(layer, b, first, last); });
        each_group([&](int64_t block, int64_t group) { attention_norm(layer, block, group); });
        shared(layer.up, [&](int64_t b, int64_t first, int64_t last) { widen(layer, b, first, last); });
        shared(layer.down, [&](int64_t b, int64_t first, int64_t last) { narrow(layer, b, first, last); });
        each_group([&](int64_t block, int64_t group) { output_norm(layer, block, group); });
    }

    // A task is one head of a few blocks.
    void attention(const EncoderLayer& layer, int64_t few) {
        const int64_t heads = layer.head_count;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < panels(blocks_, few) * heads; ++task) {
            const int64_t first = task / heads * few;
            for (int64_t block = first; block < std::min(blocks_, first + few); ++block)
                for (int64_t group = 0; group < groups(block); ++group) attend(layer, block, task % heads, group);
        }
    }

    // Calls run(block, first unit, last unit) for parts_ parts of the rows of every block.
    template <class Run>
    void shared(const LayerLinear& linear, const Run& run) {
        const int64_t all = units(linear);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < blocks_ * parts_; ++task) {
            const int64_t part = task % parts_;
            run(task / parts_, all * part / parts_, all * (part + 1) / parts_);
        }
    }
    template <class Run>
    void each_group(const Run& run) {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < blocks_ * kBlockGroups; ++task)
            if (task % kBlockGroups < groups(task / kBlockGroups)) run(task / kBlockGroups, task % kBlockGroups);
    }

    void project(const EncoderLayer& layer, int64_t block, int64_t first, int64_t last) {
        product_units(layer.project, x(block), vectors(block), work(), first, last,
                      Store{projections(layer, block), layer.project_bias});
    }
    void attend(const EncoderLayer& layer, int64_t block, int64_t head, int64_t group) {
        const HeadProjections from{projections_.data(), layer, layer.heads[head]};
        const int64_t token = block * kBlockTokens + group * kGroupTokens;
        Attention(from, shape_.head, work() + kProductWork)
            .group(token, packing_.starts.data(), packing_.sequence[token / kGroupTokens], packing_.sequences());
    }
    void output(const EncoderLayer& layer, int64_t block, int64_t first, int64_t last) {
        const float* const attended = projections(layer, block) + block_size(layer.attended());
        product_units(layer.output, attended, vectors(block), work(), first, last, AddTo{x(block), layer.output_bias});
    }
    void attention_norm(const EncoderLayer& layer, int64_t block, int64_t group) {
        layer_norm(x(block) + group * kGroupTokens, shape_.hidden, layer.attention_gain, layer.attention_shift,
                   shape_.eps);
    }
    void widen(const EncoderLayer& layer, int64_t block, int64_t first, int64_t last) {
        product_units(layer.up, x(block), vectors(block), work(), first, last,
                      Activate{inner(layer, block), layer.up_bias, shape_.activation});
    }
    void narrow(const EncoderLayer& layer, int64_t block, int64_t first, int64_t last) {
        product_units(layer.down, inner(layer, block), vectors(block), work(), first, last,
                      AddTo{x(block), layer.down_bias});
    }
    void output_norm(const EncoderLayer& layer, int64_t block, int64_t group) {
        layer_norm(x(block) + group * kGroupTokens, shape_.hidden, layer.output_gain, layer.output_shift, shape_.eps);
    }

    // Squares of lanes x lanes are transposed in registers; lanes without a token are zero, so that they stay finite.
    void pack(int64_t block, const float* hidden) {
        for (int64_t token = 0; token < kBlockTokens; token += kTokenLanes) {
            const int64_t first = block * kBlockTokens + token;
            const int64_t there = std::max<int64_t>(0, std::min<int64_t>(kTokenLanes, packing_.tokens() - first));
            int64_t feature = 0;
            for (; feature + kTokenLanes <= shape_.hidden; feature += kTokenLanes) {
                TokenVector square[kTokenLanes];
                for (int64_t t = 0; t < kTokenLanes; ++t)
                    square[t] = t < there ? S::load(hidden + packing_.rows[first + t] * shape_.hidden + feature)
                                          : TokenVector{};
                transpose<float>(square);
                for (int64_t f = 0; f < kTokenLanes; ++f)
                    S::store(x(block) + (feature + f) * kBlockTokens + token, square[f]);
            }
            for (; feature < shape_.hidden; ++feature)
                for (int64_t t = 0; t < kTokenLanes; ++t)
                    x(block)[feature * kBlockTokens + token + t] =
                        t < there ? hidden[packing_.rows[first + t] * shape_.hidden + feature] : 0.0f;
        }
    }
    void unpack(int64_t block, float* out) {
        for (int64_t token = 0; token < kBlockTokens; token += kTokenLanes) {
            const int64_t first = block * kBlockTokens + token;
            const int64_t there = std::max<int64_t>(0, std::min<int64_t>(kTokenLanes, packing_.tokens() - first));
            int64_t feature = 0;
            for (; feature + kTokenLanes <= shape_.hidden; feature += kTokenLanes) {
                TokenVector square[kTokenLanes];
                for (int64_t f = 0; f < kTokenLanes; ++f)
                    square[f] = S::load(x(block) + (feature + f) * kBlockTokens + token);
                transpose<float>(square);
                for (int64_t t = 0; t < there; ++t)
                    S::store(out + packing_.rows[first + t] * shape_.hidden + feature, square[t]);
            }
            for (; feature < shape_.hidden; ++feature)
                for (int64_t t = 0; t < there; ++t)
                    out[packing_.rows[first + t] * shape_.hidden + feature] =
                        x(block)[feature * kBlockTokens + token + t];
        }
    }

    EncoderShape shape_;
    std::vector<EncoderLayer> layers_;
    Packing packing_;
    int64_t blocks_;
    int threads_;
    int64_t parts_;
    Buffer<float> x_, projections_, inner_, work_;
};

}  // namespace

void encoder(float* out, const float* hidden, const uint8_t* keep, const EncoderShape& shape,
             const EncoderLayer* layers, int64_t count, int threads) {
    Encoder(shape, keep, {layers, layers + count}, threads).run(out, hidden, keep);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

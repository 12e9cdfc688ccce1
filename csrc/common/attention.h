// SPDX-License-Identifier: Apache-2.0
// Softmax attention on token-blocks: one head, one group of queries, the keys of every sequence the group belongs to.
//
// Sequences lie one after another without padding, so that a group may hold the end of one and the start of the next:
// each sequence is gone through with the scores of foreign lanes at kForeign, whose powers are exactly zero. Keys are
// taken kKeysAtOnce at a time, counted from the start of their sequence, with a running maximum (Milakov and Gimelshein
// 2018, arXiv:1805.02867); scores and sums over keys are register tiles (block_products.h). Per query and key 4 · head
// FLOPs, one power of two; keys and values come from the second-level cache, scores stay in the first.
#pragma once

#include "encoder_view.h"
#include "transcendental.h"

#include <algorithm>
#include <cmath>

namespace pyprune {
namespace PYPRUNE_ISA {

constexpr int kKeysAtOnce = 128;
constexpr float kForeign = -1e30f, kLowest = -1e29f;

// What a layer projects the tokens of all blocks to: queries, keys and values of all heads, and room for results
// (EncoderLayer). The features of one head, by token.
struct HeadProjections {
    float* data;
    const EncoderLayer& layer;
    const EncoderHead& head;

    float* queries(int64_t token) const { return at(head.query_start, token); }
    float* keys(int64_t token) const { return at(layer.queries + head.query_start, token); }
    float* values(int64_t token) const { return at(2 * layer.queries + head.value_start, token); }
    float* results(int64_t token) const { return at(layer.attended() + head.value_start, token); }
    float* at(int64_t row, int64_t token) const {
        const int64_t feature = token / kBlockTokens * layer.projected() + row;
        return data + feature * kBlockTokens + token % kBlockTokens;
    }
};

// What a thread needs: queries and results [channels][kGroupTokens], scores [kKeysAtOnce][kGroupTokens].
inline int64_t attention_workspace(const EncoderLayer& layer) {
    int64_t channels = 0;
    for (int64_t head = 0; head < layer.head_count; ++head)
        channels = std::max(channels, layer.heads[head].query + layer.heads[head].value);
    return (channels + kKeysAtOnce) * kGroupTokens;
}

class Attention {
    using S = Simd<float>;

  public:
    // `width`: of a head as scores are scaled.
    Attention(const HeadProjections& from, int64_t width, float* workspace)
        : from_(from), scale_(1.44269504f / std::sqrt(static_cast<float>(width))),  // powers are of two
          query_(workspace), result_(query_ + from.head.query * kGroupTokens),
          score_(result_ + from.head.value * kGroupTokens) {}

    // Attention of the head for the group of tokens that starts at `token`.
    // starts: first token of every sequence, and the end; `sequence` is that of `token`.
    void group(int64_t token, const int64_t* starts, int64_t sequence, int64_t sequences) {
        const float* const queries = from_.queries(token);
        for (int64_t d = 0; d < from_.head.query; ++d)
            for (int v = 0; v < kGroupVectors; ++v)
                S::store(query_ + d * kGroupTokens + v * kTokenLanes,
                         S::load(queries + d * kBlockTokens + v * kTokenLanes) * S::broadcast(scale_));
        for (int v = 0; v < kGroupVectors; ++v) {
            largest_[v] = S::broadcast(kLowest);
            total_[v] = TokenVector{};
        }
        bool fresh = true;
        for (; sequence < sequences && starts[sequence] < token + kGroupTokens; ++sequence) {
            const int64_t start = starts[sequence], end = starts[sequence + 1];
            for (int v = 0; v < kGroupVectors; ++v)
                for (int lane = 0; lane < kTokenLanes; ++lane) {
                    const int64_t place = token + v * kTokenLanes + lane;
                    foreign_[v][lane] = place >= start && place < end ? 0.0f : kForeign;
                }
            for (int64_t key = start; key < end; key += kKeysAtOnce, fresh = false)
                keys(key, std::min<int64_t>(kKeysAtOnce, end - key), fresh);
        }
        float* const results = from_.results(token);
        for (int v = 0; v < kGroupVectors; ++v) {
            const TokenVector one = S::broadcast(1.0f), inverse = one / (total_[v] == TokenVector{} ? one : total_[v]);
            for (int64_t d = 0; d < from_.head.value; ++d)
                S::store(results + d * kBlockTokens + v * kTokenLanes,
                         fresh ? TokenVector{} : S::load(result_ + d * kGroupTokens + v * kTokenLanes) * inverse);
        }
    }

  private:
    // Takes `count` keys from `first` on into the sums.
    void keys(int64_t first, int64_t count, bool fresh) {
        TokenVector largest[kGroupVectors];
        for (int v = 0; v < kGroupVectors; ++v) largest[v] = largest_[v];
        for (int64_t key = 0; key < count;) {
            const int64_t run = run_length(first + key, count - key);
            const float* const left = from_.keys(first + key);
            in_tiles<kGroupRows>(run, [&](int64_t row, auto rows) {
                TokenVector sum[rows][kGroupVectors];
                for (auto& line : sum)
                    for (int v = 0; v < kGroupVectors; ++v) line[v] = foreign_[v];
                accumulate<1, kBlockTokens>(sum, left + row, query_, kGroupTokens, from_.head.query);
                for (int v = 0; v < kGroupVectors; ++v) {
                    TokenVector top = sum[0][v];
                    for (int r = 1; r < rows; ++r) top = larger(top, sum[r][v]);
                    largest[v] = larger(largest[v], top);
                    for (int r = 0; r < rows; ++r)
                        S::store(score_ + (key + row + r) * kGroupTokens + v * kTokenLanes, sum[r][v]);
                }
            });
            key += run;
        }
        TokenVector shrink[kGroupVectors];
        for (int v = 0; v < kGroupVectors; ++v) {
            const TokenVector top = largest[v];
            shrink[v] = power_of_two(largest_[v] - top);
            largest_[v] = top;
            TokenVector total = total_[v] * shrink[v];
            float* place = score_ + v * kTokenLanes;
            for (int64_t key = 0; key < count; ++key, place += kGroupTokens) {
                const TokenVector power = power_of_two(S::load(place) - top);
                total += power;
                S::store(place, power);
            }
            total_[v] = total;
        }
        in_tiles<kGroupRows>(from_.head.value, [&](int64_t row, auto rows) {
            TokenVector sum[rows][kGroupVectors];
            float* const result = result_ + row * kGroupTokens;
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < kGroupVectors; ++v)
                    sum[r][v] =
                        fresh ? TokenVector{} : S::load(result + r * kGroupTokens + v * kTokenLanes) * shrink[v];
            for (int64_t key = 0; key < count;) {
                const int64_t run = run_length(first + key, count - key);
                accumulate<kBlockTokens, 1>(sum, from_.values(first + key) + row * kBlockTokens,
                                            score_ + key * kGroupTokens, kGroupTokens, run);
                key += run;
            }
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < kGroupVectors; ++v)
                    S::store(result + r * kGroupTokens + v * kTokenLanes, sum[r][v]);
        });
    }

    // Tokens from `token` on that lie in its block, at most `most`.
    static int64_t run_length(int64_t token, int64_t most) {
        return std::min<int64_t>(most, kBlockTokens - token % kBlockTokens);
    }

    HeadProjections from_;
    float scale_;
    float *query_, *result_, *score_;
    TokenVector foreign_[kGroupVectors], largest_[kGroupVectors], total_[kGroupVectors];
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

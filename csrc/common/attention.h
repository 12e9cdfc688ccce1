// SPDX-License-Identifier: Apache-2.0
// Softmax attention on token-blocks: one head, one group of queries, the keys of every sequence the group belongs to.
//
// Sequences lie one after another without padding, so that a group may hold the end of one and the start of the next:
// each sequence is gone through with the scores of foreign lanes at kForeign, whose powers are exactly zero. Keys are
// taken kKeysAtOnce at a time, counted from the start of their sequence, with a running maximum (Milakov and Gimelshein
// 2018, arXiv:1805.02867); scores and sums over keys are register tiles (block_products.h). Per query and key 4 · head
// FLOPs, one power of two; keys and values come from the second-level cache, scores stay in the first.
#pragma once

#include "transcendental.h"

#include <algorithm>
#include <cmath>

namespace pyprune {
namespace PYPRUNE_ISA {

constexpr int kKeysAtOnce = 128;
constexpr float kForeign = -1e30f, kLowest = -1e29f;

// The projections of all blocks: queries, keys and values of a block, `width` features each.
struct Projections {
    float* data;
    int64_t width, head;

    // Features of a head, by token: part 0 queries, 1 keys, 2 values.
    float* at(int part, int64_t index, int64_t token) const {
        const int64_t feature = (token / kBlockTokens * 3 + part) * width + index * head;
        return data + feature * kBlockTokens + token % kBlockTokens;
    }
};

// What a thread needs: queries and results [head][kGroupTokens], scores [kKeysAtOnce][kGroupTokens].
constexpr int64_t attention_workspace(int64_t head) {
    return (2 * head + kKeysAtOnce) * kGroupTokens;
}

class Attention {
    using S = Simd<float>;

  public:
    Attention(const Projections& from, float* workspace)
        : from_(from), query_(workspace), result_(query_ + from.head * kGroupTokens),
          score_(result_ + from.head * kGroupTokens) {}

    // Attention of head `index` for the group of tokens that starts at `token`, in place of its queries.
    // starts: first token of every sequence, and the end; `sequence` is that of `token`.
    void group(int64_t index, int64_t token, const int64_t* starts, int64_t sequence, int64_t sequences) {
        const float scale = 1.44269504f / std::sqrt(static_cast<float>(from_.head));  // powers are of two
        float* const queries = from_.at(0, index, token);
        for (int64_t d = 0; d < from_.head; ++d)
            for (int v = 0; v < kGroupVectors; ++v)
                S::store(query_ + d * kGroupTokens + v * kTokenLanes,
                         S::load(queries + d * kBlockTokens + v * kTokenLanes) * S::broadcast(scale));
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
                keys(index, key, std::min<int64_t>(kKeysAtOnce, end - key), fresh);
        }
        for (int v = 0; v < kGroupVectors; ++v) {
            const TokenVector one = S::broadcast(1.0f), inverse = one / (total_[v] == TokenVector{} ? one : total_[v]);
            for (int64_t d = 0; d < from_.head; ++d)
                S::store(queries + d * kBlockTokens + v * kTokenLanes,
                         fresh ? TokenVector{} : S::load(result_ + d * kGroupTokens + v * kTokenLanes) * inverse);
        }
    }

  private:
    // Takes `count` keys from `first` on into the sums.
    void keys(int64_t index, int64_t first, int64_t count, bool fresh) {
        TokenVector largest[kGroupVectors];
        for (int v = 0; v < kGroupVectors; ++v) largest[v] = largest_[v];
        for (int64_t key = 0; key < count;) {
            const int64_t run = run_length(first + key, count - key);
            const float* const left = from_.at(1, index, first + key);
            in_tiles<kGroupRows>(run, [&](int64_t row, auto rows) {
                TokenVector sum[rows][kGroupVectors];
                for (auto& line : sum)
                    for (int v = 0; v < kGroupVectors; ++v) line[v] = foreign_[v];
                accumulate<1, kBlockTokens>(sum, left + row, query_, kGroupTokens, from_.head);
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
        in_tiles<kGroupRows>(from_.head, [&](int64_t row, auto rows) {
            TokenVector sum[rows][kGroupVectors];
            float* const result = result_ + row * kGroupTokens;
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < kGroupVectors; ++v)
                    sum[r][v] =
                        fresh ? TokenVector{} : S::load(result + r * kGroupTokens + v * kTokenLanes) * shrink[v];
            for (int64_t key = 0; key < count;) {
                const int64_t run = run_length(first + key, count - key);
                accumulate<kBlockTokens, 1>(sum, from_.at(2, index, first + key) + row * kBlockTokens,
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

    Projections from_;
    float *query_, *result_, *score_;
    TokenVector foreign_[kGroupVectors], largest_[kGroupVectors], total_[kGroupVectors];
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

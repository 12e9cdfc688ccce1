// SPDX-License-Identifier: Apache-2.0
// bank_scores: what a contrastive loss needs of s_ic = scale · q_iᵀ c, for queries q_i and candidates c (bank_view.h):
//   log_sum[i] = log Σ_c exp s_ic;  positives[x][i] = Σ s_ic over P = {c: key of kind x equal};  counts[x][i] = |P|;
//   certain[x][i]: one of P has all of the probability, Σ_c exp(s_ic − log_sum) = 1 with it alone, in float32.
// bank_scores_gradient: gradient[i] = scale · Σ_c (a_i exp(s_ic − log_sum[i]) + Σ_x b[x][i] [c ∈ P]) c for given a and b,
//   the gradients by log_sum and positives. Where queries are candidates, each leaves itself out.
//
// Algorithm: candidates pass by in tiles of kTile, widened to float32; their scores with a group of queries are register
//   tiles (block_products.h), queries along the lanes, so that nothing is ever reduced across lanes. A running maximum
//   per lane (Milakov and Gimelshein 2018, arXiv:1805.02867); the gradient makes scores anew in place of storing them
//   (Dao et al. 2022, arXiv:2205.14135). Keys are compared in two halves, as lanes have 32 bits.
// FLOPs: 2 · batch · candidates · features, the gradient twice that. Memory: the bank once per kQueries queries and
//   direction; nothing of batch x candidates.
// A chunk of candidates is a task whose sums start at zero, and chunks are a function of the number of candidates alone;
// their sums are added in order. Bits do not depend on the number of threads.
#include "../common/bank_view.h"
#include "../common/buffer.h"
#include "../common/carver.h"
#include "../common/convert.h"
#include "../common/panel.h"
#include "../common/transcendental.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

using S = Simd<float>;
using Indices = Lanes<float>::Indices;

constexpr int64_t kTile = 48;       // candidates at a time: their features stay in the second-level cache
constexpr int64_t kQueries = 64;    // of a task: what reads the bank once
constexpr int64_t kChunk = 512;     // candidates of a task at least,
constexpr int64_t kMostTasks = 16;  // and tasks of a block of queries at most, as each has a gradient of its own
constexpr float kLeftOut = -std::numeric_limits<float>::infinity(), kLowest = -3e38f;
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

inline Indices every(int32_t value) {
    return Indices{} + value;
}

// The queries, features by lane and scaled so that powers are of two, and their keys by halves.
class Queries {
  public:
    Queries(const BankView& view, int threads)
        : view_(view), groups_(panels(view.batch, kGroupTokens)),
          packed_(static_cast<size_t>(groups_ * kGroupTokens * view.features)),
          low_(static_cast<size_t>(groups_ * kGroupTokens * view.kinds)),
          high_(static_cast<size_t>(groups_ * kGroupTokens * view.kinds)) {
        const float scale = static_cast<float>(view.scale * kLog2E);
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t group = 0; group < groups_; ++group) {
            float* const packed = packed_.data() + group * view.features * kGroupTokens;
            for (int64_t lane = 0; lane < kGroupTokens; ++lane) {
                const int64_t query = group * kGroupTokens + lane;
                const float* const source = view.queries + query * view.features;
                for (int64_t d = 0; d < view.features; ++d)
                    packed[d * kGroupTokens + lane] = query < view.batch ? scale * source[d] : 0.0f;
                for (int64_t kind = 0; kind < view.kinds; ++kind) {
                    const int64_t key = query < view.batch ? view.keys[kind * view.batch + query] : 0;
                    low_[kind * padded() + query] = static_cast<int32_t>(key);
                    high_[kind * padded() + query] = static_cast<int32_t>(key >> 32);
                }
            }
        }
    }

    int64_t padded() const { return groups_ * kGroupTokens; }
    const float* group(int64_t first) { return packed_.data() + first * view_.features; }

    // Lanes of the vector of queries from `first` on whose key is this one.
    Indices equal(int64_t kind, int64_t first, int64_t key) {
        Indices low, high;
        std::memcpy(&low, low_.data() + kind * padded() + first, sizeof(low));
        std::memcpy(&high, high_.data() + kind * padded() + first, sizeof(high));
        return (low == every(static_cast<int32_t>(key))) & (high == every(static_cast<int32_t>(key >> 32)));
    }

  private:
    const BankView& view_;
    int64_t groups_;
    Buffer<float> packed_;
    Buffer<int32_t> low_, high_;
};

// Tasks: blocks of queries times chunks of candidates.
struct Tasks {
    int64_t candidates, chunk, chunks, blocks;

    explicit Tasks(const BankView& view) : candidates(view.candidates()), blocks(panels(view.batch, kQueries)) {
        chunk = panels(std::max(kChunk, panels(candidates, kMostTasks)), kTile) * kTile;
        chunks = panels(candidates, chunk);
    }
    int64_t count() const { return blocks * chunks; }
};

// A tile of candidates and its scores with one group of queries, in the memory of one thread.
class Candidates {
  public:
    static int64_t pitch(const BankView& view) { return panels(view.features, kPanel<float>) * kPanel<float>; }
    static int64_t workspace(const BankView& view) { return kTile * (pitch(view) + kGroupTokens); }

    Candidates(const BankView& view, Queries& queries, float* memory)
        : view_(view), queries_(queries), pitch_(pitch(view)), features_(memory), score_(memory + kTile * pitch_),
          own_(view.in_batch ? view.batch : 0) {}

    void load(int64_t first, int64_t count) {
        first_ = first;
        count_ = count;
        for (int64_t c = 0; c < count; ++c) {
            float* const target = features_ + c * pitch_;
            if (first + c < own_)
                widen_row(target, view_.queries + (first + c) * view_.features);
            else if (view_.type == ElementType::float32)
                widen_row(target, row<float>(first + c));
            else if (view_.type == ElementType::bfloat16)
                widen_row(target, row<BFloat16>(first + c));
            else
                widen_row(target, row<Float16>(first + c));
        }
    }

    // Scores in base 2 [count][kGroupTokens] with the group that starts at query `first`, kLeftOut where it is itself.
    float* scores(int64_t first) {
        if (view_.batch - first <= kTokenLanes)
            multiply<1>(queries_.group(first));
        else
            multiply<kGroupVectors>(queries_.group(first));
        for (int64_t c = std::max<int64_t>(0, first - first_); c < std::min(count_, own_ - first_); ++c)
            if (first_ + c < first + kGroupTokens) score_[c * kGroupTokens + first_ + c - first] = kLeftOut;
        return score_;
    }

    int64_t count() const { return count_; }
    const float* features() const { return features_; }
    int64_t key(int64_t kind, int64_t c) const {
        const int64_t candidate = first_ + c;
        return candidate < own_ ? view_.keys[kind * view_.batch + candidate]
                                : view_.bank_keys[kind * view_.entries + candidate - own_];
    }

  private:
    template <class Element>
    const Element* row(int64_t candidate) const {
        const int64_t entry = candidate - own_;
        return static_cast<const Element*>(view_.bank) +
               (view_.rows == nullptr ? entry : view_.rows[entry]) * view_.stride;
    }

    template <class Element>
    void widen_row(float* target, const Element* source) {
        for (int64_t d = 0; d < view_.features; ++d) target[d] = widen(source[d]);
        for (int64_t d = view_.features; d < pitch_; ++d) target[d] = 0.0f;
    }

    template <int vectors>
    void multiply(const float* queries) {
        in_tiles<kGroupRows>(count_, [&](int64_t row, auto rows) {
            TokenVector sum[rows][vectors];
            for (auto& line : sum)
                for (TokenVector& value : line) value = TokenVector{};
            accumulate(sum, features_ + row * pitch_, pitch_, 1, queries, kGroupTokens, view_.features);
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < vectors; ++v)
                    S::store(score_ + (row + r) * kGroupTokens + v * kTokenLanes, sum[r][v]);
        });
    }

    const BankView& view_;
    Queries& queries_;
    int64_t pitch_;
    float *features_, *score_;
    int64_t own_, first_ = 0, count_ = 0;
};

// Calls run(tile, block) for every tile of a task.
template <class Run>
void for_tiles(Candidates& tile, const Tasks& tasks, int64_t chunk, Run&& run) {
    const int64_t end = std::min(tasks.candidates, (chunk + 1) * tasks.chunk);
    for (int64_t first = chunk * tasks.chunk; first < end; first += kTile) {
        tile.load(first, std::min(kTile, end - first));
        run();
    }
}

// What a chunk found, by query: rows of `padded` numbers.
struct Found {
    float *largest, *total, *positives, *best;  // positives and best (of their scores) by kind
    int32_t* counts;                            // by kind

    static Found carve(Carver& memory, int64_t kinds, int64_t padded) {
        Found found;
        found.largest = memory.take<float>(padded);
        found.total = memory.take<float>(padded);
        found.positives = memory.take<float>(kinds * padded);
        found.best = memory.take<float>(kinds * padded);
        found.counts = memory.take<int32_t>(kinds * padded);
        return found;
    }
};

// Takes the tile's scores with the vector of queries from `query` on into what was found.
void take(const Found& found, Candidates& tile, Queries& queries, const float* score, int64_t query, int64_t kinds) {
    const TokenVector before = S::load(found.largest + query);
    TokenVector top = before, total{};
    for (int64_t c = 0; c < tile.count(); ++c) top = larger(S::load(score + c * kGroupTokens), top);
    for (int64_t c = 0; c < tile.count(); ++c) total += power_of_two(S::load(score + c * kGroupTokens) - top);
    S::store(found.largest + query, top);
    S::store(found.total + query, S::load(found.total + query) * power_of_two(before - top) + total);
    for (int64_t kind = 0; kind < kinds; ++kind) {
        const int64_t place = kind * queries.padded() + query;
        TokenVector sum{}, best = S::load(found.best + place);
        Indices count;
        std::memcpy(&count, found.counts + place, sizeof(count));
        for (int64_t c = 0; c < tile.count(); ++c) {
            const TokenVector value = S::load(score + c * kGroupTokens);
            const Indices in = queries.equal(kind, query, tile.key(kind, c)) & (value != S::broadcast(kLeftOut));
            sum += in ? value : TokenVector{};
            best = larger(in ? value : S::broadcast(kLowest), best);
            count -= in;
        }
        S::store(found.positives + place, S::load(found.positives + place) + sum);
        S::store(found.best + place, best);
        std::memcpy(found.counts + place, &count, sizeof(count));
    }
}

}  // namespace

void bank_scores(float* log_sum, float* positives, int64_t* counts, uint8_t* certain, const BankView& view,
                 int threads) {
    const Tasks tasks(view);
    Queries queries(view, threads);
    const int64_t padded = queries.padded(), size = Candidates::workspace(view);
    Carver measure;
    Found::carve(measure, view.kinds, padded);
    Buffer<char> memory(measure.used() * static_cast<size_t>(tasks.chunks));
    Buffer<float> workspace(static_cast<size_t>(threads * size));
    const auto of_chunk = [&](int64_t chunk) {
        Carver carver(memory.data() + static_cast<size_t>(chunk) * measure.used());
        return Found::carve(carver, view.kinds, padded);
    };
#pragma omp parallel num_threads(threads)
    {
        Candidates tile(view, queries, workspace.data() + omp_get_thread_num() * size);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks.count(); ++task) {
            const int64_t chunk = task % tasks.chunks, begin = task / tasks.chunks * kQueries;
            const int64_t end = std::min(view.batch, begin + kQueries);
            const Found found = of_chunk(chunk);
            for (int64_t query = begin; query < std::min(padded, begin + kQueries); ++query) {
                found.largest[query] = kLowest;
                found.total[query] = 0.0f;
                for (int64_t place = query; place < view.kinds * padded; place += padded) {
                    found.positives[place] = 0.0f;
                    found.best[place] = kLowest;
                    found.counts[place] = 0;
                }
            }
            for_tiles(tile, tasks, chunk, [&] {
                for (int64_t group = begin; group < end; group += kGroupTokens) {
                    const float* const score = tile.scores(group);
                    for (int64_t lane = 0; lane < std::min<int64_t>(kGroupTokens, end - group); lane += kTokenLanes)
                        take(found, tile, queries, score + lane, group + lane, view.kinds);
                }
            });
        }
#pragma omp for schedule(static)
        for (int64_t query = 0; query < view.batch; ++query) {
            double top = kLowest, total = 0.0;
            for (int64_t chunk = 0; chunk < tasks.chunks; ++chunk)
                top = std::max<double>(top, of_chunk(chunk).largest[query]);
            for (int64_t chunk = 0; chunk < tasks.chunks; ++chunk) {
                const Found found = of_chunk(chunk);
                total += found.total[query] * std::exp2(found.largest[query] - top);
            }
            log_sum[query] = static_cast<float>((top + std::log2(total)) * kLn2);
            for (int64_t kind = 0; kind < view.kinds; ++kind) {
                const int64_t place = kind * padded + query, target = kind * view.batch + query;
                double sum = 0.0, best = kLowest;
                counts[target] = 0;
                for (int64_t chunk = 0; chunk < tasks.chunks; ++chunk) {
                    const Found found = of_chunk(chunk);
                    sum += found.positives[place];
                    best = std::max<double>(best, found.best[place]);
                    counts[target] += found.counts[place];
                }
                positives[target] = static_cast<float>(sum * kLn2);
                certain[target] = counts[target] > 0 && best == top && static_cast<float>(total) == 1.0f;
            }
        }
    }
}

namespace {

// Numbers by query, in lanes: log_sum in base 2, and scale times the gradients by it and by the positives of each kind.
class Slopes {
  public:
    Slopes(const BankView& view, int64_t padded, const float* log_sum, const float* to_log_sum,
           const float* to_positives)
        : padded_(padded), numbers_(static_cast<size_t>((2 + view.kinds) * padded)) {
        const float scale = static_cast<float>(view.scale);
        for (int64_t query = 0; query < padded; ++query) {
            const bool there = query < view.batch;
            numbers_[query] = there ? static_cast<float>(log_sum[query] * kLog2E) : 0.0f;
            numbers_[padded + query] = there ? scale * to_log_sum[query] : 0.0f;
            for (int64_t kind = 0; kind < view.kinds; ++kind)
                numbers_[(2 + kind) * padded + query] = there ? scale * to_positives[kind * view.batch + query] : 0.0f;
        }
    }

    TokenVector log_sum(int64_t query) { return S::load(numbers_.data() + query); }
    TokenVector chance(int64_t query) { return S::load(numbers_.data() + padded_ + query); }
    TokenVector positive(int64_t kind, int64_t query) {
        return S::load(numbers_.data() + (2 + kind) * padded_ + query);
    }

  private:
    int64_t padded_;
    Buffer<float> numbers_;
};

// Scores of a tile with a vector of queries become what its candidates count in their gradients.
void weigh(float* score, Slopes& slopes, Candidates& tile, Queries& queries, int64_t query, int64_t kinds) {
    const TokenVector log_sum = slopes.log_sum(query), chance = slopes.chance(query);
    for (int64_t c = 0; c < tile.count(); ++c) {
        const TokenVector value = S::load(score + c * kGroupTokens);
        TokenVector weight = chance * power_of_two(value - log_sum);
        for (int64_t kind = 0; kind < kinds; ++kind)
            weight += queries.equal(kind, query, tile.key(kind, c)) ? slopes.positive(kind, query) : TokenVector{};
        S::store(score + c * kGroupTokens, value == S::broadcast(kLeftOut) ? TokenVector{} : weight);
    }
}

// gradient[query][:] += Σ_c weight[c][query] c for the first queries of a group.
void add_products(float* gradient, int64_t pitch, const float* weight, const Candidates& tile, int64_t queries) {
    for (int64_t d = 0; d < pitch; d += kPanel<float>)
        in_tiles<kTileRows>(queries, [&](int64_t row, auto rows) {
            TokenVector sum[rows][kTileVectors];
            for (auto& line : sum)
                for (TokenVector& value : line) value = TokenVector{};
            accumulate<1, kGroupTokens>(sum, weight + row, tile.features() + d, static_cast<int>(pitch), tile.count());
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < kTileVectors; ++v) {
                    float* const place = gradient + (row + r) * pitch + d + v * kTokenLanes;
                    S::store(place, S::load(place) + sum[r][v]);
                }
        });
}

}  // namespace

void bank_scores_gradient(float* gradient, const float* log_sum, const float* to_log_sum, const float* to_positives,
                          const BankView& view, int threads) {
    const Tasks tasks(view);
    Queries queries(view, threads);
    Slopes slopes(view, queries.padded(), log_sum, to_log_sum, to_positives);
    const int64_t pitch = Candidates::pitch(view), size = Candidates::workspace(view);
    Buffer<float> parts(static_cast<size_t>(tasks.chunks * view.batch * pitch));
    Buffer<float> workspace(static_cast<size_t>(threads * size));
#pragma omp parallel num_threads(threads)
    {
        Candidates tile(view, queries, workspace.data() + omp_get_thread_num() * size);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks.count(); ++task) {
            const int64_t chunk = task % tasks.chunks, begin = task / tasks.chunks * kQueries;
            const int64_t end = std::min(view.batch, begin + kQueries);
            float* const part = parts.data() + chunk * view.batch * pitch;
            std::fill(part + begin * pitch, part + end * pitch, 0.0f);
            for_tiles(tile, tasks, chunk, [&] {
                for (int64_t group = begin; group < end; group += kGroupTokens) {
                    float* const score = tile.scores(group);
                    const int64_t count = std::min<int64_t>(kGroupTokens, end - group);
                    for (int64_t lane = 0; lane < count; lane += kTokenLanes)
                        weigh(score + lane, slopes, tile, queries, group + lane, view.kinds);
                    add_products(part + group * pitch, pitch, score, tile, count);
                }
            });
        }
#pragma omp for schedule(static)
        for (int64_t query = 0; query < view.batch; ++query) {
            float* const target = gradient + query * view.features;
            std::fill_n(target, view.features, 0.0f);
            for (int64_t chunk = 0; chunk < tasks.chunks; ++chunk) {
                const float* const part = parts.data() + (chunk * view.batch + query) * pitch;
                for (int64_t d = 0; d < view.features; ++d) target[d] += part[d];
            }
        }
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// draw_counts: counts[i] = in how many of T draws entry i is among the `keep` first      weight, counts [n]
//
// Entry i arrives in draw d at the time E / |w_i|^q, E = −log(1 − v) exponential. v has 64 bits of Philox: the upper 16
//   of counter (i, d / 8, 0), which serves eight draws, the others of (i, d, 1). Zeros arrive after all others. The `keep`
//   first by (log time, i) count. Returns how many draws had to be made again from all entries.
// Algorithm: N, the number of arrivals up to a time, varies little from draw to draw, so that two times are known (`spread`
//   standard deviations of N before and after the time where its mean is `keep`) between which the last arrival will be.
//   16 bits tell of almost every entry that it arrives before both, or after both; it is counted, or forgotten. The others,
//   some 2 · spread standard deviations of N, are listed, and the first of them chosen by their logarithms. A draw whose
//   last arrival is not between the two times is made again from all entries: `spread` decides about time alone.
// Operations: 20 products of 32 bits for 8 draws of an entry, 2 comparisons for each. Memory: 16 bytes an entry, and the
//   lists of kBatch draws.
// Determinism: the same bits on every instruction set and for any number of threads.
#include "../common/arrivals.h"
#include "../common/buffer.h"
#include "../common/element_type.h"
#include "../common/lanes.h"
#include "../common/logarithm.h"
#include "../common/philox.h"
#include "../common/transcendental.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kGroup = 8;                 // draws of one counter
constexpr int kBatch = 4 * kGroup;        // draws whose lists are held at a time
constexpr int64_t kBlock = 4096;          // entries that a thread takes at a time; divides 2^32
constexpr int kEntries = 2 * kWordLanes;  // of two vectors of counters
constexpr double kApart = 64.0;           // log times of equal rates lie less than 50 apart
constexpr double kMargin = 1e-9;          // far more than rounding moves a log time by

typedef int16_t Halves __attribute__((vector_size(kVectorBytes)));
typedef int32_t Counts __attribute__((vector_size(kVectorBytes)));

#if defined(__AVX512BW__) || !defined(__SSE2__)
constexpr int kMaskBits = 1;  // a lane
#else
constexpr int kMaskBits = 2;
#endif

// The lowest mask bit of every lane that is set.
inline __attribute__((always_inline)) uint64_t set_lanes(Halves value) {
#if defined(__AVX512BW__)
    return _mm512_movepi16_mask((__m512i)value);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_epi8((__m256i)value)) & 0x55555555u;
#elif defined(__SSE2__)
    return static_cast<uint32_t>(_mm_movemask_epi8((__m128i)value)) & 0x5555u;
#else
    uint64_t mask = 0;
    for (int lane = 0; lane < kVectorBytes / 2; ++lane) mask |= static_cast<uint64_t>(value[lane] & 1) << lane;
    return mask;
#endif
}

inline Words consecutive(uint64_t step) {
    Words place{};
    for (int lane = 0; lane < kWordLanes; ++lane) place[lane] = static_cast<uint64_t>(lane) * step;
    return place;
}

// For what the bits of a counter are used.
constexpr uint64_t kVotes = 0, kFine = 1;

inline Counter counter_of(Words entry, int64_t draw, uint64_t use) {
    return {{entry & kLowWord, entry >> 32, every(static_cast<uint64_t>(draw)), every(use)}};
}

// A listed entry: its number, and the 16 bits that it has been judged by.
inline uint64_t listed(int64_t entry, uint16_t half) {
    return static_cast<uint64_t>(entry) << 16 | half;
}

template <class Real>
class Race {
  public:
    Race(const Real* weight, int64_t n, double exponent, int64_t keep, uint64_t seed, double spread, int threads)
        : n_(n), keep_(keep), philox_(seed), threads_(threads), rates_(static_cast<size_t>(n + kEntries)),
          before_(static_cast<size_t>(n + kEntries)), after_(static_cast<size_t>(n + kEntries)),
          counts_(static_cast<size_t>(n + kEntries)) {
        std::fill_n(rates_.data() + n, kEntries, 0.0);
        std::fill_n(counts_.data(), n + kEntries, 0);
        set_rates(weight, exponent);
        set_times(spread);
        set_halves();
    }

    // Counts of all draws; returns how many were made again.
    int64_t run(int32_t* counts, int64_t draws) {
        const int64_t span = room_ + kWordLanes;  // keys are computed by whole vectors
        Buffer<uint64_t> found(static_cast<size_t>(threads_ * kGroup * kBlock)),
            lists(static_cast<size_t>(std::min<int64_t>(draws, kBatch) * room_));
        Buffer<double> keys(static_cast<size_t>(2 * threads_ * span));
        int64_t again = 0;
        for (int64_t start = 0; start < draws; start += kBatch) {
            const int64_t here = std::min<int64_t>(kBatch, draws - start);
            int64_t arrived[kBatch] = {}, size[kBatch] = {};
            bool settled[kBatch] = {};
#pragma omp parallel num_threads(threads_)
            {
                const int64_t me = omp_get_thread_num();
                uint64_t* const mine = found.data() + me * kGroup * kBlock;
#pragma omp for schedule(dynamic)
                for (int64_t block = 0; block < n_; block += kBlock)
                    for (int64_t from = 0; from < here; from += kGroup) {
                        const int64_t group = std::min<int64_t>(kGroup, here - from);
                        int64_t sure[kGroup] = {}, near[kGroup] = {};
                        if (group == kGroup)
                            judge<true>(sure, near, mine, block, start + from, group);
                        else
                            judge<false>(sure, near, mine, block, start + from, group);
                        for (int64_t d = 0; d < group; ++d) {
                            int64_t place;
#pragma omp atomic
                            arrived[from + d] += sure[d];
#pragma omp atomic capture
                            {
                                place = size[from + d];
                                size[from + d] += near[d];
                            }
                            if (place + near[d] <= room_)
                                std::copy_n(mine + d * kBlock, near[d], lists.data() + (from + d) * room_ + place);
                        }
                    }
                double* const own = keys.data() + 2 * me * span;
#pragma omp for schedule(dynamic)
                for (int64_t d = 0; d < here; ++d)
                    settled[d] = size[d] <= room_ && settle(lists.data() + d * room_, size[d], keep_ - arrived[d],
                                                            start + d, early_, late_, own, own + span);
            }
            for (int64_t d = 0; d < here; ++d)
                if (!settled[d]) {
                    draw_again(start + d);
                    ++again;
                }
        }
        std::copy_n(counts_.data(), n_, counts);
        return again;
    }

  private:
    void set_rates(const Real* weight, double exponent) {
        double lowest = kInfinity, highest = -kInfinity;
#pragma omp parallel num_threads(threads_) reduction(min : lowest) reduction(max : highest)
        {
            const Doubles one = Doubles{} + 1.0, infinity = Doubles{} + kInfinity;
            Doubles low = infinity, high = -infinity;
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n_; i += kWordLanes) {
                Doubles size{};
                if (i + kWordLanes <= n_)
                    for (int lane = 0; lane < kWordLanes; ++lane) size[lane] = static_cast<double>(weight[i + lane]);
                else
                    for (int64_t lane = 0; lane < n_ - i; ++lane) size[lane] = static_cast<double>(weight[i + lane]);
                size = (Doubles)((Words)size << 1 >> 1);
                const auto zero = size < 0x1p-1022;
                const Doubles rate = exponent * log_of(zero ? one : size);
                low = smaller<double>(low, zero ? infinity : rate);
                high = -smaller<double>(-high, zero ? infinity : -rate);
                Simd<double>::store(rates_.data() + i, zero ? -infinity : rate);
            }
            lowest = std::min(lowest, least_lane<double>(low));
            highest = std::max(highest, -least_lane<double>(-high));
        }
        const bool none = highest == -kInfinity;  // zeros only
        rate_of_zero_ = none ? 0.0 : lowest - kApart;
        highest_ = none ? 0.0 : highest;
    }

    // The rates of zeros, and the two times, from a histogram of all rates.
    void set_times(double spread) {
        double lowest = highest_;
#pragma omp parallel for schedule(static) num_threads(threads_) reduction(min : lowest)
        for (int64_t i = 0; i < n_; ++i) {
            if (rates_[i] == -kInfinity) rates_[i] = rate_of_zero_;
            lowest = std::min(lowest, rates_[i]);
        }
        const double highest = highest_ > lowest ? highest_ : lowest + 1.0, scale = kBins / (highest - lowest);
        std::vector<int64_t> bins(kBins);
        int64_t* const all = bins.data();
#pragma omp parallel for schedule(static) num_threads(threads_) reduction(+ : all[ : kBins])
        for (int64_t i = 0; i < n_; ++i)
            ++all[std::min<int64_t>(kBins - 1, static_cast<int64_t>((rates_[i] - lowest) * scale))];
        Arrivals arrivals(all, lowest, highest);
        const double mean = arrivals.when(static_cast<double>(keep_));
        // 16 more: where few are undecided, their number is not normally distributed.
        const double apart = spread * arrivals.deviation(mean) + (spread > 0.0 ? 16.0 : 0.0);
        early_ = arrivals.when(static_cast<double>(keep_) - apart);
        late_ = arrivals.when(static_cast<double>(keep_) + apart);
        const double between = (late_ == kInfinity ? static_cast<double>(n_) : arrivals.by(late_)) -
                               (early_ == -kInfinity ? 0.0 : arrivals.by(early_));
        const double most = between + 4.0 * static_cast<double>(n_) / 65536.0;  // 16 bits leave some undecided
        room_ = std::min(n_, static_cast<int64_t>(1.05 * most + 8.0 * std::sqrt(most) + 64.0));
    }

    // Of each entry, the half below which it has arrived at the early time, and that above which not at the late one; 32768
    // less, as comparisons are signed, and twice, for two draws in a word. One more or less than the probability says,
    // which covers the error of float32.
    void set_halves() {
        using S = Simd<float>;
        constexpr float log2e = 1.44269504f;
        const auto arrived = [](const float* logs) {
            const TokenVector rate = power_of_two(at_most(S::load(logs), 7.0f));
            return (S::broadcast(1.0f) - power_of_two(rate * S::broadcast(-log2e))) * S::broadcast(65536.0f);
        };
#pragma omp parallel for schedule(static) num_threads(threads_)
        for (int64_t i = 0; i < n_; i += S::lanes) {
            float early[S::lanes], late[S::lanes];
            for (int lane = 0; lane < S::lanes; ++lane) {
                early[lane] = static_cast<float>((rates_[i + lane] + early_) * log2e);
                late[lane] = static_cast<float>((rates_[i + lane] + late_) * log2e);
            }
            const TokenVector first = arrived(early), second = arrived(late);
            for (int lane = 0; lane < S::lanes; ++lane) {
                const int32_t before = std::clamp(static_cast<int32_t>(first[lane]) - 1, 0, 65535) - 32768;
                const int32_t after = std::clamp(static_cast<int32_t>(second[lane]) + 1, 0, 65535) - 32768;
                before_[i + lane] = static_cast<int32_t>(static_cast<uint32_t>(before & 0xffff) * 0x10001u);
                after_[i + lane] = static_cast<int32_t>(static_cast<uint32_t>(after & 0xffff) * 0x10001u);
            }
        }
        std::fill_n(before_.data() + n_, kEntries, static_cast<int32_t>(0x80008000u));  // nothing is below
    }

    // Eight draws (or the first `group` of them) of the entries of a block: counts those that are sure, lists those near.
    template <bool whole>
    void judge(int64_t* sure, int64_t* near, uint64_t* lists, int64_t block, int64_t draw, int64_t group) {
        const int64_t stop = std::min(n_ - block, kBlock);
        const Words even = consecutive(2) + static_cast<uint64_t>(block), odd = even + 1;
        const Philox random =
            philox_;  // copies: what is written below could change the members, for all the compiler knows
        const int32_t *const before_here = before_.data() + block, *const after_here = after_.data() + block;
        int32_t* const counts_here = counts_.data() + block;
        Halves wanted[4], sums[4] = {};
        for (int j = 0; j < 4; ++j) {
            const uint32_t pair = (2 * j < group ? 0xffffu : 0u) | (2 * j + 1 < group ? 0xffff0000u : 0u);
            wanted[j] = (Halves)(Counts{} + static_cast<int32_t>(pair));
        }
        for (int64_t i = 0; i < stop; i += kEntries) {
            const Words step = every(static_cast<uint64_t>(i));
            const Counter left = random(counter_of(even + step, draw / kGroup, kVotes));
            const Counter right = random(counter_of(odd + step, draw / kGroup, kVotes));
            Halves before, after, total{}, raw[4];
            std::memcpy(&before, before_here + i, sizeof(before));
            std::memcpy(&after, after_here + i, sizeof(after));
            uint64_t undecided[4], any = 0;
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                raw[j] = (Halves)((left.word[j] & kLowWord) | (right.word[j] << 32));
                Halves in = raw[j] < before, open = ~(in | (raw[j] > after));
                if (!whole) {
                    in &= wanted[j];
                    open &= wanted[j];
                }
                sums[j] -= in;
                total -= in;
                any |= undecided[j] = set_lanes(open);
            }
            Counts counts;
            std::memcpy(&counts, counts_here + i, sizeof(counts));
            counts += ((Counts)total & 0xffff) + ((Counts)total >> 16);
            std::memcpy(counts_here + i, &counts, sizeof(counts));
            if (any == 0) continue;
            for (int j = 0; j < 4; ++j) {
                uint16_t halves[kVectorBytes / 2];
                std::memcpy(halves, &raw[j], sizeof(halves));
                for (uint64_t mask = undecided[j]; mask != 0; mask &= mask - 1) {
                    const int lane = __builtin_ctzll(mask) / kMaskBits;
                    const int64_t d = 2 * j + lane % 2, entry = i + lane / 2;
                    if (entry < stop) lists[d * kBlock + near[d]++] = listed(block + entry, halves[lane]);
                }
            }
        }
        for (int64_t d = 0; d < group; ++d)
            for (int lane = static_cast<int>(d % 2); lane < kVectorBytes / 2; lane += 2) sure[d] += sums[d / 2][lane];
    }

    // Counts the `wanted` first of a list, by log time and number. False, with nothing counted, where the last of them does
    // not lie between the two times: then the list may be the wrong one.
    bool settle(const uint64_t* list, int64_t size, int64_t wanted, int64_t draw, double early, double late,
                double* keys, double* sorted) {
        if (wanted < 1 || wanted > size) return false;
        const Philox random = philox_;
        const double* const rates = rates_.data();
        for (int64_t c = 0; c < size; c += kWordLanes) {
            Words packed{};
            if (c + kWordLanes <= size)
                std::memcpy(&packed, list + c, sizeof(packed));
            else
                std::memcpy(&packed, list + c, static_cast<size_t>(size - c) * sizeof(uint64_t));
            const Words entry = packed >> 16, half = (packed & 0xffff) ^ 0x8000;
            Doubles rate{};
            for (int lane = 0; lane < kWordLanes; ++lane) rate[lane] = rates[entry[lane]];
            const Counter fine = random(counter_of(entry, draw, kFine));
            const Words bits = half << 48 | (fine.word[1] & 0xffff) << 32 | (fine.word[0] & kLowWord);
            Simd<double>::store(keys + c, log_exponential(bits) - rate);
        }
        std::copy_n(keys, size, sorted);
        std::nth_element(sorted, sorted + wanted - 1, sorted + size);
        const double last = sorted[wanted - 1];
        if (last <= early + kMargin || last >= late - kMargin) return false;
        int64_t equals = wanted, all_equals = 0;  // places for those at the same time as the last
        for (int64_t c = 0; c < size; ++c) {
            equals -= keys[c] < last;
            all_equals += keys[c] == last;
        }
        uint64_t limit = ~uint64_t(0);
        if (equals < all_equals) {
            std::vector<uint64_t> tied;
            for (int64_t c = 0; c < size; ++c)
                if (keys[c] == last) tied.push_back(list[c]);
            std::nth_element(tied.begin(), tied.begin() + (equals - 1), tied.end());
            limit = tied[static_cast<size_t>(equals - 1)];
        }
        for (int64_t c = 0; c < size; ++c)
            if (keys[c] < last || (keys[c] == last && list[c] <= limit)) {
#pragma omp atomic
                ++counts_[list[c] >> 16];
            }
        return true;
    }

    // A draw of all entries, in place of those that were counted as sure.
    void draw_again(int64_t draw) {
        Buffer<uint64_t> list(static_cast<size_t>(n_));
        Buffer<double> keys(static_cast<size_t>(2 * (n_ + kWordLanes)));
        const int64_t word = draw % kGroup / 2, shift = 16 * (draw % 2);
#pragma omp parallel for schedule(static) num_threads(threads_)
        for (int64_t i = 0; i < n_; i += kWordLanes) {
            const Words entry = consecutive(1) + static_cast<uint64_t>(i);
            const Words bits = philox_(counter_of(entry, draw / kGroup, kVotes)).word[word] >> shift;
            for (int64_t lane = 0; lane < std::min<int64_t>(kWordLanes, n_ - i); ++lane) {
                const uint16_t half = static_cast<uint16_t>(bits[lane]);
                list[i + lane] = listed(i + lane, half);
                counts_[i + lane] -= static_cast<int16_t>(half) < static_cast<int16_t>(before_[i + lane]);
            }
        }
        settle(list.data(), n_, keep_, draw, -kInfinity, kInfinity, keys.data(), keys.data() + n_ + kWordLanes);
    }

    int64_t n_, keep_, room_ = 0;
    Philox philox_;
    int threads_;
    double highest_ = 0.0, rate_of_zero_ = 0.0, early_ = -kInfinity, late_ = kInfinity;
    Buffer<double> rates_;
    Buffer<int32_t> before_, after_, counts_;
};

template <class Real>
int64_t draw(int32_t* counts, const Real* weight, int64_t n, int64_t keep, int64_t draws, double exponent,
             uint64_t seed, double spread, int threads) {
    if (keep == 0 || keep == n || draws == 0) {
        std::fill_n(counts, n, keep == 0 ? 0 : static_cast<int32_t>(draws));
        return 0;
    }
    threads = static_cast<int>(std::min<int64_t>(threads, (n + kBlock - 1) / kBlock));  // waking more takes longer
    return Race<Real>(weight, n, exponent, keep, seed, spread, threads).run(counts, draws);
}

}  // namespace

int64_t draw_counts(int32_t* counts, const void* weight, ElementType type, int64_t n, int64_t keep, int64_t draws,
                    double exponent, uint64_t seed, double spread, int threads) {
    if (type == ElementType::float64)
        return draw(counts, static_cast<const double*>(weight), n, keep, draws, exponent, seed, spread, threads);
    return draw(counts, static_cast<const float*>(weight), n, keep, draws, exponent, seed, spread, threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// Exact-count selection without a sort: one thread on a short list, or all threads on a long one.
#pragma once

#include "buffer.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include <omp.h>

namespace pyprune {
namespace PYPRUNE_ISA {

// A number as a signed integer of the same order (−0 and 0 are the same).
template <class Real>
struct Key {
    typedef typename std::conditional<sizeof(Real) == 4, int32_t, int64_t>::type Integer;
    typedef Integer Aliased __attribute__((may_alias));
    static constexpr int bits = static_cast<int>(8 * sizeof(Real));

    static inline Integer of(Real value) {
        value += Real(0);
        Integer key;
        std::memcpy(&key, &value, sizeof(key));
        return key ^ static_cast<Integer>((key >> (bits - 1)) & std::numeric_limits<Integer>::max());
    }
};

// mask[i] = 1 for the `count` largest of scores[0..n), 0 elsewhere; among equals the earlier one is kept.
// `scratch` holds n elements. Scores must not be NaN. The threshold is found bit by bit, each bit by counting keys in one
// vectorised pass: no branch depends on the data.
template <class Real>
inline void select_largest(uint8_t* mask, const Real* scores, int64_t n, int64_t count, Real* scratch) {
    if (count <= 0 || count >= n) {
        std::fill(mask, mask + n, static_cast<uint8_t>(count > 0));
        return;
    }
    using Integer = typename Key<Real>::Integer;
    using Unsigned = typename std::make_unsigned<Integer>::type;
    auto* keys = reinterpret_cast<typename Key<Real>::Aliased*>(scratch);
    for (int64_t i = 0; i < n; ++i) keys[i] = Key<Real>::of(scores[i]);
    Integer threshold = std::numeric_limits<Integer>::min();  // the largest with at least `count` keys at or above it
    for (int bit = Key<Real>::bits - 1; bit >= 0; --bit) {
        const Integer candidate = static_cast<Integer>(static_cast<Unsigned>(threshold) + (Unsigned(1) << bit));
        Integer reached = 0;
        for (int64_t i = 0; i < n; ++i) reached += keys[i] >= candidate ? 1 : 0;
        if (static_cast<int64_t>(reached) == count) {  // it parts the keys already, whatever the other bits
            for (int64_t i = 0; i < n; ++i) mask[i] = keys[i] >= candidate;
            return;
        }
        if (static_cast<int64_t>(reached) > count) threshold = candidate;
    }
    int64_t ties = count;  // places left for scores equal to the threshold
    for (int64_t i = 0; i < n; ++i) ties -= keys[i] > threshold;
    for (int64_t i = 0; i < n; ++i) {
        const bool tie = keys[i] == threshold && ties > 0;
        ties -= tie;
        mask[i] = keys[i] > threshold || tie;
    }
}

// The same by all threads: a radix select on the bits. A histogram of the leading 14 bits finds the bin of the
// threshold, its members are set aside, and select_largest settles among them. Scores are read three times; the memory
// of a Selector is n elements, and it may be used again and again.
template <class Real>
class Selector {
    static constexpr int kBins = 1 << 14, kShift = Key<Real>::bits - 14;
    static constexpr int64_t kRun = 64;  // scores marked at a time

  public:
    Selector(int64_t most, int threads)
        : threads_(threads), counts_(static_cast<size_t>(threads) * kBins), found_(static_cast<size_t>(threads) + 1),
          places_(static_cast<size_t>(most)), candidates_(static_cast<size_t>(most)),
          scratch_(static_cast<size_t>(most)), chosen_(static_cast<size_t>(most)) {}

    // Leaves every thread of the caller out: call it outside parallel regions.
    void largest(uint8_t* mask, const Real* scores, int64_t n, int64_t count) {
        if (count <= 0 || count >= n) {
            std::fill(mask, mask + n, static_cast<uint8_t>(count > 0));
            return;
        }
#pragma omp parallel num_threads(threads_)
        {
            const int me = omp_get_thread_num(), all = omp_get_num_threads();
            const int64_t first = n * me / all, stop = n * (me + 1) / all;
            int32_t* bins = counts_.data() + static_cast<int64_t>(me) * kBins;
            std::fill(bins, bins + kBins, 0);
            for (int64_t i = first; i < stop; ++i) ++bins[bin(scores[i])];
#pragma omp barrier
#pragma omp single
            find_bin(count, all);
            const int32_t border = bin_;  // a copy: writing bytes could change the member, for all the compiler knows
            int64_t place = found_[me];   // where this thread's members of the bin go
            for (int64_t start = first; start < stop; start += kRun) {
                const int64_t end = std::min(stop, start + kRun);
                int32_t inside = 0;  // few runs hold a member: the others are marked without looking at each score
                for (int64_t i = start; i < end; ++i) {
                    const int32_t own = bin(scores[i]);
                    mask[i] = own > border;
                    inside |= own == border ? 1 : 0;
                }
                for (int64_t i = start; inside != 0 && i < end; ++i)
                    if (bin(scores[i]) == border) {
                        places_[place] = i;
                        candidates_[place++] = scores[i];
                    }
            }
        }
        const int64_t members = found_[threads_];
        select_largest(chosen_.data(), candidates_.data(), members, wanted_, scratch_.data());
        for (int64_t c = 0; c < members; ++c) mask[places_[c]] = chosen_[c];
    }

  private:
    static int32_t bin(Real score) { return static_cast<int32_t>(Key<Real>::of(score) >> kShift) + kBins / 2; }

    // The bin that holds the threshold, how many of its members are wanted, and where each thread puts its members.
    void find_bin(int64_t count, int all) {
        int64_t above = 0;
        for (bin_ = kBins - 1; bin_ >= 0; --bin_) {
            int64_t here = 0;
            for (int t = 0; t < all; ++t) here += counts_[static_cast<int64_t>(t) * kBins + bin_];
            if (above + here >= count) break;
            above += here;
        }
        wanted_ = count - above;
        int64_t place = 0;
        for (int t = 0; t < all; ++t) {
            found_[t] = place;
            place += counts_[static_cast<int64_t>(t) * kBins + bin_];
        }
        found_[threads_] = place;
    }

    int threads_;
    int32_t bin_ = 0;
    int64_t wanted_ = 0;
    Buffer<int32_t> counts_;
    Buffer<int64_t> found_, places_;
    Buffer<Real> candidates_, scratch_;
    Buffer<uint8_t> chosen_;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

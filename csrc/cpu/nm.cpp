// SPDX-License-Identifier: Apache-2.0
// nm: of every `of` consecutive scores the `keep` largest are marked       scores, mask [groups, of]
//
// Algorithm: rank by counting for the small groups of hardware patterns, a vector of groups at a time where
//   they fill it; the bits of the threshold for long ones. Among equal scores the earlier one is kept.
// Operations: of² / 2 comparisons a group up to 16, expected O(of) above. Memory: scores read, mask written once.
#include "../common/buffer.h"
#include "../common/element_type.h"
#include "../common/selection.h"
#include "../common/simd.h"

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kCountingLimit = 16;

// An entry is kept when fewer than `keep` others come before it in descending, stable order.
template <class Real>
void select_by_rank(uint8_t* mask, const Real* scores, int64_t of, int64_t keep) {
    for (int64_t i = 0; i < of; ++i) {
        int64_t before = 0;
        for (int64_t j = 0; j < i; ++j) before += scores[j] >= scores[i];
        for (int64_t j = i + 1; j < of; ++j) before += scores[j] > scores[i];
        mask[i] = before < keep;
    }
}

// The same for all groups of one vector, where groups are a power of two and fit: every lane is compared with the other
// lanes of its group by turning the groups round.
template <class Real>
void select_in_registers(uint8_t* mask, const Real* scores, int64_t of, int64_t keep) {
    using S = Simd<Real>;
    using Index = typename Lanes<Real>::Index;
    using Indices = typename Lanes<Real>::Indices;
    const typename S::Vector own = S::load(scores);
    Indices lane, before{};
    for (int l = 0; l < S::lanes; ++l) lane[l] = static_cast<Index>(l);
    for (int64_t turn = 1; turn < of; ++turn) {
        const Indices other =
            (lane & static_cast<Index>(-of)) | ((lane + static_cast<Index>(turn)) & static_cast<Index>(of - 1));
        const typename S::Vector score = __builtin_shuffle(own, other);
        before -= (score > own) | ((score == own) & (other < lane));  // true is −1
    }
    const Indices kept = before < static_cast<Index>(keep);
    for (int l = 0; l < S::lanes; ++l) mask[l] = static_cast<uint8_t>(-kept[l]);
}

template <class Real>
void select_groups(uint8_t* mask, const Real* scores, int64_t groups, int64_t of, int64_t keep, int threads) {
    Buffer<Real> scratch(static_cast<size_t>(threads * of));
    constexpr int64_t lanes = Simd<Real>::lanes;
    const bool fits = of <= lanes && (of & (of - 1)) == 0;
    const int64_t whole = fits ? groups * of / lanes : 0, done = fits ? whole * (lanes / of) : 0;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t v = 0; v < whole; ++v) select_in_registers(mask + v * lanes, scores + v * lanes, of, keep);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t group = done; group < groups; ++group) {
        if (of <= kCountingLimit)
            select_by_rank(mask + group * of, scores + group * of, of, keep);
        else
            select_largest(mask + group * of, scores + group * of, of, keep,
                           scratch.data() + omp_get_thread_num() * of);
    }
}

}  // namespace

void nm(uint8_t* mask, const void* scores, ElementType type, int64_t groups, int64_t of, int64_t keep, int threads) {
    if (type == ElementType::float64)
        select_groups(mask, static_cast<const double*>(scores), groups, of, keep, threads);
    else
        select_groups(mask, static_cast<const float*>(scores), groups, of, keep, threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

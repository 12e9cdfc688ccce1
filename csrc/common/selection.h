// SPDX-License-Identifier: Apache-2.0
// Exact-count selection without a full sort.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Real>
struct Larger {
    bool operator()(Real a, Real b) const { return a > b; }
};

// mask[i] = 1 for the `count` largest of scores[0..n), 0 elsewhere; among equals the earlier one is kept.
// `scratch` holds n elements. Expected O(n). Scores must not be NaN.
template <class Real>
inline void select_largest(uint8_t* mask, const Real* scores, int64_t n, int64_t count, Real* scratch) {
    if (count <= 0 || count >= n) {
        std::fill(mask, mask + n, static_cast<uint8_t>(count > 0));
        return;
    }
    std::copy(scores, scores + n, scratch);
    std::nth_element(scratch, scratch + (count - 1), scratch + n, Larger<Real>());
    const Real threshold = scratch[count - 1];
    int64_t ties = count;  // places left for scores equal to the threshold
    for (int64_t i = 0; i < n; ++i) ties -= scores[i] > threshold;
    for (int64_t i = 0; i < n; ++i) {
        const bool tie = scores[i] == threshold && ties > 0;
        ties -= tie;
        mask[i] = scores[i] > threshold || tie;
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

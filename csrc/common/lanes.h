// SPDX-License-Identifier: Apache-2.0
// What vectors do across their lanes: reductions, where an element is, and rows without some of their columns.
#pragma once

#include "carver.h"
#include "panel.h"
#include "simd.h"

#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Real>
inline typename Simd<Real>::Vector smaller(typename Simd<Real>::Vector a, typename Simd<Real>::Vector b) {
    return a < b ? a : b;
}

// Every lane with its partner `apart` lanes away.
template <class Real, int apart>
inline typename Simd<Real>::Vector swapped(typename Simd<Real>::Vector value) {
    typename Lanes<Real>::Indices partner{};
    for (int lane = 0; lane < Simd<Real>::lanes; ++lane) partner[lane] = lane ^ apart;
    return __builtin_shuffle(value, partner);
}

template <class Real, int apart = Simd<Real>::lanes / 2>
inline Real least_lane(typename Simd<Real>::Vector value) {
    if constexpr (apart == 0)
        return value[0];
    else
        return least_lane<Real, apart / 2>(smaller<Real>(value, swapped<Real, apart>(value)));
}

template <class Real, int apart = Simd<Real>::lanes / 2>
inline Real sum_lanes(typename Simd<Real>::Vector value) {
    if constexpr (apart == 0)
        return value[0];
    else
        return sum_lanes<Real, apart / 2>(value + swapped<Real, apart>(value));
}

#if defined(__AVX512F__)
inline uint32_t equal_lanes(const float* values, float wanted) {
    return _mm512_cmpeq_ps_mask(_mm512_loadu_ps(values), _mm512_set1_ps(wanted));
}
inline uint32_t equal_lanes(const double* values, double wanted) {
    return _mm512_cmpeq_pd_mask(_mm512_loadu_pd(values), _mm512_set1_pd(wanted));
}
#endif

// First place of a value that occurs; `values` may be read up to a whole vector past it.
template <class Real>
inline int64_t first_equal(const Real* values, Real wanted) {
#if defined(__AVX512F__)
    for (int64_t j = 0;; j += Simd<Real>::lanes)
        if (const uint32_t found = equal_lanes(values + j, wanted)) return j + __builtin_ctz(found);
#else
    int64_t j = 0;
    while (values[j] != wanted) ++j;
    return j;
#endif
}

// Which of n columns stay, and rows without the others: each vector read is merged behind what is left of the ones
// before by one shuffle, so that only whole vectors are written.
template <class Real>
class Squeeze {
    using S = Simd<Real>;
    using Vector = typename S::Vector;
    using Index = typename Lanes<Real>::Index;
    static constexpr int lanes = S::lanes;

  public:
    Squeeze(Carver& memory, int64_t n)
        : merge_(memory.take<Index>(panels(n, lanes) * lanes)), rest_(memory.take<Index>(panels(n, lanes) * lanes)),
          full_(memory.take<uint8_t>(panels(n, lanes))) {}

    void choose(const uint8_t* keep, int64_t n) {
        vectors_ = panels(n, lanes);
        count_ = 0;
        for (int64_t v = 0; v < vectors_; ++v) {
            // Lanes 0 .. lanes − 1 name what is left over, the ones after it the vector being read.
            Index lane[2 * lanes];
            int held = static_cast<int>(count_ % lanes);
            for (int a = 0; a < held; ++a) lane[a] = a;
            const int64_t first = v * lanes, width = std::min<int64_t>(lanes, n - first), before = held;
            for (int a = 0; a < width; ++a) {
                lane[held] = lanes + a;
                held += keep[first + a] != 0;
            }
            for (int a = held; a < 2 * lanes; ++a) lane[a] = lanes;
            for (int a = 0; a < lanes; ++a) {
                merge_[first + a] = lane[a];
                rest_[first + a] = lane[lanes + a] - lanes;
            }
            full_[v] = held >= lanes;
            count_ += held - before;
        }
    }

    // Rows without their dropped columns, and zeros from there to the end of a strip; a row may be its own target.
    // They lie in strips of kPanel columns, `apart` from the start of one to that of the next.
    template <int rows>
    void apply(Real* const (&target)[rows], int64_t target_apart, const Real* const (&source)[rows],
               int64_t source_apart) const {
        const int64_t in_jump = source_apart - (kTileVectors - 1) * lanes;
        const int64_t out_jump = target_apart - (kTileVectors - 1) * lanes;
        const int64_t vectors = vectors_;
        const Index *const merges = merge_, *const rests = rest_;
        const uint8_t* const full = full_;
        Vector left[rows];
        for (int r = 0; r < rows; ++r) left[r] = Vector{};
        int64_t from = 0, to = 0;
        int in = 0, out = 0;
        for (int64_t v = 0; v < vectors; ++v) {
            typename Lanes<Real>::Indices merge, rest;
            std::memcpy(&merge, merges + v * lanes, sizeof(merge));
            std::memcpy(&rest, rests + v * lanes, sizeof(rest));
            Vector read[rows];
            for (int r = 0; r < rows; ++r) {
                read[r] = S::load(source[r] + from);
                left[r] = __builtin_shuffle(left[r], read[r], merge);
            }
            if (full[v]) {
                for (int r = 0; r < rows; ++r) {
                    S::store(target[r] + to, left[r]);
                    left[r] = __builtin_shuffle(read[r], rest);
                }
                to += out == kTileVectors - 1 ? out_jump : lanes;
                out = out == kTileVectors - 1 ? 0 : out + 1;
            }
            from += in == kTileVectors - 1 ? in_jump : lanes;
            in = in == kTileVectors - 1 ? 0 : in + 1;
        }
        if (count_ % kPanel<Real> == 0) return;
        typename Lanes<Real>::Indices place{};
        for (int lane = 0; lane < lanes; ++lane) place[lane] = lane;
        const auto held = place < static_cast<Index>(count_ % lanes);
        for (int r = 0; r < rows; ++r) {
            S::store(target[r] + to, held ? left[r] : Vector{});
            for (int v = 1; out + v < kTileVectors; ++v) S::store(target[r] + to + v * lanes, Vector{});
        }
    }

    int64_t count() const { return count_; }

  private:
    Index *merge_, *rest_;  // shuffles, by vector
    uint8_t* full_;         // whether a whole vector is written then
    int64_t vectors_ = 0, count_ = 0;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

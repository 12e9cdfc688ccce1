// SPDX-License-Identifier: Apache-2.0
// Rows of numbers under a mask of bytes, a vector at a time: a mask of half ones is the worst there is for a branch, and
// compilers do not turn bytes into lanes by themselves.
#pragma once

#include "simd.h"

namespace pyprune {
namespace PYPRUNE_ISA {

// All bits of a lane set where its byte of the mask is not zero.
template <class Real>
inline __attribute__((always_inline)) typename Lanes<Real>::Indices kept_lanes(const uint8_t* mask) {
    constexpr int lanes = Simd<Real>::lanes;
    typedef uint8_t Bytes __attribute__((vector_size(lanes)));
    Bytes bytes;
    std::memcpy(&bytes, mask, lanes);
    return __builtin_convertvector(bytes, typename Lanes<Real>::Indices) != 0;
}

// operation(kept, place, whole) for every vector of n, kept lanes and true; then for each number left, a bool and false.
// With `at` and `put` one generic expression serves both.
template <class Real, class Operation>
inline __attribute__((always_inline)) void under_mask(const uint8_t* mask, int64_t n, Operation operation) {
    constexpr int lanes = Simd<Real>::lanes;
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) operation(kept_lanes<Real>(mask + i), i, std::true_type{});
    for (; i < n; ++i) operation(mask[i] != 0, i, std::false_type{});
}

// A vector, or a single number, at a place.
template <class Real>
inline __attribute__((always_inline)) typename Simd<Real>::Vector at(const Real* values, std::true_type) {
    return Simd<Real>::load(values);
}
template <class Real>
inline __attribute__((always_inline)) Real at(const Real* values, std::false_type) {
    return *values;
}
template <class Real>
inline __attribute__((always_inline)) void put(Real* values, typename Simd<Real>::Vector value) {
    Simd<Real>::store(values, value);
}
template <class Real>
inline __attribute__((always_inline)) void put(Real* values, Real value) {
    *values = value;
}

// out := mask ? in : 0, mask ? a b : 0, mask ? a − b : 0; `out` may be what is read.
template <class Real>
inline void keep_only(Real* out, const Real* in, const uint8_t* mask, int64_t n) {
    under_mask<Real>(mask, n, [=](auto kept, int64_t i, auto whole) {
        const auto value = at(in + i, whole);
        put(out + i, kept ? value : decltype(value){});
    });
}
template <class Real>
inline void keep_product(Real* out, const Real* a, const Real* b, const uint8_t* mask, int64_t n) {
    under_mask<Real>(mask, n, [=](auto kept, int64_t i, auto whole) {
        const auto value = at(a + i, whole) * at(b + i, whole);
        put(out + i, kept ? value : decltype(value){});
    });
}
template <class Real>
inline void keep_difference(Real* out, const Real* a, const Real* b, const uint8_t* mask, int64_t n) {
    under_mask<Real>(mask, n, [=](auto kept, int64_t i, auto whole) {
        const auto value = at(a + i, whole) - at(b + i, whole);
        put(out + i, kept ? value : decltype(value){});
    });
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

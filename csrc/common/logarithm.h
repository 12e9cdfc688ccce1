// SPDX-License-Identifier: Apache-2.0
// Logarithms of vectors of doubles that have the same bits on every instruction set, in torch and in Triton: each operation
// is one that IEEE 754 rounds. Files that include this are compiled without contraction into fused multiply-adds, see
// CMakeLists.txt; pyprune/ops/exponential_race.py is the same in torch, and says what is meant.
#pragma once

#include "philox.h"
#include "simd.h"

#include <cstdint>
#include <cstring>

namespace pyprune {
namespace PYPRUNE_ISA {

typedef Simd<double>::Vector Doubles;

inline Doubles as_doubles(Words bits) {
    return (Doubles)bits;
}

// Whole numbers below 2^63, rounded once.
inline __attribute__((always_inline)) Doubles to_doubles(Words whole) {
    const Doubles low = as_doubles((whole & kLowWord) | 0x4330000000000000u) - 0x1p52;
    const Doubles high = as_doubles((whole >> 32) | 0x4530000000000000u) - 0x1p84;
    return high + low;
}

// exponent · log 2 + log(1 + f), f in [√½ − 1, √2 − 1]: 2 atanh(s) by its series, s = f / (2 + f). What the series leaves
// out is below 1e-18 of it.
inline __attribute__((always_inline)) Doubles log_sum(Doubles exponent, Doubles f) {
    constexpr int terms = 11;
    const Doubles s = f / (2.0 + f), square = s * s;
    Doubles series = Doubles{} + 1.0 / (2 * terms - 1);
#pragma GCC unroll 11
    for (int term = terms - 2; term > 0; --term) series = series * square + 1.0 / (2 * term + 1);
    const Doubles twice = s + s;
    return exponent * 0x1.62e42feep-1 + (exponent * 0x1.a39ef35793c76p-33 + (twice * (series * square) + twice));
}

// x = 2^exponent (1 + f), of normal positive numbers.
inline __attribute__((always_inline)) void split(Doubles x, Doubles& exponent, Doubles& f) {
    constexpr uint64_t root_half = 0x3FE6A09E00000000;
    const Words bits = (Words)x;
    // Shifted without its sign, which 2048 stands for.
    const Words shifted = (bits - root_half + (uint64_t(2048) << 52)) >> 52;
    f = as_doubles(bits - (((bits - root_half) >> 52) << 52)) - 1.0;
    exponent = as_doubles(((shifted & 0xfff) | 0x4330000000000000u)) - (0x1p52 + 2048.0);
}

inline __attribute__((always_inline)) Doubles log_of(Doubles x) {
    Doubles exponent, f;
    split(x, exponent, f);
    return log_sum(exponent, f);
}

// log(−log(1 − v)), v = (bits + 1/2) / 2^64: log of an exponential variable. Where v is small it is used itself, where it is
// not 1 − v is, so that both ends keep full accuracy.
inline __attribute__((always_inline)) Doubles log_exponential(Words bits) {
    const Words upper = Words{} - (bits >> 63);                    // all ones where v >= 1/2
    const Doubles v = (to_doubles(bits ^ upper) + 0.5) * 0x1p-64;  // 1 − v there
    Doubles exponent, f;
    split(upper != 0 ? v : 1.0 - v, exponent, f);
    const Words small = (Words)(v <= 0.25) & ~upper;
    f = small != 0 ? -v : f;
    return log_of(-log_sum(exponent, f));
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// Vectors of the widest registers of the instruction set a file is compiled for.
//
// Every file under csrc/cpu is compiled once per instruction set, with PYPRUNE_ISA naming the namespace
// (baseline, avx2, avx512). GCC/Clang vector extensions keep the source the same for all of them, NEON
// included; the compiler contracts a * b + c into fused multiply-adds where they exist.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifndef PYPRUNE_ISA
#error "compile with -DPYPRUNE_ISA=baseline|avx2|avx512"
#endif

namespace pyprune {
namespace PYPRUNE_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 8;     // rows of accumulators in the micro-kernel: 8 x 3 of 32 registers
constexpr int kTileVectors = 3;  // vectors per accumulator row
constexpr int kPanelBytes =
    96 << 10;  // of a panel in use: half of the second-level cache hands on as fast as the first
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 4;  // 4 x 3 of 16 registers
constexpr int kTileVectors = 3;
constexpr int kPanelBytes = 24 << 10;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 4;  // 4 x 4 of 32 registers
constexpr int kTileVectors = 4;
constexpr int kPanelBytes = 24 << 10;
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 2;  // 2 x 4 of 16 registers
constexpr int kTileVectors = 4;
constexpr int kPanelBytes = 24 << 10;
#endif

template <class Real>
struct Simd {
    static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(Real));
    typedef Real Vector __attribute__((vector_size(kVectorBytes)));

    static inline Vector load(const Real* source) {
        Vector value;
        std::memcpy(&value, source, sizeof(value));  // unaligned load
        return value;
    }
    static inline void store(Real* target, Vector value) { std::memcpy(target, &value, sizeof(value)); }
    static inline Vector broadcast(Real value) { return value - Vector{}; }
};

// Whole numbers as wide as `Real`, by lane: what shuffles and comparisons take.
template <class Real>
struct Lanes {
    typedef typename std::conditional<sizeof(Real) == 4, int32_t, int64_t>::type Index;
    typedef Index Indices __attribute__((vector_size(kVectorBytes)));
};

// Square block in registers, in place: row i becomes column i. log2(lanes) stages of two-source shuffles.
template <class Real, int apart = Simd<Real>::lanes / 2>
inline __attribute__((always_inline)) void transpose(typename Simd<Real>::Vector (&row)[Simd<Real>::lanes]) {
    constexpr int lanes = Simd<Real>::lanes;
    if constexpr (sizeof(Real) == 4 && apart == 2) {
        // Within 128 bits the two last stages are unpacking: one instruction a vector, where the others take two or three.
        typename Lanes<Real>::Indices low{}, high{}, left{}, right{};
        for (int lane = 0; lane < lanes; ++lane) {
            const int quad = lane / 4 * 4, place = lane % 4;
            low[lane] = quad + place / 2 + place % 2 * lanes;
            high[lane] = low[lane] + 2;
            left[lane] = quad + place % 2 + place / 2 * lanes;
            right[lane] = left[lane] + 2;
        }
#pragma GCC unroll 4
        for (int i = 0; i < lanes; i += 4) {
            const typename Simd<Real>::Vector a = __builtin_shuffle(row[i], row[i + 1], low),
                                              b = __builtin_shuffle(row[i], row[i + 1], high),
                                              c = __builtin_shuffle(row[i + 2], row[i + 3], low),
                                              d = __builtin_shuffle(row[i + 2], row[i + 3], high);
            row[i] = __builtin_shuffle(a, c, left);
            row[i + 1] = __builtin_shuffle(a, c, right);
            row[i + 2] = __builtin_shuffle(b, d, left);
            row[i + 3] = __builtin_shuffle(b, d, right);
        }
    } else if constexpr (apart > 0) {
        typename Lanes<Real>::Indices upper{}, lower{};
        for (int lane = 0; lane < lanes; ++lane) {
            upper[lane] = lane & apart ? lanes + lane - apart : lane;
            lower[lane] = lane & apart ? lanes + lane : lane + apart;
        }
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
            if (i & apart) continue;
            const typename Simd<Real>::Vector a = row[i], b = row[i + apart];
            row[i] = __builtin_shuffle(a, b, upper);
            row[i + apart] = __builtin_shuffle(a, b, lower);
        }
        transpose<Real, apart / 2>(row);
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

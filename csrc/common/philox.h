// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10 (Salmon et al., SC 2011), a vector of counters at a time: 128 random bits as a function of counter and key.
#pragma once

#include "simd.h"

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pyprune {
namespace PYPRUNE_ISA {

// Words of 32 bits in lanes of 64. The upper halves may hold anything: products do not read them.
typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));
constexpr int kWordLanes = kVectorBytes / 8;
constexpr uint64_t kLowWord = 0xffffffff;

inline Words every(uint64_t value) {
    return Words{} + value;
}

// Full products of the lower halves.
inline __attribute__((always_inline)) Words product(Words a, Words b) {
#if defined(__AVX512F__)
    return (Words)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & kLowWord) * (b & kLowWord);
#endif
}

struct Counter {
    Words word[4];
};

class Philox {
  public:
    explicit Philox(uint64_t seed) {
        uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < kRounds; ++round) {
            low_[round] = every(low);
            high_[round] = every(high);
            low += 0x9E3779B9;
            high += 0xBB67AE85;
        }
    }

    // The upper halves of the result are not cleared.
    inline __attribute__((always_inline)) Counter operator()(Counter c) const {
        const Words first = every(0xD2511F53), second = every(0xCD9E8D57);
#pragma GCC unroll 10
        for (int round = 0; round < kRounds; ++round) {
            const Words a = product(c.word[0], first), b = product(c.word[2], second);
            c = {{(b >> 32) ^ c.word[1] ^ low_[round], b, (a >> 32) ^ c.word[3] ^ high_[round], a}};
        }
        return c;
    }

  private:
    static constexpr int kRounds = 10;
    Words low_[kRounds], high_[kRounds];
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// Element types of activations and weights, widened to the type the arithmetic runs in (exactly, in every case), and back
// (to the nearest, ties to even).
#pragma once

#include <cstdint>
#include <cstring>

namespace pyprune {
namespace PYPRUNE_ISA {

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

inline float widen(float value) {
    return value;
}
inline double widen(double value) {
    return value;
}

inline float widen(int8_t value) {
    return value;
}

inline float widen(BFloat16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

inline float widen(Float16 value) {
    // Shift exponent and mantissa into place and rescale by 2^112, which handles subnormals too; an exponent of
    // all ones (inf, NaN) needs the float's exponent of all ones instead.
    const uint32_t half = value.bits;
    uint32_t bits = (half & 0x7fffu) << 13;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    wide *= 0x1p112f;
    std::memcpy(&bits, &wide, sizeof(bits));
    bits |= (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    bits |= (half & 0x8000u) << 16;
    std::memcpy(&wide, &bits, sizeof(wide));
    return wide;
}

inline void narrow(float value, float& target) {
    target = value;
}

inline void narrow(float value, BFloat16& target) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    target.bits = static_cast<uint16_t>(nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void narrow(float value, Float16& target) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        bits = 0x7e00u;
    else if (bits >= 0x477ff000u)  // rounds to 2^16 or more
        bits = 0x7c00u;
    else if (bits >= 0x38800000u)
        bits = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
    else {  // a subnormal half: 1/2 has the last place that it has, so that the sum is rounded as it must be
        float small;
        std::memcpy(&small, &bits, sizeof(small));
        small += 0.5f;
        std::memcpy(&bits, &small, sizeof(bits));
        bits -= 0x3f000000u;
    }
    target.bits = static_cast<uint16_t>(sign | bits);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// Element types of activations, widened to the type the arithmetic runs in (exactly, in every case).
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

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

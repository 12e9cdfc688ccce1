// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
    std::uint16_t bits;
};

inline float __half2float(__half value) {
    const int exponent = (value.bits >> 10) & 31;
    const int fraction = value.bits & 1023;
    float size;
    if (exponent == 31) {
        size = fraction == 0 ? INFINITY : NAN;
    } else if (exponent == 0) {
        size = std::ldexp(static_cast<float>(fraction), -24);
    } else {
        size = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    }
    return (value.bits & 0x8000) != 0 ? -size : size;
}

inline __half __ushort_as_half(std::uint16_t bits) {
    return {bits};
}
inline std::uint16_t __half_as_ushort(__half value) {
    return value.bits;
}
inline __half __float2half_rn(float value) {
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (value != value) {
        return {0x7fff};
    }
    if (size >= 65520.0f) {
        return {static_cast<std::uint16_t>(sign | 0x7c00)};
    }
    int exponent;
    std::frexp(std::fmax(size, 0x1p-14f), &exponent);
    const float scaled =
        std::nearbyint(std::ldexp(size, 11 - exponent));  // ties to even; 2048 goes to the next exponent
    return {static_cast<std::uint16_t>(sign + ((exponent + 13) << 10) + static_cast<int>(scaled))};
}

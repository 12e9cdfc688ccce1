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

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
    const std::uint32_t wide = static_cast<std::uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &wide, sizeof result);
    return result;
}

inline __nv_bfloat16 __ushort_as_bfloat16(std::uint16_t bits) {
    return {bits};
}
inline std::uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) {
    return value.bits;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    std::uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    if (value != value) {
        return {0x7fff};
    }
    return {static_cast<std::uint16_t>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16)};
}

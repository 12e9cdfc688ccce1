// SPDX-License-Identifier: Apache-2.0
// 16-bit elements as bits, their conversions, and one product of tensor cores on them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace pyprune::cuda {

struct Bfloat16 {
    static __device__ __forceinline__ float to_float(std::uint16_t bits) {
        return __bfloat162float(__ushort_as_bfloat16(bits));
    }
    static __device__ __forceinline__ std::uint16_t from_float(float value) {
        return __bfloat16_as_ushort(__float2bfloat16_rn(value));
    }
};

struct Half {
    static __device__ __forceinline__ float to_float(std::uint16_t bits) {
        return __half2float(__ushort_as_half(bits));
    }
    static __device__ __forceinline__ std::uint16_t from_float(float value) {
        return __half_as_ushort(__float2half_rn(value));
    }
};

/// sum += A B by one warp, A 16 x 16, B 16 x 8, float32 sums. Lane 4 g + t holds of A the pairs of columns 2 t and
/// 2 t + 8 of the rows g and g + 8 (a[row / 8 + 2 (column / 8)]), of B the pairs of rows 2 t and 2 t + 8 of column g, of
/// the sum columns 2 t and 2 t + 1 of row g, then of row g + 8. A pair has the lower index in its lower half.
template <typename Element>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
#if defined(PYPRUNE_TENSOR_CORE)  // of the emulation in tests/cuda
    PYPRUNE_TENSOR_CORE<Element>(sum, a, b0, b1);
#else
    if constexpr (std::is_same_v<Element, Bfloat16>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#endif
}

}  // namespace pyprune::cuda

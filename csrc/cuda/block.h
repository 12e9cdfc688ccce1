// SPDX-License-Identifier: Apache-2.0
// What kernels of one block a row share: who a thread is, the dynamic shared memory, 16 bytes at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pyprune::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane() {
    return static_cast<int>(threadIdx.x) % kWarp;
}
__device__ __forceinline__ int warp() {
    return static_cast<int>(threadIdx.x) / kWarp;
}

/// The launch's dynamic shared memory, aligned to 16 bytes.
__device__ __forceinline__ char* dynamic_shared() {
#if defined(PYPRUNE_DYNAMIC_SHARED)  // of the emulation in tests/cuda
    return PYPRUNE_DYNAMIC_SHARED;
#else
    extern __shared__ __align__(16) char dynamic_memory[];
    return dynamic_memory;
#endif
}

/// Neighbours in memory that are loaded and stored at once.
template <typename Real>
struct alignas(16) Pack {
    static constexpr int size = 16 / static_cast<int>(sizeof(Real));
    Real at[size];
};

template <typename Real>
__device__ __forceinline__ Pack<Real> load_pack(const Real* source) {
    return *reinterpret_cast<const Pack<Real>*>(source);
}
template <typename Real>
__device__ __forceinline__ void store_pack(Real* target, const Pack<Real>& pack) {
    *reinterpret_cast<Pack<Real>*>(target) = pack;
}

}  // namespace pyprune::cuda

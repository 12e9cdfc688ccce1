// SPDX-License-Identifier: Apache-2.0
//
// Just enough of the CUDA runtime to run our kernels on the host: CUDA threads are fibers (fibers.h), one block after
// another, __syncthreads is a barrier of the block, warp intrinsics are barriers of 32 threads around an exchange,
// shared memory is a static, or for the dynamic kind a new array of exactly the size asked for.
// It stands in for the real header on the include path, so the .cu files are compiled unchanged, and the address and
// thread sanitizers then see every access outside and every missing barrier.
// It proves logic, not speed, and nothing about memory order on a GPU.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
using std::min;

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 blockIdx, blockDim, gridDim;

namespace emulated {

constexpr unsigned kWarp = 32;
constexpr std::size_t kSharedWithoutAsking = 48 * 1024;

inline std::unique_ptr<Barrier> block_barrier;
inline std::vector<Barrier> warp_barriers;
inline std::vector<std::uint64_t> exchanged;
inline std::unique_ptr<char[]> shared;

// What the device claims to be.
inline int multiprocessors = 1;
inline int shared_limit = 227 * 1024;
inline int blocks_per_multiprocessor = 2;

inline long launches = 0;
inline bool descending = false;       // the order of the threads changes with every launch
inline std::size_t shared_asked = 0;  // by the last cudaFuncSetAttribute

EMULATED_UNSEEN inline dim3 thread_index() {
    return dim3(team->index());
}
inline char* dynamic_shared() {
    return shared.get();
}

/// Every thread of the warp gives a value; each gets what `read` makes of the 32 values of this exchange. Exchanges
/// use two rows of memory by turns: who is late still finds the values of his own.
template <typename Value, typename Read>
EMULATED_UNSEEN auto exchange(Value value, const Read& read) {
    static_assert(sizeof(Value) <= sizeof(std::uint64_t), "a register or two");
    const unsigned thread = team->index();
    Barrier& barrier = warp_barriers[thread / kWarp];
    std::uint64_t* const values = exchanged.data() + (thread / kWarp * 2 + barrier.generation() % 2) * kWarp;
    __builtin_memcpy(values + thread % kWarp, &value, sizeof value);
    barrier.wait(false);
    return read(values);
}

template <typename Value>
EMULATED_UNSEEN Value from_lane(Value value, unsigned lane) {
    return exchange(value, [lane](const std::uint64_t* values) EMULATED_UNSEEN {
        Value other;
        __builtin_memcpy(&other, values + lane % kWarp, sizeof other);
        return other;
    });
}

/// All 32 values of an exchange.
template <typename Value>
EMULATED_UNSEEN std::array<Value, kWarp> from_all(Value value) {
    return exchange(value, [](const std::uint64_t* values) EMULATED_UNSEEN {
        std::array<Value, kWarp> all;
        for (unsigned lane = 0; lane < kWarp; ++lane) {
            __builtin_memcpy(&all[lane], values + lane, sizeof(Value));
        }
        return all;
    });
}

/// What csrc/cuda/tensor_core.h says of `multiply_add`.
template <typename Element>
void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    const std::array<std::uint32_t, kWarp> left[4] = {from_all(a[0]), from_all(a[1]), from_all(a[2]), from_all(a[3])};
    const std::array<std::uint32_t, kWarp> right[2] = {from_all(b0), from_all(b1)};
    const auto half_of = [](std::uint32_t pair, unsigned which) {
        return Element::to_float(static_cast<std::uint16_t>(pair >> (16 * which)));
    };
    const unsigned lane = team->index() % kWarp;
    for (unsigned index = 0; index < 4; ++index) {
        const unsigned row = lane / 4 + 8 * (index / 2), column = 2 * (lane % 4) + index % 2;
        for (unsigned k = 0; k < 16; ++k) {
            const unsigned place = k % 8 / 2;
            const float x = half_of(left[row / 8 + 2 * (k / 8)][4 * (row % 8) + place], k % 2);
            sum[index] = std::fma(x, half_of(right[k / 8][4 * column + place], k % 2), sum[index]);
        }
    }
}

inline void whole_warp(unsigned mask) {
    if (mask != 0xffffffffu) {
        std::fputs("a warp intrinsic without all lanes\n", stderr);
        std::_Exit(3);
    }
}

}  // namespace emulated

#define threadIdx (::emulated::thread_index())
#define PYPRUNE_DYNAMIC_SHARED ::emulated::dynamic_shared()
#define PYPRUNE_TENSOR_CORE ::emulated::multiply_add

inline void __syncthreads() {
    emulated::block_barrier->wait(true);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulated::whole_warp(mask);
    emulated::warp_barriers[threadIdx.x / emulated::kWarp].wait(true);
}
template <typename Value>
Value __shfl_sync(unsigned mask, Value value, int lane) {
    emulated::whole_warp(mask);
    return emulated::from_lane(value, static_cast<unsigned>(lane));
}
template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int bits) {
    emulated::whole_warp(mask);
    return emulated::from_lane(value, threadIdx.x ^ static_cast<unsigned>(bits));
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
    emulated::whole_warp(mask);
    return emulated::exchange(std::uint64_t{predicate}, [](const std::uint64_t* values) EMULATED_UNSEEN {
        unsigned votes = 0;
        for (unsigned lane = 0; lane < emulated::kWarp; ++lane) {
            votes |= static_cast<unsigned>(values[lane] != 0) << lane;
        }
        return votes;
    });
}
template <typename Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned reach) {
    emulated::whole_warp(mask);
    const unsigned lane = threadIdx.x % emulated::kWarp;
    return emulated::from_lane(value, lane < reach ? lane : lane - reach);
}
inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}
inline int __ffs(int bits) {
    return __builtin_ffs(bits);
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
using cudaStream_t = void*;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline const char* cudaGetErrorString(cudaError_t) {
    return "invalid argument";
}
inline const char* cudaGetErrorName(cudaError_t) {
    return "cudaErrorInvalidValue";
}
inline cudaError_t cudaGetDevice(int* device) {
    return *device = 0, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMultiProcessorCount ? emulated::multiprocessors : emulated::shared_limit;
    return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
    emulated::shared_asked = static_cast<std::size_t>(bytes);
    return bytes <= emulated::shared_limit ? cudaSuccess : cudaErrorInvalidValue;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, std::size_t) {
    return *blocks = emulated::blocks_per_multiprocessor, cudaSuccess;
}

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const unsigned blocks = config->gridDim.x, threads = config->blockDim.x;
    const std::size_t asked = std::max(emulated::shared_asked, emulated::kSharedWithoutAsking);
    emulated::shared_asked = 0;
    if (blocks == 0 || threads == 0 || threads > 1024 || config->dynamicSmemBytes > asked) {
        return cudaErrorInvalidValue;
    }
    ++emulated::launches;
    const std::tuple<Parameters...> values(arguments...);
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    emulated::block_barrier = std::make_unique<emulated::Barrier>(threads);
    emulated::warp_barriers.assign((threads + emulated::kWarp - 1) / emulated::kWarp,
                                   emulated::Barrier(emulated::kWarp));
    emulated::exchanged.assign(emulated::warp_barriers.size() * 2 * emulated::kWarp, 0);
    emulated::shared.reset(new char[config->dynamicSmemBytes]);
    emulated::Barrier between(threads);
    emulated::Team().run(threads, emulated::descending, [&] {
        for (unsigned block = 0; block < blocks; ++block) {
            if (threadIdx.x == 0) {
                blockIdx = dim3(block);
                std::memset(emulated::shared.get(), 0xff, config->dynamicSmemBytes);  // NaN: nothing is zero by itself
            }
            between.wait(true);
            std::apply(kernel, values);
            between.wait(true);
        }
    });
    emulated::descending = !emulated::descending;
    return cudaSuccess;
}

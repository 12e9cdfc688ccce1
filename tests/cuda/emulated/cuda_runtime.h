// SPDX-License-Identifier: Apache-2.0
//
// Just enough of the CUDA runtime to run our kernels on host threads: one std::thread per CUDA
// thread, one block after another, __syncthreads as a barrier, shared memory as function statics.
// It stands in for the real header on the include path, so the .cu files are compiled unchanged,
// and the address and thread sanitizers then see every access and every missing barrier.
// It proves logic, not speed, and nothing about warps or memory order on a GPU.
#pragma once

#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulated {
inline thread_local dim3 thread_index;
inline dim3 block_index;
inline std::barrier<>* block_barrier = nullptr;
inline int multiprocessors = 1;
inline long launches = 0;
}  // namespace emulated

#define threadIdx (::emulated::thread_index)
#define blockIdx (::emulated::block_index)
inline void __syncthreads() {
    emulated::block_barrier->arrive_and_wait();
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
using cudaStream_t = void*;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

inline const char* cudaGetErrorString(cudaError_t) {
    return "invalid argument";
}
inline const char* cudaGetErrorName(cudaError_t) {
    return "cudaErrorInvalidValue";
}
inline cudaError_t cudaGetDevice(int* device) {
    return *device = 0, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    return *value = emulated::multiprocessors, cudaSuccess;
}

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const unsigned blocks = config->gridDim.x;
    const unsigned threads = config->blockDim.x;
    if (blocks == 0 || threads == 0 || threads > 1024) {
        return cudaErrorInvalidValue;
    }
    ++emulated::launches;
    const std::tuple<Parameters...> values(arguments...);
    std::barrier<> inside(threads);
    std::barrier<> between(threads);
    emulated::block_barrier = &inside;
    std::vector<std::thread> team;
    for (unsigned thread = 0; thread < threads; ++thread) {
        team.emplace_back([&, thread] {
            emulated::thread_index = dim3(thread, 0, 0);
            for (unsigned block = 0; block < blocks; ++block) {
                if (thread == 0) {
                    emulated::block_index = dim3(block, 0, 0);
                }
                between.arrive_and_wait();
                std::apply(kernel, values);
                between.arrive_and_wait();
            }
        });
    }
    for (auto& member : team) {
        member.join();
    }
    return cudaSuccess;
}

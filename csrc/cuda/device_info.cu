// SPDX-License-Identifier: Apache-2.0
//
// What the machine offers and whether this library's GPU code fits it. Diagnostics only.

#include "device_info.h"

#include <cuda_runtime.h>

#include "check.h"

#define PYPRUNE_TEXT_OF(...) #__VA_ARGS__
#define PYPRUNE_TEXT(...) PYPRUNE_TEXT_OF(__VA_ARGS__)

namespace pyprune::cuda {
namespace {

// Compiled for the same architectures as every other kernel: if this one loads, they do.
__global__ void probe() {}

std::string text_of(cudaError_t status) {
    return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ")";
}

}  // namespace

int device_count() noexcept {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        (void)cudaGetLastError();  // a missing GPU is an answer here, not a pending error
        return 0;
    }
    return count;
}

std::string no_device_reason() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
        return text_of(status);
    }
    return count > 0 ? "" : "no CUDA device";
}

int runtime_version() {
    int version = 0;
    check(cudaRuntimeGetVersion(&version), "CUDA runtime version");
    return version;
}

int driver_version() {
    int version = 0;
    check(cudaDriverGetVersion(&version), "CUDA driver version");
    return version;
}

std::string compiled_archs() {
#ifdef __CUDA_ARCH_LIST__
    return PYPRUNE_TEXT(__CUDA_ARCH_LIST__);
#else
    return "";
#endif
}

std::string load_problem(int device) {
    int previous = 0;
    check(cudaGetDevice(&previous), "current device");
    check(cudaSetDevice(device), "select device");
    cudaFuncAttributes attributes = {};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, probe);
    if (status != cudaSuccess) {
        (void)cudaGetLastError();
    }
    check(cudaSetDevice(previous), "restore device");
    return status == cudaSuccess ? "" : text_of(status);
}

}  // namespace pyprune::cuda

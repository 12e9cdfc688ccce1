// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace pyprune::cuda {

/// Throw with the CUDA runtime's own text when a call failed. Never synchronises, so a fault inside
/// a running kernel surfaces at whichever later call the runtime reports it from.
inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) + " (" +
                                 cudaGetErrorName(status) + ")");
    }
}

}  // namespace pyprune::cuda

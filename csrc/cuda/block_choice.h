// SPDX-License-Identifier: Apache-2.0
// What a block of threads does together for one group of rows: the cheapest block of columns, and its factor; of
// block_obs.cu.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "block_obs.h"

namespace pyprune::cuda {

constexpr int kChoosers = 256;  // threads

__device__ __forceinline__ int pair_index(int a, int b) {
    return a * (a + 1) / 2 + b;
}

/// The first block of least score, or -1 where all are infinite; a barrier.
__device__ inline std::int64_t cheapest(const double* score, std::int64_t blocks) {
    __shared__ double costs[kChoosers];
    __shared__ std::int64_t places[kChoosers];
    double least = INFINITY;
    std::int64_t found = -1;
    for (std::int64_t t = threadIdx.x; t < blocks; t += kChoosers) {
        if (score[t] < least) {
            least = score[t];
            found = t;
        }
    }
    costs[threadIdx.x] = least;
    places[threadIdx.x] = found;
    for (unsigned half = kChoosers / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            const double cost = costs[threadIdx.x + half];
            const std::int64_t place = places[threadIdx.x + half];
            const bool lower = place >= 0 && place < places[threadIdx.x];
            if (cost < costs[threadIdx.x] || (cost == costs[threadIdx.x] && lower)) {
                costs[threadIdx.x] = cost;
                places[threadIdx.x] = place;
            }
        }
    }
    __syncthreads();
    return places[0];
}

/// The factor of block t in shared memory, rows kWidestBlock apart; reciprocals on its diagonal. Ends in a barrier.
__device__ inline void factor_block(double* root, const double* diagonal, std::int64_t t, const BlockObsShape& shape) {
    const int width = static_cast<int>(shape.width);
    for (int entry = static_cast<int>(threadIdx.x); entry < width * width; entry += kChoosers) {
        const int a = entry / width, b = entry % width;
        if (b <= a) {
            root[a * kWidestBlock + b] = diagonal[pair_index(a, b) * shape.blocks + t];
        }
    }
    __syncthreads();
    for (int c = 0; c < width; ++c) {
        const double inverse = 1.0 / sqrt(root[c * kWidestBlock + c]);
        for (int a = c + 1 + static_cast<int>(threadIdx.x); a < width; a += kChoosers) {
            root[a * kWidestBlock + c] *= inverse;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            root[c * kWidestBlock + c] = inverse;
        }
        const int rest = width - c - 1;
        for (int entry = static_cast<int>(threadIdx.x); entry < rest * rest; entry += kChoosers) {
            const int a = c + 1 + entry / rest, b = c + 1 + entry % rest;
            if (b <= a) {
                root[a * kWidestBlock + b] -= root[a * kWidestBlock + c] * root[b * kWidestBlock + c];
            }
        }
        __syncthreads();
    }
}

}  // namespace pyprune::cuda

// SPDX-License-Identifier: Apache-2.0
// Tiles of 32 x 32 float32, the entries of a column neighbours, and what one warp does with them. A packed lower
// triangle of tiles is a Cholesky factor whose diagonal tiles are kept inverted.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "block.h"

namespace pyprune::cuda {

constexpr int kTile = 32;
constexpr int kTileSize = kTile * kTile;
constexpr int kDown = 8, kAcross = 4;  // a lane's part of a tile
constexpr int kLanesDown = kTile / kDown;

__host__ __device__ __forceinline__ std::int64_t tiles_of(std::int64_t side) {
    return (side + kTile - 1) / kTile;
}
/// Where tile (i, j) of a packed triangle begins.
__host__ __device__ __forceinline__ std::int64_t tile_at(std::int64_t i, std::int64_t j) {
    return (i * (i + 1) / 2 + j) * kTileSize;
}

/// matrix[index, index], tile (i, j), by one warp.
__device__ __forceinline__ void gather(float* tile, const float* __restrict__ matrix, const int* index, int n,
                                       std::int64_t columns, int i, int j) {
    const int a = i * kTile + lane();
    const std::int64_t own = a < n ? index[a] : -1;
#pragma unroll 8
    for (int c = 0; c < kTile; ++c) {
        const int b = j * kTile + c;
        float value = a == b ? 1.0f : 0.0f;
        if (own >= 0 && b < n) {
            value = matrix[index[b] * columns + own];  // symmetric: neighbouring lanes read neighbouring columns
        }
        tile[c * kTile + lane()] = value;
    }
}

/// A lane's part of a tile: rows kDown (lane % kLanesDown) .., columns kAcross (lane / kLanesDown) ..
struct Part {
    float at[kAcross][kDown];

    __device__ __forceinline__ static int row() { return lane() % kLanesDown * kDown; }
    __device__ __forceinline__ static int column() { return lane() / kLanesDown * kAcross; }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int c = 0; c < kAcross; ++c) {
#pragma unroll
            for (int r = 0; r < kDown; ++r) {
                at[c][r] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ void load(const float* tile) {
#pragma unroll
        for (int c = 0; c < kAcross; ++c) {
#pragma unroll
            for (int r = 0; r < kDown; r += 4) {
                const Pack<float> pack = load_pack(tile + (column() + c) * kTile + row() + r);
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    at[c][r + q] = pack.at[q];
                }
            }
        }
    }

    __device__ __forceinline__ void store(float* tile, float sign) const {
#pragma unroll
        for (int c = 0; c < kAcross; ++c) {
#pragma unroll
            for (int r = 0; r < kDown; r += 4) {
                Pack<float> pack;
#pragma unroll
                for (int q = 0; q < 4; ++q) {
                    pack.at[q] = sign * at[c][r + q];
                }
                store_pack(tile + (column() + c) * kTile + row() + r, pack);
            }
        }
    }

    /// this -= left right^T
    __device__ __forceinline__ void subtract(const float* left, const float* right) {
#pragma unroll 4
        for (int k = 0; k < kTile; ++k) {
            const Pack<float> low = load_pack(left + k * kTile + row());
            const Pack<float> high = load_pack(left + k * kTile + row() + 4);
            const Pack<float> across = load_pack(right + k * kTile + column());
#pragma unroll
            for (int c = 0; c < kAcross; ++c) {
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    at[c][r] -= across.at[c] * low.at[r];
                    at[c][r + 4] -= across.at[c] * high.at[r];
                }
            }
        }
    }
};

/// The inverse of a diagonal tile's Cholesky factor, by one warp: lane i has row i. Returns kTile, or the first pivot
/// that is not above its floor (the lanes hold the floors).
__device__ inline int invert_diagonal(float* out, const float* tile, float floor) {
    float a[kTile], x[kTile];
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
        a[c] = tile[c * kTile + lane()];
    }
    int failed = kTile;
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
        float pivot = __shfl_sync(kAllLanes, a[c], c);
        if (!(pivot > __shfl_sync(kAllLanes, floor, c))) {
            failed = failed < c ? failed : c;
            pivot = 1.0f;
        }
        const float root = 1.0f / sqrtf(pivot);
        a[c] *= root;
#pragma unroll
        for (int j = c + 1; j < kTile; ++j) {
            a[j] -= a[c] * __shfl_sync(kAllLanes, a[c], j);
        }
        a[c] = lane() == c ? root : a[c];  // the diagonal is wanted inverted only
    }
    // X L = I, row by row, from the last column back; above the diagonal X stays zero.
#pragma unroll
    for (int c = kTile - 1; c >= 0; --c) {
        float sum = lane() == c ? 1.0f : 0.0f;
#pragma unroll
        for (int m = c + 1; m < kTile; ++m) {
            sum -= x[m] * __shfl_sync(kAllLanes, a[c], m);
        }
        x[c] = sum * __shfl_sync(kAllLanes, a[c], c);
    }
    __syncwarp();  // `out` may be `tile`
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
        out[c * kTile + lane()] = x[c];
    }
    return failed;
}

/// Smallest pivot that still counts as positive, for lane i that of row i of the tile.
__device__ __forceinline__ float floor_of(const float* __restrict__ matrix, const int* index, int n,
                                          std::int64_t columns, int tile) {
    const int a = tile * kTile + lane();
    return a < n ? FLT_EPSILON * static_cast<float>(n) * matrix[index[a] * (columns + 1)] : 0.0f;
}

/// A tile on its way from memory to shared memory, in the registers of one warp.
struct Flight {
    Pack<float> at[kTileSize / 4 / kWarp];

    __device__ __forceinline__ void fetch(const float* tile) {
#pragma unroll
        for (int q = 0; q < kTileSize / 4 / kWarp; ++q) {
            at[q] = load_pack(tile + (q * kWarp + lane()) * 4);
        }
    }
    __device__ __forceinline__ void land(float* tile) const {
#pragma unroll
        for (int q = 0; q < kTileSize / 4 / kWarp; ++q) {
            store_pack(tile + (q * kWarp + lane()) * 4, at[q]);
        }
    }
};

/// A tile times a vector of shared memory, for lane r row r; and its transpose times one.
__device__ __forceinline__ float times(const float* __restrict__ tile, const float* vector) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kTile; ++c) {
        sum += tile[c * kTile + lane()] * vector[c];
    }
    return sum;
}
__device__ __forceinline__ float transposed_times(const float* __restrict__ tile, const float* vector) {
    float sum = 0.0f;
#pragma unroll
    for (int r = 0; r < kTile; r += 4) {
        const Pack<float> pack = load_pack(tile + lane() * kTile + r);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            sum += pack.at[q] * vector[r + q];
        }
    }
    return sum;
}

}  // namespace pyprune::cuda

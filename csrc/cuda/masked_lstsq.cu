// SPDX-License-Identifier: Apache-2.0
//
// masked_lstsq: for each row a Cholesky factor of matrix[S, S], S its own columns, and solves with it
// (masked_lstsq.h).
//
// Layout. A factor L is a packed lower triangle of 32 x 32 tiles; in a tile the entries of one column are neighbours.
// The diagonal tiles hold the inverses X of L's diagonal tiles, which is all that is ever asked of them. A side that
// is not a multiple of 32 is padded with ones on the diagonal.
//
// Algorithm. One block a row; S is compacted from the mask, and matrix[S, S] is gathered tile by tile, never stored.
// A warp owns a tile of a product, a lane 8 x 4 of its entries: 32 fused multiply-adds for three 16-byte reads of
// shared memory.
//   on chip     the whole triangle in shared memory, right-looking: X of the diagonal tile in the registers of one
//               warp, a product for each tile below, one for each tile of what is left. Up to 320 columns in 227 KiB,
//               256 in 163.
//   by tiles    any side, left-looking: a block column takes everything to its left, which comes from `factors`,
//               eight tiles at a time; the next tiles are on their way into registers while these are multiplied.
// Solves are by tiles, forward and back, the vector in shared memory.
//
// Cost of a row with n = |S|:
//   operations  n^3 / 3, and 2 n^2 a solve
//   bytes       gather 2 n^2, at full sectors where more than one column of eight is kept; factors 2 n^2 written once
//               and read once a solve; by tiles n^3 / 48 more are read: 16 operations a byte, from L2 or memory
// Blocks on a multiprocessor of sm_90: on chip 1 above 224 columns (shared memory), 2 above 128, 4 above 64 (blocks
// of 128 threads), 8 up to 64 (of 64), then registers; by tiles 2, solves 4. Not measured on a GPU yet.

#include "masked_lstsq.h"

#include <cuda_runtime.h>

#include <climits>
#include <stdexcept>
#include <string>

#include "block.h"
#include "check.h"
#include "tile.h"

namespace pyprune::cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int kMostWarps = kMostThreads / kWarp;
/// The columns of this block's row into `index`, in ascending order; their number.
__device__ int compact(int* index, const MaskedRows& problem) {
    __shared__ int counts[kMostWarps];
    const std::uint8_t* mask = problem.mask + blockIdx.x * problem.columns;
    const int threads = static_cast<int>(blockDim.x);
    int found = 0;
    for (std::int64_t first = 0; first < problem.columns; first += threads) {
        const std::int64_t column = first + threadIdx.x;
        const bool mine = column < problem.columns && (mask[column] != 0) == problem.wanted;
        const unsigned votes = __ballot_sync(kAllLanes, mine);
        if (lane() == 0) {
            counts[warp()] = __popc(votes);
        }
        __syncthreads();
        int place = found + __popc(votes & ((1u << lane()) - 1u));
        for (int other = 0; other < threads / kWarp; ++other) {
            place += other < warp() ? counts[other] : 0;
            found += counts[other];
        }
        if (mine && place < problem.side) {
            index[place] = static_cast<int>(column);
        }
        __syncthreads();
    }
    return found < problem.side ? found : static_cast<int>(problem.side);
}

/// Row and column of the t-th tile of a triangle, counted row by row.
__device__ __forceinline__ void triangle(int t, int& i, int& j) {
    i = 0;
    while ((i + 1) * (i + 2) / 2 <= t) {
        ++i;
    }
    j = t - i * (i + 1) / 2;
}

__global__ void __launch_bounds__(kMostThreads)
    factor_on_chip(float* __restrict__ factors, std::int64_t* __restrict__ status, const float* __restrict__ matrix,
                   MaskedRows problem) {
    __shared__ int failed;
    const std::int64_t size = tile_at(tiles_of(problem.side), 0);
    auto* const l = reinterpret_cast<float*>(dynamic_shared());
    auto* const index = reinterpret_cast<int*>(l + size);
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    if (threadIdx.x == 0) {
        failed = 0;
    }
    const int n = compact(index, problem);
    const int tiles = static_cast<int>(tiles_of(n));
    for (int t = warp(); t < tiles * (tiles + 1) / 2; t += warps) {
        int i, j;
        triangle(t, i, j);
        gather(l + tile_at(i, j), matrix, index, n, problem.columns, i, j);
    }
    __syncthreads();
    for (int j = 0; j < tiles; ++j) {
        if (warp() == 0) {
            float* const diagonal = l + tile_at(j, j);
            const int pivot = invert_diagonal(diagonal, diagonal, floor_of(matrix, index, n, problem.columns, j));
            if (lane() == 0 && pivot < kTile) {
                failed = 1 + j * kTile + pivot;
            }
        }
        __syncthreads();
        if (failed != 0) {
            break;
        }
        for (int i = j + 1 + warp(); i < tiles; i += warps) {
            Part part;
            part.clear();
            part.subtract(l + tile_at(i, j), l + tile_at(j, j));
            __syncwarp();
            part.store(l + tile_at(i, j), -1.0f);
        }
        __syncthreads();
        const int rest = tiles - j - 1;
        for (int t = warp(); t < rest * (rest + 1) / 2; t += warps) {
            int down, across;
            triangle(t, down, across);
            float* const tile = l + tile_at(j + 1 + down, j + 1 + across);
            Part part;
            part.load(tile);
            part.subtract(l + tile_at(j + 1 + down, j), l + tile_at(j + 1 + across, j));
            part.store(tile, 1.0f);
        }
        __syncthreads();
    }
    float* const target = factors + static_cast<std::int64_t>(blockIdx.x) * size;
    for (std::int64_t q = threadIdx.x * 4; q < tile_at(tiles, 0); q += blockDim.x * 4) {
        store_pack(target + q, load_pack(l + q));
    }
    if (threadIdx.x == 0) {
        status[blockIdx.x] = failed;
    }
}

/// Block column j before its diagonal tile is known: what is to the left, subtracted.
__device__ __forceinline__ void take_left(float* l, float (*own)[kTileSize], float* shared_tile,
                                          const float* __restrict__ matrix, const int* index, int n,
                                          std::int64_t columns, int j, int tiles) {
    float* const mine = own[warp()];
    const int offset = static_cast<int>(threadIdx.x) * 4;  // kMostThreads * 4 elements: a tile
    for (int first = j; first < tiles; first += kMostWarps) {
        const int i = first + warp();
        const bool real = i < tiles;
        Part part;
        Flight next;
        Pack<float> next_shared;
        part.clear();
        if (real) {
            gather(mine, matrix, index, n, columns, i, j);
            __syncwarp();
            part.load(mine);
            __syncwarp();
        }
        if (j > 0) {
            next_shared = load_pack(l + tile_at(j, 0) + offset);
            if (real) {
                next.fetch(l + tile_at(i, 0));
            }
        }
        for (int k = 0; k < j; ++k) {
            store_pack(shared_tile + offset, next_shared);
            if (real) {
                next.land(mine);
            }
            __syncthreads();
            if (k + 1 < j) {
                next_shared = load_pack(l + tile_at(j, k + 1) + offset);
                if (real) {
                    next.fetch(l + tile_at(i, k + 1));
                }
            }
            if (real) {
                part.subtract(mine, shared_tile);
            }
            __syncthreads();
        }
        if (real) {
            part.store(l + tile_at(i, j), 1.0f);
        }
        __syncwarp();
    }
}

__global__ void __launch_bounds__(kMostThreads, 2)
    factor_by_tiles(float* factors, std::int64_t* __restrict__ status, const float* __restrict__ matrix,
                    MaskedRows problem) {
    __shared__ __align__(16) float own[kMostWarps][kTileSize];
    __shared__ __align__(16) float shared_tile[kTileSize];
    __shared__ int failed;
    auto* const index = reinterpret_cast<int*>(dynamic_shared());
    float* const l = factors + static_cast<std::int64_t>(blockIdx.x) * tile_at(tiles_of(problem.side), 0);
    if (threadIdx.x == 0) {
        failed = 0;
    }
    const int n = compact(index, problem);
    const int tiles = static_cast<int>(tiles_of(n));
    __syncthreads();
    for (int j = 0; j < tiles; ++j) {
        take_left(l, own, shared_tile, matrix, index, n, problem.columns, j, tiles);
        __syncthreads();
        if (warp() == 0) {
            float* const diagonal = l + tile_at(j, j);
            const int pivot = invert_diagonal(shared_tile, diagonal, floor_of(matrix, index, n, problem.columns, j));
            for (int q = lane(); q < kTileSize; q += kWarp) {
                diagonal[q] = shared_tile[q];
            }
            if (lane() == 0 && pivot < kTile) {
                failed = 1 + j * kTile + pivot;
            }
        }
        __syncthreads();
        if (failed != 0) {
            break;
        }
        for (int i = j + 1 + warp(); i < tiles; i += kMostWarps) {
            Part part;
            Flight tile;
            tile.fetch(l + tile_at(i, j));
            tile.land(own[warp()]);
            __syncwarp();
            part.clear();
            part.subtract(own[warp()], shared_tile);
            part.store(l + tile_at(i, j), -1.0f);
            __syncwarp();
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        status[blockIdx.x] = failed;
    }
}

__global__ void __launch_bounds__(kMostThreads) solve_by_tiles(double* __restrict__ out, const double* __restrict__ rhs,
                                                               const float* __restrict__ factors, MaskedRows problem) {
    const std::int64_t most = tiles_of(problem.side);
    auto* const b = reinterpret_cast<float*>(dynamic_shared());
    auto* const index = reinterpret_cast<int*>(b + most * kTile);
    const float* const l = factors + static_cast<std::int64_t>(blockIdx.x) * tile_at(most, 0);
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    const int n = compact(index, problem);
    const int tiles = static_cast<int>(tiles_of(n));
    const std::int64_t row = blockIdx.x * problem.columns;
    for (int a = static_cast<int>(threadIdx.x); a < tiles * kTile; a += static_cast<int>(blockDim.x)) {
        b[a] = a < n ? static_cast<float>(rhs[row + index[a]]) : 0.0f;
    }
    __syncthreads();
    for (int j = 0; j < tiles; ++j) {
        if (warp() == 0) {
            const float value = times(l + tile_at(j, j), b + j * kTile);
            __syncwarp();
            b[j * kTile + lane()] = value;
        }
        __syncthreads();
        for (int i = j + 1 + warp(); i < tiles; i += warps) {
            b[i * kTile + lane()] -= times(l + tile_at(i, j), b + j * kTile);
        }
        __syncthreads();
    }
    for (int j = tiles - 1; j >= 0; --j) {
        if (warp() == 0) {
            const float value = transposed_times(l + tile_at(j, j), b + j * kTile);
            __syncwarp();
            b[j * kTile + lane()] = value;
        }
        __syncthreads();
        for (int i = warp(); i < j; i += warps) {
            b[i * kTile + lane()] -= transposed_times(l + tile_at(j, i), b + j * kTile);
        }
        __syncthreads();
    }
    for (int a = static_cast<int>(threadIdx.x); a < n; a += static_cast<int>(blockDim.x)) {
        out[row + index[a]] = static_cast<double>(b[a]);
    }
}

/// Small systems get small blocks: more of them on a multiprocessor.
unsigned threads_for(std::int64_t side) {
    const std::int64_t tiles = tiles_of(side);
    return tiles <= 2 ? 64 : tiles <= 4 ? 128 : kMostThreads;
}

std::int64_t index_bytes(std::int64_t side) {
    return (side + 3) / 4 * 16;
}

std::int64_t on_chip_bytes(std::int64_t side) {
    return masked_factor_size(side) * 4 + index_bytes(side);
}

std::int64_t shared_limit() {
    int device = 0, bytes = 0;
    check(cudaGetDevice(&device), "masked_lstsq: current device");
    check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "masked_lstsq: shared memory of a block");
    return bytes - 1024;  // static arrays, and what the runtime keeps for itself
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const MaskedRows& problem, unsigned threads, std::int64_t bytes,
            void* stream, const char* what, Arguments... arguments) {
    if (problem.rows > INT_MAX) {
        throw std::runtime_error(std::string(what) + ": too many rows for one launch");
    }
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), what);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(problem.rows));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, arguments..., problem), what);
}

}  // namespace

std::int64_t masked_factor_size(std::int64_t side) {
    return tile_at(tiles_of(side), 0);
}

std::int64_t masked_factor_on_chip() {
    const std::int64_t limit = shared_limit();
    std::int64_t side = 0;
    while (on_chip_bytes(side + kTile) <= limit) {
        side += kTile;
    }
    return side;
}

void masked_factor(float* factors, std::int64_t* status, const float* matrix, const MaskedRows& problem, void* stream) {
    if (problem.rows <= 0) {
        return;
    }
    if (problem.side <= masked_factor_on_chip()) {
        launch(factor_on_chip, problem, threads_for(problem.side), on_chip_bytes(problem.side), stream,
               "masked_lstsq: factor on chip", factors, status, matrix);
    } else {
        launch(factor_by_tiles, problem, kMostThreads, index_bytes(problem.side), stream,
               "masked_lstsq: factor by tiles", factors, status, matrix);
    }
}

void masked_solve(double* out, const double* rhs, const float* factors, const MaskedRows& problem, void* stream) {
    if (problem.rows <= 0 || problem.side <= 0) {
        return;
    }
    launch(solve_by_tiles, problem, threads_for(problem.side),
           tiles_of(problem.side) * kTile * 4 + index_bytes(problem.side), stream, "masked_lstsq: solve", out, rhs,
           factors);
}

}  // namespace pyprune::cuda

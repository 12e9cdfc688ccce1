// SPDX-License-Identifier: Apache-2.0
//
// gram: out += sum over kept tokens of x_t^T x_t (contract and accuracy in gram.h).
//
// Algorithm. One block of 128 threads owns one Tile x Tile piece of out on or below the diagonal
// and walks over all tokens, 16 at a time: two panels [16, Tile] of x go through registers into a
// double-buffered shared array as float32, and each thread keeps a MicroRows x MicroCols patch.
// Every 256 tokens the float32 patch is folded into a float64 one and cleared. Pieces below the
// diagonal are added a second time, transposed. One owner per element: no atomics, no workspace.
//
// Cost, with T tokens, C columns, element size s, tile B:
//   operations   T C (C + B) (half of a full product), all on float32 lanes
//   bytes        T C (C + B) s / B read through L2, T C s of them from memory if x fits in L2;
//                32 B of out read and written per pair of mirrored elements (once per call)
//   folding      one float64 add per 256 fused multiply-adds: 1/128 of the time where float64 runs
//                at half rate (sm_80, sm_90), about 1/4 where it runs at 1/64
//
// The tile is 64 when that fills the device, else 32: at C = 384 there are 21 pieces of 64 but 78
// of 32. What remains for later: tensor cores for the 16-bit types, vector loads where aligned, and
// a two-stage split over tokens for narrow x.

#include "gram.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <climits>
#include <string>

#include "check.h"

namespace pyprune::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kDepth = 16;   // tokens per panel
constexpr int kChain = 256;  // tokens per float32 chain; a multiple of kDepth

__device__ __forceinline__ float to_float(float value) {
    return value;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
    return __bfloat162float(value);
}
__device__ __forceinline__ float to_float(__half value) {
    return __half2float(value);
}

/// Row and column of the index-th tile of the lower triangle, counted row by row.
__device__ __forceinline__ void lower_tile(unsigned index, int& row, int& column) {
    // sqrtf is off by far less than one row; the loops settle the rounding exactly.
    unsigned guess = static_cast<unsigned>((sqrtf(8.0f * static_cast<float>(index) + 1.0f) - 1.0f) * 0.5f);
    while (static_cast<std::uint64_t>(guess) * (guess + 1) / 2 > index) {
        --guess;
    }
    while (static_cast<std::uint64_t>(guess + 1) * (guess + 2) / 2 <= index) {
        ++guess;
    }
    row = static_cast<int>(guess);
    column = static_cast<int>(index - static_cast<std::uint64_t>(guess) * (guess + 1) / 2);
}

template <typename Element, int Tile, int MicroRows, int MicroCols>
__global__ void __launch_bounds__(kThreads)
    gram_kernel(double* __restrict__ out, const Element* __restrict__ x, std::int64_t tokens, std::int64_t columns,
                std::int64_t row_stride, const std::uint8_t* __restrict__ keep) {
    static_assert((Tile / MicroRows) * (Tile / MicroCols) == kThreads, "one patch per thread");
    static_assert(kThreads % Tile == 0 && kChain % kDepth == 0, "whole rows and whole panels");
    constexpr int kTokensPerPass = kThreads / Tile;
    constexpr int kPasses = kDepth / kTokensPerPass;
    constexpr int kAcross = Tile / MicroCols;

    __shared__ __align__(16) float panels[2][2][kDepth][Tile];  // [buffer][side][token][column]

    int tile_row, tile_column;
    lower_tile(blockIdx.x, tile_row, tile_column);
    const bool diagonal = tile_row == tile_column;
    const int right = diagonal ? 0 : 1;  // on the diagonal both sides are the same panel
    const std::int64_t first_row = static_cast<std::int64_t>(tile_row) * Tile;
    const std::int64_t first_column = static_cast<std::int64_t>(tile_column) * Tile;

    const int thread = static_cast<int>(threadIdx.x);
    const int load_column = thread % Tile;
    const int load_token = thread / Tile;
    const bool left_inside = first_row + load_column < columns;
    const bool right_inside = !diagonal && first_column + load_column < columns;
    const int patch_row = thread / kAcross * MicroRows;
    const int patch_column = thread % kAcross * MicroCols;

    float left_next[kPasses], right_next[kPasses];

    const auto fetch = [&](std::int64_t start) {
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            const std::int64_t token = start + load_token + pass * kTokensPerPass;
            // Select, do not multiply: a dropped token's values are never looked at.
            const bool real = token < tokens && (keep == nullptr || keep[token] != 0);
            const Element* source = x + token * row_stride + load_column;
            left_next[pass] = real && left_inside ? to_float(source[first_row]) : 0.0f;
            right_next[pass] = real && right_inside ? to_float(source[first_column]) : 0.0f;
        }
    };
    const auto stash = [&](int buffer) {
#pragma unroll
        for (int pass = 0; pass < kPasses; ++pass) {
            const int token = load_token + pass * kTokensPerPass;
            panels[buffer][0][token][load_column] = left_next[pass];
            if (!diagonal) {
                panels[buffer][1][token][load_column] = right_next[pass];
            }
        }
    };

    float chain[MicroRows][MicroCols] = {};
    double total[MicroRows][MicroCols] = {};

    fetch(0);
    stash(0);
    __syncthreads();
    int buffer = 0;
    for (std::int64_t start = 0; start < tokens; start += kDepth) {
        const std::int64_t next = start + kDepth;
        const bool more = next < tokens;
        if (more) {
            fetch(next);  // in flight while this panel is multiplied
        }
#pragma unroll
        for (int token = 0; token < kDepth; ++token) {
            float left_part[MicroRows], right_part[MicroCols];
#pragma unroll
            for (int i = 0; i < MicroRows; ++i) {
                left_part[i] = panels[buffer][0][token][patch_row + i];
            }
#pragma unroll
            for (int j = 0; j < MicroCols; ++j) {
                right_part[j] = panels[buffer][right][token][patch_column + j];
            }
#pragma unroll
            for (int i = 0; i < MicroRows; ++i) {
#pragma unroll
                for (int j = 0; j < MicroCols; ++j) {
                    chain[i][j] = fmaf(left_part[i], right_part[j], chain[i][j]);
                }
            }
        }
        if (!more || next % kChain == 0) {
#pragma unroll
            for (int i = 0; i < MicroRows; ++i) {
#pragma unroll
                for (int j = 0; j < MicroCols; ++j) {
                    total[i][j] += static_cast<double>(chain[i][j]);
                    chain[i][j] = 0.0f;
                }
            }
        }
        if (more) {
            stash(buffer ^ 1);  // last read one iteration ago, before the barrier below
        }
        __syncthreads();
        buffer ^= 1;
    }

#pragma unroll
    for (int i = 0; i < MicroRows; ++i) {
#pragma unroll
        for (int j = 0; j < MicroCols; ++j) {
            const std::int64_t row = first_row + patch_row + i;
            const std::int64_t column = first_column + patch_column + j;
            if (row < columns && column < columns) {
                out[row * columns + column] += total[i][j];
                if (!diagonal) {
                    out[column * columns + row] += total[i][j];
                }
            }
        }
    }
}

std::int64_t lower_tiles(std::int64_t columns, int tile) {
    const std::int64_t across = (columns + tile - 1) / tile;
    return across * (across + 1) / 2;
}

template <typename Element, int Tile, int MicroRows, int MicroCols>
void launch_tile(double* out, const void* x, std::int64_t tokens, std::int64_t columns, std::int64_t row_stride,
                 const std::uint8_t* keep, cudaStream_t stream) {
    const std::int64_t blocks = lower_tiles(columns, Tile);
    if (blocks > INT_MAX) {
        throw std::runtime_error("gram: too many columns for one launch: " + std::to_string(columns));
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, gram_kernel<Element, Tile, MicroRows, MicroCols>, out,
                             static_cast<const Element*>(x), tokens, columns, row_stride, keep),
          "gram: launch");
}

template <typename Element>
void launch(double* out, const void* x, std::int64_t tokens, std::int64_t columns, std::int64_t row_stride,
            const std::uint8_t* keep, cudaStream_t stream) {
    int device = 0;
    int processors = 0;
    check(cudaGetDevice(&device), "gram: current device");
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "gram: number of multiprocessors");
    if (lower_tiles(columns, 64) >= processors) {
        launch_tile<Element, 64, 8, 4>(out, x, tokens, columns, row_stride, keep, stream);
    } else {
        launch_tile<Element, 32, 4, 2>(out, x, tokens, columns, row_stride, keep, stream);
    }
}

}  // namespace

void gram(double* out, const void* x, ElementType type, std::int64_t tokens, std::int64_t columns,
          std::int64_t row_stride, const std::uint8_t* keep, void* stream) {
    if (tokens <= 0 || columns <= 0) {
        return;
    }
    const auto queue = static_cast<cudaStream_t>(stream);
    switch (type) {
        case ElementType::float32:
            return launch<float>(out, x, tokens, columns, row_stride, keep, queue);
        case ElementType::bfloat16:
            return launch<__nv_bfloat16>(out, x, tokens, columns, row_stride, keep, queue);
        case ElementType::float16:
            return launch<__half>(out, x, tokens, columns, row_stride, keep, queue);
        case ElementType::float64:
            break;
    }
    throw std::runtime_error("gram: the CUDA kernel takes float32, bfloat16 or float16");
}

}  // namespace pyprune::cuda

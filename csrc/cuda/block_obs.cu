// SPDX-License-Identifier: Apache-2.0
//
// block_obs: exact greedy Optimal Brain Surgeon of blocks, all groups of rows at once (contract in block_obs.h).
//
// Algorithm. That of csrc/cpu/block_obs.cpp, lazy OBS with `width` columns a step, by three launches a step:
//   choose   a block of threads a group: the cheapest block B, the factor A_BB = C C^T in shared memory, w_B C^-T
//   extend   a thread a column: the new rows F = C^-1 (base_B - V_B^T V) of V; weights lose (w_B C^-T) F
//   score    a thread a block: A_TT loses F_T^T F_T, is factored as L D L^T, and costs sum over rows |D^-1/2 L^-1 w_T|^2
// Columns lie in planes, so that neighbouring threads read neighbours in memory. Launches hand values on through global
// memory; within one, a thread reads only what it wrote itself, or what a barrier parts from its writer (choose). After a
// panel of steps the caller makes a new base, base - V^T V, by one batched product, and V starts empty.
//
// Cost of a group of k columns after t steps, d = width t columns since the last base, h = height:
//   operations  per step 2 width k (d + width / 2 + h) to extend, k (width^2 + width^2 / 3 + h width) to score; and
//               2 k^2 a removed column in the caller's product
//   bytes       per step 8 k d of V (once more for every 8 columns of a block), 16 k (width + h) and 8 k (width + 1) of
//               diagonal blocks, twice that with their factors
//   memory      k^2 for the base, panel * k for V, (width + 1) k for diagonal blocks and factors, h k; float64
// Removed columns are carried along: a product for a new base costs three times the least where all goes, 1.7 times where
// half goes. Not measured on a GPU yet.

#include "block_obs.h"

#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <stdexcept>

#include "block_choice.h"
#include "check.h"

namespace pyprune::cuda {
namespace {

constexpr int kColumns = 128;  // threads, of extend and score
constexpr int kDepth = 32;     // rows of V whose coefficients are in shared memory
constexpr std::int64_t kRanOut = -2, kEnded = -1;

struct Job {
    double* weight;
    std::int64_t* order;
    double* loss;
    std::int64_t* state;  // [groups]: the block that goes, or one of the above
    double* chain;
    double* diagonal;
    double* workspace;
    const double* base;
    std::int64_t base_stride;
    const double* floor;
    const std::int64_t* count;
    BlockObsShape shape;
    std::int64_t most;  // rows of V that there is room for

    __host__ __device__ std::int64_t columns() const { return shape.blocks * shape.width; }
    __host__ __device__ std::int64_t pairs() const { return shape.width * (shape.width + 1) / 2; }
    __host__ __device__ std::int64_t own_size() const {
        return shape.width * (shape.width + shape.height) + (pairs() + shape.width + 1) * shape.blocks;
    }
};

/// What one group has in memory.
struct Group {
    double *weight, *chain, *diagonal;  // [height, k], [most, k], [pairs, blocks]
    double *root, *white;               // C [width, width], its diagonal inverted; w_B C^-T [height, width]
    double *score, *factor, *line;      // [blocks], L and D^-1 [pairs, blocks], a whitened row [width, blocks]
    const double* base;

    __device__ Group(const Job& job, std::int64_t group) {
        const BlockObsShape& shape = job.shape;
        const std::int64_t k = job.columns();
        weight = job.weight + group * shape.height * k;
        chain = job.chain + group * job.most * k;
        diagonal = job.diagonal + group * job.pairs() * shape.blocks;
        root = job.workspace + group * job.own_size();
        white = root + shape.width * shape.width;
        score = white + shape.height * shape.width;
        factor = score + shape.blocks;
        line = factor + job.pairs() * shape.blocks;
        base = job.base + group * job.base_stride;
    }
};

__global__ void __launch_bounds__(kChoosers) choose_kernel(Job job, std::int64_t step) {
    __shared__ double root[kWidestBlock * kWidestBlock];
    const BlockObsShape& shape = job.shape;
    const std::int64_t index = blockIdx.x, before = job.state[index];
    const Group group(job, index);
    std::int64_t t = before == kRanOut ? kRanOut : kEnded;
    if (before != kRanOut && step < job.count[index]) {  // the same for the whole block of threads
        const std::int64_t found = cheapest(group.score, shape.blocks);
        t = found < 0 ? kRanOut : found;
    }
    __syncthreads();  // all have read the state
    if (threadIdx.x == 0) {
        job.state[index] = t;
        job.order[index * shape.steps + step] = t < 0 ? -1 : t;
        job.loss[index * shape.steps + step] = t >= 0 ? group.score[t] : t == kRanOut ? static_cast<double>(NAN) : 0.0;
    }
    if (t < 0) {
        return;
    }
    factor_block(root, group.diagonal, t, shape);
    const std::int64_t width = shape.width, k = job.columns();
    for (std::int64_t entry = threadIdx.x; entry < width * width; entry += kChoosers) {
        group.root[entry] = root[entry / width * kWidestBlock + entry % width];
    }
    for (std::int64_t r = threadIdx.x; r < shape.height; r += kChoosers) {
        double* const white = group.white + r * width;
        for (std::int64_t a = 0; a < width; ++a) {
            double sum = group.weight[r * k + a * shape.blocks + t];
            for (std::int64_t c = 0; c < a; ++c) {
                sum -= root[a * kWidestBlock + c] * white[c];
            }
            white[a] = sum * root[a * kWidestBlock + a];
        }
    }
}

/// A group, and a tile of what it has many of.
struct Tile {
    std::int64_t group, item;

    __device__ explicit Tile(std::int64_t count) {
        const std::int64_t tiles = (count + kColumns - 1) / kColumns;
        group = blockIdx.x / tiles;
        item = blockIdx.x % tiles * kColumns + threadIdx.x;
    }
};

/// `rows` columns of a block at a time.
template <int rows>
__global__ void __launch_bounds__(kColumns) extend_kernel(Job job, std::int64_t depth) {
    __shared__ double coefficient[kDepth * rows];
    const BlockObsShape& shape = job.shape;
    const std::int64_t k = job.columns();
    const int width = static_cast<int>(shape.width), blocks = static_cast<int>(shape.blocks);
    const Tile tile(k);
    const std::int64_t t = job.state[tile.group];
    if (t < 0) {
        return;
    }
    const Group group(job, tile.group);
    const std::int64_t j = tile.item < k ? tile.item : k - 1;  // beyond the last: a copy of it that is not stored
    for (int first = 0; first < width; first += rows) {
        double sum[rows];
#pragma unroll
        for (int a = 0; a < rows; ++a) {
            const int own = first + a < width ? first + a : width - 1;
            sum[a] = group.base[(own * blocks + t) * k + j];
        }
        for (std::int64_t above = 0; above < depth; above += kDepth) {
            const int count = static_cast<int>(depth - above < kDepth ? depth - above : kDepth);
            __syncthreads();  // the coefficients before these have been read
            for (int entry = static_cast<int>(threadIdx.x); entry < count * rows; entry += kColumns) {
                const int a = first + entry % rows;
                coefficient[entry] = a < width ? group.chain[(above + entry / rows) * k + a * blocks + t] : 0.0;
            }
            __syncthreads();
            const double* line = group.chain + above * k + j;
#pragma unroll 4
            for (int q = 0; q < count; ++q, line += k) {
                const double value = *line;
#pragma unroll
                for (int a = 0; a < rows; ++a) {
                    sum[a] -= coefficient[q * rows + a] * value;
                }
            }
        }
#pragma unroll
        for (int a = 0; a < rows; ++a) {
            if (first + a < width && tile.item < k) {
                group.chain[(depth + first + a) * k + j] = sum[a];
            }
        }
    }
    if (tile.item >= k) {
        return;
    }
    double* const fresh = group.chain + depth * k + j;
    for (int a = 0; a < width; ++a) {
        double sum = fresh[a * k];
        for (int c = 0; c < a; ++c) {
            sum -= group.root[a * width + c] * fresh[c * k];
        }
        fresh[a * k] = sum * group.root[a * width + a];
    }
    for (std::int64_t r = 0; r < shape.height; ++r) {
        double sum = group.weight[r * k + j];
        for (int a = 0; a < width; ++a) {
            sum -= group.white[r * width + a] * fresh[a * k];
        }
        group.weight[r * k + j] = sum;
    }
}

/// The blocks of one thread's place: entry (a, b) of a triangle, or column a of a row.
struct Strided {
    double* at;
    int stride;

    __device__ __forceinline__ double& operator()(int a, int b) const { return at[pair_index(a, b) * stride]; }
    __device__ __forceinline__ double& operator[](int a) const { return at[a * stride]; }
};

/// L D L^T of a block, D inverted; whether all pivots are above their floors.
__device__ bool factor_for_score(const Strided& factor, const Strided& diagonal, const double* floor, int width) {
    bool positive = true;
    for (int a = 0; a < width; ++a) {
        for (int b = 0; b < a; ++b) {  // holds L D until the row is complete
            double sum = diagonal(a, b);
            for (int c = 0; c < b; ++c) {
                sum -= factor(a, c) * factor(b, c);
            }
            factor(a, b) = sum;
        }
        double pivot = diagonal(a, a);
        for (int c = 0; c < a; ++c) {
            const double scaled = factor(a, c), entry = scaled * factor(c, c);
            pivot -= scaled * entry;
            factor(a, c) = entry;
        }
        positive &= pivot > floor[a * diagonal.stride];
        factor(a, a) = 1.0 / (positive ? pivot : 1.0);
    }
    return positive;
}

/// A_TT less F_T^T F_T.
__device__ void lose(const Strided& diagonal, const double* fresh, std::int64_t k, int width) {
    for (int a = 0; a < width; ++a) {
        for (int b = 0; b <= a; ++b) {
            const double *left = fresh + a * diagonal.stride, *right = fresh + b * diagonal.stride;
            double sum = diagonal(a, b);
            for (int c = 0; c < width; ++c, left += k, right += k) {
                sum -= *left * *right;
            }
            diagonal(a, b) = sum;
        }
    }
}

/// Scores of all open blocks; before that, of `removed`, what the last step took from their part of the inverse.
template <bool removed>
__global__ void __launch_bounds__(kColumns) score_kernel(Job job, std::int64_t depth) {
    const int blocks = static_cast<int>(job.shape.blocks), width = static_cast<int>(job.shape.width);
    const std::int64_t k = job.columns();
    const Tile tile(blocks);
    const std::int64_t gone = removed ? job.state[tile.group] : kEnded;
    if (tile.item >= blocks || (removed && gone < 0)) {
        return;
    }
    const Group group(job, tile.group);
    const Strided diagonal{group.diagonal + tile.item, blocks};
    if (tile.item == gone) {
        diagonal(0, 0) = -static_cast<double>(INFINITY);  // never above its floor
    }
    if (removed && diagonal(0, 0) > -static_cast<double>(INFINITY)) {
        lose(diagonal, group.chain + depth * k + tile.item, k, width);
    }
    const Strided factor{group.factor + tile.item, blocks}, line{group.line + tile.item, blocks};
    const double* const floor = job.floor + tile.item;
    if (!(diagonal(0, 0) > *floor) || !factor_for_score(factor, diagonal, floor, width)) {
        group.score[tile.item] = INFINITY;
        return;
    }
    double total = 0.0;
    const double* weight = group.weight + tile.item;
    for (std::int64_t r = 0; r < job.shape.height; ++r, weight += k) {
        for (int a = 0; a < width; ++a) {
            double sum = weight[a * blocks];
            for (int c = 0; c < a; ++c) {
                sum -= factor(a, c) * line[c];
            }
            line[a] = sum;
            total += sum * sum * factor(a, a);
        }
    }
    group.score[tile.item] = total;
}

template <typename Kernel>
void launch(Kernel* kernel, const Job& job, std::int64_t argument, std::int64_t count, int threads, void* stream,
            const char* what) {
    const std::int64_t grid = job.shape.groups * ((count + threads - 1) / threads);
    if (grid > INT_MAX) {
        throw std::runtime_error("block_obs: too many groups at once");
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(grid));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, job, argument), what);
}

}  // namespace

std::int64_t block_obs_workspace(const BlockObsShape& shape) {
    Job job = {};
    job.shape = shape;
    return job.own_size();
}

void block_obs(double* weight, std::int64_t* order, double* loss, std::int64_t* state, double* chain, double* diagonal,
               double* workspace, const double* base, std::int64_t base_stride, const double* floor,
               const std::int64_t* count, const BlockObsShape& shape, std::int64_t first, std::int64_t last,
               void* stream) {
    if (shape.width < 1 || shape.width > kWidestBlock) {
        throw std::runtime_error("block_obs: the CUDA kernels take blocks of 1 to 64 columns");
    }
    if (shape.groups <= 0 || shape.blocks <= 0) {
        return;
    }
    if (shape.blocks * shape.width * (shape.width + 1) / 2 > INT_MAX) {
        throw std::runtime_error("block_obs: too many columns");
    }
    const Job job = {weight,
                     order,
                     loss,
                     state,
                     chain,
                     diagonal,
                     workspace,
                     base,
                     base_stride,
                     floor,
                     count,
                     shape,
                     (last - first) * shape.width};
    const std::int64_t k = job.columns();
    if (first == 0) {
        launch(score_kernel<false>, job, 0, shape.blocks, kColumns, stream, "block_obs: first scores");
    }
    for (std::int64_t step = first; step < last; ++step) {
        const std::int64_t depth = (step - first) * shape.width;
        launch(choose_kernel, job, step, 1, kChoosers, stream, "block_obs: choice");
        const auto extend = shape.width == 1   ? extend_kernel<1>
                            : shape.width <= 4 ? extend_kernel<4>
                                               : extend_kernel<8>;
        launch(extend, job, depth, k, kColumns, stream, "block_obs: rows");
        launch(score_kernel<true>, job, depth, shape.blocks, kColumns, stream, "block_obs: scores");
    }
}

}  // namespace pyprune::cuda

// SPDX-License-Identifier: Apache-2.0
//
// spmm: y = activation(scale (x W^T) + bias), W in tiles (contract in spmm.h).
//
// Algorithm: read sparse, multiply dense, after Flash-LLM (Xia et al., VLDB 2024) and SpInfer (Fan et al., EuroSys
// 2025). A block of threads owns one or two rows of cells and its own tokens; its warps take turns along the columns. A
// warp copies the values of its next cells to shared memory (cp.async) while it multiplies those it has. A lane knows
// its 32 weights of a cell by one word of mask; byte counts, summed over the warp, are the places of its values, read
// one by one in the order in which mma.m16n8k16 wants them. float32 goes to float32 lanes in the same way. Warps' sums
// are added in shared memory in order; where the columns are split over blocks, a second kernel adds the parts.
//
// Cost, with R rows, C columns, density d, value size s, T tokens:
//   bytes        R C (d s + 1/8 + 1/256) of the matrix, each read once; x through the caches, R C T / 16 bytes of
//                16-bit x (R C T / 4 of float32)
//   operations   2 R C T, zeros included
//   decoding     per weight and 8 to 32 tokens 9 to 10 instructions on tensor cores (sm_90, counted in the machine code
//                with that of copies and multiplications): at 90 % zeros more than the bytes take
// Not measured on a GPU yet.

#include "spmm.h"

#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <stdexcept>
#include <string>

#include "check.h"
#include "spmm_cell.h"

namespace pyprune::cuda {
namespace {

constexpr int kStages = 2;
constexpr int kFinishThreads = 256;

__device__ __forceinline__ float read(const void* source, ElementType type, std::int64_t index) {
    switch (type) {
        case ElementType::bfloat16:
            return Bfloat16::to_float(static_cast<const std::uint16_t*>(source)[index]);
        case ElementType::float16:
            return Half::to_float(static_cast<const std::uint16_t*>(source)[index]);
        case ElementType::float64:
            return static_cast<float>(static_cast<const double*>(source)[index]);
        default:
            return static_cast<const float*>(source)[index];
    }
}

__device__ __forceinline__ void write(void* target, ElementType type, std::int64_t index, float value) {
    switch (type) {
        case ElementType::bfloat16:
            static_cast<std::uint16_t*>(target)[index] = Bfloat16::from_float(value);
            break;
        case ElementType::float16:
            static_cast<std::uint16_t*>(target)[index] = Half::from_float(value);
            break;
        default:
            static_cast<float*>(target)[index] = value;
    }
}

__device__ __forceinline__ float finished(float sum, const SpmmEnd& end, std::int64_t row) {
    if (end.bias != nullptr) {
        sum += read(end.bias, end.bias_type, row);
    }
    if (end.activation == Activation::gelu) {
        return 0.5f * sum * erfcf(-0.70710678f * sum);
    }
    return end.activation == Activation::relu ? fmaxf(sum, 0.0f) : sum;
}

struct Job {
    void* y;
    ElementType y_type;
    const void* x;
    std::int64_t tokens, x_stride;
    Tiles weight;
    SpmmEnd end;
    float* parts;
    int splits, passes;  // of the columns, of the tokens
};

/// What a warp needs of a column of cells before it can multiply them.
template <int Cells>
struct Ahead {
    std::int32_t begin[Cells], end[Cells];  // of their values, in units
    std::uint32_t word[Cells];              // this lane's bits
};

template <typename Way>
__global__ void __launch_bounds__(kSpmmWarps* kWarp, 2) spmm_kernel(const Job job) {
    using Value = typename Way::Value;
    constexpr int kCells = Way::kCells, kRows = kCells * kCellRows, kPitch = kRows + 4;  // conflict-free
    const Tiles& weight = job.weight;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    const int across = static_cast<int>((weight.columns + kCellColumns - 1) / kCellColumns);
    const int down = static_cast<int>((weight.rows + kCellRows - 1) / kCellRows);
    const int pass = static_cast<int>(blockIdx.x) % job.passes;  // neighbours share the matrix
    const int split = static_cast<int>(blockIdx.x) / job.passes % job.splits;
    const int group = static_cast<int>(blockIdx.x) / job.passes / job.splits;
    const int last = static_cast<int>(static_cast<std::int64_t>(across) * (split + 1) / job.splits);
    const std::int64_t first_token = static_cast<std::int64_t>(pass) * Way::kTokens;
    const int tokens = static_cast<int>(min(job.tokens - first_token, static_cast<std::int64_t>(Way::kTokens)));
    const auto* const x = static_cast<const typename Way::X*>(job.x) + first_token * job.x_stride;
    char* const own = dynamic_shared() + warp() * kStages * kCells * weight.largest;

    Ahead<kCells> ahead;
    const auto look_up = [&](int column) {
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell) {
            const bool real = column < last && group * kCells + cell < down;
            const std::int64_t number = static_cast<std::int64_t>(group * kCells + cell) * across + column;
            ahead.begin[cell] = real ? weight.starts[number] : 0;
            ahead.end[cell] = real ? weight.starts[number + 1] : 0;
            ahead.word[cell] = real ? weight.bits[number * kWarp + lane()] : 0u;
        }
    };
    const auto fetch = [&](int stage) {
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell) {
            char* const target = own + (stage * kCells + cell) * weight.largest;
            const char* const source = static_cast<const char*>(weight.values) + std::int64_t{16} * ahead.begin[cell];
#pragma unroll 1
            for (int unit = lane(); unit < ahead.end[cell] - ahead.begin[cell]; unit += kWarp) {
                __pipeline_memcpy_async(target + 16 * unit, source + 16 * unit, 16);
            }
        }
        __pipeline_commit();
    };

    Way way;
    int column = static_cast<int>(static_cast<std::int64_t>(across) * split / job.splits) + warp();
    std::uint32_t word[kCells], next_word[kCells];
    look_up(column);
    fetch(0);
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell) {
        next_word[cell] = ahead.word[cell];
    }
    look_up(column + warps);
    for (int stage = 0; column < last; column += warps, stage ^= 1) {
        fetch(stage ^ 1);  // under way while this column is multiplied
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell) {
            word[cell] = next_word[cell];
            next_word[cell] = ahead.word[cell];
        }
        look_up(column + 2 * warps);
        way.load(x, job.x_stride, tokens, std::int64_t{kCellColumns} * column, weight.columns);
        __pipeline_wait_prior(1);
        __syncwarp();
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell) {
            const auto* const values = reinterpret_cast<const Value*>(own + (stage * kCells + cell) * weight.largest);
            Places places(word[cell]);
#pragma unroll Way::kUnrolled
            for (int step = 0; step < kSteps; ++step) {
                typename Way::Weight weights[kPlaces];
                take(weights, word[cell] >> (8 * step), values + places.next());
                way.multiply(cell, step, weights);
            }
        }
        __syncwarp();  // before the next values come to the same place
    }

    __pipeline_wait_prior(0);
    __syncthreads();  // the memory of the values becomes that of the sums
    auto* const sums = reinterpret_cast<float*>(dynamic_shared());
    way.store(sums + warp() * Way::kTokens * kPitch, kPitch);
    __syncthreads();
    for (int index = static_cast<int>(threadIdx.x); index < kRows * Way::kTokens;
         index += static_cast<int>(blockDim.x)) {
        const int token = index / kRows;
        const std::int64_t row = static_cast<std::int64_t>(group) * kRows + index % kRows;
        if (token >= tokens || row >= weight.rows) {
            continue;
        }
        float total = 0.0f;
        for (int part = 0; part < warps; ++part) {
            total += sums[(part * Way::kTokens + token) * kPitch + index % kRows];
        }
        if (job.end.scale != nullptr) {
            total *= job.end.scale[row];
        }
        const std::int64_t at = (first_token + token) * weight.rows + row;
        if (job.parts != nullptr) {
            job.parts[split * job.tokens * weight.rows + at] = total;
        } else {
            write(job.y, job.y_type, at, finished(total, job.end, row));
        }
    }
}

__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const Job job) {
    const std::int64_t size = job.tokens * job.weight.rows;
    const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kFinishThreads + threadIdx.x;
    if (at < size) {
        float total = 0.0f;
        for (int split = 0; split < job.splits; ++split) {
            total += job.parts[split * size + at];
        }
        write(job.y, job.y_type, at, finished(total, job.end, at % job.weight.rows));
    }
}

std::int64_t shared_bytes(int cells, const Tiles& weight, const SpmmCut& cut) {
    const std::int64_t pitch = cells * kCellRows + 4;
    return cut.warps * std::max(kStages * cells * weight.largest, cut.tokens * pitch * std::int64_t{sizeof(float)});
}

unsigned grid_of(std::int64_t blocks) {
    if (blocks > INT_MAX) {
        throw std::runtime_error("spmm: too many blocks for one launch: " + std::to_string(blocks));
    }
    return static_cast<unsigned>(blocks);
}

template <typename Way>
void launch(Job& job, const SpmmCut& cut, cudaStream_t stream) {
    const std::int64_t bytes = shared_bytes(Way::kCells, job.weight, cut);
    const std::int64_t height = Way::kCells * kCellRows;
    job.passes = static_cast<int>((job.tokens + Way::kTokens - 1) / Way::kTokens);
    check(cudaFuncSetAttribute(spmm_kernel<Way>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "spmm: shared memory");
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(grid_of((job.weight.rows + height - 1) / height * job.passes * job.splits));
    config.blockDim = dim3(static_cast<unsigned>(cut.warps) * kWarp);
    config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, spmm_kernel<Way>, job), "spmm: launch");
    if (job.splits > 1) {
        config.gridDim = dim3(grid_of((job.tokens * job.weight.rows + kFinishThreads - 1) / kFinishThreads));
        config.blockDim = dim3(kFinishThreads);
        config.dynamicSmemBytes = 0;
        check(cudaLaunchKernelEx(&config, finish_kernel, job), "spmm: launch");
    }
}

[[noreturn]] void no_kernel() {
    throw std::runtime_error("spmm: no CUDA kernel for these types and this cut");
}

template <typename Element, typename Stored>
void on_tensor_cores(Job& job, const SpmmCut& cut, cudaStream_t stream) {
    switch (cut.tokens) {
        case 8:
            return launch<OnTensorCores<Element, Stored, 1>>(job, cut, stream);
        case 16:
            return launch<OnTensorCores<Element, Stored, 2>>(job, cut, stream);
        case 32:
            return launch<OnTensorCores<Element, Stored, 4>>(job, cut, stream);
        default:
            no_kernel();
    }
}

template <typename Element, typename Stored>
void on_lanes(Job& job, const SpmmCut& cut, cudaStream_t stream) {
    switch (cut.tokens) {
        case 2:
            return launch<OnLanes<Element, Stored, 2>>(job, cut, stream);
        case 8:
            return launch<OnLanes<Element, Stored, 8>>(job, cut, stream);
        default:
            no_kernel();
    }
}

template <typename Element>
void by_stored_type(Job& job, ValueType own, const SpmmCut& cut, cudaStream_t stream) {
    if (job.weight.type == ValueType::int8) {
        on_tensor_cores<Element, std::int8_t>(job, cut, stream);
    } else if (job.weight.type == own) {
        on_tensor_cores<Element, std::uint16_t>(job, cut, stream);
    } else {
        no_kernel();
    }
}

}  // namespace

void spmm(void* y, ElementType y_type, const void* x, ElementType x_type, std::int64_t tokens, std::int64_t x_stride,
          const Tiles& weight, const SpmmEnd& end, const SpmmCut& cut, float* parts, void* stream) {
    if (tokens <= 0 || weight.rows <= 0) {
        return;
    }
    if (cut.warps < 1 || cut.warps > kSpmmWarps || cut.splits < 1 || (cut.splits > 1) != (parts != nullptr)) {
        throw std::runtime_error("spmm: the cut does not fit");
    }
    const auto queue = static_cast<cudaStream_t>(stream);
    Job job = {y, y_type, x, tokens, x_stride, weight, end, parts, static_cast<int>(cut.splits), 0};
    if (x_type == ElementType::bfloat16) {
        return by_stored_type<Bfloat16>(job, ValueType::bfloat16, cut, queue);
    }
    if (x_type == ElementType::float16) {
        return by_stored_type<Half>(job, ValueType::float16, cut, queue);
    }
    if (x_type != ElementType::float32) {
        no_kernel();
    }
    switch (weight.type) {
        case ValueType::float32:
            return on_lanes<float, float>(job, cut, queue);
        case ValueType::bfloat16:
            return on_lanes<Bfloat16, std::uint16_t>(job, cut, queue);
        case ValueType::float16:
            return on_lanes<Half, std::uint16_t>(job, cut, queue);
        case ValueType::int8:
            return on_lanes<float, std::int8_t>(job, cut, queue);
    }
    no_kernel();
}

}  // namespace pyprune::cuda

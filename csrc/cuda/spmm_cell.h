// SPDX-License-Identifier: Apache-2.0
// What a warp does with a cell of 16 rows by 64 columns of a matrix in tiles (pyprune/ops/sparse_tiles.py): finding its
// values, and the two ways to multiply them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "block.h"
#include "tensor_core.h"

namespace pyprune::cuda {

constexpr int kCellRows = 16, kCellColumns = 64, kSteps = 4, kPlaces = 8;

/// Where this lane's values of each step are in a cell.
class Places {
  public:
    /// `word` has a bit for each of the lane's 32 weights.
    __device__ __forceinline__ explicit Places(std::uint32_t word) {
        // Counts of the four bytes, each in a byte; sums over the lanes below are at most 31 times 8.
        std::uint32_t count = word - ((word >> 1) & 0x55555555u);
        count = (count & 0x33333333u) + ((count >> 2) & 0x33333333u);
        count = (count + (count >> 4)) & 0x0f0f0f0fu;
        std::uint32_t sum = count;
#pragma unroll
        for (int reach = 1; reach < kWarp; reach *= 2) {
            const std::uint32_t below = __shfl_up_sync(kAllLanes, sum, reach);
            sum += lane() >= reach ? below : 0u;
        }
        before_ = sum - count;  // the last lane's sum may carry from byte to byte: the difference does not
        last_before_ = __shfl_sync(kAllLanes, before_, kWarp - 1);
        last_count_ = __shfl_sync(kAllLanes, count, kWarp - 1);
    }

    /// First value of the next step, counted from the first one of the cell.
    __device__ __forceinline__ std::uint32_t next() {
        const std::uint32_t place = passed_ + (before_ & 0xffu);
        passed_ += (last_before_ & 0xffu) + (last_count_ & 0xffu);
        before_ >>= 8;
        last_before_ >>= 8;
        last_count_ >>= 8;
        return place;
    }

  private:
    std::uint32_t before_, last_before_, last_count_, passed_ = 0;
};

/// The eight weights of a step, by the lowest bits of `word`: the next kept value, or zero.
template <typename Weight, typename Value>
__device__ __forceinline__ void take(Weight (&weight)[kPlaces], std::uint32_t word, const Value* next) {
#pragma unroll
    for (int place = 0; place < kPlaces; ++place) {
        weight[place] = 0;
        if ((word >> place & 1u) != 0u) {
            weight[place] = *next++;
        }
    }
}

/// On tensor cores: two cells, one below the other, times 8 Groups tokens of a 16-bit type.
template <typename Element, typename Stored, int Groups>
struct OnTensorCores {
    using Value = Stored;  // the bits of an Element, or int8
    using Weight = std::conditional_t<std::is_same_v<Stored, std::int8_t>, std::int32_t, std::uint32_t>;
    using X = std::uint16_t;
    static constexpr int kCells = 2, kTokens = 8 * Groups, kUnrolled = kSteps;

    float sum[kCells][Groups][4] = {};
    uint4 x[Groups][2];

    /// Columns of x that meet the cell: those of a lane lie side by side.
    __device__ __forceinline__ void load(const X* source, std::int64_t stride, int tokens, std::int64_t column,
                                         std::int64_t columns) {
#pragma unroll
        for (int group = 0; group < Groups; ++group) {
            const int token = 8 * group + lane() / 4;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const std::int64_t at = column + 32 * half + 8 * (lane() % 4);
                x[group][half] = uint4{};
                if (token < tokens && at < columns) {
                    x[group][half] = *reinterpret_cast<const uint4*>(source + token * stride + at);
                }
            }
        }
    }

    __device__ __forceinline__ void multiply(int cell, int step, const Weight (&weight)[kPlaces]) {
        std::uint32_t a[4];
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            a[pair] = paired(weight[2 * pair], weight[2 * pair + 1]);
        }
#pragma unroll
        for (int group = 0; group < Groups; ++group) {
            const uint4& four = x[group][step / 2];
            multiply_add<Element>(sum[cell][group], a, step % 2 == 0 ? four.x : four.z,
                                  step % 2 == 0 ? four.y : four.w);
        }
    }

    /// The sums of this warp, [kTokens, pitch].
    __device__ __forceinline__ void store(float* target, int pitch) const {
        const int row = lane() / 4, token = 2 * (lane() % 4);
#pragma unroll
        for (int cell = 0; cell < kCells; ++cell) {
#pragma unroll
            for (int group = 0; group < Groups; ++group) {
                float* const at = target + (8 * group + token) * pitch + kCellRows * cell + row;
                at[0] = sum[cell][group][0];
                at[pitch] = sum[cell][group][1];
                at[8] = sum[cell][group][2];
                at[pitch + 8] = sum[cell][group][3];
            }
        }
    }

  private:
    static __device__ __forceinline__ std::uint32_t paired(std::uint32_t low, std::uint32_t high) {
        return low | high << 16;
    }
    static __device__ __forceinline__ std::uint32_t paired(std::int32_t low, std::int32_t high) {
        return paired(bits_of(low), bits_of(high));
    }
    static __device__ __forceinline__ std::uint32_t bits_of(std::int32_t value) {
        return Element::from_float(static_cast<float>(value));  // exact
    }
};

/// On float32 lanes: one cell times Tokens tokens of float32.
template <typename Element, typename Stored, int Tokens>
struct OnLanes {
    using Value = Stored;  // float, the bits of an Element, or int8
    using Weight = std::conditional_t<std::is_same_v<Stored, std::uint16_t>, std::uint32_t, Stored>;
    using X = float;
    static constexpr int kCells = 1, kTokens = Tokens, kUnrolled = 1;  // x of all steps would not fit the registers

    float sum[2][Tokens] = {};  // of the rows g and g + 8, this lane's columns
    const X* source;
    std::int64_t stride, column, columns;
    int tokens;

    __device__ __forceinline__ void load(const X* source_, std::int64_t stride_, int tokens_, std::int64_t column_,
                                         std::int64_t columns_) {
        source = source_;
        stride = stride_;
        tokens = tokens_;
        column = column_ + 8 * (lane() % 4);
        columns = columns_;
    }

    __device__ __forceinline__ void multiply(int, int step, const Weight (&weight)[kPlaces]) {
        const std::int64_t at = column + 32 * (step / 2) + 4 * (step % 2);
        float w[kPlaces];
#pragma unroll
        for (int place = 0; place < kPlaces; ++place) {
            w[place] = widened(weight[place]);
        }
#pragma unroll
        for (int token = 0; token < Tokens; ++token) {
            float4 four{};
            if (token < tokens && at < columns) {
                four = *reinterpret_cast<const float4*>(source + token * stride + at);
            }
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                float& total = sum[row][token];
                total = fmaf(w[2 * row], four.x, total);
                total = fmaf(w[2 * row + 1], four.y, total);
                total = fmaf(w[2 * row + 4], four.z, total);
                total = fmaf(w[2 * row + 5], four.w, total);
            }
        }
    }

    __device__ __forceinline__ void store(float* target, int pitch) const {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
#pragma unroll
            for (int token = 0; token < Tokens; ++token) {
                float total = sum[row][token];
                total += __shfl_xor_sync(kAllLanes, total, 1);
                total += __shfl_xor_sync(kAllLanes, total, 2);
                if (lane() % 4 == 0) {
                    target[token * pitch + 8 * row + lane() / 4] = total;
                }
            }
        }
    }

  private:
    static __device__ __forceinline__ float widened(float value) { return value; }
    static __device__ __forceinline__ float widened(std::int8_t value) { return value; }
    static __device__ __forceinline__ float widened(std::uint32_t bits) {
        return Element::to_float(static_cast<std::uint16_t>(bits));
    }
};

}  // namespace pyprune::cuda

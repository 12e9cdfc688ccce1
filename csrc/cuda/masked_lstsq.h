// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace pyprune::cuda {

/// Which columns of each row: S, those where (mask[row][j] != 0) is `wanted`, in ascending order. `side` is at least
/// the number of them in any row. All pointers are on the device, arrays row-major and contiguous.
struct MaskedRows {
    const std::uint8_t* mask;  // [rows, columns]
    std::int64_t rows, columns, side;
    bool wanted;
};

/// float32 elements of one row's factor; a multiple of 4. 0 for a side of 0.
std::int64_t masked_factor_size(std::int64_t side);

/// Largest side that the on-chip kernel takes on the current device.
std::int64_t masked_factor_on_chip();

/// factors[row] = Cholesky factor of matrix[S, S], in the layout that masked_solve reads.
///
/// factors     [rows, masked_factor_size(side)] float32
/// status      [rows] int64: 0, or 1 + the pivot (in the order of S) that was not positive to float32's precision,
///             relative to its diagonal entry; what is in factors[row] is then of no use.
/// matrix      [columns, columns] float32, symmetric
///
/// On chip where `side` is at most masked_factor_on_chip(), else tile by tile through `factors` itself. The calls
/// below only enqueue: no synchronisation, no allocation, no atomics; equal input gives equal bits, and rows are
/// independent. Throws std::runtime_error with CUDA's text.
void masked_factor(float* factors, std::int64_t* status, const float* matrix, const MaskedRows& problem, void* stream);

/// out[row][S] = x with L L^T x = rhs[row][S], L = factors[row], in float32; other entries are left as they are.
///
/// out, rhs    [rows, columns] float64
void masked_solve(double* out, const double* rhs, const float* factors, const MaskedRows& problem, void* stream);

}  // namespace pyprune::cuda

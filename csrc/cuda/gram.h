// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "../common/element_type.h"

namespace pyprune::cuda {

/// out += sum over kept tokens t of x[t, :]^T x[t, :]
///
/// out         [columns, columns] float64, row-major and contiguous, on the device; added to, never
///             cleared. Both halves are written and receive the same bits.
/// x           [tokens, columns] of `type` (float32, bfloat16, float16), columns contiguous, rows
///             `row_stride` elements apart (0 repeats one row). Only natural alignment is assumed.
/// keep        [tokens] uint8 or null (keep all). A token with 0 is never read, so NaN or infinity
///             in padding cannot enter.
/// stream      a cudaStream_t of the current device; null is the default stream.
///
/// out must not overlap x or keep. Zero tokens or zero columns leave out as it is. The call only
/// enqueues: no synchronisation, no allocation, no atomics; equal input gives equal bits on equal
/// hardware, whatever the row stride. Throws std::runtime_error with CUDA's text.
///
/// Accuracy: products are taken in float32 and summed by fused multiply-add over at most 256 tokens
/// (exact products for the 16-bit types), then every such chain is added in float64. With
/// A = |x|^T |x| the error is at most 256 u A elementwise (u = 2^-24, 1.5e-5) however many tokens
/// there are; seen on host emulation: below 13 u at worst (equal rows, whose roundings all go one
/// way), below 1 u rms for independent uniform values.
void gram(double* out, const void* x, ElementType type, std::int64_t tokens, std::int64_t columns,
          std::int64_t row_stride, const std::uint8_t* keep, void* stream);

}  // namespace pyprune::cuda

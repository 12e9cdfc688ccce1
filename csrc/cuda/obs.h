// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "../common/element_type.h"

namespace pyprune::cuda {

/// Sizes of one call. Lines of `stride` elements have `columns` that count; stride is a multiple of 4.
struct ObsShape {
    std::int64_t rows, columns, stride, steps;
    std::int64_t keep, of;  // at most of - keep of every `of` columns may go, where of > 0
};

/// Elements of workspace that one block needs.
std::int64_t obs_workspace(const ObsShape& shape);

/// Blocks that the current device runs at once, in arithmetic `type` (float32 or float64); 0 where a row's state does
/// not fit into a multiprocessor's shared memory.
std::int64_t obs_blocks(ElementType type, const ObsShape& shape);

/// Exact greedy OBS of each row: count[row] times the open column with the least w_p^2 / D_p goes, ties to the lower
/// one; D is the diagonal of the inverse of what is left.
///
/// weight      [rows, stride] of `type`: where to start; then what the updates made of it (at removed columns:
///             anything)
/// order       [rows, steps] int64: the removed columns, then -1
/// loss        [rows, steps] float64: w_p^2 / D_p; 0 after count[row] steps, NaN from where a row ran out of columns
/// status      [rows] int64: 0, or 1 where a row ran out of columns with a positive pivot, or in float32 ended with
///             an open one that has none: it may have lost it to rounding
/// workspace   [blocks, obs_workspace(shape)] of `type`
/// inverse     [columns, stride] of `type`, symmetric positive definite, its diagonal between 1/2 and 2
/// count       [rows] int64, 0 to steps
///
/// The call only enqueues: no synchronisation, no allocation, no atomics; equal input gives equal bits, rows are
/// independent and do not depend on `blocks`. Throws std::runtime_error with CUDA's text.
void obs(void* weight, std::int64_t* order, double* loss, std::int64_t* status, void* workspace, const void* inverse,
         const std::int64_t* count, ElementType type, const ObsShape& shape, std::int64_t blocks, void* stream);

}  // namespace pyprune::cuda

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace pyprune::cuda {

/// Widest block that the kernels take.
constexpr std::int64_t kWidestBlock = 64;

/// Sizes of one call: groups of `height` rows, which lose blocks of `width` columns out of `blocks` of them; k = blocks *
/// width. Columns lie in planes: column a of block t at a * blocks + t.
struct BlockObsShape {
    std::int64_t groups, height, width, blocks, steps;
};

/// Elements of workspace that one group needs.
std::int64_t block_obs_workspace(const BlockObsShape& shape);

/// Steps first .. last - 1 of exact greedy OBS of blocks: count[group] times the block of least
/// sum over rows of w_B A_BB^-1 w_B^T goes, ties to the lower one. A = base - V^T V is the inverse of what is left.
///
/// weight      [groups, height, k] float64, in planes: changed; at removed columns anything
/// order       [groups, steps] int64: written at these steps: the removed block, or -1
/// loss        [groups, steps] float64: what it cost; 0 after count[group] steps, NaN from where a group ran out of blocks
///             with positive pivots
/// state       [groups] int64: zeros before step 0, then kept from call to call
/// chain       [groups, (last - first) * width, k]: V of these steps, written; anything where a group has ended
/// diagonal    [groups, width (width + 1) / 2, blocks]: lower triangles of the blocks A_BB, changed
/// workspace   [groups, block_obs_workspace(shape)], kept from call to call
/// base        of each group [k, k] at `base_stride` (0: one for all), symmetric, rows and columns in planes: A before
///             step `first`
/// floor       [k]: the smallest pivot of a column that still counts
/// count       [groups] int64, 0 to steps
///
/// The call only enqueues: no synchronisation, no allocation, no atomics; equal input gives equal bits, groups are
/// independent. Throws std::runtime_error with CUDA's text.
void block_obs(double* weight, std::int64_t* order, double* loss, std::int64_t* state, double* chain, double* diagonal,
               double* workspace, const double* base, std::int64_t base_stride, const double* floor,
               const std::int64_t* count, const BlockObsShape& shape, std::int64_t first, std::int64_t last,
               void* stream);

}  // namespace pyprune::cuda

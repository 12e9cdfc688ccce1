// SPDX-License-Identifier: Apache-2.0
//
// obs: exact greedy Optimal Brain Surgeon of each row (contract in obs.h).
//
// Algorithm. Lazy OBS, a pivoted Cholesky of the shared inverse A: with V the rows made so far, a step takes the open
// column p with the least w_p^2 / D_p, forms r = A[p, :] - V[:, p]^T V, and then w -= r w_p / D_p, V gets the row r /
// sqrt(D_p), D -= its square. One block of 256 threads has a row; a thread owns packs of columns (16 bytes), and
// keeps their weights and pivots in shared memory. V lies in a workspace, each entry written and, but for the few
// coefficients V[:, p], read by its owner alone. A removed or closed column has pivot -infinity.
//
// V[:, c]^T V is computed ahead, in one reading of V, for p and for seven more columns c that are cheap now (of 16
// groups of threads the cheapest of each, and of these the best seven). Eight such batches are kept; when c is
// removed, only the rows that V got since are missing. Pivots are still taken one by one over all columns: a guess
// that fails costs time, never the result.
//
// Cost of a row of k columns, t steps:
//   operations  k t^2 (fused multiply-adds: half that), and up to a half more for rows that are computed ahead in
//               vain
//   bytes       V is read once for 5.4 steps of 192 at 384 columns, 6.5 of 384 at 768, 6.4 of 1536 at 3072 (counted
//               on emulated kernels, correlated features), and the 11 or 12 rows made since: 0.29, 0.22 and 0.18 of
//               the k t^2 / 2 elements of plain lazy OBS; the rows of A, t k, from L2
//   state       2 k elements in shared memory, and (t + 64) k of workspace for each block that is resident
// Two blocks of a multiprocessor by registers, and by shared memory up to 12,000 columns in float32 and 6,000 in
// float64 on sm_90; one up to 24,000 and 13,000. Not measured on a GPU yet.

#include "obs.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <stdexcept>
#include <string>

#include "check.h"
#include "obs_row.h"

namespace pyprune::cuda {
namespace {

template <typename Real>
__global__ void __launch_bounds__(kThreads, 2) obs_kernel(Arguments<Real> job) {
    __shared__ Shared<Real> shared;
    Row<Real> state(job, shared);
    for (std::int64_t row = blockIdx.x; row < job.shape.rows; row += gridDim.x) {
        state.run(row);
    }
}

template <typename Real>
std::int64_t blocks_of(const ObsShape& shape) {
    int device = 0, limit = 0, processors = 0, each = 0;
    check(cudaGetDevice(&device), "obs: current device");
    check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          "obs: shared memory of a block");
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "obs: number of multiprocessors");
    const std::int64_t bytes = Row<Real>::shared_bytes(shape);
    if (bytes > limit - 2048) {  // static arrays, and what the runtime keeps for itself
        return 0;
    }
    check(cudaFuncSetAttribute(obs_kernel<Real>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "obs: shared memory");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, obs_kernel<Real>, kThreads,
                                                        static_cast<std::size_t>(bytes)),
          "obs: blocks of a multiprocessor");
    return static_cast<std::int64_t>(each) * processors;
}

template <typename Real>
void launch(void* weight, std::int64_t* order, double* loss, std::int64_t* status, void* workspace, const void* inverse,
            const std::int64_t* count, const ObsShape& shape, std::int64_t blocks, void* stream) {
    const std::int64_t bytes = Row<Real>::shared_bytes(shape);
    check(cudaFuncSetAttribute(obs_kernel<Real>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "obs: shared memory");
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(std::min(blocks, shape.rows)));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    const Arguments<Real> job = {static_cast<Real*>(weight),        order, loss, status, static_cast<Real*>(workspace),
                                 static_cast<const Real*>(inverse), count, shape};
    check(cudaLaunchKernelEx(&config, obs_kernel<Real>, job), "obs: launch");
}

[[noreturn]] void wrong_type() {
    throw std::runtime_error("obs: the CUDA kernel takes float32 or float64");
}

}  // namespace

std::int64_t obs_workspace(const ObsShape& shape) {
    return (shape.steps + kSlots) * shape.stride;
}

std::int64_t obs_blocks(ElementType type, const ObsShape& shape) {
    switch (type) {
        case ElementType::float32:
            return blocks_of<float>(shape);
        case ElementType::float64:
            return blocks_of<double>(shape);
        default:
            wrong_type();
    }
}

void obs(void* weight, std::int64_t* order, double* loss, std::int64_t* status, void* workspace, const void* inverse,
         const std::int64_t* count, ElementType type, const ObsShape& shape, std::int64_t blocks, void* stream) {
    if (shape.rows <= 0 || shape.columns <= 0) {
        return;
    }
    if (blocks < 1 || blocks > INT_MAX) {
        throw std::runtime_error("obs: the number of blocks must be positive");
    }
    switch (type) {
        case ElementType::float32:
            return launch<float>(weight, order, loss, status, workspace, inverse, count, shape, blocks, stream);
        case ElementType::float64:
            return launch<double>(weight, order, loss, status, workspace, inverse, count, shape, blocks, stream);
        default:
            wrong_type();
    }
}

}  // namespace pyprune::cuda

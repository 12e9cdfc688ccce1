// SPDX-License-Identifier: Apache-2.0
// What csrc/bindings.cpp gives to Python of the CUDA kernels, of the emulated ones: tests/cuda/emulation.py calls it.

#include "../../../csrc/cuda/block_obs.h"
#include "../../../csrc/cuda/masked_lstsq.h"
#include "../../../csrc/cuda/obs.h"
#include "../../../csrc/cuda/spmm.h"
#include "cuda_runtime.h"

using namespace pyprune;

extern "C" {

void emulate_device(int multiprocessors, int shared_limit) {
    emulated::multiprocessors = multiprocessors;
    emulated::shared_limit = shared_limit;
}

long launches() {
    return emulated::launches;
}

std::int64_t masked_factor_size(std::int64_t side) {
    return cuda::masked_factor_size(side);
}

std::int64_t masked_factor_on_chip() {
    return cuda::masked_factor_on_chip();
}

void masked_factor_cuda(float* factors, std::int64_t* status, const float* matrix, const std::uint8_t* mask,
                        std::int64_t rows, std::int64_t columns, std::int64_t side, bool wanted, void* stream) {
    cuda::masked_factor(factors, status, matrix, {mask, rows, columns, side, wanted}, stream);
}

void masked_solve_cuda(double* out, const double* rhs, const float* factors, const std::uint8_t* mask,
                       std::int64_t rows, std::int64_t columns, std::int64_t side, bool wanted, void* stream) {
    cuda::masked_solve(out, rhs, factors, {mask, rows, columns, side, wanted}, stream);
}

std::int64_t obs_blocks(int type, std::int64_t columns, std::int64_t stride, std::int64_t steps, std::int64_t keep,
                        std::int64_t of) {
    return cuda::obs_blocks(static_cast<ElementType>(type), {0, columns, stride, steps, keep, of});
}

std::int64_t obs_workspace(std::int64_t stride, std::int64_t steps) {
    return cuda::obs_workspace({0, stride, stride, steps, 0, 0});
}

void obs_cuda(void* weight, std::int64_t* order, double* loss, std::int64_t* status, void* workspace,
              const void* inverse, const std::int64_t* count, int type, std::int64_t rows, std::int64_t columns,
              std::int64_t stride, std::int64_t steps, std::int64_t keep, std::int64_t of, std::int64_t blocks,
              void* stream) {
    cuda::obs(weight, order, loss, status, workspace, inverse, count, static_cast<ElementType>(type),
              {rows, columns, stride, steps, keep, of}, blocks, stream);
}

std::int64_t block_obs_plan_cuda(std::int64_t height, std::int64_t width, std::int64_t blocks, std::int64_t steps) {
    return cuda::block_obs_workspace({0, height, width, blocks, steps});
}

void block_obs_cuda(double* weight, std::int64_t* order, double* loss, std::int64_t* state, double* chain,
                    double* diagonal, double* workspace, const double* base, std::int64_t base_stride,
                    const double* floor, const std::int64_t* count, std::int64_t groups, std::int64_t height,
                    std::int64_t width, std::int64_t blocks, std::int64_t steps, std::int64_t first, std::int64_t last,
                    void* stream) {
    cuda::block_obs(weight, order, loss, state, chain, diagonal, workspace, base, base_stride, floor, count,
                    {groups, height, width, blocks, steps}, first, last, stream);
}

void spmm_cuda(void* y, int y_type, const void* x, int x_type, std::int64_t tokens, std::int64_t stride,
               std::int64_t rows, std::int64_t columns, const std::uint32_t* bits, const std::int32_t* starts,
               const void* values, int type, std::int64_t, std::int64_t largest, const float* scale, const void* bias,
               int bias_type, int activation, std::int64_t block, std::int64_t warps, std::int64_t splits, float* parts,
               void* stream) {
    cuda::spmm(y, static_cast<ElementType>(y_type), x, static_cast<ElementType>(x_type), tokens, stride,
               {rows, columns, bits, starts, values, static_cast<ValueType>(type), largest},
               {scale, bias, static_cast<ElementType>(bias_type), static_cast<Activation>(activation)},
               {block, warps, splits}, parts, stream);
}
}

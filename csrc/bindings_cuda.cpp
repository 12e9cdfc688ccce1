// SPDX-License-Identifier: Apache-2.0
// Bindings of the CUDA kernels: pointers on a device, sizes checked here, a stream; nothing waits for the device.
#include "bindings_cuda.h"

#include "bindings_checks.h"
#include "common/sparse_rows_view.h"
#include "cuda/block_obs.h"
#include "cuda/device_info.h"
#include "cuda/gram.h"
#include "cuda/masked_lstsq.h"
#include "cuda/obs.h"
#include "cuda/spmm.h"

#include <tuple>
#include <utility>

#include <pybind11/stl.h>

namespace py = pybind11;

namespace bound {
namespace {

using pyprune::ValueType;

void gram_cuda(uintptr_t out, uintptr_t x, int type, int64_t tokens, int64_t columns, int64_t stride, uintptr_t keep,
               uintptr_t stream) {
    const int64_t all = area(tokens, columns), square = area(columns, columns);
    require(stride >= 0, "a stride is negative");
    require(type >= 0 && type <= 2, "x must be float32, bfloat16 or float16");
    py::gil_scoped_release release;
    pyprune::cuda::gram(pointer<double>(out, square, "out"), pointer<const void>(x, all, "x"), element(type), tokens,
                        columns, stride, reinterpret_cast<const uint8_t*>(keep), reinterpret_cast<void*>(stream));
}

pyprune::cuda::MaskedRows masked_rows(uintptr_t mask, int64_t rows, int64_t columns, int64_t side, bool wanted) {
    require(side >= 0 && side <= columns, "more columns wanted than there are");
    require(columns <= std::numeric_limits<int32_t>::max(), "too many columns");
    return {pointer<const uint8_t>(mask, area(rows, columns), "mask"), rows, columns, side, wanted};
}

void masked_factor_cuda(uintptr_t factors, uintptr_t status, uintptr_t matrix, uintptr_t mask, int64_t rows,
                        int64_t columns, int64_t side, bool wanted, uintptr_t stream) {
    const int64_t square = area(columns, columns);
    const auto own = masked_rows(mask, rows, columns, side, wanted);
    const int64_t all = area(rows, pyprune::cuda::masked_factor_size(side));
    py::gil_scoped_release release;
    pyprune::cuda::masked_factor(pointer<float>(factors, all, "factors"), pointer<int64_t>(status, rows, "status"),
                                 pointer<const float>(matrix, square, "matrix"), own, reinterpret_cast<void*>(stream));
}

void masked_solve_cuda(uintptr_t out, uintptr_t rhs, uintptr_t factors, uintptr_t mask, int64_t rows, int64_t columns,
                       int64_t side, bool wanted, uintptr_t stream) {
    const int64_t all = area(rows, columns);
    const auto own = masked_rows(mask, rows, columns, side, wanted);
    const int64_t stored = area(rows, pyprune::cuda::masked_factor_size(side));
    py::gil_scoped_release release;
    pyprune::cuda::masked_solve(pointer<double>(out, all, "out"), pointer<const double>(rhs, all, "rhs"),
                                pointer<const float>(factors, stored, "factors"), own, reinterpret_cast<void*>(stream));
}

pyprune::cuda::ObsShape obs_shape(int type, int64_t rows, int64_t columns, int64_t stride, int64_t steps, int64_t keep,
                                  int64_t of) {
    require(type == 0 || type == 3, "removals must be in float32 or float64");
    require(stride >= columns && stride % 4 == 0, "lines must be padded to a multiple of 4");
    require(stride <= std::numeric_limits<int32_t>::max(), "too many columns");
    require(steps >= 0 && steps <= columns, "more steps than columns");
    check_groups(columns, keep, of);
    area(rows, stride);
    return {rows, columns, stride, steps, keep, of};
}

// Blocks that run at once, and elements of workspace for each.
std::pair<int64_t, int64_t> obs_plan_cuda(int type, int64_t columns, int64_t stride, int64_t steps, int64_t keep,
                                          int64_t of) {
    const auto shape = obs_shape(type, 0, columns, stride, steps, keep, of);
    return {pyprune::cuda::obs_blocks(element(type), shape), pyprune::cuda::obs_workspace(shape)};
}

// Counts lie on the device: the caller has checked that they are 0 to steps.
void obs_cuda(uintptr_t weight, uintptr_t order, uintptr_t loss, uintptr_t status, uintptr_t workspace,
              uintptr_t inverse, uintptr_t count, int type, int64_t rows, int64_t columns, int64_t stride,
              int64_t steps, int64_t keep, int64_t of, int64_t blocks, uintptr_t stream) {
    const auto shape = obs_shape(type, rows, columns, stride, steps, keep, of);
    const int64_t all = area(rows, stride), square = area(columns, stride), trace = area(rows, steps);
    const int64_t own = area(blocks, pyprune::cuda::obs_workspace(shape));
    require(blocks >= 1, "at least one block");
    py::gil_scoped_release release;
    pyprune::cuda::obs(pointer<void>(weight, all, "weight"), pointer<int64_t>(order, trace, "order"),
                       pointer<double>(loss, trace, "loss"), pointer<int64_t>(status, rows, "status"),
                       pointer<void>(workspace, own, "workspace"), pointer<const void>(inverse, square, "inverse"),
                       pointer<const int64_t>(count, rows, "count"), element(type), shape, blocks,
                       reinterpret_cast<void*>(stream));
}

pyprune::cuda::BlockObsShape block_obs_shape(int64_t groups, int64_t height, int64_t width, int64_t blocks,
                                             int64_t steps) {
    require(height >= 1, "at least one row of blocks");
    require(width >= 1 && width <= pyprune::cuda::kWidestBlock, "blocks must have 1 to 64 columns");
    require(steps >= 0 && steps <= blocks, "more steps than blocks");
    area(area(groups, height), area(blocks, width));
    return {groups, height, width, blocks, steps};
}

// Elements of workspace for each group.
int64_t block_obs_plan_cuda(int64_t height, int64_t width, int64_t blocks, int64_t steps) {
    return pyprune::cuda::block_obs_workspace(block_obs_shape(0, height, width, blocks, steps));
}

// Counts lie on the device: the caller has checked that they are 0 to steps.
void block_obs_cuda(uintptr_t weight, uintptr_t order, uintptr_t loss, uintptr_t state, uintptr_t chain,
                    uintptr_t diagonal, uintptr_t workspace, uintptr_t base, int64_t base_stride, uintptr_t floor,
                    uintptr_t count, int64_t groups, int64_t height, int64_t width, int64_t blocks, int64_t steps,
                    int64_t first, int64_t last, uintptr_t stream) {
    const auto shape = block_obs_shape(groups, height, width, blocks, steps);
    const int64_t columns = blocks * width, square = area(columns, columns), trace = area(groups, steps);
    require(first >= 0 && first <= last && last <= steps, "steps are out of range");
    require(base_stride == 0 || base_stride == square, "bases must follow one another, or be one");
    const int64_t all = area(area(groups, height), columns),
                  lines = area(area(groups, (last - first) * width), columns);
    const int64_t own = area(groups, pyprune::cuda::block_obs_workspace(shape));
    const int64_t triangles = area(area(groups, width * (width + 1) / 2), blocks);
    py::gil_scoped_release release;
    pyprune::cuda::block_obs(pointer<double>(weight, all, "weight"), pointer<int64_t>(order, trace, "order"),
                             pointer<double>(loss, trace, "loss"), pointer<int64_t>(state, groups, "state"),
                             pointer<double>(chain, lines, "chain"), pointer<double>(diagonal, triangles, "diagonal"),
                             pointer<double>(workspace, own, "workspace"), pointer<const double>(base, square, "base"),
                             base_stride, pointer<const double>(floor, columns, "floor"),
                             pointer<const int64_t>(count, groups, "count"), shape, first, last,
                             reinterpret_cast<void*>(stream));
}

// Why the embedded code cannot run on a device, or "" when it can.
std::string cuda_problem(int device) {
    const std::string reason = pyprune::cuda::no_device_reason();
    return reason.empty() ? pyprune::cuda::load_problem(device) : reason;
}

// rows, columns; bits, starts, values, their type and number, bytes of a cell at most.
using TilesArguments = std::tuple<int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t, int, int64_t, int64_t>;
// Tokens and warps of a block, splits of the columns.
using CutArguments = std::tuple<int64_t, int64_t, int64_t>;

// Starts lie on the device: the caller made them, and with them the largest cell.
void spmm_cuda(uintptr_t y, int y_type, uintptr_t x, int x_type, int64_t tokens, int64_t stride,
               const TilesArguments& weight, uintptr_t scale, uintptr_t bias, int bias_type, int activation,
               const CutArguments& cut, uintptr_t parts, uintptr_t stream) {
    const auto [rows, columns, bits, starts, values, type, count, largest] = weight;
    const auto [block, warps, splits] = cut;
    const int64_t cells = area((rows + 15) / 16, (columns + 63) / 64);
    const int64_t written = area(tokens, rows), read = area(tokens, columns);
    require(y_type >= 0 && y_type <= 2, "y must be float32, bfloat16 or float16");
    require(x_type >= 0 && x_type <= 2, "x must be float32, bfloat16 or float16");
    require(type >= 0 && type <= 3, "values must be float32, bfloat16, float16 or int8");
    require(activation >= 0 && activation <= 2, "unknown activation");
    require(largest >= 0 && largest % 16 == 0, "cells must hold multiples of 16 bytes");
    require(x % 16 == 0 && values % 16 == 0, "x and values must be aligned to 16 bytes");
    require(stride >= 0 && stride % (x_type == 0 ? 4 : 8) == 0, "rows of x must be aligned to 16 bytes");
    require(splits >= 1, "at least one split");
    const int64_t partial = splits > 1 ? area(splits, written) : 0;
    const pyprune::cuda::Tiles tiles{rows,
                                     columns,
                                     pointer<const uint32_t>(bits, area(cells, 32), "bits"),
                                     pointer<const int32_t>(starts, cells + 1, "starts"),
                                     pointer<const void>(values, count, "values"),
                                     static_cast<ValueType>(type),
                                     largest};
    const pyprune::cuda::SpmmEnd end{reinterpret_cast<const float*>(scale), reinterpret_cast<const void*>(bias),
                                     element(bias_type), static_cast<pyprune::Activation>(activation)};
    py::gil_scoped_release release;
    pyprune::cuda::spmm(pointer<void>(y, written, "y"), element(y_type), pointer<const void>(x, read, "x"),
                        element(x_type), tokens, stride, tiles, end, {block, warps, splits},
                        pointer<float>(parts, partial, "parts"), reinterpret_cast<void*>(stream));
}

}  // namespace

void bind_cuda(py::module_& module) {
    module.def("gram_cuda", &gram_cuda);
    module.def("masked_factor_size", &pyprune::cuda::masked_factor_size);
    module.def("masked_factor_on_chip", &pyprune::cuda::masked_factor_on_chip);
    module.def("masked_factor_cuda", &masked_factor_cuda);
    module.def("masked_solve_cuda", &masked_solve_cuda);
    module.def("obs_plan_cuda", &obs_plan_cuda);
    module.def("obs_cuda", &obs_cuda);
    module.def("block_obs_plan_cuda", &block_obs_plan_cuda);
    module.def("block_obs_cuda", &block_obs_cuda);
    module.def("spmm_cuda", &spmm_cuda);
    module.def("cuda_problem", &cuda_problem);
}

}  // namespace bound

// SPDX-License-Identifier: Apache-2.0
// Bindings of the sparse products. The tensors of an arrangement come as one tuple of pointers and sizes, so that several
// ops share its checks; spmm takes what is made of it, so that a small product need not check them at every call.
#include "bindings_sparse.h"

#include "bindings_checks.h"
#include "common/arrange_rows.h"
#include "common/dispatch.h"

#include <pybind11/stl.h>

namespace py = pybind11;

namespace bound {

using pyprune::SparseRows;
using pyprune::ValueType;

namespace {

SparseRows shape(int64_t out, int64_t in, int64_t tile) {
    area(out, in);
    require(tile >= 1 && tile <= std::numeric_limits<int16_t>::max(), "tile must be 1 to 32767");
    SparseRows matrix{};
    matrix.out = out, matrix.in = in, matrix.tile = tile;
    return matrix;
}

int64_t order_rows(uintptr_t rows, uintptr_t lengths, uintptr_t starts, uintptr_t mask, int64_t out, int64_t in,
                   int64_t tile) {
    const SparseRows matrix = shape(out, in, tile);
    const int64_t cells = area(matrix.panels(), matrix.tiles()), entries = area(cells, pyprune::kPanelRows);
    py::gil_scoped_release release;
    return pyprune::order_rows(pointer<uint8_t>(rows, entries, "rows"), pointer<uint16_t>(lengths, entries, "lengths"),
                               pointer<int64_t>(starts, cells + 1, "starts"),
                               pointer<const uint8_t>(mask, area(out, in), "mask"), out, in, tile);
}

void fill_rows(uintptr_t columns, uintptr_t stored, int64_t count, uintptr_t rows, uintptr_t lengths, uintptr_t starts,
               uintptr_t mask, uintptr_t values, int64_t kept, int64_t size, int64_t out, int64_t in, int64_t tile) {
    const SparseRows matrix = shape(out, in, tile);
    const int64_t cells = area(matrix.panels(), matrix.tiles()), entries = area(cells, pyprune::kPanelRows);
    require(size == 1 || size == 2 || size == 4, "values have 1, 2 or 4 bytes");
    const auto* order = pointer<const uint8_t>(rows, entries, "rows");
    const auto* length = pointer<const uint16_t>(lengths, entries, "lengths");
    const auto* start = pointer<const int64_t>(starts, cells + 1, "starts");
    require(start[cells] == count, "starts do not end where the values do");
    int64_t total = 0;
    for (int64_t i = 0; i < entries; ++i) total += length[i];
    require(total == kept, "the mask and the values do not have the same number of weights");
    py::gil_scoped_release release;
    pyprune::fill_rows(pointer<uint16_t>(columns, count, "columns"), pointer<void>(stored, count, "stored"), order,
                       length, start, pointer<const uint8_t>(mask, area(out, in), "mask"),
                       pointer<const void>(values, kept, "values"), size, out, in, tile);
}

void spmm(uintptr_t y, uintptr_t x, int type, int64_t tokens, int64_t stride, const SparseRows& matrix, uintptr_t scale,
          uintptr_t bias, int activation, int threads, bool pairs) {
    const int64_t written = area(tokens, matrix.out), read = area(tokens, matrix.in);
    require(type >= 0 && type <= 2, "x must be float32, bfloat16 or float16");
    require(stride >= 0, "a stride is negative");
    require(activation >= 0 && activation <= 2, "unknown activation");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.spmm(pointer<void>(y, written, "y"), pointer<const void>(x, read, "x"), element(type), tokens, stride, matrix,
             reinterpret_cast<const float*>(scale), reinterpret_cast<const float*>(bias),
             static_cast<pyprune::Activation>(activation), pairs, threads);
}

int64_t spmm_tile(int64_t in, double density, bool pairs) {
    require(in >= 0, "a size is negative");
    return pyprune::kernels().spmm_tile(in, density, pairs);
}

}  // namespace

SparseRows sparse_rows(const RowsArguments& weight) {
    const auto [out, in, tile, values, type, count, columns, rows, lengths, starts] = weight;
    SparseRows matrix = shape(out, in, tile);
    require(type >= 0 && type <= 3, "values must be float32, bfloat16, float16 or int8");
    const int64_t cells = area(matrix.panels(), matrix.tiles()), entries = area(cells, pyprune::kPanelRows);
    matrix.values = pointer<const void>(values, count, "values");
    matrix.type = static_cast<ValueType>(type);
    matrix.columns = pointer<const uint16_t>(columns, count, "columns");
    matrix.rows = pointer<const uint8_t>(rows, entries, "rows");
    matrix.lengths = pointer<const uint16_t>(lengths, entries, "lengths");
    matrix.starts = pointer<const int64_t>(starts, cells + 1, "starts");
    require(matrix.starts[0] == 0 && matrix.starts[cells] == count, "starts do not end where the values do");
    for (int64_t cell = 0; cell < cells; ++cell)
        require(matrix.starts[cell] <= matrix.starts[cell + 1], "starts must rise");
    return matrix;
}

void bind_sparse(py::module_& module) {
    module.def("order_rows", &order_rows);
    module.def("fill_rows", &fill_rows);
    // It holds pointers, no tensors: they must stay where they are.
    py::class_<SparseRows>(module, "SparseRows").def(py::init(&sparse_rows));
    module.def("spmm", &spmm, py::arg("y"), py::arg("x"), py::arg("type"), py::arg("tokens"), py::arg("stride"),
               py::arg("weight"), py::arg("scale"), py::arg("bias"), py::arg("activation"), py::arg("threads"),
               py::arg("pairs") = false);
    module.def("spmm_tile", &spmm_tile);
    module.attr("panel_rows") = pyprune::kPanelRows;
    module.attr("columns_ahead") = pyprune::kColumnsAhead;
}

}  // namespace bound

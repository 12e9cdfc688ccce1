// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/sparse_rows_view.h"

#include <tuple>

#include <pybind11/pybind11.h>

namespace bound {

// out, in, tile; values, their type and number; columns, rows, lengths, starts.
using RowsArguments =
    std::tuple<int64_t, int64_t, int64_t, uintptr_t, int, int64_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

/// The matrix behind the arguments. Throws std::invalid_argument where sizes do not fit together.
pyprune::SparseRows sparse_rows(const RowsArguments& weight);

void bind_sparse(pybind11::module_& module);

}  // namespace bound

// SPDX-License-Identifier: Apache-2.0
// select: mask[r][:] = 1 at the `count` largest scores of row r          scores, mask [rows, k]
//
// Algorithm: the threshold of a row bit by bit on a copy, then one pass that marks everything above it and the
//   first ties; rows run in parallel. A whole matrix is one row of rows·k, selected by all threads together from a
//   histogram of leading bits (selection.h).
// Operations: expected O(k) a row. Memory: scores read three times, one copy of a row per thread (of all for one row).
#include "../common/buffer.h"
#include "../common/element_type.h"
#include "../common/selection.h"

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

template <class Real>
void select_rows(uint8_t* mask, const Real* scores, int64_t rows, int64_t columns, int64_t count, int threads) {
    if (rows == 1) return Selector<Real>(columns, threads).largest(mask, scores, columns, count);
    threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, rows)));
    Buffer<Real> scratch(static_cast<size_t>(threads * columns));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row)
        select_largest(mask + row * columns, scores + row * columns, columns, count,
                       scratch.data() + omp_get_thread_num() * columns);
}

}  // namespace

void select(uint8_t* mask, const void* scores, ElementType type, int64_t rows, int64_t columns, int64_t count,
            int threads) {
    if (type == ElementType::float64)
        select_rows(mask, static_cast<const double*>(scores), rows, columns, count, threads);
    else
        select_rows(mask, static_cast<const float*>(scores), rows, columns, count, threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

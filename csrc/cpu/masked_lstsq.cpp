// SPDX-License-Identifier: Apache-2.0
// masked_lstsq: for each row  H_SS w_S = c_S, w = 0 elsewhere       system H [k, k], target c, mask [rows, k]
//
// Algorithm: exact, one Cholesky a row (small_cholesky.h), rows in parallel. Two routes, whichever is smaller:
//   support     gather H_SS, factor, solve:                                       |S|³ / 3
//   complement  with A = H⁻¹ and w̄ = A c of the whole system (null: not offered): A_PP z = w̄_P,
//               w = w̄ − A[:,P] z, the Lagrange condition of w_P = 0:              |P|³ / 3 + |P| k
// FLOPs: 2/3 min(|S|, |P|)³ a row. Memory per thread: the square of the smaller side; a row's gather reads as much.
// Double precision. status[row] = 0, or 1 + the pivot (in the order of the support) where the system is singular,
// and the row is then zero. Rows are independent: bits do not depend on the number of threads.
#include "../common/element_type.h"
#include "../common/small_cholesky.h"

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

struct Workspace {
    double *matrix, *rhs, *scratch;
    int64_t* index;
};

// Solve matrix[index, index] z = rhs[index] into work.rhs; returns -1 or the failing pivot.
int64_t solve_gathered(Workspace& work, const double* matrix, const double* rhs, int64_t columns, int64_t n) {
    const int64_t stride = cholesky_stride(n);
    for (int64_t a = 0; a < n; ++a) {
        const double* source = matrix + work.index[a] * columns;
        double* target = work.matrix + a * stride;
        for (int64_t b = a; b < n; ++b) target[b] = source[work.index[b]];
        std::fill(target + n, target + stride, 0.0);
        work.rhs[a] = rhs[work.index[a]];
    }
    const int64_t failed = small_cholesky(work.matrix, n, stride, work.scratch);
    if (failed < 0) small_cholesky_solve(work.matrix, n, stride, work.rhs);
    return failed;
}

int64_t by_support(double* solution, Workspace& work, const double* system, const double* target, const uint8_t* mask,
                   int64_t columns) {
    int64_t n = 0;
    for (int64_t j = 0; j < columns; ++j)
        if (mask[j]) work.index[n++] = j;
    std::fill(solution, solution + columns, 0.0);
    const int64_t failed = solve_gathered(work, system, target, columns, n);
    for (int64_t a = 0; failed < 0 && a < n; ++a) solution[work.index[a]] = work.rhs[a];
    return failed + 1;
}

int64_t by_complement(double* solution, Workspace& work, const double* inverse, const double* dense,
                      const uint8_t* mask, int64_t columns) {
    int64_t n = 0;
    for (int64_t j = 0; j < columns; ++j)
        if (!mask[j]) work.index[n++] = j;
    const int64_t failed = solve_gathered(work, inverse, dense, columns, n);
    if (failed >= 0) {
        std::fill(solution, solution + columns, 0.0);
        return failed + 1;
    }
    std::copy(dense, dense + columns, solution);
    for (int64_t a = 0; a < n; ++a) {
        const double* column = inverse + work.index[a] * columns;  // symmetric: a row is a column
        for (int64_t j = 0; j < columns; ++j) solution[j] -= work.rhs[a] * column[j];
    }
    for (int64_t a = 0; a < n; ++a) solution[work.index[a]] = 0.0;
    return 0;
}

}  // namespace

void masked_lstsq(double* solution, int64_t* status, const double* system, const double* target, const uint8_t* mask,
                  const double* inverse, const double* dense, int64_t rows, int64_t columns, int threads) {
    threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, rows)));
    Buffer<int64_t> kept(static_cast<size_t>(rows));
    int64_t largest = 0;
    for (int64_t row = 0; row < rows; ++row) {
        kept[row] = 0;
        for (int64_t j = 0; j < columns; ++j) kept[row] += mask[row * columns + j] != 0;
        const bool complement = inverse != nullptr && 2 * kept[row] > columns;
        largest = std::max(largest, complement ? columns - kept[row] : kept[row]);
    }
    const size_t square = static_cast<size_t>(largest * cholesky_stride(largest));
    const size_t reals = (square + padded(columns) + cholesky_scratch(largest) + 7) / 8 * 8;
    Buffer<double> memory(reals * threads);
    Buffer<int64_t> indices(static_cast<size_t>(padded(columns)) * threads);
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        Workspace work;
        work.matrix = memory.data() + reals * thread;
        work.rhs = work.matrix + square;
        work.scratch = work.rhs + padded(columns);
        work.index = indices.data() + padded(columns) * thread;
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < rows; ++row) {
            double* out = solution + row * columns;
            const uint8_t* keep = mask + row * columns;
            status[row] = inverse != nullptr && 2 * kept[row] > columns
                              ? by_complement(out, work, inverse, dense + row * columns, keep, columns)
                              : by_support(out, work, system, target + row * columns, keep, columns);
        }
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

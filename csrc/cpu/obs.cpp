// SPDX-License-Identifier: Apache-2.0
// obs: exact greedy Optimal Brain Surgeon of each row             inverse A = H⁻¹ [k, k], weight [rows, k]
//
// Several counts a row are several points of one run: what is gone at the lower ones is a prefix, and L of a prefix
// begins L, so that a point more costs its weights alone.
//
// One step of a row removes p = argmin w_p² / D_p over the open columns (D the current diagonal of the inverse of
// what is left), adds its loss, and updates  w -= r w_p / D_p,  D -= r² / D_p  with r the current row p of that
// inverse. Nobody rewrites an inverse per step:
//
// v1  explicit inverse per row, rank-1 update of k² entries a step: 2k² traffic a step, memory-bound.
// v2  lazy (pivoted Cholesky): r = A[p,:] − V[:,p]ᵀV, with one new row V[t,:] = r / √D_p a step. Same pivots and
//     weights as v1; t·k multiply-adds a step and nothing written but one row. Each of them waits for a load.
// v5  (v3, v4) V folded into a new base A[live, live] − VᵀV every 96 steps, at the speed of the micro-kernel; at 50 %
//     1.7 times the multiply-adds of v2, and the rest of them still in chains that wait for loads.
// v6  (this file) v2 with rows computed ahead, in float32 where the caller finds that enough:
//     - V[:,j]ᵀV for the pivot and the seven columns that are cheapest now is one product by the micro-kernel
//       (panel.h). 93 % of them do go, after 10 more steps on the mean, and only those steps are left to the chain.
//       Pivots are still taken one by one over all columns: a guess that fails costs time, never the result.
//     - removed columns are squeezed out of V now and then (lanes.h). A base is never built: right-looking takes as
//       many multiply-adds where a row runs to nothing, and more where it does not.
//     - V is kept by columns too: coefficients are read in a line, and those of the removed ones are the Cholesky
//       factor of A[removed, removed], from which the weights are made, in float64 accuracy whatever the arithmetic of
//       the removals (obs_weights.h). A row that float32 does not settle, because a pivot drowns in rounding or the
//       weights do not come to rest, is done again in float64.
//     At 50 % in float32 2.4 times faster than v5 at k = 384, 3.1 at 1536, 4.3 at 3072; in float64 1.4, 1.6 and 1.9.
//
// FLOPs per row, s·k steps: k³ s² (1 − 2s/3); the micro-kernel does a fifth more (removed columns not yet squeezed
//   out, rows never used), the chain a tenth.
// Speed, one core of a Zen 5 (peak 266 GFLOP/s in float32), 50 %: 26 % of the peak at k = 384, 42 % at 1536, 52 % at
//   3072. The micro-kernel runs at 80 % (at 3072, where V comes from the third cache, at 65 %) and takes 38 % of the
//   time at k = 384 (60 and 75 % at 1536 and 3072). The rest at k = 384: chain and update of weights, pivots and scores
//   14 %, weights in float64 13 % (the removed rows of A are read twice), squeeze 8 %, choosing 8 %, moving columns
//   and rows 11 %.
//   One core of a Zen 3 (AVX2, peak 100): 23 % at k = 384, 30 % at 768.
// Memory per thread: s·k² twice for V, 65 rows computed ahead. Once: A in float32.
// Traffic: V is read once for about seven steps.
// Ties go to the lower column; rows are independent, so bits do not depend on threads.
// A row that finds no open column with a positive pivot ends with NaN losses; the caller reports it.
#include "../common/buffer.h"
#include "../common/element_type.h"
#include "../common/obs_row.h"
#include "../common/obs_weights.h"

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

struct Job {
    double* pruned;
    int64_t* order;
    double* loss;
    const double *inverse, *weight;
    const int64_t* count;
    int64_t points, rows, columns, steps, keep, of;
};

// What one thread needs for one row after another.
template <class Real>
class RowTask {
  public:
    RowTask(Carver& memory, const Job& job, const Real* inverse, double unit)
        : job_(job), unit_(unit), pruner_(memory, inverse, job.columns, job.steps, job.keep, job.of),
          solver_(memory, job.inverse, unit, job.columns, job.steps), scaled_(memory.take<Real>(job.columns)) {}

    bool run(int64_t row) {
        const int64_t k = job_.columns, steps = job_.steps;
        const double* weight = job_.weight + row * k;
        double* loss = job_.loss + row * steps;
        int64_t *order = job_.order + row * steps, count = 0;
        for (int64_t point = 0; point < job_.points; ++point)
            count = std::max(count, job_.count[point * job_.rows + row]);
        double largest = 0.0;
        for (int64_t j = 0; j < k; ++j) largest = std::max(largest, std::abs(weight[j]));
        const double scale = power_near(largest);
        for (int64_t j = 0; j < k; ++j) scaled_[j] = static_cast<Real>(weight[j] * scale);
        const bool whole = pruner_.run(scaled_, count, loss, unit_ / scale / scale);
        if (!whole && sizeof(Real) == 4) return false;
        const Removals<Real>& gone = pruner_.removals();
        std::copy(gone.column, gone.column + gone.count, order);
        std::fill(order + gone.count, order + steps, int64_t(-1));
        std::fill(loss + gone.count, loss + steps, whole ? 0.0 : std::numeric_limits<double>::quiet_NaN());
        bool still = true;
        for (int64_t point = 0; point < job_.points; ++point) {
            const int64_t cell = point * job_.rows + row;
            still &= weights(job_.pruned + cell * k, weight, gone.first(job_.count[cell]), scale);
        }
        return still && whole;
    }

  private:
    bool weights(double* pruned, const double* dense, const Removals<Real>& gone, double scale) {
        if (gone.count < job_.columns) return solver_.run(pruned, dense, gone, scale);
        std::fill(pruned, pruned + job_.columns, 0.0);
        return true;
    }

    const Job& job_;
    double unit_;
    RowPruner<Real> pruner_;
    WeightSolver<Real> solver_;
    Real* scaled_;
};

// Rows `todo`; those that fail in this arithmetic are returned in their place, and their number is the result.
template <class Real>
int64_t run_rows(const Job& job, const Real* inverse, double unit, int64_t* todo, int64_t rows, int threads) {
    threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, rows)));
    Carver measure;
    RowTask<Real>(measure, job, inverse, unit);
    const size_t bytes = measure.used() + 4096 + 64;  // threads on separate cache lines and pages
    Buffer<char> memory(bytes * threads);
#pragma omp parallel num_threads(threads)
    {
        Carver carver(memory.data() + bytes * omp_get_thread_num());
        RowTask<Real> task(carver, job, inverse, unit);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < rows; ++i)
            if (task.run(todo[i])) todo[i] = -1;
    }
    return std::remove(todo, todo + rows, int64_t(-1)) - todo;
}

// A in float32, its largest diagonal entry near one.
int64_t run_single(const Job& job, int64_t* todo, int64_t rows, int threads) {
    const int64_t k = job.columns;
    double largest = 0.0;
    for (int64_t j = 0; j < k; ++j) largest = std::max(largest, job.inverse[j * k + j]);
    const double unit = power_near(largest);
    Buffer<float> inverse(static_cast<size_t>(k * k));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < k; ++i)
        for (int64_t j = 0; j < k; ++j) inverse[i * k + j] = static_cast<float>(job.inverse[i * k + j] * unit);
    return run_rows<float>(job, inverse.data(), unit, todo, rows, threads);
}

}  // namespace

void obs(double* pruned, int64_t* order, double* loss, const double* inverse, const double* weight,
         const int64_t* count, ElementType type, int64_t points, int64_t rows, int64_t columns, int64_t steps,
         int64_t keep, int64_t of, int threads) {
    const Job job{pruned, order, loss, inverse, weight, count, points, rows, columns, steps, keep, of};
    if (rows == 0) return;
    Buffer<int64_t> todo(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) todo[row] = row;
    if (type == ElementType::float32) rows = run_single(job, todo.data(), rows, threads);
    if (rows > 0) run_rows<double>(job, inverse, 1.0, todo.data(), rows, threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// swap: exchanges of a kept for a pruned column while a row's loss falls     system H [k, k], target c, mask [rows, k]
//
// The loss of a row with support S is f(S) = −c_S H_SS⁻¹ c_S. With the tableau of [[H, c], [cᵀ, 0]] swept on S (tableau.h),
// a = [H_SS⁻¹]_pp, d the Schur complement of column q, t their coupling, x the weight of p, g the gradient at q,
//
//   f(S − p + q) − f(S) = (d x² − 2 t x g − a g²) / (a d + t²)                 (one 2 x 2 principal pivot)
//
// Algorithm, for each row: the best of all pairs (of all pairs inside a group where of > 0) is exchanged while it gains
// more than least[row], at most `most` times. What is kept of the tableau is its diagonal, its border, and the couplings
// of the pairs; the exchange updates them in one pass that also finds the next pair, without a division. What the update
// needs beyond them, two rows of the tableau, comes from the factor it was built from. After 32 exchanges it is built
// anew. Where the inverse is given (and the dense fit c H⁻¹), rows that keep more than half are done in the tableau of
// H⁻¹, swept on what is not kept, which is the same but for signs.
// A row may be confined to some columns; the others keep what they have, and `target` is what is left for these.
//
// FLOPs a row, n = the smaller of |S| and k − |S|: n² k to build and n² (k − n) for all couplings (1/3 k³ at 50 % in all),
//   then 2 n k for the two rows and 7 n (k − n) for pass and search an exchange.
// Memory a thread: n (k − n) twice and n² three times.
// `system`, `inverse`, `target` and `dense` in float32 or float64; both matrices should have unit diagonals.
// exchanged[row]: how many, or −1 where the row's system is not positive definite. worth[row][j] in the end: the loss of
// removing j alone where it is kept, the gain of adding it where it is not; infinite and 0 for columns not in question.
// Rows are independent: bits do not depend on the number of threads. Among equal gains the pair found first goes.
#include "../common/buffer.h"
#include "../common/element_type.h"
#include "../common/swap_row.h"

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

struct Job {
    uint8_t* mask;
    int64_t* exchanged;
    double* worth;
    const int64_t* columns;  // [rows, count], ascending, or null for all
    int64_t count;
    const double* least;
    int64_t most, of, rows, k;
};

int64_t kept_of(const Job& job, int64_t row) {
    const uint8_t* mask = job.mask + row * job.k;
    int64_t kept = 0;
    for (int64_t c = 0; c < job.count; ++c)
        kept += mask[job.columns == nullptr ? c : job.columns[row * job.count + c]] != 0;
    return kept;
}

template <class Real>
void run_rows(const Job& job, const Real* system, const Real* inverse, const Real* target, const Real* dense,
              int threads) {
    const int64_t k = job.k;
    const auto complement = [&](int64_t kept) { return inverse != nullptr && 2 * kept > k; };
    int64_t inside = 0;
    for (int64_t row = 0; row < job.rows; ++row) {
        const int64_t kept = kept_of(job, row);
        inside = std::max(inside, complement(kept) ? k - kept : kept);
    }
    threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, job.rows)));
    Carver measure;
    RowSwapper<Real>(measure, inside, job.count, k, job.of);
    const size_t bytes = measure.used() + 4096 + 64;  // threads on separate cache lines and pages
    Buffer<char> memory(bytes * static_cast<size_t>(threads));
#pragma omp parallel num_threads(threads)
    {
        Carver carver(memory.data() + bytes * static_cast<size_t>(omp_get_thread_num()));
        RowSwapper<Real> swapper(carver, inside, job.count, k, job.of);
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < job.rows; ++row) {
            uint8_t* mask = job.mask + row * k;
            double* worth = job.worth + row * k;
            const bool other = complement(kept_of(job, row));
            for (int64_t j = 0; j < k; ++j) worth[j] = mask[j] ? std::numeric_limits<double>::infinity() : 0.0;
            job.exchanged[row] = swapper.run(other ? inverse : system, (other ? dense : target) + row * k, mask,
                                             job.columns == nullptr ? nullptr : job.columns + row * job.count,
                                             job.count, k, other, job.least[row], job.most);
            if (job.exchanged[row] >= 0) swapper.worth(worth);
        }
    }
}

}  // namespace

void swap(uint8_t* mask, int64_t* exchanged, double* worth, const void* system, const void* inverse, const void* target,
          const void* dense, ElementType type, const int64_t* columns, int64_t count, const double* least, int64_t most,
          int64_t of, int64_t rows, int64_t k, int threads) {
    const Job job{mask, exchanged, worth, columns, count, least, most, of, rows, k};
    if (type == ElementType::float32)
        run_rows(job, static_cast<const float*>(system), static_cast<const float*>(inverse),
                 static_cast<const float*>(target), static_cast<const float*>(dense), threads);
    else
        run_rows(job, static_cast<const double*>(system), static_cast<const double*>(inverse),
                 static_cast<const double*>(target), static_cast<const double*>(dense), threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

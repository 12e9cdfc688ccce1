// SPDX-License-Identifier: Apache-2.0
// masked_lstsq: for each row  H_SS w_S = c_S, w = 0 elsewhere       system H [k, k], target c, mask [rows, k]
//
// Algorithm: one Cholesky a row in float32 (panel_cholesky.h), then iterative refinement: the residual c − wH of a chunk
//   of rows is one float64 product, each row is corrected by its factor until the correction is below what is asked. Rows
//   that do not get there (condition beyond about 1e6) are factored again in float64. Two routes, the smaller system wins:
//   support     gather H_SS, factor, solve:                                                    |S|³ / 3 multiply-adds
//   complement  with A = H⁻¹ (null: not offered), u = r A:  A_PP z = u_P,  w += u − z A_P:      |P|³ / 3 + (|P| + k) k
//   H should have a unit diagonal: float32 then loses least, and the test for singular pivots means the same for all.
// FLOPs a row: a third of the smaller side cubed, twice; 2 k² for each residual (two or three). Memory per thread: a chunk
//   of factors (at most 64 MiB), panels of H in float64 and of H, A in float32 shared by all.
//   One core of a Zen 3 (AVX2), half of the columns kept, |S|³ / 3 + 4 k² operations a row: 19 % of the peak at k = 384,
//   26 % at 768.
// status[row] = 0, or 1 + the pivot (in the order of the support) where the system is singular; the row is then zero.
// Rows are independent: bits do not depend on the number of threads.
#include "../common/element_type.h"
#include "../common/packed_matrix.h"
#include "../common/panel_cholesky.h"

#include <memory>
#include <vector>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kMostRefinements = 6;
constexpr int64_t kChunkBytes = int64_t(64) << 20;

struct Problem {
    const double *system, *target, *inverse;
    const uint8_t* mask;
    const float *system_single, *inverse_single;  // row-major
    int64_t columns;
    double tolerance;

    bool complement(int64_t kept) const { return inverse != nullptr && 2 * kept > columns; }
    int64_t side(int64_t kept) const { return complement(kept) ? columns - kept : kept; }
};

// Copy matrix[index, index], upper triangle, into the rows of a factor.
template <class Real, class Source>
void gather(PanelCholesky<Real>& factor, const Source* matrix, const int32_t* index, int64_t n, int64_t columns) {
    for (int64_t a = 0; a < n; ++a) {
        const Source* source = matrix + index[a] * columns;
        Real* target = factor.row(a);
        for (int64_t b = a; b < n; ++b) target[b] = static_cast<Real>(source[index[b]]);
    }
}

// A chunk of rows that share the products with H and A; one thread's memory.
class Chunk {
    using Single = PanelCholesky<float>;

  public:
    static int64_t rows_for(int64_t side) {
        const int64_t bytes = 4 * static_cast<int64_t>(Single::factor_size(side));
        return std::max<int64_t>(1, std::min<int64_t>(24, kChunkBytes / std::max<int64_t>(bytes, 1)));
    }

    Chunk(const Problem& problem, PackedMatrix<double>& system, PackedMatrix<float>& inverse, int64_t rows,
          int64_t side)
        : p_(problem), system_(system), inverse_(inverse), slot_(Single::factor_size(side)),
          factors_(static_cast<size_t>(rows) * slot_), scratch_(Single::scratch_size(side)),
          rhs_(static_cast<size_t>(Single::padded_size(side))), single_(area(rows)), dense_(area(rows)),
          found_(area(rows)), residual_(area(rows)), index_(area(rows)), state_(static_cast<size_t>(rows)) {}

    // Rows first .. first + count; a row that float32 cannot carry gets status −1.
    void run(double* solution, int64_t* status, int64_t first, int64_t count) {
        const int64_t k = p_.columns;
        first_ = first;
        for (int64_t r = 0; r < count; ++r) prepare(r);
        std::fill(found_.data(), found_.data() + count * k, 0.0);
        for (int64_t step = 0; step < kMostRefinements && any_open(count); ++step) {
            std::copy(p_.target + first * k, p_.target + (first + count) * k, residual_.data());
            if (step > 0) system_.multiply(residual_.data(), found_.data(), count, 1.0, -1.0);
            refine(count, step);
        }
        for (int64_t r = 0; r < count; ++r) {
            status[first + r] = state_[r].solved ? 0 : -1;
            std::copy(found_.data() + r * k, found_.data() + (r + 1) * k, solution + (first + r) * k);
        }
    }

  private:
    struct State {
        int64_t size;
        bool complement, open, solved;
        double gap;
    };

    size_t area(int64_t rows) const { return static_cast<size_t>(rows * p_.columns); }
    int32_t* index(int64_t r) { return index_.data() + r * p_.columns; }
    Single factor_of(int64_t r) { return Single(factors_.data() + static_cast<size_t>(r) * slot_, state_[r].size); }

    bool any_open(int64_t count) {
        for (int64_t r = 0; r < count; ++r)
            if (state_[r].open) return true;
        return false;
    }

    void prepare(int64_t r) {
        const int64_t k = p_.columns;
        const uint8_t* mask = p_.mask + (first_ + r) * k;
        State& state = state_[r];
        int64_t kept = 0;
        for (int64_t j = 0; j < k; ++j) kept += mask[j] != 0;
        state.complement = p_.complement(kept);
        state.size = 0;
        for (int64_t j = 0; j < k; ++j)
            if ((mask[j] != 0) != state.complement) index(r)[state.size++] = static_cast<int32_t>(j);
        Single factor = factor_of(r);
        gather(factor, state.complement ? p_.inverse_single : p_.system_single, index(r), state.size, k);
        state.open = factor.factor(scratch_.data()) < 0;
        state.solved = false;
        state.gap = std::numeric_limits<double>::infinity();
    }

    // One correction of every open row, from residual_.
    void refine(int64_t count, int64_t step) {
        const int64_t k = p_.columns;
        bool dense = false;
        for (int64_t r = 0; r < count; ++r) {
            const uint8_t* mask = p_.mask + (first_ + r) * k;
            for (int64_t j = 0; j < k; ++j)
                single_[r * k + j] = mask[j] ? static_cast<float>(residual_[r * k + j]) : 0.0f;
            dense |= state_[r].open && state_[r].complement;
        }
        if (dense) inverse_.multiply(dense_.data(), single_.data(), count);
        for (int64_t r = 0; r < count; ++r) {
            State& state = state_[r];
            if (!state.open) continue;
            state.complement ? correct_by_complement(r) : correct_by_support(r);
            const double *found = found_.data() + r * k, *target = p_.target + (first_ + r) * k;
            double energy = 0.0, gap = 0.0;
            for (int64_t j = 0; j < k; ++j) {
                energy += found[j] * target[j];
                gap += static_cast<double>(dense_[r * k + j]) * residual_[r * k + j];
            }
            // `gap` is what the correction was worth, wᵀc what the whole solution is.
            if (step > 0 && gap <= p_.tolerance * energy) {
                state.open = false;
                state.solved = true;
            } else if (!(gap < 0.5 * state.gap) && step > 0) {
                state.open = false;  // it does not converge (or is not finite)
            }
            state.gap = gap;
            if (energy == 0.0 && gap == 0.0) state.solved = !(state.open = false);
        }
    }

    // Both leave the correction in dense_ and add it to found_.
    void correct_by_support(int64_t r) {
        const int64_t k = p_.columns, n = state_[r].size;
        const int32_t* own = index(r);
        float* correction = dense_.data() + r * k;
        load_rhs(single_.data() + r * k, own, n);
        factor_of(r).solve(rhs_.data());
        std::fill(correction, correction + k, 0.0f);
        for (int64_t a = 0; a < n; ++a) {
            correction[own[a]] = rhs_[a];
            found_[r * k + own[a]] += static_cast<double>(rhs_[a]);
        }
    }

    void correct_by_complement(int64_t r) {
        const int64_t k = p_.columns, n = state_[r].size;
        const int32_t* own = index(r);
        float* correction = dense_.data() + r * k;
        load_rhs(correction, own, n);
        factor_of(r).solve(rhs_.data());
        for (int64_t a = 0; a < n; ++a) {
            const float* line = p_.inverse_single + own[a] * k;  // symmetric: a row is a column
            const float scale = rhs_[a];
            for (int64_t j = 0; j < k; ++j) correction[j] -= scale * line[j];
        }
        for (int64_t a = 0; a < n; ++a) correction[own[a]] = 0.0f;
        for (int64_t j = 0; j < k; ++j) found_[r * k + j] += static_cast<double>(correction[j]);
    }

    void load_rhs(const float* values, const int32_t* own, int64_t n) {
        for (int64_t a = 0; a < n; ++a) rhs_[a] = values[own[a]];
        std::fill(rhs_.data() + n, rhs_.data() + Single::padded_size(n), 0.0f);
    }

    const Problem& p_;
    PackedMatrix<double>& system_;
    PackedMatrix<float>& inverse_;
    size_t slot_;
    int64_t first_ = 0;
    Buffer<float> factors_, scratch_, rhs_, single_, dense_;
    Buffer<double> found_, residual_;
    Buffer<int32_t> index_;
    Buffer<State> state_;
};

// One row by its support, in float64 throughout; status 0 or 1 + pivot.
int64_t solve_double(double* solution, const Problem& problem, int64_t row, double* memory, int32_t* index) {
    const int64_t k = problem.columns;
    const uint8_t* mask = problem.mask + row * k;
    int64_t n = 0;
    for (int64_t j = 0; j < k; ++j)
        if (mask[j]) index[n++] = static_cast<int32_t>(j);
    PanelCholesky<double> factor(memory, n);
    double* scratch = memory + PanelCholesky<double>::factor_size(n);
    double* rhs = scratch + PanelCholesky<double>::scratch_size(n);
    gather(factor, problem.system, index, n, k);
    std::fill(solution + row * k, solution + (row + 1) * k, 0.0);
    const int64_t failed = factor.factor(scratch);
    if (failed >= 0) return failed + 1;
    for (int64_t a = 0; a < PanelCholesky<double>::padded_size(n); ++a)
        rhs[a] = a < n ? problem.target[row * k + index[a]] : 0.0;
    factor.solve(rhs);
    for (int64_t a = 0; a < n; ++a) solution[row * k + index[a]] = rhs[a];
    return 0;
}

void solve_rest(double* solution, int64_t* status, const Problem& problem, int64_t rows, int threads) {
    int64_t most = 0, open = 0;
    for (int64_t row = 0; row < rows; ++row) {
        if (status[row] >= 0) continue;
        int64_t kept = 0;
        for (int64_t j = 0; j < problem.columns; ++j) kept += problem.mask[row * problem.columns + j] != 0;
        most = std::max(most, kept);
        ++open;
    }
    if (open == 0) return;
    using Double = PanelCholesky<double>;
    threads = static_cast<int>(std::min<int64_t>(threads, open));
    const size_t size =
        Double::factor_size(most) + Double::scratch_size(most) + static_cast<size_t>(Double::padded_size(most));
    Buffer<double> memory(size * static_cast<size_t>(threads));
    Buffer<int32_t> index(static_cast<size_t>(problem.columns * threads));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row)
        if (status[row] < 0)
            status[row] = solve_double(solution, problem, row, memory.data() + size * omp_get_thread_num(),
                                       index.data() + problem.columns * omp_get_thread_num());
}

}  // namespace

void masked_lstsq(double* solution, int64_t* status, const double* system, const double* target, const uint8_t* mask,
                  const double* inverse, double tolerance, int64_t rows, int64_t columns, int threads) {
    if (rows == 0 || columns == 0) {
        std::fill(status, status + rows, int64_t(0));
        return;
    }
    const int64_t square = columns * columns;
    Buffer<float> system_single(static_cast<size_t>(square));
    Buffer<float> inverse_single(static_cast<size_t>(inverse == nullptr ? 0 : square));
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < square; ++i) {
        system_single[i] = static_cast<float>(system[i]);
        if (inverse != nullptr) inverse_single[i] = static_cast<float>(inverse[i]);
    }
    const Problem problem = {system,  target,   inverse, mask, system_single.data(), inverse_single.data(),
                             columns, tolerance};
    int64_t side = 0;
    for (int64_t row = 0; row < rows; ++row) {
        int64_t kept = 0;
        for (int64_t j = 0; j < columns; ++j) kept += mask[row * columns + j] != 0;
        side = std::max(side, problem.side(kept));
    }
    PackedMatrix<double> system_panels(system, columns, threads);
    PackedMatrix<float> inverse_panels(inverse, columns, threads);
    const int64_t height = std::min(Chunk::rows_for(side), (rows + threads - 1) / threads);
    const int64_t chunks = (rows + height - 1) / height;
    threads = static_cast<int>(std::min<int64_t>(threads, chunks));
    std::vector<std::unique_ptr<Chunk>> own;
    for (int t = 0; t < threads; ++t) own.emplace_back(new Chunk(problem, system_panels, inverse_panels, height, side));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
        own[omp_get_thread_num()]->run(solution, status, chunk * height, std::min(height, rows - chunk * height));
    solve_rest(solution, status, problem, rows, threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// cholesky: A + ridge·I = UᵀU, or = R Rᵀ with R upper too; and its inverse       A [k, k] float64, the rest in `Real`
//
// Algorithm: blocked, right-looking, 96 rows at a time. The diagonal block is factored and inverted in float64 by one
//   thread (common/panel_cholesky.h); its block row is one product with that inverse; the trailing matrix is a symmetric
//   update; both by the micro-kernel (panel.h), tiles shared by the threads. R comes from A with rows and columns
//   reversed. The inverse is XᵀX with X = U⁻ᵀ, by blocked substitution into packed panels which then are both operands.
// FLOPs: k³/3; with the inverse k³. Memory: two (with the inverse three) matrices of k²; the trailing matrix is read and
//   written k/96 times. One core of a Zen 5, 768 columns: 84 GFLOP/s in float64 (peak 133), 88 with the inverse; in
//   float32 149 and 167 (peak 266). One core of a Zen 3 (AVX2), 768 columns, with the inverse: 44 to 59 % of the peak
//   (49) in float64, 43 to 56 % (100) in float32.
// Entries are summed in a fixed order: bits do not depend on the number of threads.
// Returns -1, or the first pivot that is not positive to working precision (results are then undefined).
#include "../common/element_type.h"
#include "../common/panel_cholesky.h"

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kBlock = 96;  // a multiple of every panel's width
static_assert(kBlock % kPanel<float> == 0 && kBlock % kPanel<double> == 0, "blocks hold whole panels");

// The diagonal block in float64: U, and U⁻¹ as panels of `Real`, which is what both products need on their left.
template <class Real>
class DiagonalBlock {
    using Double = PanelCholesky<double>;

  public:
    DiagonalBlock()
        : memory_(Double::factor_size(kBlock)), scratch_(Double::scratch_size(kBlock)),
          inverse_(static_cast<size_t>(kBlock * kBlock)) {}

    // In place, and panels[p][q][r] = U⁻¹[q][p · width + r], zero outside the block.
    int64_t run(Real* matrix, Real* panels_out, int64_t stride, int64_t n, const double* floor) {
        constexpr int64_t width = kPanel<Real>, wide = kPanel<double>;
        Double block(memory_.data(), n);
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = i; j < n; ++j) block.row(i)[j] = matrix[i * stride + j];
        const int64_t failed = block.factor(scratch_.data(), floor);
        if (failed >= 0) return failed;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = i; j < n; ++j) matrix[i * stride + j] = static_cast<Real>(block.row(i)[j]);
        block.inverse_panels(inverse_.data());
        std::fill(panels_out, panels_out + kBlock * kBlock, Real(0));
        for (int64_t p = 0; p < panels(n, width); ++p)
            for (int64_t i = 0; i < std::min(n, (p + 1) * width); ++i)
                for (int64_t j = p * width; j < std::min(n, (p + 1) * width); ++j)
                    panels_out[(p * kBlock + i) * width + j - p * width] =
                        static_cast<Real>(inverse_[(j / wide * block.stride() + i) * wide + j % wide]);
        return -1;
    }

  private:
    Buffer<double> memory_, scratch_, inverse_;
};

template <class Real>
class Factor {
    static constexpr int64_t width = kPanel<Real>;

  public:
    // `u` is k x k row-major with the matrix in its upper triangle; it becomes U.
    Factor(Real* u, int64_t k, int threads)
        : u_(u), k_(k), threads_(threads), count_(panels(k, width)), blocks_(panels(k, kBlock)),
          inverses_(static_cast<size_t>(blocks_ * kBlock * kBlock)),
          packed_(static_cast<size_t>(count_ * kBlock * width)), own_(static_cast<size_t>(threads * kBlock * width)),
          floor_(static_cast<size_t>(k)) {
        for (int64_t j = 0; j < k; ++j) floor_[j] = pivot_floor(static_cast<double>(u[j * k + j]), k);
    }

    int64_t run() {
        DiagonalBlock<Real> diagonal;
        for (int64_t block = 0; block < blocks_; ++block) {
            const int64_t first = block * kBlock, n = std::min(kBlock, k_ - first);
            const int64_t failed = diagonal.run(u_ + first * k_ + first, inverses_.data() + block * kBlock * kBlock, k_,
                                                n, floor_.data() + first);
            if (failed >= 0) return first + failed;
            if (first + n < k_) eliminate(block, first, n);
        }
        return -1;
    }

    void invert(Real* out) {
        Buffer<Real> columns(static_cast<size_t>(count_ * k_ * width));  // X by panels: [panel][row][width]
        for (int64_t block = 0; block < blocks_; ++block) substitute(columns.data(), block);
        const int64_t tiles = upper_tiles(count_);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const UpperTile at(tile, count_);
            const int64_t i = at.row, j = at.column;
            const int64_t rows = std::min(width, k_ - i * width), wide = std::min(width, k_ - j * width);
            const int64_t from = j * width;  // X is lower triangular: nothing above the later panel's first column
            tile_product(out + i * width * k_ + j * width, k_,
                         PanelLeft<Real>{columns.data() + (i * k_ + from) * width},
                         columns.data() + (j * k_ + from) * width, k_ - from, rows, wide, Real(0), Real(1));
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t column = 0; column < wide; ++column)
                    out[(j * width + column) * k_ + i * width + row] = out[(i * width + row) * k_ + j * width + column];
        }
    }

  private:
    // Block row U_J,: = U_JJ⁻ᵀ A_J,: and trailing update A −= U_J,:ᵀ U_J,:.
    void eliminate(int64_t block, int64_t first, int64_t n) {
        const int64_t from = (first + n) / width;  // n is a whole block here
        const Real* inverse = inverses_.data() + block * kBlock * kBlock;
        const int64_t rest = count_ - from, tiles = upper_tiles(rest);
#pragma omp parallel num_threads(threads_)
        {
            Real* right = own_.data() + omp_get_thread_num() * kBlock * width;
#pragma omp for schedule(dynamic, 1)
            for (int64_t p = from; p < count_; ++p) {
                const int64_t wide = std::min(width, k_ - p * width);
                Real* target = u_ + first * k_ + p * width;
                pack_panel(right, target, n, k_, wide);
                for (int64_t left = 0; left < panels(n, width); ++left)
                    tile_product(target + left * width * k_, k_, PanelLeft<Real>{inverse + left * kBlock * width},
                                 right, std::min(n, (left + 1) * width), std::min(width, n - left * width), wide,
                                 Real(0), Real(1));
                pack_panel(packed_.data() + p * kBlock * width, target, n, k_, wide);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const UpperTile at(tile, rest);
                const int64_t i = from + at.row, j = from + at.column;
                panel_product(u_ + i * width * k_ + j * width, k_, packed_.data() + i * kBlock * width,
                              packed_.data() + j * kBlock * width, n, std::min(width, k_ - i * width),
                              std::min(width, k_ - j * width), Real(-1));
            }
        }
    }

    // Rows J of X: X_J,c = −U_JJ⁻ᵀ Σ_q U_q,Jᵀ X_q,c for panels c left of the block, U_JJ⁻ᵀ within it.
    void substitute(Real* columns, int64_t block) {
        const int64_t first = block * kBlock, n = std::min(kBlock, k_ - first);
        const int64_t own = panels(n, width), before = first / width;
        const Real* inverse = inverses_.data() + block * kBlock * kBlock;
        Buffer<Real> upper(static_cast<size_t>(own * std::max<int64_t>(first, 1) * width));  // U[:first, J] as panels
#pragma omp parallel num_threads(threads_)
        {
            Real* sum = own_.data() + omp_get_thread_num() * kBlock * width;
#pragma omp for schedule(static)
            for (int64_t p = 0; p < own; ++p) {
                pack_panel(upper.data() + p * first * width, u_ + first + p * width, first, k_,
                           std::min(width, n - p * width));
                Real* target = columns + ((before + p) * k_ + first) * width;
                for (int64_t row = 0; row < n; ++row)  // (U⁻ᵀ)[row][c] = U⁻¹[c][row]
                    for (int64_t c = 0; c < width; ++c)
                        target[row * width + c] =
                            p * width + c < n ? inverse[(row / width * kBlock + p * width + c) * width + row % width]
                                              : Real(0);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t c = 0; c < before; ++c) {
                const int64_t from = c * width;
                Real* panel = columns + c * k_ * width;
                for (int64_t p = 0; p < own; ++p)
                    tile_product(sum + p * width * width, width,
                                 PanelLeft<Real>{upper.data() + (p * first + from) * width}, panel + from * width,
                                 first - from, width, width, Real(0), Real(1));
                for (int64_t p = 0; p < own; ++p)
                    tile_product(panel + (first + p * width) * width, width,
                                 PanelLeft<Real>{inverse + p * kBlock * width}, sum, std::min(n, (p + 1) * width),
                                 std::min(width, n - p * width), width, Real(0), Real(-1));
            }
        }
    }

    Real* u_;
    int64_t k_;
    int threads_;
    int64_t count_, blocks_;
    Buffer<Real> inverses_, packed_, own_;  // U_JJ⁻¹ of all blocks; a block row; scratch of each thread
    Buffer<double> floor_;
};

template <class Real>
int64_t factorise(Real* factor, Real* inverse, const double* matrix, double ridge, bool reverse, int64_t k,
                  int threads) {
    Buffer<Real> reversed(static_cast<size_t>(reverse ? k * k : 0));
    Real* u = reverse ? reversed.data() : factor;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < k; ++i) {
        const double* source = matrix + (reverse ? k - 1 - i : i) * k;
        for (int64_t j = 0; j < i; ++j) u[i * k + j] = Real(0);
        for (int64_t j = i; j < k; ++j) u[i * k + j] = static_cast<Real>(source[reverse ? k - 1 - j : j]);
        u[i * k + i] = static_cast<Real>(source[reverse ? k - 1 - i : i] + ridge);
    }
    Factor<Real> steps(u, k, threads);
    const int64_t failed = steps.run();
    if (failed >= 0) return reverse ? k - 1 - failed : failed;
    if (inverse != nullptr) steps.invert(inverse);
    // The trailing update touched the lower parts of diagonal tiles.
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < k; ++i) std::fill(u + i * k, u + i * k + i, Real(0));
    if (!reverse) return -1;
    constexpr int64_t side =
        8;  // a cache line: rows k apart may all fall into one set of the cache. R[i][j] = U[k − 1 − j][k − 1 − i]
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < panels(k, side); ++i)
        for (int64_t j = 0; j < panels(k, side); ++j)
            for (int64_t row = i * side; row < std::min(k, (i + 1) * side); ++row)
                for (int64_t column = j * side; column < std::min(k, (j + 1) * side); ++column)
                    factor[row * k + column] = u[(k - 1 - column) * k + k - 1 - row];
    return -1;
}

}  // namespace

int64_t cholesky(void* factor, void* inverse, const double* matrix, ElementType type, double ridge, bool reverse,
                 int64_t k, int threads) {
    if (type == ElementType::float64)
        return factorise(static_cast<double*>(factor), static_cast<double*>(inverse), matrix, ridge, reverse, k,
                         threads);
    return factorise(static_cast<float*>(factor), static_cast<float*>(inverse), matrix, ridge, reverse, k, threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// masked_cg: a few conjugate gradient steps on  H_SS x_S = c_S  for every row           H [k, k], c, x, mask [rows, k]
//
// Algorithm: rows do not meet, so a chunk of them runs its whole iteration by itself: the products of its search
//   directions with H are one packed multiplication (panel.h), everything else stays in the cache; a chunk stops when
//   all its rows have, and rows that have stopped take no part in the product. H should have a unit diagonal, which is
//   the preconditioner; or H ≈ BᵀB + D with a few rows of B, inverted on each row's support, which halves the steps for
//   next to nothing; or a matrix M such as (H + ρI)⁻¹, which saves as many and costs another product a step.
// FLOPs: 2 rows k² a step, twice that with M. Memory: H and M packed once and read once per chunk and step; four arrays
//   of chunk x k per thread.
//   One core of a Zen 3 (AVX2): 56 % of the peak at k = 384, 66 % at 768.
// x is where to start and what is returned; it must be zero outside the mask. worth[row] is what the last step gained,
// α r·z, as a part of what the row's error then was; a row stops when it is at most `tolerance`. The error
// (d − x) H (d − x) comes with the first product for free where the dense optimum d = H⁻¹ c is given; without it (null) the
// row's energy x·c takes its place.
// float32 with float64 dot products; bits do not depend on the number of threads.
#include "../common/element_type.h"
#include "../common/packed_matrix.h"

#include <cmath>
#include <memory>
#include <vector>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kRows = 48;

double dot(const float* a, const float* b, int64_t n) {
    constexpr int64_t lanes = 16;  // float32 chains of n/16 would do less well than float64 ones
    double sum[lanes] = {};
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes)
        for (int64_t l = 0; l < lanes; ++l) sum[l] += static_cast<double>(a[i + l]) * static_cast<double>(b[i + l]);
    double total = 0.0;
    for (; i < n; ++i) total += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    for (double part : sum) total += part;
    return total;
}

// Entries outside the mask become zero.
void restrict_to(float* values, const uint8_t* mask, int64_t n) {
    for (int64_t i = 0; i < n; ++i) values[i] = mask[i] ? values[i] : 0.0f;
}

// H ≈ BᵀB + D with `rank` rows of B: on a row's support its inverse costs no product,
// (D + BᵀB)⁻¹ r = e∘(r − Bᵀ C⁻¹ B (e∘r)), e = mask / D, C = I + B diag(e) Bᵀ (Woodbury).
class LowRank {
  public:
    LowRank(const float* basis, const float* inverse_diagonal, int64_t rank, int64_t k, int64_t rows)
        : basis_(basis), inverse_diagonal_(inverse_diagonal), rank_(rank), k_(k),
          core_(static_cast<size_t>(rows * rank * rank)), line_(static_cast<size_t>(2 * k)),
          small_(static_cast<size_t>(2 * rank)) {}

    void prepare(int64_t r, const uint8_t* mask) {
        float *weight = line_.data(), *scaled = weight + k_;
        double* core = core_.data() + r * rank_ * rank_;
        for (int64_t j = 0; j < k_; ++j) weight[j] = mask[j] ? inverse_diagonal_[j] : 0.0f;
        for (int64_t a = 0; a < rank_; ++a) {
            for (int64_t j = 0; j < k_; ++j) scaled[j] = weight[j] * basis_[a * k_ + j];
            for (int64_t b = a; b < rank_; ++b)
                core[a * rank_ + b] = quick_dot(scaled, basis_ + b * k_, k_) + (a == b ? 1.0 : 0.0);
        }
        for (int64_t j = 0; j < rank_; ++j) {  // C = UᵀU, in place; at least the identity, so that it cannot fail
            double* row = core + j * rank_;
            const double scale = 1.0 / std::sqrt(row[j]);
            for (int64_t c = j; c < rank_; ++c) row[c] *= scale;
            for (int64_t i = j + 1; i < rank_; ++i)
                for (int64_t c = i; c < rank_; ++c) core[i * rank_ + c] -= row[i] * row[c];
        }
    }

    void solve(float* z, const float* residual, const uint8_t* mask, int64_t r) {
        const double* core = core_.data() + r * rank_ * rank_;
        double* u = small_.data();
        float* scaled = line_.data();
        for (int64_t j = 0; j < k_; ++j) scaled[j] = mask[j] ? inverse_diagonal_[j] * residual[j] : 0.0f;
        for (int64_t a = 0; a < rank_; ++a) u[a] = quick_dot(basis_ + a * k_, scaled, k_);
        for (int64_t a = 0; a < rank_; ++a) {
            u[a] /= core[a * rank_ + a];
            for (int64_t b = a + 1; b < rank_; ++b) u[b] -= core[a * rank_ + b] * u[a];
        }
        for (int64_t a = rank_ - 1; a >= 0; --a) {
            for (int64_t b = a + 1; b < rank_; ++b) u[a] -= core[a * rank_ + b] * u[b];
            u[a] /= core[a * rank_ + a];
        }
        std::copy(residual, residual + k_, z);
        for (int64_t a = 0; a < rank_; ++a) {
            const float* row = basis_ + a * k_;
            const float scale = static_cast<float>(u[a]);
            for (int64_t j = 0; j < k_; ++j) z[j] -= scale * row[j];
        }
        for (int64_t j = 0; j < k_; ++j) z[j] = mask[j] ? z[j] * inverse_diagonal_[j] : 0.0f;
    }

  private:
    // float32 chains of n / 64: enough for a preconditioner.
    static double quick_dot(const float* a, const float* b, int64_t n) {
        constexpr int64_t lanes = 64;
        float sum[lanes] = {};
        int64_t i = 0;
        for (; i + lanes <= n; i += lanes)
            for (int64_t l = 0; l < lanes; ++l) sum[l] += a[i + l] * b[i + l];
        float total = 0.0f;
        for (; i < n; ++i) total += a[i] * b[i];
        for (float part : sum) total += part;
        return static_cast<double>(total);
    }

    const float *basis_, *inverse_diagonal_;
    int64_t rank_, k_;
    Buffer<double> core_;
    Buffer<float> line_;
    Buffer<double> small_;
};

// The preconditioners to choose from; all null: the unit diagonal itself.
struct Preconditioner {
    PackedMatrix<float>* inverse;
    const float *basis, *inverse_diagonal;
    int64_t rank;
};

class Chunk {
  public:
    Chunk(PackedMatrix<float>& system, const Preconditioner& precondition, int64_t k)
        : system_(system), inverse_(precondition.inverse),
          low_rank_(precondition.basis, precondition.inverse_diagonal, precondition.rank, k, kRows),
          ranked_(precondition.basis != nullptr), k_(k), residual_(static_cast<size_t>(kRows * k)),
          direction_(static_cast<size_t>(kRows * k)), packed_(static_cast<size_t>(kRows * k)),
          product_(static_cast<size_t>(kRows * k)), solved_(static_cast<size_t>(kRows * k)) {}

    void run(float* x, double* worth, const float* target, const float* dense, const uint8_t* mask, int64_t rows,
             int64_t steps, double tolerance) {
        system_.multiply(product_.data(), x, rows);
        for (int64_t i = 0; i < rows * k_; ++i) residual_[i] = mask[i] ? target[i] - product_[i] : 0.0f;
        double angle[kRows];  // r·z of each row
        bool open[kRows];
        for (int64_t r = 0; ranked_ && r < rows; ++r) low_rank_.prepare(r, mask + r * k_);
        solve(mask, rows);
        std::copy(solved_.data(), solved_.data() + rows * k_, direction_.data());
        for (int64_t r = 0; r < rows; ++r) {
            angle[r] = dot(residual_.data() + r * k_, solved_.data() + r * k_, k_);
            loss_[r] =
                dense == nullptr ? -1.0 : loss(x + r * k_, target + r * k_, dense + r * k_, product_.data() + r * k_);
            open[r] = angle[r] > 0.0;
            worth[r] = 0.0;
        }
        for (int64_t step = 0; step < steps; ++step) {
            int64_t count = 0;  // rows that have stopped cost no product
            for (int64_t r = 0; r < rows; ++r)
                if (open[r])
                    std::copy(direction_.data() + r * k_, direction_.data() + (r + 1) * k_,
                              packed_.data() + count++ * k_);
            if (count == 0) break;
            system_.multiply(product_.data(), packed_.data(), count);
            count = 0;
            for (int64_t r = 0; r < rows; ++r) {
                if (!open[r]) continue;
                float* product = product_.data() + count++ * k_;
                restrict_to(product, mask + r * k_, k_);
                open[r] = advance(x + r * k_, target + r * k_, product, r, angle[r], worth[r], tolerance);
            }
            if (step + 1 == steps) break;
            solve(mask, rows);
            for (int64_t r = 0; r < rows; ++r) {
                if (!open[r]) continue;
                const float* z = solved_.data() + r * k_;
                const double next = dot(residual_.data() + r * k_, z, k_);
                const float turn = static_cast<float>(next / angle[r]);
                angle[r] = next;
                open[r] = next > 0.0;
                float* direction = direction_.data() + r * k_;
                for (int64_t j = 0; j < k_; ++j) direction[j] = z[j] + turn * direction[j];
            }
        }
    }

  private:
    // solved_ := preconditioner of residual_.
    void solve(const uint8_t* mask, int64_t rows) {
        if (inverse_ != nullptr) {
            inverse_->multiply(solved_.data(), residual_.data(), rows);
            restrict_to(solved_.data(), mask, rows * k_);
            return;
        }
        for (int64_t r = 0; r < rows; ++r) {
            const float* residual = residual_.data() + r * k_;
            if (ranked_)
                low_rank_.solve(solved_.data() + r * k_, residual, mask + r * k_, r);
            else
                std::copy(residual, residual + k_, solved_.data() + r * k_);
        }
    }

    // One step along the direction; whether the row wants another.
    bool advance(float* x, const float* target, const float* product, int64_t r, double angle, double& worth,
                 double tolerance) {
        const float* direction = direction_.data() + r * k_;
        float* residual = residual_.data() + r * k_;
        const double curvature = dot(direction, product, k_);
        if (!(curvature > 0.0)) return false;
        const double length = angle / curvature;
        const float alpha = static_cast<float>(length);
        for (int64_t j = 0; j < k_; ++j) {
            x[j] += alpha * direction[j];
            residual[j] -= alpha * product[j];
        }
        const double gain = length * angle;
        if (loss_[r] >= 0.0) loss_[r] = std::max(loss_[r] - gain, 0.0);
        const double whole = loss_[r] >= 0.0 ? loss_[r] : dot(x, target, k_);
        worth = whole > 0.0 ? gain / whole : 0.0;
        return worth > tolerance;
    }

    // (d − x) H (d − x), with H d = c and the product x H.
    double loss(const float* x, const float* target, const float* dense, const float* product) const {
        double sum = 0.0;
        for (int64_t j = 0; j < k_; ++j)
            sum += (static_cast<double>(dense[j]) - static_cast<double>(x[j])) *
                   (static_cast<double>(target[j]) - static_cast<double>(product[j]));
        return std::max(sum, 0.0);
    }

    PackedMatrix<float>& system_;
    PackedMatrix<float>* inverse_;
    LowRank low_rank_;
    bool ranked_;
    int64_t k_;
    double loss_[kRows];
    Buffer<float> residual_, direction_, packed_, product_, solved_;
};

}  // namespace

void masked_cg(float* x, double* worth, const float* system, const float* inverse, const float* basis,
               const float* inverse_diagonal, int64_t rank, const float* target, const float* dense,
               const uint8_t* mask, int64_t rows, int64_t columns, int64_t steps, double tolerance, int threads) {
    if (rows == 0 || columns == 0) return;
    PackedMatrix<float> packed(system, columns, threads), second(inverse, columns, threads);
    const Preconditioner precondition = {inverse == nullptr ? nullptr : &second, basis, inverse_diagonal, rank};
    const int64_t chunks = (rows + kRows - 1) / kRows;
    threads = static_cast<int>(std::min<int64_t>(threads, chunks));
    std::vector<std::unique_ptr<Chunk>> own;
    for (int t = 0; t < threads; ++t) own.emplace_back(new Chunk(packed, precondition, columns));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t row = 0; row < rows; row += kRows)
        own[omp_get_thread_num()]->run(x + row * columns, worth + row, target + row * columns,
                                       dense == nullptr ? nullptr : dense + row * columns, mask + row * columns,
                                       std::min(kRows, rows - row), steps, tolerance);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

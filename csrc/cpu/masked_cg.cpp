// SPDX-License-Identifier: Apache-2.0
// masked_cg: a few conjugate gradient steps on  H_SS x_S = c_S  for every row           H [k, k], c, x, mask [rows, k]
//
// Algorithm: rows do not meet, so a chunk of them runs its whole iteration by itself: the products of its search
//   directions with H are one packed multiplication (panel.h), everything else stays in the cache; a chunk stops when
//   all its rows have, and rows that have stopped take no part in the product. H should have a unit diagonal, which is
//   the preconditioner; or H ≈ BᵀB + D with a few rows of B, inverted on each row's support, which halves the steps for
//   a third of a product once and little a step; or a matrix M such as (H + ρI)⁻¹, which saves as many and costs another product a step.
// FLOPs: 2 rows k² a step, twice that with M. Memory: H and M packed once and read once per chunk and step; six arrays
//   of chunk x k per thread.
//   One core of a Zen 3 (AVX2): 74 % of the peak at k = 384, 65 % at 768.
// x is where to start and what is returned; it must be zero outside the mask. worth[row] is what the last step gained,
// α r·z, as a part of what the row's error then was; a row stops when it is at most `tolerance`. The error
// (d − x) H (d − x) comes with the first product for free where the dense optimum d = H⁻¹ c is given; without it (null) the
// row's energy x·c takes its place.
// float32 with float64 dot products; bits do not depend on the number of threads.
#include "../common/element_type.h"
#include "../common/masked.h"
#include "../common/packed_matrix.h"

#include <cmath>
#include <memory>
#include <vector>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kRows = 96;  // enough that the system, read once for them, does not limit the product

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

// H ≈ BᵀB + D with `rank` rows of B: on a row's support its inverse costs no product with H,
// (D + BᵀB)⁻¹ r = e∘(r − Bᵀ C⁻¹ B (e∘r)), e = mask / D, C = I + B diag(e) Bᵀ (Woodbury). For a chunk of rows all of it is
// three products: of the e with the columns B_a∘B_b, which gives the C; of e∘r with Bᵀ; and of what C⁻¹ made of it with B.
class LowRank {
    static constexpr int64_t width = kPanel<float>;

  public:
    LowRank(const float* basis, const float* inverse_diagonal, int64_t rank, int64_t k, int64_t rows)
        : basis_(basis), inverse_diagonal_(inverse_diagonal), rank_(rank), padded_(panels(rank, width) * width), k_(k),
          core_(static_cast<size_t>(rows * rank * rank)), scaled_(static_cast<size_t>(rank == 0 ? 0 : rows * k)),
          small_(static_cast<size_t>(rows * padded_)), line_(static_cast<size_t>(rank)),
          columns_(static_cast<size_t>(rank == 0 ? 0 : k * width)), right_(static_cast<size_t>(padded_ * k)),
          down_(static_cast<size_t>(panels(k, width) * width * rank)) {
        for (int64_t p = 0; p < padded_; p += width)  // Bᵀ and B, packed
            for (int64_t j = 0; j < k; ++j)
                for (int64_t a = 0; a < width; ++a)
                    right_[p * k + j * width + a] = p + a < rank ? basis[(p + a) * k + j] : 0.0f;
        for (int64_t p = 0; p * width < k && rank > 0; ++p)
            pack_panel(down_.data() + p * width * rank, basis + p * width, rank, k, std::min(width, k - p * width));
    }

    // The factors of C of every row.
    void prepare(const uint8_t* mask, int64_t rows) {
        for (int64_t r = 0; r < rows; ++r) keep_only(scaled_.data() + r * k_, inverse_diagonal_, mask + r * k_, k_);
        const int64_t pairs = upper_tiles(rank_);
        for (int64_t first = 0; first < pairs; first += width) {
            const int64_t count = std::min(width, pairs - first);
            const float *left[width], *right[width];
            for (int64_t c = 0; c < count; ++c) {
                const UpperTile pair(first + c, rank_);
                left[c] = basis_ + pair.row * k_;
                right[c] = basis_ + pair.column * k_;
            }
            for (int64_t j = 0; j < k_; ++j)
                for (int64_t c = 0; c < width; ++c)
                    columns_[j * width + c] = c < count ? left[c][j] * right[c][j] : 0.0f;
            tile_product(small_.data(), width, RowsLeft<float>{scaled_.data(), k_}, columns_.data(), k_, rows, width,
                         0.0f, 1.0f);
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < count; ++c) {
                    const UpperTile pair(first + c, rank_);
                    core_[(r * rank_ + pair.row) * rank_ + pair.column] =
                        static_cast<double>(small_[r * width + c]) + (pair.row == pair.column ? 1.0 : 0.0);
                }
        }
        for (int64_t r = 0; r < rows; ++r) factor(core_.data() + r * rank_ * rank_);
    }

    // z := (D + BᵀB)⁻¹ residual on the support, for the `count` rows that `open` names; in z they keep their places.
    void solve(float* z, const float* residual, const uint8_t* mask, const int64_t* open, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            keep_product(scaled_.data() + i * k_, inverse_diagonal_, residual + open[i] * k_, mask + open[i] * k_, k_);
        for (int64_t first = 0; first < rank_; first += width)
            tile_product(small_.data() + first, padded_, RowsLeft<float>{scaled_.data(), k_},
                         right_.data() + first * k_, k_, count, width, 0.0f, 1.0f);
        for (int64_t i = 0; i < count; ++i) substitute(small_.data() + i * padded_, open[i]);
        for (int64_t i = 0; i < count; ++i)
            std::copy(residual + open[i] * k_, residual + (open[i] + 1) * k_, scaled_.data() + i * k_);
        for (int64_t p = 0; p * width < k_; ++p)
            tile_product(scaled_.data() + p * width, k_, RowsLeft<float>{small_.data(), padded_},
                         down_.data() + p * width * rank_, rank_, count, std::min(width, k_ - p * width), 1.0f, -1.0f);
        for (int64_t i = 0; i < count; ++i)
            keep_product(z + open[i] * k_, inverse_diagonal_, scaled_.data() + i * k_, mask + open[i] * k_, k_);
    }

  private:
    void factor(double* core) const {  // C = UᵀU, in place; at least the identity, so that it cannot fail
        for (int64_t j = 0; j < rank_; ++j) {
            double* row = core + j * rank_;
            const double scale = 1.0 / std::sqrt(row[j]);
            for (int64_t c = j; c < rank_; ++c) row[c] *= scale;
            for (int64_t i = j + 1; i < rank_; ++i)
                for (int64_t c = i; c < rank_; ++c) core[i * rank_ + c] -= row[i] * row[c];
        }
    }

    void substitute(float* values, int64_t r) {
        const double* core = core_.data() + r * rank_ * rank_;
        double* u = line_.data();
        std::copy(values, values + rank_, u);
        for (int64_t a = 0; a < rank_; ++a) {
            u[a] /= core[a * rank_ + a];
            for (int64_t b = a + 1; b < rank_; ++b) u[b] -= core[a * rank_ + b] * u[a];
        }
        for (int64_t a = rank_ - 1; a >= 0; --a) {
            for (int64_t b = a + 1; b < rank_; ++b) u[a] -= core[a * rank_ + b] * u[b];
            u[a] /= core[a * rank_ + a];
        }
        std::copy(u, u + rank_, values);
    }

    const float *basis_, *inverse_diagonal_;
    int64_t rank_, padded_, k_;
    Buffer<double> core_;
    Buffer<float> scaled_, small_;
    Buffer<double> line_;
    Buffer<float> columns_, right_, down_;
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
        for (int64_t r = 0; r < rows; ++r) {
            keep_difference(residual_.data() + r * k_, target + r * k_, product_.data() + r * k_, mask + r * k_, k_);
            loss_[r] =
                dense == nullptr ? -1.0 : loss(x + r * k_, target + r * k_, dense + r * k_, product_.data() + r * k_);
            worth[r] = 0.0;
            open_[r] = r;
        }
        count_ = rows;
        if (ranked_) low_rank_.prepare(mask, rows);
        solve(mask);
        std::copy(solved_.data(), solved_.data() + rows * k_, direction_.data());
        keep_open([&](int64_t r) { return (angle_[r] = dot(line(residual_, r), line(solved_, r), k_)) > 0.0; });
        for (int64_t step = 0; step < steps && count_ > 0; ++step) {
            for (int64_t i = 0; i < count_; ++i)
                std::copy(line(direction_, open_[i]), line(direction_, open_[i] + 1), packed_.data() + i * k_);
            system_.multiply(product_.data(), packed_.data(), count_);
            const float* product = product_.data();
            keep_open([&](int64_t r) {
                const bool more = advance(x + r * k_, target + r * k_, product, mask + r * k_, r, worth[r], tolerance);
                product += k_;
                return more;
            });
            if (step + 1 == steps) break;
            solve(mask);
            keep_open([&](int64_t r) {
                const float* z = line(solved_, r);
                const double next = dot(line(residual_, r), z, k_);
                const float turn = static_cast<float>(next / angle_[r]);
                angle_[r] = next;
                float* direction = line(direction_, r);
                for (int64_t j = 0; j < k_; ++j) direction[j] = z[j] + turn * direction[j];
                return next > 0.0;
            });
        }
    }

  private:
    float* line(Buffer<float>& rows, int64_t r) const { return rows.data() + r * k_; }

    // Rows for which `still` is false take part in nothing any more.
    template <class Condition>
    void keep_open(Condition still) {
        int64_t left = 0;
        for (int64_t i = 0; i < count_; ++i) {
            const int64_t r = open_[i];
            if (still(r)) open_[left++] = r;
        }
        count_ = left;
    }

    // solved_ := preconditioner of residual_, of the open rows.
    void solve(const uint8_t* mask) {
        if (ranked_) return low_rank_.solve(solved_.data(), residual_.data(), mask, open_, count_);
        for (int64_t i = 0; i < count_; ++i)
            std::copy(line(residual_, open_[i]), line(residual_, open_[i] + 1),
                      (inverse_ == nullptr ? solved_ : packed_).data() + (inverse_ == nullptr ? open_[i] : i) * k_);
        if (inverse_ == nullptr) return;
        inverse_->multiply(product_.data(), packed_.data(), count_);
        for (int64_t i = 0; i < count_; ++i)
            keep_only(line(solved_, open_[i]), product_.data() + i * k_, mask + open_[i] * k_, k_);
    }

    // One step along the direction; whether the row wants another.
    bool advance(float* x, const float* target, const float* product, const uint8_t* mask, int64_t r, double& worth,
                 double tolerance) {
        const float* direction = line(direction_, r);
        float* residual = line(residual_, r);
        // The direction is zero outside the mask, and so is what counts of the product.
        const double curvature = dot(direction, product, k_);
        if (!(curvature > 0.0)) return false;
        const double length = angle_[r] / curvature;
        const float alpha = static_cast<float>(length);
        for (int64_t j = 0; j < k_; ++j) x[j] += alpha * direction[j];
        under_mask<float>(mask, k_, [=](auto kept, int64_t j, auto whole) {
            const auto left = at(residual + j, whole);
            put(residual + j, kept ? left - alpha * at(product + j, whole) : left);
        });
        const double gain = length * angle_[r];
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
    double loss_[kRows], angle_[kRows];  // angle: r·z
    int64_t open_[kRows], count_ = 0;    // rows that have not stopped, in order
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

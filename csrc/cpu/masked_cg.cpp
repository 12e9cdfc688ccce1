// SPDX-License-Identifier: Apache-2.0
// masked_cg: a few conjugate gradient steps on  H_SS x_S = c_S  for every row           H [k, k], c, x, mask [rows, k]
//
// Algorithm: rows do not meet, so a chunk of them runs its whole iteration by itself: the products of its search
//   directions with H are one packed multiplication (panel.h), everything else stays in the cache; a chunk stops when
//   all its rows have. H should have a unit diagonal, which is the preconditioner; a second matrix M (null: none), such
//   as (H + ρI)⁻¹, costs another product a step and saves more than half of the steps where H is badly conditioned.
// FLOPs: 2 rows k² a step, twice that with M. Memory: H and M packed once and read once per chunk and step; four arrays
//   of chunk x k per thread.
// x is where to start and what is returned; it must be zero outside the mask. worth[row] is what the last step gained,
// α r·z, as a part of what the row's error then was; a row stops when it is at most `tolerance`. The error
// (d − x) H (d − x) comes with the first product for free where the dense optimum d = H⁻¹ c is given; without it (null) the
// row's energy x·c takes its place.
// float32 with float64 dot products; bits do not depend on the number of threads.
#include "../common/element_type.h"
#include "../common/panel.h"

#include <memory>
#include <vector>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kRows = 48;

class Packed {
  public:
    Packed(const float* matrix, int64_t k, int threads)
        : k_(k), data_(static_cast<size_t>(matrix == nullptr ? 0 : panels(k, kPanel<float>) * k * kPanel<float>)) {
        if (matrix == nullptr) return;
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t p = 0; p < panels(k, kPanel<float>); ++p)
            pack_panel(data_.data() + p * k * kPanel<float>, matrix + p * kPanel<float>, k, k,
                       std::min<int64_t>(kPanel<float>, k - p * kPanel<float>));
    }

    void multiply(float* out, const float* left, int64_t rows) {
        for (int64_t p = 0; p < panels(k_, kPanel<float>); ++p)
            tile_product(out + p * kPanel<float>, k_, RowsLeft<float>{left, k_}, data_.data() + p * k_ * kPanel<float>,
                         k_, rows, std::min<int64_t>(kPanel<float>, k_ - p * kPanel<float>), 0.0f, 1.0f);
    }

  private:
    int64_t k_;
    Buffer<float> data_;
};

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

class Chunk {
  public:
    Chunk(Packed& system, Packed* precondition, int64_t k)
        : system_(system), precondition_(precondition), k_(k), residual_(static_cast<size_t>(kRows * k)),
          direction_(static_cast<size_t>(kRows * k)), product_(static_cast<size_t>(kRows * k)),
          solved_(static_cast<size_t>(precondition == nullptr ? 0 : kRows * k)) {}

    void run(float* x, double* worth, const float* target, const float* dense, const uint8_t* mask, int64_t rows,
             int64_t steps, double tolerance) {
        const int64_t size = rows * k_;
        system_.multiply(product_.data(), x, rows);
        for (int64_t i = 0; i < size; ++i) residual_[i] = mask[i] ? target[i] - product_[i] : 0.0f;
        double angle[kRows];  // r·z of each row
        bool open[kRows];
        float* z = solve(mask, rows);
        std::copy(z, z + size, direction_.data());
        for (int64_t r = 0; r < rows; ++r) {
            angle[r] = dot(residual_.data() + r * k_, z + r * k_, k_);
            loss_[r] =
                dense == nullptr ? -1.0 : loss(x + r * k_, target + r * k_, dense + r * k_, product_.data() + r * k_);
            open[r] = angle[r] > 0.0;
            worth[r] = 0.0;
        }
        for (int64_t step = 0; step < steps && std::any_of(open, open + rows, [](bool o) { return o; }); ++step) {
            system_.multiply(product_.data(), direction_.data(), rows);
            restrict_to(product_.data(), mask, size);
            for (int64_t r = 0; r < rows; ++r)
                if (open[r]) open[r] = advance(x + r * k_, target + r * k_, r, angle[r], worth[r], tolerance);
            if (step + 1 == steps) break;
            z = solve(mask, rows);
            for (int64_t r = 0; r < rows; ++r) {
                if (!open[r]) continue;
                const double next = dot(residual_.data() + r * k_, z + r * k_, k_);
                const float turn = static_cast<float>(next / angle[r]);
                angle[r] = next;
                open[r] = next > 0.0;
                float* direction = direction_.data() + r * k_;
                for (int64_t j = 0; j < k_; ++j) direction[j] = z[r * k_ + j] + turn * direction[j];
            }
        }
    }

  private:
    float* solve(const uint8_t* mask, int64_t rows) {
        if (precondition_ == nullptr) return residual_.data();
        precondition_->multiply(solved_.data(), residual_.data(), rows);
        restrict_to(solved_.data(), mask, rows * k_);
        return solved_.data();
    }

    // One step along the direction; whether the row wants another.
    bool advance(float* x, const float* target, int64_t r, double angle, double& worth, double tolerance) {
        const float *direction = direction_.data() + r * k_, *product = product_.data() + r * k_;
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

    Packed& system_;
    Packed* precondition_;
    int64_t k_;
    double loss_[kRows];
    Buffer<float> residual_, direction_, product_, solved_;
};

}  // namespace

void masked_cg(float* x, double* worth, const float* system, const float* precondition, const float* target,
               const float* dense, const uint8_t* mask, int64_t rows, int64_t columns, int64_t steps, double tolerance,
               int threads) {
    if (rows == 0 || columns == 0) return;
    Packed packed(system, columns, threads), second(precondition, columns, threads);
    const int64_t chunks = (rows + kRows - 1) / kRows;
    threads = static_cast<int>(std::min<int64_t>(threads, chunks));
    std::vector<std::unique_ptr<Chunk>> own;
    for (int t = 0; t < threads; ++t)
        own.emplace_back(new Chunk(packed, precondition == nullptr ? nullptr : &second, columns));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t row = 0; row < rows; row += kRows)
        own[omp_get_thread_num()]->run(x + row * columns, worth + row, target + row * columns,
                                       dense == nullptr ? nullptr : dense + row * columns, mask + row * columns,
                                       std::min(kRows, rows - row), steps, tolerance);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

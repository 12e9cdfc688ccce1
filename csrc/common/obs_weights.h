// SPDX-License-Identifier: Apache-2.0
// The weights that greedy OBS ends in, to float64 accuracy: w = w₀ − A[:, P] z with A_PP z = w₀[P] for the removed P.
//
// z comes from the factor L of A_PP that the removals left, in arithmetic `Real`. What w then is at P, where it should
// be zero, is the residual of z, taken in float64; it is solved for again until the weights stand still.
#pragma once

#include "obs_row.h"

namespace pyprune {
namespace PYPRUNE_ISA {

// target[j] += Σ_i factor[i] matrix[row[i]][j]
inline void add_rows(double* target, const double* matrix, int64_t k, const int64_t* row, const double* factor,
                     int64_t n) {
    using S = Simd<double>;
    constexpr int64_t together = 8;
    for (int64_t i = 0; i < n; i += together) {
        const double* source[together];
        double scale[together];
        for (int64_t r = 0; r < together; ++r) {
            source[r] = matrix + row[std::min(i + r, n - 1)] * k;
            scale[r] = i + r < n ? factor[i + r] : 0.0;
        }
        int64_t j = 0;
        for (; j + S::lanes <= k; j += S::lanes) {
            S::Vector sum = S::load(target + j), other{};
            for (int64_t r = 0; r < together; r += 2) {
                sum += scale[r] * S::load(source[r] + j);
                other += scale[r + 1] * S::load(source[r + 1] + j);
            }
            S::store(target + j, sum + other);
        }
        for (; j < k; ++j)
            for (int64_t r = 0; r < together; ++r) target[j] += scale[r] * source[r][j];
    }
}

// 1 / value, rounded to a power of two.
inline double power_near(double value) {
    return value > 0.0 && std::isfinite(value) ? std::ldexp(1.0, -std::ilogb(value)) : 1.0;
}

template <class Real>
class WeightSolver {
    using S = Simd<Real>;
    static constexpr int64_t lanes = S::lanes;
    static constexpr int kRounds = 8;
    // Rounds end where the next one, by the ratio of the last two, would move no weight by more than this, relative to
    // the largest. That ratio, 1e-3 to 1e-6 on systems that float32 is used for, is right to a factor of ten.
    static constexpr double kStill = 1e-9;

  public:
    // `inverse` is A in float64; the removals saw unit · A.
    WeightSolver(Carver& memory, const double* inverse, double unit, int64_t k, int64_t steps)
        : inverse_(inverse), unit_(unit), k_(k), z_(memory.take<double>(steps)), x_(memory.take<Real>(steps + lanes)),
          change_(memory.take<double>(k)) {}

    // False where the weights do not come to rest. `scale` is that of the weights the removals saw.
    bool run(double* weight, const double* dense, const Removals<Real>& gone, double scale) {
        const int64_t n = gone.count;
        std::copy(dense, dense + k_, weight);
        std::copy(gone.alpha, gone.alpha + n, x_);
        backward(gone);
        double before = n == 0 ? 0.0 : move(weight, gone, unit_ / scale);
        bool still = before == 0.0;
        for (int round = 0; round < kRounds && !still; ++round) {
            double worst = 0.0;
            for (int64_t i = 0; i < n; ++i) worst = std::max(worst, std::abs(weight[gone.column[i]]));
            if (!std::isfinite(worst)) return false;
            scale = power_near(worst);
            for (int64_t i = 0; i < n; ++i) x_[i] = static_cast<Real>(weight[gone.column[i]] * scale);
            forward(gone);
            backward(gone);
            const double moved = move(weight, gone, unit_ / scale);
            still = moved * moved <= kStill * before;
            before = moved;
        }
        for (int64_t i = 0; i < n; ++i) weight[gone.column[i]] = 0.0;
        return still;
    }

  private:
    // w −= A[:, P] x · unit; how far that moved the weights to be kept, relative to the largest of them.
    double move(double* weight, const Removals<Real>& gone, double unit) {
        const int64_t n = gone.count;
        for (int64_t i = 0; i < n; ++i) z_[i] = static_cast<double>(x_[i]) * unit;
        std::fill(change_, change_ + k_, 0.0);
        add_rows(change_, inverse_, k_, gone.column, z_, n);
        for (int64_t i = 0; i < n; ++i) {
            weight[gone.column[i]] -= change_[gone.column[i]];
            change_[gone.column[i]] = 0.0;
        }
        double moved = 0.0, largest = 0.0;
        for (int64_t j = 0; j < k_; ++j) {
            weight[j] -= change_[j];
            moved = std::max(moved, std::abs(change_[j]));
            largest = std::max(largest, std::abs(weight[j]));
        }
        return moved == 0.0 ? 0.0 : moved / largest;
    }

    // x = L⁻¹ x, a vector of unknowns at a time: what the ones before take from them, then among themselves.
    void forward(const Removals<Real>& gone) {
        for (int64_t first = 0; first < gone.count; first += lanes) {
            const int64_t last = std::min(gone.count, first + lanes);
            for (int64_t t = first; t < last; ++t) {
                const Real* row = gone.row(t);
                typename S::Vector sum{};
                for (int64_t q = 0; q < first; q += lanes) sum += S::load(row + q) * S::load(x_ + q);
                x_[t] -= sum_lanes<Real>(sum);
            }
            for (int64_t t = first; t < last; ++t) {
                const Real* row = gone.row(t);
                Real value = x_[t];
                for (int64_t q = first; q < t; ++q) value -= row[q] * x_[q];
                x_[t] = value * gone.inverse[t];
            }
        }
    }

    // x = L⁻ᵀ x, likewise.
    void backward(const Removals<Real>& gone) {
        for (int64_t first = (gone.count - 1) / lanes * lanes; first >= 0; first -= lanes) {
            const int64_t last = std::min(gone.count, first + lanes);
            for (int64_t t = last - 1; t >= first; --t) {
                x_[t] *= gone.inverse[t];
                const Real* row = gone.row(t);
                for (int64_t q = first; q < t; ++q) x_[q] -= row[q] * x_[t];
            }
            for (int64_t q = 0; q < first; q += lanes) {
                typename S::Vector value = S::load(x_ + q);
                for (int64_t t = first; t < last; ++t) value -= x_[t] * S::load(gone.row(t) + q);
                S::store(x_ + q, value);
            }
        }
    }

    const double* inverse_;
    double unit_;
    int64_t k_;
    double* z_;
    Real* x_;
    double* change_;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// The principal tableau of a bordered symmetric matrix [[K, b], [bᵀ, 0]] with respect to a set N of its columns, R the
// rest (Goodnight 1979, the sweep operator). What is read of it, with E −1 on N and +1 on R:
//
//   P_NN = −K_NN⁻¹     P_NR = K_NN⁻¹ K_NR     P_RR = K_RR − K_RN K_NN⁻¹ K_NR     y_N = K_NN⁻¹ b_N     y_R = b_R − K_RN y_N
//
// It is never written down. With K_NN = LLᵀ and V = [L⁻¹ | L⁻¹ K_NR] each of its rows is a product of a column of V with
// V, and an exchange of p in N for q in R leaves P − XᵀB⁻¹X off the diagonal: B = P_{pq,pq}, X its rows p and q, with
// B − E where they cross themselves. Exchanges are kept as such pairs of rows, at most kDepth of them.
//
// Columns have positions: those of N 0 .. n − 1, those of R after n rounded up to whole panels.
#pragma once

#include "carver.h"
#include "lanes.h"
#include "panel_cholesky.h"

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Real>
class Tableau {
    using S = Simd<Real>;
    using Vector = typename S::Vector;
    static constexpr int64_t wide = kPanel<Real>;
    static constexpr int64_t lanes = S::lanes;

  public:
    static constexpr int64_t kDepth = 32;

    // For at most `inside` columns in N and `columns` in all.
    Tableau(Carver& memory, int64_t inside, int64_t columns) {
        const int64_t side = PanelCholesky<Real>::padded_size(inside), size = side + columns + wide;
        const int64_t most = std::min(inside, columns / 2);
        factor_ = memory.take<Real>(PanelCholesky<Real>::factor_size(inside));
        scratch_ = memory.take<Real>(PanelCholesky<Real>::scratch_size(inside));
        panels_ = memory.take<Real>(side * side);
        right_ = memory.take<Real>(side * wide);
        outer_ = memory.take<Real>(most * (columns - most) + wide * (columns + wide));
        index_ = memory.take<int64_t>(size);
        for (Real** array : {&border_, &diagonal_}) *array = memory.take<Real>(size);
        pair_ = memory.take<Real>(2 * side);
        for (Real** array : {&row_, &step_}) *array = memory.take<Real>(2 * kDepth * size);
    }

    // K is matrix [k, k]; N = inside[n], R = outside[m]. False where K_NN is not positive definite.
    bool build(const Real* matrix, int64_t k, const int64_t* inside, int64_t n, const int64_t* outside, int64_t m,
               const Real* border) {
        matrix_ = matrix;
        k_ = k;
        n_ = n;
        m_ = m;
        depth_ = 0;
        side_ = PanelCholesky<Real>::padded_size(n);
        size_ = side_ + panels(m, wide) * wide;
        std::copy(inside, inside + n, index_);
        std::copy(outside, outside + m, index_ + side_);
        if (!invert()) return false;
        for (int64_t s = 0; s < panels(m, wide); ++s) {
            pack_outside(s);
            for (int64_t p = 0; p < side_; p += wide)  // U⁻ᵀ K_NR; U⁻¹ is zero below its diagonal
                tile_product(outer(s) + p * wide, wide, PanelLeft<Real>{panels_ + p * side_}, right_, p + wide, wide,
                             wide, Real(0), Real(1));
        }
        fill_border(border);
        return true;
    }

    int64_t size() const { return size_; }
    int64_t depth() const { return depth_; }
    int64_t outside(int64_t j) const { return side_ + j; }  // position of a column of R
    int64_t column(int64_t position) const { return index_[position]; }
    // −P_NN and P_RR on the diagonal, and y, right after the build; by position.
    const Real* diagonal() const { return diagonal_; }
    const Real* border() const { return border_; }
    // b_N K_NN⁻¹ b_N, what the fit on N is worth, right after the build.
    double energy() const { return energy_; }

    // out[i][:] = P_NR for rows first .. first + rows <= kPanel of N and strip s of R, right after the build.
    void couplings(Real* out, int64_t first, int64_t rows, int64_t s) const {
        const int64_t begin = first / wide * wide;
        tile_product(out, wide, RowsLeft<Real>{factor_ + first * side_ + begin, side_}, outer(s) + begin * wide,
                     side_ - begin, rows, wide, Real(0), Real(1));
    }

    // Exchange p of N for q of R, where B is [[−alpha, coupling], [coupling, delta]]. X and B⁻¹X follow, [2][size].
    void exchange(int64_t p, int64_t q, Real alpha, Real coupling, Real delta) {
        Real *x = row_ + 2 * depth_ * size_, *u = step_ + 2 * depth_ * size_;
        read_rows(p, q, x);
        x[p] = Real(1) - alpha;
        x[q] = x[size_ + p] = coupling;
        x[size_ + q] = delta - Real(1);
        const Real scale = Real(1) / (alpha * delta + coupling * coupling);
        for (int64_t c = 0; c < size_; ++c) {
            u[c] = scale * (coupling * x[size_ + c] - delta * x[c]);
            u[size_ + c] = scale * (coupling * x[c] + alpha * x[size_ + c]);
        }
        ++depth_;
    }
    const Real* rows() const { return row_ + 2 * (depth_ - 1) * size_; }
    const Real* steps() const { return step_ + 2 * (depth_ - 1) * size_; }

  private:
    Real* outer(int64_t strip) const { return outer_ + strip * side_ * wide; }

    // U⁻¹ of K_NN = UᵀU in panels, and by rows where the factor was.
    bool invert() {
        PanelCholesky<Real> factor(factor_, n_);
        for (int64_t a = 0; a < n_; ++a) {
            const Real* source = matrix_ + index_[a] * k_;
            for (int64_t b = a; b < n_; ++b) factor.row(a)[b] = source[index_[b]];
        }
        if (factor.factor(scratch_) >= 0) return false;
        factor.inverse_panels(panels_);
        for (int64_t p = 0; p < side_; p += wide)
            for (int64_t i = 0; i < side_; ++i)
                std::memcpy(factor_ + i * side_ + p, panels_ + p * side_ + i * wide, wide * sizeof(Real));
        return true;
    }

    void pack_outside(int64_t s) {
        const int64_t first = s * wide, count = std::min(wide, m_ - first);
        const int64_t* own = index_ + side_ + first;
        for (int64_t i = 0; i < side_; ++i) {
            Real* target = right_ + i * wide;
            std::fill(target, target + wide, Real(0));
            if (i >= n_) continue;
            const Real* source = matrix_ + index_[i] * k_;
            for (int64_t c = 0; c < count; ++c) target[c] = source[own[c]];
        }
    }

    void fill_border(const Real* b) {
        Real* half = pair_;  // L⁻¹ b_N
        std::fill(half, half + side_, Real(0));
        std::fill(border_, border_ + size_, Real(0));
        std::fill(diagonal_, diagonal_ + size_, Real(1));
        for (int64_t i = 0; i < n_; ++i) {
            const Real *line = factor_ + i * side_, value = b[index_[i]];
            for (int64_t a = 0; a < side_; ++a) half[a] += line[a] * value;
        }
        energy_ = 0.0;
        for (int64_t a = 0; a < side_; ++a) energy_ += static_cast<double>(half[a]) * half[a];
        for (int64_t i = 0; i < n_; ++i) {
            border_[i] = dot(half, factor_ + i * side_);
            diagonal_[i] = dot(factor_ + i * side_, factor_ + i * side_);
        }
        for (int64_t j = 0; j < m_; ++j) {
            const int64_t own = index_[side_ + j];
            border_[side_ + j] = b[own];
            diagonal_[side_ + j] = matrix_[own * k_ + own];
        }
        for (int64_t j = 0; j < size_ - side_; j += lanes) {
            const Real* v = outer(j / wide) + j % wide;
            Vector y = S::load(border_ + side_ + j), d = S::load(diagonal_ + side_ + j);
            for (int64_t a = 0; a < side_; ++a) {
                const Vector entry = S::load(v + a * wide);
                y -= S::broadcast(half[a]) * entry;
                d -= entry * entry;
            }
            S::store(border_ + side_ + j, y);
            S::store(diagonal_ + side_ + j, d);
        }
    }

    // Rows p of N and q of R as they are now, but for what lies on the diagonal.
    void read_rows(int64_t p, int64_t q, Real* out) {
        read_column_of_v(p, pair_);
        read_column_of_v(q, pair_ + side_);
        for (int64_t i = 0; i < side_; ++i) {
            Vector one{}, other{};
            for (int64_t a = i / wide * wide; a < side_; a += lanes) {
                const Vector v = S::load(factor_ + i * side_ + a);
                one += v * S::load(pair_ + a);
                other += v * S::load(pair_ + side_ + a);
            }
            out[i] = sum_lanes<Real>(one);
            out[size_ + i] = sum_lanes<Real>(other);
        }
        for (int64_t j = 0; j < size_ - side_; j += wide)
            tile_product(out + side_ + j, size_, RowsLeft<Real>{pair_, side_}, outer(j / wide), side_, 2, wide, Real(0),
                         Real(1));
        complete(p, out);
        complete(q, out + size_);
        for (int64_t t = 0; t < depth_; ++t) take_exchange(t, p, q, out);
    }

    // Column `position` of V.
    void read_column_of_v(int64_t position, Real* target) const {
        if (position < side_) {
            std::copy(factor_ + position * side_, factor_ + (position + 1) * side_, target);
            return;
        }
        const int64_t j = position - side_;
        const Real* source = outer(j / wide) + j % wide;
        for (int64_t a = 0; a < side_; ++a) target[a] = source[a * wide];
    }

    // From V's products to the row of the tableau as it was built.
    void complete(int64_t position, Real* row) const {
        if (position < side_) {
            for (int64_t i = 0; i < side_; ++i) row[i] = -row[i];
            return;
        }
        const Real* source = matrix_ + index_[position] * k_;
        for (int64_t j = side_; j < side_ + m_; ++j) row[j] = source[index_[j]] - row[j];
    }

    void take_exchange(int64_t t, int64_t p, int64_t q, Real* out) const {
        const Real *x = row_ + 2 * t * size_, *u = step_ + 2 * t * size_;
        const Real p0 = u[p], p1 = u[size_ + p], q0 = u[q], q1 = u[size_ + q];
        Real* other = out + size_;
        for (int64_t c = 0; c < size_; ++c) {
            out[c] -= p0 * x[c] + p1 * x[size_ + c];
            other[c] -= q0 * x[c] + q1 * x[size_ + c];
        }
    }

    Real dot(const Real* a, const Real* b) const {
        Vector sum{};
        for (int64_t i = 0; i < side_; i += lanes) sum += S::load(a + i) * S::load(b + i);
        return sum_lanes<Real>(sum);
    }

    const Real* matrix_ = nullptr;
    int64_t k_ = 0, n_ = 0, m_ = 0, side_ = 0, size_ = 0, depth_ = 0;
    double energy_ = 0.0;
    Real *factor_, *scratch_, *panels_, *right_;  // U⁻¹ by rows and in panels; K_NR, a strip
    Real* outer_;                                 // L⁻¹ K_NR, in strips
    Real *border_, *diagonal_, *pair_;
    Real *row_, *step_;  // X and B⁻¹X of every exchange
    int64_t* index_;     // by position: the column
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// Exchanges in one row: the pairs (i of N, j of R) of each group, what exchanging them gains, and the best of them. The
// algorithm is told in csrc/cpu/swap.cpp.
//
// Columns have slots: slot i of N and slot j of R hold the position (tableau.h) of the column that is there now. The slots
// of a group follow one another; those of R begin at whole vectors.
#pragma once

#include "tableau.h"

#include <limits>

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Real>
class RowSwapper {
    using S = Simd<Real>;
    using Vector = typename S::Vector;
    static constexpr int64_t wide = kPanel<Real>;
    static constexpr int64_t lanes = S::lanes;

    struct Group {
        int64_t first, count;          // slots of N
        int64_t outside, begin, size;  // slots of R, and where they were in R at the build
        int64_t place, stride;         // of its couplings
    };

  public:
    // At most `inside` columns in N, `columns` in all, in groups of `of` (0: one group).
    RowSwapper(Carver& memory, int64_t inside, int64_t columns, int64_t k, int64_t of)
        : of_(of), tableau_(memory, inside, columns), groups_(memory.take<Group>(of == 0 ? 1 : (k + of - 1) / of)),
          block_(memory.take<Real>(wide * wide)) {
        const int64_t groups = of == 0 ? 1 : std::min(columns, (k + of - 1) / of);
        const int64_t outside = columns + groups * lanes;
        for (int64_t** array : {&inside_, &outside_}) *array = memory.take<int64_t>(columns);
        in_ = memory.take<int64_t>(columns);
        out_ = memory.take<int64_t>(outside);
        for (Real** array : {&alpha_, &y_in_, &x0_, &x1_}) *array = memory.take<Real>(columns);
        for (Real** array : {&delta_, &y_out_, &square_, &u0_, &u1_}) *array = memory.take<Real>(outside);
        const int64_t breadth = of == 0 ? columns : std::min(of, columns);
        coupling_ = memory.take<Real>(columns * (breadth / 4 + lanes + 1));
    }

    // Exchange in mask[k], among `columns`, while it gains more than `least`, at most `most` times. N are the columns
    // kept, matrix and border H and c; or (`complement`) those not kept, with H⁻¹ and the dense fit. Returns the number
    // of exchanges, or −1 where the matrix is not positive definite.
    int64_t run(const Real* matrix, const Real* border, uint8_t* mask, const int64_t* columns, int64_t count, int64_t k,
                bool complement, double least, int64_t most) {
        sign_ = complement ? Real(-1) : Real(1);
        least_ = least;
        double before = std::numeric_limits<double>::infinity();
        for (int64_t done = 0;;) {
            if (!build(matrix, border, mask, columns, count, k)) return -1;
            // So many exchanges and no lower loss: gains drown in rounding.
            const double loss = -sign_ * tableau_.energy();
            if (!(loss < before)) return done;
            before = loss;
            pass<false>();
            while (best_.i >= 0 && done < most && tableau_.depth() < Tableau<Real>::kDepth) {
                exchange(mask);
                ++done;
            }
            if (best_.i < 0 || done >= most) return done;
        }
    }

    // What each column is worth: the loss of removing one that is kept, the gain of adding one that is not.
    void worth(double* value) const {
        for (int64_t i = 0; i < n_; ++i) value[tableau_.column(in_[i])] = energy(y_in_[i], alpha_[i], sign_ > 0);
        for (int64_t g = 0; g < count_; ++g)
            for (int64_t j = groups_[g].outside; j < groups_[g].outside + groups_[g].size; ++j)
                value[tableau_.column(out_[j])] = energy(y_out_[j], delta_[j], sign_ < 0);
    }

  private:
    struct Best {
        double gain;
        int64_t i, j;
        const Real* coupling;
    };

    static double energy(Real y, Real diagonal, bool kept) {
        if (diagonal > Real(0)) return static_cast<double>(y) * y / diagonal;
        return kept ? std::numeric_limits<double>::infinity() : 0.0;
    }

    bool build(const Real* matrix, const Real* border, const uint8_t* mask, const int64_t* columns, int64_t count,
               int64_t k) {
        n_ = 0;
        int64_t m = 0;
        for (int64_t c = 0; c < count; ++c) {
            const int64_t column = columns == nullptr ? c : columns[c];
            if ((mask[column] != 0) == (sign_ > 0))
                inside_[n_++] = column;
            else
                outside_[m++] = column;
        }
        if (!tableau_.build(matrix, k, inside_, n_, outside_, m, border)) return false;
        arrange(m);
        for (int64_t s = 0; s < panels(m, wide); ++s) read_couplings(s, m);
        return true;
    }

    int64_t group_of(int64_t column) const { return of_ == 0 ? 0 : column / of_; }

    // Groups that have columns in N and R alike or alone, and what is known of each column.
    void arrange(int64_t m) {
        count_ = 0;
        int64_t i = 0, j = 0, slot = 0, place = 0;
        while (i < n_ || j < m) {
            const int64_t id = std::min(i < n_ ? group_of(inside_[i]) : std::numeric_limits<int64_t>::max(),
                                        j < m ? group_of(outside_[j]) : std::numeric_limits<int64_t>::max());
            Group& group = groups_[count_++];
            group = {i, 0, slot, j, 0, place, 0};
            for (; i < n_ && group_of(inside_[i]) == id; ++i) ++group.count;
            for (; j < m && group_of(outside_[j]) == id; ++j) ++group.size;
            group.stride = panels(group.size, lanes) * lanes;
            slot += group.stride;
            place += group.count * group.stride;
        }
        slots_ = slot;
        const Real *diagonal = tableau_.diagonal(), *border = tableau_.border();
        for (i = 0; i < n_; ++i) {
            in_[i] = i;
            alpha_[i] = diagonal[i];
            y_in_[i] = border[i];
        }
        std::fill(delta_, delta_ + slots_, Real(1));
        std::fill(y_out_, y_out_ + slots_, Real(0));
        std::fill(square_, square_ + slots_, Real(-1e30));  // padding is never worth an exchange
        std::fill(out_, out_ + slots_, int64_t(-1));
        for (int64_t g = 0; g < count_; ++g)
            for (int64_t c = 0; c < groups_[g].size; ++c) {
                const int64_t own = groups_[g].outside + c, position = tableau_.outside(groups_[g].begin + c);
                out_[own] = position;
                set_outside(own, diagonal[position], border[position]);
            }
    }

    void set_outside(int64_t j, Real delta, Real y) {
        delta_[j] = delta;
        y_out_[j] = y;
        square_[j] = sign_ * y * y;
    }

    Real* coupling(const Group& group, int64_t i) const {
        return coupling_ + group.place + (i - group.first) * group.stride;
    }

    // The couplings of strip s of R with what shares a group with it.
    void read_couplings(int64_t s, int64_t m) {
        const int64_t from = s * wide, to = std::min(from + wide, m);
        for (int64_t g = 0; g < count_; ++g) {
            const Group& group = groups_[g];
            const int64_t begin = std::max(group.begin, from), end = std::min(group.begin + group.size, to);
            if (begin >= end) continue;
            for (int64_t i = group.first; i < group.first + group.count; i += wide) {
                const int64_t rows = std::min(wide, group.first + group.count - i);
                tableau_.couplings(block_, i, rows, s);
                for (int64_t r = 0; r < rows; ++r) {
                    Real* target = coupling(group, i + r) - group.begin;
                    for (int64_t j = begin; j < end; ++j) target[j] = block_[r * wide + j - from];
                    if (end == group.begin + group.size)
                        std::fill(target + end, target + group.begin + group.stride, Real(0));
                }
            }
        }
    }

    // Bring in what is not kept for what is, take up what that changes, and find the next pair.
    void exchange(uint8_t* mask) {
        const int64_t i = best_.i, j = best_.j, p = in_[i], q = out_[j];
        const Real alpha = alpha_[i], delta = delta_[j], own = *best_.coupling;
        std::swap(mask[tableau_.column(p)], mask[tableau_.column(q)]);
        tableau_.exchange(p, q, alpha, own, delta);
        const Real scale = Real(1) / (alpha * delta + own * own);
        const Real b0 = scale * (own * y_out_[j] - delta * y_in_[i]), b1 = scale * (own * y_in_[i] + alpha * y_out_[j]);
        const Real *x = tableau_.rows(), *u = tableau_.steps();
        const int64_t size = tableau_.size();
        for (int64_t a = 0; a < n_; ++a) {
            x0_[a] = x[in_[a]];
            x1_[a] = x[size + in_[a]];
            alpha_[a] += x0_[a] * u[in_[a]] + x1_[a] * u[size + in_[a]];
            y_in_[a] -= x0_[a] * b0 + x1_[a] * b1;
        }
        for (int64_t b = 0; b < slots_; ++b) {
            const int64_t c = out_[b];
            u0_[b] = c < 0 ? Real(0) : u[c];
            u1_[b] = c < 0 ? Real(0) : u[size + c];
            if (c >= 0)
                set_outside(b, delta_[b] - x[c] * u0_[b] - x[size + c] * u1_[b],
                            y_out_[b] - x[c] * b0 - x[size + c] * b1);
        }
        change_places(i, j, u, own * scale);
        alpha_[i] = alpha * scale;
        y_in_[i] = b1;
        set_outside(j, delta * scale, -b0);
        pass<true>();
    }

    // Slot i of N now holds what slot j of R held, and the other way round: their couplings are set, not updated.
    void change_places(int64_t i, int64_t j, const Real* u, Real corner) {
        const auto holds = [i](const Group& g) { return i < g.first + g.count; };
        const Group& group = *std::find_if(groups_, groups_ + count_, holds);
        Real* own = coupling(group, i) - group.outside;
        for (int64_t b = group.outside; b < group.outside + group.size; ++b) own[b] = u1_[b];
        for (int64_t a = group.first; a < group.first + group.count; ++a)
            if (a != i) (coupling(group, a) - group.outside)[j] = -u[in_[a]];
        own[j] = corner;
        x0_[i] = x1_[i] = u0_[j] = u1_[j] = Real(0);
        std::swap(in_[i], out_[j]);
    }

    // Over all pairs: their couplings after the last exchange, and the best one to exchange next.
    template <bool moved>
    void pass() {
        best_ = {least_, -1, -1, nullptr};
        for (int64_t g = 0; g < count_; ++g) {
            const Group& group = groups_[g];
            for (int64_t i = group.first; i < group.first + group.count; ++i) row<moved>(group, i);
        }
    }

    // gain = ± (α y_j² + 2 P y_i y_j − δ y_i²) / (αδ + P²), + where N is kept; compared with the best without dividing.
    template <bool moved>
    void row(const Group& group, int64_t i) {
        Real* line = coupling(group, i);
        const int64_t first = group.outside;
        const Real best = static_cast<Real>(best_.gain), alpha = alpha_[i], y = y_in_[i];
        const Vector of_square = S::broadcast(alpha), of_delta = S::broadcast(-sign_ * y * y - alpha * best);
        const Vector of_y = S::broadcast(Real(2) * sign_ * y), bar = S::broadcast(best);
        const Vector x0 = S::broadcast(x0_[i]), x1 = S::broadcast(x1_[i]);
        Vector most{};
        for (int64_t c = 0; c < group.stride; c += lanes) {
            Vector p = S::load(line + c);
            if (moved) {
                p -= x0 * S::load(u0_ + first + c) + x1 * S::load(u1_ + first + c);
                S::store(line + c, p);
            }
            const Vector value = of_square * S::load(square_ + first + c) + of_delta * S::load(delta_ + first + c) +
                                 p * (of_y * S::load(y_out_ + first + c) - bar * p);
            most = smaller<Real>(-value, most);
        }
        if (least_lane<Real>(most) < Real(0)) choose(group, i);
    }

    void choose(const Group& group, int64_t i) {
        const Real* line = coupling(group, i) - group.outside;
        const double a = alpha_[i], y = y_in_[i], sign = sign_;
        if (!(a > 0.0)) return;
        for (int64_t j = group.outside; j < group.outside + group.size; ++j) {
            const double d = delta_[j], z = y_out_[j], p = line[j];
            const double gain = sign * (a * z * z + 2.0 * p * y * z - d * y * y) / (a * d + p * p);
            if (d > 0.0 && gain > best_.gain) best_ = {gain, i, j, line + j};
        }
    }

    int64_t of_;
    Real sign_ = 1;
    double least_ = 0.0;
    Tableau<Real> tableau_;
    Group* groups_;
    int64_t count_ = 0, n_ = 0, slots_ = 0;
    int64_t *inside_, *outside_;  // columns of N and R at the build
    int64_t *in_, *out_;          // by slot: the position of its column
    Real *alpha_, *y_in_, *x0_, *x1_;
    Real *delta_, *y_out_, *square_, *u0_, *u1_;
    Real *coupling_, *block_;
    Best best_{};
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

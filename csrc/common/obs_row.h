// SPDX-License-Identifier: Apache-2.0
// Greedy OBS of one row in arithmetic `Real`: which columns go, in which order, at what loss, and the Cholesky factor
// of what went. The algorithm is told in csrc/cpu/obs.cpp.
//
// Columns that are still there have places 0 .. live_ − 1, in ascending order; what belongs to a place past them is
// padding. Rows over places (of V, and those computed ahead) lie in strips of kPanel columns, and the rows of a strip
// follow one another: a strip of V is what the micro-kernel reads, and one stream for the chain.
#pragma once

#include "lanes.h"
#include "panel.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pyprune {
namespace PYPRUNE_ISA {

// Removals of one row, and the lower triangular factor L of A[removed, removed] in the order of removal.
template <class Real>
struct Removals {
    int64_t count = 0;
    int64_t* column;     // [steps]
    Real* alpha;         // [steps]: L⁻¹ w₀[removed]
    Real* inverse;       // [steps]: 1 / L[t][t]
    Real* columns_of_v;  // [k, stride]: its row column[t] begins with L[t][:t]
    int64_t stride;

    Removals(Carver& memory, int64_t k, int64_t steps)
        : column(memory.take<int64_t>(steps)), alpha(memory.take<Real>(steps)), inverse(memory.take<Real>(steps)),
          stride((panels(steps, Simd<Real>::lanes) + 1) * Simd<Real>::lanes) {
        columns_of_v = memory.take<Real>(k * stride);
    }

    void add(int64_t gone, Real weight, Real root) {
        column[count] = gone;
        alpha[count] = weight * root;
        inverse[count++] = root;
    }
    Real* row(int64_t t) const { return columns_of_v + column[t] * stride; }
    Removals first(int64_t wanted) const {
        Removals prefix = *this;
        prefix.count = std::min(count, wanted);
        return prefix;
    }
};

template <class Real>
class RowPruner {
    using S = Simd<Real>;
    using Vector = typename S::Vector;
    static constexpr int64_t wide = kPanel<Real>;
    static constexpr int64_t lanes = S::lanes;
    static constexpr Real kClosed = std::numeric_limits<Real>::infinity();
    // Smallest pivot that still counts, relative to the column's first: below it the row's system is singular.
    static constexpr Real kSmallestPivot = sizeof(Real) == 4 ? Real(1e-6) : Real(1e-14);
    static constexpr int64_t kAhead = 8;   // rows computed ahead at a time
    static constexpr int64_t kSlots = 64;  // and kept; one more takes what a tile computes for nothing
    static constexpr int64_t kAheadStrip = (kSlots + 1) * wide;
    static_assert(kAhead % kTileRows == 0, "rows are computed by whole tiles");

  public:
    // inverse [k, k], symmetric; at most `steps` removals a row, from groups of `of` down to `keep` where of > 0
    RowPruner(Carver& memory, const Real* inverse, int64_t k, int64_t steps, int64_t keep, int64_t of)
        : inverse_(inverse), k_(k), keep_(keep), of_(of), all_(panels(k, wide) * wide), places_(memory, all_),
          columns_(memory, k), removals_(memory, k, steps) {
        for (Real** array : {&weight_, &pivot_, &floor_, &score_, &row_, &waiting_}) *array = memory.take<Real>(all_);
        for (int64_t** array : {&column_, &slot_, &place_, &room_}) *array = memory.take<int64_t>(all_);
        for (int64_t** array : {&born_, &owner_, &free_}) *array = memory.take<int64_t>(kSlots);
        present_ = memory.take<uint8_t>(all_);
        open_ = memory.take<uint8_t>(all_);
        // Strips a multiple of the cache's ways apart would all fall into the same lines of it.
        constexpr int64_t page = 4096 / sizeof(Real), line = 64 / sizeof(Real);
        strip_ = panels(steps * wide, page) * page + 7 * line;
        factor_ = memory.take<Real>(all_ / wide * strip_);
        ahead_ = memory.take<Real>(all_ / wide * kAheadStrip);
    }

    // Remove `count` columns of a row, with losses times `unit`; false where there was none with a positive pivot, or
    // where float32 cannot tell.
    bool run(const Real* weight, int64_t count, double* loss, double unit) {
        start(weight);
        for (int64_t step = 0; step < count; ++step) {
            const int64_t p = cheapest();
            if (p < 0) return false;
            loss[step] = unit * static_cast<double>(score_[p]);
            if (slot_[p] < 0) compute_ahead(p, count - step);
            remove(p);
            if (removals_.count % lanes == 0) turn();
            // Found by measuring: a squeeze costs as much as it saves in about this many steps.
            if (gone_ * gone_ > 8 * live_ && 2 * (count - step) > gone_) squeeze();
        }
        return sizeof(Real) == 8 || sure();
    }

    const Removals<Real>& removals() const { return removals_; }

  private:
    void start(const Real* weight) {
        live_ = k_;
        gone_ = 0;
        removals_.count = 0;
        for (int64_t j = 0; j < all_; ++j) {
            const bool real = j < k_;
            weight_[j] = real ? weight[j] : Real(0);
            pivot_[j] = real ? inverse_[j * k_ + j] : Real(1);
            floor_[j] = real && (of_ == 0 || of_ > keep_) ? kSmallestPivot * pivot_[j] : kClosed;
            column_[j] = real ? j : -1;
            slot_[j] = -1;
            place_[j] = j;
            open_[j] = real;
        }
        std::fill(present_, present_ + k_, uint8_t(1));
        columns_.choose(present_, k_);
        for (int64_t group = 0; of_ > 0 && group < k_ / of_; ++group) room_[group] = of_ - keep_;
        for (int64_t slot = 0; slot < kSlots; ++slot) {
            free_[slot] = slot;
            owner_[slot] = -1;
        }
        unused_ = kSlots;
        best_ = S::broadcast(kClosed);
        for (int64_t j = 0; j < all_; j += lanes) score(j, S::load(weight_ + j), S::load(pivot_ + j));
    }

    // Scores of one vector of columns: w² / D, infinite where closed or not positive.
    void score(int64_t j, Vector w, Vector d) {
        const Vector value = d > S::load(floor_ + j) ? w * w / d : S::broadcast(kClosed);
        S::store(score_ + j, value);
        best_ = smaller<Real>(value, best_);
    }

    // Whether every open column still has a pivot; in float32 one that has none may just have lost it to rounding.
    bool sure() const {
        for (int64_t j = 0; j < live_; ++j)
            if (open_[j] && floor_[j] < kClosed && !(pivot_[j] > floor_[j])) return false;
        return true;
    }

    // First open column with the smallest score, or -1.
    int64_t cheapest() const {
        const Real least = least_lane<Real>(best_);
        return least < kClosed ? first_equal(score_, least) : -1;
    }

    Real* factor(int64_t strip) const { return factor_ + strip * strip_; }
    Real* ahead(int64_t strip, int64_t slot) const { return ahead_ + strip * kAheadStrip + slot * wide; }

    // The last rows of V into its columns.
    void turn() {
        const int64_t first = removals_.count - lanes;
        for (int64_t j = 0; j < live_; j += lanes) {
            const Real* source = factor(j / wide) + first * wide + j % wide;
            Vector block[lanes];
            for (int64_t q = 0; q < lanes; ++q) block[q] = S::load(source + q * wide);
            transpose<Real>(block);
            for (int64_t i = 0; i < lanes; ++i)
                if (open_[j + i])
                    S::store(removals_.columns_of_v + column_[j + i] * removals_.stride + first, block[i]);
        }
    }

    // V[:, p], up to date.
    const Real* column_of_v(int64_t p) const {
        const int64_t depth = removals_.count;
        const Real* source = factor(p / wide) + p % wide;
        Real* target = removals_.columns_of_v + column_[p] * removals_.stride;
        for (int64_t q = depth / lanes * lanes; q < depth; ++q) target[q] = source[q * wide];
        return target;
    }

    // Row `column` of A into row_.
    void read_base(int64_t column) {
        const Real* base = inverse_ + column * k_;
        if (column == k_ - 1) {  // a vector could reach past the end of A
            std::copy(base, base + k_, waiting_);
            base = waiting_;
        }
        columns_.template apply<1>({row_}, wide, {base}, wide);
    }

    int64_t take_slot(int64_t p) {
        if (unused_ == 0) release(std::min_element(born_, born_ + kSlots) - born_);
        const int64_t slot = free_[--unused_], line = 64 / static_cast<int64_t>(sizeof(Real));
        owner_[slot] = p;
        slot_[p] = slot;
        // Its row of A comes from far and is wanted soon.
        for (int64_t j = 0; j < k_; j += line) __builtin_prefetch(inverse_ + column_[p] * k_ + j, 0, 2);
        return slot;
    }

    void release(int64_t slot) {
        slot_[owner_[slot]] = -1;
        owner_[slot] = -1;
        born_[slot] = std::numeric_limits<int64_t>::max();
        free_[unused_++] = slot;
    }

    // V[:, p]ᵀV for p and for the columns that are likely to follow it; what it lacks of V by then, the chain adds.
    void compute_ahead(int64_t p, int64_t remaining) {
        const int64_t count = choose_ahead(p, std::min(kAhead, remaining));
        Coefficients left[kAhead / kTileRows];
        for (int64_t a = 0; a < panels(count, kTileRows) * kTileRows; ++a) {
            // What is missing from a full tile is computed for nothing.
            const bool real = a < count;
            left[a / kTileRows].row[a % kTileRows] = real ? column_of_v(owner_[chosen_[a]]) : left[0].row[0];
            if (real) born_[chosen_[a]] = removals_.count;
            if (!real) chosen_[a] = kSlots;
        }
        for (int64_t s = 0; s < panels(live_, wide); ++s)
            for (int64_t a = 0; a < count; a += kTileRows) multiply_ahead(s, left[a / kTileRows], chosen_ + a);
    }

    struct Coefficients {
        const Real* row[kTileRows];
        inline Real at(int64_t depth, int r) const { return row[r][depth]; }
    };

    void multiply_ahead(int64_t strip, const Coefficients& left, const int64_t* slot) {
        Tile<Real> tile;
        micro_tile<kTileRows>(tile, left, factor(strip), removals_.count);
        for (int r = 0; r < kTileRows; ++r)
            for (int v = 0; v < kTileVectors; ++v) S::store(ahead(strip, slot[r]) + v * lanes, tile.sum[r][v]);
    }

    // Slots for p and for up to count − 1 of the cheapest columns now.
    int64_t choose_ahead(int64_t p, int64_t count) {
        const int64_t end = panels(live_, wide) * wide;
        for (int64_t j = 0; j < end; j += lanes) S::store(waiting_ + j, S::load(score_ + j));
        for (int64_t slot = 0; slot < kSlots; ++slot)
            if (owner_[slot] >= 0) waiting_[owner_[slot]] = kClosed;
        int64_t found = 0;
        for (;;) {
            chosen_[found] = take_slot(p);
            waiting_[p] = kClosed;
            if (++found == count) break;
            Vector best = S::broadcast(kClosed);
            for (int64_t j = 0; j < end; j += lanes) best = smaller<Real>(S::load(waiting_ + j), best);
            const Real least = least_lane<Real>(best);
            if (!(least < kClosed)) break;
            p = first_equal(waiting_, least);
        }
        return found;
    }

    void remove(int64_t p) {
        const int64_t depth = removals_.count, strips = panels(live_, wide), slot = slot_[p];
        const Real scale = weight_[p] / pivot_[p], root = Real(1) / std::sqrt(pivot_[p]);
        const Real* own = column_of_v(p);
        removals_.add(column_[p], weight_[p], root);
        read_base(column_[p]);
        close(p);  // before the next scores are taken
        best_ = S::broadcast(kClosed);
        int64_t s = 0;
        for (; s + 3 <= strips; s += 3) update<3>(s, slot, depth, own, scale, root);
        if (s + 2 <= strips) {
            update<2>(s, slot, depth, own, scale, root);
            s += 2;
        }
        if (s < strips) update<1>(s, slot, depth, own, scale, root);
        release(slot);
    }

    // Weights, pivots, scores and the new row of V for `count` strips of columns.
    template <int count>
    void update(int64_t first, int64_t slot, int64_t depth, const Real* own, Real scale, Real root) {
        Vector row[count][kTileVectors];
        for (int s = 0; s < count; ++s)
            for (int v = 0; v < kTileVectors; ++v)
                row[s][v] =
                    S::load(row_ + (first + s) * wide + v * lanes) - S::load(ahead(first + s, slot) + v * lanes);
        Real* const matrix = factor(first);
        for (int64_t q = born_[slot]; q < depth; ++q) {
            const Vector c = S::broadcast(own[q]);
            for (int s = 0; s < count; ++s)
                for (int v = 0; v < kTileVectors; ++v)
                    row[s][v] -= c * S::load(matrix + s * strip_ + q * wide + v * lanes);
        }
        Real *const weights = weight_ + first * wide, *const pivots = pivot_ + first * wide;
        Real *const floors = floor_ + first * wide, *const scores = score_ + first * wide;
        Vector best = best_;
        const int64_t strip = strip_;
#pragma GCC unroll 3
        for (int s = 0; s < count; ++s)
#pragma GCC unroll 4
            for (int v = 0; v < kTileVectors; ++v) {
                const int64_t j = s * wide + v * lanes;
                const Vector weight = S::load(weights + j) - row[s][v] * S::broadcast(scale);
                const Vector entry = row[s][v] * S::broadcast(root);
                const Vector pivot = S::load(pivots + j) - entry * entry;
                S::store(weights + j, weight);
                S::store(pivots + j, pivot);
                S::store(matrix + s * strip + depth * wide + v * lanes, entry);
                const Vector value = pivot > S::load(floors + j) ? weight * weight / pivot : S::broadcast(kClosed);
                S::store(scores + j, value);
                best = smaller<Real>(value, best);
            }
        best_ = best;
    }

    void close(int64_t p) {
        shut(p);
        if (of_ == 0 || --room_[column_[p] / of_] > 0) return;
        const int64_t group = column_[p] / of_ * of_;  // it is full: its survivors stay for good
        for (int64_t column = group; column < group + of_; ++column)
            if (place_[column] >= 0 && open_[place_[column]]) {
                const int64_t j = place_[column];
                shut(j);
                if (slot_[j] >= 0) release(slot_[j]);
            }
    }

    // Column j is removed or stays for good: nobody asks for its score again, nor for its entries of V.
    void shut(int64_t j) {
        open_[j] = 0;
        floor_[j] = kClosed;
        ++gone_;
    }

    // Drop the columns that are closed.
    void squeeze() {
        const int64_t depth = removals_.count;
        places_.choose(open_, live_);
        int64_t q = 0;
        for (Real* row = factor_; q + 4 <= depth; q += 4, row += 4 * wide)
            squeeze_rows<4>({row, row + wide, row + 2 * wide, row + 3 * wide}, strip_);
        for (; q < depth; ++q) squeeze_rows<1>({factor_ + q * wide}, strip_);
        for (int64_t slot = 0; slot < kSlots; ++slot)
            if (owner_[slot] >= 0) squeeze_rows<1>({ahead(0, slot)}, kAheadStrip);
        squeeze_array(weight_, Real(0));
        squeeze_array(pivot_, Real(1));
        squeeze_array(floor_, kClosed);
        squeeze_array(score_, kClosed);
        int64_t *const columns = column_, *const slots = slot_, *const place = place_, count = 0;
        for (int64_t j = 0; j < live_; ++j) {
            const int64_t column = columns[j], slot = slots[j];
            const bool open = open_[j] != 0;
            present_[column] = open;
            place[column] = open ? count : -1;
            columns[count] = column;
            slots[count] = slot;
            if (slot >= 0) owner_[slot] = count;
            count += open;
        }
        std::fill(open_, open_ + count, uint8_t(1));
        std::fill(open_ + count, open_ + live_, uint8_t(0));
        columns_.choose(present_, k_);
        live_ = count;
        gone_ = 0;
    }

    template <int rows>
    void squeeze_rows(Real* const (&row)[rows], int64_t apart) {
        const Real* source[rows];
        std::copy(row, row + rows, source);
        places_.template apply<rows>(row, apart, source, apart);
    }

    void squeeze_array(Real* array, Real pad) {
        squeeze_rows<1>({array}, wide);
        std::fill(array + places_.count(), array + panels(places_.count(), wide) * wide, pad);
    }

    const Real* inverse_;
    int64_t k_, keep_, of_, all_;
    Squeeze<Real> places_, columns_;  // what goes at the next squeeze; what is still there of a row of A
    Removals<Real> removals_;
    Real *weight_, *pivot_, *floor_, *score_, *row_, *waiting_;  // by place
    int64_t *column_, *slot_;                                    // by place: its column; its row computed ahead, or -1
    int64_t *place_, *room_;                                     // by column: its place, or -1; by group: removals left
    int64_t *born_, *owner_, *free_;      // by slot: rows of V that it has; its place, or -1. Free slots
    int64_t chosen_[kAhead + kTileRows];  // slots being computed
    uint8_t *present_, *open_;            // by column: has a place; by place: may still go
    Real *factor_, *ahead_;               // V; rows computed ahead
    int64_t strip_, unused_ = 0, live_ = 0, gone_ = 0;
    Vector best_;  // least scores, by lane
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// obs: exact greedy Optimal Brain Surgeon of each row             inverse A = H⁻¹ [k, k], weight [rows, k]
//
// One step of a row removes p = argmin w_p² / D_p over the open columns (D the current diagonal of the inverse of
// what is left), adds its loss, and updates  w -= r w_p / D_p,  D -= r² / D_p  with r the current row p of that
// inverse. Nobody rewrites an inverse per step:
//
// v1  explicit inverse per row, rank-1 update of k² entries a step: 2k² traffic a step, memory-bound.
// v2  lazy (methods of pivoted Cholesky): r = A[p,:] − Σ_q V[q,p] V[q,:], with one new row V[t,:] = r / √D_p a step.
//     Same pivots and weights as v1; t·k multiply-adds a step and nothing written but one row.
// v3  lazy in panels: after a panel of steps the Schur complement  B = A[live, live] − VᵀV  of the columns still
//     there becomes the new base (a symmetric update at the speed of the register-blocked micro-kernel, panel.h),
//     dead columns are squeezed out, and V starts empty. A step costs at most kPanelSteps·live.
// v4  gather, update and write of the new base fused by rows of tiles, upper triangle only: a quarter of v3's traffic,
//     which is what bounds long rows (k = 1536: 2.7 times faster than v3).
// v5  (this file) V in strips of columns, the next scores taken while weights and pivots are in registers: 1.35 times
//     faster than v4 at k = 384 and at k = 1536.
//
// FLOPs per row, s·k steps: about k³ (1 − (1−s)³) / 3 in the micro-kernel + kPanelSteps·k² s (1 − s/2) in the chain.
// Memory per thread: k² for the base (none while A itself still serves), kMostSteps·k for V. Traffic: one read and one
// write of half the base per panel of steps.
// Double precision throughout; ties go to the lower column; rows are independent, so bits do not depend on threads.
// A row that finds no open column with a positive pivot ends with NaN losses; the caller reports it.
#include "../common/element_type.h"
#include "../common/panel.h"
#include "../common/triangular.h"

#include <cmath>
#include <limits>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kPanelSteps = 96;
constexpr int64_t kMostSteps = kPanelSteps + kPanelSteps / 2;  // a short rest is finished without a new base
constexpr int64_t kWide = kPanel<double>;
constexpr double kClosed = std::numeric_limits<double>::infinity();

// Smallest pivot that still counts, relative to the column's first: below it the row's system is singular.
constexpr double kSmallestPivot = 1e-14;

struct Workspace {
    double *base, *factor, *packed, *tiles;  // [k, k], V in strips (see chain), V in panels, a row of tiles
    double *weight, *pivot, *closed, *row, *floor, *score;  // [padded k] each
    double* coefficient;                                    // [kMostSteps]
    int64_t *column, *room, *kept;  // [padded k]: original columns; removals left in each group; scratch

    static size_t doubles(int64_t k, bool own_base) {
        const int64_t wide = padded(k);
        const int64_t packed_columns = panels(k, kPanel<double>) * kPanel<double>;
        const int64_t base = own_base ? k * k + kPanel<double> * packed_columns : 0;
        return static_cast<size_t>(base + kMostSteps * (wide + packed_columns) + 6 * wide + kMostSteps);
    }
    static size_t integers(int64_t k) { return static_cast<size_t>(3 * padded(k)); }

    Workspace(double* reals, int64_t* whole, int64_t k, bool own_base) {
        const int64_t wide = padded(k);
        const int64_t packed_columns = panels(k, kPanel<double>) * kPanel<double>;
        base = reals;
        tiles = base + (own_base ? k * k : 0);
        factor = tiles + (own_base ? kPanel<double> * packed_columns : 0);
        packed = factor + kMostSteps * wide;
        weight = packed + kMostSteps * packed_columns;
        pivot = weight + wide;
        closed = pivot + wide;
        row = closed + wide;
        floor = row + wide;
        score = floor + wide;
        coefficient = score + wide;
        column = whole;
        room = column + wide;
        kept = room + wide;
    }
};

class RowPruner {
    using S = Simd<double>;

  public:
    RowPruner(Workspace& work, const double* inverse, int64_t k, int64_t keep, int64_t of)
        : w_(work), inverse_(inverse), k_(k), keep_(keep), of_(of) {}

    void run(const double* weight, int64_t count, double* pruned, int64_t* order, double* loss, int64_t steps) {
        start(weight);
        int64_t step = 0;
        for (; step < count; ++step) {
            if (depth_ >= kPanelSteps && (count - step > kMostSteps - kPanelSteps || depth_ == kMostSteps)) rebase();
            const int64_t p = cheapest();
            if (p < 0) break;
            order[step] = w_.column[p];
            loss[step] = w_.score[p];
            remove(p);
        }
        const double rest = step < count ? std::numeric_limits<double>::quiet_NaN() : 0.0;
        for (; step < steps; ++step) {
            order[step] = -1;
            loss[step] = rest;
        }
        std::fill(pruned, pruned + k_, 0.0);
        for (int64_t j = 0; j < live_; ++j)
            if (!dead(j)) pruned[w_.column[j]] = w_.weight[j];
    }

  private:
    // A removed column is marked by a negative original index until the next rebase drops it.
    bool dead(int64_t j) const { return w_.column[j] < 0; }

    void start(const double* weight) {
        live_ = k_;
        depth_ = 0;
        base_ = inverse_;
        for (int64_t j = 0; j < padded(k_); ++j) {
            const bool real = j < k_;
            w_.weight[j] = real ? weight[j] : 0.0;
            w_.pivot[j] = real ? inverse_[j * k_ + j] : 1.0;
            w_.floor[j] = real ? kSmallestPivot * inverse_[j * k_ + j] : 0.0;
            w_.closed[j] = real && (of_ == 0 || of_ > keep_) ? 0.0 : kClosed;
            w_.column[j] = real ? j : -1;
        }
        for (int64_t group = 0; of_ > 0 && group < k_ / of_; ++group) w_.room[group] = of_ - keep_;
        score_all();
    }

    // Scores of one vector of columns: w² / D, infinite where closed or not positive.
    void score(int64_t j, S::Vector w, S::Vector d) {
        const S::Vector infinite = S::broadcast(kClosed);
        S::Vector value = w * w / d + S::load(w_.closed + j);
        value = d > S::load(w_.floor + j) ? value : infinite;
        S::store(w_.score + j, value);
        best_ = value < best_ ? value : best_;
    }

    void score_all() {
        best_ = S::broadcast(kClosed);
        for (int64_t j = 0; j < padded(live_); j += S::lanes) score(j, S::load(w_.weight + j), S::load(w_.pivot + j));
    }

    // First open column with the smallest score, or -1.
    int64_t cheapest() const {
        double lanes[S::lanes], least = kClosed;
        S::store(lanes, best_);
        for (double value : lanes) least = value < least ? value : least;
        if (!(least < kClosed)) return -1;
        int64_t j = 0;
        while (w_.score[j] != least) ++j;
        return j;
    }

    // V[0][j], for j at the start of a strip: the rows of a strip of columns follow one another, so that the chain of a
    // strip is one stream (by whole rows it would touch a new page with every row).
    double* chain(int64_t j) const { return w_.factor + j * kMostSteps; }

    void remove(int64_t p) {
        const int64_t wide = padded(live_);
        const double scale = w_.weight[p] / w_.pivot[p], root = 1.0 / std::sqrt(w_.pivot[p]);
        const double* own = chain(p / kStrip * kStrip) + p % kStrip;
        for (int64_t q = 0; q < depth_; ++q) w_.coefficient[q] = own[q * kStrip];
        read_row(p, wide);
        close(p);  // before the next scores are taken
        best_ = S::broadcast(kClosed);
        int64_t j = 0;
        for (; j + 2 * kStrip <= wide; j += 2 * kStrip) update<2>(j, scale, root);
        if (j < wide) update<1>(j, scale, root);
        ++depth_;
    }

    // Weights, pivots, scores and the new row of V for `count` strips of columns.
    template <int count>
    void update(int64_t first, double scale, double root) {
        Strip row[count];
        for (int s = 0; s < count; ++s) row[s].load(w_.row + first + s * kStrip);
        subtract_chain(row, w_.coefficient, chain(first), kStrip, kStrip * kMostSteps, depth_);
        for (int s = 0; s < count; ++s) {
            for (int v = 0; v < 4; ++v) {
                const int64_t j = first + s * kStrip + v * S::lanes;
                const S::Vector weight = S::load(w_.weight + j) - row[s].value[v] * S::broadcast(scale);
                row[s].value[v] *= S::broadcast(root);
                const S::Vector pivot = S::load(w_.pivot + j) - row[s].value[v] * row[s].value[v];
                S::store(w_.weight + j, weight);
                S::store(w_.pivot + j, pivot);
                score(j, weight, pivot);
            }
            row[s].store(chain(first + s * kStrip) + depth_ * kStrip);
        }
    }

    // Row p of the base into w_.row, zero-padded; an own base holds the upper triangle only.
    void read_row(int64_t p, int64_t wide) {
        const int64_t first = base_ == inverse_ ? 0 : p;
        for (int64_t j = 0; j < first; ++j) w_.row[j] = base_[j * live_ + p];
        std::memcpy(w_.row + first, base_ + p * live_ + first, (live_ - first) * sizeof(double));
        std::fill(w_.row + live_, w_.row + wide, 0.0);
    }

    void close(int64_t p) {
        const int64_t column = w_.column[p];
        w_.column[p] = -1;
        w_.closed[p] = kClosed;
        if (of_ == 0 || --w_.room[column / of_] > 0) return;
        for (int64_t j = 0; j < live_; ++j)  // the group is full: its survivors stay for good
            if (w_.column[j] >= 0 && w_.column[j] / of_ == column / of_) w_.closed[j] = kClosed;
    }

    // Squeeze out dead columns and fold V into a base of this row's own.
    void rebase() {
        const int64_t old = live_;
        int64_t* kept = w_.kept;  // positions still live, ascending
        int64_t count = 0;
        for (int64_t j = 0; j < old; ++j)
            if (!dead(j)) kept[count++] = j;
        for (int64_t b = 0; b < count; ++b) {
            w_.weight[b] = w_.weight[kept[b]];
            w_.closed[b] = w_.closed[kept[b]];
            w_.floor[b] = w_.floor[kept[b]];
            w_.column[b] = w_.column[kept[b]];
        }
        pack(count);
        for (int64_t i = 0; i < panels(count, kWide); ++i) fold_tiles(i, count, old);
        base_ = w_.base;
        live_ = count;
        depth_ = 0;
        for (int64_t j = 0; j < padded(count); ++j) {
            w_.pivot[j] = j < count ? base_[j * count + j] : 1.0;
            if (j < count) continue;
            w_.weight[j] = 0.0;
            w_.closed[j] = kClosed;
            w_.column[j] = -1;
        }
        score_all();
    }

    // The columns of V that stay, as panels for the micro-kernel.
    void pack(int64_t count) {
        for (int64_t b = 0; b < panels(count, kWide) * kWide; ++b) {
            double* target = w_.packed + b / kWide * depth_ * kWide + b % kWide;
            const int64_t j = b < count ? w_.kept[b] : 0;
            const double* source = chain(j / kStrip * kStrip) + j % kStrip;
            for (int64_t q = 0; q < depth_; ++q) target[q * kWide] = b < count ? source[q * kStrip] : 0.0;
        }
    }

    // New base, rows of tile row i: gathered from the old base, less VᵀV. Targets lie before every source that later
    // tile rows still need (kept[a] >= a and old >= count), so the base may be rewritten in place.
    void fold_tiles(int64_t i, int64_t count, int64_t old) {
        const int64_t first = i * kWide, rows = std::min(kWide, count - first), width = count - first;
        for (int64_t a = 0; a < rows; ++a) {
            const double* source = base_ + w_.kept[first + a] * old;
            double* target = w_.tiles + a * width;
            for (int64_t b = 0; b < width; ++b) target[b] = source[w_.kept[first + b]];
        }
        for (int64_t j = i; j < panels(count, kWide); ++j)
            panel_product(w_.tiles + (j - i) * kWide, width, w_.packed + i * depth_ * kWide,
                          w_.packed + j * depth_ * kWide, depth_, rows, std::min(kWide, count - j * kWide), -1.0);
        for (int64_t a = 0; a < rows; ++a)
            std::memcpy(w_.base + (first + a) * count + first, w_.tiles + a * width, width * sizeof(double));
    }

    Workspace& w_;
    const double* inverse_;
    const double* base_ = nullptr;
    int64_t k_, keep_, of_, live_ = 0, depth_ = 0;
    S::Vector best_;  // least scores, by lane
};

}  // namespace

void obs(double* pruned, int64_t* order, double* loss, const double* inverse, const double* weight,
         const int64_t* count, int64_t rows, int64_t columns, int64_t steps, int64_t keep, int64_t of, int threads) {
    threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, rows)));
    const bool own_base = steps > kMostSteps;
    const size_t reals = (Workspace::doubles(columns, own_base) + 7) / 8 * 8;  // threads on separate cache lines
    const size_t whole = (Workspace::integers(columns) + 7) / 8 * 8;
    Buffer<double> real_memory(reals * threads);
    Buffer<int64_t> whole_memory(whole * threads);
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        Workspace work(real_memory.data() + reals * thread, whole_memory.data() + whole * thread, columns, own_base);
        RowPruner pruner(work, inverse, columns, keep, of);
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < rows; ++row)
            pruner.run(weight + row * columns, count[row], pruned + row * columns, order + row * steps,
                       loss + row * steps, steps);
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// block_obs: exact greedy Optimal Brain Surgeon of blocks                inverse A = H⁻¹ [k, k], weight [rows, k]
//
// A block is `height` rows by `width` consecutive columns; a group of `height` rows loses the same columns and so shares
// one inverse. One step of a group removes the block B of least  Σ_rows w_B A_BB⁻¹ w_Bᵀ,  adds that loss, and updates
// w -= w_B A_BB⁻¹ A_B,:  and  A -= A_:,B A_BB⁻¹ A_B,:  of what is left.
//
// Algorithm, per group (that of obs.cpp with `width` columns a step):
//   1 with A_BB = C Cᵀ the new rows F = C⁻¹ A_B,: of V are made from the rows of a base less what V has taken from them
//     since, A = base − VᵀV; the weights lose (w_B C⁻ᵀ) F;
//   2 the diagonal blocks D of A lose FᵀF, are factored, and give the next scores;
//   3 after a panel of columns the base of the columns still there is made anew (upper triangle, by the micro-kernel),
//     dead columns are squeezed out, and V starts empty.
// Columns lie in planes: the first columns of all blocks, then the second ones, and so on. Step 2 then treats a vector of
// blocks at a time, whatever the width.
// FLOPs per group for a whole trace: k³ / 3 in the micro-kernel for step 3, kPanelColumns · k² / 2 for step 1,
// k² (width² / 6 + height width / 2) / width for factors and scores. Memory per thread: k² for the base, most_ · k for V,
// (width + 1) k / 2 for D, height · k; shared: A in planes, and the first factors of D.
// Double precision; ties go to the lower block; groups are independent, so bits do not depend on threads.
// A group that finds no open block with positive pivots ends with NaN losses; the caller reports it.
#include "../common/diagonal_blocks.h"
#include "../common/element_type.h"
#include "../common/panel.h"

#include <cmath>
#include <deque>
#include <limits>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kPanelColumns = 96;  // columns removed before the base is made anew
constexpr int64_t kRest = 48;          // a rest that short is finished without a new base
constexpr int64_t kWide = kPanel<double>;
constexpr int64_t kLanes = Simd<double>::lanes;

// Smallest pivot that still counts, relative to the column's first: below it the group's system is singular.
constexpr double kSmallestPivot = 1e-14;

struct Shape {
    int64_t k, height, width;

    int64_t blocks() const { return k / width; }
    int64_t pairs() const { return pair_index(width, 0); }  // entries of a triangle
    // Columns of V at most.
    int64_t most() const { return std::max(kPanelColumns + kRest, width); }
    // A row of columns; vectors may reach past the last plane.
    int64_t wide() const { return panels(k, kWide) * kWide + kLanes; }
};

// What the groups share: A in planes, and the diagonal blocks with their factors before anything has gone.
class Start {
  public:
    Start(const double* inverse, const Shape& shape)
        : shape_(shape), planes_(shape.width == 1 ? 0 : static_cast<size_t>(shape.k * shape.k)),
          diagonal_(static_cast<size_t>(shape.pairs() * block_stride(shape.blocks()))),
          factors_(static_cast<size_t>((shape.pairs() + 1) * block_stride(shape.blocks()))),
          floor_(static_cast<size_t>(shape.wide())), inverse_(inverse) {
        const int64_t k = shape.k, blocks = shape.blocks(), width = shape.width, stride = block_stride(blocks);
        if (width > 1) {
            for (int64_t i = 0; i < k; ++i) {
                const double* source = inverse + (i % blocks * width + i / blocks) * k;
                double* target = planes_.data() + i * k;
                for (int64_t a = 0; a < width; ++a)
                    for (int64_t t = 0; t < blocks; ++t) target[a * blocks + t] = source[t * width + a];
            }
            inverse_ = planes_.data();
        }
        read_diagonal(diagonal_.data(), inverse_, width, blocks);
        for (int64_t j = 0; j < shape.wide(); ++j) floor_[j] = j < k ? kSmallestPivot * inverse_[j * k + j] : 0.0;
        for (int64_t t = 0; t < blocks; t += stride == 1 ? 1 : kLanes) {
            double* l = factors_.data() + t * (shape.pairs() + 1);
            stride == 1 ? factor_blocks<Single>(l, diagonal_.data(), floor_.data(), t, blocks, stride, width)
                        : factor_blocks<Simd<double>>(l, diagonal_.data(), floor_.data(), t, blocks, stride, width);
        }
    }

    const double* inverse() { return inverse_; }
    const double* diagonal() { return diagonal_.data(); }
    const double* factors() { return factors_.data(); }
    const double* floor() { return floor_.data(); }

  private:
    Shape shape_;
    Buffer<double> planes_, diagonal_, factors_, floor_;
    const double* inverse_;
};

class GroupPruner {
  public:
    GroupPruner(Start& start, const Shape& shape, bool own_base)
        : start_(start), shape_(shape), wide_(shape.wide()), most_(shape.most()),
          own_base_(own_base ? static_cast<size_t>(shape.k * shape.k) : 0),
          tiles_(own_base ? static_cast<size_t>(kWide * wide_) : 0), chain_(static_cast<size_t>(most_ * wide_)),
          packed_(own_base ? static_cast<size_t>(most_ * wide_) : 0), fresh_(static_cast<size_t>(shape.width * wide_)),
          weight_(static_cast<size_t>(shape.height * wide_)), floor_(static_cast<size_t>(wide_)),
          diagonal_(static_cast<size_t>(shape.pairs() * block_stride(shape.blocks()))),
          factor_(static_cast<size_t>((shape.pairs() + 1 + shape.width) * (shape.blocks() == 1 ? 1 : kLanes))),
          coefficient_(static_cast<size_t>(shape.width * most_)), root_(static_cast<size_t>(shape.width * shape.width)),
          whitened_(static_cast<size_t>(shape.height * shape.width)), closed_(static_cast<size_t>(wide_)),
          score_(static_cast<size_t>(wide_)), block_(static_cast<size_t>(shape.blocks())),
          kept_(static_cast<size_t>(shape.k)) {}

    // `weight` and `pruned` are the group's rows.
    void run(const double* weight, int64_t count, double* pruned, int64_t* order, double* loss, int64_t steps) {
        start(weight);
        int64_t step = 0;
        for (; step < count; ++step) {
            const int64_t rest = (count - step) * shape_.width;
            if (depth_ > 0 && (depth_ + shape_.width > most_ || (depth_ >= kPanelColumns && rest > kRest))) rebase();
            const int64_t t = cheapest();
            if (t < 0) break;
            order[step] = block_[t];
            loss[step] = score_[t];
            remove(t);
        }
        const double after = step < count ? std::numeric_limits<double>::quiet_NaN() : 0.0;
        for (; step < steps; ++step) {
            order[step] = -1;
            loss[step] = after;
        }
        write(pruned);
    }

  private:
    void start(const double* weight) {
        const int64_t width = shape_.width;
        blocks_ = alive_ = shape_.blocks();
        depth_ = 0;
        base_ = start_.inverse();
        for (int64_t r = 0; r < shape_.height; ++r) {
            double* target = weight_.data() + r * wide_;
            for (int64_t a = 0; a < width; ++a)
                for (int64_t t = 0; t < blocks_; ++t) target[a * blocks_ + t] = weight[r * shape_.k + t * width + a];
            std::fill(target + shape_.k, target + wide_, 0.0);
        }
        std::copy(start_.floor(), start_.floor() + wide_, floor_.data());
        const int64_t stride = block_stride(blocks_);
        std::copy(start_.diagonal(), start_.diagonal() + shape_.pairs() * stride, diagonal_.data());
        for (int64_t t = 0; t < stride; ++t) closed_[t] = t < blocks_ ? 0.0 : kInfinite;
        for (int64_t t = 0; t < blocks_; ++t) block_[t] = t;
        if (stride == 1) return score<Single>(0, start_.factors());
        for (int64_t t = 0; t < blocks_; t += kLanes)
            score<Simd<double>>(t, start_.factors() + t * (shape_.pairs() + 1));
    }

    void write(double* pruned) {
        std::fill(pruned, pruned + shape_.height * shape_.k, 0.0);
        for (int64_t r = 0; r < shape_.height; ++r)
            for (int64_t t = 0; t < blocks_; ++t)
                for (int64_t a = 0; block_[t] >= 0 && a < shape_.width; ++a)
                    pruned[r * shape_.k + block_[t] * shape_.width + a] = weight_[r * wide_ + a * blocks_ + t];
    }

    // First open block with the smallest score, or -1.
    int64_t cheapest() {
        double least = kInfinite;
        int64_t found = -1;
        for (int64_t t = 0; t < blocks_; ++t)
            if (score_[t] < least) {
                least = score_[t];
                found = t;
            }
        return found;
    }

    // V of the columns from j on, the first of a panel: rows of a panel follow one another.
    double* chain(int64_t j) { return chain_.data() + j * most_; }

    void remove(int64_t t) {
        block_[t] = -1;
        closed_[t] = kInfinite;
        if (--alive_ == 0) return;
        whiten(t);
        const int64_t width = shape_.width, live = blocks_ * width;
        for (int64_t a = 0; a < width; ++a) {
            const int64_t p = a * blocks_ + t;
            const double* own = chain(p / kWide * kWide) + p % kWide;
            for (int64_t q = 0; q < depth_; ++q) coefficient_[a * most_ + q] = own[q * kWide];
            read_row(p, live, fresh_.data() + a * wide_);
        }
        for (int64_t j = 0; j < live; j += kWide) extend(j);
        depth_ += width;
        next_scores();
    }

    // C with A_BB = C Cᵀ (pivots above their floors), reciprocals on the diagonal; w_B C⁻ᵀ of every row.
    void whiten(int64_t t) {
        const int64_t width = shape_.width, stride = block_stride(blocks_);
        for (int64_t a = 0; a < width; ++a) {
            double* row = root_.data() + a * width;
            for (int64_t b = 0; b <= a; ++b) {
                const double* above = root_.data() + b * width;
                double sum = diagonal_[pair_index(a, b) * stride + t];
                for (int64_t c = 0; c < b; ++c) sum -= row[c] * above[c];
                row[b] = a == b ? 1.0 / std::sqrt(sum) : sum * above[b];
            }
        }
        for (int64_t r = 0; r < shape_.height; ++r) {
            double* white = whitened_.data() + r * width;
            for (int64_t a = 0; a < width; ++a) {
                double sum = weight_[r * wide_ + a * blocks_ + t];
                for (int64_t c = 0; c < a; ++c) sum -= root_[a * width + c] * white[c];
                white[a] = sum * root_[a * width + a];
            }
        }
    }

    // Row p of the base, zero-padded; an own base holds the upper triangle only.
    void read_row(int64_t p, int64_t live, double* row) {
        const int64_t first = base_ == start_.inverse() ? 0 : p;
        for (int64_t j = 0; j < first; ++j) row[j] = base_[j * live + p];
        std::memcpy(row + first, base_ + p * live + first, (live - first) * sizeof(double));
        std::fill(row + live, row + wide_, 0.0);
    }

    // The new rows of V and the weights, in the panel of columns from j on.
    void extend(int64_t j) {
        using S = Simd<double>;
        const int64_t width = shape_.width;
        double* rows = chain(j) + depth_ * kWide;
        for (int64_t a = 0; a < width; ++a)
            std::memcpy(rows + a * kWide, fresh_.data() + a * wide_ + j, kWide * sizeof(double));
        tile_product(rows, kWide, RowsLeft<double>{coefficient_.data(), most_}, chain(j), depth_, width, kWide, 1.0,
                     -1.0);
        for (int64_t a = 0; a < width; ++a) {
            const double* root = root_.data() + a * width;
            for (int64_t v = 0; v < kWide; v += S::lanes) {
                S::Vector sum = S::load(rows + a * kWide + v);
                for (int64_t c = 0; c < a; ++c) sum -= S::broadcast(root[c]) * S::load(rows + c * kWide + v);
                sum *= S::broadcast(root[a]);
                S::store(rows + a * kWide + v, sum);
                S::store(fresh_.data() + a * wide_ + j + v, sum);
            }
        }
        tile_product(weight_.data() + j, wide_, RowsLeft<double>{whitened_.data(), width}, rows, width, shape_.height,
                     kWide, 1.0, -1.0);
    }

    void next_scores() {
        const int64_t lanes = block_stride(blocks_) == 1 ? 1 : kLanes;
        for (int64_t t = 0; t < blocks_; t += lanes) lanes == 1 ? next<Single>(t) : next<Simd<double>>(t);
    }

    // D of the blocks t .. t + lanes loses FᵀF of the new rows; their next scores.
    template <class S>
    void next(int64_t t) {
        const int64_t width = shape_.width;
        for (int64_t a = 0; a < width; ++a) {
            int64_t b = 0;
            for (; b + 4 <= a + 1; b += 4) lose<S, 4>(t, a, b);
            for (; b <= a; ++b) lose<S, 1>(t, a, b);
        }
        factored_score<S>(t);
    }

    // Entries (a, b) .. (a, b + count) of it; several sums at a time hide their latency.
    template <class S, int count>
    void lose(int64_t t, int64_t a, int64_t b) {
        const int64_t stride = block_stride(blocks_);
        double* place = diagonal_.data() + pair_index(a, b) * stride + t;
        const double *left = fresh_.data() + a * blocks_ + t, *right = fresh_.data() + b * blocks_ + t;
        typename S::Vector sum[count];
        for (int i = 0; i < count; ++i) sum[i] = S::load(place + i * stride);
        for (int64_t q = 0; q < shape_.width; ++q) {
            const typename S::Vector value = S::load(left + q * wide_);
            for (int i = 0; i < count; ++i) sum[i] -= value * S::load(right + q * wide_ + i * blocks_);
        }
        for (int i = 0; i < count; ++i) S::store(place + i * stride, sum[i]);
    }

    template <class S>
    void factored_score(int64_t t) {
        factor_blocks<S>(factor_.data(), diagonal_.data(), floor_.data(), t, blocks_, block_stride(blocks_),
                         shape_.width);
        score<S>(t, factor_.data());
    }

    // Σ_rows w_B D⁻¹ w_Bᵀ of the blocks t .. t + lanes; infinite where closed.
    template <class S>
    void score(int64_t t, const double* l) {
        using Vector = typename S::Vector;
        const int64_t width = shape_.width;
        double* white = factor_.data() + (shape_.pairs() + 1) * S::lanes;
        Vector total = S::load(closed_.data() + t) + S::load(l + shape_.pairs() * S::lanes);
        for (int64_t r = 0; r < shape_.height; ++r) {
            const double* weight = weight_.data() + r * wide_ + t;
            for (int64_t a = 0; a < width; ++a) {
                const double* row = l + pair_index(a, 0) * S::lanes;
                Vector sum = S::load(weight + a * blocks_);
                for (int64_t c = 0; c < a; ++c) sum -= S::load(row + c * S::lanes) * S::load(white + c * S::lanes);
                S::store(white + a * S::lanes, sum);
                total += sum * sum * S::load(row + a * S::lanes);
            }
        }
        S::store(score_.data() + t, total);
    }

    // Squeeze out dead blocks and fold V into a base of this group's own.
    void rebase() {
        const int64_t width = shape_.width, old = blocks_, live = alive_ * width;
        int64_t count = 0;
        for (int64_t a = 0; a < width; ++a)
            for (int64_t t = 0; t < old; ++t)
                if (block_[t] >= 0) kept_[count++] = a * old + t;  // ascending
        for (int64_t r = 0; r < shape_.height; ++r) squeeze(weight_.data() + r * wide_, live);
        squeeze(floor_.data(), live);
        for (int64_t t = 0; t < alive_; ++t) block_[t] = block_[kept_[t]];
        pack(live);
        for (int64_t i = 0; i < panels(live, kWide); ++i) fold(i, live, old * width);
        base_ = own_base_.data();
        blocks_ = alive_;
        depth_ = 0;
        read_diagonal(diagonal_.data(), base_, width, blocks_);
        const int64_t stride = block_stride(blocks_);
        for (int64_t t = 0; t < stride; ++t) closed_[t] = t < blocks_ ? 0.0 : kInfinite;
        if (stride == 1) return factored_score<Single>(0);
        for (int64_t t = 0; t < blocks_; t += kLanes) factored_score<Simd<double>>(t);
    }

    void squeeze(double* row, int64_t live) {
        for (int64_t j = 0; j < live; ++j) row[j] = row[kept_[j]];
        std::fill(row + live, row + wide_, 0.0);
    }

    // The columns of V that stay, as panels for the micro-kernel.
    void pack(int64_t live) {
        for (int64_t b = 0; b < panels(live, kWide) * kWide; ++b) {
            double* target = packed_.data() + b / kWide * depth_ * kWide + b % kWide;
            const int64_t j = b < live ? kept_[b] : 0;
            const double* source = chain(j / kWide * kWide) + j % kWide;
            for (int64_t q = 0; q < depth_; ++q) target[q * kWide] = b < live ? source[q * kWide] : 0.0;
        }
    }

    // New base, rows of tile row i: gathered from the old base, less VᵀV. Targets lie before every source that later
    // tile rows still need (kept[a] >= a and old >= live), so the base may be rewritten in place.
    void fold(int64_t i, int64_t live, int64_t old) {
        const int64_t first = i * kWide, rows = std::min(kWide, live - first), width = live - first;
        for (int64_t a = 0; a < rows; ++a) {
            const double* source = base_ + kept_[first + a] * old;
            double* target = tiles_.data() + a * width;
            std::fill(target, target + a, 0.0);  // below the diagonal
            for (int64_t b = a; b < width; ++b) target[b] = source[kept_[first + b]];
        }
        for (int64_t j = i; j < panels(live, kWide); ++j)
            panel_product(tiles_.data() + (j - i) * kWide, width, packed_.data() + i * depth_ * kWide,
                          packed_.data() + j * depth_ * kWide, depth_, rows, std::min(kWide, live - j * kWide), -1.0);
        for (int64_t a = 0; a < rows; ++a)
            std::memcpy(own_base_.data() + (first + a) * live + first, tiles_.data() + a * width,
                        width * sizeof(double));
    }

    Start& start_;
    const Shape shape_;
    const int64_t wide_, most_;
    // Base; a row of its tiles; V in panels; its columns that stay; the new rows of V; weights; smallest pivots.
    Buffer<double> own_base_, tiles_, chain_, packed_, fresh_, weight_, floor_;
    // D; one factor of it and a whitened row; V at the block that goes; C; w_B C⁻ᵀ; 0 or infinity; scores.
    Buffer<double> diagonal_, factor_, coefficient_, root_, whitened_, closed_, score_;
    Buffer<int64_t> block_, kept_;  // original index of each block, -1 when gone; scratch
    const double* base_ = nullptr;
    int64_t blocks_ = 0, alive_ = 0, depth_ = 0;  // in the planes; of them not gone; rows of V
};

}  // namespace

void block_obs(double* pruned, int64_t* order, double* loss, const double* inverse, const double* weight,
               const int64_t* count, int64_t rows, int64_t columns, int64_t height, int64_t width, int64_t steps,
               int threads) {
    const int64_t groups = rows / height;
    if (rows == 0 || columns == 0) return;
    const Shape shape{columns, height, width};
    Start start(inverse, shape);
    threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, groups)));
    std::deque<GroupPruner> pruners;  // made here, where an allocation may fail
    for (int t = 0; t < threads; ++t) pruners.emplace_back(start, shape, steps * width > kPanelColumns);
#pragma omp parallel num_threads(threads)
    {
        GroupPruner& pruner = pruners[static_cast<size_t>(omp_get_thread_num())];
#pragma omp for schedule(dynamic, 1)
        for (int64_t group = 0; group < groups; ++group)
            pruner.run(weight + group * height * columns, count[group], pruned + group * height * columns,
                       order + group * steps, loss + group * steps, steps);
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

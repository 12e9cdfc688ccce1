// SPDX-License-Identifier: Apache-2.0
// sparsegpt: columns pruned left to right, each removal compensated to its right    weight [rows, k], factor R [k, k]
//
// With H = R Rᵀ, R upper, the loss of a change δ of a row is ‖δ R‖². The published sweep (rows of the Cholesky factor of
// H⁻¹) is the same as choosing δ_j from left to right so that (δR)_j = 0 where column j is kept: with c_j = Σ_{q<j} δ_q
// R_qj, a kept weight moves by δ_j = −c_j / R_jj and a pruned one by δ_j = −w_j. Neither H⁻¹ nor R⁻¹ is formed.
//
// Algorithm, per block of columns:
//   1 choose what goes, from (w_j R_jj)² of the weights as they are if nothing of the block goes, w_B = w − c_B R_BB⁻¹: of
//     the whole block or of each row (exact counts); N:M groups are chosen when the sweep reaches them; a given mask is
//     taken as it is;
//   2 sweep the block, a vector of rows at a time, 16 columns to the right directly and the rest of the block in fours;
//   3 c[:, right] += δ_B R[B, right], by the register-blocked micro-kernel (panel.h).
// FLOPs: rows k² in all, of which rows k·block outside the micro-kernel. Memory: c read and written once per block.
//   One core of a Zen 3 (AVX2), float32, blocks of 128: 20 % of the peak at 384 x 384, 35 % at 768 x 768.
// float32 or float64; bits do not depend on the number of threads.
#include "../common/element_type.h"
#include "../common/panel.h"
#include "../common/panel_cholesky.h"
#include "../common/selection.h"

#include <vector>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kNear = 16;  // columns updated one by one before the rest of the block

// A vector of rows in one block, transposed: [column][lane].
template <class Real>
class LaneSweep {
    using S = Simd<Real>;
    using Vector = typename S::Vector;
    static constexpr int64_t lanes = S::lanes;

  public:
    static size_t size(int64_t block, int64_t of) { return static_cast<size_t>((4 * block + of) * lanes); }

    // `factor` is R_BB, row-major with `block` columns.
    LaneSweep(Real* memory, const Real* factor, int64_t k, int64_t block, int64_t keep, int64_t of)
        : factor_(factor), block_(block), k_(k), keep_(keep), of_(of), c_(memory), weight_(c_ + block * lanes),
          kept_(weight_ + block * lanes), delta_(kept_ + block * lanes), scores_(delta_ + block * lanes) {}

    // `c`, `weight`, `mask` are the rows' parts of the block (row strides k, k, k), `delta` [rows][width].
    void run(const Real* c, Real* weight, uint8_t* mask, Real* delta, int64_t rows, int64_t first, int64_t width) {
        load(c, weight, mask, rows, width);
        for (int64_t near = 0; near < width; near += kNear) {
            const int64_t stop = std::min(near + kNear, width);
            for (int64_t j = near; j < stop; ++j) {
                if (of_ > 0 && (first + j) % of_ == 0) choose_group(j);
                step(j, stop);
            }
            push(near, stop, width);
        }
        store(weight, mask, delta, rows, width);
    }

  private:
    const Real* row(int64_t j) const { return factor_ + j * block_; }

    // Squares of `lanes` columns are turned in registers; what is left over goes one by one, without branches.
    void load(const Real* c, const Real* weight, const uint8_t* mask, int64_t rows, int64_t width) {
        if (rows < lanes) std::fill(c_, c_ + 3 * (weight_ - c_), Real(0));
        const int64_t whole = rows < lanes ? 0 : width / lanes * lanes;
        Vector square[lanes];
        for (int64_t j = 0; j < whole; j += lanes) {
            for (int64_t r = 0; r < lanes; ++r) square[r] = S::load(c + r * k_ + j);
            turn(square, c_ + j * lanes);
            for (int64_t r = 0; r < lanes; ++r) square[r] = S::load(weight + r * k_ + j);
            turn(square, weight_ + j * lanes);
            for (int64_t r = 0; r < lanes; ++r) {
                Real line[lanes];
                for (int64_t l = 0; l < lanes; ++l) line[l] = static_cast<Real>(mask[r * k_ + j + l]);
                square[r] = S::load(line);
            }
            turn(square, kept_ + j * lanes);
        }
        for (int64_t j = whole; j < width; ++j)
            for (int64_t r = 0; r < rows; ++r) {
                c_[j * lanes + r] = c[r * k_ + j];
                weight_[j * lanes + r] = weight[r * k_ + j];
                kept_[j * lanes + r] = static_cast<Real>(mask[r * k_ + j]);
            }
    }

    void store(Real* weight, uint8_t* mask, Real* delta, int64_t rows, int64_t width) {
        for (int64_t j = 0; j < width; ++j) {  // the new weights take the place of the old ones
            const Vector kept = S::load(kept_ + j * lanes);
            const Vector moved = S::load(weight_ + j * lanes) + S::load(delta_ + j * lanes);
            S::store(weight_ + j * lanes, kept != Vector{} ? moved : Vector{});
        }
        const int64_t whole = rows < lanes ? 0 : width / lanes * lanes;
        Vector square[lanes];
        for (int64_t j = 0; j < whole; j += lanes) {
            for (int64_t r = 0; r < lanes; ++r) square[r] = S::load(delta_ + (j + r) * lanes);
            transpose<Real>(square);
            for (int64_t r = 0; r < lanes; ++r) S::store(delta + r * width + j, square[r]);
            for (int64_t r = 0; r < lanes; ++r) square[r] = S::load(weight_ + (j + r) * lanes);
            transpose<Real>(square);
            for (int64_t r = 0; r < lanes; ++r) S::store(weight + r * k_ + j, square[r]);
        }
        for (int64_t j = whole; j < width; ++j)
            for (int64_t r = 0; r < rows; ++r) {
                delta[r * width + j] = delta_[j * lanes + r];
                weight[r * k_ + j] = weight_[j * lanes + r];
            }
        if (of_ == 0) return;
        for (int64_t j = 0; j < width; ++j)
            for (int64_t r = 0; r < rows; ++r) mask[r * k_ + j] = static_cast<uint8_t>(kept_[j * lanes + r]);
    }

    static void turn(Vector (&square)[lanes], Real* target) {
        transpose<Real>(square);
        for (int64_t r = 0; r < lanes; ++r) S::store(target + r * lanes, square[r]);
    }

    // δ_j, and its part in c of the columns up to `stop`.
    void step(int64_t j, int64_t stop) {
        const Real* factor = row(j);
        const Vector kept = -S::load(c_ + j * lanes) * S::broadcast(Real(1) / factor[j]);
        const Vector pruned = -S::load(weight_ + j * lanes);
        const Vector delta = S::load(kept_ + j * lanes) != Vector{} ? kept : pruned;
        S::store(delta_ + j * lanes, delta);
        for (int64_t q = j + 1; q < stop; ++q)
            S::store(c_ + q * lanes, S::load(c_ + q * lanes) + delta * S::broadcast(factor[q]));
    }

    // The part of columns near..stop in c of the columns from `stop` on, four columns in registers at a time.
    void push(int64_t near, int64_t stop, int64_t width) {
        int64_t q = stop;
        for (; q + 4 <= width; q += 4) {
            Vector sum[4];
            for (int v = 0; v < 4; ++v) sum[v] = S::load(c_ + (q + v) * lanes);
            for (int64_t j = near; j < stop; ++j) {
                const Vector delta = S::load(delta_ + j * lanes);
                const Real* factor = row(j) + q;
                for (int v = 0; v < 4; ++v) sum[v] += delta * S::broadcast(factor[v]);
            }
            for (int v = 0; v < 4; ++v) S::store(c_ + (q + v) * lanes, sum[v]);
        }
        for (; q < width; ++q)
            for (int64_t j = near; j < stop; ++j)
                S::store(c_ + q * lanes,
                         S::load(c_ + q * lanes) + S::load(delta_ + j * lanes) * S::broadcast(row(j)[q]));
    }

    // The group that begins at j: its weights as they would be with nothing of it pruned, ranked by (w R_jj)².
    void choose_group(int64_t j) {
        // c of the group's columns if all before them in the group are kept; delta_ is free from j on.
        for (int64_t q = j; q < j + of_; ++q) {
            Vector c = S::load(c_ + q * lanes);
            // Columns of the group beyond the near ones have not been told yet of the steps of this run of columns.
            for (int64_t t = j / kNear * kNear; q >= (j / kNear + 1) * kNear && t < j; ++t)
                c += S::load(delta_ + t * lanes) * S::broadcast(row(t)[q]);
            for (int64_t t = j; t < q; ++t) c += S::load(delta_ + t * lanes) * S::broadcast(row(t)[q]);
            const Real diagonal = row(q)[q];
            S::store(delta_ + q * lanes, -c * S::broadcast(Real(1) / diagonal));
            const Vector root = S::load(weight_ + q * lanes) * S::broadcast(diagonal) - c;
            S::store(scores_ + (q - j) * lanes, root * root);
        }
        for (int64_t q = 0; q < of_; ++q) {  // kept if fewer than `keep` come before it in descending, stable order
            const Vector own = S::load(scores_ + q * lanes);
            Vector before{};
            for (int64_t t = 0; t < q; ++t)
                before += S::load(scores_ + t * lanes) >= own ? S::broadcast(Real(1)) : Vector{};
            for (int64_t t = q + 1; t < of_; ++t)
                before += S::load(scores_ + t * lanes) > own ? S::broadcast(Real(1)) : Vector{};
            const Vector kept = before < S::broadcast(static_cast<Real>(keep_)) ? S::broadcast(Real(1)) : Vector{};
            S::store(kept_ + (j + q) * lanes, kept);
        }
    }

    const Real* factor_;
    int64_t block_, k_, keep_, of_;
    Real *c_, *weight_, *kept_, *delta_, *scores_;
};

template <class Real>
class Sweep {
    static constexpr int64_t wide = kPanel<Real>, lanes = Simd<Real>::lanes, chunk = 48;

  public:
    Sweep(Real* weight, uint8_t* mask, const Real* factor, int64_t rows, int64_t k, int64_t block, int64_t keep,
          int64_t of, int threads)
        : weight_(weight), mask_(mask), factor_(factor), rows_(rows), k_(k), block_(block), keep_(keep), of_(of),
          threads_(threads), inverse_width_(panels(block, wide) * wide), sums_(static_cast<size_t>(rows * k)),
          delta_(static_cast<size_t>(rows * block)), packed_(static_cast<size_t>(panels(k, wide) * block * wide)),
          own_factor_(static_cast<size_t>(block * block)), inverse_(static_cast<size_t>(block * inverse_width_)),
          lane_size_(LaneSweep<Real>::size(block, of)), lane_memory_(lane_size_ * threads) {
        std::fill(sums_.data(), sums_.data() + rows * k, Real(0));
    }

    // Columns first .. first + width follow, in this order.
    void enter(int64_t first, int64_t width) {
        for (int64_t i = 0; i < width; ++i)
            for (int64_t j = i; j < width; ++j) own_factor_[i * block_ + j] = factor_[(first + i) * k_ + first + j];
    }

    void block(int64_t first, int64_t width) {
        const int64_t right = first + width, rest = k_ - right;
        const int64_t count = panels(rest, wide), groups = panels(count, 8), chunks = panels(rows_, chunk);
#pragma omp parallel num_threads(threads_)
        {
            LaneSweep<Real> sweep(lane_memory_.data() + lane_size_ * omp_get_thread_num(), own_factor_.data(), k_,
                                  block_, keep_, of_);
#pragma omp for schedule(static) nowait
            for (int64_t p = 0; p < count; ++p)
                pack_panel(packed_.data() + p * width * wide, factor_ + first * k_ + right + p * wide, width, k_,
                           std::min(wide, rest - p * wide));
#pragma omp for schedule(dynamic, 1)
            for (int64_t group = 0; group < panels(rows_, lanes); ++group) {
                const int64_t row = group * lanes, at = row * k_ + first;
                sweep.run(sums_.data() + at, weight_ + at, mask_ + at, delta_.data() + row * width,
                          std::min(lanes, rows_ - row), first, width);
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < chunks * groups; ++task) {
                const int64_t row = task / groups * chunk, from = task % groups * 8;
                for (int64_t p = from; p < std::min(count, from + 8); ++p)
                    tile_product(sums_.data() + row * k_ + right + p * wide, k_,
                                 RowsLeft<Real>{delta_.data() + row * width, width}, packed_.data() + p * width * wide,
                                 width, std::min(chunk, rows_ - row), std::min(wide, rest - p * wide), Real(1),
                                 Real(1));
            }
        }
    }

    // scores[rows][width] = (w_B R_jj)² with w_B = w − c_B R_BB⁻¹.
    void score(Real* scores, int64_t first, int64_t width) {
        invert_block(width);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_)
        for (int64_t row = 0; row < rows_; row += chunk) {
            const int64_t height = std::min(chunk, rows_ - row);
            for (int64_t p = 0; p < panels(width, wide); ++p)
                tile_product(scores + row * width + p * wide, width,
                             RowsLeft<Real>{sums_.data() + row * k_ + first, k_}, inverse_.data() + p * block_ * wide,
                             std::min(width, (p + 1) * wide), height, std::min(wide, width - p * wide), Real(0),
                             Real(1));
            for (int64_t r = row; r < row + height; ++r)
                for (int64_t j = 0; j < width; ++j) {
                    const Real diagonal = own_factor_[j * block_ + j];
                    const Real root = (weight_[r * k_ + first + j] - scores[r * width + j]) * diagonal;
                    scores[r * width + j] = root * root;
                }
        }
    }

  private:
    // R_BB⁻¹ as panels [panel][row][wide].
    void invert_block(int64_t width) {
        const int64_t stride = panels(block_, 8) * 8;
        if (square_.empty()) square_.resize(static_cast<size_t>(block_ * stride + stride));
        for (int64_t i = 0; i < width; ++i)
            for (int64_t j = 0; j < width; ++j)
                square_[i * stride + j] = j < i ? 0.0 : static_cast<double>(own_factor_[i * block_ + j]);
        invert_upper(square_.data(), width, stride, square_.data() + block_ * stride);
        std::fill(inverse_.data(), inverse_.data() + block_ * inverse_width_, Real(0));
        for (int64_t i = 0; i < width; ++i)
            for (int64_t j = i; j < width; ++j)
                inverse_[(j / wide * block_ + i) * wide + j % wide] = static_cast<Real>(square_[i * stride + j]);
    }

    Real* weight_;
    uint8_t* mask_;
    const Real* factor_;
    int64_t rows_, k_, block_, keep_, of_;
    int threads_;
    int64_t inverse_width_;
    Buffer<Real> sums_, delta_, packed_, own_factor_, inverse_;  // c; δ; R[B, right] in panels; R_BB; R_BB⁻¹ in panels
    size_t lane_size_;
    Buffer<Real> lane_memory_;
    std::vector<double> square_;
};

template <class Real>
void run(Real* weight, uint8_t* mask, const Real* factor, const int64_t* prune, int64_t rows, int64_t columns,
         int64_t block, bool mask_given, bool per_row, int64_t keep, int64_t of, int threads) {
    if (rows == 0 || columns == 0) return;
    block = std::min(block, columns);
    const bool scored = !mask_given && of == 0;
    Sweep<Real> sweep(weight, mask, factor, rows, columns, block, keep, of, threads);
    const int64_t all = scored ? rows * block : 0;
    Buffer<Real> scores(static_cast<size_t>(all)), scratch(static_cast<size_t>(per_row ? all : 0));
    Buffer<uint8_t> chosen(static_cast<size_t>(all));
    Selector<Real> selector(per_row ? 0 : all, threads);
    for (int64_t first = 0; first < columns; first += block) {
        const int64_t width = std::min(block, columns - first), gone = prune[first / block];
        sweep.enter(first, width);
        if (scored) {
            sweep.score(scores.data(), first, width);
            if (!per_row) selector.largest(chosen.data(), scores.data(), rows * width, rows * width - gone);
#pragma omp parallel for schedule(static) num_threads(threads)
            for (int64_t row = 0; row < rows; ++row) {
                uint8_t* own = chosen.data() + row * width;
                if (per_row)
                    select_largest(own, scores.data() + row * width, width, width - gone, scratch.data() + row * width);
                std::copy(own, own + width, mask + row * columns + first);
            }
        }
        sweep.block(first, width);
    }
}

}  // namespace

void sparsegpt(void* weight, ElementType type, uint8_t* mask, const void* factor, const int64_t* prune, int64_t rows,
               int64_t columns, int64_t block, bool mask_given, bool per_row, int64_t keep, int64_t of, int threads) {
    if (type == ElementType::float64)
        run(static_cast<double*>(weight), mask, static_cast<const double*>(factor), prune, rows, columns, block,
            mask_given, per_row, keep, of, threads);
    else
        run(static_cast<float*>(weight), mask, static_cast<const float*>(factor), prune, rows, columns, block,
            mask_given, per_row, keep, of, threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

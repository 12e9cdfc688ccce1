// SPDX-License-Identifier: Apache-2.0
// Greedy OBS of one row by one block; the algorithm is told in obs.cu.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <cstdint>

#include "block.h"
#include "obs.h"

namespace pyprune::cuda {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kAhead = 8;                  // rows computed at a time, a batch
constexpr int kBatches = 8;                // batches that are kept
constexpr int kSlots = kAhead * kBatches;  // rows that are kept
constexpr int kGroup = 16;                 // threads that name one candidate
constexpr int kGroups = kThreads / kGroup;
constexpr int kDepth = 128;  // rows of V whose coefficients are in shared memory
// While a batch is kept, seven others are made at most, and every removal takes a slot of theirs or of those before:
// no product lacks more rows of V than this.
constexpr int kChain = 2 * kSlots;
static_assert(kChain <= kDepth * kAhead && kGroups <= kWarp, "they share memory; a warp ranks the candidates");
static_assert(kSlots == 2 * kWarp, "a lane looks at two slots");

template <typename Real>
constexpr Real kInfinite = static_cast<Real>(INFINITY);

/// Smallest pivot that still counts; columns are scaled so that they start near one.
template <typename Real>
constexpr Real kSmallestPivot = sizeof(Real) == 4 ? Real(1e-6) : Real(1e-14);

template <typename Real>
struct Arguments {
    Real* weight;
    std::int64_t* order;
    double* loss;
    std::int64_t* status;
    Real* workspace;
    const Real* inverse;
    const std::int64_t* count;
    ObsShape shape;
};

/// A column and what it costs; the lower column among equals.
template <typename Real>
struct Candidate {
    Real cost;
    int column;

    __device__ __forceinline__ static Candidate none() { return {kInfinite<Real>, INT_MAX}; }
    __device__ __forceinline__ bool before(const Candidate& other) const {
        return cost < other.cost || (cost == other.cost && column < other.column);
    }
    /// The best of this one and those of the lanes that differ in `bits`.
    __device__ __forceinline__ Candidate best_of(int bits) const {
        Candidate best = *this;
        for (int bit = bits; bit > 0; bit /= 2) {
            const Candidate other = {__shfl_xor_sync(kAllLanes, best.cost, bit),
                                     __shfl_xor_sync(kAllLanes, best.column, bit)};
            best = other.before(best) ? other : best;
        }
        return best;
    }
};

/// What the threads of a block share beside the columns' state.
template <typename Real>
struct Shared {
    Candidate<Real> best[2][kWarps];  // by turns
    Candidate<Real> candidate[kGroups];
    int chosen[kAhead];       // columns being computed ahead
    int owner[kSlots];        // by slot: its column, or -1
    int born[kBatches];       // rows of V that a batch has
    unsigned unsure[kWarps];  // lanes with an open column that has no pivot
};

template <typename Real>
class Row {
  public:
    using P = Pack<Real>;

    __device__ Row(const Arguments<Real>& job, Shared<Real>& shared)
        : job_(job), shared_(shared), stride_(static_cast<int>(job.shape.stride)),
          groups_(job.shape.of > 0 ? static_cast<int>(job.shape.columns / job.shape.of) : 0),
          weight_(reinterpret_cast<Real*>(dynamic_shared())), pivot_(weight_ + stride_), coefficient_(pivot_ + stride_),
          room_(reinterpret_cast<int*>(coefficient_ + kDepth * kAhead)),
          taken_(reinterpret_cast<std::uint8_t*>(room_ + groups_)) {
        v_ = job.workspace + blockIdx.x * ((job.shape.steps + kSlots) * job.shape.stride);
        ahead_ = v_ + job.shape.steps * job.shape.stride;
    }

    static __host__ std::int64_t shared_bytes(const ObsShape& shape) {
        const std::int64_t groups = shape.of > 0 ? shape.columns / shape.of : 0;
        const std::int64_t real = static_cast<std::int64_t>(sizeof(Real));
        return (2 * shape.stride + kDepth * kAhead) * real + 4 * groups + shape.stride;
    }

    __device__ void run(std::int64_t row) {
        const std::int64_t count = job_.count[row];
        std::int64_t* const order = job_.order + row * job_.shape.steps;
        double* const loss = job_.loss + row * job_.shape.steps;
        Candidate<Real> best = everywhere(start(job_.weight + row * job_.shape.stride));
        made_ = 0;
        while (made_ < count && best.cost < kInfinite<Real>) {
            if (threadIdx.x == 0) {
                order[made_] = best.column;
                loss[made_] = static_cast<double>(best.cost);
            }
            best = everywhere(remove(best.column));
        }
        finish(row, count);
    }

  private:
    /// Calls action(first column) for each pack of this thread, in ascending order.
    template <typename Action>
    __device__ __forceinline__ void for_own(const Action& action) const {
#pragma unroll 1
        for (int j = static_cast<int>(threadIdx.x) * P::size; j < stride_; j += kThreads * P::size) {
            action(j);
        }
    }

    __device__ __forceinline__ static Real cost_of(Real weight, Real pivot) {
        return pivot > kSmallestPivot<Real> ? weight * weight / pivot : kInfinite<Real>;
    }

    /// State of a new row; this thread's cheapest column.
    __device__ Candidate<Real> start(const Real* weight) {
        const ObsShape& shape = job_.shape;
        const bool any = shape.of == 0 || shape.of > shape.keep;
        auto mine = Candidate<Real>::none();
        for_own([&](int j) {
            for (int q = 0; q < P::size; ++q) {
                const int column = j + q;
                const bool open = any && column < shape.columns;
                const Real w = weight[column];
                const Real d = open ? job_.inverse[column * (shape.stride + 1)] : -kInfinite<Real>;
                weight_[column] = w;
                pivot_[column] = d;
                taken_[column] = 0;
                const Candidate<Real> own = {cost_of(w, d), column};
                mine = own.cost < mine.cost ? own : mine;
            }
        });
        for (int group = static_cast<int>(threadIdx.x); group < groups_; group += kThreads) {
            room_[group] = static_cast<int>(shape.of - shape.keep);
        }
        batch_ = 0;
        if (threadIdx.x < kSlots) {
            shared_.owner[threadIdx.x] = -1;
        }
        return mine;
    }

    /// The best of all threads; a barrier.
    __device__ Candidate<Real> everywhere(const Candidate<Real>& mine) {
        const Candidate<Real> own = mine.best_of(kWarp / 2);
        turn_ ^= 1;
        if (lane() == 0) {
            shared_.best[turn_][warp()] = own;
        }
        __syncthreads();
        auto best = Candidate<Real>::none();
        for (const Candidate<Real>& other : shared_.best[turn_]) {
            best = other.before(best) ? other : best;
        }
        return best;
    }

    /// Remove column p; this thread's cheapest column after that.
    __device__ Candidate<Real> remove(int p) {
        int slot = slot_of(p);
        if (slot < 0) {
            compute_ahead(p);
            slot = slot_of(p);
        }
        const int born = shared_.born[slot / kAhead], missing = made_ - born;
#pragma unroll 1
        for (int q = static_cast<int>(threadIdx.x); q < missing; q += kThreads) {
            coefficient_[q] = v_[static_cast<std::int64_t>(born + q) * stride_ + p];
        }
        const Real scale = weight_[p] / pivot_[p], root = Real(1) / sqrt(pivot_[p]);
        const int of = static_cast<int>(job_.shape.of), group = of > 0 ? p / of : 0;
        const int room = of > 0 ? room_[group] - 1 : 1;
        __syncthreads();
        // Columns that close now: p, or its whole group.
        const int first = room > 0 ? p : group * of, last = room > 0 ? p + 1 : first + of;
        auto mine = Candidate<Real>::none();
        for_own([&](int j) {
            P r = row_at(p, slot, born, missing, j);
            P w = load_pack(weight_ + j), d = load_pack(pivot_ + j);
#pragma unroll
            for (int q = 0; q < P::size; ++q) {
                w.at[q] -= r.at[q] * scale;
                r.at[q] *= root;
                d.at[q] = j + q >= first && j + q < last ? -kInfinite<Real> : d.at[q] - r.at[q] * r.at[q];
                const Candidate<Real> own = {cost_of(w.at[q], d.at[q]), j + q};
                mine = own.cost < mine.cost ? own : mine;
            }
            store_pack(weight_ + j, w);
            store_pack(pivot_ + j, d);
            store_pack(v_ + static_cast<std::int64_t>(made_) * stride_ + j, r);
        });
        if (threadIdx.x == 0) {
            shared_.owner[slot] = -1;
            if (of > 0) {
                room_[group] = room;
            }
        }
        ++made_;
        return mine;
    }

    /// r at a pack of columns: A[p, j] less the product computed ahead, less the rows made since.
    __device__ __forceinline__ P row_at(int p, int slot, int born, int missing, int j) const {
        P r = load_pack(job_.inverse + static_cast<std::int64_t>(p) * stride_ + j);
        const P known = load_pack(ahead_ + static_cast<std::int64_t>(slot) * stride_ + j);
#pragma unroll
        for (int q = 0; q < P::size; ++q) {
            r.at[q] -= known.at[q];
        }
        const Real* line = v_ + static_cast<std::int64_t>(born) * stride_ + j;
#pragma unroll 4
        for (int t = 0; t < missing; ++t, line += stride_) {
            const P own = load_pack(line);
            const Real c = coefficient_[t];
#pragma unroll
            for (int q = 0; q < P::size; ++q) {
                r.at[q] -= c * own.at[q];
            }
        }
        return r;
    }

    /// The slot of a column, or -1.
    __device__ __forceinline__ int slot_of(int column) const {
        const unsigned low = __ballot_sync(kAllLanes, shared_.owner[lane()] == column);
        const unsigned high = __ballot_sync(kAllLanes, shared_.owner[kWarp + lane()] == column);
        return low != 0 ? __ffs(static_cast<int>(low)) - 1 : high != 0 ? kWarp + __ffs(static_cast<int>(high)) - 1 : -1;
    }

    /// V[:, c]^T V for c = p and for the columns that are likely to follow it.
    __device__ void compute_ahead(int p) {
        name_candidates(p);
        if (warp() == 0) {
            choose(p);
        }
        __syncthreads();
        for (int first = 0; first == 0 || first < made_; first += kDepth) {
            const int depth = made_ - first < kDepth ? made_ - first : kDepth;
#pragma unroll 1
            for (int q = static_cast<int>(threadIdx.x); q < depth * kAhead; q += kThreads) {
                const std::int64_t line = first + q / kAhead;
                coefficient_[q] = v_[line * stride_ + shared_.chosen[q % kAhead]];
            }
            __syncthreads();
            for_own([&](int j) { multiply(first, depth, j); });
            __syncthreads();
        }
        batch_ = (batch_ + 1) % kBatches;
    }

    /// Of each group of threads the cheapest column that has no slot, and is not p.
    __device__ void name_candidates(int p) {
        auto mine = Candidate<Real>::none();
        for_own([&](int j) {
            for (int q = 0; q < P::size; ++q) {
                const bool wanted = taken_[j + q] == 0 && j + q != p;
                const Candidate<Real> own = {wanted ? cost_of(weight_[j + q], pivot_[j + q]) : kInfinite<Real>, j + q};
                mine = own.cost < mine.cost ? own : mine;
            }
        });
        const Candidate<Real> best = mine.best_of(kGroup / 2);
        if (lane() % kGroup == 0) {
            shared_.candidate[threadIdx.x / kGroup] = best;
        }
        __syncthreads();
    }

    /// p and the best candidates, in place of the oldest batch; by one warp.
    __device__ void choose(int p) {
        const Candidate<Real> own = lane() < kGroups ? shared_.candidate[lane()] : Candidate<Real>::none();
        int rank = 1;
#pragma unroll 1
        for (int other = 0; other < kGroups; ++other) {
            const Candidate<Real> candidate = shared_.candidate[other];
            rank += other != lane() && candidate.before(own);
        }
        int* const batch = shared_.owner + batch_ * kAhead;
        if (lane() < kAhead) {
            shared_.chosen[lane()] = p;  // also where there are fewer than eight
            if (batch[lane()] >= 0) {
                taken_[batch[lane()]] = 0;
            }
            batch[lane()] = -1;
        }
        __syncwarp();
        if (lane() == 0) {
            batch[0] = p;
            taken_[p] = 1;
            shared_.born[batch_] = made_;
        }
        if (own.cost < kInfinite<Real> && rank < kAhead) {
            shared_.chosen[rank] = own.column;
            batch[rank] = own.column;
            taken_[own.column] = 1;
        }
    }

    /// Rows first .. first + depth of V into the products at a pack of columns.
    __device__ __forceinline__ void multiply(int first, int depth, int j) const {
        P sum[kAhead] = {};
        const Real* line = v_ + static_cast<std::int64_t>(first) * stride_ + j;
#pragma unroll 4
        for (int t = 0; t < depth; ++t, line += stride_) {
            const P own = load_pack(line);
#pragma unroll
            for (int a = 0; a < kAhead; a += P::size) {
                const P c = load_pack(coefficient_ + t * kAhead + a);
#pragma unroll
                for (int b = 0; b < P::size; ++b) {
#pragma unroll
                    for (int q = 0; q < P::size; ++q) {
                        sum[a + b].at[q] += c.at[b] * own.at[q];
                    }
                }
            }
        }
        Real* target = ahead_ + static_cast<std::int64_t>(batch_ * kAhead) * stride_ + j;
#pragma unroll
        for (int a = 0; a < kAhead; ++a, target += stride_) {
            if (first > 0) {
                const P before = load_pack(target);
#pragma unroll
                for (int q = 0; q < P::size; ++q) {
                    sum[a].at[q] += before.at[q];
                }
            }
            store_pack(target, sum[a]);
        }
    }

    /// Weights, the ends of order and loss, and whether the row can be trusted; a barrier.
    __device__ void finish(std::int64_t row, std::int64_t count) {
        const ObsShape& shape = job_.shape;
        bool unsure = made_ < count;
        for_own([&](int j) {
            store_pack(job_.weight + row * shape.stride + j, load_pack(weight_ + j));
            for (int q = 0; q < P::size && sizeof(Real) == 4; ++q) {
                unsure |= pivot_[j + q] > -kInfinite<Real> && !(pivot_[j + q] > kSmallestPivot<Real>);
            }
        });
        const unsigned votes = __ballot_sync(kAllLanes, unsure);
        if (lane() == 0) {
            shared_.unsure[warp()] = votes;
        }
        for (std::int64_t step = made_ + threadIdx.x; step < shape.steps; step += kThreads) {
            job_.order[row * shape.steps + step] = -1;
            job_.loss[row * shape.steps + step] = made_ < count ? static_cast<double>(NAN) : 0.0;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned any = 0;
            for (const unsigned lanes : shared_.unsure) {
                any |= lanes;
            }
            job_.status[row] = any != 0;
        }
    }

    const Arguments<Real>& job_;
    Shared<Real>& shared_;
    int stride_, groups_;
    Real *weight_, *pivot_, *coefficient_;  // [stride], [stride], [kDepth, kAhead]
    int* room_;                             // [groups]: removals left
    std::uint8_t* taken_;                   // [stride]: has a slot
    Real *v_, *ahead_;                      // [steps, stride], [kSlots, stride]
    int made_ = 0, turn_ = 0, batch_ = 0;
};

}  // namespace pyprune::cuda

// SPDX-License-Identifier: Apache-2.0
// peak: what this machine's multiply-add units can do, FLOP/s             float32 or float64, `threads` at once
//
// Algorithm: every thread runs twelve independent chains  s := s a + b  of whole vectors in registers, enough to hide the
//   latency of the units (four cycles, two a cycle) without a load or a store; the best of `rounds` short rounds counts,
//   because what disturbs a round can only make it slower. Without fused multiply-adds (baseline on x86-64) it is the
//   rate of a multiplication followed by an addition, which is what the kernels then do.
// The yardstick of every rate in the other headers. No input; a round takes about a millisecond.
#include "../common/element_type.h"
#include "../common/simd.h"

#include <algorithm>
#include <chrono>

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int kChains = 12;  // registers of AVX2 and SSE: these, a and b
constexpr int64_t kSteps = int64_t(1) << 18;

// Sum of all lanes of all chains, so that none of them may be left out.
template <class Real>
Real chains(Real factor, Real summand) {
    using S = Simd<Real>;
    const typename S::Vector a = S::broadcast(factor), b = S::broadcast(summand);
    typename S::Vector sum[kChains];
    for (int c = 0; c < kChains; ++c) sum[c] = S::broadcast(static_cast<Real>(c));
    for (int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * a + b;
    }
    Real total = Real(0);
    for (int c = 0; c < kChains; ++c)
        for (int lane = 0; lane < S::lanes; ++lane) total += sum[c][lane];
    return total;
}

template <class Real>
double rate(int64_t rounds, int threads) {
    using Clock = std::chrono::steady_clock;
    volatile Real factor = Real(0.5), summand = Real(1);  // the chains settle at 2: no overflow, no denormals
    volatile Real sink = Real(0);
    double best = 0.0;
    for (int64_t round = 0; round < rounds; ++round) {
        Clock::time_point begin, end;
#pragma omp parallel num_threads(threads)
        {
#pragma omp barrier
#pragma omp master
            begin = Clock::now();
            const Real total = chains<Real>(factor, summand);
#pragma omp barrier
#pragma omp master
            {
                end = Clock::now();
                sink = total;
            }
        }
        const double seconds = std::chrono::duration<double>(end - begin).count();
        const double operations = 2.0 * kChains * kSteps * Simd<Real>::lanes * threads;
        best = std::max(best, operations / seconds);
    }
    return best;
}

}  // namespace

double peak(ElementType type, int64_t rounds, int threads) {
    return type == ElementType::float64 ? rate<double>(rounds, threads) : rate<float>(rounds, threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

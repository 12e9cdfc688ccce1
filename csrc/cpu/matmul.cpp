// SPDX-License-Identifier: Apache-2.0
// matmul: out = add · out + sign · a b                     a [m, k], b [k, n], out [m, n]; float32 or float64
//
// Algorithm: b is packed once into panels (panel.h), a is read as it lies; kDepth of the depth at a time, so that the
//   part of a panel in use stays in the cache that simd.h names. Threads share chunks of rows times groups of panels.
// FLOPs: 2 m k n. Memory: a, b and the copy of b read once per chunk of rows, out touched k / kDepth times.
//   384² to 1536², one core of a Zen 5: 208 to 219 of 266 GFLOP/s in float32, 96 to 111 of 133 in float64. One core of a
//   Zen 3 (AVX2), 384² and 768²: 69 and 59 % of 100 in float32 (74 in another run), 70 and 67 % of 49 in float64.
// Every entry is summed in order of depth by one thread: bits do not depend on the number of threads, nor on which other
// rows there are.
#include "../common/element_type.h"
#include "../common/panel.h"

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kGroup = 8;  // panels of b a task goes through

template <class Real>
void multiply(Real* out, const Real* a, const Real* b, int64_t rows, int64_t depth, int64_t columns, int64_t a_stride,
              int64_t b_stride, Real add, Real sign, int threads) {
    constexpr int64_t width = kPanel<Real>;
    const int64_t count = panels(columns, width), groups = panels(count, kGroup);
    int64_t chunk = std::min<int64_t>(96, rows / (2 * threads) + 1);
    chunk = (chunk + kTileRows - 1) / kTileRows * kTileRows;
    const int64_t tasks = panels(rows, chunk) * groups;
    Buffer<Real> packed(static_cast<size_t>(count * depth * width));
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t p = 0; p < count; ++p)
            pack_panel(packed.data() + p * depth * width, b + p * width, depth, b_stride,
                       std::min(width, columns - p * width));
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; ++task) {
            const int64_t row = task / groups * chunk, group = task % groups;
            for (int64_t k = 0; k == 0 || k < depth; k += kDepth<Real>)
                for (int64_t p = group * kGroup; p < std::min(count, (group + 1) * kGroup); ++p)
                    tile_product(out + row * columns + p * width, columns,
                                 RowsLeft<Real>{a + row * a_stride + k, a_stride},
                                 packed.data() + (p * depth + k) * width, std::min(kDepth<Real>, depth - k),
                                 std::min(chunk, rows - row), std::min(width, columns - p * width),
                                 k == 0 ? add : Real(1), sign);
        }
    }
}

}  // namespace

void matmul(void* out, const void* a, const void* b, ElementType type, int64_t rows, int64_t depth, int64_t columns,
            int64_t a_stride, int64_t b_stride, double add, double sign, int threads) {
    if (type == ElementType::float64)
        multiply(static_cast<double*>(out), static_cast<const double*>(a), static_cast<const double*>(b), rows, depth,
                 columns, a_stride, b_stride, add, sign, threads);
    else
        multiply(static_cast<float*>(out), static_cast<const float*>(a), static_cast<const float*>(b), rows, depth,
                 columns, a_stride, b_stride, static_cast<float>(add), static_cast<float>(sign), threads);
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

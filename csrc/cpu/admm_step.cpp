// SPDX-License-Identifier: Apache-2.0
// admm_step: z := relax (s + T M) + (kept ? (1 − relax) z : z) + momentum (z − z₋),  T = (kept ? z : −z) − s;  z₋ := old z
//
// One over-relaxed ADMM iteration for  min ½ tr (W − s) H (W − s)ᵀ  with W on a mask, in scaled form. With the sparse
// copy D = kept ? z : 0 and the dual U = z − D, the dense copy is B = s + (D − U − s) M, M = ρ (H + ρI)⁻¹, and the next z
// is relax·B + (1 − relax) D + U, plus momentum along the last move. The caller then takes the mask from z.
// Algorithm: a chunk of rows at a time: T is formed, multiplied by packed M (panel.h), and folded into z.
// FLOPs: 2 rows k². Memory: M packed once; z read and written, s read twice, the mask read twice.
//   384 x 384, one core of a Zen 5: 0.55 ms, of which the product alone would take 0.52. One core of a Zen 3 (AVX2): 73 %
//   of the peak at 384 x 384, 66 % at 768 x 768.
// float32; rows are independent and summed in order: bits do not depend on the number of threads.
#include "../common/element_type.h"
#include "../common/masked.h"
#include "../common/packed_matrix.h"

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {

namespace {

void subtract(float* input, const float* z, const uint8_t* mask, const float* start, int64_t n) {
    under_mask<float>(mask, n, [=](auto kept, int64_t i, auto whole) {
        const auto value = at(z + i, whole);
        put(input + i, (kept ? value : -value) - at(start + i, whole));
    });
}

void fold(float* z, float* previous, const uint8_t* mask, const float* start, const float* product, float relax,
          float momentum, int64_t n) {
    under_mask<float>(mask, n, [=](auto kept, int64_t i, auto whole) {
        const auto old = at(z + i, whole);
        put(z + i, relax * (at(start + i, whole) + at(product + i, whole)) + (kept ? (1.0f - relax) * old : old) +
                       momentum * (old - at(previous + i, whole)));
        put(previous + i, old);
    });
}

}  // namespace

void admm_step(float* z, float* previous, const uint8_t* mask, const float* start, const float* multiplier, float relax,
               float momentum, int64_t rows, int64_t columns, int threads) {
    int64_t chunk = std::min<int64_t>(96, rows / (2 * threads) + 1);
    chunk = (chunk + kTileRows - 1) / kTileRows * kTileRows;
    const int64_t area = chunk * columns;
    PackedMatrix<float> packed(multiplier, columns, threads);
    Buffer<float> memory(static_cast<size_t>(2 * area * threads));
#pragma omp parallel num_threads(threads)
    {
        float *input = memory.data() + 2 * area * omp_get_thread_num(), *output = input + area;
#pragma omp for schedule(dynamic, 1)
        for (int64_t row = 0; row < rows; row += chunk) {
            const int64_t height = std::min(chunk, rows - row), at = row * columns;
            // Row by row: where a vector loop ends must not depend on the chunk, and so on the number of threads.
            for (int64_t r = 0; r < height; ++r) {
                const int64_t own = at + r * columns;
                subtract(input + r * columns, z + own, mask + own, start + own, columns);
            }
            packed.multiply(output, input, height);
            for (int64_t r = 0; r < height; ++r) {
                const int64_t own = at + r * columns;
                fold(z + own, previous + own, mask + own, start + own, output + r * columns, relax, momentum, columns);
            }
        }
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

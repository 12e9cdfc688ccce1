// SPDX-License-Identifier: Apache-2.0
// symmetrise: out = (a + aᵀ) / 2 in float64, and what was seen on the way              a [k, k], any element type
//
// report[0] = largest |a_ij − a_ji|, report[1] = largest |a_ij|, report[2] = number of entries that are not finite.
// Algorithm: pairs of square blocks that fit the first-level cache, so that the transposed reads cost no more than the
//   others. Memory: a read once, out written once. Bits do not depend on the number of threads.
#include "../common/convert.h"
#include "../common/element_type.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

template <class Element>
void symmetrise_of(double* out, double* report, const Element* a, int64_t k, int threads) {
    constexpr int64_t side = 8;  // a cache line: rows k apart may all fall into one set of the cache
    const int64_t blocks = (k + side - 1) / side;
    double asymmetry = 0.0, largest = 0.0;
    int64_t broken = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) reduction(max : asymmetry, largest)                 \
    reduction(+ : broken)
    for (int64_t i = 0; i < blocks; ++i)
        for (int64_t j = i; j < blocks; ++j)
            for (int64_t row = i * side; row < std::min(k, (i + 1) * side); ++row)
                for (int64_t column = std::max(row, j * side); column < std::min(k, (j + 1) * side); ++column) {
                    const double upper = widen(a[row * k + column]), lower = widen(a[column * k + row]);
                    if (!std::isfinite(upper) || !std::isfinite(lower)) {
                        broken += !std::isfinite(upper);
                        broken += row != column && !std::isfinite(lower);
                        continue;
                    }
                    asymmetry = std::max(asymmetry, std::fabs(upper - lower));
                    largest = std::max(largest, std::max(std::fabs(upper), std::fabs(lower)));
                    out[row * k + column] = out[column * k + row] = 0.5 * upper + 0.5 * lower;
                }
    report[0] = asymmetry;
    report[1] = largest;
    report[2] = static_cast<double>(broken);
}

}  // namespace

void symmetrise(double* out, double* report, const void* a, ElementType type, int64_t k, int threads) {
    switch (type) {
        case ElementType::float32:
            return symmetrise_of(out, report, static_cast<const float*>(a), k, threads);
        case ElementType::bfloat16:
            return symmetrise_of(out, report, static_cast<const BFloat16*>(a), k, threads);
        case ElementType::float16:
            return symmetrise_of(out, report, static_cast<const Float16*>(a), k, threads);
        case ElementType::float64:
            return symmetrise_of(out, report, static_cast<const double*>(a), k, threads);
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// Blocked Cholesky of one small dense system, and its solve, for one thread.
//
// A = UᵀU with A and U row-major in the upper triangle: a block row of U then is the panel the micro-kernel wants,
// and the trailing update A22 -= U12ᵀ U12 runs at its speed (panel.h). n³/3 multiply-adds.
#pragma once

#include "panel.h"
#include "triangular.h"

#include <cmath>

namespace pyprune {
namespace PYPRUNE_ISA {

// Rows of U computed between two trailing updates.
constexpr int64_t kBlockRows = 48;

// Row stride a system of n needs: strips start at multiples of kBlockRows and may reach past the last column.
inline int64_t cholesky_stride(int64_t n) {
    return padded(n + kStrip - 1);
}

inline size_t cholesky_scratch(int64_t n) {
    return static_cast<size_t>(kBlockRows * panels(n, kPanel<double>) * kPanel<double> + n);
}

// Smallest pivot that still counts as positive where the diagonal entry was `diagonal` and the system is n wide.
inline double pivot_floor(double diagonal, int64_t n) {
    return 2.2e-16 * static_cast<double>(n) * diagonal;
}

// Factor the upper triangle of a[n][stride] in place; `stride` is cholesky_stride(n) and the padding must be finite.
// Returns -1, or the first pivot that is not above its floor (by default that of a[n][n] alone): the matrix is spoilt then.
inline int64_t small_cholesky(double* a, int64_t n, int64_t stride, double* scratch, const double* floor = nullptr) {
    double* packed = scratch;
    double* smallest = scratch + kBlockRows * panels(n, kPanel<double>) * kPanel<double>;
    for (int64_t j = 0; j < n; ++j) smallest[j] = floor == nullptr ? pivot_floor(a[j * stride + j], n) : floor[j];
    for (int64_t first = 0; first < n; first += kBlockRows) {
        const int64_t stop = std::min(first + kBlockRows, n);
        for (int64_t j = first; j < stop; ++j) {  // the diagonal block, right-looking
            double* row = a + j * stride;
            if (!(row[j] > smallest[j])) return j;
            const double root = std::sqrt(row[j]), inverse = 1.0 / root;
            row[j] = root;
            for (int64_t c = j + 1; c < stop; ++c) row[c] *= inverse;
            for (int64_t i = j + 1; i < stop; ++i)
                for (int64_t c = i; c < stop; ++c) a[i * stride + c] -= row[i] * row[c];
        }
        for (int64_t c = stop; c < n; c += kStrip) {  // the block row: U11ᵀ U12 = A12, a strip of columns at a time
            double coefficient[kBlockRows];
            for (int64_t j = first; j < stop; ++j) {
                for (int64_t q = first; q < j; ++q) coefficient[q - first] = a[q * stride + j];
                Strip strip[1], &row = strip[0];
                row.load(a + j * stride + c);
                subtract_chain(strip, coefficient, a + first * stride + c, stride, 0, j - first);
                const auto scale = Simd<double>::broadcast(1.0 / a[j * stride + j]);
                for (auto& value : row.value) value *= scale;
                row.store(a + j * stride + c);
            }
        }
        if (stop < n)
            symmetric_update(a + stop * stride + stop, stride, a + first * stride + stop, stride, stop - first,
                             n - stop, -1.0, packed);
    }
    return -1;
}

// Invert an upper triangular matrix in place, below its last row first; `line` holds n. n³/6 multiply-adds.
inline void invert_upper(double* u, int64_t n, int64_t stride, double* line) {
    for (int64_t i = n - 1; i >= 0; --i) {
        double* row = u + i * stride;
        const double scale = 1.0 / row[i];
        std::fill(line, line + n, 0.0);
        for (int64_t q = i + 1; q < n; ++q) {
            const double* below = u + q * stride;
            for (int64_t j = q; j < n; ++j) line[j] -= row[q] * below[j];
        }
        row[i] = scale;
        for (int64_t j = i + 1; j < n; ++j) row[j] = line[j] * scale;
    }
}

// Solve UᵀU x = b in place.
inline void small_cholesky_solve(const double* u, int64_t n, int64_t stride, double* b) {
    for (int64_t i = 0; i < n; ++i) {
        const double* row = u + i * stride;
        b[i] /= row[i];
        for (int64_t j = i + 1; j < n; ++j) b[j] -= row[j] * b[i];
    }
    for (int64_t i = n - 1; i >= 0; --i) {
        const double* row = u + i * stride;
        double sum = b[i];
        for (int64_t j = i + 1; j < n; ++j) sum -= row[j] * b[j];
        b[i] = sum / row[i];
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

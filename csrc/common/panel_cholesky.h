// SPDX-License-Identifier: Apache-2.0
// Blocked Cholesky of one dense system and its solves, for one thread.
//
// A = UᵀU row-major in the upper triangle, a panel's width of rows at a time: the diagonal block is factored and inverted
// (tile_cholesky.h), its block row becomes U_JJ⁻ᵀ A_J,: by the micro-kernel, and the packed result is both operands of the
// trailing update A −= U_J,:ᵀ U_J,:. n³/3 FLOPs; n is padded to whole panels with ones on the diagonal.
#pragma once

#include "panel.h"
#include "tile_cholesky.h"

#include <limits>

namespace pyprune {
namespace PYPRUNE_ISA {

// Smallest pivot that still counts as positive where the diagonal entry was `diagonal` and the system is n wide.
template <class Real>
inline Real pivot_floor(Real diagonal, int64_t n) {
    return std::numeric_limits<Real>::epsilon() * static_cast<Real>(n) * diagonal;
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

template <class Real>
class PanelCholesky {
    static constexpr int64_t width = kPanel<Real>;

  public:
    static int64_t padded_size(int64_t n) { return panels(n, width) * width; }
    // Elements a factor of n occupies: the matrix, and the inverses of its diagonal blocks.
    static size_t factor_size(int64_t n) { return static_cast<size_t>(padded_size(n) * (padded_size(n) + width)); }
    static size_t scratch_size(int64_t n) { return static_cast<size_t>(padded_size(n) * (width + 1) + width * width); }

    // `memory` has factor_size(n) elements, its first padded_size(n)² the matrix, row-major, in the upper triangle.
    PanelCholesky(Real* memory, int64_t n)
        : n_(n), size_(padded_size(n)), a_(memory), inverses_(memory + size_ * size_) {}

    Real* row(int64_t i) { return a_ + i * size_; }
    int64_t stride() const { return size_; }

    // Returns -1, or the first pivot that is not above its floor (the memory is then spoilt). Without `floors` a pivot has
    // to be positive to working precision, relative to its diagonal entry.
    int64_t factor(Real* scratch, const Real* floors = nullptr) {
        Real *packed = scratch, *block = packed + size_ * width, *floor = block + width * width;
        pad();
        for (int64_t i = 0; i < size_; ++i)
            floor[i] = floors != nullptr && i < n_ ? floors[i] : pivot_floor(row(i)[i], n_);
        for (int64_t first = 0; first < size_; first += width) {
            const int64_t stop = first + width, rest = panels(size_ - stop, width);
            for (int64_t i = 0; i < width; ++i)
                std::memcpy(block + i * width, row(first + i) + first, width * sizeof(Real));
            Real* inverse = inverses_ + first * width;
            const int failed = TileCholesky<Real>::run(block, inverse, floor + first);
            if (failed >= 0) return first + failed;
            for (int64_t i = 0; i < width; ++i)
                std::memcpy(row(first + i) + first, block + i * width, width * sizeof(Real));
            for (int64_t p = 0; p < rest; ++p) {
                Real* target = row(first) + stop + p * width;
                pack_panel(block, target, width, size_, width);
                tile_product(packed + p * width * width, width, PanelLeft<Real>{inverse}, block, width, width, width,
                             Real(0), Real(1));
                for (int64_t q = 0; q < width; ++q)
                    std::memcpy(target + q * size_, packed + (p * width + q) * width, width * sizeof(Real));
            }
            for (int64_t i = 0; i < rest; ++i)
                for (int64_t j = i; j < rest; ++j)
                    panel_product(row(stop + i * width) + stop + j * width, size_, packed + i * width * width,
                                  packed + j * width * width, width, width, width, Real(-1));
        }
        return -1;
    }

    // Solve UᵀU x = b in place; b has padded_size(n) elements, zero beyond n.
    void solve(Real* b) const {
        Real block[width];
        for (int64_t first = 0; first < size_; first += width) {  // U_JJᵀ y_J = b_J, then out of what follows
            std::fill(block, block + width, Real(0));
            for (int64_t q = 0; q < width; ++q) {
                const Real value = b[first + q];
                for (int64_t i = 0; i < width; ++i) block[i] += inverses_[(first + q) * width + i] * value;
            }
            std::memcpy(b + first, block, sizeof(block));
            for (int64_t c = first + width; c < size_; c += width) take_rows(b + c, block, first, c);
        }
        for (int64_t first = size_ - width; first >= 0; first -= width) {
            for (int64_t q = 0; q < width; ++q)
                block[q] = b[first + q] -
                           dot(a_ + (first + q) * size_ + first + width, b + first + width, size_ - first - width);
            for (int64_t q = 0; q < width; ++q) b[first + q] = dot(inverses_ + (first + q) * width, block, width);
        }
    }

    // out[p][i][c] = U⁻¹[i][p · width + c] for all i < padded_size(n), in panels; zero below the diagonal.
    void inverse_panels(Real* out) const {
        Real sum[width * width];
        for (int64_t c = 0; c < size_; c += width) {
            Real* panel = out + c * size_;
            std::fill(panel, panel + size_ * width, Real(0));
            std::memcpy(panel + c * width, inverses_ + c * width, width * width * sizeof(Real));
            for (int64_t b = c - width; b >= 0; b -= width) {  // −U⁻¹_bb Σ_d U_bd U⁻¹_dc
                tile_product(sum, width, RowsLeft<Real>{a_ + b * size_ + b + width, size_}, panel + (b + width) * width,
                             c - b, width, width, Real(0), Real(1));
                tile_product(panel + b * width, width, RowsLeft<Real>{inverses_ + b * width, width}, sum, width, width,
                             width, Real(0), Real(-1));
            }
        }
    }

  private:
    using S = Simd<Real>;

    void pad() {
        for (int64_t i = 0; i < size_; ++i) {
            std::fill(row(i) + std::max(i, n_), row(i) + size_, Real(0));
            if (i >= n_) row(i)[i] = Real(1);
        }
    }

    // b[0..width) -= Σ_q y[q] U[first + q][c..c + width)
    void take_rows(Real* b, const Real* y, int64_t first, int64_t c) const {
        typename S::Vector sum[kTileVectors];
        for (int v = 0; v < kTileVectors; ++v) sum[v] = S::load(b + v * S::lanes);
        const Real* u = a_ + first * size_ + c;
        for (int64_t q = 0; q < width; ++q, u += size_)
            for (int v = 0; v < kTileVectors; ++v) sum[v] -= S::broadcast(y[q]) * S::load(u + v * S::lanes);
        for (int v = 0; v < kTileVectors; ++v) S::store(b + v * S::lanes, sum[v]);
    }

    // `count` is a multiple of `width`.
    static Real dot(const Real* a, const Real* b, int64_t count) {
        typename S::Vector sum[kTileVectors] = {};
        for (int64_t i = 0; i < count; i += width)
            for (int v = 0; v < kTileVectors; ++v)
                sum[v] += S::load(a + i + v * S::lanes) * S::load(b + i + v * S::lanes);
        Real lanes[S::lanes], total = Real(0);
        for (int v = 1; v < kTileVectors; ++v) sum[0] += sum[v];
        S::store(lanes, sum[0]);
        for (Real lane : lanes) total += lane;
        return total;
    }

    int64_t n_, size_;
    Real *a_, *inverses_;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

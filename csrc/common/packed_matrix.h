// SPDX-License-Identifier: Apache-2.0
// A square matrix packed once to stand on the right of many products.
#pragma once

#include "panel.h"

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Real>
class PackedMatrix {
    static constexpr int64_t width = kPanel<Real>, kPanelGroup = 8, kRowsAtOnce = 48;

  public:
    // matrix [k, k], row-major; null: nothing is packed, and nothing may be multiplied.
    template <class Source>
    PackedMatrix(const Source* matrix, int64_t k, int threads)
        : k_(k), data_(static_cast<size_t>(matrix == nullptr ? 0 : panels(k, width) * k * width)) {
        if (matrix == nullptr) return;
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t p = 0; p < panels(k, width); ++p)
            pack_panel(data_.data() + p * k * width, matrix + p * width, k, k, std::min(width, k - p * width));
    }

    // out[rows][k] = add · out + sign · left[rows][k] · matrix, by the calling thread. A group of panels stays in the
    // second-level cache while the rows pass by, and one of them in the first while kRowsAtOnce do.
    void multiply(Real* out, const Real* left, int64_t rows, Real add = Real(0), Real sign = Real(1)) {
        const int64_t count = panels(k_, width);
        for (int64_t group = 0; group < count; group += kPanelGroup)
            for (int64_t first = 0; first < k_; first += kDepth<Real>)
                for (int64_t row = 0; row < rows; row += kRowsAtOnce)
                    for (int64_t p = group; p < std::min(count, group + kPanelGroup); ++p)
                        tile_product(out + row * k_ + p * width, k_, RowsLeft<Real>{left + row * k_ + first, k_},
                                     data_.data() + (p * k_ + first) * width, std::min(kDepth<Real>, k_ - first),
                                     std::min(kRowsAtOnce, rows - row), std::min(width, k_ - p * width),
                                     first == 0 ? add : Real(1), sign);
    }

  private:
    int64_t k_;
    Buffer<Real> data_;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// A square matrix packed once to stand on the right of many products.
#pragma once

#include "panel.h"

namespace pyprune {
namespace PYPRUNE_ISA {

template <class Real>
class PackedMatrix {
    static constexpr int64_t width = kPanel<Real>;

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

    // out[rows][k] = add · out + sign · left[rows][k] · matrix, by the calling thread.
    void multiply(Real* out, const Real* left, int64_t rows, Real add = Real(0), Real sign = Real(1)) {
        for (int64_t p = 0; p < panels(k_, width); ++p)
            tile_product(out + p * width, k_, RowsLeft<Real>{left, k_}, data_.data() + p * k_ * width, k_, rows,
                         std::min(width, k_ - p * width), add, sign);
    }

  private:
    int64_t k_;
    Buffer<Real> data_;
};

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

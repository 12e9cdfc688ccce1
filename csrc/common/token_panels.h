// SPDX-License-Identifier: Apache-2.0
// Packing of kept tokens into panels, shared by gram and cross_gram.
#pragma once

#include "buffer.h"
#include "convert.h"
#include "panel.h"

namespace pyprune {
namespace PYPRUNE_ISA {

// Tokens whose products are summed in the working precision before they are added to the float64 result.
constexpr int64_t kChain = 256;
// Tokens packed between two barriers.
constexpr int64_t kChunk = 8 * kChain;

// The arithmetic of an element type: float64 stays, everything else runs in float32.
template <class Element>
struct Arithmetic {
    using Real = float;
};
template <>
struct Arithmetic<double> {
    using Real = double;
};

// Next tokens to use: fills `rows` with the indices of up to kChunk kept tokens and returns how many; `next`
// moves on. Dropped tokens are skipped here and never read, so that NaN in padding cannot enter a sum.
inline int64_t next_chunk(int64_t* rows, int64_t& next, int64_t tokens, const uint8_t* keep) {
    int64_t count = 0;
    for (; next < tokens && count < kChunk; ++next)
        if (keep == nullptr || keep[next] != 0) rows[count++] = next;
    return count;
}

// panel[count][kPanel] = x[rows[t]][first : first + width], zero-padded.
template <class Element, class Real>
inline void pack_tokens(Real* panel, const Element* x, int64_t stride, const int64_t* rows, int64_t count,
                        int64_t first, int64_t width) {
    for (int64_t t = 0; t < count; ++t, panel += kPanel<Real>) {
        const Element* source = x + rows[t] * stride + first;
        for (int64_t column = 0; column < width; ++column) panel[column] = widen(source[column]);
        for (int64_t column = width; column < kPanel<Real>; ++column) panel[column] = Real(0);
    }
}

// out tile += left panelᵀ · right panel over `count` tokens, in chains of kChain.
template <class Real>
inline void chained_product(double* out, int64_t stride, const Real* left, const Real* right, int64_t count,
                            int64_t rows, int64_t columns, double* mirror) {
    for (int64_t first = 0; first < count; first += kChain) {
        const int64_t depth = std::min(kChain, count - first);
        panel_product<Real, double>(out, stride, left + first * kPanel<Real>, right + first * kPanel<Real>, depth, rows,
                                    columns, 1.0, mirror);
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

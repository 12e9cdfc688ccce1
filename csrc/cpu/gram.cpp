// SPDX-License-Identifier: Apache-2.0
// gram: out += Σ_t keep_t · x_t x_tᵀ                              out [k, k] float64, x [n, k]
//
// Algorithm: symmetric rank-n update. Kept tokens are packed, widened, into zero-padded column panels
//   (token_panels.h), 2048 at a time; the tiles on and above the diagonal are multiplied by the register-blocked
//   micro-kernel (panel.h) and mirrored. Products and chains of 256 run in float32 (float64 for float64 input),
//   chains are summed in float64: relative error about 1e-6 of |x|ᵀ|x| whatever n.
// FLOPs: n k (k + 1), half of X.T @ X. Memory: x read once, panels of 2048·k written and re-read from cache,
//   out read and written n/256 times.
// Determinism: every entry is summed in token order by one thread; bits do not depend on the thread count.
// Requires `out` symmetric. Tokens with keep == 0 are never read. Any size, including 0.
#include "../common/element_type.h"
#include "../common/token_panels.h"

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

template <class Element>
void gram_of(double* out, const Element* x, int64_t tokens, int64_t columns, int64_t stride, const uint8_t* keep,
             int threads) {
    using Real = typename Arithmetic<Element>::Real;
    constexpr int64_t width = kPanel<Real>;
    const int64_t count = panels(columns, width);
    const int64_t depth = std::min(tokens, kChunk);
    Buffer<Real> packed(static_cast<size_t>(count * depth * width));
    Buffer<int64_t> rows(static_cast<size_t>(depth));
    for (int64_t next = 0; next < tokens;) {
        const int64_t used = next_chunk(rows.data(), next, tokens, keep);
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t p = 0; p < count; ++p)
                pack_tokens(packed.data() + p * depth * width, x, stride, rows.data(), used, p * width,
                            std::min(width, columns - p * width));
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < count; ++i)  // the longest rows of tiles come first
                for (int64_t j = i; j < count; ++j) {
                    double* tile = out + i * width * columns + j * width;
                    double* mirror = i == j ? nullptr : out + j * width * columns + i * width;
                    chained_product(tile, columns, packed.data() + i * depth * width, packed.data() + j * depth * width,
                                    used, std::min(width, columns - i * width), std::min(width, columns - j * width),
                                    mirror);
                }
        }
    }
}

}  // namespace

void gram(double* out, const void* x, ElementType type, int64_t tokens, int64_t columns, int64_t stride,
          const uint8_t* keep, int threads) {
    switch (type) {
        case ElementType::float32:
            return gram_of(out, static_cast<const float*>(x), tokens, columns, stride, keep, threads);
        case ElementType::bfloat16:
            return gram_of(out, static_cast<const BFloat16*>(x), tokens, columns, stride, keep, threads);
        case ElementType::float16:
            return gram_of(out, static_cast<const Float16*>(x), tokens, columns, stride, keep, threads);
        case ElementType::float64:
            return gram_of(out, static_cast<const double*>(x), tokens, columns, stride, keep, threads);
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

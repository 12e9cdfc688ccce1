// SPDX-License-Identifier: Apache-2.0
// What the encoder kernel reads: sizes, and the weights of every layer. One text for all instruction sets.
#pragma once

#include "sparse_rows_view.h"

#include <cstdint>

namespace pyprune {

// Rows of a tile of a dense weight (dense_rows.h), the same for every instruction set.
constexpr int kDenseRows = 6;

// A linear of a layer: dense where `dense` is not null, then of `sparse` only the shape counts.
struct LayerLinear {
    SparseRows sparse;
    const float* dense;
};

enum class FeedForward : int { gelu = 0, gelu_tanh = 1, relu = 2 };

// A layer with its norms behind the residual sums. Queries, keys and values are one linear.
struct EncoderLayer {
    LayerLinear project, output, up, down;
    const float *project_bias, *output_bias, *attention_gain, *attention_shift;
    const float *up_bias, *down_bias, *output_gain, *output_shift;

    int64_t width() const { return output.sparse.in; }  // of all heads together
    int64_t inner() const { return down.sparse.in; }
};

struct EncoderShape {
    int64_t sequences, length, hidden, head;
    float eps;
    FeedForward activation;
};

}  // namespace pyprune

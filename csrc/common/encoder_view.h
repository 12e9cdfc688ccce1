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

// A head of a layer: its channels of queries and keys, and of values, and how many other heads' channels come before.
// A head without queries looks at all tokens alike.
struct EncoderHead {
    int64_t query, value, query_start, value_start;
};

enum class FeedForward : int { gelu = 0, gelu_tanh = 1, relu = 2 };

// A layer with its norms behind the residual sums. Queries, keys and values are one linear. There may be layers without
// heads or without neurons: that half adds its bias.
struct EncoderLayer {
    LayerLinear project, output, up, down;
    const EncoderHead* heads;
    int64_t head_count, queries;  // queries: channels of all heads together
    bool in_place;                // all heads have as many values as queries, and results are put in their place
    const float *project_bias, *output_bias, *attention_gain, *attention_shift;
    const float *up_bias, *down_bias, *output_gain, *output_shift;

    int64_t values() const { return output.sparse.in; }
    // Features of a token during attention: queries, keys and values, and what becomes of them where that has no place.
    int64_t projected() const { return 2 * queries + values() * (in_place ? 1 : 2); }
    int64_t attended() const { return in_place ? 0 : 2 * queries + values(); }
    int64_t inner() const { return down.sparse.in; }
};

struct EncoderShape {
    int64_t sequences, length, hidden;
    int64_t head;  // channels by which scores are scaled, 1 / √head; a layer's own heads may have fewer
    float eps;
    FeedForward activation;
};

}  // namespace pyprune

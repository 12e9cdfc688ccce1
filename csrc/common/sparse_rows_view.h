// SPDX-License-Identifier: Apache-2.0
// The arrangement "rows" of a sparse matrix: what spmm multiplies by. One text for all instruction sets.
//
// Columns are cut into tiles of `tile`, rows into panels of kPanelRows. Panel and tile meet in a cell. Within a cell the
// rows are sorted by how much they keep, most first (ties by index), and taken two by two, so that two rows advance
// together and loops end when the processor expects it. A pair is stored in quads: two weights of the first row, two of
// the second, as many quads as the longer row needs. Both are padded with values of zero at a column that they have
// already (the tile's first where a row keeps nothing). Two bytes a column: 6 bytes a weight in float32, 4 in 16 bits,
// 3 in int8. Columns are read kColumnsAhead before they are needed, so that as many (of any value) follow the last.
#pragma once

#include <cstdint>

namespace pyprune {

constexpr int64_t kPanelRows = 64;
constexpr int64_t kColumnsAhead = 8;

/// Type of the stored weights. The numbers are part of the binding's contract.
enum class ValueType : int { float32 = 0, bfloat16 = 1, float16 = 2, int8 = 3 };

/// Quads of a pair of rows whose longer one keeps `longer` weights.
inline int64_t pair_quads(int64_t longer) {
    return (longer + 1) / 2;
}

struct SparseRows {
    int64_t out, in;     // of the matrix
    int64_t tile;        // columns of a tile
    const void* values;  // [stored]
    ValueType type;
    const uint16_t* columns;  // [stored + kColumnsAhead], counted from the tile's first
    const uint8_t* rows;      // [panels][tiles][kPanelRows], counted from the panel's first: the order in the cell
    const uint16_t* lengths;  // [panels][tiles][kPanelRows], weights kept, in that order
    const int64_t* starts;    // [panels · tiles + 1], first value of each cell

    int64_t panels() const { return (out + kPanelRows - 1) / kPanelRows; }
    int64_t tiles() const { return in > tile ? (in + tile - 1) / tile : 1; }
    int64_t panel_rows(int64_t panel) const {
        return out - panel * kPanelRows < kPanelRows ? out - panel * kPanelRows : kPanelRows;
    }
    int64_t tile_columns(int64_t index) const { return in - index * tile < tile ? in - index * tile : tile; }
};

/// What is done to the sums before they are written. The numbers are part of the binding's contract.
enum class Activation : int { none = 0, gelu = 1, relu = 2 };

}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// The arrangement "windows" of a sparse matrix: what spmm_windows multiplies few tokens by. One text for all instruction
// sets.
//
// Rows are cut into panels of kWindowPanel. Within a panel they are sorted by how much they keep, most first (ties by
// index), and taken sixteen by sixteen: a slice has a row in every lane of a vector of 32 bits. A slice is a list of
// slots. A slot belongs to a window: two neighbouring steps of columns, each as wide as a vector of x. It holds the next
// weights of each row, if they lie in the window: one a row ("singles", x in float32) or two ("pairs", x and weights in
// bfloat16), with one byte for the column, counted from the window's first. Windows move on when no row of the slice has a
// weight in their first step. What a row does not fill is padding: zeros, without the flag kThere that a weight's column
// has. Slices have an even number of slots.
#pragma once

#include "sparse_rows_view.h"

#include <cstdint>

namespace pyprune {

constexpr int64_t kSliceRows = 16;
constexpr int64_t kWindowPanel = 128;
constexpr int64_t kPanelSlices = kWindowPanel / kSliceRows;
constexpr int64_t kVectorWords = 16;  // of 32 bits: the step of singles; that of pairs is twice as many columns
constexpr uint8_t kThere = 0x80;      // look-ups ignore it

/// Which windows a type of x and a type of values have on an instruction set. The numbers are part of the binding's
/// contract.
enum class WindowKind : int { none = 0, singles = 1, pairs = 2 };

struct WindowsView {
    int64_t out, in;         // of the matrix
    WindowKind kind;         // singles or pairs
    ValueType type;          // of the values; bfloat16 for pairs
    const void* values;      // [slots][kSliceRows][per_row]
    const uint8_t* offsets;  // [slots][kSliceRows][per_row], columns counted from the window's first, with kThere, or 0
    const uint16_t* steps;   // [slots], the first step of the window
    const uint8_t* places;   // [panels][kWindowPanel], where in the order of the panel a row is
    const int64_t* starts;   // [panels · kPanelSlices + 1], first slot of each slice

    int64_t panels() const { return (out + kWindowPanel - 1) / kWindowPanel; }
    int64_t per_row() const { return kind == WindowKind::pairs ? 2 : 1; }
    int64_t step() const { return kVectorWords * per_row(); }  // columns
    int64_t panel_rows(int64_t panel) const {
        return out - panel * kWindowPanel < kWindowPanel ? out - panel * kWindowPanel : kWindowPanel;
    }
    int64_t slots() const { return starts[panels() * kPanelSlices]; }
};

}  // namespace pyprune

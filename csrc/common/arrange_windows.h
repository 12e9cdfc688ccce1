// SPDX-License-Identifier: Apache-2.0
// Kept weights, listed with their rows and columns, in the arrangement of sparse_windows_view.h.
#pragma once

#include "sparse_windows_view.h"

#include <memory>
#include <vector>

namespace pyprune {

/// Where the kept weights are and which of `values` they are; the columns of a row rise.
struct KeptWeights {
    const int64_t *rows, *columns, *places;  // [count]
    int64_t count;
    const void* values;
    ValueType type;
};

/// An arrangement and its memory.
class SparseWindows {
  public:
    /// Throws std::invalid_argument where the list does not fit the matrix, or the matrix has too many columns.
    SparseWindows(int64_t out, int64_t in, WindowKind kind, const KeptWeights& kept);

    const WindowsView& view() const { return view_; }
    int64_t bytes() const;

    /// Most columns that the numbers of steps hold.
    static int64_t most_columns(WindowKind kind);

  private:
    struct Free {
        void operator()(void* memory) const;
    };
    template <class Element, class Stored>
    void arrange(const KeptWeights& kept);

    WindowsView view_;
    std::unique_ptr<void, Free> values_;  // aligned to cache lines
    std::vector<uint8_t> offsets_, places_;
    std::vector<uint16_t> steps_;
    std::vector<int64_t> starts_;
};

}  // namespace pyprune

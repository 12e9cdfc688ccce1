// SPDX-License-Identifier: Apache-2.0
// A mask and the kept values, row by row, in the arrangement of sparse_rows_view.h. Two passes: the first says how much
// memory the second needs. Operations: one look at every mark of the mask a pass.
#pragma once

#include <cstdint>

namespace pyprune {

/// Fill `rows`, `lengths` and `starts` from `mask` [out, in]; how many values and columns there will be, padding included.
int64_t order_rows(uint8_t* rows, uint16_t* lengths, int64_t* starts, const uint8_t* mask, int64_t out, int64_t in,
                   int64_t tile);

/// Fill `columns` and `stored` from the mask, what order_rows made of it, and the kept values of `size` bytes each.
void fill_rows(uint16_t* columns, void* stored, const uint8_t* rows, const uint16_t* lengths, const int64_t* starts,
               const uint8_t* mask, const void* values, int64_t size, int64_t out, int64_t in, int64_t tile);

}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
#include "arrange_rows.h"

#include "sparse_rows_view.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

namespace pyprune {
namespace {

SparseRows sizes(int64_t out, int64_t in, int64_t tile) {
    SparseRows matrix{};
    matrix.out = out, matrix.in = in, matrix.tile = tile;
    return matrix;
}

// Quads of the cell's pairs together: the longer row of each comes first.
int64_t quads(const uint16_t* lengths) {
    int64_t total = 0;
    for (int64_t row = 0; row < kPanelRows; row += 2) total += pair_quads(lengths[row]);
    return total;
}

template <class Element>
void fill(uint16_t* columns, Element* stored, const uint8_t* rows, const uint16_t* lengths, const int64_t* starts,
          const uint8_t* mask, const Element* values, const SparseRows& matrix) {
    for (int64_t panel = 0; panel < matrix.panels(); ++panel) {
        // Where each row's next value lies: rows come one after the other, tiles within them.
        const Element* next[kPanelRows] = {};
        for (int64_t row = 0; row < matrix.panel_rows(panel); ++row) {
            const uint8_t* marks = mask + (panel * kPanelRows + row) * matrix.in;
            next[row] = values;
            values += std::count_if(marks, marks + matrix.in, [](uint8_t mark) { return mark != 0; });
        }
        for (int64_t tile = 0; tile < matrix.tiles(); ++tile) {
            const int64_t cell = panel * matrix.tiles() + tile, width = matrix.tile_columns(tile);
            int64_t pair = starts[cell];
            for (int64_t place = 0; place < kPanelRows; ++place) {
                const uint8_t row = rows[cell * kPanelRows + place];
                const int64_t count = lengths[cell * kPanelRows + place];
                const int64_t longer = lengths[cell * kPanelRows + place / 2 * 2];
                const uint8_t* marks = mask + (panel * kPanelRows + row) * matrix.in + tile * matrix.tile;
                const auto put = [&](int64_t step, int64_t column, Element value) {
                    const int64_t at = pair + step / 2 * 4 + place % 2 * 2 + step % 2;
                    columns[at] = static_cast<uint16_t>(column);
                    stored[at] = value;
                };
                int64_t step = 0, last = 0;
                for (int64_t column = 0; step < count && column < width; ++column)
                    if (marks[column] != 0) put(step++, last = column, *next[row]++);
                while (step < 2 * pair_quads(longer)) put(step++, last, Element(0));
                if (place % 2 == 1) pair += 4 * pair_quads(longer);
            }
        }
    }
}

}  // namespace

int64_t order_rows(uint8_t* rows, uint16_t* lengths, int64_t* starts, const uint8_t* mask, int64_t out, int64_t in,
                   int64_t tile) {
    const SparseRows matrix = sizes(out, in, tile);
    int64_t cell = 0;
    starts[0] = 0;
    for (int64_t panel = 0; panel < matrix.panels(); ++panel)
        for (int64_t t = 0; t < matrix.tiles(); ++t, ++cell) {
            uint16_t kept[kPanelRows] = {};
            for (int64_t row = 0; row < matrix.panel_rows(panel); ++row) {
                const uint8_t* marks = mask + (panel * kPanelRows + row) * in + t * tile;
                int64_t count = 0;
                for (int64_t column = 0; column < matrix.tile_columns(t); ++column) count += marks[column] != 0;
                kept[row] = static_cast<uint16_t>(count);
            }
            uint8_t* order = rows + cell * kPanelRows;
            std::iota(order, order + kPanelRows, uint8_t(0));
            std::stable_sort(order, order + kPanelRows, [&](uint8_t a, uint8_t b) { return kept[a] > kept[b]; });
            for (int64_t place = 0; place < kPanelRows; ++place)
                lengths[cell * kPanelRows + place] = kept[order[place]];
            starts[cell + 1] = starts[cell] + 4 * quads(lengths + cell * kPanelRows);
        }
    return starts[cell];
}

void fill_rows(uint16_t* columns, void* stored, const uint8_t* rows, const uint16_t* lengths, const int64_t* starts,
               const uint8_t* mask, const void* values, int64_t size, int64_t out, int64_t in, int64_t tile) {
    const SparseRows matrix = sizes(out, in, tile);
    if (size == 4)
        fill(columns, static_cast<uint32_t*>(stored), rows, lengths, starts, mask, static_cast<const uint32_t*>(values),
             matrix);
    else if (size == 2)
        fill(columns, static_cast<uint16_t*>(stored), rows, lengths, starts, mask, static_cast<const uint16_t*>(values),
             matrix);
    else
        fill(columns, static_cast<uint8_t*>(stored), rows, lengths, starts, mask, static_cast<const uint8_t*>(values),
             matrix);
}

}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// The list is sorted by rows (counting, stable); then every slice is filled slot by slot, the window as far left as the
// row that is most behind. Taking a weight as soon as the window shows it never costs a slot. Operations: one look at every
// lane of every slot.
#include "arrange_windows.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>
#include <stdexcept>

namespace pyprune {
namespace {

constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

int64_t value_bytes(ValueType type) {
    return type == ValueType::float32 ? 4 : type == ValueType::int8 ? 1 : 2;
}

// The list by rows: entries[starts[row] … starts[row + 1]) are those of a row, in the order of the list.
struct ByRows {
    std::vector<int64_t> starts, entries;

    ByRows(int64_t out, int64_t in, const KeptWeights& kept) : starts(out + 1), entries(kept.count) {
        for (int64_t i = 0; i < kept.count; ++i) {
            if (kept.rows[i] < 0 || kept.rows[i] >= out || kept.columns[i] < 0 || kept.columns[i] >= in)
                throw std::invalid_argument("a kept weight lies outside the matrix");
            ++starts[kept.rows[i] + 1];
        }
        std::partial_sum(starts.begin(), starts.end(), starts.begin());
        std::vector<int64_t> next(starts.begin(), starts.end() - 1);
        for (int64_t i = 0; i < kept.count; ++i) entries[next[kept.rows[i]]++] = i;
        for (int64_t row = 0; row < out; ++row)
            for (int64_t i = starts[row] + 1; i < starts[row + 1]; ++i)
                if (kept.columns[entries[i - 1]] >= kept.columns[entries[i]])
                    throw std::invalid_argument("the columns of a row do not rise");
    }
    int64_t length(int64_t row) const { return starts[row + 1] - starts[row]; }
};

// What is left of one row.
struct Rest {
    const int64_t *next, *end;
};

// The values of pairs are bfloat16: whole numbers up to 127 are exact in it, and upper halves of their float32.
uint16_t stored_as(uint16_t value, uint16_t) {
    return value;
}
uint16_t stored_as(int8_t value, uint16_t) {
    const float wide = value;
    uint32_t bits;
    std::memcpy(&bits, &wide, sizeof(bits));
    return static_cast<uint16_t>(bits >> 16);
}
uint32_t stored_as(uint32_t value, uint32_t) {
    return value;
}
int8_t stored_as(int8_t value, int8_t) {
    return value;
}

template <class Element, class Stored>
void fill(std::vector<Stored>& stored, std::vector<uint8_t>& offsets, std::vector<uint16_t>& steps,
          std::vector<Rest>& slice, const WindowsView& view, const KeptWeights& kept) {
    const auto column = [&](const int64_t* entry) { return kept.columns[*entry]; };
    const int64_t step = view.step(), per_row = view.per_row();
    while (true) {
        int64_t behind = kNone;
        for (const Rest& row : slice)
            if (row.next != row.end) behind = std::min(behind, column(row.next));
        if (behind == kNone) break;
        const int64_t first = behind / step * step;
        steps.push_back(static_cast<uint16_t>(first / step));
        for (Rest& row : slice)
            for (int64_t i = 0; i < per_row; ++i) {
                const bool there = row.next != row.end && column(row.next) < first + 2 * step;
                offsets.push_back(there ? static_cast<uint8_t>(kThere | (column(row.next) - first)) : uint8_t(0));
                stored.push_back(
                    there ? stored_as(static_cast<const Element*>(kept.values)[kept.places[*row.next]], Stored())
                          : Stored(0));
                row.next += there ? 1 : 0;
            }
    }
    if (steps.size() % 2 == 0) return;
    steps.push_back(0);
    offsets.insert(offsets.end(), kSliceRows * per_row, 0);
    stored.insert(stored.end(), kSliceRows * per_row, Stored(0));
}

}  // namespace

void SparseWindows::Free::operator()(void* memory) const {
    std::free(memory);
}

int64_t SparseWindows::most_columns(WindowKind kind) {
    const int64_t step = kind == WindowKind::pairs ? 2 * kVectorWords : kVectorWords;
    return step << 16;
}

SparseWindows::SparseWindows(int64_t out, int64_t in, WindowKind kind, const KeptWeights& kept) : view_{} {
    if (kind != WindowKind::singles && kind != WindowKind::pairs) throw std::invalid_argument("no such windows");
    if (in > most_columns(kind)) throw std::invalid_argument("too many columns");
    view_.out = out, view_.in = in, view_.kind = kind;
    view_.type = kind == WindowKind::pairs ? ValueType::bfloat16 : kept.type;
    if (kind == WindowKind::pairs && kept.type != ValueType::bfloat16 && kept.type != ValueType::int8)
        throw std::invalid_argument("pairs need values that are exact in bfloat16");
    if (kept.type == ValueType::int8)
        kind == WindowKind::pairs ? arrange<int8_t, uint16_t>(kept) : arrange<int8_t, int8_t>(kept);
    else if (kept.type == ValueType::float32)
        arrange<uint32_t, uint32_t>(kept);
    else
        arrange<uint16_t, uint16_t>(kept);
}

template <class Element, class Stored>
void SparseWindows::arrange(const KeptWeights& kept) {
    const ByRows rows(view_.out, view_.in, kept);
    std::vector<Stored> stored;
    starts_.push_back(0);
    places_.resize(static_cast<size_t>(view_.panels() * kWindowPanel));
    for (int64_t panel = 0; panel < view_.panels(); ++panel) {
        const int64_t first = panel * kWindowPanel, count = view_.panel_rows(panel);
        std::vector<int64_t> order(count);
        std::iota(order.begin(), order.end(), first);
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return rows.length(a) > rows.length(b); });
        for (int64_t place = 0; place < count; ++place) places_[order[place]] = static_cast<uint8_t>(place);
        for (int64_t slice = 0; slice < kPanelSlices; ++slice) {
            std::vector<Rest> rest(kSliceRows, Rest{nullptr, nullptr});
            for (int64_t lane = 0; lane < kSliceRows && slice * kSliceRows + lane < count; ++lane) {
                const int64_t row = order[slice * kSliceRows + lane];
                rest[lane] = {rows.entries.data() + rows.starts[row], rows.entries.data() + rows.starts[row + 1]};
            }
            fill<Element>(stored, offsets_, steps_, rest, view_, kept);
            starts_.push_back(static_cast<int64_t>(steps_.size()));
        }
    }
    const size_t bytes = (stored.size() * sizeof(Stored) + 63) / 64 * 64 + 64;
    values_.reset(std::aligned_alloc(64, bytes));
    if (values_ == nullptr) throw std::bad_alloc();
    std::memcpy(values_.get(), stored.data(), stored.size() * sizeof(Stored));
    offsets_.shrink_to_fit(), steps_.shrink_to_fit();
    view_.values = values_.get(), view_.offsets = offsets_.data(), view_.steps = steps_.data();
    view_.places = places_.data(), view_.starts = starts_.data();
}

int64_t SparseWindows::bytes() const {
    const int64_t weights = view_.slots() * kSliceRows * view_.per_row();
    return weights * (value_bytes(view_.type) + 1) + static_cast<int64_t>(steps_.size() * sizeof(uint16_t)) +
           static_cast<int64_t>(places_.size()) + static_cast<int64_t>(starts_.size() * sizeof(int64_t));
}

}  // namespace pyprune

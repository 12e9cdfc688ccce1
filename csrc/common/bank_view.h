// SPDX-License-Identifier: Apache-2.0
// What bank_scores reads: queries, a bank of candidates, and the keys that say which of them are positives.
#pragma once

#include "element_type.h"

#include <cstdint>

namespace pyprune {

struct BankView {
    const float* queries;      // [batch][features]
    const int64_t* keys;       // [kinds][batch]
    const void* bank;          // rows of `features` elements of `type`, `stride` apart
    const int64_t* rows;       // [entries]: which of the bank's rows are candidates; null: the first `entries`
    const int64_t* bank_keys;  // [kinds][entries]
    ElementType type;
    int64_t batch, features, kinds, entries, stride;
    double scale;   // of products: 1 / temperature
    bool in_batch;  // the other queries are candidates too, before those of the bank

    int64_t candidates() const { return entries + (in_batch ? batch : 0); }
};

}  // namespace pyprune

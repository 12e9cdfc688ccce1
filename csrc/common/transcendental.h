// SPDX-License-Identifier: Apache-2.0
// Powers of two of whole vectors, by a polynomial fitted for the smallest largest error, and the GELU made of them.
#pragma once

#include "block_products.h"

namespace pyprune {
namespace PYPRUNE_ISA {

// Σ c[i] x^i, even and odd powers apart: two short chains instead of a long one.
template <int terms>
inline __attribute__((always_inline)) TokenVector polynomial(TokenVector x, const float (&c)[terms]) {
    using S = Simd<float>;
    const TokenVector square = x * x;
    TokenVector high = S::broadcast(c[terms - 1]), low = S::broadcast(c[terms - 2]);
#pragma GCC unroll 16
    for (int i = terms - 3; i >= 0; i -= 2) {
        high = high * square + S::broadcast(c[i]);
        if (i > 0) low = low * square + S::broadcast(c[i - 1]);
    }
    // c[0] ended the chain of `high` if the number of terms is odd, that of `low` if it is even.
    return terms % 2 ? low * x + high : high * x + low;
}

// 2^x for x <= 127, within 1.2e-7 of it; 0 from −127 down, where float32 has no normal numbers left.
inline __attribute__((always_inline)) TokenVector power_of_two(TokenVector x) {
    using S = Simd<float>;
    constexpr float c[] = {1.0f,           0.693147206f,   0.240226469f,   0.0555032878f,
                           0.00961848898f, 0.00133999316f, 0.000153458078f};
    x = at_least(x, -127.0f);
    // Added to this number, x is rounded to a whole one, which with 127 added stands in the lowest bits.
    const TokenVector shift = S::broadcast(12582912.0f + 127.0f), shifted = x + shift;
    const TokenVector power = (TokenVector)((Lanes<float>::Indices)shifted << 23);
    return polynomial(x - (shifted - shift), c) * power;
}

// x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³))) = x / (1 + 2^−z): the approximation that GPT-2 and later models were
// trained with.
inline __attribute__((always_inline)) TokenVector gelu_tanh(TokenVector x) {
    using S = Simd<float>;
    const TokenVector z = x * (S::broadcast(-2.30220819f) + x * x * S::broadcast(-0.102943240f));
    return x / (S::broadcast(1.0f) + power_of_two(at_most(z, 127.0f)));
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

// SPDX-License-Identifier: Apache-2.0
// Powers of two and GELUs of whole vectors, by polynomials fitted for the smallest largest error.
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

// 2^x, within 1.2e-7 of it (0 from −127 down, where float32 has no normal numbers left; +inf is not needed: x <= 127).
inline __attribute__((always_inline)) TokenVector power_of_two(TokenVector x) {
    using S = Simd<float>;
    constexpr float c[] = {1.0f,           0.693147206f,   0.240226469f,   0.0555032878f,
                           0.00961848898f, 0.00133999316f, 0.000153458078f};
    x = at_most(at_least(x, -127.0f), 127.0f);
    // Added to this number, x is rounded to a whole one, which with 127 added stands in the lowest bits.
    const TokenVector shift = S::broadcast(12582912.0f + 127.0f), shifted = x + shift;
    const TokenVector power = (TokenVector)((Lanes<float>::Indices)shifted << 23);
    return polynomial(x - (shifted - shift), c) * power;
}

// x Φ(x), within 2.5e-7 max(1, |x|). Φ(x) − 1/2 is x times a polynomial in x² up to |x| = 5, and hardly changes beyond.
inline __attribute__((always_inline)) TokenVector gelu(TokenVector x) {
    using S = Simd<float>;
    constexpr float c[] = {0.141363787f,    -0.0702963519f,  0.0515206535f,   -0.04044071f,   0.0314395839f,
                           -0.0232823492f,  0.0164188015f,   -0.011124979f,   0.00636550305f, -0.00273406887f,
                           0.00177633501f,  -0.0015919021f,  0.0005856677f};
    const TokenVector near = at_most(at_least(x, -5.0f), 5.0f);
    const TokenVector place = near * near * S::broadcast(0.08f) - S::broadcast(1.0f);  // [0, 25] as [−1, 1]
    return x * (near * polynomial(place, c) + S::broadcast(0.5f));
}

// x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³))) = x / (1 + 2^−z): the approximation that GPT-2 and later models were
// trained with.
inline __attribute__((always_inline)) TokenVector gelu_tanh(TokenVector x) {
    using S = Simd<float>;
    const TokenVector z = x * (S::broadcast(-2.30220819f) + x * x * S::broadcast(-0.102943240f));
    return x / (S::broadcast(1.0f) + power_of_two(z));
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

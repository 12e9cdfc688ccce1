// SPDX-License-Identifier: Apache-2.0
// spmm_windows: y = activation(scale ∘ (x Wᵀ) + bias) for few tokens   x [tokens, in], W [out, in] in the arrangement
//   "windows", y [tokens, out]; the bias of any type of x
//
// Algorithm: rows of 16 lanes look the elements of x up in windows that slide along the row (sparse_windows.h). Tokens go in
//   groups of up to kFewTokens; x is copied to blocks first, finished sums of a panel are put in order, scaled, activated
//   and written. With AVX-512 only (BW, VL): window_kind says which types have windows. Weights go two by two where x is
//   bfloat16, the values bfloat16 or int8, and the processor has AVX-512 BF16; else one by one in float32.
// Operations: 2 · kept · tokens. Memory: W once per group; a slot is 32 weights in 98 bytes (pairs), or 16 in 82 (float32),
//   50 (16 bits) or 34 (int8).
//   One core of a Zen 5 beside other work (peak 270 GFLOP/s in float32), 768 x 768, kernel alone, one token: kept weights at
//   76 / 59 / 44 GFLOP/s in pairs and 52 / 30 / 25 with float32 x and int8 values at 50 / 90 / 95 % zeros; eight tokens:
//   179 / 117 / 86 and 91 / 56 / 44. Of the places in slots 96 / 73 / 58 % hold a weight in pairs, 92 / 64 / 50 % in singles.
//   A call from Python takes 2.5 us more.
// Threads share panels, cut where the number of slots is equal; every sum is made by one thread in one order: bits do not
// depend on their number, nor those of a token on what else is in the batch.
#include "../common/sparse_windows.h"

#include "../common/buffer.h"
#include "../common/gelu.h"

#include "kernels.h"

#include <algorithm>
#include <omp.h>
#include <optional>
#include <stdexcept>
#include <type_traits>

namespace pyprune {
namespace PYPRUNE_ISA {

#if defined(PYPRUNE_WINDOWS)
namespace {

constexpr int64_t kThreadWork = 20000;  // slots times tokens below which another thread costs more than it brings

__mmask16 first_lanes(int64_t count) {
    return count >= kVectorWords ? static_cast<__mmask16>(-1) : static_cast<__mmask16>((1u << count) - 1);
}

// Lanes of a vector in memory, zeros elsewhere; widened.
__m512 load_part(const float* source, __mmask16 lanes) {
    return _mm512_maskz_loadu_ps(lanes, source);
}
__m512 load_part(const BFloat16* source, __mmask16 lanes) {
    return of_upper_halves(_mm256_maskz_loadu_epi16(lanes, source));
}
__m512 load_part(const Float16* source, __mmask16 lanes) {
    return _mm512_maskz_cvtph_ps(kAll, _mm256_maskz_loadu_epi16(lanes, source));
}

void store_part(float* target, __mmask16 lanes, __m512 value) {
    _mm512_mask_storeu_ps(target, lanes, value);
}
void store_part(BFloat16* target, __mmask16 lanes, __m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i right = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_mask_storeu_epi16(target, lanes,
                             _mm512_maskz_cvtepi32_epi16(kAll, _mm512_maskz_srli_epi32(kAll, right, 16)));
}
void store_part(Float16* target, __mmask16 lanes, __m512 value) {
    _mm256_mask_storeu_epi16(target, lanes,
                             _mm512_maskz_cvtps_ph(kAll, value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// x[step][token][vector]; zeros behind the last column, a whole block of them so that the last window has both its blocks.
template <class Element>
void to_blocks(float* blocks, const Element* x, int64_t stride, int64_t tokens, int64_t width, int64_t in) {
    const int64_t steps = (in + kVectorWords - 1) / kVectorWords + 1;
    for (int64_t token = 0; token < width; ++token)
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t left = token < tokens ? std::max<int64_t>(0, in - step * kVectorWords) : 0;
            _mm512_store_ps(blocks + (step * width + token) * kVectorWords,
                            load_part(x + token * stride + step * kVectorWords, first_lanes(left)));
        }
}
[[maybe_unused]] void to_blocks(BFloat16* blocks, const BFloat16* x, int64_t stride, int64_t tokens, int64_t width,
                                int64_t in) {
    constexpr int64_t wide = 2 * kVectorWords;
    const int64_t steps = (in + wide - 1) / wide + 1;
    for (int64_t token = 0; token < width; ++token)
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t left = token < tokens ? std::max<int64_t>(0, in - step * wide) : 0;
            const __mmask32 lanes = left >= wide ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
            _mm512_store_si512(blocks + (step * width + token) * wide,
                               _mm512_maskz_loadu_epi16(lanes, x + token * stride + step * wide));
        }
}

template <class Element>
struct Ends {
    const Element* x;
    Element* y;
    int64_t count, stride;
    const float *scale, *bias;  // [out] or null
    Activation activation;
};

// y of one token in one panel.
template <class Element>
void write_panel(const WindowsView& w, int64_t panel, const float* sums, int64_t token, const Ends<Element>& ends) {
    const int64_t first = panel * kWindowPanel, rows = w.panel_rows(panel);
    for (int64_t row = 0; row < rows; row += kVectorWords) {
        const __mmask16 lanes = first_lanes(rows - row);
        const auto* place = reinterpret_cast<const __m128i*>(w.places + first + row);
        __m512 value = look_up<kWindowPanel / kVectorWords>(words_of(_mm_loadu_si128(place)), sums);
        if (ends.scale != nullptr) value = _mm512_mul_ps(value, load_part(ends.scale + first + row, lanes));
        if (ends.bias != nullptr) value = _mm512_add_ps(value, load_part(ends.bias + first + row, lanes));
        if (ends.activation == Activation::gelu) value = (__m512)gelu((Simd<float>::Vector)value);
        // NaN stays: it is not below zero.
        if (ends.activation == Activation::relu)
            value = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_NLT_UQ), value);
        store_part(ends.y + token * w.out + first + row, lanes, value);
    }
}

// First panel of a thread: panels are cut where the number of slots is equal.
int64_t first_panel(const WindowsView& w, int64_t part, int64_t parts) {
    if (part == parts) return w.panels();
    const int64_t before = static_cast<int64_t>(static_cast<double>(w.slots()) * part / parts);
    int64_t panel = 0;
    while (panel < w.panels() && w.starts[panel * kPanelSlices] < before) ++panel;
    return panel;
}

// Some memory, on the stack where it is little: asking for it takes longer than a small product.
template <class Element>
class Room {
  public:
    explicit Room(int64_t count) {
        if (count > kSmall) large_.emplace(static_cast<size_t>(count));
    }
    Element* data() { return large_ ? large_->data() : small_; }

  private:
    static constexpr int64_t kSmall = (16 << 10) / static_cast<int64_t>(sizeof(Element));
    std::optional<Buffer<Element>> large_;
    alignas(64) Element small_[kSmall];
};

template <class Slot, int width, class Element>
void multiply_panels(const WindowsView& w, int64_t first, int64_t last, const typename Slot::Input* x, int64_t token,
                     const Ends<Element>& ends) {
    alignas(64) float sums[width * kWindowPanel];
    for (int64_t panel = first; panel < last; ++panel) {
        multiply_panel<Slot, width>(w, panel, x, sums);
        for (int64_t i = 0; i < width && token + i < ends.count; ++i)
            write_panel(w, panel, sums + i * kWindowPanel, token + i, ends);
    }
}

template <class Slot, int width, class Element>
void multiply_group(const WindowsView& w, int64_t token, const Ends<Element>& ends, int threads) {
    const int64_t steps = (w.in + Slot::step - 1) / Slot::step + 1;
    Room<typename Slot::Input> room(steps * width * Slot::step);
    typename Slot::Input* const x = room.data();
    to_blocks(x, ends.x + token * ends.stride, ends.stride, std::min<int64_t>(width, ends.count - token), width, w.in);
    if (threads == 1) return multiply_panels<Slot, width>(w, 0, w.panels(), x, token, ends);
#pragma omp parallel num_threads(threads)
    {
        const int parts = omp_get_num_threads(), part = omp_get_thread_num();
        multiply_panels<Slot, width>(w, first_panel(w, part, parts), first_panel(w, part + 1, parts), x, token, ends);
    }
}

template <class Slot, class Element>
void multiply(const WindowsView& w, const Ends<Element>& ends, int threads) {
    const int64_t worth = std::max<int64_t>(1, w.slots() * std::min(kFewTokens, ends.count) / kThreadWork);
    const int used = static_cast<int>(std::min<int64_t>(threads, worth));
    for (int64_t token = 0; token < ends.count; token += kFewTokens) {
        const int64_t left = ends.count - token;
        if (left > 6)
            multiply_group<Slot, 8>(w, token, ends, used);
        else if (left > 4)
            multiply_group<Slot, 6>(w, token, ends, used);
        else if (left > 3)
            multiply_group<Slot, 4>(w, token, ends, used);
        else if (left > 2)
            multiply_group<Slot, 3>(w, token, ends, used);
        else if (left > 1)
            multiply_group<Slot, 2>(w, token, ends, used);
        else
            multiply_group<Slot, 1>(w, token, ends, used);
    }
}

template <class Element>
void by_value(const WindowsView& w, const Ends<Element>& ends, int threads) {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same<Element, BFloat16>::value)
        if (w.kind == WindowKind::pairs) return multiply<WindowPairs>(w, ends, threads);
#endif
    if (w.kind != WindowKind::singles) throw std::invalid_argument("these windows are not for x of this type");
    switch (w.type) {
        case ValueType::bfloat16:
            return multiply<WindowSingles<BFloat16>>(w, ends, threads);
        case ValueType::float16:
            return multiply<WindowSingles<Float16>>(w, ends, threads);
        case ValueType::int8:
            return multiply<WindowSingles<int8_t>>(w, ends, threads);
        default:
            return multiply<WindowSingles<float>>(w, ends, threads);
    }
}

template <class Bias>
void widen_all(float* wide, const Bias* bias, int64_t count) {
    for (int64_t i = 0; i < count; i += kVectorWords) {
        const __mmask16 lanes = first_lanes(count - i);
        _mm512_mask_storeu_ps(wide + i, lanes, load_part(bias + i, lanes));
    }
}

}  // namespace

void spmm_windows(void* y, const void* x, ElementType type, int64_t tokens, int64_t stride, const WindowsView& w,
                  const float* scale, const void* bias, ElementType bias_type, Activation activation, int threads) {
    if (tokens == 0 || w.out == 0) return;
    const bool narrow_bias = bias != nullptr && bias_type != ElementType::float32;
    std::optional<Buffer<float>> wide;
    if (narrow_bias) wide.emplace(static_cast<size_t>(w.out));
    if (narrow_bias && bias_type == ElementType::bfloat16)
        widen_all(wide->data(), static_cast<const BFloat16*>(bias), w.out);
    else if (narrow_bias)
        widen_all(wide->data(), static_cast<const Float16*>(bias), w.out);
    const auto run = [&](auto element) {
        using Element = decltype(element);
        by_value(w,
                 Ends<Element>{static_cast<const Element*>(x), static_cast<Element*>(y), tokens, stride, scale,
                               narrow_bias ? wide->data() : static_cast<const float*>(bias), activation},
                 threads);
    };
    switch (type) {
        case ElementType::bfloat16:
            return run(BFloat16{});
        case ElementType::float16:
            return run(Float16{});
        default:
            return run(float{});
    }
}

WindowKind window_kind([[maybe_unused]] ElementType type, [[maybe_unused]] ValueType values) {
#if defined(__AVX512BF16__)
    if (type == ElementType::bfloat16 && (values == ValueType::bfloat16 || values == ValueType::int8))
        return WindowKind::pairs;
#endif
    return WindowKind::singles;
}

#else

void spmm_windows(void*, const void*, ElementType, int64_t, int64_t, const WindowsView&, const float*, const void*,
                  ElementType, Activation, int) {
    throw std::logic_error("windows need AVX-512");
}

WindowKind window_kind(ElementType, ValueType) {
    return WindowKind::none;
}

#endif

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

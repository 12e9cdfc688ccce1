// SPDX-License-Identifier: Apache-2.0
//
// Runs the CUDA gram on host threads against a float64 sum. Prints one line per case,
//   type tokens columns row_stride keep processors | max_error rms_error ok
// where errors are scaled by |x|^T |x|, and exits with 1 if any case fails. Buffers have exactly
// the size the contract names, so the address sanitizer sees any access outside.

#include "../../../csrc/cuda/gram.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace {

using pyprune::ElementType;

struct Case {
    ElementType type;
    std::int64_t tokens, columns, row_stride;
    bool keep;
    int processors;  // what the device claims; decides the tile
};

std::uint32_t state = 20261120u;

float uniform() {  // in [-1, 1), 10 bits, so that every type holds it exactly
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int>(state >> 22) - 512) / 512.0f;
}

std::uint16_t bfloat16_bits(float value) {
    std::uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    return static_cast<std::uint16_t>(wide >> 16);  // truncation is as good as rounding here
}

std::uint16_t half_bits(float value) {  // exact: |value| <= 1 with steps of 1/512
    if (value == 0.0f || value != value) {
        return value == value ? 0 : 0x7e00;
    }
    int exponent;
    const float mantissa = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
    const auto fraction = static_cast<std::uint16_t>(std::ldexp(mantissa, 11) - 1024.0f);
    const auto sign = static_cast<std::uint16_t>(value < 0.0f ? 0x8000 : 0);
    return static_cast<std::uint16_t>(sign | ((exponent + 14) << 10) | fraction);
}

template <typename Element>
Element make(float value);
template <>
float make<float>(float value) {
    return value * 1.0000321f;
}
template <>
__nv_bfloat16 make<__nv_bfloat16>(float value) {
    return {bfloat16_bits(value)};
}
template <>
__half make<__half>(float value) {
    return {half_bits(value)};
}

double read(float value) {
    return value;
}
double read(__nv_bfloat16 value) {
    return __bfloat162float(value);
}
double read(__half value) {
    return __half2float(value);
}

template <typename Element>
bool run(const Case& c, const char* name) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::int64_t length = c.tokens == 0 ? 0 : (c.tokens - 1) * c.row_stride + c.columns;
    // new[] of the exact size: a vector may round its capacity up and hide an overrun.
    std::unique_ptr<Element[]> x(new Element[length]);
    std::fill_n(x.get(), length, make<Element>(nan));  // also between the rows
    std::unique_ptr<std::uint8_t[]> keep(new std::uint8_t[c.tokens]);
    for (std::int64_t t = 0; t < c.tokens; ++t) {
        keep[t] = !c.keep || (t * 7 + 1) % 3 != 0 ? (t % 2 == 0 ? 1 : 255) : 0;
        for (std::int64_t i = 0; i < c.columns; ++i) {
            const float value = uniform();
            x[t * c.row_stride + i] = make<Element>(keep[t] ? value : nan);
        }
    }
    const std::int64_t size = c.columns * c.columns;
    std::unique_ptr<double[]> out(new double[size]), again(new double[size]);
    std::fill_n(out.get(), size, 0.25);  // accumulation, not assignment
    std::fill_n(again.get(), size, 0.25);
    emulated::multiprocessors = c.processors;
    const std::uint8_t* mask = c.keep ? keep.get() : nullptr;
    for (double* target : {out.get(), again.get()}) {
        pyprune::cuda::gram(target, x.get(), c.type, c.tokens, c.columns, c.row_stride, mask, nullptr);
    }

    double worst = 0.0, squares = 0.0;
    bool same = true;
    for (std::int64_t i = 0; i < c.columns; ++i) {
        for (std::int64_t j = 0; j < c.columns; ++j) {
            double sum = 0.0, scale = 0.0;
            for (std::int64_t t = 0; t < c.tokens; ++t) {
                if (keep[t]) {
                    const double product = read(x[t * c.row_stride + i]) * read(x[t * c.row_stride + j]);
                    sum += product;
                    scale += std::fabs(product);
                }
            }
            const double value = out[i * c.columns + j];
            const double error = std::fabs(value - 0.25 - sum) / std::max(scale, 1e-3);
            worst = error <= worst ? worst : error;  // lets NaN through
            squares += error * error;
            same = same && value == out[j * c.columns + i] && value == again[i * c.columns + j];
        }
    }
    const double u = std::ldexp(1.0, -24);
    const double rms = size == 0 ? 0.0 : std::sqrt(squares / static_cast<double>(size));
    const bool ok = same && worst <= 16.0 * u && rms <= 8.0 * u;
    std::printf("%s %lld %lld %lld %d %d | %.2e %.2e %s\n", name, static_cast<long long>(c.tokens),
                static_cast<long long>(c.columns), static_cast<long long>(c.row_stride), c.keep, c.processors, worst,
                rms, ok ? "ok" : "FAIL");
    return ok;
}

bool refuses_float64() {
    double out = 0.0, x = 1.0;
    try {
        pyprune::cuda::gram(&out, &x, ElementType::float64, 1, 1, 1, nullptr, nullptr);
    } catch (const std::runtime_error&) {
        return true;
    }
    std::puts("float64 was not refused FAIL");
    return false;
}

}  // namespace

int main() {
    const auto f32 = ElementType::float32;
    const auto bf16 = ElementType::bfloat16;
    const auto f16 = ElementType::float16;
    const Case cases[] = {
        // one processor: tile 64; many: tile 32
        {f32, 0, 5, 5, false, 1},       {f32, 3, 0, 0, false, 1},      {f32, 1, 1, 1, false, 1},
        {f32, 1, 1, 1, false, 999},     {f32, 16, 64, 64, true, 1},    {f32, 17, 65, 67, true, 1},
        {f32, 255, 31, 31, false, 999}, {f32, 256, 33, 40, true, 99},  {f32, 257, 71, 71, true, 999},
        {f32, 1031, 131, 137, true, 1}, {bf16, 37, 67, 70, true, 1},   {bf16, 300, 37, 37, true, 999},
        {f16, 37, 67, 70, true, 1},     {f16, 300, 37, 37, true, 999}, {f32, 50, 40, 0, false, 1},
    };
    bool ok = refuses_float64();
    for (const Case& c : cases) {
        ok &= c.type == f32    ? run<float>(c, "float32")
              : c.type == bf16 ? run<__nv_bfloat16>(c, "bfloat16")
                               : run<__half>(c, "float16");
    }
    return ok ? 0 : 1;
}

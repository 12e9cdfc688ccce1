// SPDX-License-Identifier: Apache-2.0
//
// Runs the CUDA spmm on the host against a float64 sum. Prints one line per case,
//   x values rows columns tokens kept tokens-of-a-block warps splits | error ok
// where the error is relative to the magnitudes that went into an entry, and exits with 1 if any case fails. Buffers
// have exactly the size the contract names, so the address sanitizer sees any access outside.

#include "../../../csrc/cuda/spmm.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"
#include "random.h"
#include "tensor_core.h"

namespace {

using pyprune::ElementType;
using pyprune::ValueType;
using pyprune::cuda::Bfloat16;
using pyprune::cuda::Half;

struct Case {
    ElementType x;
    ValueType values;
    std::int64_t rows, columns, tokens;
    double kept;
    pyprune::cuda::SpmmCut cut;
    int activation;  // also whether there is a bias
};

emulated::Random uniform;

/// Elements at an address that 16 divides, with nothing after them.
template <typename Element>
class Aligned {
  public:
    explicit Aligned(std::int64_t count)
        : size_(sizeof(Element) * static_cast<std::size_t>(count)),
          data_(static_cast<Element*>(::operator new(std::max<std::size_t>(size_, 1), std::align_val_t{16}))) {
        std::memset(static_cast<void*>(data_), 0xff, size_);
    }
    ~Aligned() { ::operator delete(data_, std::align_val_t{16}); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    Element* get() const { return data_; }
    Element& operator[](std::int64_t index) const { return data_[index]; }

  private:
    std::size_t size_;
    Element* data_;
};

std::size_t size_of(ValueType type) {
    return type == ValueType::float32 ? 4 : type == ValueType::int8 ? 1 : 2;
}
std::size_t size_of(ElementType type) {
    return type == ElementType::float32 ? 4 : 2;
}

/// Store a number as an element; what it became.
double put(void* target, ElementType type, std::int64_t index, double value) {
    const auto single = static_cast<float>(value);
    auto* const bits = static_cast<std::uint16_t*>(target);
    switch (type) {
        case ElementType::bfloat16:
            return Bfloat16::to_float(bits[index] = Bfloat16::from_float(single));
        case ElementType::float16:
            return Half::to_float(bits[index] = Half::from_float(single));
        default:
            return static_cast<float*>(target)[index] = single;
    }
}
double put(void* target, ValueType type, std::int64_t index, double value) {
    if (type == ValueType::int8) {
        return static_cast<std::int8_t*>(target)[index] = static_cast<std::int8_t>(std::lround(127.0 * value));
    }
    return put(target, static_cast<ElementType>(type), index, value);
}
double get(const void* source, ElementType type, std::int64_t index) {
    const auto* const bits = static_cast<const std::uint16_t*>(source);
    return type == ElementType::bfloat16  ? Bfloat16::to_float(bits[index])
           : type == ElementType::float16 ? Half::to_float(bits[index])
                                          : static_cast<const float*>(source)[index];
}

double activated(double sum, int activation) {
    return activation == 1 ? sum * 0.5 * std::erfc(-sum * std::sqrt(0.5)) : activation == 2 ? std::max(sum, 0.0) : sum;
}

/// Row, column of a place in a cell, as pyprune/ops/sparse_tiles.py says.
void place_of(int place, std::int64_t& row, std::int64_t& column) {
    const int step = place / 256, lane = place / 8 % 32, bit = place % 8;
    row = lane / 4 + 8 * (bit / 2 % 2);
    column = 32 * (step / 2) + 8 * (lane % 4) + 4 * (step % 2) + 2 * (bit / 4) + bit % 2;
}

bool run(const Case& c) {
    const std::int64_t down = (c.rows + 15) / 16, across = (c.columns + 63) / 64, cells = down * across;
    const auto each = static_cast<std::int64_t>(16 / size_of(c.values));
    const auto wide = static_cast<std::int64_t>(16 / size_of(c.x));
    std::vector<double> dense(c.rows * c.columns);
    std::vector<bool> marks(1024 * cells);
    Aligned<std::uint32_t> bits(32 * cells);
    std::fill_n(bits.get(), 32 * cells, 0u);
    Aligned<std::int32_t> starts(cells + 1);
    starts[0] = 0;
    for (std::int64_t cell = 0; cell < cells; ++cell) {
        std::int64_t count = 0;
        for (int place = 0; place < 1024; ++place) {
            std::int64_t row, column;
            place_of(place, row, column);
            row += cell / across * 16;
            column += cell % across * 64;
            // Every fifth row is empty, but for matrices of which all is kept.
            const bool kept = row < c.rows && column < c.columns && uniform() < 2.0 * c.kept - 1.0;
            if (kept && (c.kept >= 1.0 || row % 5 != 3)) {
                marks[1024 * cell + place] = true;
                bits[32 * cell + place / 8 % 32] |= 1u << (8 * (place / 256) + place % 8);
                ++count;
            }
        }
        starts[cell + 1] = starts[cell] + static_cast<std::int32_t>((count + each - 1) / each);
    }
    Aligned<char> values(16 * starts[cells]);  // NaN where cells are filled up
    std::int64_t largest = 0;
    for (std::int64_t cell = 0; cell < cells; ++cell) {
        std::int64_t next = starts[cell] * each;
        for (int place = 0; place < 1024; ++place) {
            if (marks[1024 * cell + place]) {
                std::int64_t row, column;
                place_of(place, row, column);
                dense[(cell / across * 16 + row) * c.columns + cell % across * 64 + column] =
                    put(values.get(), c.values, next++, uniform());
            }
        }
        largest = std::max<std::int64_t>(largest, 16 * (starts[cell + 1] - starts[cell]));
    }
    Aligned<float> scale(c.values == ValueType::int8 ? c.rows : 0);
    for (std::int64_t row = 0; row < c.rows && c.values == ValueType::int8; ++row) {
        scale[row] = static_cast<float>(0.001 * (2.0 + uniform()));
    }
    Aligned<std::uint16_t> bias(c.rows);
    std::vector<double> exact_bias(c.rows);
    for (std::int64_t row = 0; row < c.rows; ++row) {
        exact_bias[row] = put(bias.get(), ElementType::bfloat16, row, uniform());
    }
    const std::int64_t filled = (c.columns + wide - 1) / wide * wide, stride = filled + wide;
    const std::int64_t length = c.tokens == 0 ? 0 : (c.tokens - 1) * stride + filled;
    Aligned<char> x(length * static_cast<std::int64_t>(size_of(c.x)));
    std::vector<double> exact_x(c.tokens * c.columns);
    for (std::int64_t token = 0; token < c.tokens; ++token) {
        for (std::int64_t column = 0; column < filled; ++column) {
            const double value = put(x.get(), c.x, token * stride + column, column < c.columns ? uniform() : 0.0);
            if (column < c.columns) {
                exact_x[token * c.columns + column] = value;
            }
        }
    }

    const std::int64_t size = c.tokens * c.rows;
    Aligned<char> y(size * static_cast<std::int64_t>(size_of(c.x))),
        again(size * static_cast<std::int64_t>(size_of(c.x)));
    Aligned<float> parts(c.cut.splits > 1 ? c.cut.splits * size : 0);
    const pyprune::cuda::Tiles weight = {c.rows, c.columns, bits.get(), starts.get(), values.get(), c.values, largest};
    const pyprune::cuda::SpmmEnd end = {c.values == ValueType::int8 ? scale.get() : nullptr,
                                        c.activation != 0 ? bias.get() : nullptr, ElementType::bfloat16,
                                        static_cast<pyprune::Activation>(c.activation)};
    for (char* target : {y.get(), again.get()}) {
        pyprune::cuda::spmm(target, c.x, x.get(), c.x, c.tokens, stride, weight, end, c.cut,
                            c.cut.splits > 1 ? parts.get() : nullptr, nullptr);
    }

    double worst = 0.0;
    for (std::int64_t token = 0; token < c.tokens; ++token) {
        for (std::int64_t row = 0; row < c.rows; ++row) {
            double sum = 0.0, magnitudes = 0.0;
            for (std::int64_t column = 0; column < c.columns; ++column) {
                const double product = dense[row * c.columns + column] * exact_x[token * c.columns + column];
                sum += product;
                magnitudes += std::fabs(product);
            }
            const double factor = c.values == ValueType::int8 ? scale[row] : 1.0;
            const double shift = c.activation != 0 ? exact_bias[row] : 0.0;
            const double wanted = activated(factor * sum + shift, c.activation);
            const double got = get(y.get(), c.x, token * c.rows + row);
            const double error = std::fabs(got - wanted) / std::max(factor * magnitudes + std::fabs(shift), 1e-6);
            worst = error <= worst ? worst : error;  // lets NaN through
        }
    }
    const bool same = std::memcmp(y.get(), again.get(), size * size_of(c.x)) == 0;
    // float32 sums of hundreds of terms, and one rounding to the type of y
    const double allowed = c.x == ElementType::float32 ? 2e-6 : c.x == ElementType::bfloat16 ? 4.1e-3 : 5.2e-4;
    const bool ok = same && worst <= allowed;
    std::printf("%d %d %lld %lld %lld %.2f %lld %lld %lld | %.2e %s\n", static_cast<int>(c.x),
                static_cast<int>(c.values), static_cast<long long>(c.rows), static_cast<long long>(c.columns),
                static_cast<long long>(c.tokens), c.kept, static_cast<long long>(c.cut.tokens),
                static_cast<long long>(c.cut.warps), static_cast<long long>(c.cut.splits), worst, ok ? "ok" : "FAIL");
    return ok;
}

bool refused(ElementType x, ValueType values, const pyprune::cuda::SpmmCut& cut) {
    const pyprune::cuda::Tiles weight = {1, 1, nullptr, nullptr, nullptr, values, 16};
    try {
        pyprune::cuda::spmm(nullptr, x, nullptr, x, 1, 8, weight, {}, cut, nullptr, nullptr);
    } catch (const std::runtime_error&) {
        return true;
    }
    std::puts("a wrong call was not refused FAIL");
    return false;
}

}  // namespace

int main() {
    const auto f32 = ElementType::float32, bf16 = ElementType::bfloat16, f16 = ElementType::float16;
    const auto v32 = ValueType::float32, vb = ValueType::bfloat16, vh = ValueType::float16, v8 = ValueType::int8;
    const Case cases[] = {
        {f32, v32, 1, 1, 1, 1.0, {2, 1, 1}, 0},      {f32, v32, 5, 64, 0, 0.5, {2, 1, 1}, 0},
        {f32, v32, 3, 0, 2, 0.5, {2, 2, 1}, 2},      {f32, v32, 17, 131, 3, 0.3, {8, 2, 1}, 1},
        {f32, vb, 33, 200, 9, 0.5, {8, 3, 2}, 2},    {f32, vh, 16, 67, 2, 0.9, {2, 4, 1}, 1},
        {f32, v8, 19, 333, 5, 0.1, {8, 2, 3}, 1},    {bf16, vb, 1, 1, 1, 1.0, {8, 1, 1}, 0},
        {bf16, vb, 37, 131, 8, 0.3, {8, 2, 1}, 1},   {bf16, vb, 64, 128, 33, 1.0, {32, 1, 1}, 0},
        {bf16, v8, 50, 197, 11, 0.5, {16, 2, 1}, 2}, {f16, vh, 31, 520, 17, 0.1, {16, 3, 3}, 1},
        {f16, vh, 40, 70, 5, 0.0, {8, 2, 1}, 2},     {f16, v8, 97, 61, 40, 0.7, {32, 1, 1}, 1},
    };
    bool ok = refused(f32, v32, {16, 1, 1}) && refused(bf16, vb, {2, 1, 1}) && refused(bf16, vh, {8, 1, 1}) &&
              refused(f32, v32, {2, 9, 1}) && refused(f32, v32, {2, 1, 2});
    for (const Case& c : cases) {
        ok &= run(c);
    }
    return ok ? 0 : 1;
}

// SPDX-License-Identifier: Apache-2.0
// Bindings of products of few tokens with a matrix in windows. Such a product takes as long as a few calls of Python, so
// that one call does all that can be done here: it also asks the environment, and keeps the lock of the interpreter where
// giving it up would not pay.
#include "bindings_windows.h"

#include "bindings_checks.h"
#include "common/arrange_windows.h"
#include "common/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <optional>

namespace py = pybind11;

namespace bound {

using pyprune::KeptWeights;
using pyprune::SparseWindows;
using pyprune::ValueType;
using pyprune::WindowKind;

namespace {

constexpr int64_t kShort = 40000;  // slots times tokens, about 20 us: for so long others may wait for the interpreter

ValueType value_type(int type) {
    require(type >= 0 && type <= 3, "values must be float32, bfloat16, float16 or int8");
    return static_cast<ValueType>(type);
}

WindowKind window_kind(int type, int values, int64_t in) {
    require(type >= 0 && type <= 2, "x must be float32, bfloat16 or float16");
    const WindowKind kind = pyprune::kernels().window_kind(element(type), value_type(values));
    return kind != WindowKind::none && in <= SparseWindows::most_columns(kind) ? kind : WindowKind::none;
}

SparseWindows make(int64_t out, int64_t in, int kind, uintptr_t rows, uintptr_t columns, uintptr_t places,
                   int64_t count, uintptr_t values, int type) {
    area(out, in);
    const KeptWeights kept{pointer<const int64_t>(rows, count, "rows"),
                           pointer<const int64_t>(columns, count, "columns"),
                           pointer<const int64_t>(places, count, "places"),
                           count,
                           pointer<const void>(values, count, "values"),
                           value_type(type)};
    py::gil_scoped_release release;
    return SparseWindows(out, in, static_cast<WindowKind>(kind), kept);
}

// Whether the environment leaves the product to this kernel, and the threads it names: 0 where it is for others to say
// what is wrong.
int allowed_threads(int threads) {
    const char* backend = std::getenv("PYPRUNE_BACKEND");
    if (backend != nullptr && *backend != '\0' && std::strcmp(backend, "cpp") != 0) return 0;
    const char* text = std::getenv("PYPRUNE_NUM_THREADS");
    if (text == nullptr || *text == '\0') return threads;
    char* end = nullptr;
    const long named = std::strtol(text, &end, 10);
    return *end == '\0' && *text >= '0' && *text <= '9' && named >= 1 && named <= 4096 ? static_cast<int>(named) : 0;
}

bool multiply(const SparseWindows& matrix, uintptr_t y, uintptr_t x, int type, int64_t tokens, int64_t stride,
              uintptr_t scale, uintptr_t bias, int bias_type, int activation, int threads) {
    threads = allowed_threads(threads);
    if (threads == 0) return false;
    const pyprune::WindowsView& view = matrix.view();
    const int64_t written = area(tokens, view.out), read = area(tokens, view.in);
    require(type >= 0 && type <= 2 && bias_type >= 0 && bias_type <= 2, "x must be float32, bfloat16 or float16");
    require(stride >= 0, "a stride is negative");
    require(activation >= 0 && activation <= 2, "unknown activation");
    check_threads(threads);
    std::optional<py::gil_scoped_release> release;
    if (tokens > kShort / (view.slots() + 1)) release.emplace();
    pyprune::kernels().spmm_windows(pointer<void>(y, written, "y"), pointer<const void>(x, read, "x"), element(type),
                                    tokens, stride, view, reinterpret_cast<const float*>(scale),
                                    reinterpret_cast<const void*>(bias), element(bias_type),
                                    static_cast<pyprune::Activation>(activation), threads);
    return true;
}

}  // namespace

void bind_windows(py::module_& module) {
    py::class_<SparseWindows>(module, "SparseWindows")
        .def(py::init(&make))
        .def("multiply", &multiply)
        .def_property_readonly("nbytes", &SparseWindows::bytes)
        .def_property_readonly("slots", [](const SparseWindows& matrix) { return matrix.view().slots(); });
    module.def("window_kind",
               [](int type, int values, int64_t in) { return static_cast<int>(window_kind(type, values, in)); });
}

}  // namespace bound

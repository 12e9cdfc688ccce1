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
    const KeptWeights kept{
        pointer<const int64_t>(rows, count, "rows"),     pointer<const int64_t>(columns, count, "columns"),
        pointer<const int64_t>(places, count, "places"), count,
        pointer<const void>(values, count, "values"),    value_type(type)};
    py::gil_scoped_release release;
    return SparseWindows(out, in, static_cast<WindowKind>(kind), kept);
}

// Whether the environment leaves the product to this kernel, and the threads it names: 0 where it is for others to say
// what is wrong.
int allowed_threads(int64_t given) {
    const int threads = given >= 1 && given <= 4096 ? static_cast<int>(given) : -1;
    const char* backend = std::getenv("PYPRUNE_BACKEND");
    if (backend != nullptr && *backend != '\0' && std::strcmp(backend, "cpp") != 0) return 0;
    const char* text = std::getenv("PYPRUNE_NUM_THREADS");
    if (text == nullptr || *text == '\0') return threads;
    char* end = nullptr;
    const long named = std::strtol(text, &end, 10);
    return *end == '\0' && *text >= '0' && *text <= '9' && named >= 1 && named <= 4096 ? static_cast<int>(named) : 0;
}

// The whole numbers of a call, in the order of Python's.
struct Call {
    uintptr_t y, x;
    int64_t type, tokens, stride;
    uintptr_t scale, bias;
    int64_t bias_type, activation, threads;
};
constexpr Py_ssize_t kNumbers = 10;

bool multiply(const SparseWindows& matrix, const Call& call) {
    const int threads = allowed_threads(call.threads);
    if (threads == 0) return false;
    const pyprune::WindowsView& view = matrix.view();
    const int64_t written = area(call.tokens, view.out), read = area(call.tokens, view.in);
    require(call.type >= 0 && call.type <= 2, "x must be float32, bfloat16 or float16");
    require(call.bias_type >= 0 && call.bias_type <= 2, "the bias must be float32, bfloat16 or float16");
    require(call.stride >= 0, "a stride is negative");
    require(call.activation >= 0 && call.activation <= 2, "unknown activation");
    check_threads(threads);
    std::optional<py::gil_scoped_release> release;
    if (call.tokens > kShort / (view.slots() + 1)) release.emplace();
    pyprune::kernels().spmm_windows(pointer<void>(call.y, written, "y"), pointer<const void>(call.x, read, "x"),
                                    element(static_cast<int>(call.type)), call.tokens, call.stride, view,
                                    reinterpret_cast<const float*>(call.scale),
                                    reinterpret_cast<const void*>(call.bias), element(static_cast<int>(call.bias_type)),
                                    static_cast<pyprune::Activation>(call.activation), threads);
    return true;
}

// multiply_windows(matrix, y, x, type, tokens, stride, scale, bias, bias_type, activation, threads) -> bool
// As Python itself calls C: pybind11 would take longer to sort the arguments than a small product takes.
PyObject* multiply_windows(PyObject*, PyObject* const* given, Py_ssize_t count) {
    try {
        if (count != kNumbers + 1) throw py::type_error("multiply_windows takes a matrix and ten numbers");
        int64_t number[kNumbers];
        for (Py_ssize_t i = 0; i < kNumbers; ++i) {
            number[i] = PyLong_AsLongLong(given[i + 1]);
            if (number[i] == -1 && PyErr_Occurred() != nullptr) return nullptr;
        }
        const Call call{
            static_cast<uintptr_t>(number[0]), static_cast<uintptr_t>(number[1]), number[2], number[3], number[4],
            static_cast<uintptr_t>(number[5]), static_cast<uintptr_t>(number[6]), number[7], number[8], number[9]};
        return PyBool_FromLong(multiply(py::handle(given[0]).cast<const SparseWindows&>(), call));
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::invalid_argument& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

PyMethodDef kMultiplyWindows = {"multiply_windows",
                                reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&multiply_windows)),
                                METH_FASTCALL, nullptr};

}  // namespace

void bind_windows(py::module_& module) {
    py::class_<SparseWindows>(module, "SparseWindows")
        .def(py::init(&make))
        .def_property_readonly("nbytes", &SparseWindows::bytes)
        .def_property_readonly("slots", [](const SparseWindows& matrix) { return matrix.view().slots(); });
    module.attr("multiply_windows") =
        py::reinterpret_steal<py::object>(PyCFunction_NewEx(&kMultiplyWindows, nullptr, nullptr));
    module.def("window_kind",
               [](int type, int values, int64_t in) { return static_cast<int>(window_kind(type, values, in)); });
}

}  // namespace bound

// SPDX-License-Identifier: Apache-2.0
// The binding of `encoder`: the weights of a stack of layers, made once from nested tuples of pointers and sizes.
#include "bindings_encoder.h"

#include "bindings_checks.h"
#include "bindings_sparse.h"
#include "common/dispatch.h"

#include <vector>

#include <pybind11/stl.h>

namespace py = pybind11;

namespace bound {
namespace {

using pyprune::LayerLinear;

// Pointer to the tiles of a dense weight and their number of elements, or a null pointer; then the sparse weight.
using LinearArguments = std::tuple<uintptr_t, int64_t, RowsArguments>;
// width, inner; four linears; the vectors and their number of elements.
using LayerArguments = std::tuple<int64_t, int64_t, std::vector<LinearArguments>, uintptr_t, int64_t>;

LayerLinear linear(const LinearArguments& arguments, int64_t out, int64_t in) {
    const auto& [dense, elements, rows] = arguments;
    LayerLinear made{};
    if (dense == 0) {
        made.sparse = sparse_rows(rows);
        require(made.sparse.out == out && made.sparse.in == in, "a weight has the wrong shape");
        require(made.sparse.type != pyprune::ValueType::int8, "a weight has values without their scales");
        return made;
    }
    made.sparse.out = out, made.sparse.in = in;
    const int64_t tiles = (out + pyprune::kDenseRows - 1) / pyprune::kDenseRows;
    require(elements == area(tiles * pyprune::kDenseRows, in), "a dense weight has the wrong number of elements");
    made.dense = pointer<const float>(dense, elements, "dense");
    return made;
}

// vectors: biases, gains and shifts, one after another in the order of EncoderLayer.
pyprune::EncoderLayer layer(const LayerArguments& arguments, int64_t hidden, int64_t head) {
    const auto& [width, inner, linears, vectors, elements] = arguments;
    require(width >= 0 && width % head == 0, "the width must be a multiple of the head");
    require(inner >= 0, "a size is negative");
    require(linears.size() == 4, "a layer has four linears");
    require(elements == 3 * width + inner + 6 * hidden, "vectors has the wrong number of elements");
    pyprune::EncoderLayer made{};
    made.project = linear(linears[0], 3 * width, hidden);
    made.output = linear(linears[1], hidden, width);
    made.up = linear(linears[2], inner, hidden);
    made.down = linear(linears[3], hidden, inner);
    const float* place = pointer<const float>(vectors, elements, "vectors");
    const auto take = [&](int64_t size) {
        const float* const vector = place;
        place += size;
        return vector;
    };
    made.project_bias = take(3 * width);
    made.output_bias = take(hidden);
    made.attention_gain = take(hidden);
    made.attention_shift = take(hidden);
    made.up_bias = take(inner);
    made.down_bias = take(hidden);
    made.output_gain = take(hidden);
    made.output_shift = take(hidden);
    return made;
}

// A stack of layers, checked once. It holds pointers, no tensors: they must stay where they are.
struct Layers {
    int64_t hidden, head;
    std::vector<pyprune::EncoderLayer> all;

    Layers(const std::vector<LayerArguments>& arguments, int64_t hidden_, int64_t head_)
        : hidden(hidden_), head(head_) {
        require(hidden >= 1 && head >= 1, "sizes must be at least 1");
        for (const auto& one : arguments) all.push_back(layer(one, hidden, head));
    }
};

void encoder(uintptr_t out, uintptr_t hidden, uintptr_t keep, int64_t sequences, int64_t length, const Layers& layers,
             double eps, int activation, int threads) {
    const int64_t all = area(area(sequences, length), layers.hidden);
    require(activation >= 0 && activation <= 2, "unknown activation");
    check_threads(threads);
    const pyprune::EncoderShape shape{sequences,
                                      length,
                                      layers.hidden,
                                      layers.head,
                                      static_cast<float>(eps),
                                      static_cast<pyprune::FeedForward>(activation)};
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.encoder(pointer<float>(out, all, "out"), pointer<const float>(hidden, all, "hidden"),
                reinterpret_cast<const uint8_t*>(keep), shape, layers.all.data(),
                static_cast<int64_t>(layers.all.size()), threads);
}

}  // namespace

void bind_encoder(py::module_& module) {
    py::class_<Layers>(module, "EncoderLayers").def(py::init<const std::vector<LayerArguments>&, int64_t, int64_t>());
    module.def("encoder", &encoder);
    module.attr("dense_rows") = pyprune::kDenseRows;
}

}  // namespace bound

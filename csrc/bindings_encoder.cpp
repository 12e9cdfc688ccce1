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

// Pointer to the tiles of a dense weight and their number of elements, or that number as -1; then the sparse weight.
using LinearArguments = std::tuple<uintptr_t, int64_t, RowsArguments>;
// Channels of queries and of values by head; inner; four linears; the vectors and their number of elements.
using LayerArguments =
    std::tuple<std::vector<int64_t>, std::vector<int64_t>, int64_t, std::vector<LinearArguments>, uintptr_t, int64_t>;

// What a dense weight without elements points to.
constexpr float kNothing = 0.0f;

LayerLinear linear(const LinearArguments& arguments, int64_t out, int64_t in) {
    const auto& [dense, elements, rows] = arguments;
    LayerLinear made{};
    if (elements < 0) {
        made.sparse = sparse_rows(rows);
        require(made.sparse.out == out && made.sparse.in == in, "a weight has the wrong shape");
        require(made.sparse.type != pyprune::ValueType::int8, "a weight has values without their scales");
        return made;
    }
    made.sparse.out = out, made.sparse.in = in;
    const int64_t tiles = (out + pyprune::kDenseRows - 1) / pyprune::kDenseRows;
    require(elements == area(tiles * pyprune::kDenseRows, in), "a dense weight has the wrong number of elements");
    made.dense = elements == 0 ? &kNothing : pointer<const float>(dense, elements, "dense");
    return made;
}

std::vector<pyprune::EncoderHead> heads(const LayerArguments& arguments) {
    const std::vector<int64_t>&query = std::get<0>(arguments), &value = std::get<1>(arguments);
    require(query.size() == value.size(), "heads have queries and values");
    std::vector<pyprune::EncoderHead> made;
    pyprune::EncoderHead head{};
    for (size_t index = 0; index < query.size(); ++index) {
        require(query[index] >= 0 && value[index] >= 0, "a size is negative");
        head.query = query[index], head.value = value[index];
        made.push_back(head);
        head.query_start += head.query, head.value_start += head.value;
    }
    return made;
}

// vectors: biases, gains and shifts, one after another in the order of EncoderLayer.
pyprune::EncoderLayer layer(const LayerArguments& arguments, const std::vector<pyprune::EncoderHead>& heads,
                            int64_t hidden) {
    const auto& [query, value, inner, linears, vectors, elements] = arguments;
    const int64_t queries = heads.empty() ? 0 : heads.back().query_start + heads.back().query;
    const int64_t values = heads.empty() ? 0 : heads.back().value_start + heads.back().value;
    require(inner >= 0, "a size is negative");
    require(linears.size() == 4, "a layer has four linears");
    require(elements == 2 * queries + values + inner + 6 * hidden, "vectors has the wrong number of elements");
    pyprune::EncoderLayer made{};
    made.heads = heads.data();
    made.head_count = static_cast<int64_t>(heads.size());
    made.queries = queries;
    made.in_place = query == value;
    made.project = linear(linears[0], 2 * queries + values, hidden);
    made.output = linear(linears[1], hidden, values);
    made.up = linear(linears[2], inner, hidden);
    made.down = linear(linears[3], hidden, inner);
    const float* place = pointer<const float>(vectors, elements, "vectors");
    const auto take = [&](int64_t size) {
        const float* const vector = place;
        place += size;
        return vector;
    };
    made.project_bias = take(2 * queries + values);
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
    std::vector<std::vector<pyprune::EncoderHead>> every;
    std::vector<pyprune::EncoderLayer> all;

    Layers(const std::vector<LayerArguments>& arguments, int64_t hidden_, int64_t head_)
        : hidden(hidden_), head(head_) {
        require(hidden >= 1 && head >= 1, "sizes must be at least 1");
        for (const auto& one : arguments) every.push_back(heads(one));
        for (size_t index = 0; index < arguments.size(); ++index)
            all.push_back(layer(arguments[index], every[index], hidden));
    }
    Layers(const Layers&) = delete;  // `all` points into `every`
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

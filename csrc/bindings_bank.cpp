// SPDX-License-Identifier: Apache-2.0
// Bindings of the scores of a bank. Row numbers are checked here, as memory would be read anywhere else without.
#include "bindings_bank.h"

#include "bindings_checks.h"
#include "common/dispatch.h"

#include <algorithm>
#include <cmath>

namespace py = pybind11;

namespace bound {

using pyprune::BankView;

namespace {

// length: rows of the bank; entries: how many of them are candidates.
BankView view_of(uintptr_t queries, uintptr_t keys, uintptr_t bank, uintptr_t rows, uintptr_t bank_keys, int type,
                 int64_t batch, int64_t features, int64_t kinds, int64_t length, int64_t entries, int64_t stride,
                 double scale, bool in_batch) {
    area(length, features);
    area(area(kinds, 1) + 2, area(batch, 1) + area(entries, 1));
    require(type >= 0 && type <= 2, "the bank must be float32, bfloat16 or float16");
    require(stride >= 0, "a stride is negative");
    require(std::isfinite(scale), "the scale is not finite");
    require(rows != 0 || entries <= length, "more entries than rows");
    const int64_t* chosen = reinterpret_cast<const int64_t*>(rows);
    if (chosen != nullptr && entries > 0) {
        const auto ends = std::minmax_element(chosen, chosen + entries);
        require(*ends.first >= 0 && *ends.second < length, "a row is out of range");
    }
    return BankView{pointer<const float>(queries, area(batch, features), "queries"),
                    pointer<const int64_t>(keys, area(kinds, batch), "keys"),
                    pointer<const void>(bank, area(entries, features), "bank"),
                    chosen,
                    pointer<const int64_t>(bank_keys, area(kinds, entries), "bank_keys"),
                    element(type),
                    batch,
                    features,
                    kinds,
                    entries,
                    stride,
                    scale,
                    in_batch};
}

void bank_scores(uintptr_t log_sum, uintptr_t positives, uintptr_t counts, uintptr_t certain, const BankView& view,
                 int threads) {
    check_threads(threads);
    const int64_t all = view.kinds * view.batch;
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.bank_scores(pointer<float>(log_sum, view.batch, "log_sum"), pointer<float>(positives, all, "positives"),
                    pointer<int64_t>(counts, all, "counts"), pointer<uint8_t>(certain, all, "certain"), view, threads);
}

void bank_scores_gradient(uintptr_t gradient, uintptr_t log_sum, uintptr_t to_log_sum, uintptr_t to_positives,
                          const BankView& view, int threads) {
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.bank_scores_gradient(pointer<float>(gradient, view.batch * view.features, "gradient"),
                             pointer<const float>(log_sum, view.batch, "log_sum"),
                             pointer<const float>(to_log_sum, view.batch, "to_log_sum"),
                             pointer<const float>(to_positives, view.kinds * view.batch, "to_positives"), view,
                             threads);
}

}  // namespace

void bind_bank(py::module_& module) {
    py::class_<BankView>(module, "BankView").def(py::init(&view_of));
    module.def("bank_scores", &bank_scores);
    module.def("bank_scores_gradient", &bank_scores_gradient);
}

}  // namespace bound

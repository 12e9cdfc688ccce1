// SPDX-License-Identifier: Apache-2.0
//
// Runs the CUDA obs on the host against the published algorithm, one explicit inverse a row in float64. Prints one
// line per case,
//   type columns rows steps keep of blocks | error of losses, of weights, ok
// errors relative to the largest, and exits with 1 if any case fails. Buffers have exactly the size the contract
// names, so the address sanitizer sees any access outside.

#include "../../../csrc/cuda/obs.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "cuda_runtime.h"
#include "random.h"

namespace {

using pyprune::ElementType;

struct Case {
    ElementType type;
    std::int64_t columns, rows, steps, keep, of, blocks;
};

emulated::Random uniform;

struct Row {
    std::vector<std::int64_t> order;
    std::vector<double> loss, weight;
};

Row plain(std::vector<double> a, std::vector<double> w, std::int64_t count, std::int64_t keep, std::int64_t of) {
    const auto k = static_cast<std::int64_t>(w.size());
    Row row;
    std::vector<bool> gone(w.size());
    std::vector<std::int64_t> room(of > 0 ? w.size() / of : 0, of - keep);
    for (std::int64_t step = 0; step < count; ++step) {
        std::int64_t p = -1;
        double least = INFINITY;
        for (std::int64_t j = 0; j < k; ++j) {
            const double cost = w[j] * w[j] / a[j * k + j];
            if (!gone[j] && (of == 0 || room[j / of] > 0) && cost < least) {
                least = cost;
                p = j;
            }
        }
        row.order.push_back(p);
        row.loss.push_back(least);
        gone[p] = true;
        if (of > 0) {
            --room[p / of];
        }
        const std::vector<double> line(a.begin() + p * k, a.begin() + (p + 1) * k);
        const double scale = w[p] / line[p];
        for (std::int64_t i = 0; i < k; ++i) {
            w[i] = gone[i] ? 0.0 : w[i] - line[i] * scale;
            for (std::int64_t j = 0; j < k; ++j) {
                a[i * k + j] -= line[i] * line[j] / line[p];
            }
        }
    }
    row.weight = w;
    return row;
}

// Symmetric positive definite. With twins, neighbours nearly repeat each other: half of what looks cheap becomes dear
// when the other one goes, and rows computed ahead are not used.
std::vector<double> inverse_of(std::int64_t k, bool twins) {
    std::vector<double> x(k * k), a(k * k);
    for (double& value : x) {
        value = 2.0 * uniform();
    }
    for (std::int64_t i = 0; i < k; ++i) {
        for (std::int64_t j = 0; j < k; ++j) {
            double sum = i == j ? 0.5 : 0.0;
            for (std::int64_t q = 0; q < k; ++q) {
                sum += x[i * k + q] * x[j * k + q] / static_cast<double>(k);
            }
            const bool pair = i / 2 == j / 2;
            a[i * k + j] = twins ? 0.01 * sum + (i == j ? 1.0 : pair ? -0.9 : 0.0) : sum;
        }
    }
    return a;
}

struct Outcome {
    std::vector<std::int64_t> order, status;
    std::vector<double> loss, weight;
};

template <typename Real>
Outcome call(const Case& c, const std::vector<double>& inverse, const std::vector<double>& weight,
             const std::int64_t* count) {
    const std::int64_t stride = (c.columns + 3) / 4 * 4;
    const pyprune::cuda::ObsShape shape{c.rows, c.columns, stride, c.steps, c.keep, c.of};
    std::unique_ptr<Real[]> a(new Real[c.columns * stride]()), w(new Real[c.rows * stride]());
    std::unique_ptr<Real[]> workspace(new Real[c.blocks * pyprune::cuda::obs_workspace(shape)]);
    std::fill_n(workspace.get(), c.blocks * pyprune::cuda::obs_workspace(shape), static_cast<Real>(NAN));
    for (std::int64_t j = 0; j < c.columns; ++j) {
        for (std::int64_t i = 0; i < c.columns; ++i) {
            a[i * stride + j] = static_cast<Real>(inverse[i * c.columns + j]);
        }
        for (std::int64_t r = 0; r < c.rows; ++r) {
            w[r * stride + j] = static_cast<Real>(weight[r * c.columns + j]);
        }
    }
    std::unique_ptr<std::int64_t[]> order(new std::int64_t[c.rows * c.steps]), status(new std::int64_t[c.rows]);
    std::unique_ptr<double[]> loss(new double[c.rows * c.steps]);
    pyprune::cuda::obs(w.get(), order.get(), loss.get(), status.get(), workspace.get(), a.get(), count, c.type, shape,
                       c.blocks, nullptr);
    Outcome outcome{{order.get(), order.get() + c.rows * c.steps}, {status.get(), status.get() + c.rows}, {}, {}};
    outcome.loss.assign(loss.get(), loss.get() + c.rows * c.steps);
    for (std::int64_t r = 0; r < c.rows; ++r) {
        for (std::int64_t j = 0; j < c.columns; ++j) {
            outcome.weight.push_back(static_cast<double>(w[r * stride + j]));
        }
    }
    return outcome;
}

Outcome call(const Case& c, const std::vector<double>& inverse, const std::vector<double>& weight,
             const std::int64_t* count) {
    return c.type == ElementType::float32 ? call<float>(c, inverse, weight, count)
                                          : call<double>(c, inverse, weight, count);
}

double larger(double worst, double error) {
    return error <= worst ? worst : error;  // lets NaN through
}

bool run(const Case& c, bool twins = false) {
    const std::int64_t k = c.columns;
    const std::vector<double> inverse = inverse_of(k, twins);
    std::vector<double> weight(c.rows * k);
    for (double& value : weight) {
        value = twins ? 1.5 + 0.5 * uniform() : uniform();
    }
    std::unique_ptr<std::int64_t[]> count(new std::int64_t[c.rows]);
    for (std::int64_t r = 0; r < c.rows; ++r) {
        count[r] = r == 0 ? c.steps : r == 1 ? 0 : c.steps - r;
    }
    const Outcome got = call(c, inverse, weight, count.get());
    Case other = c;
    other.blocks = 1;
    const Outcome again = call(other, inverse, weight, count.get());
    bool same = got.order == again.order && got.loss == again.loss && got.weight == again.weight;
    double loss_error = 0.0, weight_error = 0.0;
    for (std::int64_t r = 0; r < c.rows; ++r) {
        Row wanted = plain(inverse, {weight.begin() + r * k, weight.begin() + (r + 1) * k}, count[r], c.keep, c.of);
        same &= got.status[r] == 0;
        wanted.order.resize(c.steps, -1);
        wanted.loss.resize(c.steps, 0.0);
        const double largest = *std::max_element(wanted.loss.begin(), wanted.loss.end()) + 1e-300;
        std::vector<bool> gone(k);
        for (std::int64_t t = 0; t < c.steps; ++t) {
            same &= got.order[r * c.steps + t] == wanted.order[t];
            loss_error = larger(loss_error, std::fabs(got.loss[r * c.steps + t] - wanted.loss[t]) / largest);
            if (wanted.order[t] >= 0) {
                gone[wanted.order[t]] = true;
            }
        }
        for (std::int64_t j = 0; j < k; ++j) {
            if (!gone[j]) {
                weight_error = larger(weight_error, std::fabs(got.weight[r * k + j] - wanted.weight[j]));
            }
        }
    }
    const bool single = c.type == ElementType::float32;
    const bool ok = same && loss_error <= (single ? 1e-4 : 1e-11) && weight_error <= (single ? 1e-4 : 1e-11);
    std::printf("%s %lld %lld %lld %lld %lld %lld | %.2e %.2e %s\n", single ? "float32" : "float64",
                static_cast<long long>(k), static_cast<long long>(c.rows), static_cast<long long>(c.steps),
                static_cast<long long>(c.keep), static_cast<long long>(c.of), static_cast<long long>(c.blocks),
                loss_error, weight_error, ok ? "ok" : "FAIL");
    return ok;
}

// Equal costs: the lower column goes first. And a row that has no column left says so.
bool ties_and_ends() {
    const Case c{ElementType::float64, 100, 1, 100, 0, 0, 1};
    std::vector<double> inverse(c.columns * c.columns), weight(c.columns, 1.0);
    for (std::int64_t j = 0; j < c.columns; ++j) {
        inverse[j * (c.columns + 1)] = 1.0;
    }
    inverse[7 * (c.columns + 1)] = 0.0;  // never positive
    const Outcome got = call(c, inverse, weight, &c.steps);
    bool ok = got.status[0] == 1 && got.order[99] == -1 && std::isnan(got.loss[99]);
    for (std::int64_t t = 0; t < 99; ++t) {
        ok &= got.order[t] == t + (t >= 7) && got.loss[t] == 1.0;
    }
    std::printf("ties and ends | %s\n", ok ? "ok" : "FAIL");
    return ok;
}

// In float32 a pivot may be lost to rounding: the row is not trusted.
bool doubts() {
    const Case c{ElementType::float32, 3, 2, 1, 0, 0, 1};
    const std::vector<double> inverse = {1.0, 1.0, 0.0, 1.0, 1.0 + 1e-9, 0.0, 0.0, 0.0, 1.0};
    const std::vector<double> weight = {0.1, 0.2, 0.3, 0.1, 0.2, 0.01};
    const std::int64_t count[] = {1, 1};
    const Outcome got = call(c, inverse, weight, count);
    const bool ok = got.status[0] == 1 && got.status[1] == 0 && got.order[0] == 0 && got.order[1] == 2;
    std::printf("doubts | %s\n", ok ? "ok" : "FAIL");
    return ok;
}

}  // namespace

int main() {
    const auto f32 = ElementType::float32;
    const auto f64 = ElementType::float64;
    const Case cases[] = {
        {f64, 1, 1, 1, 0, 0, 1},   {f64, 31, 4, 17, 0, 0, 3},   {f32, 31, 3, 31, 0, 0, 2},  {f64, 64, 2, 32, 2, 4, 2},
        {f32, 66, 3, 44, 1, 3, 3}, {f64, 64, 1, 32, 32, 64, 1}, {f32, 131, 1, 40, 0, 0, 1}, {f64, 530, 1, 12, 0, 0, 1},
    };
    bool ok = true;
    for (const Case& c : cases) {
        ok &= run(c);
    }
    ok &= run({f64, 120, 1, 60, 0, 0, 1}, true);
    ok &= ties_and_ends();
    ok &= doubts();
    return ok ? 0 : 1;
}

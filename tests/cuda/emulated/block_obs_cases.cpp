// SPDX-License-Identifier: Apache-2.0
//
// Runs the CUDA block_obs on the host against the published algorithm, one explicit inverse a group in float64. Prints one
// line per case,
//   groups height width blocks steps panel | error of losses, of weights, ok
// errors relative to the largest, and exits with 1 if any case fails. Buffers have exactly the size the contract names, so
// the address sanitizer sees any access outside.

#include "../../../csrc/cuda/block_obs.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <vector>

#include "cuda_runtime.h"
#include "random.h"

namespace {

using Index = std::int64_t;
using pyprune::cuda::BlockObsShape;
using Matrix = std::vector<double>;

emulated::Random uniform;

// A_BB^-1 b by elimination; A_BB is positive definite.
Matrix solved(Matrix a, Matrix b, Index width) {
    for (Index c = 0; c < width; ++c) {
        for (Index i = 0; i < width; ++i) {
            const double factor = i == c ? 0.0 : a[i * width + c] / a[c * width + c];
            for (Index j = 0; j < width; ++j) {
                a[i * width + j] -= factor * a[c * width + j];
            }
            b[i] -= factor * b[c];
        }
    }
    for (Index c = 0; c < width; ++c) {
        b[c] /= a[c * width + c];
    }
    return b;
}

struct Trace {
    std::vector<Index> order;
    Matrix loss, weight;
};

// Of one group; columns in planes here too.
Trace plain(Matrix a, Matrix w, Index count, const BlockObsShape& shape) {
    const Index k = shape.blocks * shape.width;
    const auto column = [&](Index block, Index c) { return c * shape.blocks + block; };
    Trace trace;
    std::vector<bool> gone(shape.blocks);
    for (Index step = 0; step < count; ++step) {
        Index best = -1;
        double least = INFINITY;
        const auto own = [&](Index t) {
            Matrix block(shape.width * shape.width);
            for (Index e = 0; e < shape.width * shape.width; ++e) {
                block[e] = a[column(t, e / shape.width) * k + column(t, e % shape.width)];
            }
            return block;
        };
        for (Index t = 0; t < shape.blocks; ++t) {
            double cost = 0.0;
            for (Index r = 0; r < shape.height && !gone[t]; ++r) {
                Matrix part(shape.width);
                for (Index c = 0; c < shape.width; ++c) {
                    part[c] = w[r * k + column(t, c)];
                }
                const Matrix z = solved(own(t), part, shape.width);
                for (Index c = 0; c < shape.width; ++c) {
                    cost += z[c] * part[c];
                }
            }
            if (!gone[t] && cost < least) {
                least = cost;
                best = t;
            }
        }
        trace.order.push_back(best);
        trace.loss.push_back(least);
        gone[best] = true;
        const Matrix pivots = own(best), before = a;
        for (Index j = 0; j < k; ++j) {
            Matrix across(shape.width);
            for (Index c = 0; c < shape.width; ++c) {
                across[c] = before[column(best, c) * k + j];
            }
            const Matrix z = solved(pivots, across, shape.width);
            for (Index c = 0; c < shape.width; ++c) {
                for (Index i = 0; i < k; ++i) {
                    a[i * k + j] -= before[i * k + column(best, c)] * z[c];
                }
                for (Index r = 0; r < shape.height && j % shape.blocks != best; ++r) {
                    w[r * k + j] -= w[r * k + column(best, c)] * z[c];
                }
            }
        }
        for (Index r = 0; r < shape.height; ++r) {
            for (Index c = 0; c < shape.width; ++c) {
                w[r * k + column(best, c)] = 0.0;
            }
        }
    }
    trace.weight = w;
    return trace;
}

template <typename Value>
std::unique_ptr<Value[]> filled(Index size, Value value) {
    std::unique_ptr<Value[]> buffer(new Value[size]);
    std::fill_n(buffer.get(), size, value);
    return buffer;
}

// The whole run, with a base of each group's own after every `panel` steps.
Trace call(const Matrix& inverse, const Matrix& weight, const Index* count, const BlockObsShape& shape, Index panel,
           double smallest = 1e-14) {
    const Index k = shape.blocks * shape.width, width = shape.width;
    const auto nan = static_cast<double>(NAN);
    auto w = filled(static_cast<Index>(weight.size()), 0.0);
    std::copy(weight.begin(), weight.end(), w.get());
    auto order = filled(shape.groups * shape.steps, Index{77});
    auto loss = filled(shape.groups * shape.steps, nan);
    auto state = filled(shape.groups, Index{0});
    auto diagonal = filled(shape.groups * width * (width + 1) / 2 * shape.blocks, nan);
    auto workspace = filled(shape.groups * pyprune::cuda::block_obs_workspace(shape), nan);
    auto floor = filled(k, 0.0);
    auto shared = filled(k * k, 0.0);
    std::copy(inverse.begin(), inverse.end(), shared.get());
    auto own = filled(shape.groups * k * k, 0.0);
    for (Index j = 0; j < k; ++j) {
        floor[j] = smallest * inverse[j * k + j];
    }
    for (Index g = 0; g < shape.groups; ++g) {
        std::copy(inverse.begin(), inverse.end(), own.get() + g * k * k);
        double* target = diagonal.get() + g * width * (width + 1) / 2 * shape.blocks;
        for (Index a = 0; a < width; ++a) {
            for (Index b = 0; b <= a; ++b) {
                for (Index t = 0; t < shape.blocks; ++t) {
                    *target++ = inverse[(a * shape.blocks + t) * k + b * shape.blocks + t];
                }
            }
        }
    }
    for (Index first = 0; first < shape.steps; first += panel) {
        const Index last = std::min(first + panel, shape.steps), depth = (last - first) * width;
        auto chain = filled(shape.groups * depth * k, nan);
        pyprune::cuda::block_obs(w.get(), order.get(), loss.get(), state.get(), chain.get(), diagonal.get(),
                                 workspace.get(), first == 0 ? shared.get() : own.get(), first == 0 ? 0 : k * k,
                                 floor.get(), count, shape, first, last, nullptr);
        for (Index e = 0; e < shape.groups * k * k; ++e) {
            const double* v = chain.get() + e / (k * k) * depth * k;
            for (Index q = 0; q < depth; ++q) {
                own[e] -= v[q * k + e / k % k] * v[q * k + e % k];
            }
        }
    }
    Trace trace;
    trace.order.assign(order.get(), order.get() + shape.groups * shape.steps);
    trace.loss.assign(loss.get(), loss.get() + shape.groups * shape.steps);
    trace.weight.assign(w.get(), w.get() + weight.size());
    return trace;
}

double larger(double worst, double error) {
    return error <= worst ? worst : error;  // lets NaN through
}

bool run(const BlockObsShape& shape, Index panel) {
    const Index k = shape.blocks * shape.width;
    Matrix x(k * k), inverse(k * k), weight(shape.groups * shape.height * k);
    for (double& value : x) {
        value = 2.0 * uniform();
    }
    for (Index e = 0; e < k * k; ++e) {
        inverse[e] = e / k == e % k ? 0.5 : 0.0;
        for (Index q = 0; q < k; ++q) {
            inverse[e] += x[e / k * k + q] * x[e % k * k + q] / static_cast<double>(k);
        }
    }
    for (double& value : weight) {
        value = uniform();
    }
    auto count = filled(shape.groups, shape.steps);
    for (Index g = 1; g < shape.groups; ++g) {
        count[g] = g == 1 ? 0 : shape.steps - g;
    }
    const Trace got = call(inverse, weight, count.get(), shape, panel);
    bool same = true;
    double loss_error = 0.0, weight_error = 0.0;
    for (Index g = 0; g < shape.groups; ++g) {
        const auto own = weight.begin() + g * shape.height * k;
        Trace wanted = plain(inverse, {own, own + shape.height * k}, count[g], shape);
        wanted.order.resize(shape.steps, -1);
        wanted.loss.resize(shape.steps, 0.0);
        const double largest = *std::max_element(wanted.loss.begin(), wanted.loss.end()) + 1e-300;
        for (Index t = 0; t < shape.steps; ++t) {
            same &= got.order[g * shape.steps + t] == wanted.order[t];
            loss_error = larger(loss_error, std::fabs(got.loss[g * shape.steps + t] - wanted.loss[t]) / largest);
        }
        for (Index e = 0; e < shape.height * k; ++e) {
            const auto end = wanted.order.begin() + count[g];
            if (std::find(wanted.order.begin(), end, e % k % shape.blocks) == end) {
                weight_error = larger(weight_error, std::fabs(got.weight[g * shape.height * k + e] - wanted.weight[e]));
            }
        }
    }
    const bool ok = same && loss_error <= 1e-10 && weight_error <= 1e-10;
    std::printf("%lld %lld %lld %lld %lld %lld | %.2e %.2e %s\n", static_cast<long long>(shape.groups),
                static_cast<long long>(shape.height), static_cast<long long>(shape.width),
                static_cast<long long>(shape.blocks), static_cast<long long>(shape.steps),
                static_cast<long long>(panel), loss_error, weight_error, ok ? "ok" : "FAIL");
    return ok;
}

// Equal costs: the lower block goes first. And a group that has no block left says so, its neighbour does not.
bool ties_and_ends() {
    const BlockObsShape shape{2, 1, 1, 260, 7};
    const std::vector<Index> positive = {3, 4, 130, 255, 256, 259};  // the only ones
    Matrix inverse(shape.blocks * shape.blocks), weight(2 * shape.blocks, 1.0);
    for (const Index j : positive) {
        inverse[j * (shape.blocks + 1)] = 1.0;
    }
    const Index count[] = {7, 4};
    const Trace got = call(inverse, weight, count, shape, 4);
    bool ok = got.order[6] == -1 && std::isnan(got.loss[6]) && got.order[11] == -1 && got.loss[11] == 0.0;
    for (Index t = 0; t < 6; ++t) {
        ok &= got.order[t] == positive[t] && got.loss[t] == 1.0 && (t >= 4 || got.order[7 + t] == positive[t]);
    }
    std::printf("ties and ends | %s\n", ok ? "ok" : "FAIL");
    return ok;
}

}  // namespace

int main() {
    bool ok = run({1, 1, 1, 1, 1}, 1);
    ok &= run({3, 2, 1, 131, 5}, 2);
    ok &= run({4, 1, 2, 6, 6}, 6);
    ok &= run({2, 3, 3, 7, 4}, 2);
    ok &= run({1, 2, 8, 3, 3}, 2);
    ok &= run({1, 1, 11, 3, 2}, 2);
    ok &= run({1, 1, 64, 2, 1}, 1);
    ok &= ties_and_ends();
    return ok ? 0 : 1;
}

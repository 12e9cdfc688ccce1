// SPDX-License-Identifier: Apache-2.0
//
// Runs the CUDA factors and solves of masked_lstsq on the host against elimination in float64. Prints one line per
// case,
//   columns rows percent shared | on_chip error ok
// where the error is relative to the largest entry wanted, and exits with 1 if any case fails. Buffers have exactly
// the size the contract names, so the address sanitizer sees any access outside.

#include "../../../csrc/cuda/masked_lstsq.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"
#include "random.h"

namespace {

struct Case {
    std::int64_t columns, rows;
    int percent;  // of columns that are wanted; rows 0 and 1 of a case have none and all of them
    bool wanted;
    int shared;  // of the device: decides whether a factor fits on chip
};

emulated::Random uniform;

std::vector<double> eliminate(std::vector<double> a, std::vector<double> b) {
    const std::size_t n = b.size();
    for (std::size_t p = 0; p < n; ++p) {
        for (std::size_t i = p + 1; i < n; ++i) {
            const double scale = a[i * n + p] / a[p * n + p];
            for (std::size_t j = p; j < n; ++j) {
                a[i * n + j] -= scale * a[p * n + j];
            }
            b[i] -= scale * b[p];
        }
    }
    for (std::size_t p = n; p-- > 0;) {
        for (std::size_t j = p + 1; j < n; ++j) {
            b[p] -= a[p * n + j] * b[j];
        }
        b[p] /= a[p * n + p];
    }
    return b;
}

struct Problem {
    explicit Problem(const Case& c)
        : matrix(new float[c.columns * c.columns]), rhs(new double[c.rows * c.columns]),
          mask(new std::uint8_t[c.rows * c.columns]) {
        const auto k = static_cast<double>(c.columns);
        for (std::int64_t i = 0; i < c.columns; ++i) {
            for (std::int64_t j = 0; j <= i; ++j) {
                const double value = i == j ? 1.0 : 0.5 * uniform() / std::sqrt(k);
                matrix[i * c.columns + j] = matrix[j * c.columns + i] = static_cast<float>(value);
            }
        }
        for (std::int64_t r = 0; r < c.rows; ++r) {
            std::int64_t count = 0;
            for (std::int64_t j = 0; j < c.columns; ++j) {
                const bool own = r == 0 ? false : r == 1 || 50.0 * (uniform() + 1.0) < c.percent;
                mask[r * c.columns + j] = own == c.wanted ? (j % 2 == 0 ? 1 : 255) : 0;
                rhs[r * c.columns + j] = uniform();
                count += own;
            }
            side = std::max(side, count);
        }
        rows = {mask.get(), c.rows, c.columns, side, c.wanted};
    }

    std::unique_ptr<float[]> matrix;
    std::unique_ptr<double[]> rhs;
    std::unique_ptr<std::uint8_t[]> mask;
    std::int64_t side = 0;
    pyprune::cuda::MaskedRows rows;
};

// Largest deviation of a row from elimination, relative to its largest entry; entries outside must be as they were.
double deviation(const Problem& problem, const double* out, std::int64_t r, double untouched) {
    const std::int64_t k = problem.rows.columns;
    std::vector<std::int64_t> own;
    for (std::int64_t j = 0; j < k; ++j) {
        if ((problem.mask[r * k + j] != 0) == problem.rows.wanted) {
            own.push_back(j);
        } else if (out[r * k + j] != untouched) {
            return INFINITY;
        }
    }
    std::vector<double> a, b;
    for (const std::int64_t i : own) {
        b.push_back(problem.rhs[r * k + i]);
        for (const std::int64_t j : own) {
            a.push_back(problem.matrix[i * k + j]);
        }
    }
    const std::vector<double> x = eliminate(a, b);
    double worst = 0.0, largest = 1e-300;
    for (std::size_t i = 0; i < own.size(); ++i) {
        const double error = std::fabs(out[r * k + own[i]] - x[i]);
        worst = error <= worst ? worst : error;  // lets NaN through
        largest = std::max(largest, std::fabs(x[i]));
    }
    return worst / largest;
}

bool run(const Case& c) {
    emulated::shared_limit = c.shared;
    const Problem problem(c);
    const std::int64_t size = pyprune::cuda::masked_factor_size(problem.side);
    constexpr double kUntouched = 7.0;
    std::unique_ptr<double[]> out(new double[c.rows * c.columns]), again(new double[c.rows * c.columns]);
    std::unique_ptr<std::int64_t[]> status(new std::int64_t[c.rows]);
    for (double* target : {out.get(), again.get()}) {
        std::unique_ptr<float[]> factors(new float[c.rows * size]);
        std::fill_n(factors.get(), c.rows * size, NAN);
        std::fill_n(target, c.rows * c.columns, kUntouched);
        std::fill_n(status.get(), c.rows, -1);
        pyprune::cuda::masked_factor(factors.get(), status.get(), problem.matrix.get(), problem.rows, nullptr);
        pyprune::cuda::masked_solve(target, problem.rhs.get(), factors.get(), problem.rows, nullptr);
    }
    double worst = 0.0;
    for (std::int64_t r = 0; r < c.rows; ++r) {
        const double error = deviation(problem, out.get(), r, kUntouched);
        worst = error <= worst ? worst : error;
    }
    const bool fine = std::all_of(status.get(), status.get() + c.rows, [](std::int64_t s) { return s == 0; });
    const bool same = std::equal(out.get(), out.get() + c.rows * c.columns, again.get());
    const bool ok = fine && same && worst <= 5e-6;
    std::printf("%lld %lld %d %d | %d %.2e %s\n", static_cast<long long>(c.columns), static_cast<long long>(c.rows),
                c.percent, c.shared, problem.side <= pyprune::cuda::masked_factor_on_chip(), worst, ok ? "ok" : "FAIL");
    return ok;
}

// A column that repeats another is no pivot, and the row says which one; its neighbours do not notice.
bool reports_singular(int shared) {
    emulated::shared_limit = shared;
    const Case c{41, 4, 60, true, shared};
    Problem problem(c);
    const std::int64_t k = c.columns, twin = 37, other = 5;
    for (std::int64_t j = 0; j < k; ++j) {
        problem.matrix[twin * k + j] = problem.matrix[other * k + j];
    }
    for (std::int64_t j = 0; j < k; ++j) {
        problem.matrix[j * k + twin] = problem.matrix[j * k + other];
    }
    problem.matrix[twin * k + twin] = 1.0f;
    std::int64_t expected[4] = {};
    for (std::int64_t i = 0; i < c.rows; ++i) {
        const std::uint8_t* mask = problem.mask.get() + i * k;
        expected[i] = mask[twin] && mask[other] ? 1 + (twin - std::count(mask, mask + twin, 0)) : 0;
    }
    std::unique_ptr<float[]> factors(new float[c.rows * pyprune::cuda::masked_factor_size(problem.side)]);
    std::int64_t status[4] = {-1, -1, -1, -1};
    pyprune::cuda::masked_factor(factors.get(), status, problem.matrix.get(), problem.rows, nullptr);
    const bool ok = std::equal(status, status + 4, expected) && expected[1] == 38;
    std::printf("singular %d | %s\n", shared, ok ? "ok" : "FAIL");
    return ok;
}

}  // namespace

int main() {
    constexpr int kLarge = 227 * 1024, kSmall = 4096;  // on chip; always by tiles
    const Case cases[] = {
        {1, 1, 50, true, kLarge},   {1, 3, 50, true, kSmall},    {31, 3, 50, true, kLarge},
        {67, 4, 50, false, kLarge}, {67, 4, 50, true, kSmall},   {129, 3, 90, true, kLarge},
        {300, 3, 5, false, kSmall}, {165, 2, 100, true, kLarge}, {293, 2, 100, true, kSmall},
    };
    bool ok = true;
    for (const Case& c : cases) {
        ok &= run(c);
    }
    ok &= reports_singular(kLarge);
    ok &= reports_singular(kSmall);
    return ok ? 0 : 1;
}

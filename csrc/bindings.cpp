// SPDX-License-Identifier: Apache-2.0
// With the other bindings_*.cpp the only file that knows pybind11. Tensors arrive as raw pointers; every size is checked before
// a kernel sees it, the GIL is released around every kernel, and no exception crosses an OpenMP region.
#include "bindings_bank.h"
#include "bindings_checks.h"
#include "bindings_encoder.h"
#include "bindings_sparse.h"
#include "bindings_windows.h"
#include "common/dispatch.h"
#include "common/scratch.h"

#if defined(PYPRUNE_HAS_CUDA)
#include "bindings_cuda.h"
#include "cuda/device_info.h"
#endif

#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace bound {

using pyprune::ElementType;

void gram(uintptr_t out, uintptr_t x, int type, int64_t tokens, int64_t columns, int64_t stride, uintptr_t keep,
          int threads) {
    area(tokens, columns);
    area(columns, columns);
    require(stride >= 0, "a stride is negative");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.gram(pointer<double>(out, columns, "out"), pointer<const void>(x, tokens * columns, "x"), element(type), tokens,
             columns, stride, reinterpret_cast<const uint8_t*>(keep), threads);
}

void cross_gram(uintptr_t out, uintptr_t y, uintptr_t x, int type, int64_t tokens, int64_t targets, int64_t columns,
                int64_t y_stride, int64_t x_stride, uintptr_t keep, int threads) {
    const int64_t left = area(tokens, targets), right = area(tokens, columns), both = area(targets, columns);
    require(y_stride >= 0 && x_stride >= 0, "a stride is negative");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.cross_gram(pointer<double>(out, both, "out"), pointer<const void>(y, left, "y"),
                   pointer<const void>(x, right, "x"), element(type), tokens, targets, columns, y_stride, x_stride,
                   reinterpret_cast<const uint8_t*>(keep), threads);
}

void matmul(uintptr_t out, uintptr_t a, uintptr_t b, int type, int64_t rows, int64_t depth, int64_t columns,
            int64_t a_stride, int64_t b_stride, bool add, double sign, int threads) {
    const int64_t all = area(rows, columns), left = area(rows, depth), right = area(depth, columns);
    require(type == 0 || type == 3, "matrices must be float32 or float64");
    require(a_stride >= 0 && b_stride >= 0, "a stride is negative");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.matmul(pointer<void>(out, all, "out"), pointer<const void>(a, left, "a"), pointer<const void>(b, right, "b"),
               element(type), rows, depth, columns, a_stride, b_stride, add ? 1.0 : 0.0, sign, threads);
}

int64_t cholesky(uintptr_t factor, uintptr_t inverse, uintptr_t matrix, int type, double ridge, bool reverse, int64_t k,
                 int threads) {
    const int64_t square = area(k, k);
    require(type == 0 || type == 3, "the factor must be float32 or float64");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    return run.cholesky(pointer<void>(factor, square, "factor"), reinterpret_cast<void*>(inverse),
                        pointer<const double>(matrix, square, "matrix"), element(type), ridge, reverse, k, threads);
}

void symmetrise(uintptr_t out, uintptr_t report, uintptr_t a, int type, int64_t k, int threads) {
    const int64_t square = area(k, k);
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.symmetrise(pointer<double>(out, square, "out"), pointer<double>(report, 3, "report"),
                   pointer<const void>(a, square, "a"), element(type), k, threads);
}

void rescale(uintptr_t out, int type, uintptr_t a, uintptr_t scale, double ridge, double shift, int64_t k,
             int threads) {
    const int64_t square = area(k, k);
    require(type == 0 || type == 3, "the result must be float32 or float64");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.rescale(pointer<void>(out, square, "out"), element(type), pointer<const double>(a, square, "a"),
                pointer<const double>(scale, k, "scale"), ridge, shift, k, threads);
}

void select(uintptr_t mask, uintptr_t scores, int type, int64_t rows, int64_t columns, int64_t count, int threads) {
    const int64_t all = area(rows, columns);
    require(type == 0 || type == 3, "scores must be float32 or float64");
    require(count >= 0 && count <= columns, "count is out of range");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.select(pointer<uint8_t>(mask, all, "mask"), pointer<const void>(scores, all, "scores"), element(type), rows,
               columns, count, threads);
}

void nm(uintptr_t mask, uintptr_t scores, int type, int64_t groups, int64_t of, int64_t keep, int threads) {
    const int64_t all = area(groups, of);
    require(type == 0 || type == 3, "scores must be float32 or float64");
    require(of >= 1, "a group needs at least one entry");
    check_groups(of, keep, of);
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.nm(pointer<uint8_t>(mask, all, "mask"), pointer<const void>(scores, all, "scores"), element(type), groups, of,
           keep, threads);
}

void masked_lstsq(uintptr_t solution, uintptr_t status, uintptr_t system, uintptr_t target, uintptr_t mask,
                  uintptr_t inverse, double tolerance, int64_t rows, int64_t columns, int threads) {
    const int64_t all = area(rows, columns), square = area(columns, columns);
    require(tolerance >= 0.0, "the tolerance must not be negative");
    require(columns <= std::numeric_limits<int32_t>::max(), "too many columns");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.masked_lstsq(pointer<double>(solution, all, "solution"), pointer<int64_t>(status, rows, "status"),
                     pointer<const double>(system, square, "system"), pointer<const double>(target, all, "target"),
                     pointer<const uint8_t>(mask, all, "mask"), reinterpret_cast<const double*>(inverse), tolerance,
                     rows, columns, threads);
}

void masked_cg(uintptr_t x, uintptr_t worth, uintptr_t system, uintptr_t inverse, uintptr_t basis,
               uintptr_t inverse_diagonal, int64_t rank, uintptr_t target, uintptr_t dense, uintptr_t mask,
               int64_t rows, int64_t columns, int64_t steps, double tolerance, int threads) {
    const int64_t all = area(rows, columns), square = area(columns, columns);
    area(rank, columns);
    require(steps >= 0, "steps must not be negative");
    require(tolerance >= 0.0, "the tolerance must not be negative");
    require((basis == 0) == (inverse_diagonal == 0) && (inverse == 0 || basis == 0), "one preconditioner at most");
    require(rank <= 256, "the basis is too large");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.masked_cg(pointer<float>(x, all, "x"), pointer<double>(worth, rows, "worth"),
                  pointer<const float>(system, square, "system"), reinterpret_cast<const float*>(inverse),
                  reinterpret_cast<const float*>(basis), reinterpret_cast<const float*>(inverse_diagonal), rank,
                  pointer<const float>(target, all, "target"), reinterpret_cast<const float*>(dense),
                  pointer<const uint8_t>(mask, all, "mask"), rows, columns, steps, tolerance, threads);
}

void admm_step(uintptr_t z, uintptr_t previous, uintptr_t mask, uintptr_t start, uintptr_t multiplier, double relax,
               double momentum, int64_t rows, int64_t columns, int threads) {
    const int64_t all = area(rows, columns), square = area(columns, columns);
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.admm_step(pointer<float>(z, all, "z"), pointer<float>(previous, all, "previous"),
                  pointer<const uint8_t>(mask, all, "mask"), pointer<const float>(start, all, "start"),
                  pointer<const float>(multiplier, square, "multiplier"), static_cast<float>(relax),
                  static_cast<float>(momentum), rows, columns, threads);
}

void obs(uintptr_t pruned, uintptr_t order, uintptr_t loss, uintptr_t inverse, uintptr_t weight, uintptr_t count,
         int type, int64_t points, int64_t rows, int64_t columns, int64_t steps, int64_t keep, int64_t of,
         int threads) {
    const int64_t all = area(rows, columns), square = area(columns, columns), trace = area(rows, steps);
    const int64_t asked = area(points, rows), weights = area(asked, columns);
    require(type == 0 || type == 3, "removals must be in float32 or float64");
    require(steps <= columns, "more steps than columns");
    check_groups(columns, keep, of);
    check_threads(threads);
    const int64_t* counts = pointer<const int64_t>(count, asked, "count");
    for (int64_t i = 0; i < asked; ++i) require(counts[i] >= 0 && counts[i] <= steps, "a row's count is out of range");
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.obs(pointer<double>(pruned, weights, "pruned"), pointer<int64_t>(order, trace, "order"),
            pointer<double>(loss, trace, "loss"), pointer<const double>(inverse, square, "inverse"),
            pointer<const double>(weight, all, "weight"), counts, element(type), points, rows, columns, steps, keep, of,
            threads);
}

void block_obs(uintptr_t pruned, uintptr_t order, uintptr_t loss, uintptr_t inverse, uintptr_t weight, uintptr_t count,
               int64_t rows, int64_t columns, int64_t height, int64_t width, int64_t steps, int threads) {
    const int64_t all = area(rows, columns), square = area(columns, columns);
    require(height >= 1 && width >= 1, "a block needs at least one row and one column");
    require(rows % height == 0 && columns % width == 0, "blocks must divide the matrix");
    const int64_t groups = rows / height, trace = area(groups, steps);
    require(steps <= columns / width, "more steps than blocks");
    check_threads(threads);
    const int64_t* counts = pointer<const int64_t>(count, groups, "count");
    for (int64_t group = 0; group < groups; ++group)
        require(counts[group] >= 0 && counts[group] <= steps, "a group's count is out of range");
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.block_obs(pointer<double>(pruned, all, "pruned"), pointer<int64_t>(order, trace, "order"),
                  pointer<double>(loss, trace, "loss"), pointer<const double>(inverse, square, "inverse"),
                  pointer<const double>(weight, all, "weight"), counts, rows, columns, height, width, steps, threads);
}

void sparsegpt(uintptr_t weight, int type, uintptr_t mask, uintptr_t factor, uintptr_t prune, int64_t rows,
               int64_t columns, int64_t block, bool mask_given, bool per_row, int64_t keep, int64_t of, int threads) {
    const int64_t all = area(rows, columns), square = area(columns, columns);
    require(type == 0 || type == 3, "weights must be float32 or float64");
    require(block >= 1, "block must be positive");
    check_groups(columns, keep, of);
    require(of == 0 || block % of == 0, "block must be a multiple of the group");
    check_threads(threads);
    const int64_t blocks = (columns + block - 1) / block;
    const int64_t* counts = pointer<const int64_t>(prune, blocks, "prune");
    for (int64_t i = 0; i < blocks; ++i) {
        const int64_t width = std::min(block, columns - i * block);
        require(counts[i] >= 0 && counts[i] <= (per_row ? width : width * rows), "a block's count is out of range");
    }
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.sparsegpt(pointer<void>(weight, all, "weight"), element(type), pointer<uint8_t>(mask, all, "mask"),
                  pointer<const void>(factor, square, "factor"), counts, rows, columns, block, mask_given, per_row,
                  keep, of, threads);
}

double peak(int type, int64_t rounds, int threads) {
    require(type == 0 || type == 3, "the peak is that of float32 or float64");
    require(rounds >= 1, "rounds must be at least 1");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    return run.peak(element(type), rounds, threads);
}

int64_t draw_counts(uintptr_t counts, uintptr_t weight, int type, int64_t n, int64_t keep, int64_t draws,
                    double exponent, uint64_t seed, double spread, int threads) {
    area(n, 4);
    require(type == 0 || type == 3, "the weight must be float32 or float64");
    require(n < int64_t(1) << 47, "too many entries");
    require(keep >= 0 && keep <= n, "keep is out of range");
    require(draws >= 0 && draws <= std::numeric_limits<int32_t>::max(), "draws is out of range");
    require(exponent >= 0.0 && spread >= 0.0, "the exponent and the spread must not be negative");
    check_threads(threads);
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    return run.draw_counts(pointer<int32_t>(counts, n, "counts"), pointer<const void>(weight, n, "weight"),
                           element(type), n, keep, draws, exponent, seed, spread, threads);
}

void swap(uintptr_t mask, uintptr_t exchanged, uintptr_t worth, uintptr_t system, uintptr_t inverse, uintptr_t target,
          uintptr_t dense, int type, uintptr_t columns, int64_t count, uintptr_t least, int64_t most, int64_t of,
          int64_t rows, int64_t k, int threads) {
    const int64_t all = area(rows, k), square = area(k, k);
    require(type == 0 || type == 3, "matrices must be float32 or float64");
    require((inverse == 0) == (dense == 0) && (inverse == 0 || columns == 0), "an inverse is for all columns");
    require(count >= 0 && count <= k && (columns != 0 || count == k), "count is out of range");
    require(most >= 0 && of >= 0, "most and of must not be negative");
    check_threads(threads);
    const int64_t* chosen = reinterpret_cast<const int64_t*>(columns);
    for (int64_t i = 0; chosen != nullptr && i < rows * count; ++i)
        require(chosen[i] >= 0 && chosen[i] < k && (i % count == 0 || chosen[i] > chosen[i - 1]),
                "columns must rise and be in range");
    const auto& run = pyprune::kernels();
    py::gil_scoped_release release;
    run.swap(pointer<uint8_t>(mask, all, "mask"), pointer<int64_t>(exchanged, rows, "exchanged"),
             pointer<double>(worth, all, "worth"), pointer<const void>(system, square, "system"),
             reinterpret_cast<const void*>(inverse), pointer<const void>(target, all, "target"),
             reinterpret_cast<const void*>(dense), element(type), chosen, count,
             pointer<const double>(least, rows, "least"), most, of, rows, k, threads);
}

// Memory for a tensor, from the pool the kernels share and back to it; torch reads it through the buffer protocol.
class Memory {
  public:
    explicit Memory(size_t bytes) : bytes_(bytes), data_(pyprune::take_scratch(bytes)) {}
    ~Memory() { pyprune::give_scratch(data_, bytes_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    py::buffer_info info() { return py::buffer_info(static_cast<uint8_t*>(data_), static_cast<py::ssize_t>(bytes_)); }

  private:
    size_t bytes_;
    void* data_;
};

// A variable of the environment, empty where it is not set: what os.environ says, in a quarter of its time.
std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

// What was built, and what it would use here. Never throws, so that it can explain a broken set-up.
py::dict build_info() {
    py::dict info;
    info["compiler"] = PYPRUNE_COMPILER;
    info["build_type"] = PYPRUNE_BUILD_TYPE;
    info["openmp"] = static_cast<int>(_OPENMP);
    info["isas"] = pyprune::available_isas();
    info["scratch_kept"] = pyprune::kScratchKept;
    try {
        info["isa"] = pyprune::kernels().isa;
    } catch (const std::exception& error) {
        info["isa"] = py::none();
        info["isa_error"] = error.what();
    }
#if defined(PYPRUNE_HAS_CUDA)
    info["cuda"] = true;
    info["cuda_archs"] = PYPRUNE_CUDA_ARCHS;
    info["cuda_runtime"] = pyprune::cuda::runtime_version();
    info["cuda_driver"] = pyprune::cuda::driver_version();
    info["cuda_devices"] = pyprune::cuda::device_count();
    info["cuda_no_device"] = pyprune::cuda::no_device_reason();
#else
    info["cuda"] = false;
#endif
    return info;
}

}  // namespace bound

PYBIND11_MODULE(_C, module) {
    module.doc() =
        "Compiled kernels of pyprune. Internal: raw pointers in, nothing checked but sizes; use pyprune.ops.";
    py::class_<bound::Memory>(module, "Memory", py::buffer_protocol())
        .def(py::init<size_t>())
        .def_buffer(&bound::Memory::info);
    module.def("gram", &bound::gram);
    module.def("cross_gram", &bound::cross_gram);
    module.def("matmul", &bound::matmul);
    module.def("cholesky", &bound::cholesky);
    module.def("symmetrise", &bound::symmetrise);
    module.def("rescale", &bound::rescale);
    module.def("select", &bound::select);
    module.def("nm", &bound::nm);
    module.def("masked_lstsq", &bound::masked_lstsq);
    module.def("masked_cg", &bound::masked_cg);
    module.def("admm_step", &bound::admm_step);
    module.def("obs", &bound::obs);
    module.def("sparsegpt", &bound::sparsegpt);
    module.def("block_obs", &bound::block_obs);
    module.def("peak", &bound::peak);
    module.def("swap", &bound::swap);
    module.def("draw_counts", &bound::draw_counts);
    bound::bind_bank(module);
    bound::bind_sparse(module);
    bound::bind_windows(module);
    bound::bind_encoder(module);
#if defined(PYPRUNE_HAS_CUDA)
    bound::bind_cuda(module);
#endif
    module.def("environment", &bound::environment);
    module.def("build_info", &bound::build_info);
}

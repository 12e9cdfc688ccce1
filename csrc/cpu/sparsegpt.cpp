// SPDX-License-Identifier: Apache-2.0
// sparsegpt: columns pruned left to right, each removal compensated to its right    weight [rows, k], factor U [k, k]
//
// Algorithm, per block of columns:
//   1 choose what goes, from w² / U_jj²: of the whole block or of each row (exact counts); N:M groups are chosen when
//     the sweep reaches them, from the weights as they are then; a given mask is taken as it is;
//   2 sweep the block, rows in parallel: e_j = w_j / U_jj where pruned, w[j:] -= e_j U[j, j:] inside the block;
//   3 push the block's errors on: W[:, right] -= E U[block, right], by the register-blocked micro-kernel (panel.h).
// FLOPs: rows k² in all, of which rows k·block outside the micro-kernel. Memory: W read and written once per block.
// Double precision; bits do not depend on the number of threads.
#include "../common/element_type.h"
#include "../common/panel.h"
#include "../common/selection.h"

#include <omp.h>

#include "kernels.h"

namespace pyprune {
namespace PYPRUNE_ISA {
namespace {

constexpr int64_t kWide = kPanel<double>;

struct Block {
    int64_t first, width;
};

// Clear the mask of the block's cheapest weights: `prune` of the whole block, or of each row.
void choose(uint8_t* mask, const double* weight, const double* factor, int64_t rows, int64_t columns, Block block,
            int64_t prune, bool per_row, double* scores, double* scratch, uint8_t* chosen, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t j = 0; j < block.width; ++j) {
            const int64_t column = block.first + j;
            const double error = weight[row * columns + column] / factor[column * columns + column];
            scores[row * block.width + j] = error * error;
        }
    if (per_row) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t row = 0; row < rows; ++row)
            select_largest(chosen + row * block.width, scores + row * block.width, block.width, block.width - prune,
                           scratch + row * block.width);
    } else {
        select_largest(chosen, scores, rows * block.width, rows * block.width - prune, scratch);
    }
    for (int64_t row = 0; row < rows; ++row)
        std::copy(chosen + row * block.width, chosen + (row + 1) * block.width, mask + row * columns + block.first);
}

// Sweep one row through the block; errors[j * kWide] receives e_j.
void sweep_row(double* weight, uint8_t* mask, const double* factor, int64_t columns, Block block, int64_t keep,
               int64_t of, double* errors, double* scores, double* scratch) {
    const int64_t stop = block.first + block.width;
    for (int64_t column = block.first; column < stop; ++column) {
        const double* row = factor + column * columns;
        if (of > 0 && column % of == 0) {
            for (int64_t j = 0; j < of; ++j) {
                const double error = weight[column + j] / factor[(column + j) * columns + column + j];
                scores[j] = error * error;
            }
            select_largest(mask + column, scores, of, keep, scratch);
        }
        const double error = mask[column] ? 0.0 : weight[column] / row[column];
        errors[(column - block.first) * kWide] = error;
        if (mask[column]) continue;
        for (int64_t j = column + 1; j < stop; ++j) weight[j] -= error * row[j];
        weight[column] = 0.0;
    }
}

}  // namespace

void sparsegpt(double* weight, uint8_t* mask, const double* factor, const int64_t* prune, int64_t rows, int64_t columns,
               int64_t block, bool mask_given, bool per_row, int64_t keep, int64_t of, int threads) {
    if (rows == 0 || columns == 0) return;
    block = std::min(block, columns);
    const int64_t row_panels = panels(rows, kWide), column_panels = panels(columns, kWide);
    Buffer<double> errors(static_cast<size_t>(row_panels * block * kWide));
    Buffer<double> packed(static_cast<size_t>(column_panels * block * kWide));
    Buffer<double> scores(static_cast<size_t>(rows * block)), scratch(static_cast<size_t>(rows * block));
    Buffer<uint8_t> chosen(static_cast<size_t>(rows * block));
    Buffer<double> group(static_cast<size_t>(2 * std::max<int64_t>(of, 1) * threads));
    for (int64_t first = 0; first < columns; first += block) {
        const Block current = {first, std::min(block, columns - first)};
        if (!mask_given && of == 0)
            choose(mask, weight, factor, rows, columns, current, prune[first / block], per_row, scores.data(),
                   scratch.data(), chosen.data(), threads);
        const int64_t right = first + current.width, width = columns - right;
        const int64_t right_panels = panels(width, kWide), depth = current.width;
#pragma omp parallel num_threads(threads)
        {
            double* own = group.data() + 2 * std::max<int64_t>(of, 1) * omp_get_thread_num();
#pragma omp for schedule(static) nowait
            for (int64_t p = 0; p < right_panels; ++p)
                pack_panel(packed.data() + p * depth * kWide, factor + first * columns + right + p * kWide, depth,
                           columns, std::min(kWide, width - p * kWide));
#pragma omp for schedule(dynamic, 1)
            for (int64_t p = 0; p < row_panels; ++p) {
                double* panel = errors.data() + p * depth * kWide;
                std::fill(panel, panel + depth * kWide, 0.0);
                for (int64_t lane = 0; lane < std::min(kWide, rows - p * kWide); ++lane) {
                    const int64_t offset = (p * kWide + lane) * columns;
                    sweep_row(weight + offset, mask + offset, factor, columns, current, keep, of, panel + lane, own,
                              own + of);
                }
            }
#pragma omp for schedule(dynamic, 1)
            for (int64_t p = 0; p < row_panels; ++p)
                for (int64_t q = 0; q < right_panels; ++q)
                    panel_product(weight + p * kWide * columns + right + q * kWide, columns,
                                  errors.data() + p * depth * kWide, packed.data() + q * depth * kWide, depth,
                                  std::min(kWide, rows - p * kWide), std::min(kWide, width - q * kWide), -1.0);
        }
    }
}

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

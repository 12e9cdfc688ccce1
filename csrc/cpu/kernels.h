// SPDX-License-Identifier: Apache-2.0
// The CPU kernels, declared once per instruction set (define PYPRUNE_ISA, include, undefine).
// Contracts are in the header comments of the files of the same names. All matrices are row-major;
// strides count elements; `threads` >= 1. No include guard on purpose.

#include "../common/bank_view.h"
#include "../common/element_type.h"
#include "../common/encoder_view.h"
#include "../common/sparse_rows_view.h"
#include "../common/sparse_windows_view.h"

namespace pyprune {
namespace PYPRUNE_ISA {

void gram(double* out, const void* x, ElementType type, int64_t tokens, int64_t columns, int64_t stride,
          const uint8_t* keep, int threads);

void cross_gram(double* out, const void* y, const void* x, ElementType type, int64_t tokens, int64_t targets,
                int64_t columns, int64_t y_stride, int64_t x_stride, const uint8_t* keep, int threads);

void matmul(void* out, const void* a, const void* b, ElementType type, int64_t rows, int64_t depth, int64_t columns,
            int64_t a_stride, int64_t b_stride, double add, double sign, int threads);

int64_t cholesky(void* factor, void* inverse, const double* matrix, ElementType type, double ridge, bool reverse,
                 int64_t k, int threads);

void symmetrise(double* out, double* report, const void* a, ElementType type, int64_t k, int threads);

void rescale(void* out, ElementType type, const double* a, const double* scale, double ridge, double shift, int64_t k,
             int threads);

void select(uint8_t* mask, const void* scores, ElementType type, int64_t rows, int64_t columns, int64_t count,
            int threads);

void nm(uint8_t* mask, const void* scores, ElementType type, int64_t groups, int64_t of, int64_t keep, int threads);

void masked_lstsq(double* solution, int64_t* status, const double* system, const double* target, const uint8_t* mask,
                  const double* inverse, double tolerance, int64_t rows, int64_t columns, int threads);

void masked_cg(float* x, double* worth, const float* system, const float* inverse, const float* basis,
               const float* inverse_diagonal, int64_t rank, const float* target, const float* dense,
               const uint8_t* mask, int64_t rows, int64_t columns, int64_t steps, double tolerance, int threads);

void admm_step(float* z, float* previous, const uint8_t* mask, const float* start, const float* multiplier, float relax,
               float momentum, int64_t rows, int64_t columns, int threads);

void obs(double* pruned, int64_t* order, double* loss, const double* inverse, const double* weight,
         const int64_t* count, ElementType type, int64_t points, int64_t rows, int64_t columns, int64_t steps,
         int64_t keep, int64_t of, int threads);

void block_obs(double* pruned, int64_t* order, double* loss, const double* inverse, const double* weight,
               const int64_t* count, int64_t rows, int64_t columns, int64_t height, int64_t width, int64_t steps,
               int threads);

void sparsegpt(void* weight, ElementType type, uint8_t* mask, const void* factor, const int64_t* prune, int64_t rows,
               int64_t columns, int64_t block, bool mask_given, bool per_row, int64_t keep, int64_t of, int threads);

double peak(ElementType type, int64_t rounds, int threads);

void swap(uint8_t* mask, int64_t* exchanged, double* worth, const void* system, const void* inverse, const void* target,
          const void* dense, ElementType type, const int64_t* columns, int64_t count, const double* least, int64_t most,
          int64_t of, int64_t rows, int64_t k, int threads);

int64_t draw_counts(int32_t* counts, const void* weight, ElementType type, int64_t n, int64_t keep, int64_t draws,
                    double exponent, uint64_t seed, double spread, int threads);

void bank_scores(float* log_sum, float* positives, int64_t* counts, uint8_t* certain, const BankView& view,
                 int threads);

void bank_scores_gradient(float* gradient, const float* log_sum, const float* to_log_sum, const float* to_positives,
                          const BankView& view, int threads);

void spmm(void* y, const void* x, ElementType type, int64_t tokens, int64_t stride, const SparseRows& w,
          const float* scale, const float* bias, Activation activation, bool pairs, int threads);

int64_t spmm_tile(int64_t in, double density, bool pairs);

void spmm_windows(void* y, const void* x, ElementType type, int64_t tokens, int64_t stride, const WindowsView& w,
                  const float* scale, const void* bias, ElementType bias_type, Activation activation, int threads);

WindowKind window_kind(ElementType type, ValueType values);

void encoder(float* out, const float* hidden, const uint8_t* keep, const EncoderShape& shape,
             const EncoderLayer* layers, int64_t count, int threads);

}  // namespace PYPRUNE_ISA
}  // namespace pyprune

/* A tile of a product: some rows of x times some vectors of outputs, summed up in registers.
 *
 * For each row the sums run over the inputs in order, whatever other rows there are: a row's result does not depend on its
 * company. MAX_ROWS and MAX_VECTORS are what the registers hold beside what is loaded: 32 of 16 numbers, or 16 of 8. */
#pragma once
#include "vectors.h"

#define MAX_VECTORS 4
#ifdef __AVX512F__
#define MAX_ROWS 6
#else
#define MAX_ROWS 3
#endif

/* Calls `call` with the number of rows as a constant, R. */
#define WITH_ROWS(rows, call)                                            \
    switch (rows) {                                                      \
    case 1: { enum { R = 1 }; call; break; }                             \
    case 2: { enum { R = 2 }; call; break; }                             \
    case 3: { enum { R = 3 }; call; break; }                             \
    case 4: { enum { R = MAX_ROWS < 4 ? MAX_ROWS : 4 }; call; break; }   \
    case 5: { enum { R = MAX_ROWS < 5 ? MAX_ROWS : 5 }; call; break; }   \
    default: { enum { R = MAX_ROWS }; call; break; }                     \
    }

/* sums[r][c] += x[r][k] * weights(c, k) over `steps` values of k. `x_stride`: from row to row. `ahead`, if not NULL: for each
 * vector how far from its weights those are that will be wanted next, if the processor would not guess where. */
#define DEFINE_TILE(NAME, X, W, SUM, LOAD, ADD)                                                                       \
    INLINE void NAME(int num_rows, int num_vectors, const X *x, int64_t x_stride, const char *weights,               \
                     const int64_t *offsets, const int64_t *ahead, int64_t step_bytes, int64_t steps,                \
                     SUM sums[MAX_ROWS][MAX_VECTORS]) {                                                              \
        for (int64_t k = 0; k < steps; k++) {                                                                        \
            W w[MAX_VECTORS];                                                                                        \
            UNROLL for (int c = 0; c < num_vectors; c++) {                                                           \
                w[c] = LOAD(weights + offsets[c] + k * step_bytes);                                                  \
                if (ahead) _mm_prefetch(weights + offsets[c] + k * step_bytes + ahead[c], _MM_HINT_T1);              \
            }                                                                                                        \
            UNROLL for (int r = 0; r < num_rows; r++)                                                                \
                UNROLL for (int c = 0; c < num_vectors; c++) ADD(sums[r][c], x[r * x_stride + k], w[c]);             \
        }                                                                                                            \
    }

#define LOAD_FLOAT32(p) load((const float *)(p))
#define ADD_FLOATS(sum, x, w) sum = fma(all(x), w, sum)

DEFINE_TILE(tile_float32, float, floats, floats, LOAD_FLOAT32, ADD_FLOATS)
DEFINE_TILE(tile_bfloat16, float, floats, floats, load_bfloat16, ADD_FLOATS)

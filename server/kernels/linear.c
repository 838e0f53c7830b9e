/* Linear layers on a CPU: norm, product and activation in one call.
 *
 * In: rows of hidden states. Out: act(norm(x) W^T + b). A matrix is stored in blocks of 16 outputs, [outputs / 16][inputs / u]
 * [16][u] with u the inputs that one instruction multiplies, so that a product reads it from one end to the other, once for
 * all rows. Sums are float32, or exact integers. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include "tile.h"

#define BLOCK 16
#define VECTORS_PER_BLOCK (BLOCK / LANES)
#define BLOCKS_AT_ONCE (MAX_VECTORS / VECTORS_PER_BLOCK)
#define HALF 2 /* blocks: one of gates and one of values stay together */
#define ROWS_AT_ONCE 96 /* of many rows: small tasks keep all threads busy to the end */
#define LEVELS 127.0f
#define SECOND_DIGIT 254.0f /* steps of the second digit in one of the first */

enum kind { FLOAT32, FLOAT16, BFLOAT16, BFLOAT16_UNITS, INT8, INT8_TWO_DIGITS };
enum activation { NONE, GELU, SILU_GATE };

struct matrix {
    int64_t kind, activation, num_inputs;
    int64_t num_outputs; /* of whole blocks, which with SILU_GATE are of gates and values in turn */
    int64_t out_size;    /* numbers that a row becomes */
    const char *blocks;
    const float *bias;          /* [num_outputs] or NULL */
    const float *scales;        /* [num_outputs], of INT8: what one step of a weight is */
    const int32_t *input_sums;  /* [num_outputs], of INT8: of its weights */
};

struct norm {
    const float *weight, *bias; /* [num_inputs]; without a bias it is an RMSNorm, else a LayerNorm */
    float epsilon;
};

/* --- what the processor multiplies in one instruction ------------------------------------------------------------- */

DEFINE_TILE(tile_float16, float, floats, floats, load_float16, ADD_FLOATS)

#ifdef __AVX512BF16__
#define BFLOAT16_INPUTS 2
#define ADD_PAIRS(sum, x, w) sum = _mm512_dpbf16_ps(sum, (__m512bh)all_ints(x), (__m512bh)(w))
DEFINE_TILE(tile_bfloat16_units, int32_t, ints, floats, load_ints, ADD_PAIRS)
#else
#define BFLOAT16_INPUTS 0
#endif

#if defined(__AVX512VNNI__)
/* Inputs without a sign: 128 is added to each, and so 128 times the sum of the weights to what comes of it. In assembly,
 * because of the intrinsic gcc 12 keeps no sum in its register. */
#define INT8_INPUTS 4
#define INPUT_OFFSET 128
typedef uint8_t digit;
#define ADD_INTS(sum, x, w)                                                         \
    do {                                                                            \
        ints four_ = all_ints(x);                                                   \
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(four_), "v"(w));            \
    } while (0)
#define LOAD_INT8(p) load_ints(p)
#else
#define INT8_INPUTS 2
#define INPUT_OFFSET 0
typedef int16_t digit;
#ifdef __AVX512F__
#define LOAD_INT8(p) _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(p)))
#define ADD_INTS(sum, x, w) sum = _mm512_add_epi32(sum, _mm512_madd_epi16(all_ints(x), w))
#else
#define LOAD_INT8(p) _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p)))
#define ADD_INTS(sum, x, w) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(all_ints(x), w))
#endif
#endif
DEFINE_TILE(tile_int8, int32_t, ints, ints, LOAD_INT8, ADD_INTS)

/* How many neighbouring inputs of an output lie together in a block, or 0 where the kind is not there. */
int64_t inputs_together(int64_t kind) {
    return kind == BFLOAT16_UNITS ? BFLOAT16_INPUTS : kind >= INT8 ? INT8_INPUTS : 1;
}

static int64_t weight_bytes(int64_t kind) {
    return kind == FLOAT32 ? 4 : kind >= INT8 ? 1 : 2;
}

/* --- rows, made ready to be multiplied ---------------------------------------------------------------------------- */

struct rows { /* of x, in the kind's type */
    const void *x;
    int64_t stride;      /* from row to row, in what one instruction takes */
    const float *scales; /* of INT8: what one step of a row's input is */
};

static void normalize(const struct norm *norm, int64_t size, const float *x, float *out) {
    float mean = 0, squares = 0;
    if (norm->bias) {
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < size; i++) mean += x[i];
        mean /= size;
    }
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; i++) squares += (x[i] - mean) * (x[i] - mean);
    float factor = 1 / sqrtf(squares / size + norm->epsilon);
    for (int64_t i = 0; i < size; i++) out[i] = (x[i] - mean) * factor * norm->weight[i] + (norm->bias ? norm->bias[i] : 0);
}

static void to_digits(const float *x, int64_t size, int num_digits, int64_t stride, digit *out, float *scale) {
    float largest = 0, nan = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < size; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
#pragma omp simd reduction(+ : nan)
    for (int64_t i = 0; i < size; i++) nan += x[i] - x[i]; /* of what is no number, or has no end */
    if (nan != nan) {
        for (int64_t i = 0; i < num_digits * stride; i++) out[i] = INPUT_OFFSET;
        *scale = NAN;
        return;
    }
    float step = largest > 0 ? largest / LEVELS : 1, inverse = 1 / step;
    *scale = step;
    for (int64_t i = 0; i < size; i++) {
        float first = rintf(x[i] * inverse);
        out[i] = (digit)((int)first + INPUT_OFFSET);
        if (num_digits > 1) out[i + stride] = (digit)((int)rintf((x[i] * inverse - first) * SECOND_DIGIT) + INPUT_OFFSET);
    }
    for (int64_t i = size; i < stride; i++)
        for (int d = 0; d < num_digits; d++) out[i + d * stride] = INPUT_OFFSET;
}

static void to_bfloat16s(const float *x, int64_t size, int64_t stride, uint16_t *out) {
    int64_t i = 0;
#ifdef __AVX512BF16__
    for (; i + LANES <= size; i += LANES) _mm256_storeu_si256((__m256i *)(out + i), (__m256i)_mm512_cvtneps_pbh(load(x + i)));
#endif
    for (; i < size; i++) out[i] = to_bfloat16(x[i]);
    for (; i < stride; i++) out[i] = 0;
}

/* Adds `update` to row `x`, if there is one, norms it, if there is a norm, and writes it to `ready` as the kind wants it. */
static void prepare(const struct matrix *m, const struct norm *norm, float *x, const float *update, float *normed, char *ready,
                    int64_t ready_bytes, float *scale) {
    int64_t size = m->num_inputs;
    if (update)
        for (int64_t i = 0; i < size; i++) x[i] += update[i];
    if (norm) normalize(norm, size, x, normed);
    const float *from = norm ? normed : x;
    int num_digits = m->kind == INT8_TWO_DIGITS ? 2 : 1;
    if (m->kind >= INT8)
        to_digits(from, size, num_digits, ready_bytes / num_digits / sizeof(digit), (digit *)ready, scale);
    else if (m->kind == BFLOAT16_UNITS)
        to_bfloat16s(from, size, ready_bytes / sizeof(uint16_t), (uint16_t *)ready);
}

/* --- what comes of a tile ------------------------------------------------------------------------------------------ */

INLINE floats gelu(floats x) { /* the form with a tanh, which is a sigmoid of twice its argument */
    floats u = x * fma(x * x, all(2 * 0.7978845608f * 0.044715f), all(2 * 0.7978845608f));
    return x / (all(1.0f) + exponential(all(0.0f) - u));
}

INLINE floats silu(floats x) {
    return x / (all(1.0f) + exponential(all(0.0f) - x));
}

INLINE void put(float *out, floats v, int64_t room) { /* as many numbers of v as there is room for */
    if (room >= LANES) {
        store(out, v);
        return;
    }
    float numbers[LANES];
    store(numbers, v);
    for (int64_t i = 0; i < room; i++) out[i] = numbers[i];
}

/* Integer sums of a row's neighbouring outputs from `first` on, as what they stand for. */
static void scale_sums(const struct matrix *m, int num_vectors, const ints *sums, int64_t first, float row_scale, floats *v) {
    for (int c = 0; c < num_vectors; c++) {
        ints extra = zero_ints();
#if INPUT_OFFSET
        extra = _mm512_slli_epi32(load_ints(m->input_sums + first + c * LANES), 7);
#endif
        v[c] = to_floats(subtract_ints(sums[c], extra));
        if (m->kind == INT8_TWO_DIGITS)
            v[c] = fma(to_floats(subtract_ints(sums[c + MAX_VECTORS], extra)), all(1 / SECOND_DIGIT), v[c]);
        v[c] = v[c] * load(m->scales + first + c * LANES) * all(row_scale);
    }
}

/* A row's neighbouring outputs from `first` on, to its row of the output. */
static void finish(const struct matrix *m, int num_vectors, floats *v, int64_t first, float *out) {
    for (int c = 0; c < num_vectors && m->bias; c++) v[c] += load(m->bias + first + c * LANES);
    if (m->activation != SILU_GATE) {
        for (int c = 0; c < num_vectors; c++) {
            int64_t place = first + c * LANES;
            put(out + place, m->activation == GELU ? gelu(v[c]) : v[c], m->out_size - place);
        }
        return;
    }
    for (int pair = 0; pair < num_vectors / (2 * VECTORS_PER_BLOCK); pair++) /* a block of gates, one of values */
        for (int i = 0; i < VECTORS_PER_BLOCK; i++) {
            int gate = pair * 2 * VECTORS_PER_BLOCK + i;
            int64_t place = first / 2 + pair * BLOCK + i * LANES;
            put(out + place, silu(v[gate]) * v[gate + VECTORS_PER_BLOCK], m->out_size - place);
        }
}

/* --- panels: a few blocks of outputs, and all rows or some ---------------------------------------------------------- */

struct panel {
    const struct matrix *m;
    const char *weights;
    int64_t offsets[MAX_VECTORS], step_bytes, steps, first; /* where its vectors are, and its first output */
    int num_vectors;
};

#define DEFINE_PANEL(NAME, TILE, X, SUM, ZERO)                                                                        \
    INLINE void NAME##_tile(const struct panel *p, int num_rows, int num_vectors, const X *x, int64_t x_stride,       \
                            SUM sums[MAX_ROWS][MAX_VECTORS]) {                                                        \
        SUM own[MAX_ROWS][MAX_VECTORS];                                                                               \
        UNROLL for (int r = 0; r < num_rows; r++) UNROLL for (int c = 0; c < num_vectors; c++) own[r][c] = ZERO;      \
        TILE(num_rows, num_vectors, x, x_stride, p->weights, p->offsets, 0, p->step_bytes, p->steps, own);               \
        UNROLL for (int r = 0; r < num_rows; r++) UNROLL for (int c = 0; c < num_vectors; c++) sums[r][c] = own[r][c]; \
    }                                                                                                                 \
    static __attribute__((noinline)) void NAME(const struct panel *p, int64_t num_rows, const X *x, int64_t x_stride, \
                                               SUM sums[MAX_ROWS][MAX_VECTORS]) {                                     \
        if (p->num_vectors == MAX_VECTORS) WITH_ROWS(num_rows, NAME##_tile(p, R, MAX_VECTORS, x, x_stride, sums))      \
        else if (p->num_vectors == 2) WITH_ROWS(num_rows, NAME##_tile(p, R, 2, x, x_stride, sums))                     \
        else WITH_ROWS(num_rows, NAME##_tile(p, R, 1, x, x_stride, sums))                                              \
    }

DEFINE_PANEL(sum_float32, tile_float32, float, floats, all(0.0f))
DEFINE_PANEL(sum_float16, tile_float16, float, floats, all(0.0f))
DEFINE_PANEL(sum_bfloat16, tile_bfloat16, float, floats, all(0.0f))
#ifdef __AVX512BF16__
DEFINE_PANEL(sum_bfloat16_units, tile_bfloat16_units, int32_t, floats, all(0.0f))
#endif
DEFINE_PANEL(sum_int8, tile_int8, int32_t, ints, zero_ints())

static void multiply_panel(const struct panel *p, struct rows rows, int64_t row, int64_t end, float *out) {
    int digits = p->m->kind == INT8_TWO_DIGITS ? 2 : 1;
    int64_t num_rows, num_tiles = (end - row + MAX_ROWS / digits - 1) / (MAX_ROWS / digits);
    for (; row < end; row += num_rows, num_tiles--) {
        num_rows = (end - row + num_tiles - 1) / num_tiles; /* a few rows less in each rather than few in the last one */
        const char *x = (const char *)rows.x + row * digits * rows.stride * 4;
        floats sums[MAX_ROWS][MAX_VECTORS];
        ints counts[MAX_ROWS][MAX_VECTORS];
        switch (p->m->kind) {
        case FLOAT32: sum_float32(p, num_rows, (const float *)x, rows.stride, sums); break;
        case FLOAT16: sum_float16(p, num_rows, (const float *)x, rows.stride, sums); break;
        case BFLOAT16: sum_bfloat16(p, num_rows, (const float *)x, rows.stride, sums); break;
#ifdef __AVX512BF16__
        case BFLOAT16_UNITS: sum_bfloat16_units(p, num_rows, (const int32_t *)x, rows.stride, sums); break;
#endif
        default:
            sum_int8(p, num_rows * digits, (const int32_t *)x, rows.stride, counts);
            for (int r = 0; r < num_rows; r++)
                scale_sums(p->m, p->num_vectors, counts[r * digits], p->first, rows.scales[row + r], sums[r]);
        }
        for (int r = 0; r < num_rows; r++) finish(p->m, p->num_vectors, sums[r], p->first, out + (row + r) * p->m->out_size);
    }
}

static void multiply_blocks(const struct matrix *m, struct rows rows, int64_t row, int64_t end, int64_t block,
                            int64_t end_block, float *out) {
    int64_t together = inputs_together(m->kind), steps = (m->num_inputs + together - 1) / together;
    int64_t step_bytes = BLOCK * together * weight_bytes(m->kind), block_bytes = steps * step_bytes;
    while (block < end_block) {
        int64_t count = BLOCKS_AT_ONCE;
        while (count > end_block - block) count /= 2;
        struct panel p = {m, m->blocks + block * block_bytes, {0}, step_bytes, steps, block * BLOCK, (int)count * VECTORS_PER_BLOCK};
        for (int c = 0; c < p.num_vectors; c++)
            p.offsets[c] = c / VECTORS_PER_BLOCK * block_bytes + c % VECTORS_PER_BLOCK * (step_bytes / VECTORS_PER_BLOCK);
        multiply_panel(&p, rows, row, end, out);
        block += count;
    }
}

/* --- the calls --------------------------------------------------------------------------------------------------------- */

enum { PREPARED, FIRST_OUTPUT, SECOND_OUTPUT, NUM_SCRATCHES };

static void *scratch(int use, int64_t num_bytes) { /* of this thread, kept from call to call */
    static _Thread_local void *memory[NUM_SCRATCHES];
    static _Thread_local int64_t sizes[NUM_SCRATCHES];
    if (num_bytes > sizes[use]) {
        free(memory[use]);
        sizes[use] = (num_bytes + num_bytes / 2 + 4096) / 64 * 64;
        memory[use] = aligned_alloc(64, sizes[use]);
        if (!memory[use]) {
            fprintf(stderr, "no memory for %lld bytes of a product\n", (long long)sizes[use]);
            abort();
        }
    }
    return memory[use];
}

/* out [num_rows][out_size] = act(norm(x) W^T + b), x [num_rows][num_inputs] with rows x_stride apart. `update`, if not NULL, is
 * added to x first, and x keeps the sum. `norm` may be NULL. */
void multiply(const struct matrix *m, const struct norm *norm, float *x, int64_t x_stride, const float *update, float *out,
              int64_t num_rows) {
    int64_t together = inputs_together(m->kind), steps = (m->num_inputs + together - 1) / together;
    int is_float = m->kind < BFLOAT16_UNITS, num_digits = m->kind == INT8_TWO_DIGITS ? 2 : 1;
    int64_t ready_bytes = is_float ? 0 : steps * together * num_digits * (int64_t)(m->kind >= INT8 ? sizeof(digit) : 2);
    int64_t normed_bytes = norm ? m->num_inputs * sizeof(float) : 0;
    float *normed = scratch(PREPARED, (ready_bytes + normed_bytes + sizeof(float)) * num_rows);
    float *scales = normed + normed_bytes / sizeof(float) * num_rows;
    char *ready = (char *)(scales + num_rows);
    struct rows rows = {is_float ? (norm ? (void *)normed : x) : (void *)ready,
                        is_float ? (norm ? m->num_inputs : x_stride) : ready_bytes / num_digits / 4, scales};
    int64_t num_blocks = (m->num_outputs + BLOCK - 1) / BLOCK;
    int64_t num_panels = (num_blocks + BLOCKS_AT_ONCE - 1) / BLOCKS_AT_ONCE;
    int64_t num_parts = (num_rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, num_threads = omp_get_max_threads();
    int64_t part_rows = num_parts ? ((num_rows + num_parts - 1) / num_parts + MAX_ROWS - 1) / MAX_ROWS * MAX_ROWS : 0;
    /* What would be one more panel for some threads and none for the others is shared out in halves. */
    int64_t num_whole = num_panels / num_threads * num_threads, rest = num_blocks - num_whole * BLOCKS_AT_ONCE;
    int64_t num_tasks = rest > 0 ? num_whole + (rest + HALF - 1) / HALF : num_whole;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < num_rows; r++)
            prepare(m, norm, x + r * x_stride, update ? update + r * m->num_inputs : 0, normed + r * m->num_inputs,
                    ready + r * ready_bytes, ready_bytes, scales + r);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < num_tasks * num_parts; task++) {
            int64_t share = task / num_parts, row = task % num_parts * part_rows, is_whole = share < num_whole;
            int64_t block = is_whole ? share * BLOCKS_AT_ONCE : num_whole * BLOCKS_AT_ONCE + (share - num_whole) * HALF;
            int64_t end_block = block + (is_whole ? BLOCKS_AT_ONCE : HALF);
            int64_t end = row + part_rows < num_rows ? row + part_rows : num_rows;
            if (end_block > num_blocks) end_block = num_blocks;
            multiply_blocks(m, rows, row, end, block, end_block, out);
        }
    }
}

struct link {
    const struct matrix *matrix;
    const struct norm *norm; /* NULL: what the link before gave is multiplied; else it is added to `hidden`, and the norm of that is */
};

/* Links one after the other, the first one of x. out [num_rows][out_size of the last one]; all with neighbouring rows. */
void multiply_in_turn(const struct link *links, int64_t num_links, float *hidden, float *x, float *out, int64_t num_rows) {
    for (int64_t i = 0; i < num_links; i++) {
        const struct matrix *m = links[i].matrix;
        float *result = i == num_links - 1 ? out : scratch(FIRST_OUTPUT + i % 2, m->out_size * num_rows * sizeof(float));
        multiply(m, links[i].norm, links[i].norm ? hidden : x, m->num_inputs, links[i].norm ? x : 0, result, num_rows);
        x = result;
    }
}

/* out [num_rows][size] = norm(x), both with neighbouring rows. */
void norm_rows(const struct norm *norm, int64_t size, const float *x, float *out, int64_t num_rows) {
#pragma omp parallel for schedule(static) if (num_rows > 1)
    for (int64_t r = 0; r < num_rows; r++) normalize(norm, size, x + r * size, out + r * size);
}

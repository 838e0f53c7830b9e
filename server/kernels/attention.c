/* Causal attention over a block cache on a CPU, of decoding sequences and prompts alike.
 *
 * In: queries, new keys and values of a packed batch. Out: attended values; the new keys and values are in their slots. Keys of
 * a block lie as [head_dim][block_size], so that neighbouring numbers are neighbouring positions, values as [block_size]
 * [head_dim]. Softmax is taken as the keys go by (Milakov and Gimelshein 2018, arXiv:1805.02867), GROUP positions at a time
 * from position 0 on: a query's result depends neither on what else is computed nor on how. */
#include <math.h>
#include <omp.h>
#include "tile.h"

#define GROUP 64 /* positions */
#define MAX_HEADS 8 /* key-value heads of a task */
#define TASKS_PER_THREAD 4
#define MAX_HEAD_DIM 256
#define NOTHING_YET -1e30f

struct attention {
    int64_t num_heads, num_kv_heads, head_dim, block_size, is_bfloat16; /* is_bfloat16: the cache */
    int64_t window, chunk; /* 0: none */
    float scale, softcap;  /* softcap 0: none */
    const float *slopes, *sinks; /* [num_heads] or NULL */
};

struct cache {
    char *keys, *values; /* [num_blocks][num_kv_heads] of blocks */
};

struct tokens { /* rows of the packed batch, as far apart as the strides say, and within each of them heads */
    const float *query, *key, *value;
    int64_t query_stride, key_stride, value_stride, head_stride;
    const int64_t *slots; /* [num_tokens], block * block_size + offset */
    int64_t num_tokens;
};

struct sequences {
    const int64_t *tables; /* [num_sequences][table_width] of blocks */
    int64_t table_width;
    const int64_t *starts;   /* [num_sequences + 1]: their first tokens */
    const int64_t *contexts; /* [num_sequences]: positions attended to, those of the new tokens included */
    int64_t num_sequences;
};

static int64_t number_bytes(const struct attention *a) {
    return a->is_bfloat16 ? 2 : 4;
}

static int64_t head_bytes(const struct attention *a) { /* of a block */
    return a->block_size * a->head_dim * number_bytes(a);
}

/* head_dim numbers of one head, `step` apart in the cache. */
static void keep_head(const struct attention *a, char *place, int64_t step, const float *x) {
    if (a->is_bfloat16)
        for (int64_t d = 0; d < a->head_dim; d++) ((uint16_t *)place)[d * step] = to_bfloat16(x[d]);
    else
        for (int64_t d = 0; d < a->head_dim; d++) ((float *)place)[d * step] = x[d];
}

static void keep(const struct attention *a, const struct cache *cache, const struct tokens *t, int64_t token) {
    int64_t block = t->slots[token] / a->block_size, offset = t->slots[token] % a->block_size, number = number_bytes(a);
    for (int64_t head = 0; head < a->num_kv_heads; head++) {
        int64_t start = (block * a->num_kv_heads + head) * head_bytes(a);
        keep_head(a, cache->keys + start + offset * number, a->block_size,
                  t->key + token * t->key_stride + head * t->head_stride);
        keep_head(a, cache->values + start + offset * a->head_dim * number, 1,
                  t->value + token * t->value_stride + head * t->head_stride);
    }
}

/* --- some rows of queries of one key-value head against all they see ---------------------------------------------- */

struct query_rows {
    int num_rows;
    float query[MAX_ROWS][MAX_HEAD_DIM]; /* scaled */
    int64_t first[MAX_ROWS], end[MAX_ROWS]; /* the positions that each sees, [first, end): later rows no earlier ones */
    float slope[MAX_ROWS];
    float largest[MAX_ROWS], weight_sum[MAX_ROWS];
    float weights[MAX_ROWS][GROUP];
    float output[MAX_ROWS][MAX_HEAD_DIM];
    const char *keys, *values; /* of this head, in block 0 */
    int64_t block_bytes;       /* from block to block */
    const int64_t *table;
    int64_t next_head_bytes; /* to the head that is read next: one further or, from the last one, back to the first */
    int64_t last_end;        /* of the last row */
};

#define DEFINE_SCORES(NAME, TILE)                                                                                            \
    INLINE void NAME##_rows(const struct attention *a, struct query_rows *q, int num_rows, int num_vectors, int64_t position,\
                            const int64_t *offsets, const int64_t *ahead) {                                                  \
        floats sums[MAX_ROWS][MAX_VECTORS];                                                                                  \
        UNROLL for (int r = 0; r < num_rows; r++) UNROLL for (int c = 0; c < num_vectors; c++) sums[r][c] = all(0.0f);       \
        TILE(num_rows, num_vectors, q->query[0], MAX_HEAD_DIM, q->keys, offsets, ahead, a->block_size * number_bytes(a),     \
             a->head_dim, sums);                                                                                             \
        UNROLL for (int r = 0; r < num_rows; r++)                                                                            \
            UNROLL for (int c = 0; c < num_vectors; c++) store(q->weights[r] + position % GROUP + c * LANES, sums[r][c]);    \
    }                                                                                                                        \
    static void NAME(const struct attention *a, struct query_rows *q, int num_vectors, int64_t position,                     \
                     const int64_t *offsets, const int64_t *ahead) {                                                         \
        if (num_vectors > 2) WITH_ROWS(q->num_rows, NAME##_rows(a, q, R, MAX_VECTORS, position, offsets, ahead))             \
        else if (num_vectors == 2) WITH_ROWS(q->num_rows, NAME##_rows(a, q, R, 2, position, offsets, ahead))                 \
        else WITH_ROWS(q->num_rows, NAME##_rows(a, q, R, 1, position, offsets, ahead))                                       \
    }
DEFINE_SCORES(score_float32, tile_float32)
DEFINE_SCORES(score_bfloat16, tile_bfloat16)

/* How far from this position lies what is read next: the same of the next head or, after the last one, one group later of the
 * first. 0 where there is none. */
static int64_t bytes_ahead(const struct attention *a, const struct query_rows *q, int64_t position) {
    if (q->next_head_bytes > 0) return q->next_head_bytes;
    if (position + GROUP >= q->last_end) return 0;
    int64_t blocks = q->table[(position + GROUP) / a->block_size] - q->table[position / a->block_size];
    return blocks * q->block_bytes + q->next_head_bytes;
}

/* Of the positions [group, group + GROUP) that are before `end`: query times key. */
static void score(const struct attention *a, struct query_rows *q, int64_t group, int64_t end) {
    for (int64_t position = group; position < group + GROUP && position < end; position += MAX_VECTORS * LANES) {
        int64_t offsets[MAX_VECTORS], ahead[MAX_VECTORS];
        for (int c = 0; c < MAX_VECTORS; c++) {
            int64_t own = position + c * LANES < end ? position + c * LANES : position; /* what is not there is masked */
            offsets[c] = q->table[own / a->block_size] * q->block_bytes + own % a->block_size * number_bytes(a);
            ahead[c] = bytes_ahead(a, q, own);
        }
        int num_vectors = (int)((end - position + LANES - 1) / LANES);
        (a->is_bfloat16 ? score_bfloat16 : score_float32)(a, q, num_vectors, position, offsets, ahead);
    }
}

/* Of a group the positions before `end`, and as many more as a vector has. */
static int64_t group_size(int64_t group, int64_t end) {
    return end - group >= GROUP ? GROUP : (end - group + LANES - 1) / LANES * LANES;
}

/* What is added to scores, and what they must not see. */
static void mask(const struct attention *a, const struct query_rows *q, int r, int64_t group, int64_t end, float *scores) {
    int64_t size = group_size(group, end);
    if (a->softcap > 0)
        for (int i = 0; i < size; i++) scores[i] = a->softcap * tanhf(scores[i] / a->softcap);
    if (q->slope[r] != 0)
        for (int i = 0; i < size; i++) scores[i] += q->slope[r] * (int)(group + i - (q->end[r] - 1));
    if (q->end[r] < end) end = q->end[r];
    if (group >= q->first[r] && group + size <= end) return;
    for (int i = 0; i < size; i++)
        if (group + i < q->first[r] || group + i >= end) scores[i] = -INFINITY;
}

/* Scores become weights relative to the largest so far; what was added up before is scaled to it. */
static void weigh(const struct attention *a, struct query_rows *q, int r, int64_t group, int64_t end) {
    float *weights = q->weights[r], largest = q->largest[r];
    int64_t size = group_size(group, end);
    mask(a, q, r, group, end, weights);
    floats most = all(largest);
    for (int i = 0; i < size; i += LANES) most = max(most, load(weights + i));
    float new_largest = largest_of(most);
    if (new_largest > largest) {
        float factor = expf(largest - new_largest);
        for (int64_t d = 0; d < a->head_dim; d++) q->output[r][d] *= factor;
        q->weight_sum[r] *= factor;
        q->largest[r] = new_largest;
    }
    floats sum = all(0.0f);
    for (int i = 0; i < size; i += LANES) {
        floats weight = exponential(load(weights + i) - all(new_largest));
        store(weights + i, weight);
        sum += weight;
    }
    q->weight_sum[r] += sum_of(sum);
}

#define DEFINE_VALUES(NAME, TILE)                                                                                          \
    INLINE void NAME##_rows(const struct attention *a, struct query_rows *q, int num_rows, int num_vectors, int64_t d,     \
                            int64_t group, int64_t end) {                                                                  \
        floats sums[MAX_ROWS][MAX_VECTORS];                                                                                \
        int64_t number = number_bytes(a), offsets[MAX_VECTORS], ahead[MAX_VECTORS];                                        \
        UNROLL for (int c = 0; c < num_vectors; c++) offsets[c] = (d + c * LANES) * number;                                \
        UNROLL for (int r = 0; r < num_rows; r++)                                                                          \
            UNROLL for (int c = 0; c < num_vectors; c++) sums[r][c] = load(q->output[r] + d + c * LANES);                  \
        for (int64_t position = group; position < end;) {                                                                  \
            int64_t offset = position % a->block_size, steps = a->block_size - offset;                                     \
            if (steps > end - position) steps = end - position;                                                            \
            UNROLL for (int c = 0; c < num_vectors; c++) ahead[c] = bytes_ahead(a, q, position);                           \
            const char *values = q->values + q->table[position / a->block_size] * q->block_bytes + offset * a->head_dim * number; \
            TILE(num_rows, num_vectors, q->weights[0] + (position - group), GROUP, values, offsets, ahead,                     \
                 a->head_dim * number, steps, sums);                                                                                             \
            position += steps;                                                                                             \
        }                                                                                                                  \
        UNROLL for (int r = 0; r < num_rows; r++)                                                                          \
            UNROLL for (int c = 0; c < num_vectors; c++) store(q->output[r] + d + c * LANES, sums[r][c]);                  \
    }                                                                                                                      \
    static void NAME(const struct attention *a, struct query_rows *q, int64_t group, int64_t end) {                        \
        int64_t d = 0;                                                                                                     \
        for (; d + MAX_VECTORS * LANES <= a->head_dim; d += MAX_VECTORS * LANES)                                           \
            WITH_ROWS(q->num_rows, NAME##_rows(a, q, R, MAX_VECTORS, d, group, end))                                       \
        for (; d < a->head_dim; d += LANES) WITH_ROWS(q->num_rows, NAME##_rows(a, q, R, 1, d, group, end))                 \
    }
DEFINE_VALUES(add_float32_values, tile_float32)
DEFINE_VALUES(add_bfloat16_values, tile_bfloat16)

/* Of the first group nobody has asked for the values: while its keys are multiplied, they come. */
static void prefetch_values(const struct attention *a, const struct query_rows *q, int64_t group) {
    for (int64_t position = group; position < group + GROUP && position < q->last_end; position += a->block_size)
        for (int64_t i = 0; i < head_bytes(a); i += 64)
            _mm_prefetch(q->values + q->table[position / a->block_size] * q->block_bytes + i, _MM_HINT_T1);
}

/* Heads one after the other, a group of positions at a time: so a block is read from one end to the other. */
static void attend_heads(const struct attention *a, struct query_rows *heads, int num_heads) {
    int64_t first_group = heads->first[0] / GROUP * GROUP, end = heads->last_end;
    prefetch_values(a, heads, first_group);
    for (int64_t group = first_group; group < end; group += GROUP) {
        int64_t group_end = group + GROUP < end ? group + GROUP : end;
        for (struct query_rows *q = heads; q < heads + num_heads; q++) {
            score(a, q, group, group_end);
            for (int r = 0; r < q->num_rows; r++) weigh(a, q, r, group, group_end);
            (a->is_bfloat16 ? add_bfloat16_values : add_float32_values)(a, q, group, group_end);
        }
    }
}

/* Of some key-value heads of a sequence some rows of queries: token after token, and of each the heads that share one. */
struct tile {
    int64_t sequence, kv_head, num_kv_heads, row;
    int num_rows;
};

static void begin_rows(const struct attention *a, const struct cache *cache, const struct tokens *t, const struct sequences *s,
                       const struct tile *tile, int64_t kv_head, struct query_rows *q) {
    int64_t group = a->num_heads / a->num_kv_heads, length = s->starts[tile->sequence + 1] - s->starts[tile->sequence];
    int64_t is_last = kv_head == tile->kv_head + tile->num_kv_heads - 1;
    q->num_rows = tile->num_rows;
    q->keys = cache->keys + kv_head * head_bytes(a);
    q->values = cache->values + kv_head * head_bytes(a);
    q->block_bytes = a->num_kv_heads * head_bytes(a);
    q->table = s->tables + tile->sequence * s->table_width;
    q->next_head_bytes = (is_last ? 1 - tile->num_kv_heads : 1) * head_bytes(a);
    for (int r = 0; r < tile->num_rows; r++) {
        int64_t index = (tile->row + r) / group, head = kv_head * group + (tile->row + r) % group;
        int64_t token = s->starts[tile->sequence] + index, position = s->contexts[tile->sequence] - length + index;
        const float *query = t->query + token * t->query_stride + head * t->head_stride;
        for (int64_t d = 0; d < a->head_dim; d++) {
            q->query[r][d] = query[d] * a->scale;
            q->output[r][d] = 0;
        }
        q->end[r] = position + 1;
        q->first[r] = a->window && position >= a->window ? position - a->window + 1 : 0;
        if (a->chunk && q->first[r] < position - position % a->chunk) q->first[r] = position - position % a->chunk;
        q->slope[r] = a->slopes ? a->slopes[head] : 0;
        q->largest[r] = a->sinks ? a->sinks[head] : NOTHING_YET;
        q->weight_sum[r] = a->sinks ? 1 : 0;
    }
    q->last_end = q->end[q->num_rows - 1];
}

static void end_rows(const struct attention *a, const struct sequences *s, const struct tile *tile, int64_t kv_head,
                     const struct query_rows *q, float *out) {
    int64_t group = a->num_heads / a->num_kv_heads;
    for (int r = 0; r < tile->num_rows; r++) {
        int64_t token = s->starts[tile->sequence] + (tile->row + r) / group, head = kv_head * group + (tile->row + r) % group;
        float *place = out + (token * a->num_heads + head) * a->head_dim;
        for (int64_t d = 0; d < a->head_dim; d++) place[d] = q->output[r][d] / q->weight_sum[r];
    }
}

static void attend_tile(const struct attention *a, const struct cache *cache, const struct tokens *t, const struct sequences *s,
                        const struct tile *tile, float *out) {
    struct query_rows heads[MAX_HEADS];
    for (int h = 0; h < tile->num_kv_heads; h++) begin_rows(a, cache, t, s, tile, tile->kv_head + h, heads + h);
    attend_heads(a, heads, (int)tile->num_kv_heads);
    for (int h = 0; h < tile->num_kv_heads; h++) end_rows(a, s, tile, tile->kv_head + h, heads + h, out);
}

/* What is shared out to threads: of one sequence after the other its tiles, which are of one key-value head or, where there is
 * one tile only, of some. */
struct tasks {
    int64_t heads_at_once, sequence, first; /* the first task of `sequence` */
};

static int64_t num_rows(const struct attention *a, const struct sequences *s, int64_t sequence) {
    return (s->starts[sequence + 1] - s->starts[sequence]) * (a->num_heads / a->num_kv_heads);
}

static int64_t num_tasks(const struct attention *a, const struct sequences *s, int64_t sequence, int64_t heads_at_once) {
    int64_t num_tiles = (num_rows(a, s, sequence) + MAX_ROWS - 1) / MAX_ROWS;
    return num_tiles == 1 ? (a->num_kv_heads + heads_at_once - 1) / heads_at_once : num_tiles * a->num_kv_heads;
}

/* `task` is at least what it was before. */
static struct tile find_tile(const struct attention *a, const struct sequences *s, struct tasks *tasks, int64_t task) {
    int64_t count;
    while (task >= tasks->first + (count = num_tasks(a, s, tasks->sequence, tasks->heads_at_once))) {
        tasks->first += count;
        tasks->sequence++;
    }
    int64_t rows = num_rows(a, s, tasks->sequence), num_tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
    int64_t heads_at_once = num_tiles == 1 ? tasks->heads_at_once : 1;
    int64_t kv_head = (task - tasks->first) / num_tiles * heads_at_once, row = (task - tasks->first) % num_tiles * MAX_ROWS;
    if (heads_at_once > a->num_kv_heads - kv_head) heads_at_once = a->num_kv_heads - kv_head;
    return (struct tile){tasks->sequence, kv_head, heads_at_once, row, (int)(rows - row < MAX_ROWS ? rows - row : MAX_ROWS)};
}

/* out [num_tokens][num_heads][head_dim]. head_dim and block_size are multiples of 16, head_dim at most 256. */
void attend(const struct attention *a, const struct cache *cache, const struct tokens *t, const struct sequences *s, float *out) {
    int64_t heads_at_once = s->num_sequences * a->num_kv_heads / (TASKS_PER_THREAD * omp_get_max_threads()), num_all = 0;
    if (heads_at_once > a->num_kv_heads) heads_at_once = a->num_kv_heads;
    if (heads_at_once > MAX_HEADS) heads_at_once = MAX_HEADS;
    if (heads_at_once < 1) heads_at_once = 1;
    for (int64_t sequence = 0; sequence < s->num_sequences; sequence++) num_all += num_tasks(a, s, sequence, heads_at_once);
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t token = 0; token < t->num_tokens; token++) keep(a, cache, t, token);
        struct tasks tasks = {heads_at_once, 0, 0};
#pragma omp for schedule(monotonic : dynamic) nowait
        for (int64_t task = 0; task < num_all; task++) {
            struct tile tile = find_tile(a, s, &tasks, task);
            attend_tile(a, cache, t, s, &tile, out);
        }
    }
}

/* Turns neighbouring numbers of each head, as pairs, by angles whose cosines and sines are `turns` [num_tokens][head_dim / 2][2],
 * in place. */
void rotate(float *x, int64_t stride, int64_t num_tokens, int64_t num_heads, int64_t head_dim, const float *turns) {
#pragma omp parallel for schedule(static) if (num_tokens > 1)
    for (int64_t token = 0; token < num_tokens; token++) {
        const float *turn = turns + token * head_dim;
        for (int64_t head = 0; head < num_heads; head++) {
            float *pairs = x + token * stride + head * head_dim;
            for (int64_t i = 0; i < head_dim; i += 2) {
                float real = pairs[i], imaginary = pairs[i + 1];
                pairs[i] = real * turn[i] - imaginary * turn[i + 1];
                pairs[i + 1] = real * turn[i + 1] + imaginary * turn[i];
            }
        }
    }
}

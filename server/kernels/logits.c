/* The likeliest token of each row of logits, and the log of its sum of exponentials, in one pass over memory.
 *
 * A row is taken in parts that stay in a core's cache between the search for the largest entry and the sum. The parts are the
 * same whatever other rows there are. */
#include <math.h>
#include <stdlib.h>
#include "vectors.h"

#define PART 4096

struct part {
    float largest, sum; /* sum: of exponentials, relative to the largest */
    int64_t place;
    int has_nan;
};

static struct part find_part(const float *x, int64_t first, int64_t end) {
    struct part p = {-INFINITY, 0, first, 0};
    floats most = all(-INFINITY), sum = all(0.0f);
    int64_t i = first;
    for (; i + LANES <= end; i += LANES) {
        floats v = load(x + i);
        p.has_nan |= any_nan(v);
        most = max(v, most);
    }
    p.largest = largest_of(most);
    for (int64_t rest = i; rest < end; rest++) {
        p.has_nan |= x[rest] != x[rest];
        if (x[rest] > p.largest) p.largest = x[rest];
    }
    if (p.largest == -INFINITY) return p;
    for (i = first; i + LANES <= end; i += LANES) sum += exponential(load(x + i) - all(p.largest));
    p.sum = sum_of(sum);
    for (; i < end; i++) p.sum += expf(x[i] - p.largest);
    for (p.place = first; x[p.place] != p.largest; p.place++) {}
    return p;
}

/* x [num_rows][size] → each row's largest entry, the first place of it, and the log of the sum of all exponentials. What is no
 * number makes the first and the last of these none. */
void find_likeliest(const float *x, int64_t num_rows, int64_t size, float *largest, int64_t *places, double *log_sums) {
    int64_t num_parts = (size + PART - 1) / PART;
    struct part *parts = malloc(num_rows * num_parts * sizeof(struct part));
    if (!parts) abort();
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < num_rows * num_parts; task++) {
        int64_t first = task % num_parts * PART, end = first + PART < size ? first + PART : size;
        parts[task] = find_part(x + task / num_parts * size, first, end);
    }
    for (int64_t row = 0; row < num_rows; row++) {
        const struct part *own = parts + row * num_parts, *best = own;
        int has_nan = 0;
        double sum = 0;
        for (int64_t i = 0; i < num_parts; i++) {
            has_nan |= own[i].has_nan;
            if (own[i].largest > best->largest) best = own + i;
        }
        for (int64_t i = 0; i < num_parts; i++)
            if (own[i].sum > 0) sum += own[i].sum * exp((double)own[i].largest - best->largest);
        largest[row] = has_nan ? NAN : best->largest;
        places[row] = best->place;
        log_sums[row] = has_nan ? NAN : best->largest + log(sum);
    }
    free(parts);
}

/* One token a row, by inverse CDF, and its log-probability. */

#include "vectors.h"

#define STRETCHES 256 /* of a row, at most: each keeps the sum of its exponentials */
#define SHORTEST 256

typedef struct { float temperature, top; } Scale;

/* The next WIDE of `left` logits; what lies behind the last is impossible. */
static inline vec next(const real *x, int64_t left) {
    if (left >= WIDE) return getv(x);
    float room[WIDE];
    storev(room, allv(-INFINITY));
    for (int64_t i = 0; i < left; i++) room[i] = get1(x + i);
    return loadv(room);
}

/* Logits over the temperature, less the largest of them. */
static inline vec below_top(vec x, Scale by) { return x / allv(by.temperature) - allv(by.top); }

static float largest(const real *x, int64_t width) {
    vec top = allv(-INFINITY);
    for (int64_t i = 0; i < width; i += WIDE) {
        vec some = next(x + i, width - i);
        top = pickv(some > top, some, top);
    }
    float best = top[0];
    for (int i = 1; i < WIDE; i++) best = top[i] > best ? top[i] : best;
    return best;
}

static int64_t first_of(const real *x, int64_t width, float value) {
    for (int64_t i = 0; i < width; i++) if (get1(x + i) == value) return i;
    return width - 1; /* not a number */
}

/* The first of `width` exponentials at which their sum exceeds `left`; where rounding keeps it from that, the last that
 * is not 0. */
static int64_t within(const real *x, int64_t width, Scale by, double left) {
    int64_t found = 0;
    double sum = 0.0;
    for (int64_t i = 0; i < width; i += WIDE) {
        float each[WIDE];
        storev(each, expv(below_top(next(x + i, width - i), by)));
        for (int64_t j = 0; j < WIDE && i + j < width; j++) {
            sum += each[j];
            if (each[j] > 0.0f) found = i + j;
            if (sum > left) return found;
        }
    }
    return found;
}

/* The token of a row at `uniform` in [0,1), its log-prob, and the entropy of what it is drawn from, if asked. */
static int64_t draw_row(const real *x, int64_t width, float temperature, double uniform, float *logp, float *entropy) {
    double sums[STRETCHES], total = 0.0, along = 0.0;
    int64_t size = (width / STRETCHES + SHORTEST) / SHORTEST * SHORTEST, token = width - 1;
    float top = largest(x, width), warm = temperature > 0.0f ? temperature : 1.0f;
    Scale by = {warm, top / warm};
    for (int64_t from = 0, n = 0; from < width; from += size, n++) {
        int64_t end = from + size < width ? from + size : width;
        vec sum = allv(0.0f), weighed = allv(0.0f);
        for (int64_t i = from; i < end; i += WIDE) {
            vec less = below_top(next(x + i, end - i), by), e = expv(less);
            sum += e;
            if (entropy) weighed += pickv(e > 0, e * less, allv(0.0f));
        }
        total += sums[n] = sum_ofv(sum);
        along += sum_ofv(weighed);
    }
    if (temperature > 0.0f) {
        double target = uniform * total, before = 0.0;
        if (target >= total) target = nextafter(total, 0.0); /* the product may round up */
        for (int64_t from = 0, n = 0; from < width; from += size, n++) {
            if (before + sums[n] > target) {
                token = from + within(x + from, from + size < width ? size : width - from, by, target - before);
                break;
            }
            before += sums[n];
        }
    } else {
        token = first_of(x, width, top);
    }
    *logp = (get1(x + token) / warm - by.top) - log(total);
    if (entropy) *entropy = log(total) - along / total;
    return token;
}

/* Of n rows [n,width], `stride` apart. `temperature` 0: the likeliest, with its log-prob at 1. `entropy` may be null. */
void draw(int threads, int64_t n, int64_t width, int64_t stride, const real *logits, float temperature,
          const double *uniforms, int64_t *tokens, float *logp, float *entropy) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t i = 0; i < n; i++) {
        tokens[i] = draw_row(logits + i * stride, width, temperature, uniforms[i], logp + i, entropy ? entropy + i : 0);
    }
}

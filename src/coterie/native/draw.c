/* One token a row, by inverse CDF, and its log-probability. */

#include "vectors.h"

#define STRETCH 512 /* logits: a row keeps the sum of the exponentials of each */
#define MOST 2048 /* of them */

typedef struct { float temperature, top; } Scale;

/* The next WIDE of `left` logits; what lies behind the last is impossible. */
static inline vec next(const real *x, int64_t left) {
    if (left >= WIDE) return getv(x);
    float room[WIDE];
    storev(room, allv(-INFINITY));
    for (int64_t i = 0; i < left; i++) room[i] = get1(x + i);
    return loadv(room);
}

static float largest(const real *x, int64_t width) {
    vec top = allv(-INFINITY);
    for (int64_t i = 0; i < width; i += WIDE) {
        vec some = next(x + i, width - i);
        top = pickv(some > top, some, top);
    }
    float each[WIDE];
    storev(each, top);
    for (int half = WIDE / 2; half; half /= 2) {
        for (int i = 0; i < half; i++) each[i] = each[i] > each[i + half] ? each[i] : each[i + half];
    }
    return each[0];
}

static int64_t first_of(const real *x, int64_t width, float value) {
    for (int64_t i = 0; i < width; i++) if (get1(x + i) == value) return i;
    return width - 1; /* not a number */
}

/* Exponentials of a stretch of logits over the temperature, less the largest, to `each`, which has room for whole
 * vectors. Their sum; and, if asked, that of each times what it is the exponential of. */
static inline float exponentials(const real *x, int64_t width, Scale by, float *each, double *along) {
    vec sum = allv(0.0f), weighed = allv(0.0f);
    for (int64_t i = 0; i < width; i += WIDE) {
        vec below = next(x + i, width - i) / allv(by.temperature) - allv(by.top), e = expv(below);
        storev(each + i, e);
        sum += e;
        if (along) weighed += pickv(e > 0, e * below, allv(0.0f));
    }
    if (along) *along += sum_ofv(weighed);
    return sum_ofv(sum);
}

/* The first of `width` numbers at which their sum exceeds `left`; where rounding keeps it from that, the last that is
 * not 0. */
static int64_t within(const float *each, int64_t width, double left) {
    int64_t from = 0, found = -1;
    for (float sum; from + WIDE < width; from += WIDE, left -= sum) {
        sum = sum_ofv(loadv(each + from));
        if (sum > left) break;
    }
    for (int64_t i = from; i < width; i++) {
        if (each[i] > 0.0f) found = i;
        left -= each[i];
        if (left < 0.0) return found;
    }
    while (found < 0 && from--) if (each[from] > 0.0f) found = from;
    return found < 0 ? width - 1 : found;
}

static inline int64_t shorter(int64_t a, int64_t b) { return a < b ? a : b; }

/* The token of a row at `uniform` in [0,1), its log-prob, and the entropy of what it is drawn from, if asked. */
static int64_t draw_row(const real *x, int64_t width, float temperature, double uniform, float *logp, float *entropy) {
    float each[STRETCH], top = largest(x, width), warm = temperature > 0.0f ? temperature : 1.0f;
    double sums[MOST], total = 0.0, along = 0.0;
    Scale by = {warm, top / warm};
    int64_t count = 0, token = width - 1;
    for (int64_t from = 0; from < width; from += STRETCH) {
        total += sums[count++] = exponentials(x + from, shorter(width - from, STRETCH), by, each, entropy ? &along : 0);
    }
    if (temperature > 0.0f) {
        double target = uniform * total, before = 0.0;
        if (target >= total) target = nextafter(total, 0.0); /* the product may round up */
        for (int64_t n = 0; n < count; before += sums[n++]) {
            if (before + sums[n] <= target) continue;
            int64_t from = n * STRETCH, size = shorter(width - from, STRETCH);
            if (count > 1) exponentials(x + from, size, by, each, 0);
            token = from + within(each, size, target - before);
            break;
        }
    } else {
        token = first_of(x, width, top);
    }
    *logp = (get1(x + token) / warm - by.top) - log(total);
    if (entropy) *entropy = log(total) - along / total;
    return token;
}

/* Of n rows [n,width], `stride` apart, width at most MOST stretches. `temperature` 0: the likeliest, with its log-prob
 * at 1. `entropy` may be null. */
void draw(int threads, int64_t n, int64_t width, int64_t stride, const real *logits, float temperature,
          const double *uniforms, int64_t *tokens, float *logp, float *entropy) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL / 4)
    for (int64_t i = 0; i < n; i++) {
        tokens[i] = draw_row(logits + i * stride, width, temperature, uniforms[i], logp + i, entropy ? entropy + i : 0);
    }
}

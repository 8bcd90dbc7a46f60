/* What top-k, top-p and min-p cut from each row's distribution, without sorting the row: its logits are counted by how
 * far they lie below the largest, and only those are sorted that lie about where a cut is. */

#include <stdlib.h>

#include "vectors.h"

#define BUCKETS 1024
#define FAR 64.0f /* nats below the top, at which too little is left to be told apart */

typedef struct { float logit; int32_t place; } Entry;

/* Logits [width], and of each bucket of them how many there are and the sum of their exponentials (1 for the top). */
typedef struct {
    const float *x;
    int64_t width, count[BUCKETS];
    double mass[BUCKETS];
    float top, per_nat;
} Row;

/* What is kept: all above `least`, and of those that equal it the ones up to the place `last`. */
typedef struct { float least; int64_t last; } Kept;

/* Where the row's logits begin, and how many buckets there are for a nat. */
static void measure(Row *r) {
    vec high = allv(-INFINITY), low = allv(INFINITY);
    float top = -INFINITY, bottom = INFINITY;
    int64_t i = 0;
    for (; i + WIDE <= r->width; i += WIDE) {
        vec some = loadv(r->x + i);
        high = pickv(some > high, some, high);
        low = pickv(some < low, some, low);
    }
    for (int lane = 0; lane < WIDE; lane++) {
        top = high[lane] > top ? high[lane] : top;
        bottom = low[lane] < bottom ? low[lane] : bottom;
    }
    for (; i < r->width; i++) {
        top = r->x[i] > top ? r->x[i] : top;
        bottom = r->x[i] < bottom ? r->x[i] : bottom;
    }
    float range = top - bottom < FAR ? top - bottom : FAR;
    r->top = top;
    r->per_nat = (BUCKETS - 1) / (range > 1e-3f ? range : 1e-3f);
}

static inline int bucket_of(const Row *r, float x) {
    float below = (r->top - x) * r->per_nat;
    return below < BUCKETS - 1 ? (int)below : BUCKETS - 1; /* the last has all that is far below, or not a number */
}

static void count(Row *r) {
    memset(r->count, 0, sizeof r->count);
    memset(r->mass, 0, sizeof r->mass);
    for (int64_t from = 0; from < r->width; from += WIDE) {
        int64_t size = r->width - from < WIDE ? r->width - from : WIDE;
        float some[WIDE], each[WIDE];
        storev(some, allv(-INFINITY));
        memcpy(some, r->x + from, size * sizeof *some);
        storev(each, expv(loadv(some) - allv(r->top)));
        for (int64_t i = 0; i < size; i++) {
            int bucket = bucket_of(r, some[i]);
            r->count[bucket]++;
            r->mass[bucket] += each[i];
        }
    }
}

static int falling(const void *a, const void *b) {
    const Entry *x = a, *y = b;
    if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
    return x->place < y->place ? -1 : 1;
}

/* Those of a bucket that are kept so far, the largest first, and of equals the first. */
static int64_t sorted(const Row *r, int bucket, Kept kept, Entry *found) {
    int64_t size = 0;
    for (int64_t i = 0; i < r->width; i++) {
        if (bucket_of(r, r->x[i]) == bucket && r->x[i] >= kept.least) found[size++] = (Entry){r->x[i], (int32_t)i};
    }
    qsort(found, size, sizeof *found, falling);
    return size;
}

/* The k largest, and all that equal the last of them. The masses of the others are taken from the row. */
static Kept keep_k(Row *r, int64_t k, Kept kept, Entry *room) {
    int bucket = 0;
    while (r->count[bucket] < k) k -= r->count[bucket++];
    int64_t size = sorted(r, bucket, kept, room);
    if (k <= size) kept.least = room[k - 1].logit; /* fewer are left only where some are not numbers */
    memset(r->mass + bucket, 0, (BUCKETS - bucket) * sizeof *r->mass);
    for (int64_t i = 0; i < size && room[i].logit >= kept.least; i++) r->mass[bucket] += expf(room[i].logit - r->top);
    return kept;
}

/* As long as those above do not hold the share p of what is left. */
static Kept keep_p(const Row *r, double p, Kept kept, Entry *room) {
    double all = 0.0, above = 0.0;
    for (int i = 0; i < BUCKETS; i++) all += r->mass[i];
    int bucket = 0;
    while (bucket < BUCKETS - 1 && above + r->mass[bucket] < p * all) above += r->mass[bucket++];
    int64_t size = sorted(r, bucket, kept, room);
    for (int64_t i = 0; i < size && above < p * all; i++) {
        kept = (Kept){room[i].logit, room[i].place};
        above += expf(room[i].logit - r->top);
    }
    return kept;
}

/* cut [n,width] of logits [n,width]. 0 as `top_k`, 1 as `top_p` and minus infinity as `floor`, which is the logarithm
 * of min-p, cut nothing. `rooms` [threads,width] */
void cut(int threads, int64_t n, int64_t width, const float *logits, int64_t top_k, double top_p, float floor,
         Entry *rooms, uint8_t *cut) {
    extern int omp_get_thread_num(void);
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL / 4)
    for (int64_t i = 0; i < n; i++) {
        Entry *room = rooms + omp_get_thread_num() * width;
        Row r;
        r.x = logits + i * width, r.width = width;
        measure(&r);
        Kept kept = {-INFINITY, width};
        int some = top_k > 0 && top_k < width;
        if (some || top_p < 1.0) count(&r);
        if (some) kept = keep_k(&r, top_k, kept, room);
        if (top_p < 1.0) kept = keep_p(&r, top_p, kept, room);
        if (r.top + floor > kept.least) kept = (Kept){r.top + floor, width};
        uint8_t *mine = cut + i * width;
        for (int64_t j = 0; j < width; j++) mine[j] = r.x[j] < kept.least;
        for (int64_t j = kept.last + 1; j < width; j++) mine[j] |= r.x[j] == kept.least;
    }
}

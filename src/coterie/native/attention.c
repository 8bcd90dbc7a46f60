/* Attention of groups that share a prompt (`coterie.policies.two_part`), forward and backward, on a CPU.
 *
 * Sixteen queries are computed at once, a lane each, against a block of keys: only what fits the first cache is made of
 * the scores. A task is one head of the keys and a prompt's own queries, or up to ROWS completions of it; each task has
 * gradients of the prompt's keys and values of its own, which are summed in order, so that nothing depends on the number
 * of threads. */

#include <stdlib.h>

#include "lanes.h"

#define BLOCK 64 /* keys */
#define ROWS 8   /* completions of a task */

/* n groups in slots of their own: prompts [n,prefix] from slot `start`, then completions [n,rows,length]. Those from
 * `first` on, before `last`, are computed. */
typedef struct { int64_t start, groups, prefix, rows, length, first, last; const int64_t *sizes; } Bundle;

/* Tokens [L]: q, out, grad and dq [L,heads,dim], k, v, dk and dv [L,kv,dim], lines of q, k and v of their strides. */
typedef struct {
    int64_t heads, kv, dim, q_stride, k_stride, v_stride;
    const real *q, *k, *v;
    real *out;
    float *log_sum; /* [L,heads] */
    const real *grad;
    real *dq, *dk, *dv;
    float scaling;
    int64_t window;        /* tokens that a query may see, itself included; 0: all */
    const int64_t *token;  /* of each slot; null: the slot itself */
    const uint8_t *holds;  /* which slots hold a token; null: all */
    const uint8_t *asked;  /* [L]: which queries are computed; null: all. Of others dq is 0, and out as it was. */
    int backward;
} Packed;

/* Some of a group's tokens: `count` slots from `slot` on, the first of which stands at position `from`. */
typedef struct { const Packed *p; int64_t slot, count, from, head; } Part;

static inline int64_t token_of(const Packed *p, int64_t slot) { return p->token ? p->token[slot] : slot; }

typedef struct {
    float *keys, *values, *dkeys, *dvalues; /* [count,dim] */
    int64_t count, from;
} Seen;

static void gather(const Part *part, Seen *seen) {
    const Packed *p = part->p;
    for (int64_t i = 0; i < part->count; i++) {
        int64_t t = token_of(p, part->slot + i);
        const real *key = p->k + t * p->k_stride + part->head * p->dim;
        const real *value = p->v + t * p->v_stride + part->head * p->dim;
        for (int64_t d = 0; d < p->dim; d += LANES) {
            store(seen->keys + i * p->dim + d, get(key + d));
            store(seen->values + i * p->dim + d, get(value + d));
        }
    }
    seen->count = part->count;
    seen->from = part->from;
}

/* Sixteen queries or fewer: a lane each, and in rows. */
typedef struct {
    v16 q[WIDEST], top, total, mean; /* `top` is the log-sum in the backward pass */
    v16 dout[WIDEST], dq[WIDEST];
    float rows[WIDE][WIDEST], sums[WIDE][WIDEST]; /* queries; what was found, or its gradient */
    i16 position;
} Queries;

/* y[j] += sum over l of weights[j][l] rows[l]: the lanes' share in the gradient of y [count,dim] */
INLINE void spread(const v16 *weights, float (*rows)[WIDEST], int64_t count, const int64_t dim, float *y) {
    const float *w = (const float *)weights;
    for (int64_t j = 0; j < count; j += 4) {
        int64_t some = count - j < 4 ? count - j : 4;
        for (int64_t d = 0; d < dim; d += 32) {
            int both = d + 16 < dim;
            v16 sum[4][2] = {0};
            for (int l = 0; l < WIDE; l++) {
                v16 a = load16(rows[l] + d), b = both ? load16(rows[l] + d + 16) : a;
                HOLD(a);
                HOLD(b);
                for (int i = 0; i < 4; i++) {
                    float weight = w[(j + (i < some ? i : 0)) * WIDE + l];
                    sum[i][0] += a * weight;
                    sum[i][1] += b * weight;
                }
            }
            for (int i = 0; i < some; i++) {
                float *to = y + (j + i) * dim + d;
                store16(to, load16(to) + sum[i][0]);
                if (both) store16(to + 16, load16(to + 16) + sum[i][1]);
            }
        }
    }
}

/* dq[d] += sum over j of slopes[j] keys[j][d], lanes */
INLINE void back_to_queries(const v16 *slopes, const float *keys, int64_t count, const int64_t dim, v16 *dq) {
    for (int64_t d = 0; d < dim; d += 8) {
        v16 sum[8];
        for (int i = 0; i < 8; i++) sum[i] = dq[d + i];
        for (int64_t j = 0; j < count; j++)
            for (int i = 0; i < 8; i++) sum[i] += slopes[j] * keys[j * dim + d + i];
        for (int i = 0; i < 8; i++) dq[d + i] = sum[i];
    }
}

/* The scores of keys a .. a + count, those that are not seen -inf. */
INLINE void score(const Packed *p, const Queries *x, const Seen *seen, int64_t a, int64_t count, int64_t lowest,
                  int64_t highest, const int64_t dim, v16 *scores) {
    products(x->q, seen->keys + a * dim, count, dim, scores);
    int64_t first = seen->from + a, last = first + count - 1;
    if (last <= lowest && (!p->window || highest - first < p->window)) return;
    for (int64_t j = 0; j < count; j++) {
        int32_t at = (int32_t)(first + j);
        i16 hidden = x->position < at;
        if (p->window) hidden |= x->position - at >= (int32_t)p->window;
        scores[j] = pick16(hidden, all16(-INFINITY), scores[j]);
    }
}

/* How many keys from a on are computed at once: none behind the last query. */
INLINE int64_t block(const Seen *seen, int64_t a, int64_t highest) {
    int64_t count = seen->count - a < BLOCK ? seen->count - a : BLOCK, ahead = highest - seen->from - a + 1;
    return count < ahead ? count : ahead;
}

INLINE void forward(const Packed *p, Queries *x, const Seen *seen, int64_t lowest, int64_t highest, const int64_t dim) {
    v16 scores[BLOCK];
    for (int64_t a = 0; a < seen->count; a += BLOCK) {
        int64_t count = block(seen, a, highest);
        if (count <= 0) break;
        if (p->window && lowest - (seen->from + a + count - 1) >= p->window) continue;
        score(p, x, seen, a, count, lowest, highest, dim, scores);
        v16 top = x->top;
        for (int64_t j = 0; j < count; j++) top = pick16(scores[j] <= top, top, scores[j]);
        v16 safe = pick16(top == all16(-INFINITY), all16(0.0f), top), before = exp16(x->top - safe);
        x->total *= before;
        for (int64_t j = 0; j < count; j++) {
            scores[j] = exp16(scores[j] - safe);
            x->total += scores[j];
        }
        for (int l = 0; l < WIDE; l++)
            for (int64_t d = 0; d < dim; d += 16) store16(x->sums[l] + d, load16(x->sums[l] + d) * before[l]);
        mix(scores, seen->values + a * dim, count, dim, WIDE, x->sums);
        x->top = top;
    }
}

INLINE void backward(const Packed *p, Queries *x, Seen *seen, int64_t lowest, int64_t highest, const int64_t dim) {
    v16 weights[BLOCK], slopes[BLOCK];
    for (int64_t a = 0; a < seen->count; a += BLOCK) {
        int64_t count = block(seen, a, highest);
        if (count <= 0) break;
        if (p->window && lowest - (seen->from + a + count - 1) >= p->window) continue;
        score(p, x, seen, a, count, lowest, highest, dim, weights);
        products(x->dout, seen->values + a * dim, count, dim, slopes);
        for (int64_t j = 0; j < count; j++) {
            weights[j] = exp16(weights[j] - x->top);
            slopes[j] = (slopes[j] - x->mean) * weights[j];
        }
        spread(weights, x->sums, count, dim, seen->dvalues + a * dim);
        spread(slopes, x->rows, count, dim, seen->dkeys + a * dim);
        back_to_queries(slopes, seen->keys + a * dim, count, dim, x->dq);
    }
}

/* All queries of a part, against what they may see. */
INLINE void queries(const Part *part, Seen *seen, int parts, const int64_t dim) {
    const Packed *p = part->p;
    int64_t each = p->heads / p->kv;
    Queries x;
    for (int64_t next = 0; next < part->count * each;) {
        real *place[WIDE];
        int64_t entry[WIDE], query[WIDE], lanes = 0;
        for (; lanes < WIDE && next < part->count * each; next++) {
            int64_t t = token_of(p, part->slot + next / each), head = part->head * each + next % each;
            if (!p->asked || p->asked[t])
                query[lanes++] = next;
            else if (p->backward)
                memset(p->dq + (t * p->heads + head) * dim, 0, dim * sizeof(real));
        }
        if (!lanes) break;
        for (int l = 0; l < WIDE; l++) {
            if (l >= lanes) query[l] = query[0];
            int64_t t = token_of(p, part->slot + query[l] / each), head = part->head * each + query[l] % each;
            const real *q = p->q + t * p->q_stride + head * dim;
            entry[l] = t * p->heads + head;
            place[l] = (p->backward ? p->dq : p->out) + entry[l] * dim;
            /* lanes of nobody see nothing */
            x.position[l] = l < lanes ? (int32_t)(part->from + query[l] / each) : -1;
            for (int64_t d = 0; d < dim; d += WIDE) store16(x.rows[l] + d, get16(q + d) * p->scaling);
            if (p->backward) {
                const real *grad = p->grad + entry[l] * dim, *out = p->out + entry[l] * dim;
                v16 mean = all16(0.0f);
                for (int64_t d = 0; d < dim; d += WIDE) {
                    v16 slope = get16(grad + d);
                    store16(x.sums[l] + d, slope);
                    mean += slope * get16(out + d);
                }
                x.mean[l] = sum_of16(mean);
                x.top[l] = p->log_sum[entry[l]];
            } else {
                memset(x.sums[l], 0, dim * sizeof(float));
            }
        }
        to_lanes(x.rows, dim, x.q);
        if (p->backward) to_lanes(x.sums, dim, x.dout);
        int64_t lowest = part->from + query[0] / each, highest = part->from + query[lanes - 1] / each;
        if (lanes < WIDE) lowest = -1;
        if (p->backward) {
            for (int64_t d = 0; d < dim; d++) x.dq[d] = all16(0.0f);
            for (int i = 0; i < parts; i++) backward(p, &x, seen + i, lowest, highest, dim);
            for (int64_t d = 0; d < dim; d += WIDE) {
                exchange(x.dq + d);
                for (int l = 0; l < lanes; l++) put16(place[l] + d, x.dq[d + l] * p->scaling);
            }
        } else {
            x.top = all16(-INFINITY);
            x.total = all16(0.0f);
            for (int i = 0; i < parts; i++) forward(p, &x, seen + i, lowest, highest, dim);
            for (int l = 0; l < lanes; l++) {
                float scale = 1.0f / x.total[l];
                for (int64_t d = 0; d < dim; d += WIDE) put16(place[l] + d, load16(x.sums[l] + d) * scale);
                p->log_sum[entry[l]] = x.top[l] + logf(x.total[l]);
            }
        }
    }
}

static void all_queries(const Part *part, Seen *seen, int parts) {
    switch (part->p->dim) {
    case 16: queries(part, seen, parts, 16); break;
    case 32: queries(part, seen, parts, 32); break;
    case 64: queries(part, seen, parts, 64); break;
    default: queries(part, seen, parts, part->p->dim);
    }
}

static int64_t length_of(const Packed *p, int64_t slot, int64_t most) {
    int64_t count = most;
    while (p->holds && count && !p->holds[slot + count - 1]) count--;
    return count;
}

static int tasks_of(const Bundle *b) { return 1 + (int)((b->rows + ROWS - 1) / ROWS); }

static void task(const Packed *p, const Bundle *b, int64_t group, int64_t head, int number, float *dprompt,
                 float *room) {
    int64_t size = b->sizes[group], dim = p->dim;
    Part prompt = {p, b->start + group * b->prefix, size, 0, head};
    Seen seen[2] = {{room, room + b->prefix * dim, dprompt, dprompt ? dprompt + b->prefix * dim : NULL, 0, 0},
                    {room + 2 * b->prefix * dim, NULL, NULL, NULL, 0, 0}};
    gather(&prompt, seen);
    if (dprompt) memset(dprompt, 0, 2 * b->prefix * dim * sizeof(float));
    if (number == 0) {
        all_queries(&prompt, seen, 1);
        return;
    }
    seen[1].values = seen[1].keys + b->length * dim;
    seen[1].dkeys = seen[1].values + b->length * dim;
    seen[1].dvalues = seen[1].dkeys + b->length * dim;
    for (int64_t row = (number - 1) * ROWS; row < number * ROWS && row < b->rows; row++) {
        int64_t slot = b->start + b->groups * b->prefix + (group * b->rows + row) * b->length;
        Part own = {p, slot, length_of(p, slot, b->length), size, head};
        gather(&own, seen + 1);
        if (p->backward) memset(seen[1].dkeys, 0, 2 * b->length * dim * sizeof(float));
        all_queries(&own, seen, 2);
        for (int64_t i = 0; p->backward && i < own.count; i++) {
            int64_t t = token_of(p, slot + i) * p->kv + head;
            for (int64_t d = 0; d < dim; d += LANES) {
                put(p->dk + t * dim + d, load(seen[1].dkeys + i * dim + d));
                put(p->dv + t * dim + d, load(seen[1].dvalues + i * dim + d));
            }
        }
    }
}

/* The prompt's gradients are what its tasks found, summed. */
static void sum_up(const Packed *p, const Bundle *b, int64_t group, int64_t head, int tasks, const float *found) {
    int64_t dim = p->dim, each = 2 * b->prefix * dim;
    for (int64_t i = 0; i < b->sizes[group]; i++) {
        int64_t t = token_of(p, b->start + group * b->prefix + i) * p->kv + head;
        for (int64_t d = 0; d < dim; d++) {
            float dk = 0, dv = 0;
            for (int n = 0; n < tasks; n++) {
                dk += found[n * each + i * dim + d];
                dv += found[n * each + (b->prefix + i) * dim + d];
            }
            put1(p->dk + t * dim + d, dk);
            put1(p->dv + t * dim + d, dv);
        }
    }
}

/* Floats to work in for each thread, and with a backward pass for what the tasks of a group find. */
int64_t two_part_room(const Packed *p, const Bundle *b) {
    return (2 * b->prefix + 4 * b->length) * p->dim;
}

int64_t two_part_found(const Packed *p, const Bundle *b) {
    return p->backward ? p->kv * tasks_of(b) * 2 * b->prefix * p->dim : 0;
}

/* room: `two_part_room` for each thread; found: `two_part_found` for each group. */
void two_part(int threads, const Packed *p, const Bundle *b, float *room, float *found) {
    int tasks = tasks_of(b);
    int64_t pairs = (b->last - b->first) * p->kv, all = pairs * tasks;
    int64_t each = 2 * b->prefix * p->dim, mine = two_part_room(p, b);
    #pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        extern int omp_get_thread_num(void);
        float *own = room + omp_get_thread_num() * mine;
#else
        float *own = room;
#endif
        #pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < all; i++) { /* prompts last: they are less work than what threads begin with */
            int64_t pair = i % pairs, number = tasks - 1 - i / pairs;
            float *dprompt = p->backward ? found + (pair * tasks + number) * each : NULL;
            task(p, b, b->first + pair / p->kv, pair % p->kv, (int)number, dprompt, own);
        }
        if (p->backward) {
            #pragma omp for schedule(static)
            for (int64_t pair = 0; pair < pairs; pair++)
                sum_up(p, b, b->first + pair / p->kv, pair % p->kv, tasks, found + pair * tasks * each);
        }
    }
}

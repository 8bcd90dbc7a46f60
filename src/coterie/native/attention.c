/* Attention of groups that share a prompt (`coterie.policies.two_part`), forward and backward, on a CPU.
 *
 * QUERIES are computed at once, a lane each, against a block of keys: only what fits the first caches is made of the
 * scores. A task is one head of the keys and a prompt's own queries, or up to ROWS completions of it; each task has
 * gradients of its own of the prompt's keys and values, which are summed in order, so that nothing depends on the
 * number of threads. */

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

#define QUERIES (VECTORS * WIDE) /* at once, at most */

/* Queries, a lane each, and in rows [lanes,dim]. */
typedef struct {
    vec q[VECTORS * WIDEST], dout[VECTORS * WIDEST];      /* [dim][vectors] */
    vec top[VECTORS], total[VECTORS], mean[VECTORS];      /* `top` is the log-sum in the backward pass */
    float rows[QUERIES * WIDEST], sums[QUERIES * WIDEST]; /* queries; what was found, or its gradient */
    float dq[QUERIES * WIDEST];
    ivec position[VECTORS];
} Queries;

/* The scores of keys a .. a + count, those that are not seen -inf. */
INLINE void score(const Packed *p, const Queries *x, const Seen *seen, int64_t a, int64_t count, int64_t lowest,
                  int64_t highest, const int64_t dim, const int vectors, vec *scores) {
    products(x->q, seen->keys + a * dim, count, dim, vectors, scores);
    int64_t first = seen->from + a, last = first + count - 1;
    if (last <= lowest && (!p->window || highest - first < p->window)) return;
    for (int64_t j = 0; j < count; j++)
        for (int v = 0; v < vectors; v++) {
            int32_t at = (int32_t)(first + j);
            ivec hidden = x->position[v] < at;
            if (p->window) hidden |= x->position[v] - at >= (int32_t)p->window;
            scores[j * vectors + v] = pickv(hidden, allv(-INFINITY), scores[j * vectors + v]);
        }
}

/* How many keys from a on are computed at once: none behind the last query. */
INLINE int64_t block(const Seen *seen, int64_t a, int64_t highest) {
    int64_t count = seen->count - a < BLOCK ? seen->count - a : BLOCK, ahead = highest - seen->from - a + 1;
    return count < ahead ? count : ahead;
}

INLINE void forward(const Packed *p, Queries *x, const Seen *seen, int64_t lowest, int64_t highest, const int64_t dim,
                    const int vectors) {
    vec scores[VECTORS * BLOCK];
    for (int64_t a = 0; a < seen->count; a += BLOCK) {
        int64_t count = block(seen, a, highest);
        if (count <= 0) break;
        if (p->window && lowest - (seen->from + a + count - 1) >= p->window) continue;
        score(p, x, seen, a, count, lowest, highest, dim, vectors, scores);
        for (int v = 0; v < vectors; v++) {
            vec top = x->top[v];
            for (int64_t j = v; j < count * vectors; j += vectors) top = pickv(scores[j] <= top, top, scores[j]);
            vec safe = pickv(top == allv(-INFINITY), allv(0.0f), top), before = expv(x->top[v] - safe);
            vec total = x->total[v] * before;
            for (int64_t j = v; j < count * vectors; j += vectors) {
                scores[j] = expv(scores[j] - safe);
                total += scores[j];
            }
            for (int l = 0; l < WIDE; l++) {
                float *sums = x->sums + (v * WIDE + l) * dim;
                for (int64_t d = 0; d < dim; d += WIDE) storev(sums + d, loadv(sums + d) * before[l]);
            }
            x->top[v] = top;
            x->total[v] = total;
        }
        mix(scores, seen->values + a * dim, count, dim, vectors, vectors * WIDE, x->sums);
    }
}

INLINE void backward(const Packed *p, Queries *x, Seen *seen, int64_t lowest, int64_t highest, const int64_t dim,
                     const int vectors) {
    vec weights[VECTORS * BLOCK], slopes[VECTORS * BLOCK];
    for (int64_t a = 0; a < seen->count; a += BLOCK) {
        int64_t count = block(seen, a, highest);
        if (count <= 0) break;
        if (p->window && lowest - (seen->from + a + count - 1) >= p->window) continue;
        score(p, x, seen, a, count, lowest, highest, dim, vectors, weights);
        products(x->dout, seen->values + a * dim, count, dim, vectors, slopes);
        for (int64_t j = 0; j < count * vectors; j++) {
            int v = (int)(j % vectors);
            weights[j] = expv(weights[j] - x->top[v]);
            slopes[j] = (slopes[j] - x->mean[v]) * weights[j];
        }
        for (int64_t j = count; j % 4; j++)
            for (int v = 0; v < vectors; v++) weights[j * vectors + v] = slopes[j * vectors + v] = allv(0.0f);
        spread(weights, x->sums, count, dim, vectors, seen->dvalues + a * dim);
        spread(slopes, x->rows, count, dim, vectors, seen->dkeys + a * dim);
        mix(slopes, seen->keys + a * dim, count, dim, vectors, vectors * WIDE, x->dq);
    }
}

/* Queries that share a head of the keys: their tokens, heads and positions. */
typedef struct {
    int64_t token[QUERIES], head[QUERIES];
    int32_t position[QUERIES];
    int lanes;
} Some;

/* Some queries, in this many vectors, against what they may see. */
INLINE void some_queries(const Packed *p, const Some *some, Seen *seen, int parts, const int64_t dim,
                         const int vectors) {
    int64_t lowest = some->lanes < vectors * WIDE ? -1 : some->position[0], highest = some->position[some->lanes - 1];
    Queries x;
    for (int l = 0; l < vectors * WIDE; l++) {
        int from = l < some->lanes ? l : 0;
        int64_t entry = some->token[from] * p->heads + some->head[from];
        const real *q = p->q + some->token[from] * p->q_stride + some->head[from] * dim;
        float *row = x.rows + l * dim, *sums = x.sums + l * dim;
        /* lanes of nobody see nothing */
        x.position[l / WIDE][l % WIDE] = l < some->lanes ? some->position[l] : -1;
        for (int64_t d = 0; d < dim; d += WIDE) storev(row + d, getv(q + d) * p->scaling);
        if (p->backward) {
            const real *grad = p->grad + entry * dim, *out = p->out + entry * dim;
            vec mean = allv(0.0f);
            for (int64_t d = 0; d < dim; d += WIDE) {
                vec slope = getv(grad + d);
                storev(sums + d, slope);
                mean += slope * getv(out + d);
            }
            x.mean[l / WIDE][l % WIDE] = sum_ofv(mean);
            x.top[l / WIDE][l % WIDE] = p->log_sum[entry];
        } else {
            memset(sums, 0, dim * sizeof(float));
        }
    }
    to_lanes(x.rows, dim, vectors, x.q);
    if (p->backward) {
        to_lanes(x.sums, dim, vectors, x.dout);
        memset(x.dq, 0, vectors * WIDE * dim * sizeof(float));
        for (int i = 0; i < parts; i++) backward(p, &x, seen + i, lowest, highest, dim, vectors);
        for (int l = 0; l < some->lanes; l++) {
            real *to = p->dq + (some->token[l] * p->heads + some->head[l]) * dim;
            for (int64_t d = 0; d < dim; d += WIDE) putv(to + d, loadv(x.dq + l * dim + d) * p->scaling);
        }
    } else {
        for (int v = 0; v < vectors; v++) {
            x.top[v] = allv(-INFINITY);
            x.total[v] = allv(0.0f);
        }
        for (int i = 0; i < parts; i++) forward(p, &x, seen + i, lowest, highest, dim, vectors);
        for (int l = 0; l < some->lanes; l++) {
            int64_t entry = some->token[l] * p->heads + some->head[l];
            float total = x.total[l / WIDE][l % WIDE], scale = 1.0f / total;
            for (int64_t d = 0; d < dim; d += WIDE)
                putv(p->out + entry * dim + d, loadv(x.sums + l * dim + d) * scale);
            p->log_sum[entry] = x.top[l / WIDE][l % WIDE] + logf(total);
        }
    }
}

#define ANSWER(dim)                                                               \
    do {                                                                          \
        if (some->lanes > WIDE) some_queries(p, some, seen, parts, dim, VECTORS); \
        else if (some->lanes) some_queries(p, some, seen, parts, dim, 1);         \
    } while (0)

static void answer(const Packed *p, const Some *some, Seen *seen, int parts) {
    if (p->dim == 64) /* common, and faster if the compiler knows it */
        ANSWER(64);
    else
        ANSWER(p->dim);
}

/* All queries of a part that are asked for. */
static void all_queries(const Part *part, Seen *seen, int parts) {
    const Packed *p = part->p;
    int64_t each = p->heads / p->kv;
    Some some = {.lanes = 0};
    for (int64_t i = 0; i < part->count; i++) {
        int64_t token = token_of(p, part->slot + i);
        int asked = !p->asked || p->asked[token];
        for (int64_t head = part->head * each; head < (part->head + 1) * each; head++) {
            if (!asked) {
                if (p->backward) memset(p->dq + (token * p->heads + head) * p->dim, 0, p->dim * sizeof(real));
                continue;
            }
            if (some.lanes == QUERIES) {
                answer(p, &some, seen, parts);
                some.lanes = 0;
            }
            some.token[some.lanes] = token;
            some.head[some.lanes] = head;
            some.position[some.lanes++] = (int32_t)(part->from + i);
        }
    }
    answer(p, &some, seen, parts);
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

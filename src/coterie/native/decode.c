/* What stands between the matrix products of one decoding step of a Llama-family model, on a CPU: each
 * function is one pass over its rows where operators of a library would be many.
 *
 * Products that are kept for the update (`coterie.policies.replay`) are written down in the same pass: row i goes to
 * line line[i] of a table, to none where that is negative or `line` is null. */

#include "lanes.h"

#define KEYS 256 /* that are scored at once */

/* A table of lines, each `stride` elements behind the one before; `rows` is null where nothing is kept. */
typedef struct { char *rows; int64_t stride; } Table;

typedef float v8any __attribute__((vector_size(32), aligned(2), may_alias)); /* in memory that holds anything */

static inline void keep(Table table, const int64_t *line, int64_t i, const void *x, int64_t width, int64_t size) {
    if (!table.rows || (line && line[i] < 0)) return;
    char *to = table.rows + (line ? line[i] : i) * table.stride * size;
#ifdef __AVX__ /* past the caches: nobody reads it before the update */
    if ((uintptr_t)to % 32 == 0 && width * size % 32 == 0) {
        for (int64_t d = 0; d < width * size / 4; d += LANES)
            __builtin_ia32_movntps256((float *)to + d, *(const v8any *)((const float *)x + d));
        return;
    }
#endif
    memcpy(to, x, width * size);
}

/* x += y, where there is a y, which is kept; inner = x over its norm, times `constant` [width] where there is one.
 * x, y and inner [n,width]. */
void add_and_norm(int threads, int64_t n, int64_t width, real *x, const real *y, float floor, const float *constant,
                  real *inner, Table table, const int64_t *line) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t i = 0; i < n; i++) {
        real *mine = x + i * width, *to = inner + i * width;
        if (y) {
            const real *added = y + i * width;
            for (int64_t d = 0; d < width; d += LANES) put(mine + d, get(mine + d) + get(added + d));
            keep(table, line, i, added, width, sizeof(real));
        }
        v8 scale = all(over_norm(mine, width, floor));
        if (constant)
            for (int64_t d = 0; d < width; d += LANES) put(to + d, get(mine + d) * scale * load(constant + d));
        else
            for (int64_t d = 0; d < width; d += LANES) put(to + d, get(mine + d) * scale);
    }
}

/* gate = silu(gate) * up, both [n,width] and kept as they were. */
void gated(int threads, int64_t n, int64_t width, real *gate, const real *up, Table gates, Table ups,
           const int64_t *line) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t i = 0; i < n; i++) {
        real *g = gate + i * width;
        const real *u = up + i * width;
        keep(gates, line, i, g, width, sizeof(real));
        keep(ups, line, i, u, width, sizeof(real));
        gate_row(width, g, u, g);
    }
}

/* n stretches of keys and values [P,D] a head of the keys, that rows share; those of stretch s are
 * members[first[s]] .. members[first[s + 1] - 1]. starts and sizes: positions of their first tokens, and how many
 * they are. */
typedef struct {
    const real *keys, *values;
    int64_t n, stretch_stride, head_stride;
    const int64_t *starts, *sizes, *members, *first;
} Level;

typedef struct {
    int64_t rows, heads, kv, dim;
    const real *made;    /* queries, keys and values side by side [rows, (heads + 2 kv) dim] */
    const float *factor; /* of normed queries and keys [heads + kv, dim]; null: they are not normed */
    float floor, scaling; /* of that norm; of scores */
    const real *cos, *sin; /* [rows,dim]; the sine is signed */
    const int64_t *positions;
    int64_t window; /* tokens that a query may see, itself included; 0: all */
    real *keys, *values; /* of the rows' own tokens: [rows,kv,room,dim] */
    int64_t row_stride, head_stride, used;
    const int64_t *late; /* first slot of each row; null: 0 */
    real *queries; /* to work in [rows,heads,dim] */
    float *top, *total; /* to work in [rows,heads] */
    float *out; /* to work in [rows,heads,dim] */
    real *found; /* what attention found [rows,heads,dim] */
    Table mades, outs, sums; /* sums: logarithms of the sums of exponentials [rows,heads] */
    const int64_t *line;
} Step;

static inline void enter(const Step *s, int64_t row) {
    const real *made = s->made + row * (s->heads + 2 * s->kv) * s->dim;
    real z[WIDEST];
    keep(s->mades, s->line, row, made, (s->heads + 2 * s->kv) * s->dim, sizeof(real));
    for (int64_t h = 0; h < s->heads + s->kv; h++, made += s->dim) {
        int64_t k = h - s->heads;
        float scale = s->factor ? over_norm(made, s->dim, s->floor) : 1.0f;
        real *to = k < 0 ? s->queries + (row * s->heads + h) * s->dim
                         : s->keys + row * s->row_stride + k * s->head_stride + s->used * s->dim;
        for (int64_t d = 0; d < s->dim; d += LANES)
            put(z + d, get(made + d) * all(scale) * (s->factor ? load(s->factor + h * s->dim + d) : all(1.0f)));
        turn(s->dim, z, s->cos + row * s->dim, s->sin + row * s->dim, 1.0f, to);
    }
    for (int64_t k = 0; k < s->kv; k++, made += s->dim)
        memcpy(s->values + row * s->row_stride + k * s->head_stride + s->used * s->dim, made, s->dim * sizeof(real));
}

/* One or two queries that share a head of the keys, from `head` on, and the row's own tokens: the first of what is
 * summed up over all they see. */
INLINE void own(const Step *s, int64_t row, int64_t head, const int queries, const int64_t dim) {
    int64_t at = row * s->row_stride + head / (s->heads / s->kv) * s->head_stride;
    int64_t from = s->late ? s->late[row] : 0, place = row * s->heads + head;
    if (s->window && s->used + 1 - s->window > from) from = s->used + 1 - s->window;
    vec scores[2][KEYS / WIDE];
    float q[2 * WIDEST], top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0}, *out = s->out + place * dim;
    for (int64_t d = 0; d < queries * dim; d += WIDE) storev(q + d, getv(s->queries + place * dim + d) * s->scaling);
    memset(out, 0, queries * dim * sizeof(float));
    for (int64_t a = from; a <= s->used; a += KEYS) {
        int64_t count = s->used + 1 - a < KEYS ? s->used + 1 - a : KEYS;
        const real *keys = s->keys + at + a * dim, *values = s->values + at + a * dim;
        float before[2];
        for (int64_t j = 0; j < count; j += WIDE) {
            vec found[2][WIDE];
            for (int i = 0; i < WIDE; i++) {
                const real *key = keys + (j + i < count ? j + i : j) * dim;
                found[0][i] = found[1][i] = allv(0.0f);
                for (int64_t d = 0; d < dim; d += WIDE) {
                    vec x = getv(key + d);
                    for (int h = 0; h < queries; h++) found[h][i] += x * loadv(q + h * dim + d);
                }
            }
            for (int h = 0; h < queries; h++) {
                scores[h][j / WIDE] = sums_of(found[h]);
                for (int i = (int)(count - j); i < WIDE; i++) scores[h][j / WIDE][i] = -INFINITY;
            }
        }
        for (int h = 0; h < queries; h++) {
            vec highest = allv(top[h]), sum = allv(0.0f);
            for (int64_t j = 0; j < count; j += WIDE)
                highest = pickv(scores[h][j / WIDE] <= highest, highest, scores[h][j / WIDE]);
            float most = top[h];
            for (int i = 0; i < WIDE; i++)
                if (!(highest[i] <= most)) most = highest[i];
            for (int64_t j = 0; j < count; j += WIDE)
                sum += scores[h][j / WIDE] = expv(scores[h][j / WIDE] - allv(most));
            before[h] = exp_of(all(top[h] - most))[0];
            total[h] = total[h] * before[h] + sum_ofv(sum);
            top[h] = most;
        }
        for (int64_t d = 0; d < dim; d += 4 * WIDE) {
            int64_t wide = dim - d < 4 * WIDE ? (dim - d) / WIDE : 4;
            vec sum[2][4];
            for (int h = 0; h < queries; h++)
                for (int64_t i = 0; i < wide; i++) sum[h][i] = loadv(out + h * dim + d + i * WIDE) * before[h];
            for (int64_t j = 0; j < count; j++)
                for (int64_t i = 0; i < wide; i++) {
                    vec x = getv(values + j * dim + d + i * WIDE);
                    for (int h = 0; h < queries; h++) sum[h][i] += x * ((const float *)scores[h])[j];
                }
            for (int h = 0; h < queries; h++)
                for (int64_t i = 0; i < wide; i++) storev(out + h * dim + d + i * WIDE, sum[h][i]);
        }
    }
    for (int h = 0; h < queries; h++) {
        s->top[place + h] = top[h];
        s->total[place + h] = total[h];
    }
}

/* All queries of a row. */
INLINE void own_queries(const Step *s, int64_t row, const int64_t dim) {
    int64_t each = s->heads / s->kv;
    for (int64_t k = 0; k < s->kv; k++) {
        int64_t head = k * each, last = head + each;
        for (; head + 2 <= last; head += 2) own(s, row, head, 2, dim);
        if (head < last) own(s, row, head, 1, dim);
    }
}

static void all_own(const Step *s, int64_t row) {
    if (s->dim == 64) /* common, and faster if the compiler knows it */
        own_queries(s, row, 64);
    else
        own_queries(s, row, s->dim);
}

/* n numbers as floats, in `room` if they are none. */
static inline const float *wide(const real *x, int64_t n, float *room) {
#ifdef BFLOAT16
    for (int64_t i = 0; i < n; i += LANES) store(room + i, get(x + i));
    return room;
#else
    return x;
#endif
}

#define MET 16 /* queries at once */

/* Up to so many queries of one head of the keys, and the keys of a stretch: those from `from` on are seen. */
INLINE void meet(const Step *s, const real *keys, const real *values, int64_t size, const int64_t *place,
                 const int32_t *from, int lanes, const int64_t dim) {
    enum { vectors = MET / WIDE };
    vec q[vectors * WIDEST], scores[vectors * KEYS], top[vectors], total[vectors];
    float out[MET * WIDEST], room[sizeof(real) < sizeof(float) ? KEYS * WIDEST : 1];
    int64_t lowest = size;
    ivec begin[vectors];
    for (int l = 0; l < MET; l++) {
        int64_t at = place[l < lanes ? l : 0];
        int32_t first = from[l < lanes ? l : 0];
        for (int64_t d = 0; d < dim; d += WIDE) storev(out + l * dim + d, getv(s->queries + at * dim + d) * s->scaling);
        top[l / WIDE][l % WIDE] = s->top[at];
        total[l / WIDE][l % WIDE] = s->total[at];
        begin[l / WIDE][l % WIDE] = first;
        if (first < lowest) lowest = first;
    }
    to_lanes(out, dim, vectors, q);
    for (int l = 0; l < MET; l++)
        memcpy(out + l * dim, s->out + place[l < lanes ? l : 0] * dim, dim * sizeof(float));
    for (int64_t a = lowest; a < size; a += KEYS) {
        int64_t count = size - a < KEYS ? size - a : KEYS;
        products(q, wide(keys + a * dim, count * dim, room), count, dim, vectors, scores);
        for (int v = 0; v < vectors; v++) {
            vec highest = top[v];
            for (int64_t j = 0; j < count; j++) {
                vec *score = scores + j * vectors + v;
                if (s->window) *score = pickv(begin[v] > (int32_t)(a + j), allv(-INFINITY), *score);
                highest = pickv(*score <= highest, highest, *score);
            }
            vec before = expv(top[v] - highest);
            total[v] *= before;
            for (int64_t j = v; j < count * vectors; j += vectors) {
                scores[j] = expv(scores[j] - highest);
                total[v] += scores[j];
            }
            for (int l = v * WIDE; l < lanes && l < (v + 1) * WIDE; l++)
                for (int64_t d = 0; d < dim; d += WIDE)
                    storev(out + l * dim + d, loadv(out + l * dim + d) * before[l % WIDE]);
            top[v] = highest;
        }
        mix(scores, wide(values + a * dim, count * dim, room), count, dim, vectors, lanes, out);
    }
    for (int l = 0; l < lanes; l++) {
        memcpy(s->out + place[l] * dim, out + l * dim, dim * sizeof(float));
        s->top[place[l]] = top[l / WIDE][l % WIDE];
        s->total[place[l]] = total[l / WIDE][l % WIDE];
    }
}

static void stretch(const Step *s, const Level *level, int64_t number, int64_t k) {
    int64_t each = s->heads / s->kv, first = level->first[number], count = level->first[number + 1] - first;
    const real *keys = level->keys + number * level->stretch_stride + k * level->head_stride;
    const real *values = level->values + number * level->stretch_stride + k * level->head_stride;
    for (int64_t a = 0; a < count * each; a += MET) {
        int64_t place[MET];
        int32_t from[MET];
        int lanes = count * each - a < MET ? (int)(count * each - a) : MET;
        for (int l = 0; l < lanes; l++) {
            int64_t row = level->members[first + (a + l) / each];
            int64_t reach = s->window ? s->positions[row] + 1 - s->window - level->starts[number] : 0;
            place[l] = row * s->heads + k * each + (a + l) % each;
            from[l] = reach < 0 ? 0 : (int32_t)reach;
        }
        int64_t size = level->sizes[number];
        if (s->dim == 64)
            meet(s, keys, values, size, place, from, lanes, 64);
        else
            meet(s, keys, values, size, place, from, lanes, s->dim);
    }
}

/* Attention of one token a row, from the product of queries, keys and values on. */
void attend(int threads, const Step *s, const Level *levels, int64_t depth) {
    #pragma omp parallel num_threads(threads) if (s->rows * s->heads * s->dim > SMALL / 4)
    {
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < s->rows; row++) {
            enter(s, row);
            all_own(s, row);
        }
        for (int64_t i = 0; i < depth; i++) {
            #pragma omp for schedule(static)
            for (int64_t at = 0; at < levels[i].n * s->kv; at++) stretch(s, levels + i, at / s->kv, at % s->kv);
        }
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < s->rows; row++) {
            for (int64_t head = 0; head < s->heads; head++) {
                int64_t place = row * s->heads + head;
                v8 scale = all(1.0f / s->total[place]);
                const float *out = s->out + place * s->dim;
                for (int64_t d = 0; d < s->dim; d += LANES) put(s->found + place * s->dim + d, load(out + d) * scale);
                s->top[place] += logf(s->total[place]);
            }
            keep(s->outs, s->line, row, s->found + row * s->heads * s->dim, s->heads * s->dim, sizeof(real));
            keep(s->sums, s->line, row, s->top + row * s->heads, s->heads, sizeof(float));
        }
    }
}

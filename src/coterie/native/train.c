/* What stands between the matrix products of a training step of a Llama-family model, on a CPU, forward and
 * backward. Sums over rows are made in pieces of PIECE rows, so that they do not depend on the number of threads. */

#include "vectors.h"

#define PIECE 128
#define WIDEST 256 /* head */

/* A tensor [n,width] in lines of its stride. */
typedef struct { real *at; int64_t stride; } Lines;

/* y = x / sqrt(mean(x^2) + eps) * weight, and that factor of x: x [n,width] in lines of `stride`. Where something is
 * `added` [n,width], x is their `sum` [n,width]. */
void norm(int threads, int64_t n, int64_t width, int64_t stride, const real *x, const real *added, real *sum,
          const real *weight, float eps, real *y, float *scale) {
    float floor = sqrtf(eps * width), root = sqrtf(width);
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t i = 0; i < n; i++) {
        const real *mine = x + i * stride;
        if (added) {
            real *both = sum + i * width;
            for (int64_t d = 0; d < width; d += LANES) put(both + d, get(mine + d) + get(added + i * width + d));
            mine = both;
        }
        scale[i] = over_norm(mine, width, floor) * root;
        v8 by = all(scale[i]);
        for (int64_t d = 0; d < width; d += LANES) put(y + i * width + d, get(mine + d) * by * get(weight + d));
    }
}

/* dx of one row and `plus`, which may be null, and what the row adds to dweight, which may be null. */
static inline void norm_back(int64_t width, const real *x, const real *weight, float scale, const real *grad,
                             const real *plus, real *dx, float *dweight) {
    v8 by = all(scale), along = all(0.0f);
    for (int64_t d = 0; d < width; d += LANES) {
        v8 unit = get(x + d) * by, slope = get(grad + d);
        if (dweight) store(dweight + d, load(dweight + d) + slope * unit);
        along += slope * get(weight + d) * unit;
    }
    v8 share = all(sum_of(along) / width);
    for (int64_t d = 0; d < width; d += LANES) {
        v8 unit = get(x + d) * by;
        v8 slope = (get(grad + d) * get(weight + d) - unit * share) * by;
        put(dx + d, plus ? slope + get(plus + d) : slope);
    }
}

/* dweight [width] = the sum of what n rows gave in `pieces` [(n + PIECE - 1) / PIECE, width] */
static void sum_pieces(int64_t n, int64_t width, const float *pieces, real *dweight) {
    for (int64_t d = 0; d < width; d += LANES) {
        v8 sum = all(0.0f);
        for (int64_t piece = 0; piece < (n + PIECE - 1) / PIECE; piece++) sum += load(pieces + piece * width + d);
        put(dweight + d, sum);
    }
}

/* dx of `norm`, with `plus` where there is one, and dweight [width], made in `pieces`; null: not asked for. */
void norm_backward(int threads, int64_t n, int64_t width, Lines x, const real *weight, const float *scale, Lines grad,
                   Lines plus, Lines dx, float *pieces, real *dweight) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t piece = 0; piece < (n + PIECE - 1) / PIECE; piece++) {
        float *sum = pieces ? pieces + piece * width : NULL;
        if (sum) memset(sum, 0, width * sizeof(float));
        for (int64_t i = piece * PIECE; i < n && i < (piece + 1) * PIECE; i++)
            norm_back(width, x.at + i * x.stride, weight, scale[i], grad.at + i * grad.stride,
                      plus.at ? plus.at + i * plus.stride : NULL, dx.at + i * dx.stride, sum);
    }
    if (dweight) sum_pieces(n, width, pieces, dweight);
}

/* Heads normed (where there is a weight [dim]), turned: x [n,heads,dim] in lines of `stride`, cos and
 * sin [n,dim] -> y [n,heads,dim]; scale [n,heads]. */
void head(int threads, int64_t n, int64_t heads, int64_t dim, int64_t stride, const real *x, const real *weight,
          float eps, const real *cos, const real *sin, real *y, float *scale) {
    float floor = sqrtf(eps * dim), root = sqrtf(dim);
    #pragma omp parallel for num_threads(threads) if (n * heads * dim > SMALL)
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < heads; h++) {
            real z[WIDEST];
            const real *mine = x + i * stride + h * dim;
            float by = 1.0f;
            if (weight) by = scale[i * heads + h] = over_norm(mine, dim, floor) * root;
            for (int64_t d = 0; d < dim; d += LANES)
                put(z + d, get(mine + d) * all(by) * (weight ? get(weight + d) : all(1.0f)));
            turn(dim, z, cos + i * dim, sin + i * dim, 1.0f, y + (i * heads + h) * dim);
        }
}

/* The same backward: dx in lines of `dx_stride`; dweight [dim] as in `norm_backward`. */
void head_backward(int threads, int64_t n, int64_t heads, int64_t dim, int64_t stride, const real *x,
                   const real *weight, const float *scale, const real *cos, const real *sin,
                   const real *grad, real *dx, int64_t dx_stride, float *pieces, real *dweight) {
    #pragma omp parallel for num_threads(threads) if (n * heads * dim > SMALL)
    for (int64_t piece = 0; piece < (n + PIECE - 1) / PIECE; piece++) {
        float *sum = pieces ? pieces + piece * dim : NULL;
        real z[WIDEST];
        if (sum) memset(sum, 0, dim * sizeof(float));
        for (int64_t i = piece * PIECE; i < n && i < (piece + 1) * PIECE; i++)
            for (int64_t h = 0; h < heads; h++) {
                real *out = dx + i * dx_stride + h * dim, *to = weight ? z : out;
                turn(dim, grad + (i * heads + h) * dim, cos + i * dim, sin + i * dim, -1.0f, to);
                if (weight) norm_back(dim, x + i * stride + h * dim, weight, scale[i * heads + h], z, NULL, out, sum);
            }
    }
    if (dweight) sum_pieces(n, dim, pieces, dweight);
}

/* out = silu(gates) ups */
void gate(int threads, int64_t n, int64_t width, Lines gates, Lines ups, Lines out) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t i = 0; i < n; i++)
        gate_row(width, gates.at + i * gates.stride, ups.at + i * ups.stride, out.at + i * out.stride);
}

#define GATE_BACK(v, get, put, sigmoid, all)                                            \
    {                                                                                   \
        v g = get(gates + d), u = get(ups + d), s = get(slope + d);                     \
        v gated = sigmoid(g, all(1.0f)), active = g * gated;                            \
        put(out + d, active * u);                                                       \
        put(slope + d, s * active);                                                     \
        put(dgates + d, s * u * gated * (all(1.0f) + g * (all(1.0f) - gated)));         \
    }

static inline void gate_back_row(int64_t width, const real *gates, const real *ups, real *slope, real *out,
                                 real *dgates) {
    int64_t d = 0;
    for (; d + WIDE <= width; d += WIDE) GATE_BACK(vec, getv, putv, sigmoidv, allv)
    if (d < width) GATE_BACK(v8, get, put, sigmoid, all)
}

/* Of `gate`: its output once more, and from the output's gradient `slope`, which becomes that of ups, that of gates. */
void gate_backward(int threads, int64_t n, int64_t width, Lines gates, Lines ups, Lines slope, Lines out,
                   Lines dgates) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t i = 0; i < n; i++)
        gate_back_row(width, gates.at + i * gates.stride, ups.at + i * ups.stride, slope.at + i * slope.stride,
                      out.at + i * out.stride, dgates.at + i * dgates.stride);
}

/* What stands between the matrix products of a training step of a Llama-family model, on a CPU in float32, forward and
 * backward. Sums over rows are made in pieces of PIECE rows, so that they do not depend on the number of threads. */

#include "vectors.h"

#define PIECE 256
#define WIDEST 256 /* head */

/* y = x / sqrt(mean(x^2) + eps) * weight, and that factor of x: x [n,width] in lines of `stride`. */
void norm(int threads, int64_t n, int64_t width, int64_t stride, const float *x, const float *weight, float eps,
          float *y, float *scale) {
    float floor = sqrtf(eps * width), root = sqrtf(width);
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t i = 0; i < n; i++) {
        const float *mine = x + i * stride;
        scale[i] = over_norm(mine, width, floor) * root;
        v8 by = all(scale[i]);
        for (int64_t d = 0; d < width; d += LANES) store(y + i * width + d, load(mine + d) * by * load(weight + d));
    }
}

/* dx of one row, and what it adds to dweight, which may be null. */
static inline void norm_back(int64_t width, const float *x, const float *weight, float scale, const float *grad,
                             float *dx, float *dweight) {
    v8 by = all(scale), along = all(0.0f);
    for (int64_t d = 0; d < width; d += LANES) {
        v8 unit = load(x + d) * by, slope = load(grad + d);
        if (dweight) store(dweight + d, load(dweight + d) + slope * unit);
        along += slope * load(weight + d) * unit;
    }
    v8 share = all(sum_of(along) / width);
    for (int64_t d = 0; d < width; d += LANES) {
        v8 unit = load(x + d) * by;
        store(dx + d, (load(grad + d) * load(weight + d) - unit * share) * by);
    }
}

/* dx of `norm`, and dweight in pieces [(n + PIECE - 1) / PIECE, width], to be summed; null: not asked for. */
void norm_backward(int threads, int64_t n, int64_t width, int64_t stride, const float *x, const float *weight,
                   const float *scale, const float *grad, float *dx, float *dweight) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t piece = 0; piece < (n + PIECE - 1) / PIECE; piece++) {
        float *sum = dweight ? dweight + piece * width : NULL;
        if (sum) memset(sum, 0, width * sizeof(float));
        for (int64_t i = piece * PIECE; i < n && i < (piece + 1) * PIECE; i++)
            norm_back(width, x + i * stride, weight, scale[i], grad + i * width, dx + i * width, sum);
    }
}

/* Heads normed (where there is a weight [dim]), turned: x [n,heads,dim] in lines of `stride`, cos and
 * sin [n,dim] -> y [n,heads,dim]; scale [n,heads]. */
void head(int threads, int64_t n, int64_t heads, int64_t dim, int64_t stride, const float *x, const float *weight,
          float eps, const float *cos, const float *sin, float *y, float *scale) {
    float floor = sqrtf(eps * dim), root = sqrtf(dim), z[WIDEST];
    #pragma omp parallel for num_threads(threads) private(z) if (n * heads * dim > SMALL)
    for (int64_t i = 0; i < n; i++)
        for (int64_t h = 0; h < heads; h++) {
            const float *mine = x + i * stride + h * dim;
            float by = 1.0f;
            if (weight) by = scale[i * heads + h] = over_norm(mine, dim, floor) * root;
            for (int64_t d = 0; d < dim; d++) z[d] = mine[d] * by * (weight ? weight[d] : 1.0f);
            turn(dim, z, cos + i * dim, sin + i * dim, 1.0f, y + (i * heads + h) * dim);
        }
}

/* The same backward; dweight in pieces [(n + PIECE - 1) / PIECE, dim] or null. */
void head_backward(int threads, int64_t n, int64_t heads, int64_t dim, int64_t stride, const float *x,
                   const float *weight, const float *scale, const float *cos, const float *sin,
                   const float *grad, float *dx, float *dweight) {
    #pragma omp parallel for num_threads(threads) if (n * heads * dim > SMALL)
    for (int64_t piece = 0; piece < (n + PIECE - 1) / PIECE; piece++) {
        float *sum = dweight ? dweight + piece * dim : NULL, z[WIDEST];
        if (sum) memset(sum, 0, dim * sizeof(float));
        for (int64_t i = piece * PIECE; i < n && i < (piece + 1) * PIECE; i++)
            for (int64_t h = 0; h < heads; h++) {
                float *out = dx + (i * heads + h) * dim, *to = weight ? z : out;
                turn(dim, grad + (i * heads + h) * dim, cos + i * dim, sin + i * dim, -1.0f, to);
                if (weight) norm_back(dim, x + i * stride + h * dim, weight, scale[i * heads + h], z, out, sum);
            }
    }
}

/* out = silu(gate) up: gate and up [n,width] in lines of their strides. */
void gate(int threads, int64_t n, int64_t width, const float *gates, int64_t gate_stride, const float *ups,
          int64_t up_stride, float *out) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < width; d += LANES)
            store(out + i * width + d, silu_of(load(gates + i * gate_stride + d)) * load(ups + i * up_stride + d));
}

/* Of `gate`: its output once more, and from the output's gradient `slope`, which becomes that of ups, that of gates. */
void gate_backward(int threads, int64_t n, int64_t width, const float *gates, int64_t gate_stride, const float *ups,
                   int64_t up_stride, float *slope, float *out, float *dgates) {
    #pragma omp parallel for num_threads(threads) if (n * width > SMALL)
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < width; d += LANES) {
            v8 g = load(gates + i * gate_stride + d), u = load(ups + i * up_stride + d), s = load(slope + i * width + d);
            v8 small = exp_of(pick(g < 0, g, -g));
            v8 gated = pick(g < 0, small, all(1.0f)) / (all(1.0f) + small), active = g * gated;
            store(out + i * width + d, active * u);
            store(slope + i * width + d, s * active);
            store(dgates + i * width + d, s * u * gated * (all(1.0f) + g * (all(1.0f) - gated)));
        }
}

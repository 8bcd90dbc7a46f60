/* Queries against keys and values, a lane each. Heads are multiples of sixteen wide. */

#ifndef COTERIE_LANES_H
#define COTERIE_LANES_H

#include "vectors.h"

#define WIDEST 128 /* head */
#define INLINE static inline __attribute__((always_inline))

/* Of queries there are up to VECTORS; FEW rows are multiplied with these at once, and vectors ACROSS a row with four
 * weights, so that the sums stay in registers: 32 with AVX-512, 16 as a rule. HOLD keeps x in one: compilers would
 * rather load it for every product, and loads are what there are too few of. */
#define VECTORS 2
#if defined(__AVX512F__)
#define FEW(vectors) 8
#define ACROSS 4
#define HOLD(x) __asm__("" : "+v"(x))
#else
#define FEW(vectors) (8 / (vectors))
#define ACROSS 2
#define HOLD(x)
#endif

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

/* The first and the second half of a pack of cards that is shuffled: a and b, one of each in turn. */
#if WIDE == 16
#define FIRST(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define SECOND(a, b) __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#else
#define FIRST(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define SECOND(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#endif

/* Rows and columns of WIDE vectors exchanged. */
static inline void exchange(vec *x) {
#ifdef SHUFFLES
    vec y[WIDE];
    for (int round = 1; round < WIDE; round *= 2) {
        for (int i = 0; i < WIDE / 2; i++) {
            y[2 * i] = FIRST(x[i], x[i + WIDE / 2]);
            y[2 * i + 1] = SECOND(x[i], x[i + WIDE / 2]);
        }
        for (int i = 0; i < WIDE; i++) x[i] = y[i];
    }
#else
    for (int i = 0; i < WIDE; i++)
        for (int j = 0; j < i; j++) {
            float was = x[i][j];
            x[i][j] = x[j][i];
            x[j][i] = was;
        }
#endif
}

/* The sum of each of WIDE vectors, which are overwritten. */
static inline vec sums_of(vec *x) {
#ifdef SHUFFLES
    for (int half = WIDE / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] = FIRST(x[i], x[i + half]) + SECOND(x[i], x[i + half]);
    return x[0];
#else
    vec sum;
    for (int i = 0; i < WIDE; i++) sum[i] = sum_ofv(x[i]);
    return sum;
#endif
}

/* to[d][v] = the d-th of each row, a lane each: rows [WIDE vectors,dim] */
INLINE void to_lanes(const float *rows, const int64_t dim, const int vectors, vec *to) {
    vec some[WIDE];
    for (int v = 0; v < vectors; v++)
        for (int64_t d = 0; d < dim; d += WIDE) {
            for (int l = 0; l < WIDE; l++) some[l] = loadv(rows + (v * WIDE + l) * dim + d);
            exchange(some);
            for (int i = 0; i < WIDE; i++) to[(d + i) * vectors + v] = some[i];
        }
}

/* result[j][v] = the products of lanes x [dim][vectors] with a few rows y */
INLINE void few_products(const vec *x, const float *y, const int few, const int64_t dim, const int vectors,
                         vec *result) {
    vec sum[8][VECTORS] = {0};
    for (int64_t d = 0; d < dim; d++)
        for (int i = 0; i < few; i++)
            for (int v = 0; v < vectors; v++) sum[i][v] += x[d * vectors + v] * y[i * dim + d];
    for (int i = 0; i < few; i++)
        for (int v = 0; v < vectors; v++) result[i * vectors + v] = sum[i][v];
}

/* The same with rows y [count,dim] */
INLINE void products(const vec *x, const float *y, int64_t count, const int64_t dim, const int vectors, vec *result) {
    const int few = FEW(vectors);
    int64_t j = 0;
    for (; j + few <= count; j += few) few_products(x, y + j * dim, few, dim, vectors, result + j * vectors);
    for (; j < count; j++) few_products(x, y + j * dim, 1, dim, vectors, result + j * vectors);
}

/* to[i] += sum over j of weights[j step + i apart] y[j], of four i or `some` of them: y [count,dim], to [4,dim], of
 * which `wide` vectors are computed. */
INLINE void four_mixed(const float *weights, const int64_t step, const int64_t apart, const float *y, int64_t count,
                       const int64_t dim, const int wide, int64_t some, float *to) {
    vec sum[4][ACROSS] = {0};
    for (int64_t j = 0; j < count; j++) {
        vec a[ACROSS];
        for (int k = 0; k < wide; k++) {
            a[k] = loadv(y + j * dim + k * WIDE);
            HOLD(a[k]);
        }
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < wide; k++) sum[i][k] += a[k] * weights[j * step + i * apart];
    }
    for (int64_t i = 0; i < some; i++)
        for (int k = 0; k < wide; k++) storev(to + i * dim + k * WIDE, loadv(to + i * dim + k * WIDE) + sum[i][k]);
}

INLINE void mixed(const float *weights, const int64_t step, const int64_t apart, const float *y, int64_t count,
                  const int64_t dim, int64_t some, float *to) {
    int64_t d = 0;
    for (; d + ACROSS * WIDE <= dim; d += ACROSS * WIDE)
        four_mixed(weights, step, apart, y + d, count, dim, ACROSS, some, to + d);
    if (ACROSS > 2 && d + 2 * WIDE <= dim) {
        four_mixed(weights, step, apart, y + d, count, dim, 2, some, to + d);
        d += 2 * WIDE;
    }
    for (; d < dim; d += WIDE) four_mixed(weights, step, apart, y + d, count, dim, 1, some, to + d);
}

/* rows[l] += sum over j of weights[j][l] y[j], of the first lanes, in fours: y [count,dim], rows [WIDE vectors,dim] */
INLINE void mix(const vec *weights, const float *y, int64_t count, const int64_t dim, const int vectors, int lanes,
                float *rows) {
    for (int l = 0; l < lanes; l += 4)
        mixed((const float *)weights + l, vectors * WIDE, 1, y, count, dim, 4, rows + l * dim);
}

/* y[j] += sum over l of weights[j][l] rows[l]: y [count,dim], weights of as many keys and up to three more */
INLINE void spread(const vec *weights, const float *rows, int64_t count, const int64_t dim, const int vectors,
                   float *y) {
    for (int64_t j = 0; j < count; j += 4)
        mixed((const float *)(weights + j * vectors), 1, vectors * WIDE, rows, vectors * WIDE, dim,
              count - j < 4 ? count - j : 4, y + j * dim);
}

#endif

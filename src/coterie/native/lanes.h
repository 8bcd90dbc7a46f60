/* Sixteen queries at once, a lane each, against keys and values. Heads are multiples of sixteen wide. */

#ifndef COTERIE_LANES_H
#define COTERIE_LANES_H

#include "vectors.h"

#define WIDE 16
#define WIDEST 128 /* head */
#define INLINE static inline __attribute__((always_inline))

/* Keep x in a register: compilers would rather load it for every product, and loads are what there are too few of. */
#if defined(__AVX512F__)
#define HOLD(x) __asm__("" : "+v"(x))
#else
#define HOLD(x)
#endif

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

/* Rows and columns of sixteen vectors exchanged: four times they are shuffled as two halves of a pack of cards. */
static inline void exchange(v16 *x) {
#ifdef SHUFFLES
    v16 y[WIDE];
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            y[2 * i] = __builtin_shufflevector(x[i], x[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                                   15, 31);
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

/* to[d] = the d-th of each row, a lane each: rows [16][WIDEST] */
INLINE void to_lanes(float (*rows)[WIDEST], const int64_t dim, v16 *to) {
    for (int64_t d = 0; d < dim; d += WIDE) {
        for (int l = 0; l < WIDE; l++) to[d + l] = load16(rows[l] + d);
        exchange(to + d);
    }
}

/* result[j] = the products of lanes x with rows y [count,dim] */
INLINE void products(const v16 *x, const float *y, int64_t count, const int64_t dim, v16 *result) {
    int64_t j = 0;
    for (; j + 8 <= count; j += 8) {
        v16 sum[8] = {0};
        for (int64_t d = 0; d < dim; d++)
            for (int i = 0; i < 8; i++) sum[i] += x[d] * y[(j + i) * dim + d];
        for (int i = 0; i < 8; i++) result[j + i] = sum[i];
    }
    for (; j < count; j++) {
        v16 sum = all16(0.0f);
        for (int64_t d = 0; d < dim; d++) sum += x[d] * y[j * dim + d];
        result[j] = sum;
    }
}

/* rows[l] += sum over j of weights[j][l] y[j], of the first lanes: y [count,dim], rows [16][WIDEST] */
INLINE void mix(const v16 *weights, const float *y, int64_t count, const int64_t dim, int lanes,
                float (*rows)[WIDEST]) {
    const float *w = (const float *)weights;
    for (int l = 0; l < lanes; l += 4)
        for (int64_t d = 0; d < dim; d += 32) {
            int both = d + 16 < dim;
            v16 sum[4][2];
            for (int i = 0; i < 4; i++) {
                sum[i][0] = load16(rows[l + i] + d);
                sum[i][1] = both ? load16(rows[l + i] + d + 16) : sum[i][0];
            }
            for (int64_t j = 0; j < count; j++) {
                v16 a = load16(y + j * dim + d), b = both ? load16(y + j * dim + d + 16) : a;
                HOLD(a);
                HOLD(b);
                for (int i = 0; i < 4; i++) {
                    sum[i][0] += a * w[j * WIDE + l + i];
                    sum[i][1] += b * w[j * WIDE + l + i];
                }
            }
            for (int i = 0; i < 4; i++) {
                store16(rows[l + i] + d, sum[i][0]);
                if (both) store16(rows[l + i] + d + 16, sum[i][1]);
            }
        }
}

#endif

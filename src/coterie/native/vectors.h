/* Vectors of eight floats, GCC's and clang's, on any processor; and what the other files share. Widths are multiples of
 * eight.
 *
 * Tensors hold `real`s: floats or, with BFLOAT16, their upper halves, rounded to the nearest and to even. All is computed
 * in floats. */

#ifndef COTERIE_VECTORS_H
#define COTERIE_VECTORS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define SMALL 16384 /* floats that are not worth waking a thread for */

typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32)));

static inline v8 load(const float *p) { return *(const v8u *)p; }
static inline void store(float *p, v8 x) { *(v8u *)p = x; }
static inline v8 all(float x) { return (v8){x, x, x, x, x, x, x, x}; }
static inline v8 pick(i8 which, v8 a, v8 b) { return (v8)((which & (i8)a) | (~which & (i8)b)); }

#ifdef BFLOAT16
typedef uint16_t real;
typedef uint16_t h8 __attribute__((vector_size(16)));
typedef uint16_t h8u __attribute__((vector_size(16), aligned(2)));
typedef uint32_t u8 __attribute__((vector_size(32)));

static inline float get1(const real *p) {
    uint32_t bits = (uint32_t)*p << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline void put1(real *p, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof x);
    *p = x != x ? 0x7fc0 : (real)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline v8 get(const real *p) { return (v8)(__builtin_convertvector(*(const h8u *)p, u8) << 16); }

static inline void put(real *p, v8 x) {
    u8 bits = (u8)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, none = (u8)(x != x);
    *(h8u *)p = __builtin_convertvector((rounded & ~none) | (0x7fc0 & none), h8);
}
#else
typedef float real;
static inline float get1(const real *p) { return *p; }
static inline void put1(real *p, float x) { *p = x; }
static inline v8 get(const real *p) { return load(p); }
static inline void put(real *p, v8 x) { store(p, x); }
#endif

static inline float sum_of(v8 x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* exp(x) to about an ulp, of x <= 0; below -87 it is 0, and what is not a number stays that. For vectors of any width:
 * floats `v`, integers `i` of as many lanes. */
#define EXP(name, v, i, all, pick)                                                  \
    static inline v name(v x) {                                                     \
        v bounded = pick(x < all(-87.0f), all(-87.0f), x);                          \
        i power = __builtin_convertvector(bounded * all(1.44269504f) - all(0.5f), i); \
        v n = __builtin_convertvector(power, v);                                    \
        v r = (bounded - n * all(0.693145752f)) - n * all(1.42860677e-6f);          \
        v p = all(1.9875691500e-4f);                                                \
        p = p * r + all(1.3981999507e-3f);                                          \
        p = p * r + all(8.3334519073e-3f);                                          \
        p = p * r + all(4.1665795894e-2f);                                          \
        p = p * r + all(1.6666665459e-1f);                                          \
        p = p * r + all(5.0000001201e-1f);                                          \
        p = p * r * r + r + all(1.0f);                                              \
        p *= (v)((power + 127) << 23);                                              \
        p = pick(x < all(-87.0f), all(0.0f), p);                                    \
        return pick(x == x, p, x);                                                  \
    }
EXP(exp_of, v8, i8, all, pick)

static inline v8 silu_of(v8 x) {
    v8 small = exp_of(pick(x < 0, x, -x)); /* exp(-|x|) */
    return x * pick(x < 0, small, all(1.0f)) / (all(1.0f) + small);
}

/* 1 / sqrt(|x|^2 + floor^2) */
static inline float over_norm(const real *x, int64_t width, float floor) {
    v8 total = all(0.0f);
    for (int64_t d = 0; d < width; d += LANES) { v8 y = get(x + d); total += y * y; }
    return 1.0f / sqrtf(sum_of(total) + floor * floor);
}

/* Rotary positions: y = x cos + halves of x, exchanged, sin. The sine is signed; `sign` -1 turns back. */
static inline void turn(int64_t dim, const real *x, const real *cos, const real *sin, float sign, real *y) {
    int64_t half = dim / 2;
    for (int64_t d = 0; d < half; d++) {
        float a = get1(x + d), b = get1(x + d + half);
        put1(y + d, a * get1(cos + d) + sign * b * get1(sin + d));
        put1(y + d + half, b * get1(cos + d + half) + sign * a * get1(sin + d + half));
    }
}

#endif

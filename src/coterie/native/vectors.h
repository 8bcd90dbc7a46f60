/* Vectors of eight and of sixteen floats, GCC's and clang's, on any processor; and what the other files share. Widths
 * are multiples of eight, or of sixteen.
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
typedef float v16 __attribute__((vector_size(64)));
typedef float v16u __attribute__((vector_size(64), aligned(4)));
typedef int32_t i16 __attribute__((vector_size(64)));

static inline v8 load(const float *p) { return *(const v8u *)p; }
static inline void store(float *p, v8 x) { *(v8u *)p = x; }
static inline v8 all(float x) { return (v8){x, x, x, x, x, x, x, x}; }
static inline v8 pick(i8 which, v8 a, v8 b) { return (v8)((which & (i8)a) | (~which & (i8)b)); }
static inline v16 load16(const float *p) { return *(const v16u *)p; }
static inline void store16(float *p, v16 x) { *(v16u *)p = x; }
static inline v16 all16(float x) { return (v16){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline v16 pick16(i16 which, v16 a, v16 b) { return (v16)((which & (i16)a) | (~which & (i16)b)); }

#ifdef BFLOAT16
typedef uint16_t real;
typedef uint16_t h8 __attribute__((vector_size(16)));
typedef uint16_t h8u __attribute__((vector_size(16), aligned(2)));
typedef uint32_t u8 __attribute__((vector_size(32)));
typedef uint16_t h16 __attribute__((vector_size(32)));
typedef uint16_t h16u __attribute__((vector_size(32), aligned(2)));
typedef uint32_t u16 __attribute__((vector_size(64)));

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

/* From memory that holds `real`s, and to it: eight or sixteen. */
#define GET_AND_PUT(get, put, v, u, h, hu)                                                               \
    static inline v get(const real *p) { return (v)(__builtin_convertvector(*(const hu *)p, u) << 16); } \
    static inline void put(real *p, v x) {                                                               \
        u bits = (u)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, none = (u)(x != x);           \
        *(hu *)p = __builtin_convertvector((rounded & ~none) | (0x7fc0 & none), h);                      \
    }
GET_AND_PUT(get, put, v8, u8, h8, h8u)
GET_AND_PUT(get16, put16, v16, u16, h16, h16u)
#else
typedef float real;
static inline float get1(const real *p) { return *p; }
static inline void put1(real *p, float x) { *p = x; }
static inline v8 get(const real *p) { return load(p); }
static inline void put(real *p, v8 x) { store(p, x); }
static inline v16 get16(const real *p) { return load16(p); }
static inline void put16(real *p, v16 x) { store16(p, x); }
#endif

static inline float sum_of(v8 x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

static inline float sum_of16(v16 x) {
    v8 low, high;
    memcpy(&low, &x, sizeof low);
    memcpy(&high, (const char *)&x + sizeof low, sizeof high);
    return sum_of(low + high);
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
EXP(exp16, v16, i16, all16, pick16)

/* y / (1 + exp(-x)) */
#define SIGMOID(name, v, exp, all, pick)                                \
    static inline v name(v x, v y) {                                    \
        v small = exp(pick(x < 0, x, -x)); /* exp(-|x|) */              \
        return y * pick(x < 0, small, all(1.0f)) / (all(1.0f) + small); \
    }
SIGMOID(sigmoid, v8, exp_of, all, pick)
SIGMOID(sigmoid16, v16, exp16, all16, pick16)

/* out = silu(g) u */
static inline void gate_row(int64_t width, const real *g, const real *u, real *out) {
    int64_t d = 0;
    for (; d + 16 <= width; d += 16) {
        v16 x = get16(g + d);
        put16(out + d, sigmoid16(x, x) * get16(u + d));
    }
    if (d < width) {
        v8 x = get(g + d);
        put(out + d, sigmoid(x, x) * get(u + d));
    }
}

/* 1 / sqrt(|x|^2 + floor^2) */
static inline float over_norm(const real *x, int64_t width, float floor) {
    v8 total = all(0.0f);
    for (int64_t d = 0; d < width; d += LANES) { v8 y = get(x + d); total += y * y; }
    return 1.0f / sqrtf(sum_of(total) + floor * floor);
}

/* Rotary positions: y = x cos + halves of x, exchanged, sin. The sine is signed; `sign` -1 turns back. */
static inline void turn(int64_t dim, const real *x, const real *cos, const real *sin, float sign, real *y) {
    int64_t half = dim / 2, d = 0;
    v8 way = all(sign);
    for (; d + LANES <= half; d += LANES) {
        v8 a = get(x + d), b = get(x + d + half);
        put(y + d, a * get(cos + d) + way * b * get(sin + d));
        put(y + d + half, b * get(cos + d + half) + way * a * get(sin + d + half));
    }
    for (; d < half; d++) {
        float a = get1(x + d), b = get1(x + d + half);
        put1(y + d, a * get1(cos + d) + sign * b * get1(sin + d));
        put1(y + d + half, b * get1(cos + d + half) + sign * a * get1(sin + d + half));
    }
}

#endif

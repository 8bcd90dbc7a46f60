/* Vectors of eight floats (v8) and of WIDE, as many as the processor has (vec: sixteen or eight), GCC's and clang's;
 * and what the other files share. Widths are multiples of eight, or of sixteen.
 *
 * Tensors hold `real`s: floats or, with BFLOAT16, their upper halves, rounded to the nearest and to even. All is
 * computed in floats. */

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

/* Not wider than the processor's: GCC takes such vectors apart, and is many times as slow then. */
#if defined(__AVX512F__)
#define WIDE 16
typedef float vec __attribute__((vector_size(64)));
typedef float vecu __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64)));

static inline vec loadv(const float *p) { return *(const vecu *)p; }
static inline void storev(float *p, vec x) { *(vecu *)p = x; }
static inline vec allv(float x) { return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline vec pickv(ivec which, vec a, vec b) { return (vec)((which & (ivec)a) | (~which & (ivec)b)); }
#else
#define WIDE 8
typedef v8 vec;
typedef i8 ivec;
#define loadv load
#define storev store
#define allv all
#define pickv pick
#endif

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

/* From memory that holds `real`s, and to it: eight or sixteen. */
#define GET_AND_PUT(get, put, v, u, h, hu)                                                               \
    static inline v get(const real *p) { return (v)(__builtin_convertvector(*(const hu *)p, u) << 16); } \
    static inline void put(real *p, v x) {                                                               \
        u bits = (u)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, none = (u)(x != x);           \
        *(hu *)p = __builtin_convertvector((rounded & ~none) | (0x7fc0 & none), h);                      \
    }
GET_AND_PUT(get, put, v8, u8, h8, h8u)
#if WIDE == 16
typedef uint16_t hvec __attribute__((vector_size(32)));
typedef uint16_t hvecu __attribute__((vector_size(32), aligned(2)));
typedef uint32_t uvec __attribute__((vector_size(64)));
GET_AND_PUT(getv, putv, vec, uvec, hvec, hvecu)
#endif
#else
typedef float real;
static inline float get1(const real *p) { return *p; }
static inline void put1(real *p, float x) { *p = x; }
static inline v8 get(const real *p) { return load(p); }
static inline void put(real *p, v8 x) { store(p, x); }
#if WIDE == 16
static inline vec getv(const real *p) { return loadv(p); }
static inline void putv(real *p, vec x) { storev(p, x); }
#endif
#endif
#if WIDE == 8
#define getv get
#define putv put
#endif

static inline float sum_of(v8 x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

static inline float sum_ofv(vec x) {
#if WIDE == 16
    v8 low, high;
    memcpy(&low, &x, sizeof low);
    memcpy(&high, (const char *)&x + sizeof low, sizeof high);
    return sum_of(low + high);
#else
    return sum_of(x);
#endif
}

/* exp(x) to about an ulp, of x <= 0; about where it leaves the normal numbers it is 0, and what is not a number stays
 * that. For vectors of any width: floats `v`, integers `i` of as many lanes. */
#define EXP(name, v, i, all, pick)                                                    \
    static inline v name(v x) {                                                       \
        v bounded = pick(x < all(-88.0f), all(-88.0f), x); /* its power is -127 */    \
        i power = __builtin_convertvector(bounded * all(1.44269504f) - all(0.5f), i); \
        v n = __builtin_convertvector(power, v);                                      \
        v r = (bounded - n * all(0.693145752f)) - n * all(1.42860677e-6f);            \
        v p = all(1.9875691500e-4f);                                                  \
        p = p * r + all(1.3981999507e-3f);                                            \
        p = p * r + all(8.3334519073e-3f);                                            \
        p = p * r + all(4.1665795894e-2f);                                            \
        p = p * r + all(1.6666665459e-1f);                                            \
        p = p * r + all(5.0000001201e-1f);                                            \
        p = p * r * r + r + all(1.0f);                                                \
        return p * (v)((power + 127) << 23);                                          \
    }
EXP(exp_of, v8, i8, all, pick)
#if WIDE == 16
EXP(expv, vec, ivec, allv, pickv)
#else
#define expv exp_of
#endif

/* y / (1 + exp(-x)) */
#define SIGMOID(name, v, exp, all, pick)                                \
    static inline v name(v x, v y) {                                    \
        v small = exp(pick(x < 0, x, -x)); /* exp(-|x|) */              \
        return y * pick(x < 0, small, all(1.0f)) / (all(1.0f) + small); \
    }
SIGMOID(sigmoid, v8, exp_of, all, pick)
#if WIDE == 16
SIGMOID(sigmoidv, vec, expv, allv, pickv)
#else
#define sigmoidv sigmoid
#endif

/* out = silu(g) u */
static inline void gate_row(int64_t width, const real *g, const real *u, real *out) {
    int64_t d = 0;
    for (; d + WIDE <= width; d += WIDE) {
        vec x = getv(g + d);
        putv(out + d, sigmoidv(x, x) * getv(u + d));
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

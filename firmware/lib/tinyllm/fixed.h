/*
 * Fixed-point arithmetic: docs/NUMERICS.md sections 1 and 2. Every rounding of the engine is
 * tllm_rsr, and every right shift of a value that may be negative is tllm_asr.
 */
#ifndef TLLM_FIXED_H
#define TLLM_FIXED_H

#include <stdbool.h>
#include <stdint.h>

#define TLLM_ZERO_EXP (-1024)   /* the exponent of an all-zero vector */
#define TLLM_LOG2E_M  12102203u /* log2(e) = 1.4426950408889634 = TLLM_LOG2E_M * 2^TLLM_LOG2E_E */
#define TLLM_LOG2E_E  (-23)

_Static_assert((-3 >> 1) == -2, "the compiler must shift negative numbers arithmetically");

/* floor(v / 2^n), 0 <= n <= 63. */
static inline int64_t tllm_asr(int64_t v, uint32_t n) {
    return v >> n;
}

/* v / 2^n to the nearest, ties towards plus infinity, for every v; 0 from n = 63 on. */
static inline int64_t tllm_rsr(int64_t v, uint32_t n) {
    if (n == 0)
        return v;
    if (n > 62)
        return 0;
    return tllm_asr(v, n) + (tllm_asr(v, n - 1) & 1);
}

/* |v|, also of -2^31. */
static inline uint32_t tllm_abs32(int32_t v) {
    return v < 0 ? 0u - (uint32_t)v : (uint32_t)v;
}

/* The bit length of v: 0 for 0, 32 from 2^31 on. */
static inline uint32_t tllm_bits32(uint32_t v) {
    uint32_t n = 0;
    for (uint32_t step = 16; step > 0; step /= 2)
        if (v >> step != 0) {
            v >>= step;
            n += step;
        }
    return n + v;
}

static inline uint32_t tllm_bits64(uint64_t v) {
    uint32_t high = (uint32_t)(v >> 32);
    return high != 0 ? 32 + tllm_bits32(high) : tllm_bits32((uint32_t)v);
}

/* v clamped to +-(2^31 - 1). */
static inline int32_t tllm_sat32(int64_t v) {
    if (v > INT32_MAX)
        return INT32_MAX;
    return v < -INT32_MAX ? -INT32_MAX : (int32_t)v;
}

/* v * 2^s, rounded once and saturated. */
int32_t tllm_scale_by(int64_t v, int32_t s);

/*
 * Brings mantissas to |v| <= 2^29 with the greatest at least 2^28, in place. Returns the exponent
 * that replaces e.
 */
int32_t tllm_norm32(int32_t *v, uint32_t n, int32_t e);

/* The same values as int16 mantissas, |out| <= 32767. Returns their exponent. */
int32_t tllm_to16(const int32_t *v, uint32_t n, int32_t e, int16_t *out);

/* 2^(-d) as Q30, 0..2^30, of d in Q16. */
int32_t tllm_exp2n(uint32_t d);

/* Sine and cosine as Q30, -2^30..2^30, of a phase in turns as Q32. */
void tllm_sincos(uint32_t phase, int32_t *sine, int32_t *cosine);

/* floor(sqrt(v)). */
uint32_t tllm_isqrt(uint64_t v);

#endif

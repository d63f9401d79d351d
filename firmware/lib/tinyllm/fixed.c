#include "fixed.h"

#include "tables.h"

int32_t tllm_scale_by(int64_t v, int32_t s) {
    if (s <= 0)
        return tllm_sat32(tllm_rsr(v, s < -63 ? 63 : (uint32_t)-s));
    int64_t limit = s > 30 ? 0 : INT32_MAX >> s; /* the greatest v that does not saturate */
    if (v > limit)
        return INT32_MAX;
    if (v < -limit)
        return -INT32_MAX;
    return s > 30 ? 0 : (int32_t)(v * ((int64_t)1 << s));
}

/* The bit length of the greatest |v|: that of all of them or-ed together. */
static uint32_t bits_of_greatest(const int32_t *v, uint32_t n) {
    uint32_t all = 0;
    for (uint32_t i = 0; i < n; i++)
        all |= tllm_abs32(v[i]);
    return tllm_bits32(all);
}

int32_t tllm_norm32(int32_t *v, uint32_t n, int32_t e) {
    uint32_t bits = bits_of_greatest(v, n);
    if (bits == 0)
        return TLLM_ZERO_EXP;
    int32_t k = (int32_t)bits - 29;
    if (k > 0)
        for (uint32_t i = 0; i < n; i++)
            v[i] = (int32_t)tllm_rsr(v[i], (uint32_t)k);
    if (k < 0) {
        int32_t factor = (int32_t)1 << -k;
        for (uint32_t i = 0; i < n; i++)
            v[i] *= factor;
    }
    return e + k;
}

int32_t tllm_to16(const int32_t *v, uint32_t n, int32_t e, int16_t *out) {
    uint32_t bits = bits_of_greatest(v, n);
    int32_t k = (int32_t)bits - 15;
    int32_t factor = k < 0 ? (int32_t)1 << -k : 1;
    uint32_t shift = k < 0 ? 0 : (uint32_t)k;
    for (uint32_t i = 0; i < n; i++) {
        int64_t m = tllm_rsr((int64_t)v[i] * factor, shift);
        out[i] = (int16_t)(m > INT16_MAX ? INT16_MAX : m < -INT16_MAX ? -INT16_MAX : m);
    }
    return bits == 0 ? TLLM_ZERO_EXP : e + k;
}

int32_t tllm_exp2n(uint32_t d) {
    uint32_t whole = d >> 16;
    if (whole >= 31)
        return 0;
    uint32_t i = (d >> 8) & 255, rest = d & 255;
    int64_t step = tllm_exp2n_table[i] - tllm_exp2n_table[i + 1];
    return (int32_t)tllm_rsr(tllm_exp2n_table[i] - tllm_rsr(step * rest, 8), whole);
}

/* sin(pi/2 * u / 2^30), 0 <= u <= 2^30. */
static int32_t quarter_sine(uint32_t u) {
    uint32_t i = u >> 21, rest = u & ((1u << 21) - 1);
    if (i == 512)
        return tllm_sin_table[512];
    int64_t step = tllm_sin_table[i + 1] - tllm_sin_table[i];
    return (int32_t)(tllm_sin_table[i] + tllm_rsr(step * rest, 21));
}

static int32_t sine_of(uint32_t phase) {
    uint32_t quadrant = phase >> 30, u = phase & ((1u << 30) - 1);
    int32_t s = quarter_sine(quadrant & 1 ? (1u << 30) - u : u);
    return quadrant & 2 ? -s : s;
}

void tllm_sincos(uint32_t phase, int32_t *sine, int32_t *cosine) {
    *sine = sine_of(phase);
    *cosine = sine_of(phase + (1u << 30));
}

uint32_t tllm_isqrt(uint64_t v) {
    uint64_t root = 0;
    for (uint64_t bit = (uint64_t)1 << 62; bit > 0; bit >>= 2)
        if (v >= root + bit) {
            v -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    return (uint32_t)root;
}

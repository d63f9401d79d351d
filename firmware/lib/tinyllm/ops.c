#include "ops.h"

#include "fixed.h"
#include "kernels.h"

/* v * 2^k with k the greatest even number for which it is below 2^62; v is in 1..2^62 - 1. */
static uint64_t to_62_bits(uint64_t v, int32_t *k) {
    *k = (int32_t)((62 - tllm_bits64(v)) & ~1u);
    return v << *k;
}

/* 1 / sqrt(mean + eps) as I * 2^(*e - 61), 2^30 < I <= 2^31, where a's exponent is a_e. */
static int64_t inverse_rms(const struct tllm_rms_norm *norm, uint64_t sum_of_squares, int32_t a_e,
                           int32_t *e) {
    int32_t k, k2;
    uint64_t mean = to_62_bits(to_62_bits(sum_of_squares, &k) / norm->n, &k2);
    int32_t mean_e = 2 * a_e - k - k2, p = mean_e;
    if (norm->eps_m != 0) {
        uint64_t eps = (uint64_t)norm->eps_m << 30;
        int32_t eps_e = norm->eps_e - 30;
        p = eps_e > p ? eps_e : p;
        mean = (p - mean_e > 62 ? 0 : mean >> (p - mean_e)) +
               (p - eps_e > 62 ? 0 : eps >> (p - eps_e));
    }
    if (mean >> 62 != 0) {
        mean >>= 2;
        p += 2;
    }
    *e = -p / 2; /* p is even */
    return (int64_t)(((uint64_t)1 << 61) / tllm_isqrt(mean));
}

int32_t tllm_rms_norm(const struct tllm_rms_norm *norm, const int32_t *r, int32_t r_e,
                      int32_t *scratch, int16_t *out) {
    uint64_t sum = 0; /* n * 2^46 <= 2^61 */
    for (uint32_t i = 0; i < norm->n; i++) {
        int64_t a = tllm_rsr(r[i], 6);
        sum += (uint64_t)(a * a);
        scratch[i] = (int32_t)a;
    }
    int32_t e = 0;
    int64_t inverse = sum == 0 ? 0 : inverse_rms(norm, sum, r_e + 6, &e);
    for (uint32_t i = 0; i < norm->n; i++) {
        int64_t t = tllm_rsr(scratch[i] * inverse, 24); /* |t| <= 2^30 */
        scratch[i] = (int32_t)tllm_rsr(t * norm->g[i], 15);
    }
    return tllm_to16(scratch, norm->n, r_e + 6 + 24 - 61 + e + 15 + norm->g_e, out);
}

int32_t tllm_add(int32_t *a, int32_t a_e, const int32_t *b, int32_t b_e, uint32_t n) {
    int32_t e = a_e > b_e ? a_e : b_e;
    for (uint32_t i = 0; i < n; i++)
        a[i] = (int32_t)(tllm_rsr(a[i], (uint32_t)(e - a_e)) + tllm_rsr(b[i], (uint32_t)(e - b_e)));
    return tllm_norm32(a, n, e);
}

void tllm_rope(int32_t *v, uint32_t heads, uint32_t d, uint32_t pos, const uint32_t *freq) {
    for (uint32_t i = 0; i < d / 2; i++) {
        int32_t s, c;
        tllm_sincos(pos * freq[i], &s, &c);
        for (int32_t *head = v; head < v + (size_t)heads * d; head += d) {
            int64_t x = head[i], y = head[i + d / 2];
            head[i] = (int32_t)tllm_rsr(x * c - y * s, 30);
            head[i + d / 2] = (int32_t)tllm_rsr(y * c + x * s, 30);
        }
    }
}

/* The scores z (log2 units, Q16) of all positions; returns the greatest. */
static int32_t score(const struct tllm_attention *at, int32_t *z) {
    int32_t greatest = INT32_MIN;
    for (uint32_t t = 0; t <= at->pos; t++) {
        int64_t dot = tllm_dot16(at->q, at->k + (size_t)t * at->stride, at->d);
        z[t] = tllm_scale_by(dot * at->scale.m, at->q_e + at->k_e[t] + at->scale.e + 16);
        greatest = z[t] > greatest ? z[t] : greatest;
    }
    return greatest;
}

int32_t tllm_attend(const struct tllm_attention *at, int32_t *scores, int64_t *sums, int32_t *y) {
    int32_t greatest = score(at, scores), e = at->v_e[0];
    for (uint32_t t = 1; t <= at->pos; t++)
        e = at->v_e[t] > e ? at->v_e[t] : e;
    for (uint32_t j = 0; j < at->d; j++)
        sums[j] = 0;
    uint64_t total = 0; /* 2^30..2^46 */
    for (uint32_t t = 0; t <= at->pos; t++) {
        int32_t p = tllm_exp2n((uint32_t)greatest - (uint32_t)scores[t]);
        int64_t weight = tllm_rsr(p, (uint32_t)(e - at->v_e[t]));
        total += (uint64_t)p;
        if (weight == 0)
            continue;
        const int16_t *v = at->v + (size_t)t * at->stride;
        for (uint32_t j = 0; j < at->d; j++)
            sums[j] += weight * v[j]; /* |sum| <= 2^46 * 2^15 */
    }
    uint32_t shift = tllm_bits64(total) - 31;
    int64_t inverse = (int64_t)(((uint64_t)1 << 61) / (total >> shift)); /* at most 2^31 */
    for (uint32_t j = 0; j < at->d; j++)
        y[j] = (int32_t)tllm_rsr(tllm_rsr(sums[j], shift + 15) * inverse, 32);
    return e - 14;
}

/* 1 / (1 + 2^(-z)) of z (log2 units, Q16), as Q30. */
static int32_t sigmoid(int32_t z) {
    int64_t t = tllm_exp2n(tllm_abs32(z));
    int64_t s = 0xFFFFFFFF / (uint32_t)tllm_rsr(((int64_t)1 << 30) + t, 14); /* Q16, <= 65535 */
    return (int32_t)(z >= 0 ? s << 14 : tllm_rsr(s * t, 16));
}

int32_t tllm_swiglu(int32_t *g, int32_t g_e, const int32_t *u, int32_t u_e, uint32_t n,
                    int16_t *out) {
    for (uint32_t i = 0; i < n; i++) {
        int32_t z = tllm_scale_by((int64_t)g[i] * TLLM_LOG2E_M, g_e + TLLM_LOG2E_E + 16);
        g[i] = (int32_t)tllm_rsr((int64_t)g[i] * sigmoid(z), 30);
    }
    g_e = tllm_norm32(g, n, g_e);
    for (uint32_t i = 0; i < n; i++)
        g[i] = (int32_t)tllm_rsr((int64_t)g[i] * u[i], 29);
    return tllm_to16(g, n, g_e + u_e + 29, out);
}

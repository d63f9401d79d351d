/*
 * The operations of docs/NUMERICS.md section 3 on whole vectors, but for matvec. A BFP32 vector is
 * int32 mantissas of at most 2^29 and an exponent, a BFP16 vector int16 mantissas of at most 32767
 * and an exponent; functions return the exponent of what they write.
 */
#ifndef TLLM_OPS_H
#define TLLM_OPS_H

#include "tinyllm.h"

/* The norm's weights g (n, Q of exponent g_e), and RMSNorm's epsilon. */
struct tllm_rms_norm {
    const int16_t *g;
    int32_t g_e;
    uint32_t n; /* 1..32768 */
    uint32_t eps_m;
    int32_t eps_e;
};

/* out (n) = r / rms(r) * g, Zhang and Sennrich 2019. r is BFP32; scratch: n. */
int32_t tllm_rms_norm(const struct tllm_rms_norm *norm, const int32_t *r, int32_t r_e,
                      int32_t *scratch, int16_t *out);

/* a (n) += b, both BFP32. */
int32_t tllm_add(int32_t *a, int32_t a_e, const int32_t *b, int32_t b_e, uint32_t n);

/*
 * Rotates heads of d elements in place, |v| <= 2^30 after; the exponent stays. Su et al. 2021, with
 * the pairs (i, i + d/2).
 */
void tllm_rope(int32_t *v, uint32_t heads, uint32_t d, uint32_t pos, const uint32_t *freq);

/* One head's attention over positions 0..pos. */
struct tllm_attention {
    const int16_t *q; /* (d) of exponent q_e */
    int32_t q_e;
    const int16_t *k, *v;     /* this group's: position t at [t * stride], BFP16 */
    const int16_t *k_e, *v_e; /* (pos + 1) exponents */
    uint32_t stride, d, pos;
    struct tllm_scale scale; /* log2(e) / sqrt(d) */
};

/* y (d), |y| <= 2^30, of the exponent returned. scores: pos + 1; sums: d. */
int32_t tllm_attend(const struct tllm_attention *attention, int32_t *scores, int64_t *sums,
                    int32_t *y);

/* out (n) = silu(g) * u, both BFP32; g is overwritten. Shazeer 2020. */
int32_t tllm_swiglu(int32_t *g, int32_t g_e, const int32_t *u, int32_t u_e, uint32_t n,
                    int16_t *out);

#endif

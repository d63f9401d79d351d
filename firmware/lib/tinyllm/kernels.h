/*
 * The inner loops. Each kernel has one name and at least two bodies: `_ref`, which says what is
 * computed, and faster ones that equal it bit for bit. This header chooses; TLLM_KERNELS_REF
 * chooses the references.
 */
#ifndef TLLM_KERNELS_H
#define TLLM_KERNELS_H

#include <stdint.h>

/* Some rows of y = W x, for a batch of vectors that share each row as it passes. */
struct tllm_matvec {
    const int8_t *w;  /* (count, cols): the rows at hand */
    const int16_t *x; /* (batch, cols), |x| <= 32767 */
    int32_t *y;       /* (batch, y_stride): y[0] is that of the first row at hand; |y| < 2^30 */
    uint32_t cols;    /* 1..65536 */
    uint32_t batch;   /* 1..TLLM_MAX_BATCH */
    uint32_t y_stride;
    uint32_t multiplier; /* of the scale, below 2^24 */
    uint32_t shift;      /* 24 + max(0, clog2(cols) - 8) */
};

/* Rows first.. of those at hand: y = rsr((sum of w * x) * multiplier, shift). */
typedef void tllm_matvec_fn(const struct tllm_matvec *job, uint32_t first, uint32_t count);
tllm_matvec_fn tllm_matvec_ref;
tllm_matvec_fn tllm_matvec_blocks; /* int32 sums of 512 columns: portable, made to be vectorised */

/* The sum of a * b: n <= 256, even, products below 2^30, so |sum| <= 2^38. */
typedef int64_t tllm_dot16_fn(const int16_t *a, const int16_t *b, uint32_t n);
tllm_dot16_fn tllm_dot16_ref;
tllm_dot16_fn tllm_dot16_pairs; /* int32 sums of two products */

#ifdef TLLM_KERNELS_REF
#define tllm_matvec_rows tllm_matvec_ref
#define tllm_dot16       tllm_dot16_ref
#else
#define tllm_matvec_rows tllm_matvec_blocks
#define tllm_dot16       tllm_dot16_pairs
#endif

#endif

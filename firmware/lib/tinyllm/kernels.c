#include "kernels.h"

#include "fixed.h"
#include "tinyllm.h"

/* 512 * 128 * 32767 = 2,147,418,112 < 2^31: so many products fit an int32. */
#define BLOCK 512u

/* Xtensa's compiler leaves loops as they are; two of nine instructions then only count. */
#ifdef __XTENSA__
#define UNROLLED _Pragma("GCC unroll 8")
#else
#define UNROLLED
#endif

void tllm_matvec_ref(const struct tllm_matvec *job, uint32_t first, uint32_t count) {
    for (uint32_t row = first; row < first + count; row++)
        for (uint32_t column = 0; column < job->batch; column++) {
            const int8_t *w = job->w + (size_t)row * job->cols;
            const int16_t *x = job->x + (size_t)column * job->cols;
            int64_t sum = 0;
            for (uint32_t j = 0; j < job->cols; j++)
                sum += w[j] * x[j];
            job->y[(size_t)column * job->y_stride + row] =
                (int32_t)tllm_rsr(sum * job->multiplier, job->shift);
        }
}

static int32_t dot_block(const int8_t *restrict w, const int16_t *restrict x, uint32_t n) {
    int32_t sum = 0;
    UNROLLED
    for (uint32_t j = 0; j < n; j++)
        sum += w[j] * x[j];
    return sum;
}

static int32_t dot_block_wide(const int16_t *restrict w, const int16_t *restrict x, uint32_t n) {
    int32_t sum = 0;
    UNROLLED
    for (uint32_t j = 0; j < n; j++)
        sum += w[j] * x[j];
    return sum;
}

static void row_of_one(const struct tllm_matvec *job, uint32_t row) {
    const int8_t *w = job->w + (size_t)row * job->cols;
    int64_t sum = 0;
    for (uint32_t at = 0; at < job->cols; at += BLOCK) {
        uint32_t n = job->cols - at < BLOCK ? job->cols - at : BLOCK;
        sum += dot_block(w + at, job->x + at, n);
    }
    job->y[row] = (int32_t)tllm_rsr(sum * job->multiplier, job->shift);
}

/* Each block of the row is widened to int16 once, for all vectors. */
static void row_of_batch(const struct tllm_matvec *job, uint32_t row) {
    const int8_t *w = job->w + (size_t)row * job->cols;
    int64_t sums[TLLM_MAX_BATCH] = {0};
    int16_t wide[BLOCK];
    for (uint32_t at = 0; at < job->cols; at += BLOCK) {
        uint32_t n = job->cols - at < BLOCK ? job->cols - at : BLOCK;
        UNROLLED
        for (uint32_t j = 0; j < n; j++)
            wide[j] = w[at + j];
        for (uint32_t column = 0; column < job->batch; column++)
            sums[column] += dot_block_wide(wide, job->x + (size_t)column * job->cols + at, n);
    }
    for (uint32_t column = 0; column < job->batch; column++)
        job->y[(size_t)column * job->y_stride + row] =
            (int32_t)tllm_rsr(sums[column] * job->multiplier, job->shift);
}

void tllm_matvec_blocks(const struct tllm_matvec *job, uint32_t first, uint32_t count) {
    for (uint32_t row = first; row < first + count; row++)
        if (job->batch == 1)
            row_of_one(job, row);
        else
            row_of_batch(job, row);
}

int64_t tllm_dot16_ref(const int16_t *a, const int16_t *b, uint32_t n) {
    int64_t sum = 0;
    for (uint32_t j = 0; j < n; j++)
        sum += (int64_t)a[j] * b[j];
    return sum;
}

/* 2 * 32767^2 = 2,147,352,578 < 2^31; n is even. */
int64_t tllm_dot16_pairs(const int16_t *a, const int16_t *b, uint32_t n) {
    int64_t sum = 0;
    for (uint32_t j = 0; j < n; j += 2)
        sum += a[j] * b[j] + a[j + 1] * b[j + 1];
    return sum;
}

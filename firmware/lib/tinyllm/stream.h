/*
 * Weights on their way through the seam: rows of a tensor, in windows that end at multiples of the
 * chunk in the file. A window that the port maps is used in place; any other is read into one of
 * two buffers while the rows of the one before are computed.
 */
#ifndef TLLM_STREAM_H
#define TLLM_STREAM_H

#include "tinyllm.h"

/* Takes `count` whole rows from row `first` on; the bytes stay only for the call. */
typedef void tllm_rows_fn(void *arg, const uint8_t *rows, uint32_t first, uint32_t count);

/*
 * A pass over the tensors 1, 2, .. below end_tensor, each streamed whole and in this order, begins.
 * Only what is inside a pass is prefetched.
 */
void tllm_stream_begin(struct tllm_engine *engine, uint32_t end_tensor);

/* Whatever ended the pass: on return no prefetch is under way, but for one that the port gave up.
 */
void tllm_stream_end(struct tllm_engine *engine);

/* Hands rows [first, first + count) of a tensor to fn, in order. */
int tllm_stream_rows(struct tllm_engine *engine, uint32_t tensor, uint32_t first, uint32_t count,
                     tllm_rows_fn *fn, void *arg) TLLM_MUST_CHECK;

/* Bytes of one row. */
uint32_t tllm_tensor_row_bytes(const struct tllm_tensor *tensor);

/* Runs fn for each part: through the port if it can, else one after the other. */
void tllm_parallel(struct tllm_engine *engine, void (*fn)(void *, uint32_t, uint32_t), void *arg,
                   uint32_t parts);

/* Lets the port look about; TLLM_E_CANCELLED if it wants a stop. */
int tllm_yield(struct tllm_engine *engine) TLLM_MUST_CHECK;

/* Microseconds by the port's clock, 0 without one. */
uint64_t tllm_now(const struct tllm_engine *engine);

#endif

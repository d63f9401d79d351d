/* The tables of docs/NUMERICS.md section 2 and of CRC-32. tools/make_tables.py makes tables.c. */
#ifndef TLLM_TABLES_H
#define TLLM_TABLES_H

#include <stdint.h>

extern const int32_t tllm_sin_table[513];       /* 2^30 sin(pi/2 * i / 512), Q30 */
extern const int32_t tllm_exp2n_table[257];     /* 2^(-i/256), Q30 */
extern const uint32_t tllm_crc32_table[4][256]; /* of a byte and 0 to 3 zero bytes after it */

#endif

#include "tables.h"
#include "tinyllm.h"

/* Four bytes a step from four tables (Kounavis and Berry, "slicing-by-4"). */
uint32_t tllm_crc32(uint32_t crc, const void *data, size_t len) {
    const uint8_t *p = data;
    uint32_t c = ~crc;
    for (; len >= 4; len -= 4, p += 4) {
        c ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        c = tllm_crc32_table[3][c & 255] ^ tllm_crc32_table[2][c >> 8 & 255] ^
            tllm_crc32_table[1][c >> 16 & 255] ^ tllm_crc32_table[0][c >> 24];
    }
    for (; len > 0; len--, p++)
        c = c >> 8 ^ tllm_crc32_table[0][(c ^ *p) & 255];
    return ~c;
}

#include "tinyllm.h"

/* The bytes of v, least first, appended to a CRC. */
static uint32_t add_integer(uint32_t crc, uint32_t v, uint32_t bytes) {
    const uint8_t le[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
    return tllm_crc32(crc, le, bytes);
}

uint32_t tllm_activation_crc(const struct tllm_activation *activation) {
    const int16_t *m16 = activation->data;
    const int32_t *m32 = activation->data;
    uint32_t crc = 0;
    for (uint32_t i = 0; i < activation->n; i++)
        crc = activation->bytes == 2 ? add_integer(crc, (uint16_t)m16[i], 2)
                                     : add_integer(crc, (uint32_t)m32[i], 4);
    return add_integer(crc, (uint32_t)activation->exponent, 4);
}

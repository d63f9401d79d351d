/* tokenizer.bin: what passes the checks must encode and decode any text without a fault. */
#include "tinyllm.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    LONGEST = 400, /* bytes of its own strings as a text */
};
static const char text[] =
    "Once upon \xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac a \xf0\x9f\x90\x8c  \t\nxyz";

static uint32_t get_u32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void encode(const struct tllm_tokenizer *tokenizer, const char *from, uint32_t len) {
    const size_t scratch_bytes = tllm_encode_scratch(len);
    uint32_t *tokens = malloc((len + 4) * sizeof *tokens);
    void *scratch = malloc(scratch_bytes);
    const int32_t n = tllm_encode(tokenizer, from, len, tokens, len + 4, scratch, scratch_bytes);
    for (int32_t i = 0; i < n; ++i) {
        if (tokens[i] >= tokenizer->vocab) {
            abort();
        }
    }
    free(scratch);
    free(tokens);
}

static void decode(const struct tllm_tokenizer *tokenizer, uint32_t longest) {
    struct tllm_decoder decoder;
    const uint32_t room = longest + 12;
    char *out = malloc(room);
    tllm_decode_start(&decoder, tokenizer, true);
    for (uint32_t token = 0; token < tokenizer->vocab && token < 2000; ++token) {
        if (tllm_decode(&decoder, token, out, room) < 0) {
            abort();
        }
    }
    if (tllm_decode_end(&decoder, out, room) < 0) {
        abort();
    }
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct tllm_tokenizer tokenizer;
    uint8_t *copy = malloc(size > 0 ? size : 1);
    memcpy(copy, data, size);
    if (tllm_tokenizer_init(&tokenizer, copy, size) == 0) {
        const uint32_t own = get_u32(copy + 20), longest = get_u32(copy + 40);
        encode(&tokenizer, text, (uint32_t)sizeof text - 1);
        encode(&tokenizer, (const char *)copy + size - own, own < LONGEST ? own : LONGEST);
        decode(&tokenizer, longest);
    }
    free(copy);
    return 0;
}

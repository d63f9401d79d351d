/* tokenizer.bin: what passes the checks must encode and decode any text without a fault. */
#include "tinyllm.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char text[] =
    "Once upon \xc3\xa9 \xe6\x97\xa5\xe6\x9c\xac a \xf0\x9f\x90\x8c  \t\nxyz";

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
        uint32_t tokens[2 * sizeof text];
        const uint32_t len = (uint32_t)sizeof text - 1;
        const size_t scratch_bytes = tllm_encode_scratch(len);
        void *scratch = malloc(scratch_bytes);
        const int32_t n =
            tllm_encode(&tokenizer, text, len, tokens, 2 * sizeof text, scratch, scratch_bytes);
        for (int32_t i = 0; i < n; ++i) {
            if (tokens[i] >= tokenizer.vocab) {
                abort();
            }
        }
        free(scratch);
        const uint32_t longest = copy[40] | ((uint32_t)copy[41] << 8) | ((uint32_t)copy[42] << 16) |
                                 ((uint32_t)copy[43] << 24);
        decode(&tokenizer, longest);
    }
    free(copy);
    return 0;
}

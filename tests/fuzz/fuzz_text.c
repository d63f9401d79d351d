/* Any bytes as a prompt: refused if they are not UTF-8, else the same text comes back. */
#include "card.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tllm_tokenizer tokenizer;

static void load(void) {
    static struct ram_board *board; /* kept: the tokenizer lies in its card */
    board = ram_board_new(64, 64, 0);
    uint32_t size = 0;
    card_load(board);
    const uint8_t *bytes = ram_board_get(board, "/tokenizer.bin", &size);
    if (bytes != NULL && tllm_tokenizer_init(&tokenizer, bytes, size) == 0) {
        return;
    }
    abort();
}

/* U+2581 in a text decodes as the space that it stands for. */
static bool has_metaspace(const uint8_t *data, size_t size) {
    for (size_t i = 0; i + 2 < size; ++i) {
        if (memcmp(data + i, "\xe2\x96\x81", 3) == 0) {
            return true;
        }
    }
    return false;
}

static void check_back(const uint32_t *tokens, uint32_t n, const uint8_t *data, size_t size) {
    struct tllm_decoder decoder;
    char piece[1024];
    size_t at = 0;
    tllm_decode_start(&decoder, &tokenizer, true);
    for (uint32_t i = 0; i <= n; ++i) {
        const int32_t len = i < n ? tllm_decode(&decoder, tokens[i], piece, sizeof piece)
                                  : tllm_decode_end(&decoder, piece, sizeof piece);
        if (len < 0 || (size_t)len > size - at || memcmp(piece, data + at, (size_t)len) != 0) {
            abort();
        }
        at += (size_t)len;
    }
    if (at != size) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (tokenizer.vocab == 0) {
        load();
    }
    const size_t scratch_bytes = tllm_encode_scratch((uint32_t)size);
    void *scratch = malloc(scratch_bytes > 0 ? scratch_bytes : 1);
    uint32_t *tokens = malloc((size + 4) * sizeof *tokens);
    char *text = malloc(size > 0 ? size : 1);
    memcpy(text, data, size);
    const int32_t n = tllm_encode(&tokenizer, text, (uint32_t)size, tokens, (uint32_t)size + 4,
                                  scratch, scratch_bytes);
    if (n >= 0 && !has_metaspace(data, size)) {
        check_back(tokens, (uint32_t)n, data, size);
    }
    free(text);
    free(tokens);
    free(scratch);
    return 0;
}

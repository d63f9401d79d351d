/*
 * Reads cases from stdin and writes what the tokenizer makes of them: built with sanitizers, each
 * case in memory of exactly its size.
 *
 * A case: u32 file size, u32 text size, u32 tokens; the file, the text, the tokens (u32). An
 * answer: i32 status of init; if it is 0, i32 count or error of encode, the ids, i32 bytes of the
 * decoded tokens, those bytes.
 */
#include "tinyllm.h"

#include <stdio.h>
#include <stdlib.h>

static void *read_exactly(size_t size) {
    void *data = malloc(size ? size : 1);
    if (!data || fread(data, 1, size, stdin) != size) {
        exit(3);
    }
    return data;
}

static void write_exactly(const void *data, size_t size) {
    if (fwrite(data, 1, size, stdout) != size) {
        exit(4);
    }
}

static void encode(const struct tllm_tokenizer *tokenizer, const char *text, uint32_t size) {
    const size_t scratch_bytes = tllm_encode_scratch(size);
    const uint32_t room = 4 * size + 3;
    void *scratch = malloc(scratch_bytes);
    uint32_t *ids = malloc(room * sizeof(*ids));
    const int32_t n = tllm_encode(tokenizer, text, size, ids, room, scratch, scratch_bytes);
    write_exactly(&n, sizeof(n));
    if (n > 0) {
        write_exactly(ids, (size_t)n * sizeof(*ids));
    }
    free(scratch);
    free(ids);
}

static void decode(const struct tllm_tokenizer *tokenizer, const uint32_t *tokens, uint32_t n) {
    const uint32_t room = tokenizer->longest + 14;
    char *out = malloc((size_t)room * (n + 1));
    char *piece = malloc(room);
    int32_t used = 0;
    struct tllm_decoder decoder;
    tllm_decode_start(&decoder, tokenizer, true);
    for (uint32_t i = 0; i <= n; i++) {
        const int32_t got = i < n ? tllm_decode(&decoder, tokens[i], piece, room)
                                  : tllm_decode_end(&decoder, piece, room);
        for (int32_t j = 0; j < got; j++) {
            out[used++] = piece[j];
        }
        if (got < 0) {
            exit(5);
        }
    }
    write_exactly(&used, sizeof(used));
    write_exactly(out, (size_t)used);
    free(out);
    free(piece);
}

int main(void) {
    uint32_t sizes[3];
    while (fread(sizes, sizeof(sizes), 1, stdin) == 1) {
        void *file = read_exactly(sizes[0]);
        char *text = read_exactly(sizes[1]);
        uint32_t *tokens = read_exactly(sizes[2] * sizeof(*tokens));
        struct tllm_tokenizer tokenizer;
        const int32_t status = tllm_tokenizer_init(&tokenizer, file, sizes[0]);
        write_exactly(&status, sizeof(status));
        if (status == TLLM_OK) {
            encode(&tokenizer, text, sizes[1]);
            decode(&tokenizer, tokens, sizes[2]);
        }
        free(file);
        free(text);
        free(tokens);
    }
    return 0;
}

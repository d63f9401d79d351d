/* The descriptor and what is built from it: parsed, sized, set up and one token evaluated. */
#define _POSIX_C_SOURCE 200809L
#include "tinyllm.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int read_noise(void *ctx, uint32_t file, uint32_t offset, void *dst, uint32_t len) {
    (void)ctx;
    memset(dst, (int)((file * 31 + offset / 64) & 0xff), len);
    return 0;
}

static void run(const struct tllm_model *model) {
    const struct tllm_port port = {.read = read_noise};
    const struct tllm_config config = {.model = model, .port = &port, .context = 4, .batch = 2};
    struct tllm_size need;
    struct tllm_engine engine;
    void *fast = NULL, *bulk = NULL;
    if (tllm_size(&config, &need) != 0 || need.fast > 4000000 || need.bulk > 4000000) {
        return;
    }
    /* Exactly, which aligned_alloc does not promise: so that the sanitizer sees their ends. */
    if (posix_memalign(&fast, 64, need.fast) == 0 && posix_memalign(&bulk, 64, need.bulk) == 0 &&
        tllm_init(&engine, &config, fast, need.fast, bulk, need.bulk) == 0 &&
        (uint64_t)model->layers * model->ffn * model->hidden < 4000000 && model->vocab < 4000) {
        const uint32_t tokens[3] = {0, model->vocab - 1, model->vocab / 2};
        const uint32_t n = engine.context < 3 ? engine.context : 3;
        if (tllm_feed(&engine, tokens, n, true) != 0) {
            abort();
        }
    }
    free(fast);
    free(bulk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 4) {
        return 0;
    }
    uint8_t *copy = malloc(size);
    memcpy(copy, data, size);
    const uint32_t crc = tllm_crc32(0, copy, size - 4); /* so that the rest is looked at */
    for (uint32_t i = 0; i < 4; ++i) {
        copy[size - 4 + i] = (uint8_t)(crc >> (8 * i));
    }
    const int32_t bytes = tllm_descriptor_storage(copy, size);
    if (bytes > 0 && bytes < 16000000) {
        struct tllm_model model;
        void *storage = malloc((size_t)bytes);
        if (tllm_descriptor_parse(copy, size, &model, storage, (size_t)bytes) == 0) {
            run(&model);
        }
        free(storage);
    }
    free(copy);
    return 0;
}

/* The descriptor and what is built from it: parsed, sized, set up and one token evaluated. */
#define _POSIX_C_SOURCE 200809L
#include "tinyllm.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    HEADER = 160,
    FILE_BYTES = 48,
    LONGEST = 1 << 16,
};

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

static uint32_t get_u32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void set_u32(uint8_t *to, uint32_t value) {
    for (uint32_t i = 0; i < 4; ++i) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

/* A model's array in memory of its own, so that the sanitizer sees its end. */
static void *alone(const void *array, size_t bytes) {
    void *copy = malloc(bytes > 0 ? bytes : 1);
    memcpy(copy, array, bytes);
    return copy;
}

static void run_alone(struct tllm_model model, uint32_t n_freqs) {
    struct tllm_file *files = alone(model.files, model.n_files * sizeof *files);
    struct tllm_tensor *tensors = alone(model.tensors, model.n_tensors * sizeof *tensors);
    uint32_t *freqs = alone(model.rope_freq, n_freqs * sizeof *freqs);
    uint32_t *crcs = alone(model.crcs, model.n_crcs * sizeof *crcs);
    model.files = files;
    model.tensors = tensors;
    model.rope_freq = freqs;
    model.crcs = crcs;
    run(&model);
    free(files);
    free(tensors);
    free(freqs);
    free(crcs);
}

/*
 * The same with a length, places of checksums and a count of them that fit the other counts, which
 * no few changes reach. NULL where it would be long.
 */
static uint8_t *fitted(const uint8_t *data, size_t *size) {
    const uint64_t files = get_u32(data + 72);
    const uint64_t rest = (uint64_t)get_u32(data + 76) * 32 + (uint64_t)get_u32(data + 80) * 4;
    uint64_t chunks = 0;
    for (uint64_t at = HEADER; at < HEADER + files * FILE_BYTES && at + FILE_BYTES <= *size;
         at += FILE_BYTES) {
        chunks += ((uint64_t)get_u32(data + at + 32) + TLLM_CHUNK - 1) / TLLM_CHUNK;
    }
    const uint64_t total = HEADER + files * FILE_BYTES + rest + chunks * 4 + 4;
    uint8_t *copy = total > LONGEST ? NULL : calloc(1, total);
    if (copy == NULL) {
        return NULL;
    }
    memcpy(copy, data, *size < total ? *size : total);
    set_u32(copy + 8, (uint32_t)total);
    set_u32(copy + 84, (uint32_t)chunks);
    chunks = 0;
    for (uint64_t i = 0; i < files; ++i) {
        set_u32(copy + HEADER + i * FILE_BYTES + 36, (uint32_t)chunks);
        chunks +=
            ((uint64_t)get_u32(copy + HEADER + i * FILE_BYTES + 32) + TLLM_CHUNK - 1) / TLLM_CHUNK;
    }
    *size = total;
    return copy;
}

/* As it is, or fitted where its last byte is odd. */
static uint8_t *copied(const uint8_t *data, size_t *size) {
    uint8_t *copy = *size >= HEADER && data[*size - 1] & 1 ? fitted(data, size) : NULL;
    if (copy == NULL) {
        copy = malloc(*size);
        memcpy(copy, data, *size);
    }
    return copy;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 4) {
        return 0;
    }
    uint8_t *copy = copied(data, &size);
    set_u32(copy + size - 4, tllm_crc32(0, copy, size - 4)); /* so that the rest is looked at */
    const int32_t bytes = tllm_descriptor_storage(copy, size);
    if (bytes > 0 && bytes < 16000000) {
        struct tllm_model model;
        void *storage = malloc((size_t)bytes);
        if (tllm_descriptor_parse(copy, size, &model, storage, (size_t)bytes) == 0) {
            run_alone(model, get_u32(copy + 80));
        }
        free(storage);
    }
    free(copy);
    return 0;
}

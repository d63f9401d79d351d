/*
 * What checking streamed chunks costs: prints milliseconds a token without and with it, and the
 * CRC-32's speed. Every weight is streamed, from memory.
 *
 *   gcc -O3 -Ifirmware/lib/tinyllm tests/faults/cost_of_checks.c firmware/lib/tinyllm/[a-z]*.c -o
 * cost
 *   ./cost PACKAGE
 */
#define _POSIX_C_SOURCE 200809L
#include "tinyllm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FILES  64
#define TOKENS 8u
#define ROUNDS 5

static double cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int copy(void *ctx, uint32_t file, uint32_t offset, void *dst, uint32_t len) {
    memcpy(dst, ((uint8_t **)ctx)[file] + offset, len);
    return 0;
}

static uint8_t *read_file(const char *folder, const char *name, size_t *len) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *in = fopen(path, "rb");
    uint8_t *bytes = malloc(1u << 24);
    if (in == NULL || bytes == NULL) {
        fprintf(stderr, "%s cannot be read\n", path);
        exit(2);
    }
    *len = fread(bytes, 1, 1u << 24, in);
    fclose(in);
    return bytes;
}

static double token_ms(const struct tllm_model *model, const struct tllm_port *port, bool check) {
    const struct tllm_config config = {.model = model,
                                       .port = port,
                                       .context = TOKENS,
                                       .batch = 1,
                                       .chunk = 32768,
                                       .check_streamed = check};
    struct tllm_engine engine;
    struct tllm_size need;
    if (tllm_size(&config, &need) != 0) {
        exit(1);
    }
    void *fast = aligned_alloc(64, (need.fast + 63) / 64 * 64);
    void *bulk = aligned_alloc(64, (need.bulk + 63) / 64 * 64);
    if (tllm_init(&engine, &config, fast, need.fast, bulk, need.bulk) != 0) {
        exit(1);
    }
    const double start = cpu_s();
    for (uint32_t i = 0; i < TOKENS; ++i) {
        if (tllm_feed(&engine, &i, 1, true) != 0) {
            exit(1);
        }
    }
    const double took = cpu_s() - start;
    free(fast);
    free(bulk);
    return took * 1000 / TOKENS;
}

int main(int argc, char **argv) {
    static uint8_t *files[FILES];
    struct tllm_model model;
    size_t len = 0;
    if (argc != 2) {
        fprintf(stderr, "Name the folder of a package.\n");
        return 2;
    }
    uint8_t *bytes = read_file(argv[1], "descriptor.bin", &len);
    const int32_t storage_bytes = tllm_descriptor_storage(bytes, len);
    void *storage = storage_bytes < 0 ? NULL : malloc((size_t)storage_bytes);
    if (storage == NULL ||
        tllm_descriptor_parse(bytes, len, &model, storage, (size_t)storage_bytes) != 0 ||
        model.n_files > FILES) {
        fprintf(stderr, "That is no descriptor, or has too many files.\n");
        return 2;
    }
    for (uint32_t i = 0; i < model.n_files; ++i) {
        files[i] = read_file(argv[1], model.files[i].name, &len);
    }
    const struct tllm_port port = {.ctx = files, .read = copy};
    double best[2] = {1e9, 1e9};
    for (int i = 0; i < 2 * ROUNDS; ++i) {
        const double ms = token_ms(&model, &port, i % 2 == 1);
        best[i % 2] = ms < best[i % 2] ? ms : best[i % 2];
    }
    const uint32_t size = model.files[0].size, times = 1 + 32000000 / size;
    uint32_t crc = 0;
    const double start = cpu_s();
    for (uint32_t i = 0; i < times; ++i) {
        crc = tllm_crc32(crc, files[0], size);
    }
    printf("%.2f ms a token unchecked, %.2f ms checked; CRC-32 %.0f MB/s (%08x)\n", best[0],
           best[1], (double)size * times / (cpu_s() - start) / 1e6, crc);
    return 0;
}

#include <string.h>

#include "tinyllm.h"

#define VERSION      1u
#define HEADER_BYTES 160u
#define FILE_BYTES   48u
#define TENSOR_BYTES 32u
#define FLAG_ADD_BOS 1u

static uint16_t u16_at(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t u32_at(const uint8_t *p) {
    return (uint32_t)u16_at(p) | (uint32_t)u16_at(p + 2) << 16;
}

/* Two's complement of any value, without conversions that C leaves to the compiler. */
static int32_t i32_at(const uint8_t *p) {
    uint32_t v = u32_at(p);
    return v <= INT32_MAX ? (int32_t)v : -(int32_t)(UINT32_MAX - v) - 1;
}

/* The arrays, where they lie in the data and in storage. */
struct counts {
    uint32_t total, files, tensors, rope, crcs;
    uint64_t storage;
};

static int read_counts(const uint8_t *data, size_t len, struct counts *counts) {
    if (len < HEADER_BYTES || memcmp(data, "TLLM", 4) != 0)
        return TLLM_E_FORMAT;
    if (u16_at(data + 4) != VERSION)
        return TLLM_E_VERSION;
    counts->total = u32_at(data + 8);
    counts->files = u32_at(data + 72);
    counts->tensors = u32_at(data + 76);
    counts->rope = u32_at(data + 80);
    counts->crcs = u32_at(data + 84);
    uint64_t words = (uint64_t)counts->rope + counts->crcs;
    uint64_t total = HEADER_BYTES + (uint64_t)counts->files * FILE_BYTES +
                     (uint64_t)counts->tensors * TENSOR_BYTES + words * 4 + 4;
    counts->storage = (uint64_t)counts->files * sizeof(struct tllm_file) +
                      (uint64_t)counts->tensors * sizeof(struct tllm_tensor) + words * 4;
    if (u16_at(data + 6) != HEADER_BYTES || counts->total != total)
        return TLLM_E_FORMAT;
    return counts->storage > INT32_MAX ? TLLM_E_LIMIT : TLLM_OK;
}

int32_t tllm_descriptor_storage(const void *data, size_t len) {
    struct counts counts;
    int error = read_counts(data, len, &counts);
    return error != TLLM_OK ? error : (int32_t)counts.storage;
}

static int parse_header(const uint8_t *p, struct tllm_model *model, const struct counts *counts) {
    uint32_t flags = u32_at(p + 12), tokenizer_file = u32_at(p + 92);
    if ((flags & ~FLAG_ADD_BOS) != 0 || u32_at(p + 88) != TLLM_CHUNK || tokenizer_file > UINT16_MAX)
        return TLLM_E_FORMAT;
    memset(model, 0, sizeof *model);
    model->add_bos = (flags & FLAG_ADD_BOS) != 0;
    model->vocab = u32_at(p + 16);
    model->hidden = u32_at(p + 20);
    model->layers = u32_at(p + 24);
    model->heads = u32_at(p + 28);
    model->kv_heads = u32_at(p + 32);
    model->head_dim = u32_at(p + 36);
    model->ffn = u32_at(p + 40);
    model->context = u32_at(p + 44);
    model->bos = i32_at(p + 48);
    model->eos = i32_at(p + 52);
    model->eps_m = u32_at(p + 56);
    model->eps_e = i32_at(p + 60);
    model->attn_scale = (struct tllm_scale){u32_at(p + 64), i32_at(p + 68)};
    model->n_files = counts->files;
    model->n_tensors = counts->tensors;
    model->n_crcs = counts->crcs;
    model->tokenizer_file = (uint16_t)tokenizer_file;
    memcpy(model->fingerprint, p + 96, sizeof model->fingerprint);
    memcpy(model->name, p + 128, sizeof model->name);
    return counts->rope == model->head_dim / 2 ? TLLM_OK : TLLM_E_FORMAT;
}

static int parse_file(const uint8_t *p, struct tllm_file *file) {
    memcpy(file->name, p, sizeof file->name);
    file->size = u32_at(p + 32);
    file->first_crc = u32_at(p + 36);
    file->crc = u32_at(p + 40);
    return u32_at(p + 44) == 0 ? TLLM_OK : TLLM_E_FORMAT;
}

static int parse_tensor(const uint8_t *p, struct tllm_tensor *tensor) {
    tensor->file = u16_at(p);
    tensor->dtype = p[2];
    tensor->rows = u32_at(p + 4);
    tensor->cols = u32_at(p + 8);
    tensor->offset = u32_at(p + 12);
    tensor->scale = (struct tllm_scale){u32_at(p + 16), i32_at(p + 20)};
    return p[3] == 0 && u32_at(p + 24) == 0 && u32_at(p + 28) == 0 ? TLLM_OK : TLLM_E_FORMAT;
}

static int parse_arrays(const uint8_t *p, struct tllm_model *model, const struct counts *counts,
                        uint8_t *storage) {
    struct tllm_file *files = (void *)storage;
    struct tllm_tensor *tensors = (void *)(files + counts->files);
    uint32_t *rope_freq = (void *)(tensors + counts->tensors);
    uint32_t *crcs = rope_freq + counts->rope;
    int error = TLLM_OK;
    for (uint32_t i = 0; error == TLLM_OK && i < counts->files; i++, p += FILE_BYTES)
        error = parse_file(p, &files[i]);
    for (uint32_t i = 0; error == TLLM_OK && i < counts->tensors; i++, p += TENSOR_BYTES)
        error = parse_tensor(p, &tensors[i]);
    if (error != TLLM_OK)
        return error;
    for (uint32_t i = 0; i < counts->rope + counts->crcs; i++, p += 4)
        rope_freq[i] = u32_at(p);
    model->files = files;
    model->tensors = tensors;
    model->rope_freq = rope_freq;
    model->crcs = crcs;
    return TLLM_OK;
}

int tllm_descriptor_parse(const void *data, size_t len, struct tllm_model *model, void *storage,
                          size_t storage_bytes) {
    const uint8_t *p = data;
    struct counts counts;
    int error = read_counts(p, len, &counts);
    if (error != TLLM_OK)
        return error;
    if (len != counts.total)
        return TLLM_E_FORMAT;
    if (tllm_crc32(0, p, len - 4) != u32_at(p + len - 4))
        return TLLM_E_CRC;
    if (storage_bytes < counts.storage || (uintptr_t)storage % 8 != 0)
        return TLLM_E_ARG;
    error = parse_header(p, model, &counts);
    if (error == TLLM_OK)
        error = parse_arrays(p + HEADER_BYTES, model, &counts, storage);
    return error != TLLM_OK ? error : tllm_model_check(model);
}

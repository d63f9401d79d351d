/* Compares a generated header with a descriptor read at run time, fact by fact. */
#include "tllm_model_data.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int differing;

static void same(int equal, const char *what) {
    if (!equal) {
        printf("%s differs\n", what);
        differing++;
    }
}

#define SAME(field) same(header->field == model->field, #field)

static void compare(const struct tllm_model *header, const struct tllm_model *model) {
    same(strcmp(header->name, model->name) == 0, "name");
    same(memcmp(header->fingerprint, model->fingerprint, 32) == 0, "fingerprint");
    SAME(vocab);
    SAME(hidden);
    SAME(layers);
    SAME(heads);
    SAME(kv_heads);
    SAME(head_dim);
    SAME(ffn);
    SAME(context);
    SAME(bos);
    SAME(eos);
    SAME(add_bos);
    SAME(eps_m);
    SAME(eps_e);
    SAME(attn_scale.m);
    SAME(attn_scale.e);
    SAME(n_files);
    SAME(n_tensors);
    SAME(n_crcs);
    SAME(tokenizer_file);
    if (differing != 0)
        return;
    for (uint32_t i = 0; i < model->n_files; i++) {
        SAME(files[i].size);
        SAME(files[i].first_crc);
        SAME(files[i].crc);
        same(strcmp(header->files[i].name, model->files[i].name) == 0, "files[i].name");
    }
    for (uint32_t i = 0; i < model->n_tensors; i++) {
        SAME(tensors[i].file);
        SAME(tensors[i].dtype);
        SAME(tensors[i].rows);
        SAME(tensors[i].cols);
        SAME(tensors[i].offset);
        SAME(tensors[i].scale.m);
        SAME(tensors[i].scale.e);
    }
    for (uint32_t i = 0; i < model->head_dim / 2; i++)
        SAME(rope_freq[i]);
    for (uint32_t i = 0; i < model->n_crcs; i++)
        SAME(crcs[i]);
}

int main(int argc, char **argv) {
    static uint8_t data[1 << 20];
    static uint64_t storage[1 << 17];
    struct tllm_model model;
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (file == NULL)
        return 2;
    size_t len = fread(data, 1, sizeof data, file);
    fclose(file);
    int rc = tllm_descriptor_parse(data, len, &model, storage, sizeof storage);
    if (rc != 0 || tllm_model_check(&tllm_model_data) != 0) {
        printf("refused: %d\n", rc);
        return 2;
    }
    same(tllm_model_data.vocab == TLLM_MODEL_VOCAB, "TLLM_MODEL_VOCAB");
    compare(&tllm_model_data, &model);
    printf("%d differ, %u tensors, %u crcs\n", differing, (unsigned)model.n_tensors,
           (unsigned)model.n_crcs);
    return differing != 0;
}

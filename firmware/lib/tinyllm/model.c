#include <string.h>

#include "red_zone.h"
#include "stream.h"

#define MAX_LAYERS   1000u
#define MAX_SCALE_E  200
#define REGION_ALIGN 64u

/* ---- the model's facts ---- */

static bool in_range(uint32_t value, uint32_t least, uint32_t most) {
    return value >= least && value <= most;
}

static bool exponent_ok(int32_t e) {
    return e >= -MAX_SCALE_E && e <= MAX_SCALE_E;
}

static bool scale_ok(struct tllm_scale scale) {
    return in_range(scale.m, 1u << 23, (1u << 24) - 1) && exponent_ok(scale.e);
}

static bool dimensions_ok(const struct tllm_model *m) {
    return in_range(m->vocab, 1, TLLM_MAX_VOCAB) && in_range(m->hidden, 1, TLLM_MAX_HIDDEN) &&
           in_range(m->layers, 1, MAX_LAYERS) && in_range(m->ffn, 1, TLLM_MAX_COLUMNS) &&
           in_range(m->heads, 1, TLLM_MAX_COLUMNS) && in_range(m->kv_heads, 1, m->heads) &&
           in_range(m->head_dim, 2, TLLM_MAX_HEAD_DIM) &&
           in_range(m->heads * m->head_dim, 1, TLLM_MAX_COLUMNS) &&
           in_range(m->context, 1, TLLM_MAX_CONTEXT);
}

static bool token_ok(int32_t token, uint32_t vocab) {
    return token == -1 || (token >= 0 && (uint32_t)token < vocab);
}

static bool facts_ok(const struct tllm_model *m) {
    return m->head_dim % 2 == 0 && m->heads % m->kv_heads == 0 && token_ok(m->bos, m->vocab) &&
           (m->bos >= 0 || !m->add_bos) && token_ok(m->eos, m->vocab) &&
           (m->eps_m == 0 || m->eps_m >= 1u << 30) && m->eps_e % 2 == 0 && exponent_ok(m->eps_e) &&
           scale_ok(m->attn_scale) && m->n_tensors == 3 + TLLM_LAYER_TENSORS * m->layers &&
           m->tokenizer_file < m->n_files;
}

static bool name_char_ok(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
}

static bool file_name_ok(const char name[32]) {
    if (name[0] == '\0' || name[0] == '.')
        return false;
    for (uint32_t i = 0; i < 32; i++) {
        if (name[i] == '\0')
            return true;
        if (!name_char_ok(name[i]))
            return false;
    }
    return false;
}

static bool files_ok(const struct tllm_model *m) {
    uint64_t chunks = 0;
    for (uint32_t i = 0; i < m->n_files; i++) {
        const struct tllm_file *file = &m->files[i];
        if (!file_name_ok(file->name) || file->first_crc != chunks)
            return false;
        chunks += ((uint64_t)file->size + TLLM_CHUNK - 1) / TLLM_CHUNK;
    }
    return chunks == m->n_crcs;
}

/* What the place of a tensor asks of it. */
static void expected(const struct tllm_model *m, uint32_t index, uint32_t *rows, uint32_t *cols,
                     enum tllm_dtype *dtype) {
    uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    *dtype = TLLM_INT8;
    *rows = m->vocab;
    *cols = m->hidden;
    if (index == TLLM_EMBED || index == TLLM_HEAD(m))
        return;
    *rows = 1;
    *dtype = TLLM_INT16;
    if (index == TLLM_FINAL_NORM(m))
        return;
    switch ((enum tllm_layer_tensor)((index - 1) % TLLM_LAYER_TENSORS)) {
    case TLLM_NORM1:
    case TLLM_NORM2:
    case TLLM_LAYER_TENSORS:
        return;
    case TLLM_Q_PROJ:
        *rows = q;
        break;
    case TLLM_K_PROJ:
    case TLLM_V_PROJ:
        *rows = kv;
        break;
    case TLLM_O_PROJ:
        *rows = m->hidden;
        *cols = q;
        break;
    case TLLM_GATE_PROJ:
    case TLLM_UP_PROJ:
        *rows = m->ffn;
        break;
    case TLLM_DOWN_PROJ:
        *rows = m->hidden;
        *cols = m->ffn;
        break;
    }
    *dtype = TLLM_INT8;
}

static bool tensor_ok(const struct tllm_model *m, uint32_t index) {
    const struct tllm_tensor *tensor = &m->tensors[index];
    uint32_t rows, cols;
    enum tllm_dtype dtype;
    expected(m, index, &rows, &cols, &dtype);
    if (tensor->rows != rows || tensor->cols != cols || tensor->dtype != dtype ||
        tensor->file >= m->n_files || !scale_ok(tensor->scale) ||
        (dtype == TLLM_INT16 && tensor->scale.m != 1u << 23))
        return false;
    uint64_t bytes = (uint64_t)rows * tllm_tensor_row_bytes(tensor);
    return tensor->offset + bytes <= m->files[tensor->file].size;
}

int tllm_model_check(const struct tllm_model *model) {
    if (!dimensions_ok(model))
        return TLLM_E_LIMIT;
    if (!facts_ok(model) || !files_ok(model) || model->name[31] != '\0')
        return TLLM_E_FORMAT;
    for (uint32_t i = 0; i < model->n_tensors; i++)
        if (!tensor_ok(model, i))
            return TLLM_E_FORMAT;
    return TLLM_OK;
}

/* ---- the regions ---- */

/* Hands out pieces of a region; with no base it only counts. */
struct arena {
    uint8_t *base;
    uint64_t used;
};

static void *take(struct arena *arena, uint64_t count, uint32_t bytes) {
    uint64_t at = (arena->used + REGION_ALIGN - 1) / REGION_ALIGN * REGION_ALIGN;
    arena->used = at + count * bytes + TLLM_RED_ZONE;
    if (arena->base == NULL)
        return NULL;
    tllm_unfence(arena->base + at, (size_t)(count * bytes));
    tllm_fence(arena->base + at + count * bytes, TLLM_RED_ZONE);
    return arena->base + at;
}

static uint32_t greater(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

static void lay_out(struct tllm_engine *engine, struct arena *fast, struct arena *bulk) {
    const struct tllm_model *m = engine->model;
    struct tllm_private *p = &engine->p;
    uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    uint32_t widest = greater(greater(m->hidden, q), m->ffn);
    uint64_t batch = engine->batch, slots = (uint64_t)m->layers * engine->context;

    p->buffer[0] = take(fast, engine->chunk, 1);
    p->buffer[1] = take(fast, engine->chunk, 1);
    p->row = take(fast, greater(widest, 2 * m->hidden), 1);
    p->norm = take(fast, m->hidden, sizeof *p->norm);
    p->x = take(fast, batch * widest, sizeof *p->x);
    p->q = take(fast, batch * q, sizeof *p->q);
    p->residual = take(fast, batch * m->hidden, sizeof *p->residual);
    p->a = take(fast, batch * widest, sizeof *p->a);
    p->b = take(fast, batch * m->ffn, sizeof *p->b);
    p->attention = take(fast, (uint64_t)engine->parts * m->head_dim, sizeof *p->attention);
    p->x_e = take(fast, batch, sizeof *p->x_e);
    p->q_e = take(fast, batch, sizeof *p->q_e);
    p->residual_e = take(fast, batch, sizeof *p->residual_e);
    p->a_e = take(fast, batch, sizeof *p->a_e);
    p->b_e = take(fast, batch, sizeof *p->b_e);

    p->k_cache = take(bulk, slots * kv, sizeof *p->k_cache);
    p->v_cache = take(bulk, slots * kv, sizeof *p->v_cache);
    p->k_e = take(bulk, slots, sizeof *p->k_e);
    p->v_e = take(bulk, slots, sizeof *p->v_e);
    p->scores = take(bulk, (uint64_t)engine->parts * engine->context, sizeof *p->scores);
    engine->logits = take(bulk, m->vocab, sizeof *engine->logits);
    engine->heap = take(bulk, m->vocab, sizeof *engine->heap);
}

/* An engine of that configuration, all checked, without memory. */
static int configure(struct tllm_engine *engine, const struct tllm_config *config) {
    const struct tllm_model *model = config->model;
    if (model == NULL || config->port == NULL || config->port->read == NULL)
        return TLLM_E_ARG;
    int error = tllm_model_check(model);
    if (error != TLLM_OK)
        return error;
    memset(engine, 0, sizeof *engine);
    engine->model = model;
    engine->port = config->port;
    engine->context = config->context == 0 ? model->context : config->context;
    engine->batch = config->batch == 0 ? 8 : config->batch;
    engine->chunk = config->chunk == 0 ? 32768 : config->chunk;
    engine->parts = config->parts == 0 ? 1 : config->parts;
    engine->check_streamed = config->check_streamed;
    if (engine->context > model->context || engine->batch > TLLM_MAX_BATCH ||
        engine->parts > TLLM_MAX_PARTS || engine->chunk % TLLM_CHUNK != 0)
        return TLLM_E_ARG;
    return TLLM_OK;
}

static int needed(struct tllm_engine *engine, struct tllm_size *size) {
    struct arena fast = {NULL, 0}, bulk = {NULL, 0};
    lay_out(engine, &fast, &bulk);
    if (fast.used > SIZE_MAX / 2 || bulk.used > SIZE_MAX / 2)
        return TLLM_E_LIMIT;
    size->fast = (size_t)fast.used;
    size->bulk = (size_t)bulk.used;
    return TLLM_OK;
}

int tllm_size(const struct tllm_config *config, struct tllm_size *size) {
    struct tllm_engine engine;
    int error = configure(&engine, config);
    return error != TLLM_OK ? error : needed(&engine, size);
}

static bool aligned(const void *region) {
    return region != NULL && (uintptr_t)region % REGION_ALIGN == 0;
}

int tllm_init(struct tllm_engine *engine, const struct tllm_config *config, void *fast,
              size_t fast_bytes, void *bulk, size_t bulk_bytes) {
    struct tllm_size size;
    int error = configure(engine, config);
    if (error == TLLM_OK)
        error = needed(engine, &size);
    if (error != TLLM_OK)
        return error;
    if (!aligned(fast) || !aligned(bulk))
        return TLLM_E_ARG;
    if (fast_bytes < size.fast)
        return TLLM_E_FAST;
    if (bulk_bytes < size.bulk)
        return TLLM_E_BULK;
    struct arena fast_arena = {fast, 0}, bulk_arena = {bulk, 0};
    lay_out(engine, &fast_arena, &bulk_arena);
    return TLLM_OK;
}

#include "fixed.h"
#include "kernels.h"
#include "ops.h"
#include "stream.h"

/* Matrices of fewer products than this are not worth a second core's waking up. */
#define PARALLEL_PRODUCTS 4096u

static void report(const struct tllm_engine *engine, enum tllm_stage stage, uint32_t layer,
                   uint32_t pos, const void *data, uint32_t n, uint32_t bytes, int32_t exponent) {
    const struct tllm_activation activation = {stage, layer, pos, data, n, bytes, exponent};
    if (engine->trace != NULL)
        engine->trace->stage(engine->trace->ctx, &activation);
}

/* ---- embedding ---- */

struct embed {
    struct tllm_scale scale;
    int32_t *r; /* (hidden) */
    uint32_t hidden;
};

static void embed_row(void *arg, const uint8_t *row, uint32_t first, uint32_t count) {
    const struct embed *job = arg;
    (void)first;
    (void)count; /* 1 */
    for (uint32_t i = 0; i < job->hidden; i++)
        job->r[i] = (int8_t)row[i] * (int32_t)job->scale.m;
}

/* residual (n, hidden) = the tokens' rows of the embedding */
static int embed(struct tllm_engine *engine, const uint32_t *tokens, uint32_t n) {
    struct tllm_private *p = &engine->p;
    uint32_t hidden = engine->model->hidden;
    for (uint32_t i = 0; i < n; i++) {
        struct embed job = {engine->model->tensors[TLLM_EMBED].scale,
                            p->residual + (size_t)i * hidden, hidden};
        int error = tllm_stream_rows(engine, TLLM_EMBED, tokens[i], 1, embed_row, &job);
        if (error != TLLM_OK)
            return error;
        p->residual_e[i] = tllm_norm32(job.r, hidden, job.scale.e);
        report(engine, TLLM_STAGE_EMBED, 0, engine->n_past + i, job.r, hidden, 4, p->residual_e[i]);
    }
    return TLLM_OK;
}

/* ---- matrices ---- */

struct rows_job {
    struct tllm_engine *engine;
    struct tllm_matvec matvec;
    int32_t *y;
    uint32_t count;
};

static void rows_part(void *arg, uint32_t part, uint32_t parts) {
    const struct rows_job *job = arg;
    uint32_t first = (uint32_t)((uint64_t)job->count * part / parts);
    uint32_t end = (uint32_t)((uint64_t)job->count * (part + 1) / parts);
    tllm_matvec_rows(&job->matvec, first, end - first);
}

static void rows_arrived(void *arg, const uint8_t *rows, uint32_t first, uint32_t count) {
    struct rows_job *job = arg;
    uint64_t products = (uint64_t)count * job->matvec.cols * job->matvec.batch;
    job->matvec.w = (const int8_t *)rows;
    job->matvec.y = job->y + first;
    job->count = count;
    tllm_parallel(job->engine, rows_part, job,
                  products < PARALLEL_PRODUCTS ? 1 : job->engine->parts);
}

/* y (n, rows), not normalised, = W (rows, cols) x (n, cols) */
static int matvec(struct tllm_engine *engine, uint32_t tensor, uint32_t n, int32_t *y,
                  int32_t *y_e) {
    const struct tllm_tensor *w = &engine->model->tensors[tensor];
    uint32_t cols_log2 = tllm_bits32(w->cols - 1);
    uint32_t shift = 24 + (cols_log2 > 8 ? cols_log2 - 8 : 0);
    struct rows_job job = {
        engine, {NULL, engine->p.x, NULL, w->cols, n, w->rows, w->scale.m, shift}, y, 0};
    for (uint32_t i = 0; i < n; i++)
        y_e[i] = engine->p.x_e[i] + w->scale.e + (int32_t)shift;
    return tllm_stream_rows(engine, tensor, 0, w->rows, rows_arrived, &job);
}

/* The same, normalised. */
static int project(struct tllm_engine *engine, uint32_t tensor, uint32_t n, int32_t *y,
                   int32_t *y_e) {
    uint32_t rows = engine->model->tensors[tensor].rows;
    int error = matvec(engine, tensor, n, y, y_e);
    for (uint32_t i = 0; error == TLLM_OK && i < n; i++)
        y_e[i] = tllm_norm32(y + (size_t)i * rows, rows, y_e[i]);
    return error;
}

/* residual += W x */
static int project_and_add(struct tllm_engine *engine, uint32_t layer, uint32_t tensor, uint32_t n,
                           enum tllm_stage stage) {
    struct tllm_private *p = &engine->p;
    uint32_t hidden = engine->model->hidden;
    int error = project(engine, TLLM_LAYER(layer, tensor), n, p->a, p->a_e);
    for (uint32_t i = 0; error == TLLM_OK && i < n; i++) {
        int32_t *r = p->residual + (size_t)i * hidden;
        p->residual_e[i] =
            tllm_add(r, p->residual_e[i], p->a + (size_t)i * hidden, p->a_e[i], hidden);
        report(engine, stage, layer, engine->n_past + i, r, hidden, 4, p->residual_e[i]);
    }
    return error;
}

/* ---- norms ---- */

struct norm_weights {
    int16_t *g;
    uint32_t n;
};

static void norm_arrived(void *arg, const uint8_t *row, uint32_t first, uint32_t count) {
    const struct norm_weights *job = arg;
    (void)first;
    (void)count; /* 1 */
    for (uint32_t i = 0; i < job->n; i++)
        job->g[i] = (int16_t)(row[2 * i] | row[2 * i + 1] << 8);
}

/* x = rms_norm(residual), of tokens first..n-1 of the batch; they move to the front of x */
static int norm(struct tllm_engine *engine, uint32_t tensor, uint32_t first, uint32_t n,
                enum tllm_stage stage, uint32_t layer) {
    const struct tllm_model *model = engine->model;
    struct tllm_private *p = &engine->p;
    struct norm_weights weights = {p->norm, model->hidden};
    int error = tllm_stream_rows(engine, tensor, 0, 1, norm_arrived, &weights);
    if (error != TLLM_OK)
        return error;
    const struct tllm_rms_norm rms = {p->norm, model->tensors[tensor].scale.e + 23, model->hidden,
                                      model->eps_m, model->eps_e};
    for (uint32_t i = first; i < n; i++) {
        int16_t *x = p->x + (size_t)(i - first) * model->hidden;
        const int32_t *r = p->residual + (size_t)i * model->hidden;
        p->x_e[i - first] = tllm_rms_norm(&rms, r, p->residual_e[i], p->a, x);
        report(engine, stage, layer, engine->n_past + i, x, model->hidden, 2, p->x_e[i - first]);
    }
    return TLLM_OK;
}

/* ---- attention ---- */

/* Where position pos of a layer lies in the caches, in positions. */
static size_t slot(const struct tllm_engine *engine, uint32_t layer, uint32_t pos) {
    return (size_t)layer * engine->context + pos;
}

/* q (n, heads * head_dim) = rope(q_proj x) */
static int query(struct tllm_engine *engine, uint32_t layer, uint32_t n) {
    const struct tllm_model *model = engine->model;
    struct tllm_private *p = &engine->p;
    uint32_t width = model->heads * model->head_dim;
    int error = project(engine, TLLM_LAYER(layer, TLLM_Q_PROJ), n, p->a, p->a_e);
    for (uint32_t i = 0; error == TLLM_OK && i < n; i++) {
        uint32_t pos = engine->n_past + i;
        int32_t *a = p->a + (size_t)i * width;
        int16_t *q = p->q + (size_t)i * width;
        tllm_rope(a, model->heads, model->head_dim, pos, model->rope_freq);
        p->q_e[i] = tllm_to16(a, width, p->a_e[i], q);
        report(engine, TLLM_STAGE_Q, layer, pos, q, width, 2, p->q_e[i]);
    }
    return error;
}

/* K or V (n, kv_heads * head_dim), rotated if it is K, into its cache */
static int key_or_value(struct tllm_engine *engine, uint32_t layer, uint32_t n,
                        enum tllm_stage stage) {
    const struct tllm_model *model = engine->model;
    struct tllm_private *p = &engine->p;
    bool is_key = stage == TLLM_STAGE_K;
    uint32_t width = model->kv_heads * model->head_dim;
    int16_t *cache = is_key ? p->k_cache : p->v_cache;
    int16_t *exponents = is_key ? p->k_e : p->v_e;
    uint32_t tensor = TLLM_LAYER(layer, is_key ? TLLM_K_PROJ : TLLM_V_PROJ);
    int error = project(engine, tensor, n, p->a, p->a_e);
    for (uint32_t i = 0; error == TLLM_OK && i < n; i++) {
        uint32_t pos = engine->n_past + i;
        size_t at = slot(engine, layer, pos);
        int32_t *a = p->a + (size_t)i * width;
        if (is_key)
            tllm_rope(a, model->kv_heads, model->head_dim, pos, model->rope_freq);
        exponents[at] = (int16_t)tllm_to16(a, width, p->a_e[i], cache + at * width);
        report(engine, stage, layer, pos, cache + at * width, width, 2, exponents[at]);
    }
    return error;
}

struct attention_job {
    struct tllm_engine *engine;
    uint32_t layer, i; /* i: of the batch's tokens */
};

/* Every parts-th of a token's heads. */
static void attention_part(void *arg, uint32_t part, uint32_t parts) {
    const struct attention_job *job = arg;
    struct tllm_engine *engine = job->engine;
    const struct tllm_model *model = engine->model;
    struct tllm_private *p = &engine->p;
    uint32_t d = model->head_dim, stride = model->kv_heads * d;
    uint32_t i = job->i;
    size_t start = slot(engine, job->layer, 0);
    for (uint32_t head = part; head < model->heads; head += parts) {
        uint32_t group = head / (model->heads / model->kv_heads);
        size_t at = ((size_t)i * model->heads + head) * d;
        const struct tllm_attention attention = {
            .q = p->q + at,
            .q_e = p->q_e[i],
            .k = p->k_cache + start * stride + (size_t)group * d,
            .v = p->v_cache + start * stride + (size_t)group * d,
            .k_e = p->k_e + start,
            .v_e = p->v_e + start,
            .stride = stride,
            .d = d,
            .pos = engine->n_past + i,
            .scale = model->attn_scale,
        };
        int32_t e = tllm_attend(&attention, p->scores + (size_t)part * engine->context,
                                p->attention + (size_t)part * d, p->a + at);
        if (head == 0)
            p->a_e[i] = e; /* the same for every head */
    }
}

/* x (n, heads * head_dim) = softmax(q K / sqrt(head_dim)) V. A token at a time: of a long context
 * each reads a megabyte of the caches. */
static int attend(struct tllm_engine *engine, uint32_t layer, uint32_t n) {
    const struct tllm_model *model = engine->model;
    struct tllm_private *p = &engine->p;
    uint32_t width = model->heads * model->head_dim;
    int error = TLLM_OK;
    for (uint32_t i = 0; error == TLLM_OK && i < n; i++) {
        struct attention_job job = {engine, layer, i};
        int16_t *x = p->x + (size_t)i * width;
        tllm_parallel(engine, attention_part, &job, engine->parts);
        p->x_e[i] = tllm_to16(p->a + (size_t)i * width, width, p->a_e[i], x);
        report(engine, TLLM_STAGE_ATTN, layer, engine->n_past + i, x, width, 2, p->x_e[i]);
        error = tllm_yield(engine);
    }
    return error;
}

/* ---- the blocks ---- */

static int attention_block(struct tllm_engine *engine, uint32_t layer, uint32_t n) {
    int error = norm(engine, TLLM_LAYER(layer, TLLM_NORM1), 0, n, TLLM_STAGE_ATTN_NORM, layer);
    if (error == TLLM_OK)
        error = query(engine, layer, n);
    if (error == TLLM_OK)
        error = key_or_value(engine, layer, n, TLLM_STAGE_K);
    if (error == TLLM_OK)
        error = key_or_value(engine, layer, n, TLLM_STAGE_V);
    if (error == TLLM_OK)
        error = attend(engine, layer, n);
    if (error != TLLM_OK)
        return error;
    return project_and_add(engine, layer, TLLM_O_PROJ, n, TLLM_STAGE_ATTN_OUT);
}

static void report_all(const struct tllm_engine *engine, enum tllm_stage stage, uint32_t layer,
                       uint32_t n, const int32_t *data, uint32_t width, const int32_t *exponents) {
    for (uint32_t i = 0; i < n; i++)
        report(engine, stage, layer, engine->n_past + i, data + (size_t)i * width, width, 4,
               exponents[i]);
}

static int ffn_block(struct tllm_engine *engine, uint32_t layer, uint32_t n) {
    struct tllm_private *p = &engine->p;
    uint32_t ffn = engine->model->ffn;
    int error = norm(engine, TLLM_LAYER(layer, TLLM_NORM2), 0, n, TLLM_STAGE_FFN_NORM, layer);
    if (error == TLLM_OK)
        error = project(engine, TLLM_LAYER(layer, TLLM_GATE_PROJ), n, p->a, p->a_e);
    if (error != TLLM_OK)
        return error;
    report_all(engine, TLLM_STAGE_GATE, layer, n, p->a, ffn, p->a_e);
    error = project(engine, TLLM_LAYER(layer, TLLM_UP_PROJ), n, p->b, p->b_e);
    if (error != TLLM_OK)
        return error;
    report_all(engine, TLLM_STAGE_UP, layer, n, p->b, ffn, p->b_e);
    for (uint32_t i = 0; i < n; i++) {
        int16_t *x = p->x + (size_t)i * ffn;
        p->x_e[i] = tllm_swiglu(p->a + (size_t)i * ffn, p->a_e[i], p->b + (size_t)i * ffn,
                                p->b_e[i], ffn, x);
        report(engine, TLLM_STAGE_ACT, layer, engine->n_past + i, x, ffn, 2, p->x_e[i]);
    }
    return project_and_add(engine, layer, TLLM_DOWN_PROJ, n, TLLM_STAGE_FFN_OUT);
}

/* logits (vocab) of the last of n tokens */
static int head(struct tllm_engine *engine, uint32_t n) {
    const struct tllm_model *model = engine->model;
    uint64_t start = tllm_now(engine);
    int error = norm(engine, TLLM_FINAL_NORM(model), n - 1, n, TLLM_STAGE_FINAL_NORM, 0);
    if (error == TLLM_OK)
        error = matvec(engine, TLLM_HEAD(model), 1, engine->logits, &engine->logits_exponent);
    if (error == TLLM_OK)
        report(engine, TLLM_STAGE_LOGITS, 0, engine->n_past + n - 1, engine->logits, model->vocab,
               4, engine->logits_exponent);
    engine->stats.head_us += tllm_now(engine) - start;
    return error;
}

/* One batch, positions n_past.. */
static int forward(struct tllm_engine *engine, const uint32_t *tokens, uint32_t n,
                   bool want_logits) {
    const struct tllm_model *model = engine->model;
    tllm_stream_begin(engine, want_logits ? model->n_tensors : TLLM_FINAL_NORM(model));
    int error = embed(engine, tokens, n);
    for (uint32_t layer = 0; error == TLLM_OK && layer < model->layers; layer++) {
        error = attention_block(engine, layer, n);
        if (error == TLLM_OK)
            error = ffn_block(engine, layer, n);
    }
    if (error == TLLM_OK && want_logits)
        error = head(engine, n);
    tllm_stream_end(engine);
    return error;
}

int tllm_feed(struct tllm_engine *engine, const uint32_t *tokens, uint32_t n, bool want_logits) {
    if (n == 0)
        return want_logits ? TLLM_E_ARG : TLLM_OK;
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] >= engine->model->vocab)
            return TLLM_E_ARG;
    if (n > engine->context - engine->n_past)
        return TLLM_E_CONTEXT;
    uint64_t start = tllm_now(engine);
    int error = TLLM_OK;
    while (error == TLLM_OK && n > 0) {
        uint32_t now = n < engine->batch ? n : engine->batch;
        error = forward(engine, tokens, now, want_logits && now == n);
        if (error != TLLM_OK)
            break;
        engine->n_past += now;
        engine->stats.tokens += now;
        tokens += now;
        n -= now;
    }
    engine->stats.total_us += tllm_now(engine) - start;
    return error;
}

void tllm_rewind(struct tllm_engine *engine, uint32_t n_past) {
    if (n_past < engine->n_past)
        engine->n_past = n_past;
}

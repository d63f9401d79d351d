#include "stream.h"

#include <string.h>

#define SLICE_BYTES 32768u /* of rows between two calls of yield */

/* What one read or map brings: the bytes [from, to) that are needed, inside [at, at + len). */
struct window {
    uint32_t file, from, to;
    uint32_t at, len; /* aligned to TLLM_CHUNK, but for the file's end */
};

uint64_t tllm_now(const struct tllm_engine *engine) {
    const struct tllm_port *port = engine->port;
    return port->now_us != NULL ? port->now_us(port->ctx) : 0;
}

void tllm_parallel(struct tllm_engine *engine, void (*fn)(void *, uint32_t, uint32_t), void *arg,
                   uint32_t parts) {
    const struct tllm_port *port = engine->port;
    if (parts > 1 && port->parallel != NULL)
        port->parallel(port->ctx, fn, arg, parts);
    else
        fn(arg, 0, 1);
}

uint32_t tllm_tensor_row_bytes(const struct tllm_tensor *tensor) {
    return tensor->cols * (tensor->dtype == TLLM_INT16 ? 2u : 1u);
}

/* Exact: tllm_model_check has seen that every tensor ends inside its file. */
static uint32_t tensor_end(const struct tllm_tensor *tensor) {
    return tensor->offset + tensor->rows * tllm_tensor_row_bytes(tensor);
}

static int fail(struct tllm_engine *engine, int error, uint32_t file, uint32_t at, uint32_t len) {
    engine->fault = (struct tllm_fault){file, at, len};
    return error;
}

int tllm_yield(struct tllm_engine *engine) {
    const struct tllm_port *port = engine->port;
    return port->yield != NULL && port->yield(port->ctx) != 0 ? TLLM_E_CANCELLED : TLLM_OK;
}

/* The window that holds `from`, where bytes up to `to` are needed. */
static struct window window_at(const struct tllm_engine *engine, uint32_t file, uint32_t from,
                               uint32_t to) {
    uint64_t chunk_end = ((uint64_t)from / engine->chunk + 1) * engine->chunk;
    uint32_t needed_to = chunk_end < to ? (uint32_t)chunk_end : to;
    uint64_t read_end = ((uint64_t)needed_to + TLLM_CHUNK - 1) / TLLM_CHUNK * TLLM_CHUNK;
    uint32_t size = engine->model->files[file].size;
    uint32_t at = from - from % TLLM_CHUNK;
    uint32_t len = (read_end < size ? (uint32_t)read_end : size) - at;
    return (struct window){file, from, needed_to, at, len};
}

static const uint8_t *mapped(const struct tllm_engine *engine, const struct window *window) {
    const struct tllm_port *port = engine->port;
    if (port->map == NULL)
        return NULL;
    return port->map(port->ctx, window->file, window->from, window->to - window->from);
}

/* ---- checksums ---- */

struct check {
    const struct tllm_model *model;
    const struct window *window;
    const uint8_t *data;
    uint32_t
        bad[TLLM_MAX_PARTS]; /* of each part: the first bad chunk's offset in the window, or len */
};

static void check_part(void *arg, uint32_t part, uint32_t parts) {
    struct check *check = arg;
    const struct window *window = check->window;
    const uint32_t *crcs = check->model->crcs + check->model->files[window->file].first_crc;
    check->bad[part] = window->len;
    for (uint32_t at = part * TLLM_CHUNK; at < window->len; at += parts * TLLM_CHUNK) {
        uint32_t len = window->len - at < TLLM_CHUNK ? window->len - at : TLLM_CHUNK;
        if (tllm_crc32(0, check->data + at, len) != crcs[(window->at + at) / TLLM_CHUNK]) {
            check->bad[part] = at;
            return;
        }
    }
}

/* data: the window's needed bytes, in a buffer that holds all of it. */
static int check_window(struct tllm_engine *engine, const struct window *window,
                        const uint8_t *data) {
    struct check check = {engine->model, window, data - (window->from - window->at), {0}};
    for (uint32_t part = 0; part < TLLM_MAX_PARTS; part++)
        check.bad[part] = window->len;
    tllm_parallel(engine, check_part, &check, engine->parts);
    uint32_t bad = window->len;
    for (uint32_t part = 0; part < TLLM_MAX_PARTS; part++)
        bad = check.bad[part] < bad ? check.bad[part] : bad;
    if (bad == window->len)
        return TLLM_OK;
    uint32_t len = window->len - bad < TLLM_CHUNK ? window->len - bad : TLLM_CHUNK;
    return fail(engine, TLLM_E_CRC, window->file, window->at + bad, len);
}

/* ---- reading ---- */

static int read_window(struct tllm_engine *engine, const struct window *window,
                       const uint8_t **data) {
    const struct tllm_port *port = engine->port;
    struct tllm_private *p = &engine->p;
    bool finish = p->pending_len == window->len && p->pending_at == window->at &&
                  p->pending_file == window->file;
    if (!finish)
        p->buffer_used ^= 1; /* an abandoned prefetch may still write to the other one */
    p->pending_len = 0;
    uint8_t *buffer = p->buffer[p->buffer_used];
    uint64_t start = tllm_now(engine);
    int error = port->read(port->ctx, window->file, window->at, buffer, window->len);
    engine->stats.read_us += tllm_now(engine) - start;
    if (error != 0)
        return fail(engine, error < 0 ? error : TLLM_E_IO, window->file, window->at, window->len);
    engine->stats.read_bytes += window->len;
    *data = buffer + (window->from - window->at);
    return TLLM_OK;
}

/* Starts reading the first window of the pass, from `ahead` on, that is not mapped. */
static void prefetch(struct tllm_engine *engine) {
    const struct tllm_port *port = engine->port;
    struct tllm_private *p = &engine->p;
    if (port->prefetch == NULL || p->pending_len != 0)
        return;
    for (; p->ahead_tensor < p->end_tensor; p->ahead_tensor++, p->ahead = 0) {
        const struct tllm_tensor *tensor = &engine->model->tensors[p->ahead_tensor];
        uint32_t end = tensor_end(tensor);
        uint32_t from = p->ahead > tensor->offset ? p->ahead : tensor->offset;
        while (from < end) {
            struct window window = window_at(engine, tensor->file, from, end);
            p->ahead = from = window.to;
            if (mapped(engine, &window) != NULL)
                continue;
            p->buffer_used ^= 1;
            p->pending_file = window.file;
            p->pending_at = window.at;
            p->pending_len = window.len;
            uint64_t start = tllm_now(engine);
            port->prefetch(port->ctx, window.file, window.at, p->buffer[p->buffer_used],
                           window.len);
            engine->stats.read_us += tllm_now(engine) - start;
            return;
        }
    }
}

void tllm_stream_begin(struct tllm_engine *engine, uint32_t end_tensor) {
    engine->p.ahead_tensor = TLLM_EMBED + 1;
    engine->p.ahead = 0;
    engine->p.end_tensor = end_tensor;
}

void tllm_stream_end(struct tllm_engine *engine) {
    const struct tllm_port *port = engine->port;
    struct tllm_private *p = &engine->p;
    /* The seam has no call that abandons a prefetch; a read that finishes it is one. */
    if (p->pending_len != 0)
        (void)port->read(port->ctx, p->pending_file, p->pending_at, p->buffer[p->buffer_used],
                         p->pending_len);
    p->pending_len = 0;
}

/* ---- rows ---- */

/* A run of rows under way. The bytes of a row that began in an earlier window are in p.row. */
struct rows {
    tllm_rows_fn *fn;
    void *arg;
    uint32_t row_bytes, next; /* next: the row to be handed on */
    uint32_t held;            /* bytes in p.row */
};

static int hand_on(struct tllm_engine *engine, struct rows *rows, const uint8_t *data,
                   uint32_t len) {
    if (rows->held > 0) {
        uint32_t missing = rows->row_bytes - rows->held;
        uint32_t n = missing < len ? missing : len;
        memcpy(engine->p.row + rows->held, data, n);
        rows->held += n;
        data += n;
        len -= n;
        if (rows->held < rows->row_bytes)
            return TLLM_OK;
        rows->fn(rows->arg, engine->p.row, rows->next++, 1);
        rows->held = 0;
    }
    uint32_t slice = rows->row_bytes < SLICE_BYTES ? SLICE_BYTES / rows->row_bytes : 1;
    for (uint32_t whole = len / rows->row_bytes; whole > 0;) {
        uint32_t n = whole < slice ? whole : slice;
        rows->fn(rows->arg, data, rows->next, n);
        rows->next += n;
        data += (size_t)n * rows->row_bytes;
        len -= n * rows->row_bytes;
        whole -= n;
        if (whole > 0) {
            int error = tllm_yield(engine);
            if (error != TLLM_OK)
                return error;
        }
    }
    memcpy(engine->p.row, data, len);
    rows->held = len;
    return TLLM_OK;
}

int tllm_stream_rows(struct tllm_engine *engine, uint32_t index, uint32_t first, uint32_t count,
                     tllm_rows_fn *fn, void *arg) {
    const struct tllm_tensor *tensor = &engine->model->tensors[index];
    struct rows rows = {fn, arg, tllm_tensor_row_bytes(tensor), first, 0};
    uint32_t from = tensor->offset + first * rows.row_bytes;
    uint32_t end = from + count * rows.row_bytes;
    while (from < end) {
        struct window window = window_at(engine, tensor->file, from, end);
        const uint8_t *data = mapped(engine, &window);
        bool streamed = data == NULL;
        int error = TLLM_OK;
        if (streamed)
            error = read_window(engine, &window, &data);
        else
            engine->stats.mapped_bytes += window.to - window.from;
        from = window.to;
        if (index == engine->p.ahead_tensor && from > engine->p.ahead)
            engine->p.ahead = from;
        if (error == TLLM_OK && index != TLLM_EMBED)
            prefetch(engine);
        if (error == TLLM_OK && streamed && engine->check_streamed)
            error = check_window(engine, &window, data);
        if (error == TLLM_OK)
            error = tllm_yield(engine);
        if (error == TLLM_OK)
            error = hand_on(engine, &rows, data, window.to - window.from);
        if (error != TLLM_OK)
            return error;
    }
    return TLLM_OK;
}

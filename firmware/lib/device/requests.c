/* The model's requests: sessions, tokens, text, figures. */
#include "internal.h"

static void emit_event(struct dev *dev, const char *text, uint32_t len) {
    uint8_t offset[4];
    if (len > 0) {
        dev_set_u32(offset, dev->said.bytes);
        dev_said_add(dev, text, len);
        dev_send(dev, dev->type | DEV_EVENT, dev->seq, offset, 4, text, len);
    }
}

int dev_on_session(struct dev *dev, const uint8_t *payload, uint32_t len) {
    (void)len;
    if (payload[0] > 1 || payload[1] > 1) {
        return DEV_E_PAYLOAD;
    }
    if (payload[0] == 0) {
        tllm_session_reset(&dev->session);
        dev->session_number = dev_get_u32(payload + 2);
        dev->logits = false;
    }
    dev->policy = payload[1] == 0 ? TLLM_CONTEXT_STOP : TLLM_CONTEXT_DROP;
    dev_put_u32(dev, dev->session.n);
    return 0;
}

int dev_on_sampling(struct dev *dev, const uint8_t *payload, uint32_t len) {
    (void)len;
    const struct tllm_sampling sampling = {
        .temperature = dev_get_u32(payload),
        .top_k = dev_get_u32(payload + 4),
        .top_p = dev_get_u32(payload + 8),
        .penalty = dev_get_u32(payload + 12),
    };
    const uint32_t heat = sampling.temperature;
    if (heat != 0 && (heat < 655 || heat > 6553600)) {
        return dev_fail(dev, DEV_E_PAYLOAD, "The temperature must be 0 or from 0.01 to 100.");
    }
    if (sampling.penalty < 65536 || sampling.penalty > 131072) {
        return dev_fail(dev, DEV_E_PAYLOAD, "The penalty must be from 1 to 2.");
    }
    dev->sampling = sampling;
    dev->rng_state = dev_get_u64(payload + 16);
    dev->session.rng.state = dev->rng_state;
    return 0;
}

int dev_on_generate(struct dev *dev, const uint8_t *payload, uint32_t len) {
    struct dev_talk talk;
    const uint32_t number = dev_get_u32(payload + 4);
    dev_said_start(dev);
    if (number != 0 && number != dev->session_number) {
        return dev_fail(dev, DEV_E_STATE,
                        "The board has restarted or loaded a model, and has forgotten this "
                        "conversation: begin anew.");
    }
    const int status =
        dev_talk(dev, (const char *)payload + 8, len - 8, dev_get_u32(payload), emit_event, &talk);
    if (status == 0) {
        *dev_put(dev, 1) = (uint8_t)talk.end;
        dev_put_u32(dev, talk.prompt_tokens);
        dev_put_u32(dev, talk.tokens);
        dev_put_u64(dev, talk.prompt_us);
        dev_put_u64(dev, talk.answer_us);
        dev_put_u64(dev, talk.read_us);
        dev_put_u64(dev, talk.read_bytes);
        dev_put_u32(dev, dev->said.bytes);
        dev_put_u32(dev, dev->said.crc);
    }
    return status;
}

/* ---- tokens ---- */

enum feed_flags {
    LOGITS_LAST = 1,
    LOGITS_EACH = 2,
    STAGES = 4,
};

#define LAYER_STAGES 11u /* TLLM_STAGE_ATTN_NORM to TLLM_STAGE_FFN_OUT */

static uint32_t stage_sums(const struct dev *dev) {
    return dev->trace.flags & STAGES ? 1 + dev->model->layers * LAYER_STAGES : 0;
}

/* The sums of one position: its stages', and with logits final_norm's and theirs. */
static uint32_t position_sums(const struct dev *dev, bool logits) {
    const uint32_t stages = stage_sums(dev);
    const uint32_t last = stages > 0 ? 2 : 1;
    return logits ? stages + last : stages;
}

static void on_stage(void *ctx, const struct tllm_activation *activation) {
    struct dev *dev = ctx;
    const uint8_t flags = dev->trace.flags;
    const uint32_t stages = stage_sums(dev);
    const bool each = (flags & LOGITS_EACH) != 0;
    const bool logits = each || (flags & LOGITS_LAST);
    if (activation->pos < dev->trace.first || activation->pos > dev->trace.last) {
        return;
    }
    uint32_t at =
        stages > 0 || each ? (activation->pos - dev->trace.first) * position_sums(dev, each) : 0;
    if (activation->stage == TLLM_STAGE_LOGITS) {
        if (!logits) {
            return;
        }
        at += position_sums(dev, true) - 1;
    } else if (stages == 0) {
        return;
    } else if (activation->stage == TLLM_STAGE_FINAL_NORM) {
        if (!logits) {
            return;
        }
        at += stages;
    } else if (activation->stage != TLLM_STAGE_EMBED) {
        at += 1 + activation->layer * LAYER_STAGES + (uint32_t)activation->stage - 1;
    }
    if (8 + 4 * at + 4 <= dev->answer_len) {
        dev_set_u32(dev->answer + 8 + 4 * at, tllm_activation_crc(activation));
    }
}

/* Feeds what the session holds and the engine has not evaluated; on wrong bytes from the card,
 * again. */
static int feed(struct dev *dev, uint32_t end, bool logits) {
    uint32_t tries = 0;
    int status;
    do {
        const uint32_t at = dev->engine.n_past;
        status = tllm_feed(&dev->engine, dev->tokens + at, end - at, logits);
    } while (dev_try_again(dev, status, &tries));
    return status;
}

static int feed_all(struct dev *dev, uint8_t flags) {
    int status = 0;
    if (flags & LOGITS_EACH) {
        while (status == 0 && dev->engine.n_past < dev->session.n) {
            status = feed(dev, dev->engine.n_past + 1, true);
        }
        return status;
    }
    return feed(dev, dev->session.n, flags & LOGITS_LAST);
}

static int append(struct dev *dev, const uint8_t *tokens, uint32_t n) {
    struct tllm_session *session = &dev->session;
    if (n > dev->engine.context - session->n) {
        return TLLM_E_CONTEXT;
    }
    for (uint32_t i = 0; i < n; ++i) {
        const uint32_t token = dev_get_u32(tokens + 4 * i);
        if (token >= dev->model->vocab) {
            return dev_fail(dev, DEV_E_PAYLOAD, "A token is beyond the vocabulary.");
        }
        session->tokens[session->n + i] = token;
        session->turn_start[session->n + i] = session->n + i == 0;
    }
    session->n += n;
    return 0;
}

static int feed_traced(struct dev *dev, const uint8_t *tokens, uint32_t n, uint8_t flags,
                       void (*stage)(void *, const struct tllm_activation *)) {
    const uint32_t held = dev->session.n, past = dev->engine.n_past;
    int status = append(dev, tokens, n);
    if (status == 0) {
        dev->tracer = (struct tllm_trace){.ctx = dev, .stage = stage};
        dev->engine.trace = stage != NULL ? &dev->tracer : NULL;
        dev->logits = false;
        status = feed_all(dev, flags);
        dev->engine.trace = NULL;
        dev->logits = status == 0 && (flags & (LOGITS_LAST | LOGITS_EACH));
    }
    if (status != 0) {
        dev->session.n = held;
        tllm_rewind(&dev->engine, past);
    }
    return status;
}

int dev_on_feed(struct dev *dev, const uint8_t *payload, uint32_t len) {
    const uint8_t flags = payload[0];
    const uint32_t n = (len - 1) / 4;
    const uint32_t positions = dev->session.n - dev->engine.n_past + n;
    if (len % 4 != 1 || flags > 7) {
        return DEV_E_PAYLOAD;
    }
    if (positions == 0) {
        return dev_fail(dev, DEV_E_STATE, "There is no token to evaluate.");
    }
    dev->trace.flags = flags;
    dev->trace.first = dev->engine.n_past;
    dev->trace.last = dev->engine.n_past + positions - 1;
    const uint64_t sums =
        (uint64_t)(positions - 1) * position_sums(dev, (flags & LOGITS_EACH) != 0) +
        position_sums(dev, (flags & (LOGITS_LAST | LOGITS_EACH)) != 0);
    dev_put_u32(dev, 0);
    if (sums * 4 > dev_answer_room(dev)) {
        return dev_fail(dev, DEV_E_PAYLOAD,
                        "So many checksums do not fit an answer: feed fewer tokens at a time.");
    }
    memset(dev_put(dev, (uint32_t)sums * 4), 0, (uint32_t)sums * 4);
    const int status = feed_traced(dev, payload + 1, n, flags, flags != 0 ? on_stage : NULL);
    dev_set_u32(dev->answer + 4, dev->engine.n_past);
    return status;
}

static void on_capture(void *ctx, const struct tllm_activation *activation) {
    struct dev *dev = ctx;
    if (activation->pos != dev->trace.last || activation->layer != dev->trace.layer ||
        (uint8_t)activation->stage != dev->trace.stage) {
        return;
    }
    dev->trace.n = activation->n;
    dev->trace.bytes = activation->bytes;
    dev->trace.exponent = activation->exponent;
    const uint32_t step = TLLM_CHUNK / activation->bytes;
    for (uint32_t i = 0; i < activation->n && dev_busy(dev) == 0; i += step) {
        const uint32_t n = activation->n - i < step ? activation->n - i : step;
        uint8_t first[4];
        dev_set_u32(first, i);
        dev_send(dev, DEV_CAPTURE | DEV_EVENT, dev->seq, first, 4,
                 (const uint8_t *)activation->data + (size_t)i * activation->bytes,
                 n * activation->bytes);
    }
}

int dev_on_capture(struct dev *dev, const uint8_t *payload, uint32_t len) {
    (void)len;
    dev->trace.stage = payload[0];
    dev->trace.layer = dev_get_u16(payload + 1);
    dev->trace.last = dev->session.n;
    dev->trace.n = 0;
    if (payload[0] >= TLLM_STAGES || dev->trace.layer >= dev->model->layers) {
        return dev_fail(dev, DEV_E_PAYLOAD, "The model has no such stage.");
    }
    int status = feed_traced(dev, payload + 3, 1, LOGITS_LAST, on_capture);
    if (status == 0 && dev->cancel) { /* while the logits, which nothing follows, were sent */
        status = TLLM_E_CANCELLED;
        dev->session.n = dev->trace.last;
        dev->logits = false;
        tllm_rewind(&dev->engine, dev->trace.last);
    }
    if (status == 0) {
        dev_put_u32(dev, dev->trace.n);
        *dev_put(dev, 1) = (uint8_t)dev->trace.bytes;
        dev_put_u32(dev, (uint32_t)dev->trace.exponent);
    }
    return status;
}

int dev_on_sample(struct dev *dev, const uint8_t *payload, uint32_t len) {
    struct tllm_session *session = &dev->session;
    (void)payload;
    (void)len;
    if (!dev->logits) {
        return dev_fail(dev, DEV_E_STATE,
                        "There are no logits to sample from: feed a token first.");
    }
    if (session->n == dev->engine.context) {
        return TLLM_E_CONTEXT;
    }
    const int32_t token =
        tllm_sample(&dev->engine, &dev->sampling, &session->rng, session->tokens, session->n);
    dev->logits = false;
    if (token < 0) {
        return token;
    }
    session->tokens[session->n] = (uint32_t)token;
    session->turn_start[session->n++] = 0;
    dev_put_u32(dev, (uint32_t)token);
    return 0;
}

int dev_on_rewind(struct dev *dev, const uint8_t *payload, uint32_t len) {
    (void)len;
    const uint32_t n_past = dev_get_u32(payload);
    if (n_past > dev->engine.n_past) {
        return dev_fail(dev, DEV_E_STATE, "So many tokens are not evaluated.");
    }
    tllm_rewind(&dev->engine, n_past);
    dev->session.n = n_past;
    dev->logits = false;
    return 0;
}

/* ---- text ---- */

int dev_on_encode(struct dev *dev, const uint8_t *payload, uint32_t len) {
    const int32_t n = tllm_encode(&dev->tokenizer, (const char *)payload, len, dev->prompt,
                                  dev->prompt_room, dev->scratch, dev->scratch_bytes);
    if (n < 0) {
        return n;
    }
    if ((uint32_t)n > dev_answer_room(dev) / 4) {
        return dev_fail(dev, TLLM_E_TOO_LONG, "The tokens do not fit an answer: send less text.");
    }
    for (int32_t i = 0; i < n; ++i) {
        dev_put_u32(dev, dev->prompt[i]);
    }
    return 0;
}

static int put_piece(struct dev *dev, int32_t len) {
    uint8_t *at = len < 0 ? NULL : dev_put(dev, (uint32_t)len);
    if (len < 0) {
        return len;
    }
    if (at == NULL) {
        return dev_fail(dev, TLLM_E_TOO_LONG,
                        "The text does not fit an answer: send fewer tokens.");
    }
    memcpy(at, dev->piece, (uint32_t)len);
    return 0;
}

int dev_on_decode(struct dev *dev, const uint8_t *payload, uint32_t len) {
    struct tllm_decoder decoder;
    int status = len % 4 == 0 ? 0 : DEV_E_PAYLOAD;
    tllm_decode_start(&decoder, &dev->tokenizer, true);
    for (uint32_t at = 0; at < len && status == 0; at += 4) {
        const uint32_t token = dev_get_u32(payload + at);
        if (token >= dev->tokenizer.vocab) {
            return dev_fail(dev, DEV_E_PAYLOAD, "A token is beyond the vocabulary.");
        }
        status = put_piece(dev, tllm_decode(&decoder, token, dev->piece, DEV_PIECE));
    }
    return status == 0 ? put_piece(dev, tllm_decode_end(&decoder, dev->piece, DEV_PIECE)) : status;
}

/* ---- figures ---- */

static struct dev_text begin_json(struct dev *dev) {
    struct dev_text text;
    dev_text_start(&text, (char *)dev->answer + dev->answer_len, dev_answer_room(dev));
    dev_text_add(&text, "{");
    return text;
}

static int end_json(struct dev *dev, struct dev_text *text) {
    dev_text_add(text, "}");
    dev->answer_len += text->len;
    return 0;
}

int dev_on_stats(struct dev *dev, const uint8_t *payload, uint32_t len) {
    struct dev_text text = begin_json(dev);
    const struct tllm_stats *stats = &dev->engine.stats;
    (void)payload;
    (void)len;
    if (dev->model != NULL) {
        dev_json_number(&text, "n", dev->session.n);
        dev_json_number(&text, "n_past", dev->engine.n_past);
        dev_json_number(&text, "context", dev->engine.context);
        dev_json_number(&text, "evaluated", stats->tokens);
        dev_json_number(&text, "total_us", stats->total_us);
        dev_json_number(&text, "head_us", stats->head_us);
        dev_json_number(&text, "read_us", stats->read_us);
        dev_json_number(&text, "read_bytes", stats->read_bytes);
        dev_json_number(&text, "mapped_bytes", stats->mapped_bytes);
    }
    dev_json_number(&text, "frames", dev->counts.frames);
    dev_json_number(&text, "damaged", dev->counts.damaged);
    dev_json_number(&text, "repeated", dev->counts.repeated);
    dev_json_number(&text, "read_errors", dev->counts.read_errors);
    dev_json_number(&text, "remounts", dev->counts.remounts);
    return end_json(dev, &text);
}

int dev_on_info(struct dev *dev, const uint8_t *payload, uint32_t len) {
    static const char *const states[] = {"ready", "no-card", "no-model", "error"};
    struct dev_text text = begin_json(dev);
    struct dev_board board = {0};
    char hex[65];
    struct dev_text fingerprint;
    (void)payload;
    (void)len;
    dev->port->describe(dev->port->ctx, &board);
    dev_text_start(&fingerprint, hex, sizeof hex);
    dev_json_string(&text, "version", dev->config.version);
    dev_json_string(&text, "board", board.board);
    dev_json_string(&text, "chip", board.chip);
    dev_json_string(&text, "state", states[dev->state]);
    dev_json_string(&text, "error", dev->load_error);
    if (dev->model != NULL) {
        dev_text_hex(&fingerprint, dev->model->fingerprint, 32);
        dev_json_string(&text, "model", dev->model->name);
        dev_json_string(&text, "fingerprint", hex);
        dev_json_number(&text, "vocab", dev->model->vocab);
        dev_json_number(&text, "hidden", dev->model->hidden);
        dev_json_number(&text, "layers", dev->model->layers);
        dev_json_number(&text, "context", dev->engine.context);
    }
    dev_json_number(&text, "psram_bytes", board.psram_bytes);
    dev_json_number(&text, "psram_mhz", board.psram_mhz);
    dev_json_number(&text, "fast_bytes", dev->fast.size);
    dev_json_number(&text, "bulk_bytes", dev->bulk.size);
    dev_json_number(&text, "fast_free", dev->memory.fast_free);
    dev_json_number(&text, "bulk_free", dev->memory.bulk_free);
    dev_json_number(&text, "resident_bytes", dev->memory.resident);
    dev_json_string(&text, "card", board.card);
    dev_json_string(&text, "card_mode", board.card_mode);
    dev_json_string(&text, "reset_reason", board.reset_reason);
    dev_json_number(&text, "baud", dev->baud);
    return end_json(dev, &text);
}

/* A prompt and its answer, for the console and for GENERATE. */
#include "internal.h"

#define TRIES 3u

bool dev_try_again(struct dev *dev, int status, uint32_t *tries) {
    if (status != TLLM_E_CRC || *tries == TRIES) {
        return false;
    }
    dev->counts.read_errors++;
    if (++*tries == TRIES) {
        return dev_card_mount(dev, true) == 0;
    }
    return true;
}

static int prompt(struct dev *dev, const char *text, uint32_t len, struct dev_talk *talk) {
    const uint32_t before = dev->session.n;
    int32_t n = 0;
    if (len > 0) {
        n = tllm_encode(&dev->tokenizer, text, len, dev->prompt, dev->prompt_room, dev->scratch,
                        dev->scratch_bytes);
    } else if (before > 0) {
        return 0;
    }
    if (n < 0) {
        return n;
    }
    const int status = tllm_session_prompt(&dev->session, dev->prompt, (uint32_t)n);
    if (status == 0) {
        dev->logits = false;
        talk->prompt_tokens = (uint32_t)n;
        if (dev->session.n == 0) {
            return dev_fail(dev, DEV_E_STATE, "There is nothing to go on from: give a prompt.");
        }
    }
    return status;
}

static int next(struct dev *dev, uint32_t *token, enum tllm_end *end) {
    uint32_t tries = 0;
    int status;
    do {
        status = tllm_session_next(&dev->session, token, end);
    } while (dev_try_again(dev, status, &tries));
    return status;
}

static int answer(struct dev *dev, uint32_t n, bool at_start,
                  void (*emit)(struct dev *, const char *, uint32_t), struct dev_talk *talk) {
    struct tllm_decoder decoder;
    const uint64_t start = dev_now(dev);
    uint64_t first = 0;
    int status = 0;
    tllm_decode_start(&decoder, &dev->tokenizer, at_start);
    talk->end = TLLM_END_LENGTH;
    while (n == 0 || talk->tokens < n) {
        uint32_t token = 0;
        status = next(dev, &token, &talk->end);
        talk->evaluations++;
        first = first == 0 ? dev_now(dev) : first;
        if (status <= 0) {
            break;
        }
        talk->tokens++;
        talk->end = TLLM_END_LENGTH;
        const int32_t len = tllm_decode(&decoder, token, dev->piece, DEV_PIECE);
        if (len < 0) {
            status = len;
            break;
        }
        emit(dev, dev->piece, (uint32_t)len);
        if (dev->cancel) {
            status = TLLM_E_CANCELLED;
            break;
        }
    }
    const int32_t held = tllm_decode_end(&decoder, dev->piece, DEV_PIECE);
    if (held > 0) {
        emit(dev, dev->piece, (uint32_t)held);
    }
    const uint64_t now = dev_now(dev);
    first = first == 0 ? now : first;
    talk->prompt_us = first - start;
    talk->answer_us = now - first;
    if (status == TLLM_E_CANCELLED) {
        talk->end = TLLM_END_CANCELLED;
        status = 0;
    }
    return status < 0 ? status : 0;
}

int dev_talk(struct dev *dev, const char *text, uint32_t len, uint32_t n,
             void (*emit)(struct dev *dev, const char *text, uint32_t len), struct dev_talk *talk) {
    *talk = (struct dev_talk){0};
    if (dev->model == NULL) {
        return dev_fail(dev, dev->load_status, dev->load_error);
    }
    const bool at_start = len == 0 && dev->session.n == 0;
    struct tllm_session *session = &dev->session;
    session->policy = dev->policy;
    session->sampling = dev->sampling;
    int status = dev_settle(dev);
    if (status == TLLM_E_CANCELLED) {
        talk->end = TLLM_END_CANCELLED;
        return 0;
    }
    status = status == 0 ? prompt(dev, text, len, talk) : status;
    if (status == 0) {
        dev->engine.stats = (struct tllm_stats){0};
        status = answer(dev, n, at_start, emit, talk);
        dev->logits = false;
        talk->read_us = dev->engine.stats.read_us;
        talk->total_us = dev->engine.stats.total_us;
        talk->read_bytes = dev->engine.stats.read_bytes;
    }
    if (status == DEV_E_NO_CARD) {
        dev_card_gone(dev);
    }
    return status;
}

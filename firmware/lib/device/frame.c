/*
 * Frames: a zero, COBS of (type, seq, payload, CRC-32), a zero. COBS: Cheshire, Baker,
 * "Consistent overhead byte stuffing", IEEE/ACM Trans. Networking 7(2), 1999.
 */
#include "internal.h"

#define OVERHEAD 6u /* type, seq, CRC-32 */

void dev_frame_reset(struct dev_frame *frame) {
    frame->open = false;
    frame->over = false;
    frame->len = 0;
}

/* Decodes in place. The length, or 0: not COBS. */
static uint32_t unstuff(uint8_t *data, uint32_t len) {
    uint32_t from = 0, to = 0;
    while (from < len) {
        const uint32_t code = data[from++];
        if (code - 1 > len - from) {
            return 0;
        }
        for (uint32_t i = 1; i < code; ++i) {
            data[to++] = data[from++];
        }
        if (code < 255 && from < len) {
            data[to++] = 0;
        }
    }
    return to;
}

enum dev_received dev_frame_take(struct dev_frame *frame, uint8_t byte) {
    if (byte != 0) {
        if (!frame->open) {
            return DEV_TEXT;
        }
        if (frame->len == DEV_FRAME) {
            frame->over = true;
        } else {
            frame->data[frame->len++] = byte;
        }
        return DEV_NOTHING;
    }
    const uint32_t stuffed = frame->over ? 0 : frame->len;
    const bool open = frame->open;
    dev_frame_reset(frame);
    frame->open = true;
    if (!open || stuffed == 0) {
        return DEV_NOTHING;
    }
    const uint32_t len = unstuff(frame->data, stuffed);
    if (len < OVERHEAD || len > DEV_PAYLOAD + OVERHEAD ||
        tllm_crc32(0, frame->data, len - 4) != dev_get_u32(frame->data + len - 4)) {
        return DEV_NOTHING;
    }
    frame->open = false;
    frame->len = len - 4;
    return DEV_WHOLE;
}

/* One block of COBS on its way out: block[0] is its code. */
struct stuffer {
    struct dev *dev;
    uint8_t block[255];
    uint32_t n;
    uint32_t crc;
};

static void flush(struct stuffer *out) {
    out->block[0] = (uint8_t)out->n;
    out->dev->port->line_write(out->dev->port->ctx, out->block, out->n);
    out->n = 1;
}

static void stuff(struct stuffer *out, const uint8_t *bytes, uint32_t len) {
    out->crc = tllm_crc32(out->crc, bytes, len);
    for (uint32_t i = 0; i < len; ++i) {
        if (out->n == 255) {
            flush(out);
        }
        if (bytes[i] == 0) {
            flush(out);
        } else {
            out->block[out->n++] = bytes[i];
        }
    }
}

void dev_send(struct dev *dev, uint8_t type, uint8_t seq, const void *head, uint32_t head_len,
              const void *body, uint32_t body_len) {
    static const uint8_t zero = 0;
    const uint8_t start[2] = {type, seq};
    uint8_t crc[4];
    struct stuffer out = {.dev = dev, .n = 1};
    dev->port->line_write(dev->port->ctx, &zero, 1);
    stuff(&out, start, 2);
    stuff(&out, head, head_len);
    stuff(&out, body, body_len);
    dev_set_u32(crc, out.crc);
    stuff(&out, crc, 4);
    flush(&out);
    dev->port->line_write(dev->port->ctx, &zero, 1);
    dev->sent_us = dev_now(dev);
}

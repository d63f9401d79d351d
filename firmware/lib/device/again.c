/* What a bad line lost, once more: requests that change nothing and are answered at once. */
#include "internal.h"

void dev_answer_plainly(struct dev *dev, uint8_t type, uint8_t seq, int status) {
    uint8_t bytes[4];
    const char *words = status == 0 ? NULL : dev_words(status);
    dev_set_u32(bytes, (uint32_t)status);
    dev_send(dev, type | DEV_ANSWER, seq, bytes, 4, words,
             words != NULL ? (uint32_t)strlen(words) : 0);
}

void dev_said_start(struct dev *dev) {
    dev->said.bytes = dev->said.crc = 0;
    dev->said.seq = dev->seq;
}

void dev_said_add(struct dev *dev, const char *text, uint32_t len) {
    struct dev_said *said = &dev->said;
    said->crc = tllm_crc32(said->crc, text, len);
    for (uint32_t i = 0; i < len; ++i) {
        said->kept[said->bytes++ % DEV_KEPT] = (uint8_t)text[i];
    }
}

static int text(struct dev *dev, uint8_t seq, const uint8_t *payload, uint32_t len) {
    const struct dev_said *said = &dev->said;
    uint8_t head[12];
    if (len != 6) {
        return DEV_E_PAYLOAD;
    }
    if (said->seq == 0 || said->seq != payload[0]) {
        return DEV_E_STATE;
    }
    uint32_t offset = dev_get_u32(payload + 1), n = payload[5];
    const uint32_t oldest = said->bytes > DEV_KEPT ? said->bytes - DEV_KEPT : 0;
    offset = offset < oldest ? oldest : offset;
    offset = offset > said->bytes ? said->bytes : offset;
    const uint32_t at = offset % DEV_KEPT;
    n = n < said->bytes - offset ? n : said->bytes - offset;
    n = n < DEV_KEPT - at ? n : DEV_KEPT - at;
    dev_set_u32(head, 0);
    dev_set_u32(head + 4, said->bytes);
    dev_set_u32(head + 8, offset);
    dev_send(dev, DEV_TEXT_AGAIN | DEV_ANSWER, seq, head, sizeof head, said->kept + at, n);
    return 0;
}

static int part(struct dev *dev, uint8_t seq, const uint8_t *payload, uint32_t len) {
    uint8_t head[12];
    if (len != 3) {
        return DEV_E_PAYLOAD;
    }
    if (dev->running) {
        return DEV_E_BUSY;
    }
    if (dev->answered_type == 0) {
        return DEV_E_STATE;
    }
    uint32_t offset = dev_get_u16(payload), n = payload[2];
    offset = offset < dev->answer_len ? offset : dev->answer_len;
    n = n < dev->answer_len - offset ? n : dev->answer_len - offset;
    dev_set_u32(head, 0);
    head[4] = dev->answered_type | DEV_ANSWER;
    head[5] = dev->answered_seq;
    head[6] = (uint8_t)dev->answer_len;
    head[7] = (uint8_t)(dev->answer_len >> 8);
    dev_set_u32(head + 8, tllm_crc32(0, dev->answer, dev->answer_len));
    dev_send(dev, DEV_PART | DEV_ANSWER, seq, head, sizeof head, dev->answer + offset, n);
    return 0;
}

static int stop(struct dev *dev, uint8_t seq, uint32_t len) {
    if (len != 0) {
        return DEV_E_PAYLOAD;
    }
    dev->cancel = dev->running;
    dev_answer_plainly(dev, DEV_STOP, seq, 0);
    return 0;
}

bool dev_answer_at_once(struct dev *dev, uint8_t type, uint8_t seq, const uint8_t *payload,
                        uint32_t len) {
    int status;
    if (type == DEV_STOP) {
        status = stop(dev, seq, len);
    } else if (type == DEV_TEXT_AGAIN) {
        status = text(dev, seq, payload, len);
    } else if (type == DEV_PART) {
        status = part(dev, seq, payload, len);
    } else {
        return false;
    }
    if (status < 0) {
        dev_answer_plainly(dev, type, seq, status);
    }
    return true;
}

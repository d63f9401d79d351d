/* What went wrong, in words. */
#include "internal.h"

struct dev_text *dev_error(struct dev *dev) {
    dev_text_start(&dev->error, dev->sentence, sizeof dev->sentence);
    return &dev->error;
}

int dev_fail(struct dev *dev, int status, const char *sentence) {
    char copy[DEV_SENTENCE]; /* it may be dev->sentence itself */
    struct dev_text text;
    dev_text_start(&text, copy, sizeof copy);
    dev_text_add(&text, sentence);
    dev_text_add(dev_error(dev), copy);
    return status;
}

const char *dev_words(int status) {
    switch (status) {
    case TLLM_E_IO:
        return "The card failed: check how it sits, or try another card.";
    case TLLM_E_CONTEXT:
        return "The context is full: /reset begins anew, /context drop forgets the oldest turns.";
    case TLLM_E_CANCELLED:
        return "Stopped.";
    case TLLM_E_UTF8:
        return "That is not UTF-8 text; nothing was done.";
    case TLLM_E_TOO_LONG:
        return "The prompt is longer than the context allows; nothing was done.";
    case TLLM_E_LIMIT:
        return "The model is larger than this firmware supports.";
    case DEV_E_NO_MODEL:
        return "There is no model on the card: `host upload` or `host card` puts one there.";
    case DEV_E_NO_CARD:
        return "The card is gone or cannot be read; the board goes on when it is back.";
    case DEV_E_FS:
        return "The card's file system refused.";
    case DEV_E_FULL:
        return "The card is full.";
    case DEV_E_UNKNOWN:
        return "This firmware knows no such request.";
    case DEV_E_BUSY:
        return "Another request is running.";
    case DEV_E_PAYLOAD:
        return "The request is not of its stated form.";
    case DEV_E_NAME:
        return "That is no name of a file that may be written.";
    default:
        return NULL;
    }
}

int dev_explain(struct dev *dev, int status) {
    if (status >= 0 || dev->sentence[0] != '\0') {
        return status;
    }
    const bool crc = status == TLLM_E_CRC;
    if ((crc || status == DEV_E_CARD_READ) && dev->model != NULL) {
        const struct tllm_fault *fault = crc ? &dev->engine.fault : &dev->fault;
        struct dev_text *text = dev_error(dev);
        dev_text_add(text,
                     crc ? "The card gave wrong bytes of " : "The card failed while reading ");
        dev_text_add(text, dev->model->files[fault->file].name);
        dev_text_add(text, " at byte ");
        dev_text_number(text, fault->offset);
        dev_text_add(text, crc ? ": copy the package again, or try another card."
                               : ": check how it sits, or try another card.");
        return status;
    }
    const char *sentence = dev_words(status);
    if (sentence != NULL) {
        return dev_fail(dev, status, sentence);
    }
    struct dev_text *text = dev_error(dev);
    dev_text_add(text, "Error ");
    dev_text_signed(text, status);
    dev_text_add(text, "; nothing was done.");
    return status;
}

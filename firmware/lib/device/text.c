/* Little-endian bytes, bounded texts and decimal numbers. */
#include "internal.h"

uint16_t dev_get_u16(const uint8_t *bytes) {
    return (uint16_t)(bytes[0] | (bytes[1] << 8));
}

uint32_t dev_get_u32(const uint8_t *bytes) {
    return bytes[0] | ((uint32_t)bytes[1] << 8) | ((uint32_t)bytes[2] << 16) |
           ((uint32_t)bytes[3] << 24);
}

uint64_t dev_get_u64(const uint8_t *bytes) {
    return dev_get_u32(bytes) | ((uint64_t)dev_get_u32(bytes + 4) << 32);
}

void dev_set_u32(uint8_t *bytes, uint32_t value) {
    for (uint32_t i = 0; i < 4; ++i) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
}

void dev_set_u64(uint8_t *bytes, uint64_t value) {
    dev_set_u32(bytes, (uint32_t)value);
    dev_set_u32(bytes + 4, (uint32_t)(value >> 32));
}

void dev_text_start(struct dev_text *text, char *at, uint32_t room) {
    *text = (struct dev_text){.at = at, .room = room};
    at[0] = '\0';
}

void dev_text_bytes(struct dev_text *text, const char *bytes, uint32_t len) {
    if (len >= text->room - text->len) {
        return;
    }
    memcpy(text->at + text->len, bytes, len);
    text->len += len;
    text->at[text->len] = '\0';
}

void dev_text_add(struct dev_text *text, const char *string) {
    dev_text_bytes(text, string, (uint32_t)strlen(string));
}

static void add_padded(struct dev_text *text, uint64_t number, uint32_t digits) {
    char buffer[20];
    uint32_t at = sizeof buffer;
    do {
        buffer[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0 || sizeof buffer - at < digits);
    dev_text_bytes(text, buffer + at, (uint32_t)sizeof buffer - at);
}

void dev_text_number(struct dev_text *text, uint64_t number) {
    add_padded(text, number, 1);
}

void dev_text_signed(struct dev_text *text, int64_t number) {
    if (number < 0) {
        dev_text_add(text, "-");
    }
    dev_text_number(text, number < 0 ? 0 - (uint64_t)number : (uint64_t)number);
}

void dev_text_ratio(struct dev_text *text, uint64_t numerator, uint64_t denominator,
                    uint32_t decimals) {
    static const uint32_t powers[] = {1, 10, 100, 1000};
    const uint32_t power = powers[decimals];
    const uint64_t whole = numerator / denominator;
    const uint64_t part = (numerator % denominator * power + denominator / 2) / denominator;
    dev_text_number(text, whole + part / power);
    if (decimals > 0) {
        dev_text_add(text, ".");
        add_padded(text, part % power, decimals);
    }
}

void dev_text_hex(struct dev_text *text, const uint8_t *bytes, uint32_t n) {
    static const char digits[] = "0123456789abcdef";
    for (uint32_t i = 0; i < n; ++i) {
        const char pair[2] = {digits[bytes[i] >> 4], digits[bytes[i] & 15]};
        dev_text_bytes(text, pair, 2);
    }
}

static void add_key(struct dev_text *text, const char *key) {
    const char last = text->len > 0 ? text->at[text->len - 1] : '{';
    dev_text_add(text, last == '{' ? "\"" : ",\"");
    dev_text_add(text, key);
    dev_text_add(text, "\":");
}

void dev_json_string(struct dev_text *text, const char *key, const char *value) {
    add_key(text, key);
    dev_text_add(text, "\"");
    for (const char *c = value; c != NULL && *c != '\0'; ++c) {
        if (*c == '"' || *c == '\\') {
            dev_text_add(text, "\\");
            dev_text_bytes(text, c, 1);
        } else if ((unsigned char)*c < 0x20) {
            const uint8_t code = (uint8_t)*c;
            dev_text_add(text, "\\u00");
            dev_text_hex(text, &code, 1);
        } else {
            dev_text_bytes(text, c, 1);
        }
    }
    dev_text_add(text, "\"");
}

void dev_json_number(struct dev_text *text, const char *key, uint64_t value) {
    add_key(text, key);
    dev_text_number(text, value);
}

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

bool dev_parse_number(const char *string, uint64_t *number) {
    uint64_t value = 0;
    if (!is_digit(*string)) {
        return false;
    }
    for (; is_digit(*string); ++string) {
        const uint64_t digit = (uint64_t)(*string - '0');
        if (value > (UINT64_MAX - digit) / 10) {
            return false;
        }
        value = value * 10 + digit;
    }
    *number = value;
    return *string == '\0';
}

bool dev_parse_q16(const char *string, uint32_t *q16) {
    uint64_t whole = 0, part = 0, power = 1;
    bool any = false;
    for (; is_digit(*string); ++string) {
        whole = whole * 10 + (uint64_t)(*string - '0');
        any = true;
        if (whole > UINT16_MAX) {
            return false;
        }
    }
    if (*string == '.') {
        for (++string; is_digit(*string); ++string) {
            any = true;
            if (power < 1000000000) {
                part = part * 10 + (uint64_t)(*string - '0');
                power *= 10;
            }
        }
    }
    const uint64_t value = (whole << 16) + ((part << 16) + power / 2) / power;
    if (!any || *string != '\0' || value > UINT32_MAX) {
        return false;
    }
    *q16 = (uint32_t)value;
    return true;
}

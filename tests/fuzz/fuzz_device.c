/*
 * The whole device program. The input is a script: a byte of what the card holds, then records of
 * what comes over the line: text, raw bytes, or a request that gets its frame and CRC here.
 */
#include "ram_board.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    FAST = 60000,
    BULK = 400000,
    LINE = 65536,
};

static struct ram_board packaged, empty;
static _Alignas(64) uint8_t fast[FAST], bulk[BULK];
static uint8_t line[LINE];
static struct dev dev;

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    ram_board_load(&packaged, ram_package(), "");
    return 0;
}

static size_t put_frame(uint8_t *to, uint8_t type, uint8_t seq, const uint8_t *payload,
                        uint32_t len) {
    uint8_t body[2 + 255 + 4] = {type, seq};
    memcpy(body + 2, payload, len);
    const uint32_t crc = tllm_crc32(0, body, 2 + len);
    for (uint32_t i = 0; i < 4; ++i) {
        body[2 + len + i] = (uint8_t)(crc >> (8 * i));
    }
    size_t n = 0, code = 1;
    to[n++] = 0;
    to[n++] = 1;
    for (uint32_t i = 0; i < 6 + len; ++i) {
        if (to[code] == 255) {
            code = n;
            to[n++] = 1;
        }
        if (body[i] == 0) {
            code = n;
            to[n++] = 1;
        }
        if (body[i] != 0) {
            to[n++] = body[i];
            to[code]++;
        }
    }
    to[n++] = 0;
    return n;
}

/* The script as bytes on the line. */
static size_t play(const uint8_t *data, size_t size) {
    size_t n = 0;
    for (size_t at = 0; at + 2 < size && n + 600 < LINE;) {
        const uint8_t what = data[at], given = data[at + 1];
        const uint32_t left = (uint32_t)(size - at - 2), len = given < left ? given : left;
        const uint8_t *bytes = data + at + 2;
        if (what < 0x40) {
            n += put_frame(line + n, what, (uint8_t)(1 + at % 255), bytes, len);
        } else {
            memcpy(line + n, bytes, len);
            n += len;
        }
        at += 2 + len;
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) {
        return 0;
    }
    struct ram_board board;
    ram_board_copy(&board, data[0] & 1 ? &empty : &packaged);
    board.gone_after = data[0] & 2 ? data[1] : 0;
    board.line = line;
    board.line_len = play(data + 2, size - 2);
    const struct dev_port port = ram_board_port(&board);
    const struct dev_config config = {
        .port = &port,
        .fast = fast,
        .fast_bytes = FAST,
        .bulk = bulk,
        .bulk_bytes = data[0] & 4 ? BULK / 2 : BULK,
        .baud = 115200,
        .version = "fuzz",
    };
    int status = DEV_RESTART;
    for (int boots = 0; status == DEV_RESTART && boots < 4; ++boots) {
        memset(board.handles, 0xff, sizeof board.handles);
        status = dev_init(&dev, &config);
        status = status == 0 ? dev_run(&dev) : status;
    }
    ram_board_free(&board);
    return 0;
}

/*
 * The whole device program. The input is a script: two bytes of what the card holds and how it
 * fails, then records of what comes over the line: a byte of what it is, a byte of length, bytes.
 */
#include "card.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    FAST = 60000,
    BULK = 400000,
    CARD = 1 << 20,
    DATA = 0x23, /* a request that holds the CRC-32 of its bytes */
    READ_TEST = 0x30,
    LONG = RAM_BOARD_PAYLOAD / 255,
};

static struct ram_board *packaged;

/* A READ_TEST of gigabytes would take its time, as asked. */
static void request(struct ram_board *board, uint8_t type, uint8_t seq, const uint8_t *payload,
                    uint32_t len) {
    uint8_t copy[RAM_BOARD_PAYLOAD];
    memcpy(copy, payload, len);
    if (type == READ_TEST && len >= 8) {
        copy[6] = copy[7] = 0;
    }
    ram_board_request(board, type, seq, copy, len);
}

/* A request made longer with its last byte, and DATA with the right checksum. */
static void request_long(struct ram_board *board, uint8_t type, uint8_t seq, const uint8_t *bytes,
                         uint32_t len) {
    uint8_t payload[RAM_BOARD_PAYLOAD];
    const uint32_t n = LONG * len;
    memcpy(payload, bytes, len);
    memset(payload + len, len > 0 ? bytes[len - 1] : 0, n - len);
    if (type == DATA && n > 10) {
        const uint32_t crc = tllm_crc32(0, payload + 10, n - 10);
        for (uint32_t i = 0; i < 4; ++i) {
            payload[6 + i] = (uint8_t)(crc >> (8 * i));
        }
    }
    request(board, type, seq, payload, n);
}

static void play(struct ram_board *board, const uint8_t *data, size_t size) {
    uint8_t heard[4096];
    for (size_t at = 0; at + 2 <= size;) {
        const uint8_t what = data[at], given = data[at + 1], seq = (uint8_t)(1 + at % 255);
        const uint8_t *bytes = data + at + 2;
        const uint32_t left = (uint32_t)(size - at - 2);
        const uint32_t len = what >= 0xc0 ? 0 : given < left ? given : left;
        if (what < 0x40) {
            request(board, what, seq, bytes, len);
        } else if (what < 0x80) {
            request_long(board, what & 0x3f, seq, bytes, len);
        } else if (what < 0xc0) {
            ram_board_send(board, bytes, len, 0); /* typed, or a frame that is none */
        } else {
            (void)ram_board_receive(board, heard, sizeof heard, given * 2000u);
        }
        at += 2 + len;
    }
    ram_board_settle(board);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) {
        return 0;
    }
    if (packaged == NULL) {
        packaged = ram_board_new(64, 64, 0);
        card_load(packaged);
    }
    const uint8_t how = data[0], number = data[1];
    struct ram_board *board = ram_board_new(FAST, how & 2 ? BULK / 2 : BULK, 0);
    if (board == NULL) {
        return 0;
    }
    if ((how & 1) == 0) {
        card_copy(board, packaged);
    }
    struct ram_faults *faults = ram_board_faults(board);
    faults->card_bytes = CARD;
    faults->to_board.late = how & 4 ? UINT32_MAX / 64 : 0;
    faults->read = how & 8 ? number : 0;
    faults->read_fault = (how >> 4) & 3;
    faults->for_ever = (how & 0x40) != 0;
    faults->reset_after = how & 0x80 ? number * 8u : 0;
    if (ram_board_boot(board) == 0) {
        play(board, data + 2, size - 2);
        if (ram_board_leaks(board) > 0) {
            abort();
        }
    }
    ram_board_free(board);
    return 0;
}

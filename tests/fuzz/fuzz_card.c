/*
 * What lies on the card, changed: the board boots from it, answers and checks. The input is a byte
 * of where the package lies and which checksums are made right again, one of the board's memory,
 * then records: a byte of the
 * file, u16 offset, a byte of length, bytes to put there; length 0 cuts the file at the offset.
 */
#include "card.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    FAST = 60000,
    BULK = 400000, /* a byte of the input says how much of it there is */
    LONGEST = 0x10000 + 255,
    SLOT = 64,
    IN_SLOT = 1, /* the package is the current one of two slots, not in the root */
    RIGHT_CRCS = 2,
    RIGHT_CHUNKS = 4,
};

static const char *const names[] = {
    "descriptor.bin",     "tokenizer.bin", "embed_tokens.bin", "layer00_norm1.bin",
    "layer01_k_proj.bin", "lm_head.bin",   "/tllm/slot0",      "/tllm/slot1",
};
static const uint8_t typed[] = "on a\r/info\r/n 2\r\xe6\x97\xa5 b\r/stats\r";
static struct ram_board *packaged;

static uint32_t get_u32(const uint8_t *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void set_u32(uint8_t *to, uint32_t value) {
    for (uint32_t i = 0; i < 4; ++i) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

static void put(struct ram_board *board, const char *path, const uint8_t *bytes, uint32_t size) {
    if (ram_board_put(board, path, bytes, size) != 0) {
        abort();
    }
}

/* Copies the package; its folder. */
static const char *lay(struct ram_board *board, bool in_slot) {
    static char folder[DEV_PATH];
    uint8_t slot[SLOT] = "TSLT";
    const char *from;
    uint32_t size = 0;
    const uint8_t *fingerprint = ram_board_get(packaged, "/descriptor.bin", &size) + 96;
    const int n = snprintf(folder, sizeof folder, "/tllm/%02x%02x%02x%02x", fingerprint[0],
                           fingerprint[1], fingerprint[2], fingerprint[3]);
    folder[in_slot ? n : 0] = '\0';
    for (uint32_t i = 0; (from = ram_board_name(packaged, i)) != NULL; ++i) {
        char path[2 * DEV_PATH];
        snprintf(path, sizeof path, "%s%s", folder, from);
        const uint8_t *bytes = ram_board_get(packaged, from, &size);
        put(board, path, bytes, size);
    }
    memcpy(slot + 8, fingerprint, 32);
    for (uint32_t i = 0; in_slot && i < 2; ++i) {
        set_u32(slot + 4, 7 + i);
        set_u32(slot + 60, tllm_crc32(0, slot, 60));
        put(board, names[6 + i], slot, sizeof slot);
    }
    return folder;
}

/* Puts the right checksums of a file's chunks where its descriptor has them. */
static void seal_chunks(uint8_t *descriptor, uint32_t size, const char *name, const uint8_t *bytes,
                        uint32_t len) {
    const uint64_t files = get_u32(descriptor + 72), tensors = get_u32(descriptor + 76);
    const uint64_t crcs = 160 + files * 48 + tensors * 32 + (uint64_t)get_u32(descriptor + 80) * 4;
    for (uint64_t at = 160; at < 160 + files * 48 && at + 48 <= size; at += 48) {
        const uint64_t first = crcs + (uint64_t)get_u32(descriptor + at + 36) * 4;
        if (strncmp((const char *)descriptor + at, name, 32) != 0) {
            continue;
        }
        for (uint32_t from = 0, i = 0; from < len; from += TLLM_CHUNK, ++i) {
            const uint32_t n = len - from < TLLM_CHUNK ? len - from : TLLM_CHUNK;
            if (first + 4 * i + 4 <= size) {
                set_u32(descriptor + first + 4 * i, tllm_crc32(0, bytes + from, n));
            }
        }
    }
}

static void change(struct ram_board *board, const char *folder, const uint8_t *record, uint32_t len,
                   uint8_t how) {
    static uint8_t bytes[LONGEST], descriptor[LONGEST];
    const char *name = names[record[0] % (sizeof names / sizeof names[0])];
    const uint32_t at = record[1] | (uint32_t)record[2] << 8;
    char path[2 * DEV_PATH], facts[2 * DEV_PATH];
    uint32_t size = 0, facts_size = 0;
    snprintf(path, sizeof path, "%s%s%s", name[0] == '/' ? "" : folder, name[0] == '/' ? "" : "/",
             name);
    snprintf(facts, sizeof facts, "%s/%s", folder, names[0]);
    const uint8_t *old = ram_board_get(board, path, &size);
    memset(bytes, 0, sizeof bytes);
    memcpy(bytes, old == NULL ? bytes : old, size);
    memcpy(bytes + at, record + 4, len);
    size = len == 0 ? at : at + len > size ? at + len : size;
    if (how & RIGHT_CRCS && name == names[0] && size >= 4) {
        set_u32(bytes + size - 4, tllm_crc32(0, bytes, size - 4));
    }
    if (how & RIGHT_CRCS && name[0] == '/' && size == SLOT) {
        set_u32(bytes + 60, tllm_crc32(0, bytes, 60));
    }
    put(board, path, bytes, size);
    old = ram_board_get(board, facts, &facts_size);
    if (how & RIGHT_CHUNKS && name != names[0] && name[0] != '/' && facts_size >= 164) {
        memcpy(descriptor, old, facts_size);
        seal_chunks(descriptor, facts_size - 4, name, bytes, size);
        set_u32(descriptor + facts_size - 4, tllm_crc32(0, descriptor, facts_size - 4));
        put(board, facts, descriptor, facts_size);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const uint8_t fed[] = {3, 1, 0, 0, 0, 200, 0, 0, 0}, all[] = {0, 0, 0, 0, 99, 0, 0, 0};
    if (size < 2) {
        return 0;
    }
    if (packaged == NULL) {
        packaged = ram_board_new(64, 64, 0);
        card_load(packaged);
    }
    struct ram_board *board = ram_board_new(FAST, BULK / 255 * data[1], 0);
    if (board == NULL) {
        return 0;
    }
    const char *folder = lay(board, (data[0] & IN_SLOT) != 0);
    for (size_t at = 2; at + 4 <= size;) {
        const size_t left = size - at - 4, len = data[at + 3] < left ? data[at + 3] : left;
        change(board, folder, data + at, (uint32_t)len, data[0]);
        at += 4 + len;
    }
    if (ram_board_boot(board) == 0) {
        ram_board_send(board, typed, sizeof typed - 1, 0);
        ram_board_settle(board);
        ram_board_request(board, 0x13, 1, fed, sizeof fed);
        ram_board_request(board, 0x31, 2, all, sizeof all);
        ram_board_settle(board);
        if (ram_board_leaks(board) > 0) {
            abort();
        }
    }
    ram_board_free(board);
    return 0;
}

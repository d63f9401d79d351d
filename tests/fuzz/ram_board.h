/* A board for fuzzers: a card in memory, a line that plays what it is given, a clock that ticks. */
#ifndef RAM_BOARD_H
#define RAM_BOARD_H

#include "device.h"

#define RAM_FILES    64
#define RAM_CARD_MAX 1048576u /* bytes of one file */

struct ram_file {
    char path[DEV_PATH];
    uint8_t *data;
    uint32_t size;
    bool directory;
};

struct ram_board {
    struct ram_file files[RAM_FILES]; /* path "" is free */
    int handles[16];                  /* file numbers, -1 free */
    const uint8_t *line;
    size_t line_at, line_len;
    uint64_t now_us;
    uint64_t written;           /* bytes to the line */
    uint32_t reads, gone_after; /* 0: never */
    bool gone;
};

/* Copies a package's files from a directory of this machine to a folder of the card. */
void ram_board_load(struct ram_board *board, const char *directory, const char *folder);
void ram_board_store(struct ram_board *board, const char *path, const void *data, uint32_t size);
void ram_board_copy(struct ram_board *to, const struct ram_board *from);
void ram_board_free(struct ram_board *board);
struct dev_port ram_board_port(struct ram_board *board);

/* The package that TLLM_FUZZ_PACKAGE names. */
const char *ram_package(void);

#endif

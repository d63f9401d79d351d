/*
 * The board, for struct dev_port: thin calls into ESP-IDF. What could be portable is in
 * firmware/lib/device.
 */
#ifndef BOARD_H
#define BOARD_H

#include "device.h"
#include "sdkconfig.h"

#if CONFIG_IDF_TARGET_ESP32
#define BOARD_NAME "ESP32-CAM"
#define BOARD_CHIP "ESP32"
#define BOARD_LED  4 /* the flash LED's transistor, on the card's D1 as well */
/* Slot 1's pins are fixed: CLK 14, CMD 15, D0 2, D1 4, D2 12, D3 13. */
#define BOARD_SD_PINS 0
#elif CONFIG_IDF_TARGET_ESP32S3
#define BOARD_NAME    "ESP32-S3"
#define BOARD_CHIP    "ESP32-S3"
#define BOARD_LED     (-1)
#define BOARD_SD_PINS 1
#define BOARD_SD_CLK  39
#define BOARD_SD_CMD  38
#define BOARD_SD_D0   40
#define BOARD_SD_D1   41
#define BOARD_SD_D2   42
#define BOARD_SD_D3   47
#else
#error "boards with an ESP32 or an ESP32-S3 only"
#endif

#define BOARD_BAUD  115200u
#define BOARD_CORES 2u

/* ---- the line (line.c) ---- */
int line_start(void);
int line_read(void *ctx, void *dst, uint32_t len, uint32_t wait_ms);
int line_write(void *ctx, const void *src, uint32_t len);
int line_set_baud(void *ctx, uint32_t baud);
void line_say(const char *sentence);

/* ---- the program (main.c) ---- */
/* Called by what waits for the card: feeds the watchdog, looks at the line. True: stop waiting. */
bool board_stopping(void);

/*
 * ---- the card (card.c, files.c) ----
 * All of it is done by the card's task, one thing at a time, while the caller waits and heeds a
 * stop: then it returns TLLM_E_CANCELLED, and what was begun ends later (card_busy). Only what
 * writes is waited for to its end.
 */
int card_mount(void *ctx, bool slower);
int card_file_open(void *ctx, const char *path, enum dev_open how);
int card_file_close(void *ctx, int file);
int card_file_read(void *ctx, int file, uint32_t offset, void *dst, uint32_t len);
int card_file_write(void *ctx, int file, uint32_t offset, const void *src, uint32_t len);
int card_file_truncate(void *ctx, int file, uint32_t size);
int card_file_sync(void *ctx, int file);
int card_file_rename(void *ctx, const char *from, const char *to);
int card_file_remove(void *ctx, const char *path);
int card_file_size(void *ctx, const char *path, uint32_t *size);
int card_make_dir(void *ctx, const char *path);
int card_list(void *ctx, const char *path, uint32_t index, char *name, uint32_t name_len,
              uint32_t *size);
int card_space(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes);
void card_file_prefetch(void *ctx, int file, uint32_t offset, void *dst, uint32_t len);
bool card_busy(void *ctx, uint32_t wait_ms);
/* "SDHC 15.9 GB SU16G" and "4-bit 40 MHz"; empty without a card. */
const char *card_name(void);
const char *card_mode(void);

/* ---- two cores (cores.c) ---- */
/* Starts the worker on core 1 and the card's task. 0, or TLLM_E_FAST: no memory for them. */
int cores_start(void);
void cores_parallel(void *ctx, void (*fn)(void *arg, uint32_t part, uint32_t parts), void *arg,
                    uint32_t parts);
/* Runs job on the card's task; one at a time. */
void cores_card_start(void (*job)(void));
/* Waits for its end, once for each job. False: it still runs. */
bool cores_card_wait(uint32_t ms);

/* ---- memory (memory.c) ---- */
struct memory {
    void *fast, *bulk;
    size_t fast_bytes, bulk_bytes;
    size_t psram_bytes;                /* 0: there is none */
    bool psram_fails;                  /* it is there, but does not keep what is written */
    size_t fast_largest, bulk_largest; /* free blocks before anything was taken */
};
#define MEMORY_LEAST 4096u /* bytes of a region */
/* One allocation of each, as large as leaves ESP-IDF what it needs. 0, TLLM_E_FAST or TLLM_E_BULK.
 */
int memory_take(struct memory *memory);

#endif

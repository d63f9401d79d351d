/*
 * The board's program, portable: console, link, package service, the model's loading and the
 * engine. The simulated board, the firmware and the fuzzers run this same code behind this seam.
 * docs/PROTOCOL.md specifies what goes over the line, docs/FORMAT.md what lies on the card.
 */
#ifndef TLLM_DEVICE_H
#define TLLM_DEVICE_H

#include "tinyllm.h"

/* Negative errors beside enum tllm_error; docs/PROTOCOL.md lists them. */
enum dev_error {
    DEV_E_NO_MODEL = -100,
    DEV_E_NO_CARD = -101,
    DEV_E_FS = -102,
    DEV_E_FULL = -103,
    DEV_E_UNKNOWN = -104,
    DEV_E_BUSY = -105,
    DEV_E_PAYLOAD = -106,
    DEV_E_MISMATCH = -107,
    DEV_E_NAME = -108,
    DEV_E_STATE = -109,
    DEV_E_CARD_READ = -110,
    DEV_E_NO_MEMORY = -111,
    DEV_E_OTHER_MODEL = -112,
};

enum dev_open { DEV_READ, DEV_WRITE /* create or keep */ };

/*
 * What a board gives. Paths are absolute on the card ("/tllm/slot0"). Functions return 0 or a
 * count, or a negative error (one of the above). `file` handles are small integers >= 0.
 */
struct dev_port {
    void *ctx;

    /* The line. read: bytes that are there now, at most len, 0 for none, waiting at most wait_ms. */
    int (*line_read)(void *ctx, void *dst, uint32_t len, uint32_t wait_ms);
    int (*line_write)(void *ctx, const void *src, uint32_t len);
    int (*line_set_baud)(void *ctx, uint32_t baud); /* after what was written has left */

    /* The card. */
    int (*card_mount)(void *ctx, bool slower); /* again, at a lower clock if slower */
    int (*file_open)(void *ctx, const char *path, enum dev_open how);
    int (*file_close)(void *ctx, int file);
    int (*file_read)(void *ctx, int file, uint32_t offset, void *dst, uint32_t len); /* bytes read; short at the end */
    int (*file_write)(void *ctx, int file, uint32_t offset, const void *src, uint32_t len); /* 0 */
    int (*file_truncate)(void *ctx, int file, uint32_t size);
    int (*file_sync)(void *ctx, int file);
    int (*file_rename)(void *ctx, const char *from, const char *to); /* `to` does not exist */
    int (*file_remove)(void *ctx, const char *path);                 /* a file or an empty directory */
    int (*file_size)(void *ctx, const char *path, uint32_t *size);   /* DEV_E_FS if absent */
    int (*make_dir)(void *ctx, const char *path);                    /* 0 if it is there */
    /* The index-th entry of a directory: 1, or 0 past the last. */
    int (*list)(void *ctx, const char *path, uint32_t index, char *name, uint32_t name_len, uint32_t *size);
    int (*space)(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes);

    /*
     * Streamed reads of weights may be started ahead; NULL where the board cannot. As
     * tllm_port.prefetch, on an open file handle.
     */
    void (*file_prefetch)(void *ctx, int file, uint32_t offset, void *dst, uint32_t len);

    /* The rest. */
    uint64_t (*now_us)(void *ctx);
    void (*parallel)(void *ctx, void (*fn)(void *, uint32_t, uint32_t), void *arg, uint32_t parts); /* may be NULL */
    void (*feed_watchdog)(void *ctx);
    void (*restart)(void *ctx); /* may return in a simulation */
    /* JSON members, without braces, about the board: "board":"...","psram_bytes":...,"card":... ; returns its length. */
    int (*describe)(void *ctx, char *text, uint32_t len);
};

struct dev_config {
    const struct dev_port *port;
    void *fast;  /* internal RAM, 64-byte aligned, DMA-capable */
    size_t fast_bytes;
    void *bulk; /* PSRAM, 64-byte aligned */
    size_t bulk_bytes;
    uint32_t parts; /* cores that port->parallel uses */
    uint32_t context; /* positions, 0 = the model's, made smaller where memory asks for it */
    uint32_t baud;
    const struct tllm_model *compiled; /* the model this firmware was built for, or NULL: any */
    const char *version;  /* one line for the banner */
};
#endif

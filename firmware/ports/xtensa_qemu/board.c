#include "board.h"
#include "sim.h"

#include <string.h>

#define FAST_BYTES (160u * 1024u)
#define BULK_BYTES 3900000u
#define PATH_BYTES 512u

#define HOST_O_RDONLY 0
#define HOST_SEEK_SET 0
#define HOST_SEEK_END 2

static _Alignas(64) uint8_t fast[FAST_BYTES];

struct board {
    const char *card;
    uint32_t ticks; /* CCOUNT when the time was last asked for */
    uint64_t time;  /* ticks since the start */
};

static int line_read(void *ctx, void *dst, uint32_t len, uint32_t wait_ms) {
    struct {
        int32_t s, us;
    } wait = {(int32_t)(wait_ms / 1000), (int32_t)(wait_ms % 1000 * 1000)};
    (void)ctx;
    if (xq_simcall(XQ_SELECT_ONE, 0, 1, (uintptr_t)&wait) <= 0)
        return 0;
    int32_t n = xq_simcall(XQ_READ, 0, (uintptr_t)dst, len);
    return n > 0 ? n : TLLM_E_IO; /* ready, but nothing there: closed */
}

static int line_write(void *ctx, const void *src, uint32_t len) {
    const uint8_t *from = src;
    (void)ctx;
    while (len) {
        int32_t n = xq_simcall(XQ_WRITE, 1, (uintptr_t)from, len);
        if (n <= 0)
            return TLLM_E_IO;
        from += n;
        len -= (uint32_t)n;
    }
    return 0;
}

static int card_mount(void *ctx, bool slower) {
    (void)ctx, (void)slower;
    return 0;
}

static int file_open(void *ctx, const char *path, enum dev_open how) {
    const struct board *board = ctx;
    char full[PATH_BYTES];
    size_t root = strlen(board->card), rest = strlen(path);
    if (how != DEV_READ || root + rest >= sizeof full)
        return DEV_E_FS;
    memcpy(full, board->card, root);
    memcpy(full + root, path, rest + 1);
    int32_t file = xq_simcall(XQ_OPEN, (uintptr_t)full, HOST_O_RDONLY, 0);
    return file >= 0 ? file : DEV_E_FS;
}

static int file_close(void *ctx, int file) {
    (void)ctx;
    return xq_simcall(XQ_CLOSE, (uintptr_t)file, 0, 0) == 0 ? 0 : DEV_E_FS;
}

static int file_read(void *ctx, int file, uint32_t offset, void *dst, uint32_t len) {
    uint8_t *to = dst;
    uint32_t got = 0;
    (void)ctx;
    if (xq_simcall(XQ_LSEEK, (uintptr_t)file, offset, HOST_SEEK_SET) != (int32_t)offset)
        return TLLM_E_IO;
    while (got < len) {
        int32_t n = xq_simcall(XQ_READ, (uintptr_t)file, (uintptr_t)(to + got), len - got);
        if (n < 0)
            return TLLM_E_IO;
        if (n == 0)
            break;
        got += (uint32_t)n;
    }
    return (int)got;
}

static int file_size(void *ctx, const char *path, uint32_t *size) {
    int file = file_open(ctx, path, DEV_READ);
    if (file < 0)
        return file;
    int32_t end = xq_simcall(XQ_LSEEK, (uintptr_t)file, 0, HOST_SEEK_END);
    (void)file_close(ctx, file);
    *size = (uint32_t)end;
    return end >= 0 ? 0 : DEV_E_FS;
}

/* The card is only read: what would write is refused. */
static int file_write(void *ctx, int file, uint32_t offset, const void *src, uint32_t len) {
    (void)ctx, (void)file, (void)offset, (void)src, (void)len;
    return DEV_E_FS;
}

static int file_truncate(void *ctx, int file, uint32_t size) {
    (void)ctx, (void)file, (void)size;
    return DEV_E_FS;
}

static int file_sync(void *ctx, int file) {
    (void)ctx, (void)file;
    return DEV_E_FS;
}

static int file_rename(void *ctx, const char *from, const char *to) {
    (void)ctx, (void)from, (void)to;
    return DEV_E_FS;
}

static int on_path(void *ctx, const char *path) {
    (void)ctx, (void)path;
    return DEV_E_FS;
}

static int list(void *ctx, const char *path, uint32_t index, char *name, uint32_t name_len,
                uint32_t *size) {
    (void)ctx, (void)path, (void)index, (void)name, (void)name_len, (void)size;
    return DEV_E_FS;
}

static int space(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes) {
    (void)ctx;
    *free_bytes = *total_bytes = 0;
    return 0;
}

static uint64_t now_us(void *ctx) {
    struct board *board = ctx;
    uint32_t ticks = xq_ccount();
    board->time += ticks - board->ticks;
    board->ticks = ticks;
    return board->time / XQ_TICKS_PER_US;
}

static void restart(void *ctx) {
    (void)ctx;
}

static void describe(void *ctx, struct dev_board *about) {
    (void)ctx;
    about->board = "lx106 in QEMU";
    about->card = "a folder of this computer";
    about->card_mode = "read only";
    about->reset_reason = "power-on";
    about->psram_bytes = 4u << 20;
}

static struct board board;
static const struct dev_port port = {
    .ctx = &board,
    .line_read = line_read,
    .line_write = line_write,
    .card_mount = card_mount,
    .file_open = file_open,
    .file_close = file_close,
    .file_read = file_read,
    .file_write = file_write,
    .file_truncate = file_truncate,
    .file_sync = file_sync,
    .file_rename = file_rename,
    .file_remove = on_path,
    .file_size = file_size,
    .make_dir = on_path,
    .list = list,
    .space = space,
    .now_us = now_us,
    .restart = restart,
    .describe = describe,
};

int xq_boot(struct dev *dev, const char *card) {
    struct dev_config config = {
        .port = &port,
        .fast = fast,
        .fast_bytes = sizeof fast,
        .bulk = XQ_BULK,
        .bulk_bytes = BULK_BYTES,
        .baud = 115200,
        .version = "tinyllm " TLLM_VERSION "",
    };
    board.card = card;
    board.ticks = xq_ccount();
    return dev_init(dev, &config);
}

int xq_serve(const char *card) {
    static struct dev dev;
    for (;;) {
        int status = xq_boot(&dev, card);
        if (status < 0) {
            xq_print("The memory does not hold the board's program.\n");
            return 2;
        }
        if (dev_run(&dev) != DEV_RESTART)
            return 0;
    }
}

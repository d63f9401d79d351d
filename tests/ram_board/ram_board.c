#include "ram_board.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#define FILES      128
#define HANDLES    (DEV_HANDLES + 8u)
#define LINE_BYTES (1u << 16)
#define AHEAD      4096u
#define NS         1000000000u
#define BOOT_NOISE 256u
#define CARD_BYTES (64u << 20)

struct ram_file {
    char path[DEV_PATH]; /* "": free */
    uint8_t *data;
    uint32_t size, room;
    bool directory;
};

/* Bytes on their way in one direction, and when each is there. */
struct wire {
    uint8_t bytes[LINE_BYTES];
    uint64_t there_ns[LINE_BYTES];
    uint32_t at, len;
    uint64_t free_ns; /* when the last one is there */
};

struct ram_board {
    struct dev dev;
    struct dev_port port;
    struct dev_config config;
    struct ram_faults faults;
    uint8_t *fast, *bulk;
    struct ram_file files[FILES];
    int handles[HANDLES]; /* a file, or -1 */
    struct wire to_board, from_board;
    uint64_t clock_ns, until_ns, received, reads, random;
    uint32_t baud, first_baud, boots;
    bool frame_spoilt, gone;
    jmp_buf reset_vector;
};

static uint32_t draw(struct ram_board *board) {
    struct tllm_rng rng = {board->random ^ board->faults.seed};
    const uint32_t bits = tllm_rng_next(&rng);
    board->random = rng.state ^ board->faults.seed;
    return bits;
}

static bool strikes(struct ram_board *board, uint32_t chance) {
    return chance > 0 && draw(board) < chance;
}

/* ---- the line ---- */

static void put(struct wire *wire, uint8_t byte) {
    if (wire->at == wire->len) {
        wire->at = wire->len = 0;
    }
    if (wire->len == LINE_BYTES && wire->at > 0) {
        const uint32_t n = wire->len - wire->at;
        memmove(wire->bytes, wire->bytes + wire->at, n);
        memmove(wire->there_ns, wire->there_ns + wire->at, n * sizeof wire->there_ns[0]);
        wire->at = 0;
        wire->len = n;
    }
    if (wire->len < LINE_BYTES) { /* nobody reads: lost, as on a real line */
        wire->bytes[wire->len] = byte;
        wire->there_ns[wire->len++] = wire->free_ns;
    }
}

static void carry(struct ram_board *board, struct wire *wire, const struct ram_noise *noise,
                  const uint8_t *bytes, uint32_t len, uint32_t baud) {
    for (uint32_t i = 0; i < len; ++i) {
        uint8_t byte = bytes[i];
        if (wire->free_ns < board->clock_ns) {
            wire->free_ns = board->clock_ns;
        }
        wire->free_ns += baud == 0 ? 0 : (uint64_t)10 * NS / baud;
        if (baud != board->baud) {
            byte = (uint8_t)draw(board);
        }
        if (strikes(board, noise->late)) {
            wire->free_ns += (uint64_t)(draw(board) % 30 + 1) * 1000000;
        }
        if (strikes(board, noise->insert)) {
            put(wire, (uint8_t)draw(board));
        }
        if (byte == 0) { /* a frame begins or ends: a chance a frame, not a byte */
            board->frame_spoilt = strikes(board, board->faults.frames);
        } else if (board->frame_spoilt) {
            board->frame_spoilt = false;
            byte ^= (uint8_t)(byte == 1 ? 2 : 1);
        }
        if (strikes(board, noise->flip)) {
            byte ^= (uint8_t)(1u << (draw(board) & 7));
        }
        if (!strikes(board, noise->drop)) {
            put(wire, byte);
            if (strikes(board, noise->duplicate)) {
                put(wire, byte);
            }
        }
    }
}

static uint64_t earlier(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static uint64_t next_ns(const struct wire *wire) {
    return wire->at < wire->len ? wire->there_ns[wire->at] : UINT64_MAX;
}

static uint32_t take(struct ram_board *board, struct wire *wire, uint8_t *to, uint32_t len) {
    uint32_t n = 0;
    while (n < len && next_ns(wire) <= board->clock_ns) {
        to[n++] = wire->bytes[wire->at++];
    }
    return n;
}

static int line_read(void *ctx, void *dst, uint32_t len, uint32_t wait_ms) {
    struct ram_board *board = ctx;
    const uint64_t reset_after = board->faults.reset_after;
    uint64_t end = earlier(board->clock_ns + (uint64_t)wait_ms * 1000000, board->until_ns);
    end = earlier(end, next_ns(&board->from_board));
    end = earlier(end, next_ns(&board->to_board));
    if (wait_ms > 0 && end > board->clock_ns) {
        board->clock_ns = end;
    }
    if (reset_after > board->received && len > reset_after - board->received) {
        len = (uint32_t)(reset_after - board->received);
    }
    const uint32_t n = take(board, &board->to_board, dst, len);
    board->received += n;
    if (n > 0 && board->received == reset_after) {
        longjmp(board->reset_vector, 1);
    }
    return (int)n;
}

static int line_write(void *ctx, const void *src, uint32_t len) {
    struct ram_board *board = ctx;
    carry(board, &board->from_board, &board->faults.from_board, src, len, board->baud);
    return 0;
}

static int line_set_baud(void *ctx, uint32_t baud) {
    struct ram_board *board = ctx;
    board->baud = board->first_baud > 0 ? baud : 0;
    return 0;
}

static uint64_t now_us(void *ctx) {
    return ((struct ram_board *)ctx)->clock_ns / 1000;
}

/* Time passes while the board works, or its own timeouts would never come. */
static void feed_watchdog(void *ctx) {
    ((struct ram_board *)ctx)->clock_ns += 1000;
}

/* ---- the card ---- */

static int find(const struct ram_board *board, const char *path) {
    for (int i = 0; i < FILES; ++i) {
        if (board->files[i].path[0] != '\0' && strcmp(board->files[i].path, path) == 0) {
            return i;
        }
    }
    return -1;
}

static int create(struct ram_board *board, const char *path, bool directory) {
    for (int i = 0; i < FILES; ++i) {
        struct ram_file *file = &board->files[i];
        if (file->path[0] == '\0') {
            if (strlen(path) >= sizeof file->path) {
                return DEV_E_FS;
            }
            strcpy(file->path, path);
            file->directory = directory;
            return i;
        }
    }
    return DEV_E_FULL;
}

static uint32_t card_bytes(const struct ram_board *board) {
    return board->faults.card_bytes > 0 ? board->faults.card_bytes : CARD_BYTES;
}

static int resize(const struct ram_board *board, struct ram_file *file, uint64_t bytes) {
    const uint32_t size = (uint32_t)bytes;
    if (bytes > card_bytes(board)) {
        return DEV_E_FULL;
    }
    if (size > file->room) {
        uint8_t *data = realloc(file->data, (size_t)size * 2);
        if (data == NULL) {
            return DEV_E_FULL;
        }
        file->data = data;
        file->room = size * 2;
    }
    if (size > file->size) {
        memset(file->data + file->size, 0, size - file->size);
    }
    file->size = size;
    return 0;
}

static int card_mount(void *ctx, bool slower) {
    (void)slower;
    return ((struct ram_board *)ctx)->gone ? DEV_E_NO_CARD : 0;
}

static int file_open(void *ctx, const char *path, enum dev_open how) {
    struct ram_board *board = ctx;
    int file = find(board, path), handle = 0;
    if (board->gone) {
        return DEV_E_NO_CARD;
    }
    while (handle < (int)HANDLES && board->handles[handle] >= 0) {
        ++handle;
    }
    if (handle >= (int)DEV_HANDLES + 2) {
        abort(); /* the seam promises that no more are open */
    }
    if (file < 0 && how == DEV_WRITE) {
        file = create(board, path, false);
    }
    if (file < 0 || board->files[file].directory) {
        return DEV_E_FS;
    }
    board->handles[handle] = file;
    return handle;
}

static struct ram_file *opened(struct ram_board *board, int handle) {
    if (handle < 0 || handle >= (int)HANDLES || board->handles[handle] < 0) {
        abort(); /* a handle that is not open */
    }
    return &board->files[board->handles[handle]];
}

static int file_close(void *ctx, int handle) {
    struct ram_board *board = ctx;
    (void)opened(board, handle);
    board->handles[handle] = -1;
    return 0;
}

static int file_read(void *ctx, int handle, uint32_t offset, void *dst, uint32_t len) {
    struct ram_board *board = ctx;
    const struct ram_file *file = opened(board, handle);
    const struct ram_faults *faults = &board->faults;
    const uint64_t turn = ++board->reads;
    const bool struck =
        faults->read > 0 && (turn == faults->read || (faults->for_ever && turn > faults->read));
    uint32_t n = offset > file->size ? 0 : file->size - offset;
    n = n < len ? n : len;
    if ((uintptr_t)dst % 64 != 0) {
        abort();
    }
    board->gone = board->gone || (struck && faults->read_fault == 3);
    if (board->gone) {
        return DEV_E_NO_CARD;
    }
    memset(dst, 0xbd, (len + 511) / 512 * 512); /* the room that a driver may use */
    if (struck && faults->read_fault == 0) {
        return TLLM_E_IO;
    }
    if (n > 0) {
        n -= struck && faults->read_fault == 1;
        memcpy(dst, file->data + offset, n);
        if (struck && faults->read_fault == 2) {
            ((uint8_t *)dst)[n / 2] ^= 0x04;
        }
    }
    return (int)n;
}

static int file_truncate(void *ctx, int handle, uint32_t size) {
    return resize(ctx, opened(ctx, handle), size);
}

static int file_write(void *ctx, int handle, uint32_t offset, const void *src, uint32_t len) {
    struct ram_board *board = ctx;
    struct ram_file *file = opened(board, handle);
    const uint64_t end = (uint64_t)offset + len;
    const int status = board->gone         ? DEV_E_NO_CARD
                       : end <= file->size ? 0
                                           : resize(board, file, end);
    if (status == 0 && len > 0) {
        memcpy(file->data + offset, src, len);
    }
    return status;
}

static int file_sync(void *ctx, int handle) {
    (void)opened(ctx, handle);
    return 0;
}

static int file_rename(void *ctx, const char *from, const char *to) {
    struct ram_board *board = ctx;
    const int file = find(board, from);
    if (file < 0 || find(board, to) >= 0) {
        return DEV_E_FS;
    }
    strcpy(board->files[file].path, to);
    return 0;
}

static int file_remove(void *ctx, const char *path) {
    struct ram_board *board = ctx;
    const int file = find(board, path);
    const size_t n = strlen(path);
    if (file < 0) {
        return DEV_E_FS;
    }
    for (int i = 0; i < FILES; ++i) {
        if (strncmp(board->files[i].path, path, n) == 0 && board->files[i].path[n] == '/') {
            return DEV_E_FS;
        }
    }
    for (uint32_t i = 0; i < HANDLES; ++i) {
        if (board->handles[i] == file) {
            abort(); /* it is open */
        }
    }
    free(board->files[file].data);
    board->files[file] = (struct ram_file){0};
    return 0;
}

static int file_size(void *ctx, const char *path, uint32_t *size) {
    struct ram_board *board = ctx;
    const int file = find(board, path);
    if (board->gone) {
        return DEV_E_NO_CARD;
    }
    if (file < 0 || board->files[file].directory) {
        return DEV_E_FS;
    }
    *size = board->files[file].size;
    return 0;
}

static int make_dir(void *ctx, const char *path) {
    struct ram_board *board = ctx;
    const int made = find(board, path) >= 0 ? 0 : create(board, path, true);
    return made < 0 ? made : 0;
}

static int list(void *ctx, const char *path, uint32_t index, char *name, uint32_t name_len,
                uint32_t *size) {
    struct ram_board *board = ctx;
    const size_t n = strlen(path);
    if (find(board, path) < 0) {
        return DEV_E_FS;
    }
    for (int i = 0; i < FILES; ++i) {
        const struct ram_file *file = &board->files[i];
        if (strncmp(file->path, path, n) != 0 || file->path[n] != '/' ||
            strchr(file->path + n + 1, '/') != NULL || index-- > 0) {
            continue;
        }
        strncpy(name, file->path + n + 1, name_len - 1);
        name[name_len - 1] = '\0';
        *size = file->directory ? DEV_DIRECTORY : file->size;
        return 1;
    }
    return 0;
}

static int space(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes) {
    *free_bytes = *total_bytes = card_bytes(ctx);
    return 0;
}

static void restart(void *ctx) {
    (void)ctx;
}

static void describe(void *ctx, struct dev_board *about) {
    (void)ctx;
    *about = (struct dev_board){.board = "a board in a test", .reset_reason = "power-on"};
}

/* ---- the board ---- */

struct ram_board *ram_board_new(size_t fast_bytes, size_t bulk_bytes, uint32_t baud) {
    struct ram_board *board = calloc(1, sizeof *board);
    if (board == NULL) {
        return NULL;
    }
    board->fast = aligned_alloc(64, (fast_bytes + 63) / 64 * 64);
    board->bulk = aligned_alloc(64, (bulk_bytes + 63) / 64 * 64);
    if (board->fast == NULL || board->bulk == NULL) {
        ram_board_free(board);
        return NULL;
    }
    board->port = (struct dev_port){
        .ctx = board,
        .line_read = line_read,
        .line_write = line_write,
        .line_set_baud = line_set_baud,
        .card_mount = card_mount,
        .file_open = file_open,
        .file_close = file_close,
        .file_read = file_read,
        .file_write = file_write,
        .file_truncate = file_truncate,
        .file_sync = file_sync,
        .file_rename = file_rename,
        .file_remove = file_remove,
        .file_size = file_size,
        .make_dir = make_dir,
        .list = list,
        .space = space,
        .now_us = now_us,
        .feed_watchdog = feed_watchdog,
        .restart = restart,
        .describe = describe,
    };
    board->config = (struct dev_config){
        .port = &board->port,
        .fast = board->fast,
        .fast_bytes = fast_bytes,
        .bulk = board->bulk,
        .bulk_bytes = bulk_bytes,
        .baud = baud,
        .version = "tinyllm in a test",
    };
    board->first_baud = baud;
    board->until_ns = UINT64_MAX;
    return board;
}

void ram_board_free(struct ram_board *board) {
    for (int i = 0; board != NULL && i < FILES; ++i) {
        free(board->files[i].data);
    }
    if (board != NULL) {
        free(board->fast);
        free(board->bulk);
    }
    free(board);
}

struct ram_faults *ram_board_faults(struct ram_board *board) {
    return &board->faults;
}

struct dev_port *ram_board_port(struct ram_board *board) {
    return &board->port;
}

int ram_board_boot(struct ram_board *board) {
    for (uint32_t i = 0; i < HANDLES; ++i) {
        board->handles[i] = -1;
    }
    board->boots++;
    board->to_board.at = board->to_board.len = 0;
    board->baud = board->first_baud;
    for (uint32_t i = 0; board->faults.boot_noise && i < BOOT_NOISE; ++i) {
        const uint8_t byte = (uint8_t)draw(board);
        line_write(board, &byte, 1);
    }
    return dev_init(&board->dev, &board->config);
}

static void poll(struct ram_board *board, uint64_t until_ns) {
    board->until_ns = until_ns;
    if (setjmp(board->reset_vector) != 0 || dev_poll(&board->dev, 50) == DEV_RESTART) {
        (void)ram_board_boot(board); /* it booted before with the same memory */
    }
    board->clock_ns += 1000;
}

void ram_board_send(struct ram_board *board, const uint8_t *bytes, uint32_t len, uint32_t baud) {
    while (len > 0) {
        const uint32_t n = len < AHEAD ? len : AHEAD;
        carry(board, &board->to_board, &board->faults.to_board, bytes, n, baud);
        bytes += n;
        len -= n;
        while (board->to_board.len - board->to_board.at > AHEAD) {
            poll(board, UINT64_MAX);
        }
    }
}

void ram_board_request(struct ram_board *board, uint8_t type, uint8_t seq, const uint8_t *payload,
                       uint32_t len) {
    uint8_t body[2 + RAM_BOARD_PAYLOAD + 4] = {type, seq}, coded[2 * sizeof body];
    uint32_t n = 0, code = 1;
    memcpy(body + 2, payload, len);
    const uint32_t crc = tllm_crc32(0, body, 2 + len);
    for (uint32_t i = 0; i < 4; ++i) {
        body[2 + len + i] = (uint8_t)(crc >> (8 * i));
    }
    coded[n++] = 0;
    coded[n++] = 1; /* of a block of COBS, counted up as it fills */
    for (uint32_t i = 0; i < 2 + len + 4; ++i) {
        if (coded[code] == 255 || body[i] == 0) {
            code = n;
            coded[n++] = 1;
        }
        if (body[i] != 0) {
            coded[n++] = body[i];
            coded[code]++;
        }
    }
    coded[n++] = 0;
    ram_board_send(board, coded, n, 0);
}

uint32_t ram_board_receive(struct ram_board *board, uint8_t *bytes, uint32_t len,
                           uint64_t wait_us) {
    const uint64_t end = board->clock_ns + wait_us * 1000;
    do {
        poll(board, end);
    } while (next_ns(&board->from_board) > board->clock_ns && board->clock_ns < end);
    return take(board, &board->from_board, bytes, len);
}

void ram_board_settle(struct ram_board *board) {
    do {
        poll(board, UINT64_MAX);
        board->from_board.at = board->from_board.len = 0;
    } while (board->to_board.at < board->to_board.len);
}

uint64_t ram_board_clock_us(const struct ram_board *board) {
    return board->clock_ns / 1000;
}

uint64_t ram_board_reads(const struct ram_board *board) {
    return board->reads;
}

uint32_t ram_board_boots(const struct ram_board *board) {
    return board->boots;
}

uint32_t ram_board_leaks(const struct ram_board *board) {
    uint32_t open = 0, known = board->dev.upload.file >= 0;
    for (uint32_t i = 0; i < HANDLES; ++i) {
        open += board->handles[i] >= 0;
    }
    for (uint32_t i = 0; i < DEV_HANDLES; ++i) {
        known += board->dev.handles[i].handle >= 0;
    }
    return open > known ? open - known : 0;
}

int ram_board_put(struct ram_board *board, const char *path, const uint8_t *bytes, uint32_t len) {
    int file = find(board, path);
    file = file < 0 ? create(board, path, false) : file;
    if (file < 0 || resize(board, &board->files[file], len) != 0) {
        return -1;
    }
    if (len > 0) {
        memcpy(board->files[file].data, bytes, len);
    }
    return 0;
}

const uint8_t *ram_board_get(const struct ram_board *board, const char *path, uint32_t *len) {
    const int file = find(board, path);
    if (file < 0) {
        return NULL;
    }
    *len = board->files[file].size;
    return board->files[file].size > 0 ? board->files[file].data : (const uint8_t *)"";
}

const char *ram_board_name(const struct ram_board *board, uint32_t n) {
    for (int i = 0; i < FILES; ++i) {
        if (board->files[i].path[0] != '\0' && n-- == 0) {
            return board->files[i].path;
        }
    }
    return NULL;
}

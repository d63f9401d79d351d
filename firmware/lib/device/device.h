/*
 * The board's program, portable: console, link, package service, the model's loading and the
 * engine. The simulated board, the firmware and the fuzzers run this same code behind this seam.
 * docs/PROTOCOL.md specifies what goes over the line, docs/FORMAT.md what lies on the card.
 */
#ifndef TLLM_DEVICE_H
#define TLLM_DEVICE_H

#include "tinyllm.h"

#ifdef __cplusplus
extern "C" {
#endif

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

#define DEV_PROTOCOL 2u
#define DEV_PAYLOAD  4128u /* bytes of a frame's payload */
#define DEV_FRAME    4160u /* bytes of an encoded frame between its zeros */
#define DEV_LINE     2048u /* bytes of a console line */
#define DEV_WINDOW   8u    /* chunks that an upload may be ahead of what is written */
#define DEV_KEPT     2048u /* last bytes of an answer's text that are kept for the host */
#define DEV_HANDLES  62u   /* files of the model that are open at once */
#define DEV_PIECE    1024u /* bytes of one token's text at most, and 16 */
#define DEV_PATH     64u   /* bytes of a path, with its NUL */
#define DEV_SENTENCE 256u  /* bytes of an error's text, with its NUL */

enum dev_open {
    DEV_READ,
    DEV_WRITE, /* for reading and writing: created if absent, kept if there */
};

/* `size` that dev_port.list gives a directory. */
#define DEV_DIRECTORY UINT32_MAX

/* What a board is; the strings stay valid until the next call. NULL where not known. */
struct dev_board {
    const char *board;        /* "ESP32-CAM" */
    const char *chip;         /* "ESP32 v3.1, 2 cores, 240 MHz" */
    const char *card;         /* "SDHC 15.9 GB SU16G" */
    const char *card_mode;    /* "4-bit 40 MHz" */
    const char *reset_reason; /* "power-on", "brown-out", "watchdog", ... */
    uint32_t psram_bytes;
    uint32_t psram_mhz;            /* of its bus; 0 where not known */
    size_t fast_block, bulk_block; /* bytes of the largest free blocks that the regions came from */
};

/*
 * What a board gives. Functions return 0 or a count, or a negative error: DEV_E_NO_CARD where the
 * card is gone, DEV_E_FULL, DEV_E_FS, TLLM_E_IO. Paths are absolute on the card ("/tllm/slot0").
 * File handles are integers >= 0; at most DEV_HANDLES + 2 files are open at once. All are called
 * from the one task that calls dev_init and dev_poll.
 *
 * A function that waits for more than 20 ms calls dev_stopping meanwhile, at least each 20 ms.
 * Where that is true, one that only reads returns TLLM_E_CANCELLED at once, and what it began may
 * go on: until card_busy says otherwise, dst of a read is still written to and belongs to the port.
 */
struct dev_port {
    void *ctx; /* passed back, never looked at */

    /* Bytes that are there now, at most len; waits at most wait_ms for the first; 0 for none.
     * Negative: the line is closed for good. */
    int (*line_read)(void *ctx, void *dst, uint32_t len, uint32_t wait_ms);
    /* All of src, waiting where it must. 0. */
    int (*line_write)(void *ctx, const void *src, uint32_t len);
    /* Changes the rate once what was written has left. NULL where it cannot change. */
    int (*line_set_baud)(void *ctx, uint32_t baud);

    /* Mounts the card, again if it was: at a lower clock if slower. All files are closed before.
     * DEV_E_NO_CARD where none answers, DEV_E_FS where one does that holds no file system. */
    int (*card_mount)(void *ctx, bool slower);
    int (*file_open)(void *ctx, const char *path, enum dev_open how); /* DEV_E_FS if absent */
    int (*file_close)(void *ctx, int file);
    /* Bytes read; fewer than len only at the file's end. dst: 64-byte aligned memory of the fast
     * region (or the streaming buffers in it), with room for len rounded up to 512. */
    int (*file_read)(void *ctx, int file, uint32_t offset, void *dst, uint32_t len);
    /* 0. A file of which a write failed may fail for ever: it is opened again. */
    int (*file_write)(void *ctx, int file, uint32_t offset, const void *src, uint32_t len);
    int (*file_truncate)(void *ctx, int file, uint32_t size);
    int (*file_sync)(void *ctx, int file);
    int (*file_rename)(void *ctx, const char *from, const char *to); /* `to` does not exist */
    int (*file_remove)(void *ctx, const char *path); /* a file or an empty directory */
    int (*file_size)(void *ctx, const char *path, uint32_t *size); /* DEV_E_FS if absent */
    int (*make_dir)(void *ctx, const char *path);                  /* 0 if it is there */
    /* The index-th entry of a directory: 1, or 0 past the last. ".", ".." and a name that needs
     * more than name_len bytes are left out. */
    int (*list)(void *ctx, const char *path, uint32_t index, char *name, uint32_t name_len,
                uint32_t *size);
    int (*space)(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes);

    /*
     * Starts the read that a later file_read with the same arguments finishes (which may fail
     * then). At most one is pending: another read or prefetch, or a close, abandons it, and
     * returns only once dst of the abandoned one is no longer written to. NULL where the board
     * cannot.
     */
    void (*file_prefetch)(void *ctx, int file, uint32_t offset, void *dst, uint32_t len);
    /* Whether something that was given up still goes on; waits for its end for at most wait_ms.
     * NULL: never. */
    bool (*card_busy)(void *ctx, uint32_t wait_ms);

    uint64_t (*now_us)(void *ctx);
    /* As tllm_port.parallel; NULL where there is one core. */
    void (*parallel)(void *ctx, void (*fn)(void *arg, uint32_t part, uint32_t parts), void *arg,
                     uint32_t parts);
    void (*feed_watchdog)(
        void *ctx); /* at least each 32 KB of weights, and in each dev_poll; NULL for none */
    void (*restart)(void *ctx); /* may return: dev_poll then returns DEV_RESTART */
    void (*describe)(void *ctx, struct dev_board *board);
};

struct dev_config {
    const struct dev_port *port;
    void *fast; /* internal RAM, 64-byte aligned, DMA-capable */
    size_t fast_bytes;
    void *bulk; /* PSRAM, 64-byte aligned */
    size_t bulk_bytes;
    uint32_t parts;   /* cores that port->parallel uses; 0 = 1 */
    uint32_t context; /* positions; 0 = the model's. Never made smaller by itself */
    uint32_t baud;    /* the line's rate at boot */
    const struct tllm_model *compiled; /* the model this firmware was built for; NULL: any */
    const char *version;               /* one line for the banner and HELLO */
};

/* ---- the parts of the state ---- */

/* A receiver of frames. data has DEV_FRAME bytes. */
struct dev_frame {
    uint8_t *data;
    uint32_t len;
    bool open; /* a zero has begun a frame */
    bool over; /* it is too long to be one */
};

enum dev_received {
    DEV_NOTHING, /* part of a frame, or the end of a damaged one */
    DEV_TEXT,    /* the byte belongs to the console */
    DEV_WHOLE,   /* data[0] is the type, data[1] the seq, data[2..len) the payload */
};

/* Takes one byte from the line. */
enum dev_received dev_frame_take(struct dev_frame *frame, uint8_t byte);

/* A bounded text, always NUL-terminated; what does not fit is left out. */
struct dev_text {
    char *at;
    uint32_t len, room;
};

struct dev_arena {
    uint8_t *base;
    size_t size, used;
};

struct dev_line_editor {
    char *text; /* DEV_LINE + 1 bytes */
    uint32_t len;
    uint8_t escape; /* inside a terminal's escape sequence */
    bool last_cr, over;
    bool ready; /* a whole line waits to be run */
};

enum dev_state {
    DEV_READY,
    DEV_NO_CARD,
    DEV_NO_MODEL,
    DEV_ERROR,
};

struct dev_upload {
    int file; /* -1: none is open */
    int error;
    uint8_t seq; /* of OPEN: acks carry it */
    uint32_t size, crc;
    uint32_t written; /* chunks, in order */
    char path[DEV_PATH];
    uint8_t *window; /* DEV_WINDOW chunks; chunk c at c % DEV_WINDOW */
    uint64_t held[DEV_WINDOW];
    uint32_t chunk_crc[DEV_WINDOW];
};

/* The text of the last GENERATE: byte i of it at i % DEV_KEPT, the last DEV_KEPT of them. */
struct dev_said {
    uint8_t *kept;
    uint32_t bytes, crc;
    uint8_t seq; /* of the GENERATE; 0: none */
};

/* What of a file lies in the bulk region: its first `bytes`. */
struct dev_resident {
    const uint8_t *data;
    uint32_t bytes;
};

struct dev_memory {
    size_t fast_own, bulk_own;       /* the device program's buffers */
    size_t fast_engine, bulk_engine; /* the engine's regions */
    size_t model, tokenizer, resident;
    size_t fast_free, bulk_free;
};

/* The device's state. Its members are its own; those of `memory` and `state` may be read. */
struct dev {
    struct dev_config config;
    const struct dev_port *port;
    struct dev_arena fast, bulk;
    size_t fast_kept, bulk_kept; /* of them used whatever the model */
    struct dev_memory memory;
    uint8_t *io; /* one chunk in the fast region: what goes to and comes from the card */

    uint8_t received[256]; /* from the line and not yet taken: [received_at, received_len) */
    uint32_t received_at, received_len;
    struct dev_frame frame;
    struct dev_line_editor line;
    uint32_t frame_bytes; /* since the last zero */
    uint64_t frame_us;    /* when the last byte of a frame came */
    bool link;            /* frames were the last thing that came */
    int line_error;       /* the line is closed */
    uint32_t baud, baud_before, baud_asked;
    uint64_t baud_until; /* 0: the rate is settled */
    uint64_t good_us;    /* when the last good frame came, or its request ended */
    bool restart;

    bool running;      /* a frame's request, a console's answer, or a load */
    bool loading;      /* by itself, not asked for by a request */
    bool reload;       /* a COMMIT was stopped: the old model is loaded again */
    bool engine_stale; /* its memory was lent to READ_TEST */
    uint8_t type, seq; /* of the frame's request, or 0 */
    bool cancel;
    uint8_t *request;            /* DEV_PAYLOAD */
    uint8_t held_type, held_seq; /* the request that came during a load; 0: none */
    uint32_t held_len;
    uint8_t *answer; /* status and payload */
    uint32_t answer_len;
    uint8_t answered_type, answered_seq;
    struct dev_said said;
    uint64_t polled_us, sent_us;

    char sentence[DEV_SENTENCE]; /* what went wrong last */
    struct dev_text error;

    enum dev_state state;
    int load_status;
    char load_error[DEV_SENTENCE];
    bool card_mounted;
    int mount_status;   /* of the last attempt */
    uint64_t retry_us;  /* when the card is looked at again */
    bool stopped;       /* loading was, and nothing begins it again by itself */
    bool suspect;       /* reads failed or gave wrong bytes: it may be another card */
    char dir[DEV_PATH]; /* of the current package; "" is the root */

    struct tllm_model parsed;
    const struct tllm_model *model; /* NULL: none is loaded */
    struct tllm_port engine_port;
    struct tllm_engine engine;
    struct tllm_tokenizer tokenizer;
    struct tllm_session session;
    uint32_t session_number;       /* the host's, 0 for none: a load forgets it */
    struct dev_resident *resident; /* one a file */
    void *engine_fast, *engine_bulk;
    struct tllm_config engine_config;
    uint32_t loaded;  /* bytes, while a model is loaded */
    uint32_t *tokens; /* the session's, engine.context of them */
    uint8_t *turns;
    uint32_t *prompt; /* prompt_room tokens */
    uint32_t prompt_room;
    void *scratch;
    size_t scratch_bytes;
    char *piece;         /* DEV_PIECE: one token's text */
    uint8_t *vocabulary; /* tokenizer.bin */
    bool logits;         /* engine.logits are of the last position */

    struct {
        uint32_t file;
        int handle; /* -1: free */
        uint32_t used;
    } handles[DEV_HANDLES];
    uint32_t handle_clock;
    struct tllm_fault fault; /* where a read failed for good */

    struct tllm_sampling sampling;
    uint64_t rng_state;
    enum tllm_context_policy policy;
    uint32_t length; /* tokens of a console's answer at most; 0: to the context's end */

    struct dev_upload upload;

    struct {
        uint8_t flags;
        uint32_t first, last; /* positions */
        uint8_t stage;        /* CAPTURE */
        uint16_t layer;
        uint32_t n, bytes;
        int32_t exponent;
    } trace;
    struct tllm_trace tracer;

    struct {
        uint32_t frames, damaged, repeated, read_errors, remounts;
    } counts;
};

/* ---- the program ---- */

#define DEV_RESTART 1

/*
 * Boots: prints the banner, mounts the card, loads the model. A missing card or model is no
 * error: the console says why, and dev_poll goes on. DEV_E_NO_MEMORY if the regions do not hold
 * even the program's own buffers.
 */
int dev_init(struct dev *dev, const struct dev_config *config) TLLM_MUST_CHECK;

/*
 * One turn of the main loop: takes what the line has, waiting at most wait_ms for it, and runs
 * what was asked. 0; DEV_RESTART after a reboot that port->restart returned from; negative when the
 * line is closed.
 */
int dev_poll(struct dev *dev, uint32_t wait_ms) TLLM_MUST_CHECK;

/* For the port's functions while they wait: feeds the watchdog and looks at the line. True: stop.
 */
bool dev_stopping(struct dev *dev);

/* dev_poll until it returns something else than 0, and returns that. */
int dev_run(struct dev *dev) TLLM_MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif

/* The main loop: boot, the line, one request at a time. */
#include "internal.h"

#include "red_zone.h"

#define ALIGNMENT     64u
#define QUIET_US      250000u /* a frame left unfinished for so long is dropped */
#define BAUD_TRIAL_US 1000000u
#define BAUD_IDLE_US  20000000u /* without a good frame: back to the rate of the boot */
#define LOOK_US       5000u     /* between looks at the line while something runs */
#define ALIVE_US      300000u   /* between signs of life of a request that runs */
#define CARD_LOOK_US  1000000u
#define SETTLE_MS     10u

/* ---- memory ---- */

static size_t aligned(size_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void *dev_take(struct dev_arena *arena, size_t bytes) {
    const size_t start = aligned(arena->used);
    arena->used = start + bytes + TLLM_RED_ZONE;
    if (arena->used > arena->size) {
        return NULL;
    }
    tllm_unfence(arena->base + start, bytes);
    tllm_fence(arena->base + start + bytes, arena->size - start - bytes);
    return arena->base + start;
}

size_t dev_room(const struct dev_arena *arena) {
    const size_t start = aligned(arena->used) + TLLM_RED_ZONE;
    return start < arena->size ? arena->size - start : 0;
}

uint64_t dev_now(struct dev *dev) {
    return dev->port->now_us(dev->port->ctx);
}

/* ---- answers ---- */

uint32_t dev_answer_room(const struct dev *dev) {
    return DEV_PAYLOAD - dev->answer_len;
}

uint8_t *dev_put(struct dev *dev, uint32_t len) {
    if (len > dev_answer_room(dev)) {
        return NULL;
    }
    uint8_t *at = dev->answer + dev->answer_len;
    dev->answer_len += len;
    return at;
}

void dev_put_u32(struct dev *dev, uint32_t value) {
    uint8_t *at = dev_put(dev, 4);
    if (at != NULL) {
        dev_set_u32(at, value);
    }
}

void dev_put_u64(struct dev *dev, uint64_t value) {
    uint8_t *at = dev_put(dev, 8);
    if (at != NULL) {
        dev_set_u64(at, value);
    }
}

static void send_answer(struct dev *dev) {
    dev_send(dev, dev->answered_type | DEV_ANSWER, dev->answered_seq, dev->answer, dev->answer_len,
             NULL, 0);
}

/* ---- requests of the board itself ---- */

static int on_hello(struct dev *dev, const uint8_t *payload, uint32_t len) {
    (void)len;
    if (dev_get_u16(payload) != DEV_PROTOCOL) {
        return dev_fail(dev, TLLM_E_VERSION,
                        "This firmware speaks version 2 of the link's protocol, and the host tool "
                        "another: use both of one release.");
    }
    uint8_t *at = dev_put(dev, 4);
    at[0] = DEV_PROTOCOL;
    at[1] = 0;
    at[2] = DEV_PAYLOAD & 0xff;
    at[3] = DEV_PAYLOAD >> 8;
    dev_put_u32(dev, DEV_WINDOW * TLLM_CHUNK);
    const uint32_t n = (uint32_t)strlen(dev->config.version);
    at = dev_put(dev, n);
    if (at != NULL) {
        memcpy(at, dev->config.version, n);
    }
    return 0;
}

static int on_reboot(struct dev *dev, const uint8_t *payload, uint32_t len) {
    (void)payload;
    (void)len;
    dev->restart = true;
    return 0;
}

static int on_baud(struct dev *dev, const uint8_t *payload, uint32_t len) {
    (void)len;
    const uint32_t baud = dev_get_u32(payload);
    if (baud < 9600 || baud > 5000000 || dev->port->line_set_baud == NULL) {
        return dev_fail(dev, TLLM_E_ARG, "This board's line cannot change to that rate.");
    }
    dev->baud_asked = baud;
    return 0;
}

static void set_baud(struct dev *dev, uint32_t baud) {
    dev->port->line_set_baud(dev->port->ctx, baud);
    dev->baud = baud;
}

static const struct request {
    uint8_t type;
    bool model; /* needs one */
    uint16_t least, most;
    dev_handler *run;
} requests[] = {
    {DEV_HELLO, false, 2, 2, on_hello},
    {DEV_INFO, false, 0, 0, dev_on_info},
    {DEV_REBOOT, false, 0, 0, on_reboot},
    {DEV_BAUD, false, 4, 4, on_baud},
    {DEV_SESSION, true, 6, 6, dev_on_session},
    {DEV_SAMPLING, false, 24, 24, dev_on_sampling},
    {DEV_GENERATE, true, 8, DEV_PAYLOAD, dev_on_generate},
    {DEV_FEED, true, 1, DEV_PAYLOAD, dev_on_feed},
    {DEV_CAPTURE, true, 7, 7, dev_on_capture},
    {DEV_SAMPLE, true, 0, 0, dev_on_sample},
    {DEV_ENCODE, true, 0, DEV_PAYLOAD, dev_on_encode},
    {DEV_DECODE, true, 0, DEV_PAYLOAD, dev_on_decode},
    {DEV_STATS, false, 0, 0, dev_on_stats},
    {DEV_REWIND, true, 4, 4, dev_on_rewind},
    {DEV_STAT, false, 1, DEV_PATH, dev_on_stat},
    {DEV_SUMS, false, 8, 7 + DEV_PATH, dev_on_sums},
    {DEV_OPEN, false, 17, 16 + DEV_PATH, dev_on_open},
    {DEV_POLL, false, 0, 0, dev_on_poll},
    {DEV_CLOSE, false, 0, 0, dev_on_close},
    {DEV_COMMIT, false, 32, 32, dev_on_commit},
    {DEV_LIST, false, 2, 2, dev_on_list},
    {DEV_REMOVE, false, 1, DEV_PATH, dev_on_remove},
    {DEV_SPACE, false, 0, 0, dev_on_space},
    {DEV_READ_TEST, true, 8, 8, dev_on_read_test},
    {DEV_CHECK, true, 8, 8, dev_on_check},
};

static int run_request(struct dev *dev, uint32_t len) {
    for (uint32_t i = 0; i < sizeof requests / sizeof requests[0]; ++i) {
        const struct request *request = &requests[i];
        if (request->type != dev->type) {
            continue;
        }
        if (len < request->least || len > request->most) {
            return DEV_E_PAYLOAD;
        }
        if (request->model && dev->model == NULL) {
            return dev_fail(dev, dev->load_status, dev->load_error);
        }
        /* An answer settles by itself, so that it can end as one that was stopped. */
        const bool settles = request->type > DEV_STOP && request->type != DEV_GENERATE;
        const int settled = settles ? dev_settle(dev) : 0;
        return settled < 0 ? settled : request->run(dev, dev->request, len);
    }
    return DEV_E_UNKNOWN;
}

static void begin(struct dev *dev, uint8_t type, uint8_t seq) {
    dev->running = true;
    dev->cancel = false;
    dev->type = type;
    dev->seq = seq;
    dev->sentence[0] = '\0';
    dev->sent_us = dev_now(dev);
    dev->answer_len = 4;
}

static void end(struct dev *dev, int status) {
    if (status == DEV_E_NO_CARD && dev->state != DEV_NO_CARD) {
        dev_explain(dev, status);
        dev_card_gone(dev);
    }
    dev->suspect = dev->suspect || status == TLLM_E_CRC || status == DEV_E_CARD_READ;
    if (status < 0) {
        dev_explain(dev, status);
        const uint32_t n = (uint32_t)strlen(dev->sentence);
        dev->answer_len = 4;
        memcpy(dev_put(dev, n), dev->sentence, n);
    }
    dev_set_u32(dev->answer, (uint32_t)status);
    dev->answered_type = dev->type;
    dev->answered_seq = dev->seq;
    dev->running = false;
    dev->cancel = false;
    dev->type = 0;
    dev->good_us = dev_now(dev); /* it may have run for long */
    send_answer(dev);
    if (dev->baud_asked != 0) {
        dev->baud_before = dev->baud;
        set_baud(dev, dev->baud_asked);
        dev->baud_asked = 0;
        dev->baud_until = dev_now(dev) + BAUD_TRIAL_US;
    }
}

/* ---- frames ---- */

/* A frame that came while something runs. During a load the first request waits for its end. */
static void take_frame_busy(struct dev *dev, uint8_t type, uint8_t seq, uint32_t len) {
    if (type == DEV_DATA || (type == dev->type && seq == dev->seq)) {
        return;
    }
    if (!dev->loading) {
        dev_answer_plainly(dev, type, seq, DEV_E_BUSY);
    } else if (dev->held_type == 0) {
        memcpy(dev->request, dev->frame.data + 2, len);
        dev->held_type = type;
        dev->held_seq = seq;
        dev->held_len = len;
    }
}

static void take_frame(struct dev *dev) {
    const uint8_t type = dev->frame.data[0], seq = dev->frame.data[1];
    const uint32_t len = dev->frame.len - 2;
    dev->counts.frames++;
    dev->baud_until = 0;
    dev->good_us = dev_now(dev);
    if (dev_answer_at_once(dev, type, seq, dev->frame.data + 2, len)) {
        return;
    }
    if (dev->running) {
        take_frame_busy(dev, type, seq, len);
    } else if (type == DEV_DATA) {
        (void)dev_settle(dev);
        dev_on_data(dev, dev->frame.data + 2, len);
    } else if (type == dev->answered_type && seq == dev->answered_seq && type != DEV_HELLO &&
               type != DEV_BAUD) {
        dev->counts.repeated++;
        send_answer(dev);
    } else {
        memcpy(dev->request, dev->frame.data + 2, len);
        begin(dev, type, seq);
        end(dev, run_request(dev, len));
    }
}

static void take_byte(struct dev *dev, uint8_t byte) {
    const bool open = dev->frame.open;
    switch (dev_frame_take(&dev->frame, byte)) {
    case DEV_TEXT:
        if (!dev->link || dev_now(dev) - dev->frame_us >= QUIET_US) {
            dev->link = false;
            dev_console_byte(dev, byte);
        }
        return;
    case DEV_WHOLE:
        dev->link = true;
        dev->frame_us = dev_now(dev);
        take_frame(dev);
        break;
    case DEV_NOTHING:
        dev->counts.damaged += open && byte == 0 && dev->frame_bytes > 0;
        dev->link = dev->link || !dev->loading; /* a piece does not silence what a boot says */
        break;
    }
    dev->frame_bytes = byte == 0 ? 0 : dev->frame_bytes + 1;
    dev->frame_us = dev_now(dev);
}

/* What is typed behind a line that waits for a load's end waits with it; a Ctrl-C drops it all. */
static bool typed_ahead(struct dev *dev) {
    if (!dev->loading || !dev->line.ready) {
        return false;
    }
    uint32_t n = dev->received_len - dev->received_at;
    memmove(dev->received, dev->received + dev->received_at, n);
    if (n < sizeof dev->received) {
        const int more =
            dev->port->line_read(dev->port->ctx, dev->received + n, sizeof dev->received - n, 0);
        n += more > 0 ? (uint32_t)more : 0;
    }
    const uint8_t *interrupt = memchr(dev->received, DEV_CTRL_C, n);
    dev->received_at = interrupt != NULL ? (uint32_t)(interrupt - dev->received) : 0;
    dev->received_len = n;
    return interrupt == NULL;
}

/*
 * Takes what the line has. While a request runs inside of it, it is called again from dev_busy,
 * which goes on in the same bytes. Console lines wait in dev->line until nothing runs.
 */
static void look(struct dev *dev, uint32_t wait_ms) {
    if (dev->received_at == dev->received_len) {
        const bool waits = dev->held_type == 0 && !dev->line.ready;
        const int n = dev->port->line_read(dev->port->ctx, dev->received, sizeof dev->received,
                                           waits ? wait_ms : 0);
        dev->received_at = 0;
        dev->received_len = n > 0 ? (uint32_t)n : 0;
        if (n < 0) {
            dev->line_error = n;
            dev->cancel = dev->cancel || !dev->loading; /* what boots need not be asked for */
        }
    }
    dev->polled_us = dev_now(dev);
    if (dev->received_len == 0 && dev->frame.open && dev->polled_us - dev->frame_us >= QUIET_US) {
        dev_frame_reset(&dev->frame);
        dev->frame_bytes = 0;
    }
    while (!dev->restart) {
        if (dev->held_type != 0 && !dev->running) {
            begin(dev, dev->held_type, dev->held_seq);
            dev->held_type = 0;
            end(dev, run_request(dev, dev->held_len));
        } else if (dev->line.ready && !dev->running) {
            dev_console_line(dev);
        } else if (!typed_ahead(dev) && dev->received_at < dev->received_len) {
            take_byte(dev, dev->received[dev->received_at++]);
        } else {
            return;
        }
    }
}

int dev_busy(struct dev *dev) {
    const uint64_t now = dev_now(dev);
    if (dev->port->feed_watchdog != NULL) {
        dev->port->feed_watchdog(dev->port->ctx);
    }
    if (dev->running && now - dev->polled_us >= LOOK_US) {
        look(dev, 0);
    }
    if (dev->running && dev->type != 0 && now - dev->sent_us >= ALIVE_US) {
        dev_send(dev, dev->type | DEV_EVENT, dev->seq, NULL, 0, NULL, 0);
    }
    return dev->running && dev->cancel;
}

bool dev_stopping(struct dev *dev) {
    return dev_busy(dev) != 0;
}

int dev_settle(struct dev *dev) {
    const struct dev_port *port = dev->port;
    while (port->card_busy != NULL && port->card_busy(port->ctx, SETTLE_MS)) {
        if (dev_stopping(dev)) {
            return TLLM_E_CANCELLED;
        }
    }
    return dev->engine_stale && dev->model != NULL ? dev_engine_start(dev) : 0;
}

/* ---- boot and loop ---- */

static void banner(struct dev *dev) {
    struct dev_board board = {0};
    char buffer[DEV_SENTENCE];
    struct dev_text text;
    dev->port->describe(dev->port->ctx, &board);
    dev_text_start(&text, buffer, sizeof buffer);
    dev_text_add(&text, "\n");
    dev_text_add(&text, dev->config.version);
    if (board.board != NULL) {
        dev_text_add(&text, " on ");
        dev_text_add(&text, board.board);
    }
    if (board.reset_reason != NULL) {
        dev_text_add(&text, "\nreset: ");
        dev_text_add(&text, board.reset_reason);
    }
    dev_text_add(&text, "\nmemory: ");
    dev_text_number(&text, dev->fast.size);
    dev_text_add(&text, " bytes fast, ");
    dev_text_number(&text, dev->bulk.size);
    dev_text_add(&text, " bytes bulk\n");
    if (board.fast_block > 0) {
        dev_text_add(&text, "largest free blocks: ");
        dev_text_number(&text, board.fast_block);
        dev_text_add(&text, " internal, ");
        dev_text_number(&text, board.bulk_block);
        dev_text_add(&text, " PSRAM\n");
    }
    dev_report(dev, buffer);
}

static void report_map(struct dev *dev) {
    const struct dev_memory *memory = &dev->memory;
    const struct {
        const char *name;
        size_t bytes;
    } parts[] = {
        {"\nfast: program ", memory->fast_own}, {", engine ", memory->fast_engine},
        {", free ", memory->fast_free},         {"\nbulk: program ", memory->bulk_own},
        {", engine ", memory->bulk_engine},     {", tokenizer ", memory->tokenizer},
        {", weights ", memory->resident},       {", free ", memory->bulk_free},
    };
    char buffer[DEV_SENTENCE];
    struct dev_text text;
    dev_text_start(&text, buffer, sizeof buffer);
    dev_text_add(&text, "model: ");
    dev_text_add(&text, dev->model->name);
    dev_text_add(&text, " (");
    dev_text_hex(&text, dev->model->fingerprint, 4);
    dev_text_add(&text, "), context ");
    dev_text_number(&text, dev->engine.context);
    for (uint32_t i = 0; i < sizeof parts / sizeof parts[0]; ++i) {
        dev_text_add(&text, parts[i].name);
        dev_text_number(&text, parts[i].bytes);
    }
    dev_text_add(&text, "\nType a prompt, or /help.\n");
    dev_report(dev, buffer);
}

static void load_and_report(struct dev *dev) {
    if (!dev->card_mounted && dev_card_mount(dev, false) == 0) {
        struct dev_board board = {0};
        dev->port->describe(dev->port->ctx, &board);
        dev_report(dev, "card: ");
        dev_report(dev, board.card != NULL ? board.card : "mounted");
        dev_report(dev, board.card_mode != NULL ? ", " : "");
        dev_report(dev, board.card_mode != NULL ? board.card_mode : "");
        dev_report(dev, "\n");
    }
    dev_load(dev);
    if (dev->model != NULL) {
        report_map(dev);
    } else {
        dev_report(dev, dev->load_error);
        dev_report(dev, "\n");
    }
    dev_console_prompt(dev);
}

/* As a request runs: the line is looked at, a stop is heeded, frames wait until it is over. */
static void load_by_itself(struct dev *dev) {
    dev->running = dev->loading = true;
    dev->cancel = false;
    dev->reload = false;
    load_and_report(dev);
    dev->running = dev->loading = false;
    dev->cancel = false;
}

static int take_buffers(struct dev *dev) {
    dev->io = dev_take(&dev->fast, TLLM_CHUNK);
    dev->frame.data = dev_take(&dev->bulk, DEV_FRAME);
    dev->request = dev_take(&dev->bulk, DEV_PAYLOAD);
    dev->answer = dev_take(&dev->bulk, DEV_PAYLOAD);
    dev->line.text = dev_take(&dev->bulk, DEV_LINE + 1);
    dev->said.kept = dev_take(&dev->bulk, DEV_KEPT);
    dev->upload.window = dev_take(&dev->bulk, DEV_WINDOW * TLLM_CHUNK);
    dev->fast_kept = dev->fast.used;
    dev->bulk_kept = dev->bulk.used;
    if (dev->fast.used > dev->fast.size || dev->bulk.used > dev->bulk.size) {
        dev_say(dev, "The memory does not hold even this program's own buffers.\n");
        return DEV_E_NO_MEMORY;
    }
    return 0;
}

int dev_init(struct dev *dev, const struct dev_config *config) {
    memset(dev, 0, sizeof *dev);
    dev->config = *config;
    dev->config.parts = config->parts > 0 ? config->parts : 1;
    dev->port = config->port;
    dev->fast = (struct dev_arena){.base = config->fast, .size = config->fast_bytes};
    dev->bulk = (struct dev_arena){.base = config->bulk, .size = config->bulk_bytes};
    dev->baud = config->baud;
    /* 0.7, 0.9 and 1: what `host chat` sets, too. */
    dev->sampling = (struct tllm_sampling){.temperature = 45875, .top_p = 58982, .penalty = 65536};
    dev->rng_state = 1;
    dev->length = 256;
    dev->upload.file = -1;
    for (uint32_t i = 0; i < DEV_HANDLES; ++i) {
        dev->handles[i].handle = -1;
    }
    dev_card_port(dev);
    const int status = take_buffers(dev);
    if (status == 0) {
        banner(dev);
        load_by_itself(dev);
    }
    return status;
}

/* Notices a card that was pulled out, put back or changed for another. */
static void watch_card(struct dev *dev) {
    const uint64_t now = dev_now(dev);
    const bool no_card = dev->state == DEV_NO_CARD;
    const int before = dev->mount_status;
    if (dev->stopped || (dev->state == DEV_READY ? !dev->suspect : now < dev->retry_us)) {
        return;
    }
    dev->retry_us = now + CARD_LOOK_US;
    if (no_card && dev_card_mount(dev, false) != 0) {
        dev_card_gone(dev);
        if (dev->mount_status != before) {
            dev_report(dev, dev->load_error);
            dev_report(dev, "\n");
            dev_console_prompt(dev);
        }
        return;
    }
    const int there = no_card ? 0 : dev_still_there(dev);
    dev->suspect = false;
    if (there == DEV_E_NO_CARD || (there < 0 && dev->model == NULL)) {
        dev_card_gone(dev);
    } else if (no_card || (there == 0 && dev->model != NULL)) {
        load_by_itself(dev);
    }
}

int dev_poll(struct dev *dev, uint32_t wait_ms) {
    if (dev->port->feed_watchdog != NULL) {
        dev->port->feed_watchdog(dev->port->ctx);
    }
    look(dev, wait_ms);
    if (dev->line_error < 0) {
        return dev->line_error;
    }
    const uint64_t now = dev_now(dev);
    if (dev->baud_until != 0 && now >= dev->baud_until) {
        dev->baud_until = 0;
        set_baud(dev, dev->baud_before);
    } else if (dev->baud != dev->config.baud && now - dev->good_us >= BAUD_IDLE_US) {
        set_baud(dev, dev->config.baud);
    }
    if (dev->reload) {
        load_by_itself(dev);
    }
    watch_card(dev);
    if (dev->restart) {
        dev->port->restart(dev->port->ctx);
        return DEV_RESTART;
    }
    return 0;
}

int dev_run(struct dev *dev) {
    int status;
    do {
        status = dev_poll(dev, 50);
    } while (status == 0);
    return status;
}

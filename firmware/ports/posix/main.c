/* The simulated board: the board's program behind a POSIX port. */
#define _XOPEN_SOURCE 700
#include "sim.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#ifdef TLLM_COMPILED_MODEL /* a board built for one model, as firmware/src is */
#include "tllm_model_data.h"
#define COMPILED_MODEL (&tllm_model_data)
#else
#define COMPILED_MODEL NULL
#endif

static volatile int end_asked;

static void on_signal(int signal_number) {
    (void)signal_number;
    end_asked = 1;
}

uint32_t sim_random(uint64_t *state) {
    struct tllm_rng rng = {*state};
    const uint32_t bits = tllm_rng_next(&rng);
    *state = rng.state;
    return bits;
}

uint64_t sim_now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void sim_sleep_until(uint64_t us) {
    for (uint64_t now = sim_now_us(); now < us && !end_asked; now = sim_now_us()) {
        const uint64_t rest = us - now;
        const struct timespec time = {.tv_sec = (time_t)(rest / 1000000),
                                      .tv_nsec = (long)(rest % 1000000 * 1000)};
        nanosleep(&time, NULL);
    }
}

/* ---- the seam ---- */

/* Where a reset of the board leads, whatever its program is doing. */
static jmp_buf reset_vector;

static int line_read(void *ctx, void *dst, uint32_t len, uint32_t wait_ms) {
    struct sim *sim = ctx;
    const int n = sim_line_read(&sim->line, dst, len, wait_ms);
    if (sim->line.reset) {
        sim->line.reset = false;
        longjmp(reset_vector, 1);
    }
    return n;
}

static int line_write(void *ctx, const void *src, uint32_t len) {
    struct sim *sim = ctx;
    return sim_line_write(&sim->line, src, len);
}

static int line_set_baud(void *ctx, uint32_t baud) {
    return sim_line_set_baud(&((struct sim *)ctx)->line, baud);
}

static uint64_t now_us(void *ctx) {
    (void)ctx;
    return sim_now_us();
}

static void parallel(void *ctx, void (*fn)(void *, uint32_t, uint32_t), void *arg, uint32_t parts) {
    sim_cores_run(&((struct sim *)ctx)->cores, fn, arg, parts);
}

static void restart(void *ctx) {
    ((struct sim *)ctx)->reset_reason = "software";
}

static void describe(void *ctx, struct dev_board *board) {
    struct sim *sim = ctx;
    const uint32_t rate = sim->options.card_rate / (sim->card.slower ? 2 : 1);
    snprintf(sim->card_name, sizeof sim->card_name, "directory %s", sim->options.card);
    snprintf(sim->card_mode, sizeof sim->card_mode, "%s", "as fast as this machine");
    if (rate > 0) {
        snprintf(sim->card_mode, sizeof sim->card_mode, "%u.%u MB/s", rate / 1000, rate / 100 % 10);
    }
    *board = (struct dev_board){
        .board = "a simulated board",
        .card = sim->card_name,
        .card_mode = sim->card_mode,
        .reset_reason = sim->reset_reason,
        .psram_bytes = (uint32_t)sim->options.bulk,
    };
}

static struct dev_port make_port(struct sim *sim) {
    struct dev_port port = {
        .ctx = sim,
        .line_read = line_read,
        .line_write = line_write,
        .line_set_baud = line_set_baud,
        .now_us = now_us,
        .parallel = sim->options.threads > 1 ? parallel : NULL,
        .restart = restart,
        .describe = describe,
    };
    sim_card_port(&port);
    return port;
}

/* ---- the report of --size ---- */

static int print_size(const struct dev *dev) {
    const struct dev_memory *memory = &dev->memory;
    if (dev->state != DEV_READY) {
        fprintf(stderr, "%s\n", dev->load_error);
        return 1;
    }
    const struct {
        const char *name;
        size_t fast, bulk;
    } rows[] = {
        {"state of the program", sizeof(struct dev), 0},
        {"buffers of the program", memory->fast_own, memory->bulk_own},
        {"engine", memory->fast_engine, memory->bulk_engine},
        {"tokenizer", 0, memory->tokenizer},
        {"resident weights", 0, memory->resident},
        {"descriptor, session, scratch", 0,
         dev->bulk.used - memory->bulk_own - memory->bulk_engine - memory->tokenizer -
             memory->resident},
        {"free", memory->fast_free, memory->bulk_free},
    };
    printf("%s, context %u\n%-30s %10s %10s\n", dev->model->name, dev->engine.context, "bytes",
           "fast", "bulk");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; ++i) {
        printf("%-30s %10zu %10zu\n", rows[i].name, rows[i].fast, rows[i].bulk);
    }
    return 0;
}

/* ---- power on ---- */

struct memory {
    struct dev *dev; /* at the start of the fast region */
    void *fast, *bulk;
    size_t fast_bytes, bulk_bytes;
};

static bool take_memory(const struct sim_options *options, struct memory *memory) {
    const size_t state = (sizeof(struct dev) + 63) / 64 * 64;
    void *fast = NULL;
    if (options->fast < state || options->fast > UINT32_MAX || options->bulk > UINT32_MAX) {
        fprintf(stderr, "The memories must be from %zu bytes (fast) to 4 GB.\n", state);
        return false;
    }
    if (posix_memalign(&fast, 64, (size_t)options->fast) != 0 ||
        posix_memalign(&memory->bulk, 64, options->bulk > 0 ? (size_t)options->bulk : 1) != 0) {
        fprintf(stderr, "This machine has not so much memory.\n");
        free(fast);
        return false;
    }
    memory->dev = fast;
    memory->fast = (uint8_t *)fast + state;
    memory->fast_bytes = (size_t)options->fast - state;
    memory->bulk_bytes = (size_t)options->bulk;
    return true;
}

/* Runs the board's program until the line closes; a restart or a reset begins anew. */
static int run(struct sim *sim, const struct memory *memory) {
    const struct dev_port port = make_port(sim);
    const struct dev_config config = {
        .port = &port,
        .fast = memory->fast,
        .fast_bytes = memory->fast_bytes,
        .bulk = memory->bulk,
        .bulk_bytes = memory->bulk_bytes,
        .parts = sim->options.threads,
        .context = sim->options.context,
        .baud = sim->options.baud > 0 ? sim->options.baud : 115200,
        .compiled = COMPILED_MODEL,
        .version = "tinyllm " TLLM_VERSION,
    };
    if (setjmp(reset_vector) != 0) {
        sim->reset_reason = "reset button";
    }
    for (;;) {
        sim_card_reset(&sim->card);
        sim_line_boot(&sim->line);
        const int status = dev_init(memory->dev, &config);
        if (status < 0) {
            fprintf(stderr, "The memory does not hold even the program's own buffers: give more "
                            "with --fast or --bulk.\n");
            return 2;
        }
        if (sim->options.size) {
            return print_size(memory->dev);
        }
        if (dev_run(memory->dev) != DEV_RESTART) {
            return 0;
        }
    }
}

int main(int argc, char **argv) {
    static struct sim sim; /* the process's board; nothing else refers to it */
    struct sigaction action = {.sa_handler = on_signal};
    struct memory memory = {0};
    struct stat facts;
    if (!sim_parse_options(argc, argv, &sim.options)) {
        return 2;
    }
    if (stat(sim.options.card, &facts) != 0 || !S_ISDIR(facts.st_mode)) {
        fprintf(stderr, "There is no directory %s to be the card: make it, or name another.\n",
                sim.options.card);
        return 2;
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
    sim.reset_reason = "power-on";
    if (sim.options.size) {
        sim.options.transport = SIM_NO_LINE;
    }
    if (sim_line_open(&sim.line, &sim.options, &end_asked) != 0 ||
        !take_memory(&sim.options, &memory)) {
        return 2;
    }
    if (sim_card_start(&sim.card, &sim.options) != 0 || sim_cores_start(&sim.cores) != 0) {
        fprintf(stderr, "No thread can be started: %s.\n", strerror(errno));
        return 2;
    }
    const int status = run(&sim, &memory);
    sim_cores_end(&sim.cores);
    sim_card_end(&sim.card);
    sim_line_close(&sim.line);
    free(memory.dev);
    free(memory.bulk);
    return status;
}

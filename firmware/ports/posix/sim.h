/* The simulated board: what its files share. */
#ifndef TLLM_SIM_H
#define TLLM_SIM_H

#include "device.h"

#include <pthread.h>
#include <stdatomic.h>

#define SIM_EXIT_POWER_CUT 42

enum sim_transport {
    SIM_STDIO,
    SIM_PTY,
    SIM_TCP,
    SIM_NO_LINE,
};

/* Probabilities a byte, as fractions of 2^32. */
struct sim_noise {
    uint32_t drop, flip, duplicate, insert;
};

struct sim_options {
    const char *card;
    enum sim_transport transport;
    uint32_t tcp_port;
    bool once; /* ends when the first connection does */
    bool size; /* prints what memory is used for, and ends */
    uint64_t fast, bulk;
    uint32_t context, threads;
    uint32_t card_rate; /* KB/s; 0: as fast as it goes */
    uint32_t card_latency_us;
    uint32_t baud, max_baud; /* 0: any */
    uint64_t fault_seed;
    struct sim_noise rx, tx;
    bool boot_noise;
    uint64_t reset_after;
    uint64_t read_fail, read_short, read_flip;
    bool read_fail_forever;
    uint64_t power_cut_after;
    uint64_t card_gone_after, card_gone_mounts; /* 0 mounts: for good */
};

/* Fills options from the command line. Writes one sentence and returns false if it is wrong. */
bool sim_parse_options(int argc, char **argv, struct sim_options *options);

uint32_t sim_random(uint64_t *state);
uint64_t sim_now_us(void);
void sim_sleep_until(uint64_t us);

/* ---- the line (line.c) ---- */

struct sim_line {
    const struct sim_options *options;
    int in, out, listener, held; /* held: our end of the pty's other side */
    uint32_t baud;
    uint64_t rx_free_us, tx_free_us;
    uint64_t random;
    uint64_t received;
    uint8_t pending[1024]; /* received and made noisy, not yet taken */
    uint32_t pending_at, pending_len;
    bool stalled;      /* nobody reads what is written */
    bool reset;        /* --reset-after struck */
    volatile int *end; /* set by a signal */
};

/* 0, or -1 after a sentence. */
int sim_line_open(struct sim_line *line, const struct sim_options *options, volatile int *end);
void sim_line_close(struct sim_line *line);
void sim_line_boot(struct sim_line *line);
int sim_line_read(struct sim_line *line, void *dst, uint32_t len, uint32_t wait_ms);
int sim_line_write(struct sim_line *line, const void *src, uint32_t len);
int sim_line_set_baud(struct sim_line *line, uint32_t baud);

/* ---- the card (card.c) ---- */

#define SIM_FILES ((int)DEV_HANDLES + 2)

struct sim_file {
    int fd; /* -1: free */
    bool writing;
    uint32_t synced; /* size that a power cut leaves */
};

struct sim_card {
    const struct sim_options *options;
    struct sim_file files[SIM_FILES];
    bool gone, slower;
    uint64_t reads, changes, mounts_missed;
    uint64_t random;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum {
        SIM_IDLE,
        SIM_ASKED,
        SIM_READING,
        SIM_DONE,
        SIM_ENDING,
    } state;
    struct {
        int file, result;
        uint32_t offset, len;
        void *dst;
    } ahead;
};

int sim_card_start(struct sim_card *card, const struct sim_options *options);
void sim_card_end(struct sim_card *card);
/* Closes what a program that was reset left open. */
void sim_card_reset(struct sim_card *card);
void sim_card_port(struct dev_port *port); /* its file members; ctx is a struct sim */

/* ---- the cores (cores.c) ---- */

struct sim_cores {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* left, undone or quit did while a core slept */
    void (*fn)(void *arg, uint32_t part, uint32_t parts);
    void *arg;
    uint32_t parts;
    atomic_uint left, undone; /* of the parts: not begun, not ended */
    atomic_bool first_sleeps, second_sleeps, quit;
};

int sim_cores_start(struct sim_cores *cores);
void sim_cores_end(struct sim_cores *cores);
void sim_cores_run(struct sim_cores *cores, void (*fn)(void *, uint32_t, uint32_t), void *arg,
                   uint32_t parts);

struct sim {
    struct sim_options options;
    struct sim_line line;
    struct sim_card card;
    struct sim_cores cores;
    const char *reset_reason;
    char card_name[512], card_mode[64];
};

#endif

/*
 * Between card.c and files.c: the card's task does one job at a time. Its caller waits, and may
 * give up waiting. So that a job can outlive its caller, what it needs and what it finds lies in
 * `card_job`, which only the task touches while the job is under way.
 */
#ifndef CARD_H
#define CARD_H

#include "board.h"

#include "ff.h"
#include "sdmmc_cmd.h"

#include <stdatomic.h>

#define CARD_DRIVE "0:"
#define CARD_PATH  (DEV_PATH + sizeof CARD_DRIVE)
#define CARD_FILES (DEV_HANDLES + 2u)
#define CARD_LINKS 16u /* a file in more than 7 pieces is read through FatFs */

struct card_file {
    FIL file;
    DWORD links[CARD_LINKS];
    bool used, mapped;   /* mapped: links is its link map */
    atomic_bool closing; /* the next job closes it */
};

struct card_state {
    sdmmc_card_t *sdmmc; /* NULL: not mounted */
    struct card_file files[CARD_FILES];
};

struct card_job {
    int (*run)(void);
    bool under_way;
    bool ahead; /* a read that nobody has asked for yet */
    bool writes;
    atomic_bool given_up;
    int status;

    bool slower;
    char path[CARD_PATH], to[CARD_PATH];
    int file;
    enum dev_open how;
    uint32_t offset, len, index;
    void *dst;
    const void *src;
    uint32_t size;
    uint64_t free_bytes, total_bytes;
    char entry[DEV_PATH];
};

extern struct card_state card_state;
extern struct card_job card_job;

/* Whether the last job has ended; waits for it for a while. */
bool card_job_ended(uint32_t wait_ms);
/* False: a stop was asked for, and the job goes on without its caller. */
bool card_job_wait(bool to_its_end);
void card_job_start(int (*run)(void), bool writes);
/* Starts and waits. The job's status, or of one that only reads TLLM_E_CANCELLED. */
int card_job_read(int (*run)(void));
int card_job_write(int (*run)(void));

/* Closes file number `file`: on the card's task. */
int card_close_now(int file);
/* Opens card_job.path as card_job.how says: on the card's task. */
int card_open_now(void);

#endif

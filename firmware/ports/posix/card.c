/* The card: a directory, at a given speed, with given faults, and a thread that reads ahead. */
#define _XOPEN_SOURCE 700
#include "sim.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define HOST_PATH 1024

static struct sim_card *card_of(void *ctx) {
    return &((struct sim *)ctx)->card;
}

static int failure(void) {
    switch (errno) {
    case ENOENT:
    case ENOTDIR:
        return DEV_E_FS;
    case ENOSPC:
    case EDQUOT:
        return DEV_E_FULL;
    case EIO:
        return TLLM_E_IO;
    default:
        return DEV_E_FS;
    }
}

/* The path on this machine; a card that is gone has none. */
static int host_path(const struct sim_card *card, const char *path, char out[HOST_PATH]) {
    if (card->gone) {
        return DEV_E_NO_CARD;
    }
    const int n = snprintf(out, HOST_PATH, "%s%s", card->options->card, path);
    return n < 0 || n >= HOST_PATH ? DEV_E_FS : 0;
}

/* ---- the power cut ---- */

/* What was not synced is lost: a file open for writing keeps its size of the last sync. */
static void cut_power(struct sim_card *card) {
    for (int i = 0; i < SIM_FILES; ++i) {
        struct sim_file *file = &card->files[i];
        if (file->fd >= 0 && file->writing && sim_random(&card->random) % 2 == 0 &&
            ftruncate(file->fd, (off_t)file->synced) != 0) {
            perror("tllm-sim");
        }
    }
    _exit(SIM_EXIT_POWER_CUT);
}

/* True before the change that the power cut strikes. */
static bool struck(struct sim_card *card) {
    return ++card->changes == card->options->power_cut_after;
}

/* A change of a directory either happens or does not. */
static void strike(struct sim_card *card) {
    if (struck(card) && sim_random(&card->random) % 2 == 0) {
        cut_power(card);
    }
}

static void after_change(struct sim_card *card) {
    if (card->changes > 0 && card->changes == card->options->power_cut_after) {
        cut_power(card);
    }
}

/* ---- reading ---- */

static uint64_t read_us(const struct sim_card *card, uint32_t len) {
    const struct sim_options *options = card->options;
    const uint64_t rate = card->slower ? options->card_rate / 2 : options->card_rate;
    return options->card_latency_us + (rate == 0 ? 0 : (uint64_t)len * 1000 / rate);
}

/* One read; `turn` counts them all. */
static int read_now(const struct sim_card *card, uint64_t turn, int fd, uint32_t offset, void *dst,
                    uint32_t len) {
    const struct sim_options *options = card->options;
    const uint64_t done_us = sim_now_us() + read_us(card, len);
    uint8_t *to = dst;
    if (turn == options->read_fail || (options->read_fail_forever && turn > options->read_fail)) {
        return TLLM_E_IO;
    }
    if (turn == options->read_short) {
        len /= 2;
    }
    uint32_t got = 0;
    while (got < len) {
        const ssize_t n = pread(fd, to + got, len - got, (off_t)offset + got);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            if (n < 0) {
                return failure();
            }
            break;
        }
        got += (uint32_t)n;
    }
    if (turn == options->read_flip && got > 0) {
        to[got / 2] ^= 1;
    }
    sim_sleep_until(done_us);
    return (int)got;
}

static bool leaves(struct sim_card *card) {
    const uint64_t after = card->options->card_gone_after;
    if (after > 0 && card->mounts_missed == 0 && card->reads >= after) {
        card->gone = true;
    }
    return card->gone;
}

static void *read_ahead(void *arg) {
    struct sim_card *card = arg;
    pthread_mutex_lock(&card->lock);
    while (card->state != SIM_ENDING) {
        if (card->state != SIM_ASKED) {
            pthread_cond_wait(&card->changed, &card->lock);
            continue;
        }
        card->state = SIM_READING;
        const uint64_t turn = ++card->reads;
        pthread_mutex_unlock(&card->lock);
        const int result = read_now(card, turn, card->files[card->ahead.file].fd,
                                    card->ahead.offset, card->ahead.dst, card->ahead.len);
        pthread_mutex_lock(&card->lock);
        card->ahead.result = result;
        if (card->state == SIM_READING) {
            card->state = SIM_DONE;
        }
        pthread_cond_broadcast(&card->changed);
    }
    pthread_mutex_unlock(&card->lock);
    return NULL;
}

/* With the lock: returns once no read ahead is under way. */
static void settle(struct sim_card *card) {
    if (card->state == SIM_ASKED) {
        card->state = SIM_IDLE;
    }
    while (card->state == SIM_READING) {
        pthread_cond_wait(&card->changed, &card->lock);
    }
}

static void abandon(struct sim_card *card) {
    pthread_mutex_lock(&card->lock);
    settle(card);
    card->state = SIM_IDLE;
    pthread_mutex_unlock(&card->lock);
}

static void file_prefetch(void *ctx, int file, uint32_t offset, void *dst, uint32_t len) {
    struct sim_card *card = card_of(ctx);
    pthread_mutex_lock(&card->lock);
    settle(card);
    card->ahead.file = file;
    card->ahead.offset = offset;
    card->ahead.dst = dst;
    card->ahead.len = len;
    card->state = SIM_ASKED;
    pthread_cond_broadcast(&card->changed);
    pthread_mutex_unlock(&card->lock);
}

static int file_read(void *ctx, int file, uint32_t offset, void *dst, uint32_t len) {
    struct sim_card *card = card_of(ctx);
    pthread_mutex_lock(&card->lock);
    const bool same = card->state != SIM_IDLE && card->ahead.file == file &&
                      card->ahead.offset == offset && card->ahead.dst == dst &&
                      card->ahead.len == len;
    while (same && (card->state == SIM_ASKED || card->state == SIM_READING)) {
        pthread_cond_wait(&card->changed, &card->lock);
    }
    const int result = card->ahead.result;
    settle(card);
    card->state = SIM_IDLE;
    const uint64_t turn = same ? 0 : ++card->reads;
    const bool gone = leaves(card);
    pthread_mutex_unlock(&card->lock);
    if (gone) {
        return DEV_E_NO_CARD;
    }
    return same ? result : read_now(card, turn, card->files[file].fd, offset, dst, len);
}

/* ---- files ---- */

static int file_open(void *ctx, const char *path, enum dev_open how) {
    struct sim_card *card = card_of(ctx);
    char host[HOST_PATH];
    struct stat facts;
    const int status = host_path(card, path, host);
    int free_file = 0;
    if (status < 0) {
        return status;
    }
    while (free_file < SIM_FILES && card->files[free_file].fd >= 0) {
        ++free_file;
    }
    if (free_file == SIM_FILES) {
        return DEV_E_FS;
    }
    if (how == DEV_WRITE && access(host, F_OK) != 0) {
        strike(card);
    }
    const int fd = open(host, how == DEV_WRITE ? O_RDWR | O_CREAT : O_RDONLY, 0644);
    if (fd < 0) {
        return failure();
    }
    if (fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) {
        close(fd);
        return DEV_E_FS;
    }
    card->files[free_file] = (struct sim_file){fd, how == DEV_WRITE, (uint32_t)facts.st_size};
    if (how == DEV_WRITE) {
        after_change(card);
    }
    return free_file;
}

static int file_close(void *ctx, int file) {
    struct sim_card *card = card_of(ctx);
    abandon(card);
    close(card->files[file].fd);
    card->files[file].fd = -1;
    return 0;
}

static int write_all(int fd, uint32_t offset, const uint8_t *src, uint32_t len) {
    for (uint32_t done = 0; done < len;) {
        const ssize_t n = pwrite(fd, src + done, len - done, (off_t)offset + done);
        if (n < 0 && errno != EINTR) {
            return failure();
        }
        done += n > 0 ? (uint32_t)n : 0;
    }
    return 0;
}

static int file_write(void *ctx, int file, uint32_t offset, const void *src, uint32_t len) {
    struct sim_card *card = card_of(ctx);
    const int fd = card->files[file].fd;
    if (card->gone) {
        return DEV_E_NO_CARD;
    }
    if (struck(card)) { /* some of it arrives */
        (void)write_all(fd, offset, src, sim_random(&card->random) % (len + 1));
        cut_power(card);
    }
    const uint64_t done_us = sim_now_us() + read_us(card, len);
    const int status = write_all(fd, offset, src, len);
    sim_sleep_until(done_us);
    return status;
}

static int file_truncate(void *ctx, int file, uint32_t size) {
    struct sim_card *card = card_of(ctx);
    struct sim_file *open_file = &card->files[file];
    struct stat facts;
    if (card->gone) {
        return DEV_E_NO_CARD;
    }
    if (fstat(open_file->fd, &facts) == 0 && facts.st_size == (off_t)size) {
        return 0;
    }
    strike(card);
    const int status = ftruncate(open_file->fd, (off_t)size) == 0 ? 0 : failure();
    open_file->synced = size < open_file->synced ? size : open_file->synced;
    after_change(card);
    return status;
}

static int file_sync(void *ctx, int file) {
    struct sim_card *card = card_of(ctx);
    struct stat facts;
    if (card->gone) {
        return DEV_E_NO_CARD;
    }
    if (fsync(card->files[file].fd) != 0 || fstat(card->files[file].fd, &facts) != 0) {
        return failure();
    }
    card->files[file].synced = (uint32_t)facts.st_size;
    return 0;
}

static int file_rename(void *ctx, const char *from, const char *to) {
    struct sim_card *card = card_of(ctx);
    char host_from[HOST_PATH], host_to[HOST_PATH];
    int status = host_path(card, from, host_from);
    status = status == 0 ? host_path(card, to, host_to) : status;
    if (status == 0) {
        strike(card);
        status = access(host_to, F_OK) == 0        ? DEV_E_FS
                 : rename(host_from, host_to) == 0 ? 0
                                                   : failure();
        after_change(card);
    }
    return status;
}

static int file_remove(void *ctx, const char *path) {
    struct sim_card *card = card_of(ctx);
    char host[HOST_PATH];
    int status = host_path(card, path, host);
    if (status == 0) {
        strike(card);
        status = remove(host) == 0 ? 0 : failure();
        after_change(card);
    }
    return status;
}

static int file_size(void *ctx, const char *path, uint32_t *size) {
    const struct sim_card *card = card_of(ctx);
    char host[HOST_PATH];
    struct stat facts;
    int status = host_path(card, path, host);
    if (status == 0 && stat(host, &facts) != 0) {
        status = failure();
    }
    if (status == 0 && (!S_ISREG(facts.st_mode) || facts.st_size > UINT32_MAX)) {
        status = DEV_E_FS;
    }
    if (status == 0) {
        *size = (uint32_t)facts.st_size;
    }
    return status;
}

static int make_dir(void *ctx, const char *path) {
    struct sim_card *card = card_of(ctx);
    char host[HOST_PATH];
    const int status = host_path(card, path, host);
    if (status < 0 || access(host, F_OK) == 0) {
        return status;
    }
    strike(card);
    const int made = mkdir(host, 0755) == 0 ? 0 : failure();
    after_change(card);
    return made;
}

/* The names in order, so that the same card always lists the same way. */
static int list(void *ctx, const char *path, uint32_t index, char *name, uint32_t name_len,
                uint32_t *size) {
    const struct sim_card *card = card_of(ctx);
    char host[HOST_PATH];
    struct dirent **entries = NULL;
    int status = host_path(card, path, host);
    if (status < 0) {
        return status;
    }
    const int n = scandir(host, &entries, NULL, alphasort);
    if (n < 0) {
        return failure();
    }
    status = 0;
    for (int i = 0; i < n; ++i) {
        struct stat facts;
        char inside[2 * HOST_PATH];
        const char *found = entries[i]->d_name;
        if (found[0] != '.' && strlen(found) < name_len && index-- == 0) {
            snprintf(inside, sizeof inside, "%s/%s", host, found);
            snprintf(name, name_len, "%s", found);
            const bool there = stat(inside, &facts) == 0;
            *size = !there ? 0 : S_ISDIR(facts.st_mode) ? DEV_DIRECTORY : (uint32_t)facts.st_size;
            status = 1;
        }
        free(entries[i]);
    }
    free(entries);
    return status;
}

static int space(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes) {
    const struct sim_card *card = card_of(ctx);
    struct statvfs facts;
    if (card->gone) {
        return DEV_E_NO_CARD;
    }
    if (statvfs(card->options->card, &facts) != 0) {
        return failure();
    }
    *free_bytes = (uint64_t)facts.f_bavail * facts.f_frsize;
    *total_bytes = (uint64_t)facts.f_blocks * facts.f_frsize;
    return 0;
}

static int card_mount(void *ctx, bool slower) {
    struct sim_card *card = card_of(ctx);
    struct stat facts;
    leaves(card);
    if (card->gone) {
        const uint64_t mounts = card->options->card_gone_mounts;
        if (mounts == 0 || ++card->mounts_missed <= mounts) {
            return DEV_E_NO_CARD;
        }
        card->gone = false;
    }
    card->slower = card->slower || slower;
    return stat(card->options->card, &facts) == 0 && S_ISDIR(facts.st_mode) ? 0 : DEV_E_NO_CARD;
}

/* ---- start and end ---- */

int sim_card_start(struct sim_card *card, const struct sim_options *options) {
    *card = (struct sim_card){.options = options, .random = options->fault_seed + 1};
    for (int i = 0; i < SIM_FILES; ++i) {
        card->files[i].fd = -1;
    }
    pthread_mutex_init(&card->lock, NULL);
    pthread_cond_init(&card->changed, NULL);
    return pthread_create(&card->thread, NULL, read_ahead, card);
}

void sim_card_reset(struct sim_card *card) {
    abandon(card);
    for (int i = 0; i < SIM_FILES; ++i) {
        if (card->files[i].fd >= 0) {
            close(card->files[i].fd);
            card->files[i].fd = -1;
        }
    }
}

void sim_card_end(struct sim_card *card) {
    sim_card_reset(card);
    pthread_mutex_lock(&card->lock);
    card->state = SIM_ENDING;
    pthread_cond_broadcast(&card->changed);
    pthread_mutex_unlock(&card->lock);
    pthread_join(card->thread, NULL);
}

void sim_card_port(struct dev_port *port) {
    port->card_mount = card_mount;
    port->file_open = file_open;
    port->file_close = file_close;
    port->file_read = file_read;
    port->file_write = file_write;
    port->file_truncate = file_truncate;
    port->file_sync = file_sync;
    port->file_rename = file_rename;
    port->file_remove = file_remove;
    port->file_size = file_size;
    port->make_dir = make_dir;
    port->list = list;
    port->space = space;
    port->file_prefetch = file_prefetch;
}

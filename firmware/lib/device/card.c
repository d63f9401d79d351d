/* The card: mounting, slots, retried reads, and the engine's view of the model's files. */
#include "internal.h"

#define TRIES      3u
#define SLOT_BYTES 64u

static const char *const slot_paths[2] = {"/tllm/slot0", "/tllm/slot1"};

/* ---- handles of the model's files ---- */

void dev_close_handles(struct dev *dev) {
    for (uint32_t i = 0; i < DEV_HANDLES; ++i) {
        if (dev->handles[i].handle >= 0) {
            dev->port->file_close(dev->port->ctx, dev->handles[i].handle);
            dev->handles[i].handle = -1;
        }
    }
}

void dev_package_path(char *path, const char *dir, const char *name) {
    struct dev_text text;
    dev_text_start(&text, path, DEV_PATH);
    dev_text_add(&text, dir);
    dev_text_add(&text, "/");
    dev_text_add(&text, name);
}

void dev_package_dir(char *dir, const uint8_t *fingerprint) {
    struct dev_text text;
    dev_text_start(&text, dir, DEV_PATH);
    dev_text_add(&text, "/tllm/");
    dev_text_hex(&text, fingerprint, 4);
}

/* Where no handle is free the one used last gives way: a pass takes the files in turn, so its file
 * is wanted again last. */
static int open_model_file(struct dev *dev, uint32_t file) {
    uint32_t at = 0;
    for (uint32_t i = 0; i < DEV_HANDLES; ++i) {
        if (dev->handles[i].handle >= 0 && dev->handles[i].file == file) {
            dev->handles[i].used = ++dev->handle_clock;
            return dev->handles[i].handle;
        }
        if (dev->handles[at].handle >= 0 &&
            (dev->handles[i].handle < 0 || dev->handles[i].used > dev->handles[at].used)) {
            at = i;
        }
    }
    if (dev->handles[at].handle >= 0) {
        dev->port->file_close(dev->port->ctx, dev->handles[at].handle);
    }
    char path[DEV_PATH];
    dev_package_path(path, dev->dir, dev->model->files[file].name);
    const int handle = dev->port->file_open(dev->port->ctx, path, DEV_READ);
    dev->handles[at].handle = handle < 0 ? -1 : handle;
    dev->handles[at].file = file;
    dev->handles[at].used = ++dev->handle_clock;
    return handle;
}

/* ---- mounting ---- */

int dev_card_mount(struct dev *dev, bool slower) {
    dev_close_handles(dev);
    if (dev->upload.file >= 0) {
        dev->port->file_close(dev->port->ctx, dev->upload.file);
        dev->upload.file = -1;
    }
    if (slower) {
        dev->counts.remounts++;
    }
    const int status = dev->port->card_mount(dev->port->ctx, slower);
    dev->card_mounted = status == 0;
    if (status == TLLM_E_CANCELLED) {
        return status;
    }
    dev->mount_status = status;
    return status == 0 ? 0 : DEV_E_NO_CARD;
}

void dev_card_gone(struct dev *dev) {
    dev_unload(dev);
    dev->card_mounted = false;
    dev->state = DEV_NO_CARD;
    dev->stopped = false;
    dev->load_status = DEV_E_NO_CARD;
    dev->retry_us = dev_now(dev) + 1000000;
    struct dev_text text;
    dev_text_start(&text, dev->load_error, sizeof dev->load_error);
    dev_text_add(
        &text, dev->mount_status == DEV_E_FS
                   ? "There is a card, but no FAT file system that can be read: format it as "
                     "FAT32 (exFAT is not read), and put the model on it with `host card` or "
                     "`host upload`."
                   : "There is no card, or it does not answer: put in a card formatted as FAT32.");
}

/* ---- reads ---- */

static int read_all(struct dev *dev, int file, uint32_t offset, void *dst, uint32_t len) {
    const int got = dev->port->file_read(dev->port->ctx, file, offset, dst, len);
    if (got < 0) {
        return got;
    }
    return (uint32_t)got == len ? 0 : TLLM_E_IO;
}

static bool failed(int status) {
    return status != 0 && status != TLLM_E_CANCELLED;
}

int dev_file_read(struct dev *dev, int file, uint32_t offset, void *dst, uint32_t len) {
    int status = TLLM_E_IO;
    for (uint32_t i = 0; i < TRIES && failed(status); ++i) {
        if (i > 0 && dev_busy(dev) != 0) {
            return TLLM_E_CANCELLED;
        }
        status = read_all(dev, file, offset, dst, len);
        dev->counts.read_errors += failed(status);
    }
    return status;
}

static int model_read_once(struct dev *dev, uint32_t file, uint32_t offset, void *dst,
                           uint32_t len) {
    const int handle = open_model_file(dev, file);
    return handle < 0 ? handle : read_all(dev, handle, offset, dst, len);
}

int dev_model_read(struct dev *dev, uint32_t file, uint32_t offset, void *dst, uint32_t len) {
    int status = model_read_once(dev, file, offset, dst, len);
    for (uint32_t i = 1; i <= TRIES && failed(status); ++i) {
        dev->counts.read_errors++;
        if (dev_busy(dev) != 0) {
            return TLLM_E_CANCELLED;
        }
        dev_close_handles(dev);
        const int mounted = i < TRIES ? 0 : dev_card_mount(dev, true);
        status = mounted == 0 ? model_read_once(dev, file, offset, dst, len) : mounted;
    }
    if (!failed(status)) {
        return status;
    }
    dev->fault = (struct tllm_fault){file, offset, len};
    return status == DEV_E_NO_CARD ? status : DEV_E_CARD_READ;
}

/* ---- the engine's seam ---- */

static int engine_read(void *ctx, uint32_t file, uint32_t offset, void *dst, uint32_t len) {
    return dev_model_read(ctx, file, offset, dst, len);
}

static void engine_prefetch(void *ctx, uint32_t file, uint32_t offset, void *dst, uint32_t len) {
    struct dev *dev = ctx;
    const int handle = open_model_file(dev, file);
    if (handle >= 0) {
        dev->port->file_prefetch(dev->port->ctx, handle, offset, dst, len);
    }
}

static const void *engine_map(void *ctx, uint32_t file, uint32_t offset, uint32_t len) {
    const struct dev *dev = ctx;
    const struct dev_resident *resident = &dev->resident[file];
    if (offset > resident->bytes || len > resident->bytes - offset) {
        return NULL;
    }
    return resident->data + offset;
}

static void engine_parallel(void *ctx, void (*fn)(void *arg, uint32_t part, uint32_t parts),
                            void *arg, uint32_t parts) {
    const struct dev *dev = ctx;
    dev->port->parallel(dev->port->ctx, fn, arg, parts);
}

static uint64_t engine_now(void *ctx) {
    return dev_now(ctx);
}

static int engine_yield(void *ctx) {
    return dev_busy(ctx);
}

void dev_card_port(struct dev *dev) {
    dev->engine_port = (struct tllm_port){
        .ctx = dev,
        .read = engine_read,
        .prefetch = dev->port->file_prefetch != NULL ? engine_prefetch : NULL,
        .map = engine_map,
        .parallel = dev->port->parallel != NULL ? engine_parallel : NULL,
        .now_us = engine_now,
        .yield = engine_yield,
    };
}

/* ---- slots ---- */

static bool slot_parse(const uint8_t *slot, uint32_t *sequence, uint8_t *fingerprint) {
    if (memcmp(slot, "TSLT", 4) != 0 || tllm_crc32(0, slot, 60) != dev_get_u32(slot + 60)) {
        return false;
    }
    *sequence = dev_get_u32(slot + 4);
    memcpy(fingerprint, slot + 8, 32);
    return true;
}

int dev_slots_read(struct dev *dev, struct dev_slots *slots) {
    const struct dev_port *port = dev->port;
    memset(slots, 0, sizeof *slots);
    for (uint32_t i = 0; i < 2; ++i) {
        uint32_t size = 0;
        int status = port->file_size(port->ctx, slot_paths[i], &size);
        if (status == DEV_E_FS || (status == 0 && size != SLOT_BYTES)) {
            continue;
        }
        const int file = status < 0 ? status : port->file_open(port->ctx, slot_paths[i], DEV_READ);
        if (file < 0) {
            return file;
        }
        for (uint32_t tries = 0; tries < TRIES && status == 0 && !slots->valid[i]; ++tries) {
            status = dev_file_read(dev, file, 0, dev->io, SLOT_BYTES);
            slots->valid[i] = slot_parse(dev->io, &slots->sequence[i], slots->fingerprint[i]);
        }
        port->file_close(port->ctx, file);
        if (status < 0) {
            return status;
        }
    }
    slots->newest =
        slots->valid[1] && (!slots->valid[0] || slots->sequence[1] > slots->sequence[0]);
    return 0;
}

int dev_slots_switch(struct dev *dev, const uint8_t *fingerprint) {
    const struct dev_port *port = dev->port;
    struct dev_slots slots;
    int status = dev_slots_read(dev, &slots);
    if (status < 0) {
        return status;
    }
    const bool first = !slots.valid[slots.newest];
    const uint32_t other = first ? 0 : 1 - slots.newest;
    const uint32_t sequence = first ? 1 : slots.sequence[slots.newest] + 1;
    if (sequence == 0) {
        return dev_fail(dev, DEV_E_STATE,
                        "The card's slots are at their end: remove its tllm folder in a computer.");
    }
    uint8_t *slot = dev->io;
    memset(slot, 0, SLOT_BYTES);
    memcpy(slot, "TSLT", 4);
    dev_set_u32(slot + 4, sequence);
    memcpy(slot + 8, fingerprint, 32);
    dev_set_u32(slot + 60, tllm_crc32(0, slot, 60));
    const int file = port->file_open(port->ctx, slot_paths[other], DEV_WRITE);
    if (file < 0) {
        return file;
    }
    status = port->file_write(port->ctx, file, 0, slot, SLOT_BYTES);
    status = status == 0 ? port->file_truncate(port->ctx, file, SLOT_BYTES) : status;
    status = status == 0 ? port->file_sync(port->ctx, file) : status;
    const int closed = port->file_close(port->ctx, file);
    status = status == 0 ? closed : status;
    status = status == 0 ? dev_slots_read(dev, &slots) : status;
    if (status == 0 && !(slots.valid[other] && slots.sequence[other] == sequence &&
                         memcmp(slots.fingerprint[other], fingerprint, 32) == 0)) {
        return dev_fail(dev, TLLM_E_IO,
                        "The card does not keep what is written to it: use another card.");
    }
    return status;
}

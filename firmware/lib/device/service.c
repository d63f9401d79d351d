/* The package service: what the host asks of the card's files, but for uploads (upload.c). */
#include "internal.h"

#include "red_zone.h"

#define ABSENT 0xffffffffu

/* ---- names ---- */

static bool name_char(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
}

int dev_name_path(struct dev *dev, const uint8_t *name, uint32_t len, const char *suffix,
                  char *path) {
    uint32_t slashes = 0;
    bool start = true, good = len > 0;
    for (uint32_t i = 0; i < len && good; ++i) {
        const char c = (char)name[i];
        good = c == '/' ? !start && ++slashes == 1 : name_char(c) && !(start && c == '.');
        start = c == '/';
    }
    if (!good || start || len + strlen("/tllm/") + strlen(suffix) >= DEV_PATH) {
        return dev_fail(
            dev, DEV_E_NAME,
            "That is no name of a file of a package: letters, digits, . _ - and at most one /.");
    }
    struct dev_text text;
    dev_text_start(&text, path, DEV_PATH);
    dev_text_add(&text, "/tllm/");
    dev_text_bytes(&text, (const char *)name, len);
    dev_text_add(&text, suffix);
    return 0;
}

static int put_size(struct dev *dev, const char *path) {
    uint32_t size = ABSENT;
    const int status = dev->port->file_size(dev->port->ctx, path, &size);
    dev_put_u32(dev, status == 0 ? size : ABSENT);
    return status == DEV_E_FS ? 0 : status;
}

int dev_on_stat(struct dev *dev, const uint8_t *payload, uint32_t len) {
    char path[DEV_PATH], part[DEV_PATH];
    int status = dev_name_path(dev, payload, len, "", path);
    status = status == 0 ? dev_name_path(dev, payload, len, ".part", part) : status;
    if (dev->upload.file >= 0) { /* of an upload that was broken off: what it wrote counts */
        (void)dev->port->file_sync(dev->port->ctx, dev->upload.file);
    }
    status = status == 0 ? put_size(dev, path) : status;
    return status == 0 ? put_size(dev, part) : status;
}

int dev_on_sums(struct dev *dev, const uint8_t *payload, uint32_t len) {
    const struct dev_port *port = dev->port;
    const uint32_t first = dev_get_u32(payload), n = dev_get_u16(payload + 4);
    char path[DEV_PATH];
    uint32_t size = 0;
    if (n > 64 || payload[6] > 1) {
        return DEV_E_PAYLOAD;
    }
    int status = dev_name_path(dev, payload + 7, len - 7, payload[6] ? ".part" : "", path);
    status = status == 0 ? port->file_size(port->ctx, path, &size) : status;
    const int file = status < 0 ? status : port->file_open(port->ctx, path, DEV_READ);
    if (file < 0) {
        return file;
    }
    for (uint32_t i = 0; i < n && (uint64_t)(first + (uint64_t)i) * TLLM_CHUNK < size; ++i) {
        const uint32_t at = (first + i) * TLLM_CHUNK;
        const uint32_t bytes = size - at < TLLM_CHUNK ? size - at : TLLM_CHUNK;
        status = dev_file_read(dev, file, at, dev->io, bytes);
        if (status == 0 && dev_busy(dev) != 0) {
            status = TLLM_E_CANCELLED;
        }
        if (status < 0) {
            break;
        }
        dev_put_u32(dev, tllm_crc32(0, dev->io, bytes));
    }
    port->file_close(port->ctx, file);
    return status;
}

/* ---- directories ---- */

#define NAME_AT    128u /* of a descriptor's model name */
#define NAME_BYTES 32u

struct lister {
    uint32_t line, first;
    bool full;
    char current[DEV_PATH]; /* the directory that the newest slot names, or "" */
};

/* The directory of the package that is current, whether it could be loaded or not. */
static int current_dir(struct dev *dev, char *dir) {
    struct dev_slots slots;
    dir[0] = '\0';
    const int status = dev_slots_read(dev, &slots);
    if (status == 0 && slots.valid[slots.newest]) {
        dev_package_dir(dir, slots.fingerprint[slots.newest]);
    }
    return status;
}

/* The name of the model in a package's directory, as far as there is one. */
static void add_model(struct dev *dev, struct dev_text *text, const char *dir) {
    const struct dev_port *port = dev->port;
    char path[DEV_PATH];
    dev_package_path(path, dir, "descriptor.bin");
    const int file = port->file_open(port->ctx, path, DEV_READ);
    if (file < 0) {
        return;
    }
    const int status = dev_file_read(dev, file, 0, dev->io, NAME_AT + NAME_BYTES);
    port->file_close(port->ctx, file);
    if (status < 0 || memcmp(dev->io, "TLLM", 4) != 0) {
        return;
    }
    dev_text_add(text, " ");
    for (uint32_t i = NAME_AT; i < NAME_AT + NAME_BYTES && dev->io[i] >= ' '; ++i) {
        dev_text_bytes(text, (const char *)dev->io + i, 1);
    }
}

static void put_entry(struct dev *dev, struct lister *lister, const char *dir, const char *name,
                      uint32_t size) {
    char buffer[128], path[DEV_PATH];
    struct dev_text text;
    if (lister->line++ < lister->first || lister->full) {
        return;
    }
    dev_package_path(path, "/tllm", name);
    dev_text_start(&text, buffer, sizeof buffer);
    if (size == DEV_DIRECTORY) {
        dev_text_add(&text, strcmp(path, lister->current) == 0 ? "*" : "-");
    } else {
        dev_text_number(&text, size);
    }
    dev_text_add(&text, " ");
    dev_text_add(&text, dir);
    dev_text_add(&text, dir[0] == '\0' ? "" : "/");
    dev_text_add(&text, name);
    if (size == DEV_DIRECTORY && dir[0] == '\0') {
        add_model(dev, &text, path);
    }
    dev_text_add(&text, "\n");
    uint8_t *at = dev_put(dev, text.len);
    if (at == NULL) {
        lister->full = true;
    } else {
        memcpy(at, buffer, text.len);
    }
}

static int list_package(struct dev *dev, struct lister *lister, const char *dir) {
    char path[DEV_PATH], name[48];
    uint32_t size = 0;
    dev_package_path(path, "/tllm", dir);
    int status = 1;
    for (uint32_t i = 0; status == 1 && !lister->full; ++i) {
        status = dev->port->list(dev->port->ctx, path, i, name, sizeof name, &size);
        if (status == 1) {
            put_entry(dev, lister, dir, name, size);
        }
    }
    return status < 0 ? status : 0;
}

int dev_on_list(struct dev *dev, const uint8_t *payload, uint32_t len) {
    struct lister lister = {.first = dev_get_u16(payload)};
    char name[48];
    uint32_t size = 0;
    (void)len;
    int status = current_dir(dev, lister.current);
    status = status < 0 ? status : 1;
    for (uint32_t i = 0; status == 1 && !lister.full; ++i) {
        status = dev->port->list(dev->port->ctx, "/tllm", i, name, sizeof name, &size);
        if (status != 1) {
            break;
        }
        put_entry(dev, &lister, "", name, size);
        if (size == DEV_DIRECTORY) {
            const int inner = list_package(dev, &lister, name);
            status = inner < 0 ? inner : status;
        }
        if (dev_busy(dev) != 0) {
            status = TLLM_E_CANCELLED;
        }
    }
    return status == DEV_E_FS || status > 0 ? 0 : status; /* no /tllm: nothing in it */
}

static bool is_in(const char *path, const char *dir) {
    const size_t n = strlen(dir);
    return n > 0 && strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

static bool is_part(const char *path) {
    const size_t n = strlen(path);
    return n > 5 && strcmp(path + n - 5, ".part") == 0;
}

int dev_on_remove(struct dev *dev, const uint8_t *payload, uint32_t len) {
    char path[DEV_PATH], current[DEV_PATH];
    int status = dev_name_path(dev, payload, len, "", path);
    status = status == 0 ? current_dir(dev, current) : status;
    if (status < 0) {
        return status;
    }
    if (strncmp(path, "/tllm/slot", 10) == 0) {
        return dev_fail(dev, DEV_E_NAME, "The slots are the board's own and stay.");
    }
    if (!is_part(path) && (is_in(path, current) || (dev->model != NULL && is_in(path, dev->dir)))) {
        return dev_fail(dev, DEV_E_STATE, "That belongs to the model in use and stays.");
    }
    if (dev->upload.file >= 0 && strcmp(path, dev->upload.path) == 0) {
        return dev_fail(dev, DEV_E_STATE, "That file is being written.");
    }
    return dev->port->file_remove(dev->port->ctx, path);
}

int dev_on_space(struct dev *dev, const uint8_t *payload, uint32_t len) {
    uint64_t free_bytes = 0, total_bytes = 0;
    (void)payload;
    (void)len;
    const int status = dev->port->space(dev->port->ctx, &free_bytes, &total_bytes);
    if (status == 0) {
        dev_put_u64(dev, free_bytes);
        dev_put_u64(dev, total_bytes);
    }
    return status;
}

/* ---- tests of the card ---- */

static uint32_t largest_file(const struct tllm_model *model) {
    uint32_t largest = 0;
    for (uint32_t i = 1; i < model->n_files; ++i) {
        if (model->files[i].size > model->files[largest].size) {
            largest = i;
        }
    }
    return largest;
}

static int read_test(struct dev *dev, uint32_t block, uint32_t total) {
    const uint32_t file = largest_file(dev->model), size = dev->model->files[file].size;
    uint64_t us = 0;
    uint32_t crc = 0, at = 0;
    for (uint32_t done = 0; done < total;) {
        uint32_t bytes = block < size - at ? block : size - at;
        bytes = bytes < total - done ? bytes : total - done;
        const uint64_t start = dev_now(dev);
        const int status = dev_model_read(dev, file, at, dev->engine_fast, bytes);
        us += dev_now(dev) - start;
        if (status < 0) {
            return status;
        }
        crc = tllm_crc32(crc, dev->engine_fast, bytes);
        done += bytes;
        at = at + bytes == size ? 0 : at + bytes;
        if (dev_busy(dev) != 0) {
            return TLLM_E_CANCELLED;
        }
    }
    dev_put_u64(dev, us);
    dev_put_u32(dev, crc);
    return 0;
}

int dev_on_read_test(struct dev *dev, const uint8_t *payload, uint32_t len) {
    const uint32_t block = dev_get_u32(payload), total = dev_get_u32(payload + 4);
    (void)len;
    if (block == 0 || block % 512 != 0 || block > 65536 || block > dev->memory.fast_engine) {
        return dev_fail(dev, DEV_E_PAYLOAD,
                        "A block must be a multiple of 512 bytes that fits the engine's memory.");
    }
    dev->engine_stale = true;
    tllm_unfence(dev->engine_fast, dev->memory.fast_engine);
    const int status = read_test(dev, block, total);
    const int started = status == TLLM_E_CANCELLED ? 0 : dev_settle(dev);
    return status == 0 ? started : status;
}

int dev_on_check(struct dev *dev, const uint8_t *payload, uint32_t len) {
    const uint32_t first = dev_get_u32(payload), n = dev_get_u32(payload + 4);
    uint32_t wrong = 0, checked = 0, wrong_file = ABSENT, wrong_chunk = ABSENT;
    (void)len;
    for (uint32_t i = 0; i < dev->model->n_files; ++i) {
        const struct tllm_file *file = &dev->model->files[i];
        const uint32_t chunks = (uint32_t)(((uint64_t)file->size + TLLM_CHUNK - 1) / TLLM_CHUNK);
        for (uint32_t c = 0; c < chunks; ++c) {
            const uint32_t index = file->first_crc + c, at = c * TLLM_CHUNK;
            if (index < first || index - first >= n) {
                continue;
            }
            const uint32_t bytes = file->size - at < TLLM_CHUNK ? file->size - at : TLLM_CHUNK;
            const int status = dev_model_read(dev, i, at, dev->io, bytes);
            if (status < 0) {
                return status;
            }
            checked++;
            if (tllm_crc32(0, dev->io, bytes) != dev->model->crcs[index]) {
                wrong_file = wrong++ == 0 ? i : wrong_file;
                wrong_chunk = wrong == 1 ? c : wrong_chunk;
            }
            if (dev_busy(dev) != 0) {
                return TLLM_E_CANCELLED;
            }
        }
    }
    dev_put_u32(dev, wrong);
    dev_put_u32(dev, checked);
    dev_put_u32(dev, wrong_file);
    dev_put_u32(dev, wrong_chunk);
    return 0;
}

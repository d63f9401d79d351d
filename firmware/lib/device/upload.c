/*
 * Files on their way to the card. A window of chunks is put together from pieces in any order;
 * whole and right, they are written in order to NAME.part, which CLOSE checks and renames. COMMIT
 * makes a package current by one write of the older slot.
 */
#include "internal.h"

#define PIECE 64u
#define TRIES 3u
/* FAT learns a file's length at a sync: a reset costs what came after it. */
#define SYNC_CHUNKS 32u

static uint32_t chunk_count(uint32_t size) {
    return (uint32_t)(((uint64_t)size + TLLM_CHUNK - 1) / TLLM_CHUNK);
}

static uint32_t chunk_bytes(const struct dev_upload *upload, uint32_t chunk) {
    const uint32_t rest = upload->size - chunk * TLLM_CHUNK;
    return rest < TLLM_CHUNK ? rest : TLLM_CHUNK;
}

static uint64_t pieces(uint32_t bytes) {
    const uint32_t n = (bytes + PIECE - 1) / PIECE;
    return n == 64 ? UINT64_MAX : ((uint64_t)1 << n) - 1;
}

/* ---- acks ---- */

static uint32_t ack(const struct dev_upload *upload, uint8_t bytes[13 + 8 * (DEV_WINDOW - 1)]) {
    uint32_t more = DEV_WINDOW - 1;
    while (more > 0 && upload->held[(upload->written + more) % DEV_WINDOW] == 0) {
        --more;
    }
    dev_set_u32(bytes, upload->written);
    dev_set_u64(bytes + 4, upload->held[upload->written % DEV_WINDOW]);
    bytes[12] = (uint8_t)more;
    for (uint32_t i = 1; i <= more; ++i) {
        dev_set_u64(bytes + 5 + 8 * i, upload->held[(upload->written + i) % DEV_WINDOW]);
    }
    return 13 + 8 * more;
}

static void send_ack(struct dev *dev) {
    uint8_t bytes[13 + 8 * (DEV_WINDOW - 1)];
    dev_send(dev, DEV_DATA | DEV_EVENT, dev->upload.seq, bytes, ack(&dev->upload, bytes), NULL, 0);
}

static int none_open(struct dev *dev) {
    return dev_fail(dev, DEV_E_STATE, "No file is open for writing.");
}

int dev_on_poll(struct dev *dev, const uint8_t *payload, uint32_t len) {
    uint8_t bytes[13 + 8 * (DEV_WINDOW - 1)];
    (void)payload;
    (void)len;
    if (dev->upload.error < 0) {
        return dev->upload.error;
    }
    if (dev->upload.file < 0) {
        return none_open(dev);
    }
    const uint32_t n = ack(&dev->upload, bytes);
    memcpy(dev_put(dev, n), bytes, n);
    return 0;
}

/* ---- pieces ---- */

static void abandon(struct dev *dev) {
    if (dev->upload.file >= 0) {
        dev->port->file_close(dev->port->ctx, dev->upload.file);
        dev->upload.file = -1;
    }
}

/* Fails where what was written before is no longer all there. */
static int open_again(struct dev *dev, bool slower, uint32_t written) {
    const struct dev_port *port = dev->port;
    struct dev_upload *upload = &dev->upload;
    uint32_t held = 0;
    abandon(dev);
    int status = slower ? dev_card_mount(dev, true) : 0;
    status = status == 0 ? port->file_size(port->ctx, upload->path, &held) : status;
    if (status != 0 || held < written) {
        return status != 0 ? status : TLLM_E_IO;
    }
    const int file = port->file_open(port->ctx, upload->path, DEV_WRITE);
    upload->file = file < 0 ? -1 : file;
    return file < 0 ? file : 0;
}

/* As a read: once more, then after a slower mount. */
static int write_chunk(struct dev *dev, uint32_t chunk) {
    const struct dev_port *port = dev->port;
    const struct dev_upload *upload = &dev->upload;
    const uint32_t bytes = chunk_bytes(upload, chunk);
    int status = 0;
    memcpy(dev->io, upload->window + (size_t)(chunk % DEV_WINDOW) * TLLM_CHUNK, bytes);
    for (uint32_t i = 0; i < TRIES; ++i) {
        status = i == 0 ? 0 : open_again(dev, i + 1 == TRIES, chunk * TLLM_CHUNK);
        if (status == 0) {
            status = port->file_write(port->ctx, upload->file, chunk * TLLM_CHUNK, dev->io, bytes);
        }
        if (status == 0 && (chunk + 1) % SYNC_CHUNKS == 0) {
            status = port->file_sync(port->ctx, upload->file);
        }
        if (status != TLLM_E_IO) {
            break;
        }
    }
    return status;
}

/* Writes the chunks that are whole, in order. */
static void write_ready(struct dev *dev) {
    struct dev_upload *upload = &dev->upload;
    const uint32_t chunks = chunk_count(upload->size);
    while (upload->written < chunks) {
        const uint32_t chunk = upload->written, slot = chunk % DEV_WINDOW;
        const uint32_t bytes = chunk_bytes(upload, chunk);
        if (upload->held[slot] != pieces(bytes)) {
            return;
        }
        upload->error = write_chunk(dev, chunk);
        if (upload->error < 0) {
            return;
        }
        upload->held[slot] = 0;
        upload->written++;
        send_ack(dev);
    }
}

void dev_on_data(struct dev *dev, const uint8_t *payload, uint32_t len) {
    struct dev_upload *upload = &dev->upload;
    if (upload->file < 0 || upload->error < 0 || len < 11) {
        return;
    }
    const uint32_t chunk = dev_get_u32(payload), offset = dev_get_u16(payload + 4);
    const uint32_t crc = dev_get_u32(payload + 6), n = len - 10;
    if (chunk < upload->written || chunk - upload->written >= DEV_WINDOW ||
        chunk >= chunk_count(upload->size)) {
        return;
    }
    const uint32_t bytes = chunk_bytes(upload, chunk), slot = chunk % DEV_WINDOW;
    if (offset % PIECE != 0 || offset > bytes || n > bytes - offset ||
        (n % PIECE != 0 && offset + n != bytes)) {
        return;
    }
    if (upload->held[slot] != 0 && upload->chunk_crc[slot] != crc) {
        upload->held[slot] = 0;
    }
    uint8_t *to = upload->window + (size_t)slot * TLLM_CHUNK;
    upload->chunk_crc[slot] = crc;
    memcpy(to + offset, payload + 10, n);
    upload->held[slot] |= pieces(n) << (offset / PIECE);
    if (upload->held[slot] == pieces(bytes)) {
        if (tllm_crc32(0, to, bytes) != crc) {
            upload->held[slot] = 0;
        }
        write_ready(dev);
    }
}

/* ---- open and close ---- */

static int make_room(struct dev *dev, const uint8_t *payload, uint32_t len, char *path) {
    const struct dev_port *port = dev->port;
    uint8_t head[4], name[DEV_PATH];
    char dir[DEV_PATH];
    for (uint32_t i = 0; i < 4; ++i) {
        head[i] = payload[3 - i];
    }
    dev_package_dir(dir, head);
    memcpy(name, dir + strlen("/tllm/"), 8);
    name[8] = '/';
    if (len > DEV_PATH - 9 || memchr(payload + 16, '/', len) != NULL) {
        return DEV_E_NAME;
    }
    memcpy(name + 9, payload + 16, len);
    int status = dev_name_path(dev, name, 9 + len, ".part", path);
    status = status == 0 ? port->make_dir(port->ctx, "/tllm") : status;
    status = status == 0 ? port->make_dir(port->ctx, dir) : status;
    if (status < 0) {
        return status;
    }
    uint32_t held = 0;
    uint64_t free_bytes = 0, total = 0;
    const uint32_t size = dev_get_u32(payload + 4), keep = dev_get_u32(payload + 12);
    status = port->file_size(port->ctx, path, &held);
    if (status != 0 && status != DEV_E_FS) {
        return status;
    }
    if (keep % TLLM_CHUNK != 0 || keep > size || keep > held) {
        return dev_fail(dev, DEV_E_MISMATCH, "So much of the file is not there to be kept.");
    }
    status = port->space(port->ctx, &free_bytes, &total);
    if (status == 0 && free_bytes + held < size) {
        struct dev_text *text = dev_error(dev);
        dev_text_add(text, "The card has ");
        dev_text_number(text, free_bytes);
        dev_text_add(text, " bytes free and the file needs ");
        dev_text_number(text, size - held);
        dev_text_add(text, " more: remove something, or use a larger card.");
        return DEV_E_FULL;
    }
    return status;
}

int dev_on_open(struct dev *dev, const uint8_t *payload, uint32_t len) {
    const struct dev_port *port = dev->port;
    struct dev_upload *upload = &dev->upload;
    const uint32_t size = dev_get_u32(payload + 4), keep = dev_get_u32(payload + 12);
    char path[DEV_PATH];
    abandon(dev);
    int status = make_room(dev, payload, len - 16, path);
    if (status < 0) {
        return status;
    }
    const int file = port->file_open(port->ctx, path, DEV_WRITE);
    if (file < 0) {
        return file;
    }
    status = port->file_truncate(port->ctx, file, keep);
    if (status < 0) {
        port->file_close(port->ctx, file);
        return status;
    }
    uint8_t *window = upload->window;
    *upload = (struct dev_upload){
        .file = file,
        .seq = dev->seq,
        .size = size,
        .crc = dev_get_u32(payload + 8),
        .written = keep / TLLM_CHUNK,
        .window = window,
    };
    memcpy(upload->path, path, sizeof path);
    return 0;
}

/* The CRC-32 of what lies on the card. */
static int read_back(struct dev *dev, const char *path, uint32_t size, uint32_t *crc) {
    const struct dev_port *port = dev->port;
    const int file = port->file_open(port->ctx, path, DEV_READ);
    int status = file < 0 ? file : 0;
    *crc = 0;
    for (uint32_t at = 0; at < size && status == 0; at += TLLM_CHUNK) {
        const uint32_t bytes = size - at < TLLM_CHUNK ? size - at : TLLM_CHUNK;
        status = dev_file_read(dev, file, at, dev->io, bytes);
        *crc = tllm_crc32(*crc, dev->io, bytes);
        if (status == 0 && dev_busy(dev) != 0) {
            status = TLLM_E_CANCELLED;
        }
    }
    if (file >= 0) {
        port->file_close(port->ctx, file);
    }
    return status;
}

static int rename_part(struct dev *dev, const char *part) {
    const struct dev_port *port = dev->port;
    char path[DEV_PATH];
    struct dev_text text;
    uint32_t size = 0;
    dev_text_start(&text, path, sizeof path);
    dev_text_bytes(&text, part, (uint32_t)(strlen(part) - strlen(".part")));
    dev_close_handles(dev);
    int status = port->file_size(port->ctx, path, &size);
    if (status == 0) {
        status = port->file_remove(port->ctx, path);
    } else if (status == DEV_E_FS) {
        status = 0;
    }
    return status == 0 ? port->file_rename(port->ctx, part, path) : status;
}

int dev_on_close(struct dev *dev, const uint8_t *payload, uint32_t len) {
    struct dev_upload *upload = &dev->upload;
    uint32_t crc = 0;
    (void)payload;
    (void)len;
    if (upload->error < 0) {
        return upload->error;
    }
    if (upload->file < 0) {
        return none_open(dev);
    }
    if (upload->written < chunk_count(upload->size)) {
        return dev_fail(dev, DEV_E_STATE, "Chunks of the file are missing.");
    }
    int status = dev->port->file_sync(dev->port->ctx, upload->file);
    const int closed = dev->port->file_close(dev->port->ctx, upload->file);
    upload->file = -1;
    status = status == 0 ? closed : status;
    status = status == 0 ? read_back(dev, upload->path, upload->size, &crc) : status;
    if (status == 0 && crc != upload->crc) {
        return dev_fail(dev, DEV_E_MISMATCH,
                        "The file on the card has not the stated checksum: send it again.");
    }
    return status == 0 ? rename_part(dev, upload->path) : status;
}

/* ---- the switch ---- */

int dev_on_commit(struct dev *dev, const uint8_t *payload, uint32_t len) {
    char dir[DEV_PATH], sentence[DEV_SENTENCE];
    (void)len;
    abandon(dev);
    dev_package_dir(dir, payload);
    int status = dev_load_from(dev, dir, payload);
    if (status == 0) {
        status = dev_slots_switch(dev, payload);
        dev_explain(dev, status);
    }
    if (status == 0) {
        dev->state = DEV_READY;
        dev->load_status = 0;
        dev->load_error[0] = '\0';
        return 0;
    }
    if (status == DEV_E_NO_CARD) {
        return status;
    }
    if (status == TLLM_E_CANCELLED) {
        dev->reload = true;
        return status;
    }
    memcpy(sentence, dev->sentence, sizeof sentence);
    dev_load(dev); /* the old one goes on */
    return dev_fail(dev, status, sentence);
}

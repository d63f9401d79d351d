/*
 * Finds the current model, plans the memory and loads what is to stay in it.
 *
 * The plan, in this order: the engine's regions, the tokenizer, then the tensors of the layers and
 * norms, then the head's first rows, then the embedding's, as whole files or whole chunks from a
 * file's start. What is left out is streamed.
 */
#include "internal.h"

#define HEADER      160u
#define FINGERPRINT 96u
#define NAME        128u
#define LOAD_BYTES  32768u /* of one read */
#define DOT_BYTES   131072u
#define TRIES       3u

/* ---- sentences ---- */

static int copy_again(struct dev *dev, int status, const char *file, const char *what) {
    struct dev_text *text = dev_error(dev);
    dev_text_add(text, file);
    dev_text_add(text, what);
    dev_text_add(text, ": copy the package again.");
    return status;
}

/* Words for what tllm found in a file. */
static int refused(struct dev *dev, int status, const char *file) {
    if (status != TLLM_E_VERSION) {
        return copy_again(dev, status, file, " is damaged");
    }
    struct dev_text *text = dev_error(dev);
    dev_text_add(text, file);
    dev_text_add(text, " is of a version that this firmware does not read (use the host tool and "
                       "the firmware of one release), or damaged (copy the package again).");
    return status;
}

static int check_memory(struct dev *dev, const char *region, const struct dev_arena *arena) {
    if (arena->used <= arena->size) {
        return 0;
    }
    struct dev_text *text = dev_error(dev);
    dev_text_add(text, "The model needs ");
    dev_text_number(text, arena->used);
    dev_text_add(text, " bytes of ");
    dev_text_add(text, region);
    dev_text_add(text, " memory and this board has ");
    dev_text_number(text, arena->size);
    dev_text_add(text, ": use a smaller context or a smaller model.");
    return DEV_E_NO_MEMORY;
}

static int read_failed(struct dev *dev, int status, const char *file, uint32_t offset) {
    if (status == DEV_E_NO_CARD || status == TLLM_E_CANCELLED) {
        return status;
    }
    struct dev_text *text = dev_error(dev);
    dev_text_add(text, "The card failed while reading ");
    dev_text_add(text, file);
    dev_text_add(text, " at byte ");
    dev_text_number(text, offset);
    dev_text_add(text, ": check how it sits, or try another card.");
    return DEV_E_CARD_READ;
}

/* ---- the descriptor ---- */

static int check_fingerprint(struct dev *dev, const uint8_t *header, const uint8_t *expected) {
    if (expected != NULL && memcmp(header + FINGERPRINT, expected, 32) != 0) {
        return copy_again(dev, DEV_E_MISMATCH, "descriptor.bin",
                          " is of another package than the folder it lies in");
    }
    const struct tllm_model *compiled = dev->config.compiled;
    if (compiled != NULL && memcmp(header + FINGERPRINT, compiled->fingerprint, 32) != 0) {
        struct dev_text *text = dev_error(dev);
        dev_text_add(text, "The card's model is ");
        dev_text_hex(text, header + FINGERPRINT, 4);
        dev_text_add(text, " and this firmware was built for ");
        dev_text_add(text, compiled->name);
        dev_text_add(text, " (");
        dev_text_hex(text, compiled->fingerprint, 4);
        dev_text_add(text, "): upload that one, or flash the firmware for this one.");
        return DEV_E_OTHER_MODEL;
    }
    return 0;
}

/* The whole descriptor lies behind its arrays for as long as it takes to parse it. */
static int parse_descriptor(struct dev *dev, int file, uint32_t size, const uint8_t *expected) {
    int status = dev_file_read(dev, file, 0, dev->io, HEADER);
    if (status != 0) {
        return read_failed(dev, status, "descriptor.bin", 0);
    }
    const int32_t storage_bytes = tllm_descriptor_storage(dev->io, HEADER);
    if (storage_bytes < 0) {
        return refused(dev, storage_bytes, "descriptor.bin");
    }
    if (dev_get_u32(dev->io + 8) != size) {
        return copy_again(dev, TLLM_E_FORMAT, "descriptor.bin", " is not as long as it says");
    }
    status = check_fingerprint(dev, dev->io, expected);
    if (status != 0) {
        return status;
    }
    if (dev->config.compiled != NULL) {
        dev->model = dev->config.compiled;
        return 0;
    }
    void *storage = dev_take(&dev->bulk, (size_t)storage_bytes);
    const size_t used = dev->bulk.used;
    uint8_t *whole = dev_take(&dev->bulk, size);
    status = check_memory(dev, "bulk", &dev->bulk);
    if (status != 0) {
        return status;
    }
    dev->bulk.used = used;
    for (uint32_t at = 0; at < size; at += TLLM_CHUNK) {
        const uint32_t len = size - at < TLLM_CHUNK ? size - at : TLLM_CHUNK;
        status = dev_file_read(dev, file, at, dev->io, len);
        if (status != 0) {
            return read_failed(dev, status, "descriptor.bin", at);
        }
        memcpy(whole + at, dev->io, len);
    }
    status = tllm_descriptor_parse(whole, size, &dev->parsed, storage, (size_t)storage_bytes);
    if (status != 0) {
        return refused(dev, status, "descriptor.bin");
    }
    dev->model = &dev->parsed;
    return 0;
}

static int open_descriptor(struct dev *dev, const char *dir, const uint8_t *expected) {
    const struct dev_port *port = dev->port;
    char path[DEV_PATH];
    uint32_t size = 0;
    dev_package_path(path, dir, "descriptor.bin");
    const int there = port->file_size(port->ctx, path, &size);
    const int file = there < 0 ? there : port->file_open(port->ctx, path, DEV_READ);
    if (file == DEV_E_FS) {
        return dev_fail(
            dev, DEV_E_NO_MODEL,
            "There is no model on the card: `host upload` or `host card` puts one there.");
    }
    if (file < 0) {
        return read_failed(dev, file, "descriptor.bin", 0);
    }
    if (size < HEADER) {
        port->file_close(port->ctx, file);
        return copy_again(dev, TLLM_E_FORMAT, "descriptor.bin", " is cut short");
    }
    const size_t used = dev->bulk.used;
    int status = TLLM_E_CRC;
    for (uint32_t i = 0; i < TRIES && status != 0 && status != DEV_E_NO_CARD; ++i) {
        if (dev_busy(dev) != 0 || status == TLLM_E_CANCELLED) {
            status = TLLM_E_CANCELLED;
            break;
        }
        dev->bulk.used = used;
        status = parse_descriptor(dev, file, size, expected);
    }
    port->file_close(port->ctx, file);
    return status;
}

static int check_sizes(struct dev *dev) {
    for (uint32_t i = 0; i < dev->model->n_files; ++i) {
        const struct tllm_file *file = &dev->model->files[i];
        char path[DEV_PATH];
        uint32_t size = 0;
        if (dev_busy(dev) != 0) {
            return TLLM_E_CANCELLED;
        }
        dev_package_path(path, dev->dir, file->name);
        const int status = dev->port->file_size(dev->port->ctx, path, &size);
        if (status == DEV_E_FS) {
            return copy_again(dev, DEV_E_NO_MODEL, file->name, " is not on the card");
        }
        if (status < 0) {
            return read_failed(dev, status, file->name, 0);
        }
        if (size != file->size) {
            return copy_again(dev, DEV_E_MISMATCH, file->name,
                              " has not the size that its descriptor states");
        }
    }
    return 0;
}

/* ---- loading into memory ---- */

/* Bytes [offset, offset + len) of a file into the start of the engine's fast region, CRC-checked.
 */
static int read_chunks(struct dev *dev, uint32_t index, uint32_t offset, uint32_t len) {
    const struct tllm_file *file = &dev->model->files[index];
    uint8_t *to = dev->engine_fast;
    for (uint32_t tries = 0;; ++tries) {
        int status = dev_model_read(dev, index, offset, to, len);
        if (status != 0) {
            return read_failed(dev, status, file->name, offset);
        }
        uint32_t at = 0;
        for (; at < len; at += TLLM_CHUNK) {
            const uint32_t bytes = len - at < TLLM_CHUNK ? len - at : TLLM_CHUNK;
            const uint32_t crc = dev->model->crcs[file->first_crc + (offset + at) / TLLM_CHUNK];
            if (tllm_crc32(0, to + at, bytes) != crc) {
                break;
            }
        }
        if (at >= len) {
            return 0;
        }
        dev->counts.read_errors++;
        if (tries + 1 >= TRIES) {
            struct dev_text *text = dev_error(dev);
            dev_text_add(text, "Chunk ");
            dev_text_number(text, (offset + at) / TLLM_CHUNK);
            dev_text_add(text, " of ");
            dev_text_add(text, file->name);
            dev_text_add(text, " has not its checksum: copy the package again.");
            return TLLM_E_CRC;
        }
        status = tries + 2 == TRIES ? dev_card_mount(dev, true) : 0;
        if (status != 0) {
            return status;
        }
    }
}

/* A file's first `bytes` to where they stay. */
static int load(struct dev *dev, uint32_t index, uint8_t *to, uint32_t bytes) {
    const size_t fast = dev->memory.fast_engine / TLLM_CHUNK * TLLM_CHUNK;
    const uint32_t step = fast < LOAD_BYTES ? (uint32_t)fast : LOAD_BYTES;
    for (uint32_t at = 0; at < bytes; at += step) {
        const uint32_t len = bytes - at < step ? bytes - at : step;
        const int status = read_chunks(dev, index, at, len);
        if (status != 0) {
            return status;
        }
        memcpy(to + at, dev->engine_fast, len);
        if (dev->loaded / DOT_BYTES != (dev->loaded + len) / DOT_BYTES) {
            dev_report(dev, ".");
        }
        dev->loaded += len;
        if (dev_busy(dev) != 0) {
            return TLLM_E_CANCELLED;
        }
    }
    dev->resident[index] = (struct dev_resident){.data = to, .bytes = bytes};
    return 0;
}

static int load_tokenizer(struct dev *dev) {
    const uint32_t index = dev->model->tokenizer_file;
    const uint32_t size = dev->model->files[index].size;
    int status = load(dev, index, dev->vocabulary, size);
    if (status != 0) {
        return status;
    }
    status = tllm_tokenizer_init(&dev->tokenizer, dev->vocabulary, size);
    if (status != 0) {
        return refused(dev, status, "tokenizer.bin");
    }
    if (dev->tokenizer.vocab > dev->model->vocab ||
        dev_get_u32(dev->vocabulary + 40) > DEV_PIECE - 16) {
        return copy_again(dev, TLLM_E_FORMAT, "tokenizer.bin", " does not fit the model");
    }
    return 0;
}

/* What of a tensor's file is to stay in memory: as much as there is room for. */
static int keep(struct dev *dev, uint32_t tensor) {
    const uint32_t index = dev->model->tensors[tensor].file;
    const size_t room = dev_room(&dev->bulk);
    uint32_t bytes = dev->model->files[index].size;
    if (dev->resident[index].bytes > 0) {
        return 0;
    }
    if (bytes > room) {
        bytes = (uint32_t)(room / TLLM_CHUNK * TLLM_CHUNK);
    }
    if (bytes == 0) {
        return 0;
    }
    const int status = load(dev, index, dev_take(&dev->bulk, bytes), bytes);
    if (status == 0) {
        dev->memory.resident += bytes;
    }
    return status;
}

static int keep_weights(struct dev *dev) {
    const uint32_t norm = TLLM_FINAL_NORM(dev->model);
    int status = keep(dev, norm);
    for (uint32_t tensor = 1; tensor < norm && status == 0; ++tensor) {
        status = keep(dev, tensor);
    }
    status = status == 0 ? keep(dev, TLLM_HEAD(dev->model)) : status;
    return status == 0 ? keep(dev, TLLM_EMBED) : status;
}

/* ---- the plan ---- */

/* The engine with the largest streaming buffers, and with these the largest batch, that the fast
 * region holds: a card is slow in small reads, and few tokens already share a pass's cost. */
static int plan_engine(struct dev *dev) {
    static const struct {
        uint32_t chunk, batch;
    } choices[] = {{32768, 8}, {32768, 4}, {32768, 2},     {16384, 4},
                   {16384, 2}, {8192, 2},  {TLLM_CHUNK, 1}};
    struct tllm_size size = {0};
    struct tllm_config *config = &dev->engine_config;
    const uint32_t context = dev->config.context;
    *config = (struct tllm_config){
        .model = dev->model,
        .port = &dev->engine_port,
        .context = context != 0 && context < dev->model->context ? context : dev->model->context,
        .parts = dev->config.parts,
        .check_streamed = true,
    };
    const size_t room = dev_room(&dev->fast);
    for (uint32_t i = 0; i < sizeof choices / sizeof choices[0]; ++i) {
        config->chunk = choices[i].chunk;
        config->batch = choices[i].batch;
        const int status = tllm_size(config, &size);
        if (status != 0) {
            return status;
        }
        if (size.fast <= room) {
            break;
        }
    }
    dev->memory.fast_engine = size.fast;
    dev->memory.bulk_engine = size.bulk;
    dev->engine_fast = dev_take(&dev->fast, size.fast);
    dev->engine_bulk = dev_take(&dev->bulk, size.bulk);
    return check_memory(dev, "fast", &dev->fast);
}

static int plan_program(struct dev *dev) {
    const uint32_t context = dev->engine_config.context;
    const size_t resident_bytes = dev->model->n_files * sizeof(struct dev_resident);
    dev->prompt_room = context > DEV_PAYLOAD / 4 ? context : DEV_PAYLOAD / 4;
    dev->scratch_bytes = tllm_encode_scratch(DEV_PAYLOAD);
    dev->memory.tokenizer = dev->model->files[dev->model->tokenizer_file].size;
    dev->resident = dev_take(&dev->bulk, resident_bytes);
    dev->tokens = dev_take(&dev->bulk, context * sizeof(uint32_t));
    dev->turns = dev_take(&dev->bulk, context);
    dev->prompt = dev_take(&dev->bulk, dev->prompt_room * sizeof(uint32_t));
    dev->scratch = dev_take(&dev->bulk, dev->scratch_bytes);
    dev->piece = dev_take(&dev->bulk, DEV_PIECE);
    dev->vocabulary = dev_take(&dev->bulk, dev->memory.tokenizer);
    const int status = check_memory(dev, "bulk", &dev->bulk);
    if (status == 0) {
        memset(dev->resident, 0, resident_bytes);
    }
    return status;
}

int dev_engine_start(struct dev *dev) {
    dev->logits = false;
    dev->engine_stale = false;
    return tllm_init(&dev->engine, &dev->engine_config, dev->engine_fast, dev->memory.fast_engine,
                     dev->engine_bulk, dev->memory.bulk_engine);
}

static int load_package(struct dev *dev, const char *dir, const uint8_t *expected) {
    strcpy(dev->dir, dir);
    int status = open_descriptor(dev, dir, expected);
    status = status == 0 ? check_sizes(dev) : status;
    status = status == 0 ? plan_engine(dev) : status;
    status = status == 0 ? plan_program(dev) : status;
    if (status != 0) {
        return status;
    }
    dev_report(dev, "Loading");
    dev->loaded = 0;
    status = load_tokenizer(dev);
    status = status == 0 ? keep_weights(dev) : status;
    dev_report(dev, "\n");
    status = status == 0 ? dev_engine_start(dev) : status;
    if (status != 0) {
        return status;
    }
    tllm_session_init(&dev->session, &dev->engine, dev->tokens, dev->turns);
    dev->session_number = 0;
    dev->session.rng.state = dev->rng_state;
    dev->memory.fast_free = dev->fast.size - dev->fast.used;
    dev->memory.bulk_free = dev->bulk.size - dev->bulk.used;
    return 0;
}

int dev_load_from(struct dev *dev, const char *dir, const uint8_t *fingerprint) {
    dev_unload(dev);
    dev->stopped = false;
    const int status = load_package(dev, dir, fingerprint);
    if (status != 0) {
        dev_explain(dev, status);
        dev_unload(dev);
    }
    return status;
}

void dev_unload(struct dev *dev) {
    dev_close_handles(dev);
    dev->model = NULL;
    dev->logits = false;
    dev->fast.used = dev->fast_kept;
    dev->bulk.used = dev->bulk_kept;
    dev->memory = (struct dev_memory){.fast_own = dev->fast_kept, .bulk_own = dev->bulk_kept};
}

int dev_still_there(struct dev *dev) {
    const struct dev_port *port = dev->port;
    char path[DEV_PATH];
    uint32_t size = 0;
    dev_package_path(path, dev->dir, "descriptor.bin");
    int status = port->file_size(port->ctx, path, &size);
    if (status < 0 || size < HEADER || dev->model == NULL) {
        return status == DEV_E_FS ? 0 : status;
    }
    const int file = port->file_open(port->ctx, path, DEV_READ);
    if (file < 0) {
        return file;
    }
    status = dev_file_read(dev, file, 0, dev->io, HEADER);
    port->file_close(port->ctx, file);
    if (status < 0) {
        return status;
    }
    return memcmp(dev->io + FINGERPRINT, dev->model->fingerprint, 32) == 0;
}

/* ---- the current model ---- */

static int load_current(struct dev *dev) {
    struct dev_slots slots;
    int status = dev->card_mounted ? 0 : dev_card_mount(dev, false);
    status = status == 0 ? dev_slots_read(dev, &slots) : status;
    if (status != 0) {
        return status;
    }
    if (!slots.valid[slots.newest]) {
        return dev_load_from(dev, "", NULL);
    }
    char dir[DEV_PATH];
    dev_package_dir(dir, slots.fingerprint[slots.newest]);
    return dev_load_from(dev, dir, slots.fingerprint[slots.newest]);
}

void dev_load(struct dev *dev) {
    dev_unload(dev);
    dev->sentence[0] = '\0';
    int status = load_current(dev);
    if (status == TLLM_E_CANCELLED) {
        status = dev_fail(dev, DEV_E_NO_MODEL,
                          "Loading was stopped, so there is no model: /reboot loads it.");
        dev->stopped = true;
    }
    dev->load_status = status;
    if (status == DEV_E_NO_CARD) {
        dev_card_gone(dev);
        return;
    }
    dev->state = status == 0 ? DEV_READY : status == DEV_E_NO_MODEL ? DEV_NO_MODEL : DEV_ERROR;
    dev_explain(dev, status);
    strcpy(dev->load_error, status == 0 ? "" : dev->sentence);
}

#define _XOPEN_SOURCE 700
#include "ram_board.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICK_US 700

const char *ram_package(void) {
    const char *package = getenv("TLLM_FUZZ_PACKAGE");
    if (package == NULL) {
        fprintf(stderr, "TLLM_FUZZ_PACKAGE must name a package's folder.\n");
        exit(2);
    }
    return package;
}

static struct ram_file *find(struct ram_board *board, const char *path) {
    for (int i = 0; i < RAM_FILES; ++i) {
        if (path[0] != '\0' && strcmp(board->files[i].path, path) == 0) {
            return &board->files[i];
        }
    }
    return NULL;
}

static struct ram_file *make(struct ram_board *board, const char *path) {
    for (int i = 0; i < RAM_FILES; ++i) {
        if (board->files[i].path[0] == '\0') {
            board->files[i] = (struct ram_file){0};
            strncpy(board->files[i].path, path, DEV_PATH - 1);
            return &board->files[i];
        }
    }
    return NULL;
}

static int resize(struct ram_file *file, uint32_t size) {
    if (size > RAM_CARD_MAX) {
        return DEV_E_FULL;
    }
    uint8_t *data = realloc(file->data, size > 0 ? size : 1);
    if (data == NULL) {
        abort();
    }
    if (size > file->size) {
        memset(data + file->size, 0, size - file->size);
    }
    file->data = data;
    file->size = size;
    return 0;
}

void ram_board_store(struct ram_board *board, const char *path, const void *data, uint32_t size) {
    struct ram_file *file = find(board, path);
    file = file == NULL ? make(board, path) : file;
    if (file == NULL || resize(file, size) != 0) {
        abort();
    }
    memcpy(file->data, data, size);
}

void ram_board_load(struct ram_board *board, const char *directory, const char *folder) {
    static uint8_t buffer[RAM_CARD_MAX];
    DIR *listed = opendir(directory);
    if (listed == NULL) {
        fprintf(stderr, "There is no folder %s.\n", directory);
        exit(2);
    }
    for (struct dirent *entry = readdir(listed); entry != NULL; entry = readdir(listed)) {
        char from[1024], path[DEV_PATH + 300];
        if (strstr(entry->d_name, ".bin") == NULL) {
            continue;
        }
        snprintf(from, sizeof from, "%s/%s", directory, entry->d_name);
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = fopen(from, "rb");
        const size_t n = file == NULL ? 0 : fread(buffer, 1, sizeof buffer, file);
        if (file != NULL) {
            fclose(file);
        }
        ram_board_store(board, path, buffer, (uint32_t)n);
    }
    closedir(listed);
}

void ram_board_copy(struct ram_board *to, const struct ram_board *from) {
    *to = *from;
    for (int i = 0; i < RAM_FILES; ++i) {
        to->files[i].data = NULL;
        to->files[i].size = 0;
        if (from->files[i].path[0] != '\0' && resize(&to->files[i], from->files[i].size) == 0) {
            memcpy(to->files[i].data, from->files[i].data, from->files[i].size);
        }
    }
    memset(to->handles, 0xff, sizeof to->handles);
}

void ram_board_free(struct ram_board *board) {
    for (int i = 0; i < RAM_FILES; ++i) {
        free(board->files[i].data);
    }
}

/* ---- the seam ---- */

static int line_read(void *ctx, void *dst, uint32_t len, uint32_t wait_ms) {
    struct ram_board *board = ctx;
    const size_t left = board->line_len - board->line_at;
    board->now_us += wait_ms * 1000u;
    if (left == 0) {
        return -1;
    }
    /* The sizes in which bytes come vary, and sometimes there are none. */
    uint32_t n = (uint32_t)(board->now_us / TICK_US % 97);
    n = n < len ? n : len;
    n = n < left ? n : (uint32_t)left;
    memcpy(dst, board->line + board->line_at, n);
    board->line_at += n;
    board->now_us += TICK_US;
    return (int)n;
}

static int line_write(void *ctx, const void *src, uint32_t len) {
    struct ram_board *board = ctx;
    const volatile uint8_t *bytes = src;
    for (uint32_t i = 0; i < len; ++i) {
        (void)bytes[i]; /* so that the sanitizer sees what is read */
    }
    board->written += len;
    return 0;
}

static int set_baud(void *ctx, uint32_t baud) {
    (void)ctx;
    (void)baud;
    return 0;
}

static uint64_t now_us(void *ctx) {
    return ((struct ram_board *)ctx)->now_us += TICK_US;
}

static int card_mount(void *ctx, bool slower) {
    const struct ram_board *board = ctx;
    (void)slower;
    return board->gone ? DEV_E_NO_CARD : 0;
}

static int file_open(void *ctx, const char *path, enum dev_open how) {
    struct ram_board *board = ctx;
    struct ram_file *file = find(board, path);
    if (board->gone) {
        return DEV_E_NO_CARD;
    }
    if (file == NULL && how == DEV_WRITE) {
        file = make(board, path);
    }
    if (file == NULL || file->directory) {
        return DEV_E_FS;
    }
    for (int i = 0; i < 16; ++i) {
        if (board->handles[i] < 0) {
            board->handles[i] = (int)(file - board->files);
            return i;
        }
    }
    abort(); /* more files open than the seam allows */
}

static struct ram_file *opened(struct ram_board *board, int handle) {
    if (handle < 0 || handle >= 16 || board->handles[handle] < 0) {
        abort();
    }
    return &board->files[board->handles[handle]];
}

static int file_close(void *ctx, int handle) {
    struct ram_board *board = ctx;
    (void)opened(board, handle);
    board->handles[handle] = -1;
    return 0;
}

static int file_read(void *ctx, int handle, uint32_t offset, void *dst, uint32_t len) {
    struct ram_board *board = ctx;
    const struct ram_file *file = opened(board, handle);
    board->gone = board->gone || ++board->reads == board->gone_after;
    if (board->gone) {
        return DEV_E_NO_CARD;
    }
    const uint32_t left = offset < file->size ? file->size - offset : 0;
    const uint32_t n = len < left ? len : left;
    if (n > 0) {
        memcpy(dst, file->data + offset, n);
    }
    return (int)n;
}

static int file_write(void *ctx, int handle, uint32_t offset, const void *src, uint32_t len) {
    struct ram_board *board = ctx;
    struct ram_file *file = opened(board, handle);
    if (board->gone) {
        return DEV_E_NO_CARD;
    }
    if (offset > RAM_CARD_MAX || len > RAM_CARD_MAX - offset) {
        return DEV_E_FULL;
    }
    if (offset + len > file->size && resize(file, offset + len) != 0) {
        return DEV_E_FULL;
    }
    memcpy(file->data + offset, src, len);
    return 0;
}

static int file_truncate(void *ctx, int handle, uint32_t size) {
    return resize(opened(ctx, handle), size);
}

static int file_sync(void *ctx, int handle) {
    (void)opened(ctx, handle);
    return 0;
}

static int file_rename(void *ctx, const char *from, const char *to) {
    struct ram_board *board = ctx;
    struct ram_file *file = find(board, from);
    if (file == NULL || find(board, to) != NULL) {
        return DEV_E_FS;
    }
    strncpy(file->path, to, DEV_PATH - 1);
    return 0;
}

static int file_remove(void *ctx, const char *path) {
    struct ram_board *board = ctx;
    struct ram_file *file = find(board, path);
    if (file == NULL) {
        return DEV_E_FS;
    }
    for (int i = 0; i < RAM_FILES && file->directory; ++i) {
        if (strncmp(board->files[i].path, path, strlen(path)) == 0 &&
            board->files[i].path[strlen(path)] == '/') {
            return DEV_E_FS;
        }
    }
    for (int i = 0; i < 16; ++i) {
        if (board->handles[i] == (int)(file - board->files)) {
            abort(); /* an open file is removed */
        }
    }
    free(file->data);
    *file = (struct ram_file){0};
    return 0;
}

static int file_size(void *ctx, const char *path, uint32_t *size) {
    struct ram_board *board = ctx;
    const struct ram_file *file = find(board, path);
    if (board->gone) {
        return DEV_E_NO_CARD;
    }
    if (file == NULL || file->directory) {
        return DEV_E_FS;
    }
    *size = file->size;
    return 0;
}

static int make_dir(void *ctx, const char *path) {
    struct ram_board *board = ctx;
    struct ram_file *file = find(board, path);
    if (file != NULL) {
        return file->directory ? 0 : DEV_E_FS;
    }
    file = make(board, path);
    if (file == NULL) {
        return DEV_E_FULL;
    }
    file->directory = true;
    return 0;
}

static int list(void *ctx, const char *path, uint32_t index, char *name, uint32_t name_len,
                uint32_t *size) {
    const struct ram_board *board = ctx;
    const size_t n = strlen(path);
    for (int i = 0; i < RAM_FILES; ++i) {
        const char *at = board->files[i].path;
        if (strncmp(at, path, n) == 0 && at[n] == '/' && strchr(at + n + 1, '/') == NULL &&
            index-- == 0) {
            snprintf(name, name_len, "%s", at + n + 1);
            *size = board->files[i].directory ? DEV_DIRECTORY : board->files[i].size;
            return 1;
        }
    }
    return 0;
}

static int space(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes) {
    (void)ctx;
    *free_bytes = *total_bytes = RAM_CARD_MAX;
    return 0;
}

static void restart(void *ctx) {
    (void)ctx;
}

static void describe(void *ctx, struct dev_board *board) {
    (void)ctx;
    *board = (struct dev_board){.board = "a \"fuzzed\" board\n", .card = "in memory"};
}

struct dev_port ram_board_port(struct ram_board *board) {
    return (struct dev_port){
        .ctx = board,
        .line_read = line_read,
        .line_write = line_write,
        .line_set_baud = set_baud,
        .card_mount = card_mount,
        .file_open = file_open,
        .file_close = file_close,
        .file_read = file_read,
        .file_write = file_write,
        .file_truncate = file_truncate,
        .file_sync = file_sync,
        .file_rename = file_rename,
        .file_remove = file_remove,
        .file_size = file_size,
        .make_dir = make_dir,
        .list = list,
        .space = space,
        .now_us = now_us,
        .restart = restart,
        .describe = describe,
    };
}

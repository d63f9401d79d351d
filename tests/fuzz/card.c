#include "card.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONGEST 65536

static void load_file(struct ram_board *board, const char *folder, const char *name) {
    static uint8_t bytes[LONGEST];
    char from[1024], to[DEV_PATH];
    const int n = snprintf(from, sizeof from, "%s/%s", folder, name);
    const int m = snprintf(to, sizeof to, "/%s", name);
    FILE *file = n < (int)sizeof from && m < (int)sizeof to ? fopen(from, "rb") : NULL;
    const size_t size = file == NULL ? 0 : fread(bytes, 1, sizeof bytes, file);
    if (size == 0 || size == sizeof bytes || ram_board_put(board, to, bytes, (uint32_t)size) != 0) {
        fprintf(stderr, "%s is no file of a tiny package.\n", from);
        exit(2);
    }
    fclose(file);
}

void card_load(struct ram_board *board) {
    const char *folder = getenv("TLLM_FUZZ_PACKAGE");
    DIR *listed = folder == NULL ? NULL : opendir(folder);
    if (listed == NULL) {
        fprintf(stderr, "TLLM_FUZZ_PACKAGE must name a package's folder.\n");
        exit(2);
    }
    for (struct dirent *entry = readdir(listed); entry != NULL; entry = readdir(listed)) {
        const char *end = strrchr(entry->d_name, '.');
        if (end != NULL && strcmp(end, ".bin") == 0) {
            load_file(board, folder, entry->d_name);
        }
    }
    closedir(listed);
}

void card_copy(struct ram_board *to, const struct ram_board *from) {
    const char *path;
    for (uint32_t n = 0; (path = ram_board_name(from, n)) != NULL; ++n) {
        uint32_t size = 0;
        const uint8_t *bytes = ram_board_get(from, path, &size);
        if (ram_board_put(to, path, bytes, size) != 0) {
            abort();
        }
    }
}

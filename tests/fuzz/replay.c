/* Runs a fuzz target once on each file that is named: any compiler, no fuzzer. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    LONGEST = 1 << 16
};

static void run(const char *path) {
    static uint8_t read[LONGEST];
    FILE *file = fopen(path, "rb");
    const size_t size = file == NULL ? LONGEST : fread(read, 1, sizeof read, file);
    uint8_t *data = malloc(size > 0 ? size : 1); /* exactly: so that a sanitizer sees its end */
    if (size == LONGEST || data == NULL) {
        fprintf(stderr, "%s cannot be read, or is longer than an input may be.\n", path);
        exit(2);
    }
    for (size_t i = 0; i < size; ++i) {
        data[i] = read[i];
    }
    fclose(file);
    (void)LLVMFuzzerTestOneInput(data, size);
    free(data);
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; ++i) {
        run(argv[i]);
    }
    printf("%d inputs\n", argc - 1);
    return 0;
}

/* The frame receiver: raw bytes in, and what it takes for a frame must be one. */
#include "device.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *buffer = malloc(DEV_FRAME); /* exactly: so that the sanitizer sees its ends */
    struct dev_frame frame = {.data = buffer};
    for (size_t i = 0; buffer != NULL && i < size; ++i) {
        const bool open = frame.open;
        const enum dev_received got = dev_frame_take(&frame, data[i]);
        if (got == DEV_WHOLE && (frame.len < 2 || frame.len > DEV_PAYLOAD + 2 || data[i] != 0)) {
            abort();
        }
        if (got == DEV_TEXT && (open || data[i] == 0)) {
            abort();
        }
    }
    free(buffer);
    return 0;
}

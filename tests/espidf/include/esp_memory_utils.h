#ifndef STUB_ESP_MEMORY_UTILS_H
#define STUB_ESP_MEMORY_UTILS_H

#include <stdbool.h>

/* An inline range check in the real header. */
bool esp_ptr_dma_capable(const void *p);

#endif

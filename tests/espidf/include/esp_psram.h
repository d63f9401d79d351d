#ifndef STUB_ESP_PSRAM_H
#define STUB_ESP_PSRAM_H

#include <stdbool.h>
#include <stddef.h>

bool esp_psram_is_initialized(void);
size_t esp_psram_get_size(void); /* of the chip, mapped or not */

#endif

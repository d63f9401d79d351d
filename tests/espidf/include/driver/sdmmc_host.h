#ifndef STUB_DRIVER_SDMMC_HOST_H
#define STUB_DRIVER_SDMMC_HOST_H

#include "driver/gpio.h"
#include "sd_protocol_types.h"

#define SDMMC_HOST_SLOT_1               1
#define SDMMC_SLOT_FLAG_INTERNAL_PULLUP (1u << 0)

typedef struct {
    gpio_num_t clk, cmd, d0, d1, d2, d3, d4, d5, d6,
        d7; /* an ESP32 ignores them: slot 1's are fixed */
    union {
        gpio_num_t gpio_cd, cd;
    };
    union {
        gpio_num_t gpio_wp, wp;
    };
    uint8_t width; /* lines at most; 0: the slot's */
    uint32_t flags;
} sdmmc_slot_config_t;

#define SDMMC_HOST_DEFAULT()                                                                       \
    {.flags = 0x37,                                                                                \
     .slot = SDMMC_HOST_SLOT_1,                                                                    \
     .max_freq_khz = SDMMC_FREQ_DEFAULT,                                                           \
     .io_voltage = 3.3f}

#if CONFIG_IDF_TARGET_ESP32
#define SDMMC_SLOT_CONFIG_DEFAULT()                                                                \
    {.clk = 6, .cmd = 11, .d0 = 7, .d1 = 8, .d2 = 9, .d3 = 10, .cd = GPIO_NUM_NC, .wp = GPIO_NUM_NC}
#else
#define SDMMC_SLOT_CONFIG_DEFAULT()                                                                \
    {.clk = 14,                                                                                    \
     .cmd = 15,                                                                                    \
     .d0 = 2,                                                                                      \
     .d1 = 4,                                                                                      \
     .d2 = 12,                                                                                     \
     .d3 = 13,                                                                                     \
     .cd = GPIO_NUM_NC,                                                                            \
     .wp = GPIO_NUM_NC}
#endif

#endif

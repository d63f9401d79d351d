#ifndef STUB_SD_PROTOCOL_TYPES_H
#define STUB_SD_PROTOCOL_TYPES_H

#include "esp_err.h"
#include "freertos/FreeRTOS.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SDMMC_FREQ_DEFAULT   20000
#define SDMMC_FREQ_HIGHSPEED 40000

typedef struct {
    int csd_ver, mmc_ver;
    int capacity; /* sectors */
    int sector_size;
    int read_block_len, card_command_class, tr_speed;
} sdmmc_csd_t;

typedef struct {
    int mfg_id, oem_id;
    char name[8];
    int revision, serial, date;
} sdmmc_cid_t;

/* The driver's functions are left out. */
typedef struct {
    uint32_t flags;
    int slot;
    int max_freq_khz;
    float io_voltage;
    int command_timeout_ms; /* 0: the driver's */
} sdmmc_host_t;

typedef struct {
    sdmmc_host_t host;
    uint32_t ocr;
    union {
        sdmmc_cid_t cid;
        uint32_t raw_cid[4];
    };
    sdmmc_csd_t csd;
    uint16_t rca;
    uint32_t max_freq_khz;
    int real_freq_khz;
    uint32_t is_mem : 1;
    uint32_t is_sdio : 1;
    uint32_t is_mmc : 1;
    uint32_t num_io_functions : 3;
    uint32_t log_bus_width : 2; /* of the bus in use: 1 << it lines */
    uint32_t is_ddr : 1;
    uint32_t is_uhs1 : 1;
    uint32_t reserved : 22;
} sdmmc_card_t;

#endif

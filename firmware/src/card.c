/*
 * SD card: SDMMC, FatFs, and raw multi-block reads of files whose clusters are looked up once.
 * FatFs is used directly, without the POSIX layer between: its link map tells where a file lies.
 */
#include "board.h"
#include "extents.h"

#include "driver/gpio.h"
#include "driver/sdmmc_host.h"
#include "esp_memory_utils.h"
#include "esp_task_wdt.h"
#include "esp_vfs_fat.h"
#include "ff.h"
#include "sdmmc_cmd.h"

#include <stdio.h>
#include <string.h>

#define MOUNT_POINT "/sd"
#define DRIVE       "0:"
#define SECTOR      512u
#define FILES       (DEV_HANDLES + 2u)
#define LINKS       64u /* a file in more than 31 pieces is read through FatFs */

struct open_file {
    FIL file;
    DWORD links[LINKS];
    bool used, mapped; /* mapped: links is its link map */
};

static struct {
    sdmmc_card_t *card; /* NULL: not mounted */
    uint32_t attempt;   /* index in `modes` of what worked, or is tried next */
    bool missing;       /* the last attempts all failed */
    char name[40], mode[24];
    struct open_file files[FILES];
    struct { /* what the reader's task does, or has done */
        int file;
        uint32_t offset, len;
        void *dst;
        bool pending;
    } ahead;
} sd;

/* From the fastest to the one that almost every card and wiring bears. */
static const struct {
    int width, khz;
} modes[] = {
    {4, SDMMC_FREQ_HIGHSPEED},
    {4, SDMMC_FREQ_DEFAULT},
    {1, SDMMC_FREQ_HIGHSPEED},
    {1, SDMMC_FREQ_DEFAULT},
};
#define MODES (sizeof modes / sizeof *modes)

/* ---- reading ahead ---- */

static void finish_ahead(void) {
    if (sd.ahead.pending) {
        (void)cores_read_wait();
        sd.ahead.pending = false;
    }
}

/* ---- mounting ---- */

static void unmount(void) {
    finish_ahead();
    for (uint32_t i = 0; i < FILES; i++)
        sd.files[i].used = false; /* FatFs forgets them with the volume */
    if (sd.card)
        (void)esp_vfs_fat_sdcard_unmount(MOUNT_POINT, sd.card);
    sd.card = NULL;
    sd.name[0] = sd.mode[0] = 0;
}

static void describe_card(void) {
    const uint64_t megabytes =
        (uint64_t)(uint32_t)sd.card->csd.capacity * (uint32_t)sd.card->csd.sector_size / 1000000u;
    (void)snprintf(sd.name, sizeof sd.name, "%s %lu.%lu GB %.7s",
                   sd.card->is_mmc      ? "MMC"
                   : megabytes > 32768u ? "SDXC"
                   : megabytes > 2048u  ? "SDHC"
                                        : "SDSC",
                   (unsigned long)(megabytes / 1000), (unsigned long)(megabytes % 1000 / 100),
                   sd.card->cid.name);
    (void)snprintf(sd.mode, sizeof sd.mode, "%u-bit %d MHz", 1u << sd.card->log_bus_width,
                   sd.card->real_freq_khz / 1000);
}

static esp_err_t mount_as(int width, int khz) {
    sdmmc_host_t host = SDMMC_HOST_DEFAULT();
    sdmmc_slot_config_t slot = SDMMC_SLOT_CONFIG_DEFAULT();
    const esp_vfs_fat_mount_config_t config = {
        .max_files = 1,
        /* Notices a card that was pulled out. */
        .disk_status_check_enable = true,
    };
    host.max_freq_khz = khz;
    slot.width = (uint8_t)width;
    slot.flags |= SDMMC_SLOT_FLAG_INTERNAL_PULLUP;
#if BOARD_SD_PINS
    slot.clk = BOARD_SD_CLK;
    slot.cmd = BOARD_SD_CMD;
    slot.d0 = BOARD_SD_D0;
    slot.d1 = BOARD_SD_D1;
    slot.d2 = BOARD_SD_D2;
    slot.d3 = BOARD_SD_D3;
#endif
    return esp_vfs_fat_sdmmc_mount(MOUNT_POINT, &host, &slot, &config, &sd.card);
}

/* In 1-bit mode nothing else drives the LED's pin; in 4-bit mode it is the card's D1. */
static void led_off(int width) {
#if BOARD_LED >= 0
    if (width == 1) {
        (void)gpio_reset_pin(BOARD_LED);
        (void)gpio_set_direction(BOARD_LED, GPIO_MODE_OUTPUT);
        (void)gpio_set_level(BOARD_LED, 0);
    }
#else
    (void)width;
#endif
}

/* Without a card each attempt waits for answers that do not come; feed the watchdog between them.
 */
static bool mount_from(uint32_t first) {
    for (uint32_t i = first; i < MODES; i++) {
        (void)esp_task_wdt_reset();
        if (mount_as(modes[i].width, modes[i].khz) == ESP_OK) {
            sd.attempt = i;
            led_off(modes[i].width);
            describe_card();
            return true;
        }
        sd.card = NULL;
    }
    led_off(1);
    return false;
}

int card_mount(void *ctx, bool slower) {
    (void)ctx;
    unmount();
    if (slower && sd.attempt + 1 < MODES)
        sd.attempt++;
    if (sd.missing) { /* look with one attempt, so that the console stays quick, then from the
                         fastest */
        if (!mount_from(MODES - 1))
            return DEV_E_NO_CARD;
        unmount();
        sd.attempt = 0;
    }
    sd.missing = !mount_from(sd.attempt);
    if (sd.missing)
        sd.attempt = 0; /* the next card may be better */
    return sd.missing ? DEV_E_NO_CARD : 0;
}

const char *card_name(void) {
    return sd.name;
}

const char *card_mode(void) {
    return sd.mode;
}

/* ---- files ---- */

static int status_of(FRESULT result) {
    switch (result) {
    case FR_OK:
        return 0;
    case FR_DISK_ERR:
        return TLLM_E_IO;
    case FR_NOT_READY:
    case FR_INVALID_OBJECT: /* the volume went away under an open file */
        return DEV_E_NO_CARD;
    case FR_DENIED:
        return DEV_E_FULL; /* no free cluster or directory entry; nothing here is read-only */
    default:
        return DEV_E_FS;
    }
}

static bool full_path(char *full, const char *path) {
    const size_t drive = sizeof DRIVE - 1, len = strlen(path);
    if (len >= DEV_PATH)
        return false;
    memcpy(full, DRIVE, drive);
    memcpy(full + drive, path, len + 1);
    return true;
}

#define FULL_PATH (DEV_PATH + sizeof DRIVE)

static struct open_file *opened(int file) {
    if (!sd.card || file < 0 || file >= (int)FILES || !sd.files[file].used)
        return NULL;
    return &sd.files[file];
}

int card_file_open(void *ctx, const char *path, enum dev_open how) {
    char full[FULL_PATH];
    int file = 0;
    (void)ctx;
    if (!sd.card)
        return DEV_E_NO_CARD;
    finish_ahead();
    while (file < (int)FILES && sd.files[file].used)
        file++;
    if (file == (int)FILES || !full_path(full, path))
        return DEV_E_FS;
    struct open_file *open = &sd.files[file];
    const BYTE mode = how == DEV_READ ? FA_READ : FA_READ | FA_WRITE | FA_OPEN_ALWAYS;
    const FRESULT result = f_open(&open->file, full, mode);
    if (result != FR_OK)
        return status_of(result);
    open->used = true;
    open->mapped = false;
    if (how == DEV_READ) { /* its clusters do not change: look them up once */
        open->links[0] = LINKS;
        open->file.cltbl = open->links;
        const FRESULT mapped = f_lseek(&open->file, CREATE_LINKMAP);
        open->mapped = mapped == FR_OK;
        if (!open->mapped)
            open->file.cltbl = NULL;
        if (!open->mapped && mapped != FR_NOT_ENOUGH_CORE) {
            (void)card_file_close(NULL, file);
            return status_of(mapped);
        }
    }
    return file;
}

int card_file_close(void *ctx, int file) {
    struct open_file *open = opened(file);
    (void)ctx;
    if (!open)
        return DEV_E_NO_CARD;
    finish_ahead();
    open->used = false;
    return status_of(f_close(&open->file));
}

/* Whole sectors straight into dst, which has room for them. */
static int read_sectors(const struct open_file *open, uint32_t offset, uint8_t *dst, uint32_t len) {
    const FATFS *volume = open->file.obj.fs;
    uint32_t sector = offset / SECTOR, left = (len + SECTOR - 1) / SECTOR;
    while (left) {
        struct dev_extent extent;
        if (!dev_extent_find(open->links, LINKS, volume->csize, (uint32_t)volume->database, sector,
                             &extent))
            return TLLM_E_IO;
        const uint32_t n = extent.sectors < left ? extent.sectors : left;
        if (sdmmc_read_sectors(sd.card, dst, extent.first, n) != ESP_OK)
            return sdmmc_get_status(sd.card) == ESP_OK ? TLLM_E_IO : DEV_E_NO_CARD;
        dst += (size_t)n * SECTOR;
        sector += n;
        left -= n;
    }
    return 0;
}

static int read_now(int file, uint32_t offset, void *dst, uint32_t len) {
    struct open_file *open = opened(file);
    UINT got = 0;
    if (!open)
        return DEV_E_NO_CARD;
    const uint32_t size = (uint32_t)f_size(&open->file);
    if (offset >= size)
        return 0;
    if (len > size - offset)
        len = size - offset;
    if (open->mapped && offset % SECTOR == 0 && esp_ptr_dma_capable(dst)) {
        const int status = read_sectors(open, offset, dst, len);
        return status < 0 ? status : (int)len;
    }
    FRESULT result = f_lseek(&open->file, offset);
    if (result == FR_OK)
        result = f_read(&open->file, dst, len, &got);
    return result == FR_OK ? (int)got : status_of(result);
}

static int read_task(void *arg) {
    (void)arg;
    return read_now(sd.ahead.file, sd.ahead.offset, sd.ahead.dst, sd.ahead.len);
}

int card_file_read(void *ctx, int file, uint32_t offset, void *dst, uint32_t len) {
    (void)ctx;
    if (sd.ahead.pending) {
        const int status = cores_read_wait();
        sd.ahead.pending = false;
        if (sd.ahead.file == file && sd.ahead.offset == offset && sd.ahead.dst == dst &&
            sd.ahead.len == len)
            return status;
    }
    return read_now(file, offset, dst, len);
}

void card_file_prefetch(void *ctx, int file, uint32_t offset, void *dst, uint32_t len) {
    (void)ctx;
    finish_ahead();
    sd.ahead.file = file;
    sd.ahead.offset = offset;
    sd.ahead.dst = dst;
    sd.ahead.len = len;
    sd.ahead.pending = true;
    cores_read_start(read_task, NULL);
}

int card_file_write(void *ctx, int file, uint32_t offset, const void *src, uint32_t len) {
    struct open_file *open = opened(file);
    UINT put = 0;
    (void)ctx;
    if (!open)
        return DEV_E_NO_CARD;
    finish_ahead();
    FRESULT result = f_lseek(&open->file, offset);
    if (result == FR_OK && f_tell(&open->file) != offset)
        return DEV_E_FULL; /* FatFs stops a seek beyond the end where the card is full */
    if (result == FR_OK)
        result = f_write(&open->file, src, len, &put);
    if (result == FR_OK && put < len)
        return DEV_E_FULL;
    return status_of(result);
}

int card_file_truncate(void *ctx, int file, uint32_t size) {
    struct open_file *open = opened(file);
    (void)ctx;
    if (!open)
        return DEV_E_NO_CARD;
    finish_ahead();
    FRESULT result = f_lseek(&open->file, size);
    if (result == FR_OK)
        result = f_truncate(&open->file);
    return status_of(result);
}

int card_file_sync(void *ctx, int file) {
    struct open_file *open = opened(file);
    (void)ctx;
    if (!open)
        return DEV_E_NO_CARD;
    finish_ahead();
    return status_of(f_sync(&open->file));
}

int card_file_rename(void *ctx, const char *from, const char *to) {
    char full_from[FULL_PATH], full_to[FULL_PATH];
    (void)ctx;
    if (!sd.card)
        return DEV_E_NO_CARD;
    if (!full_path(full_from, from) || !full_path(full_to, to))
        return DEV_E_FS;
    finish_ahead();
    return status_of(f_rename(full_from, full_to));
}

int card_file_remove(void *ctx, const char *path) {
    char full[FULL_PATH];
    (void)ctx;
    if (!sd.card)
        return DEV_E_NO_CARD;
    if (!full_path(full, path))
        return DEV_E_FS;
    finish_ahead();
    const FRESULT result = f_unlink(full);
    return result == FR_DENIED ? DEV_E_FS : status_of(result); /* a directory that is not empty */
}

int card_file_size(void *ctx, const char *path, uint32_t *size) {
    char full[FULL_PATH];
    FILINFO info;
    (void)ctx;
    if (!sd.card)
        return DEV_E_NO_CARD;
    if (!full_path(full, path))
        return DEV_E_FS;
    finish_ahead();
    const FRESULT result = f_stat(full, &info);
    if (result != FR_OK)
        return status_of(result);
    *size = (uint32_t)info.fsize;
    return info.fattrib & AM_DIR ? DEV_E_FS : 0;
}

int card_make_dir(void *ctx, const char *path) {
    char full[FULL_PATH];
    (void)ctx;
    if (!sd.card)
        return DEV_E_NO_CARD;
    if (!full_path(full, path))
        return DEV_E_FS;
    finish_ahead();
    const FRESULT result = f_mkdir(full);
    return result == FR_EXIST ? 0 : status_of(result);
}

int card_list(void *ctx, const char *path, uint32_t index, char *name, uint32_t name_len,
              uint32_t *size) {
    char full[FULL_PATH];
    FF_DIR dir;
    FILINFO info;
    (void)ctx;
    if (!sd.card)
        return DEV_E_NO_CARD;
    if (!full_path(full, path))
        return DEV_E_FS;
    finish_ahead();
    FRESULT result = f_opendir(&dir, full);
    if (result != FR_OK)
        return status_of(result);
    do
        result = f_readdir(&dir, &info);
    while (result == FR_OK && info.fname[0] && index--);
    (void)f_closedir(&dir);
    if (result != FR_OK)
        return status_of(result);
    if (!info.fname[0])
        return 0;
    const size_t len = strlen(info.fname);
    if (len >= name_len)
        return DEV_E_FS;
    memcpy(name, info.fname, len + 1);
    *size = info.fattrib & AM_DIR ? DEV_DIRECTORY : (uint32_t)info.fsize;
    return 1;
}

int card_space(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes) {
    FATFS *volume;
    DWORD free_clusters;
    (void)ctx;
    if (!sd.card)
        return DEV_E_NO_CARD;
    finish_ahead();
    /* Where the volume does not know, FatFs counts its whole table: seconds on a large card. */
    (void)esp_task_wdt_delete(NULL);
    const FRESULT result = f_getfree(DRIVE, &free_clusters, &volume);
    (void)esp_task_wdt_add(NULL);
    if (result != FR_OK)
        return status_of(result);
    *free_bytes = (uint64_t)free_clusters * volume->csize * SECTOR;
    *total_bytes = (uint64_t)(volume->n_fatent - 2) * volume->csize * SECTOR;
    return 0;
}

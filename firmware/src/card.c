/*
 * SD card: the jobs of its task, and mounting. What is done with its files is in files.c.
 */
#include "card.h"

#include "driver/gpio.h"
#include "driver/sdmmc_host.h"
#include "esp_vfs_fat.h"

#include <stdio.h>

#define MOUNT_POINT "/sd"

/* A card must begin to answer a read within 100 ms. Writes may take longer: the driver's 5 s. */
#define READ_TIMEOUT_MS 150
#define STEP_MS         10u
/* So long may one job take, counting a large card's free clusters included. Then the watchdog is
 * fed no more. */
#define LONGEST_MS 60000u

struct card_state card_state;
struct card_job card_job;

static struct {
    uint32_t attempt; /* index in `modes` of what worked, or is tried next */
    bool missing;     /* the last attempts all failed */
    char name[40], mode[24];
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

/* ---- jobs ---- */

static void set_timeout(int ms) {
    if (card_state.sdmmc)
        card_state.sdmmc->host.command_timeout_ms = ms;
}

static void work(void) {
    set_timeout(0);
    for (int i = 0; i < (int)CARD_FILES; i++)
        if (atomic_exchange(&card_state.files[i].closing, false))
            (void)card_close_now(i);
    set_timeout(card_job.writes ? 0 : READ_TIMEOUT_MS);
    card_job.status = card_job.run();
}

bool card_job_ended(uint32_t wait_ms) {
    if (card_job.under_way && cores_card_wait(wait_ms)) {
        card_job.under_way = false;
        if (atomic_load(&card_job.given_up) && card_job.run == card_open_now &&
            card_job.status >= 0)
            atomic_store(&card_state.files[card_job.status].closing, true); /* nobody knows of it */
    }
    return !card_job.under_way;
}

bool card_job_wait(bool to_its_end) {
    for (uint32_t waited_ms = 0; !card_job_ended(STEP_MS); waited_ms += STEP_MS) {
        if (waited_ms < LONGEST_MS && board_stopping() && !to_its_end) {
            atomic_store(&card_job.given_up, true);
            card_job.ahead = false;
            return false;
        }
    }
    return true;
}

void card_job_start(int (*run)(void), bool writes) {
    card_job.run = run;
    card_job.ahead = false;
    card_job.writes = writes;
    atomic_store(&card_job.given_up, false);
    card_job.under_way = true;
    cores_card_start(work);
}

int card_job_read(int (*run)(void)) {
    card_job_start(run, false);
    return card_job_wait(false) ? card_job.status : TLLM_E_CANCELLED;
}

int card_job_write(int (*run)(void)) {
    card_job_start(run, true);
    (void)card_job_wait(true);
    return card_job.status;
}

/* ---- mounting ---- */

static void unmount(void) {
    for (uint32_t i = 0; i < CARD_FILES; i++)
        card_state.files[i].used = false; /* FatFs forgets them with the volume */
    if (card_state.sdmmc)
        (void)esp_vfs_fat_sdcard_unmount(MOUNT_POINT, card_state.sdmmc);
    card_state.sdmmc = NULL;
    sd.name[0] = sd.mode[0] = 0;
}

static void describe_card(void) {
    const uint64_t megabytes = (uint64_t)(uint32_t)card_state.sdmmc->csd.capacity *
                               (uint32_t)card_state.sdmmc->csd.sector_size / 1000000u;
    (void)snprintf(sd.name, sizeof sd.name, "%s %lu.%lu GB %.7s",
                   card_state.sdmmc->is_mmc ? "MMC"
                   : megabytes > 32768u     ? "SDXC"
                   : megabytes > 2048u      ? "SDHC"
                                            : "SDSC",
                   (unsigned long)(megabytes / 1000), (unsigned long)(megabytes % 1000 / 100),
                   card_state.sdmmc->cid.name);
    for (char *c = sd.name; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?'; /* what its maker wrote need not be text */
    (void)snprintf(sd.mode, sizeof sd.mode, "%u-bit %d MHz", 1u << card_state.sdmmc->log_bus_width,
                   card_state.sdmmc->real_freq_khz / 1000);
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
    host.command_timeout_ms = READ_TIMEOUT_MS;
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
    return esp_vfs_fat_sdmmc_mount(MOUNT_POINT, &host, &slot, &config, &card_state.sdmmc);
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

/* DEV_E_NO_CARD where none answers, DEV_E_FS where one does and holds no FAT volume. */
static int mount_from(uint32_t first) {
    int status = DEV_E_NO_CARD;
    for (uint32_t i = first; i < MODES; i++) {
        if (atomic_load(&card_job.given_up))
            return TLLM_E_CANCELLED;
        const esp_err_t error = mount_as(modes[i].width, modes[i].khz);
        if (error == ESP_OK) {
            sd.attempt = i;
            led_off(modes[i].width);
            describe_card();
            return 0;
        }
        card_state.sdmmc = NULL;
        status = error == ESP_FAIL ? DEV_E_FS : DEV_E_NO_CARD;
    }
    led_off(1);
    return status;
}

static int mount_now(void) {
    if (card_job.slower && card_state.sdmmc && sd.attempt + 1 < MODES)
        sd.attempt++;
    unmount();
    int status = 0;
    if (sd.missing) { /* one attempt to see if it is back, then from the fastest */
        status = mount_from(MODES - 1);
        if (status < 0)
            return status;
        unmount();
        sd.attempt = 0;
    }
    status = mount_from(sd.attempt);
    sd.missing = status == DEV_E_NO_CARD || status == DEV_E_FS;
    if (sd.missing)
        sd.attempt = 0; /* the next card may be better */
    return status;
}

int card_mount(void *ctx, bool slower) {
    (void)ctx;
    if (!card_job_wait(false))
        return TLLM_E_CANCELLED;
    card_job.slower = slower;
    return card_job_read(mount_now);
}

bool card_busy(void *ctx, uint32_t wait_ms) {
    (void)ctx;
    return !card_job_ended(wait_ms);
}

const char *card_name(void) {
    return card_job.under_way ? "" : sd.name;
}

const char *card_mode(void) {
    return card_job.under_way ? "" : sd.mode;
}

/* Boots the board: memory, line, cores, then the portable program for ever. */
#include "board.h"

#include "esp_chip_info.h"
#include "esp_log.h"
#include "esp_system.h"
#include "esp_task_wdt.h"
#include "esp_timer.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"

#include <stdio.h>

/* `host flash` generates it; a firmware built without one runs whatever model the card holds. */
#if __has_include("tllm_model_data.h")
#include "tllm_model_data.h"
#define COMPILED_MODEL (&tllm_model_data)
#else
#define COMPILED_MODEL NULL
#endif

/* Longer than the card's driver waits: 5 s for a write, 1 s for the card's status, 5 s for it to be
 * ready again. */
#define WATCHDOG_MS 15000

static struct memory memory;
static struct dev dev;

static const char *reset_reason(void) {
    switch (esp_reset_reason()) {
    case ESP_RST_POWERON:
        return "power-on";
    case ESP_RST_EXT:
        return "reset pin";
    case ESP_RST_SW:
        return "restart";
    case ESP_RST_PANIC:
        return "crash";
    case ESP_RST_INT_WDT:
    case ESP_RST_TASK_WDT:
    case ESP_RST_WDT:
        return "watchdog";
    case ESP_RST_BROWNOUT:
        return "brown-out: the supply is too weak";
    default:
        return "unknown";
    }
}

static const char *chip_name(void) {
    static char name[48];
    esp_chip_info_t chip;
    esp_chip_info(&chip);
    (void)snprintf(name, sizeof name, "%s v%u.%u, %u cores, %d MHz",
                   chip.model == CHIP_ESP32S3 ? "ESP32-S3" : "ESP32", chip.revision / 100u,
                   chip.revision % 100u, (unsigned)chip.cores, CONFIG_ESP_DEFAULT_CPU_FREQ_MHZ);
    return name;
}

static uint64_t now_us(void *ctx) {
    (void)ctx;
    return (uint64_t)esp_timer_get_time();
}

static void feed_watchdog(void *ctx) {
    (void)ctx;
    (void)esp_task_wdt_reset();
}

bool board_stopping(void) {
    return dev_stopping(&dev);
}

static void restart(void *ctx) {
    (void)ctx;
    esp_restart();
}

static void describe(void *ctx, struct dev_board *board) {
    (void)ctx;
    board->board = BOARD_NAME;
    board->chip = chip_name();
    board->card = card_name();
    board->card_mode = card_mode();
    board->reset_reason = reset_reason();
    board->psram_bytes = (uint32_t)memory.psram_bytes;
    board->psram_mhz = CONFIG_SPIRAM_SPEED;
    board->fast_block = memory.fast_largest;
    board->bulk_block = memory.bulk_largest;
}

static const struct dev_port port = {
    .line_read = line_read,
    .line_write = line_write,
    .line_set_baud = line_set_baud,
    .card_mount = card_mount,
    .file_open = card_file_open,
    .file_close = card_file_close,
    .file_read = card_file_read,
    .file_write = card_file_write,
    .file_truncate = card_file_truncate,
    .file_sync = card_file_sync,
    .file_rename = card_file_rename,
    .file_remove = card_file_remove,
    .file_size = card_file_size,
    .make_dir = card_make_dir,
    .list = card_list,
    .space = card_space,
    .file_prefetch = card_file_prefetch,
    .card_busy = card_busy,
    .now_us = now_us,
    .parallel = cores_parallel,
    .feed_watchdog = feed_watchdog,
    .restart = restart,
    .describe = describe,
};

/* Nothing can run: say why, now and whenever a terminal is opened later. */
static _Noreturn void refuse(const char *sentence) {
    for (;;) {
        line_say(sentence);
        feed_watchdog(NULL);
        vTaskDelay(pdMS_TO_TICKS(2000));
    }
}

static _Noreturn void refuse_psram(void) {
    char sentence[240];
    if (memory.psram_bytes == 0)
        refuse("No PSRAM was found, and the model needs it: use a board with 4 MB of PSRAM, or "
               "build for PSRAM at 40 MHz if this one has it (docs/HARDWARE.md).\r\n");
    if (memory.psram_fails)
        refuse("The PSRAM does not keep what is written to it: build for PSRAM at 40 MHz "
               "(docs/HARDWARE.md), or use another board.\r\n");
    (void)snprintf(
        sentence, sizeof sentence,
        "PSRAM of %lu bytes was found, but no block of %lu bytes in it could be had; the "
        "largest free one has %lu. Build for PSRAM at 40 MHz (docs/HARDWARE.md), or use "
        "another board.\r\n",
        (unsigned long)memory.psram_bytes, (unsigned long)MEMORY_LEAST,
        (unsigned long)memory.bulk_largest);
    refuse(sentence);
}

static _Noreturn void refuse_internal(void) {
    char sentence[160];
    (void)snprintf(sentence, sizeof sentence,
                   "The internal memory has no block of %lu bytes for the engine; the largest free "
                   "one has %lu: this build is too large.\r\n",
                   (unsigned long)MEMORY_LEAST, (unsigned long)memory.fast_largest);
    refuse(sentence);
}

void app_main(void);

void app_main(void) {
    /* The idle tasks starve while the cores compute; it is this task that must not hang. */
    const esp_task_wdt_config_t watchdog = {
        .timeout_ms = WATCHDOG_MS,
        .idle_core_mask = 0,
        .trigger_panic = true,
    };

    esp_log_level_set("*", ESP_LOG_NONE); /* the line carries frames */
    (void)esp_task_wdt_reconfigure(&watchdog);
    (void)esp_task_wdt_add(NULL);
    const int taken = memory_take(&memory); /* first, while the largest block is whole */
    if (line_start() < 0)
        esp_restart();
    if (cores_start() < 0)
        refuse("There is no internal memory for the tasks: this build is too large.\r\n");
    switch (taken) {
    case 0:
        break;
    case TLLM_E_BULK:
        refuse_psram();
    default:
        refuse_internal();
    }

    const struct dev_config config = {
        .port = &port,
        .fast = memory.fast,
        .fast_bytes = memory.fast_bytes,
        .bulk = memory.bulk,
        .bulk_bytes = memory.bulk_bytes,
        .parts = BOARD_CORES,
        .baud = BOARD_BAUD,
        .compiled = COMPILED_MODEL,
        .version = "tinyllm " TLLM_VERSION,
    };
    if (dev_init(&dev, &config) < 0)
        refuse("The memory does not hold the board's program.\r\n");
    while (dev_poll(&dev, 100) >= 0) {
    }
    esp_restart(); /* the line's driver failed, so nothing can be said */
}

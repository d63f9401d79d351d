/* Time, watchdog, memory, pins, tasks, and the program's start. */
#define _XOPEN_SOURCE 700
#include "fake.h"

#include "driver/gpio.h"
#include "esp_chip_info.h"
#include "esp_heap_caps.h"
#include "esp_log.h"
#include "esp_memory_utils.h"
#include "esp_psram.h"
#include "esp_system.h"
#include "esp_task_wdt.h"
#include "esp_timer.h"
#include "freertos/semphr.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void app_main(void);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- options and notes ---- */

const char *fake_text(const char *name) {
    char full[64];
    (void)snprintf(full, sizeof full, "FAKE_%s", name);
    return getenv(full);
}

long fake_option(const char *name, long fallback) {
    const char *text = fake_text(name);
    return text ? strtol(text, NULL, 0) : fallback;
}

void fake_note(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    pthread_mutex_lock(&lock);
    (void)vfprintf(stderr, format, arguments);
    (void)fputc('\n', stderr);
    pthread_mutex_unlock(&lock);
    va_end(arguments);
}

void fake_misuse(const char *what) {
    fake_note("misuse: %s", what);
    _Exit(FAKE_EXIT_MISUSE);
}

/* ---- time and the watchdog ---- */

/* Time passes where every task waits: to the moment that the first of them waits for. */
#define TASKS 8u
#define NEVER UINT64_MAX

struct wait {
    const bool *given; /* what else ends it; NULL: nothing */
    uint64_t until_us;
};

static struct {
    uint64_t now_us, fed_us, longest_us;
    uint64_t timeout_us;
    bool watched;
    pthread_t watched_task;
    unsigned tasks, waiting;
    const struct wait *waits[TASKS];
    pthread_cond_t changed;
} chip = {.timeout_us = 5000000, .tasks = 1, .changed = PTHREAD_COND_INITIALIZER};

static void set_time(uint64_t us) {
    chip.now_us = us;
    const uint64_t hungry = chip.now_us - chip.fed_us;
    if (!chip.watched)
        return;
    if (hungry > chip.longest_us)
        chip.longest_us = hungry;
    if (hungry > chip.timeout_us) {
        (void)fprintf(stderr, "watchdog: not fed for %llu us\n", (unsigned long long)hungry);
        _Exit(FAKE_EXIT_WATCHDOG);
    }
}

static bool is_over(const struct wait *wait) {
    return (wait->given && *wait->given) || chip.now_us >= wait->until_us;
}

/* With the lock: if no task can go on, it is the time that goes on. */
static void advance(void) {
    uint64_t first_us = NEVER;
    if (chip.waiting < chip.tasks)
        return;
    for (unsigned i = 0; i < chip.waiting; i++) {
        if (is_over(chip.waits[i]))
            return;
        if (chip.waits[i]->until_us < first_us)
            first_us = chip.waits[i]->until_us;
    }
    if (first_us == NEVER) {
        (void)fputs("misuse: every task waits for another\n", stderr);
        _Exit(FAKE_EXIT_MISUSE);
    }
    set_time(first_us);
    pthread_cond_broadcast(&chip.changed);
}

/* With the lock. */
static void wait_for(const bool *given, uint64_t us) {
    const struct wait wait = {
        .given = given,
        .until_us = us < NEVER - chip.now_us ? chip.now_us + us : NEVER,
    };
    chip.waits[chip.waiting++] = &wait;
    advance();
    while (!is_over(&wait))
        pthread_cond_wait(&chip.changed, &lock);
    for (unsigned i = 0; i < chip.waiting; i++)
        if (chip.waits[i] == &wait)
            chip.waits[i] = chip.waits[chip.waiting - 1];
    chip.waiting--;
}

void fake_pass_us(uint64_t us) {
    pthread_mutex_lock(&lock);
    wait_for(NULL, us);
    pthread_mutex_unlock(&lock);
}

uint64_t fake_now_us(void) {
    pthread_mutex_lock(&lock);
    const uint64_t now_us = chip.now_us;
    pthread_mutex_unlock(&lock);
    return now_us;
}

void fake_end(int code) {
    fake_card_report();
    fake_line_report();
    fake_note("watchdog fed at least each %llu us", (unsigned long long)chip.longest_us);
    (void)fflush(stdout);
    _Exit(code);
}

int64_t esp_timer_get_time(void) {
    pthread_mutex_lock(&lock);
    set_time(chip.now_us + 1);
    pthread_cond_broadcast(&chip.changed);
    const uint64_t now_us = chip.now_us;
    pthread_mutex_unlock(&lock);
    return (int64_t)now_us;
}

esp_err_t esp_task_wdt_reconfigure(const esp_task_wdt_config_t *config) {
    if (!config->trigger_panic || config->idle_core_mask != 0)
        fake_misuse("the idle tasks are watched, or nothing happens when the program hangs");
    chip.timeout_us = (uint64_t)config->timeout_ms * 1000;
    return ESP_OK;
}

esp_err_t esp_task_wdt_add(TaskHandle_t task) {
    if (task || chip.watched)
        return ESP_ERR_INVALID_ARG;
    chip.watched = true;
    chip.watched_task = pthread_self();
    chip.fed_us = chip.now_us;
    return ESP_OK;
}

/* The program feeds it between pieces of work: such a piece takes FAKE_WORK_US. */
esp_err_t esp_task_wdt_reset(void) {
    if (!chip.watched || !pthread_equal(pthread_self(), chip.watched_task))
        return ESP_ERR_NOT_FOUND;
    pthread_mutex_lock(&lock);
    wait_for(NULL, (uint64_t)fake_option("WORK_US", 0));
    chip.fed_us = chip.now_us;
    pthread_mutex_unlock(&lock);
    return ESP_OK;
}

esp_reset_reason_t esp_reset_reason(void) {
    return (esp_reset_reason_t)fake_option("RESET_REASON", ESP_RST_POWERON);
}

void esp_restart(void) {
    fake_note("restart");
    fake_end(FAKE_EXIT_RESTART);
}

void esp_log_level_set(const char *tag, esp_log_level_t level) {
    fake_note("log %s %d", tag, (int)level);
}

/* ---- pins ---- */

esp_err_t gpio_reset_pin(gpio_num_t pin) {
    fake_note("gpio %d reset", pin);
    return ESP_OK;
}

esp_err_t gpio_set_direction(gpio_num_t pin, gpio_mode_t mode) {
    fake_note("gpio %d %s", pin, mode == GPIO_MODE_OUTPUT ? "output" : "input");
    return ESP_OK;
}

esp_err_t gpio_set_level(gpio_num_t pin, uint32_t level) {
    fake_note("gpio %d level %u", pin, level);
    return ESP_OK;
}

/* ---- memory ---- */

#define EXTERNAL ((size_t)4 * 1024 * 1024)

static _Alignas(64) uint8_t internal[256 * 1024];
static size_t internal_used, external_used;

static size_t external_size(void) {
    return (size_t)fake_option("PSRAM", (long)EXTERNAL);
}

/* The same memory twice, as where an address line hangs loose. */
static uint8_t *half_external(void) {
    const int access = PROT_READ | PROT_WRITE;
    FILE *file = tmpfile();
    if (!file || ftruncate(fileno(file), (off_t)EXTERNAL) != 0)
        abort();
    uint8_t *at = mmap(NULL, EXTERNAL, access, MAP_SHARED, fileno(file), 0);
    if (at == MAP_FAILED || mmap(at + EXTERNAL / 2, EXTERNAL / 2, access, MAP_SHARED | MAP_FIXED,
                                 fileno(file), 0) == MAP_FAILED)
        abort();
    return at;
}

static uint8_t *external(void) {
    static _Alignas(64) uint8_t whole[EXTERNAL];
    return fake_option("HALF_PSRAM", 0) ? half_external() : whole;
}

bool esp_psram_is_initialized(void) {
    return external_size() > 0;
}

void esp_chip_info(esp_chip_info_t *out_info) {
#if CONFIG_IDF_TARGET_ESP32S3
    *out_info = (esp_chip_info_t){.model = CHIP_ESP32S3, .revision = 2, .cores = 2};
#else
    *out_info = (esp_chip_info_t){.model = CHIP_ESP32, .revision = 301, .cores = 2};
#endif
}

size_t esp_psram_get_size(void) {
    return external_size();
}

size_t heap_caps_get_largest_free_block(uint32_t caps) {
    if (caps & MALLOC_CAP_SPIRAM)
        return external_size() - external_used;
    return (size_t)fake_option("INTERNAL", 160 * 1024) - internal_used;
}

size_t heap_caps_get_free_size(uint32_t caps) {
    const size_t others =
        (caps & MALLOC_CAP_SPIRAM) ? 0 : (size_t)fake_option("OTHERS", 110 * 1024);
    return heap_caps_get_largest_free_block(caps) + others;
}

/* Refuses what leaves no room for its own header, and the requests that FAKE_FAIL_ALLOC counts. */
void *heap_caps_aligned_alloc(size_t alignment, size_t size, uint32_t caps) {
    static long asked;
    if (size + alignment > heap_caps_get_largest_free_block(caps) ||
        ++asked <= fake_option("FAIL_ALLOC", 0) ||
        ((caps & MALLOC_CAP_SPIRAM) && fake_option("FAIL_PSRAM_ALLOC", 0)))
        return NULL;
    size_t *used = caps & MALLOC_CAP_SPIRAM ? &external_used : &internal_used;
    uint8_t *at = (caps & MALLOC_CAP_SPIRAM ? external() : internal) + *used;
    *used += size;
    fake_note("%s region %zu", caps & MALLOC_CAP_SPIRAM ? "bulk" : "fast", size);
    return at;
}

bool esp_ptr_dma_capable(const void *p) {
    return (const uint8_t *)p >= internal && (const uint8_t *)p < internal + sizeof internal;
}

/* ---- tasks ---- */

struct QueueDefinition {
    bool given;
};

SemaphoreHandle_t xSemaphoreCreateBinary(void) {
    return fake_option("FAIL_SEMAPHORE", 0) ? NULL : calloc(1, sizeof(struct QueueDefinition));
}

BaseType_t xSemaphoreTake(SemaphoreHandle_t semaphore, TickType_t ticks) {
    pthread_mutex_lock(&lock);
    if (!semaphore->given)
        wait_for(&semaphore->given,
                 ticks == portMAX_DELAY ? NEVER : (uint64_t)ticks * 1000000 / configTICK_RATE_HZ);
    const bool taken = semaphore->given;
    semaphore->given = false;
    pthread_mutex_unlock(&lock);
    return taken ? pdTRUE : pdFALSE;
}

/* pdFALSE where it was given already, as the real one. */
BaseType_t xSemaphoreGive(SemaphoreHandle_t semaphore) {
    pthread_mutex_lock(&lock);
    const bool given = semaphore->given;
    semaphore->given = true;
    pthread_cond_broadcast(&chip.changed);
    pthread_mutex_unlock(&lock);
    if (given)
        fake_misuse("a semaphore was given twice: a request or an answer is lost");
    return pdTRUE;
}

struct task {
    TaskFunction_t code;
    void *arg;
};

static void *run_task(void *arg) {
    const struct task task = *(struct task *)arg;
    free(arg);
    task.code(task.arg);
    fake_misuse("a task returned");
}

BaseType_t xTaskCreatePinnedToCore(TaskFunction_t code, const char *const name,
                                   const uint32_t stack_depth, void *const arg,
                                   UBaseType_t priority, TaskHandle_t *const created,
                                   const BaseType_t core) {
    pthread_t thread;
    struct task *task = malloc(sizeof *task);
    if (!task || created || fake_option("FAIL_TASK", 0)) {
        free(task);
        return pdFAIL;
    }
    fake_note("task %s on core %d, priority %u, stack %u", name, core, priority, stack_depth);
    *task = (struct task){code, arg};
    pthread_mutex_lock(&lock);
    chip.tasks++;
    pthread_mutex_unlock(&lock);
    if (pthread_create(&thread, NULL, run_task, task) != 0)
        return pdFAIL;
    return pdPASS;
}

void vTaskDelay(const TickType_t ticks) {
    static long delays;
    fake_pass_us((uint64_t)ticks * 1000000 / configTICK_RATE_HZ);
    if (++delays >= fake_option("DELAYS", 3))
        fake_end(0);
}

int main(void) {
    app_main();
    fake_misuse("app_main returned");
}

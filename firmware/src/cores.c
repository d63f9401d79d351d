/* A worker on core 1 for the engine's second part, and a task that works on the card meanwhile. */
#include "board.h"

#include "freertos/FreeRTOS.h"
#include "freertos/semphr.h"
#include "freertos/task.h"

#define WORKER_STACK 4096
#define CARD_STACK   6144 /* mounting and FatFs go deep */
/* None on core 0, which listens to the line: the card's driver polls a hung card, up to 400 ms at a
 * time. */
#define WORKER_CORE 1
#define CARD_CORE   1
/* The card's task mostly waits for the card's DMA; when it does not, it goes first. */
#define WORKER_PRIORITY 5
#define CARD_PRIORITY   6

static struct {
    SemaphoreHandle_t go, done;
    void (*fn)(void *arg, uint32_t part, uint32_t parts);
    void *arg;
    uint32_t parts;
} worker;

static struct {
    SemaphoreHandle_t go, done;
    void (*job)(void);
} card;

static void work(void *unused) {
    (void)unused;
    for (;;) {
        (void)xSemaphoreTake(worker.go, portMAX_DELAY);
        for (uint32_t part = 1; part < worker.parts; part += 2)
            worker.fn(worker.arg, part, worker.parts);
        (void)xSemaphoreGive(worker.done);
    }
}

static void work_on_card(void *unused) {
    (void)unused;
    for (;;) {
        (void)xSemaphoreTake(card.go, portMAX_DELAY);
        card.job();
        (void)xSemaphoreGive(card.done);
    }
}

int cores_start(void) {
    worker.go = xSemaphoreCreateBinary();
    worker.done = xSemaphoreCreateBinary();
    card.go = xSemaphoreCreateBinary();
    card.done = xSemaphoreCreateBinary();
    if (!worker.go || !worker.done || !card.go || !card.done)
        return TLLM_E_FAST;
    if (xTaskCreatePinnedToCore(work, "worker", WORKER_STACK, NULL, WORKER_PRIORITY, NULL,
                                WORKER_CORE) != pdPASS ||
        xTaskCreatePinnedToCore(work_on_card, "card", CARD_STACK, NULL, CARD_PRIORITY, NULL,
                                CARD_CORE) != pdPASS)
        return TLLM_E_FAST;
    return 0;
}

void cores_parallel(void *ctx, void (*fn)(void *arg, uint32_t part, uint32_t parts), void *arg,
                    uint32_t parts) {
    (void)ctx;
    worker.fn = fn;
    worker.arg = arg;
    worker.parts = parts;
    (void)xSemaphoreGive(worker.go);
    for (uint32_t part = 0; part < parts; part += 2)
        fn(arg, part, parts);
    (void)xSemaphoreTake(worker.done, portMAX_DELAY);
}

void cores_card_start(void (*job)(void)) {
    card.job = job;
    (void)xSemaphoreGive(card.go);
}

bool cores_card_wait(uint32_t ms) {
    return xSemaphoreTake(card.done, pdMS_TO_TICKS(ms)) == pdTRUE;
}

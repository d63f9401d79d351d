/* A worker on core 1 for the engine's second part, and a task that reads the card meanwhile. */
#include "board.h"

#include "freertos/FreeRTOS.h"
#include "freertos/semphr.h"
#include "freertos/task.h"

#define WORKER_STACK 4096
#define READER_STACK 4096
#define WORKER_CORE  1
#define READER_CORE  0
/* The reader mostly waits for the card's DMA; when it does not, it goes first. */
#define WORKER_PRIORITY 5
#define READER_PRIORITY 6

static struct {
    SemaphoreHandle_t go, done;
    void (*fn)(void *arg, uint32_t part, uint32_t parts);
    void *arg;
    uint32_t parts;
} worker;

static struct {
    SemaphoreHandle_t go, done;
    int (*read)(void *arg);
    void *arg;
    int result;
} reader;

static void work(void *unused) {
    (void)unused;
    for (;;) {
        (void)xSemaphoreTake(worker.go, portMAX_DELAY);
        for (uint32_t part = 1; part < worker.parts; part += 2)
            worker.fn(worker.arg, part, worker.parts);
        (void)xSemaphoreGive(worker.done);
    }
}

static void read_ahead(void *unused) {
    (void)unused;
    for (;;) {
        (void)xSemaphoreTake(reader.go, portMAX_DELAY);
        reader.result = reader.read(reader.arg);
        (void)xSemaphoreGive(reader.done);
    }
}

int cores_start(void) {
    worker.go = xSemaphoreCreateBinary();
    worker.done = xSemaphoreCreateBinary();
    reader.go = xSemaphoreCreateBinary();
    reader.done = xSemaphoreCreateBinary();
    if (!worker.go || !worker.done || !reader.go || !reader.done)
        return TLLM_E_FAST;
    if (xTaskCreatePinnedToCore(work, "worker", WORKER_STACK, NULL, WORKER_PRIORITY, NULL,
                                WORKER_CORE) != pdPASS ||
        xTaskCreatePinnedToCore(read_ahead, "reader", READER_STACK, NULL, READER_PRIORITY, NULL,
                                READER_CORE) != pdPASS)
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

void cores_read_start(int (*read)(void *arg), void *arg) {
    reader.read = read;
    reader.arg = arg;
    (void)xSemaphoreGive(reader.go);
}

int cores_read_wait(void) {
    (void)xSemaphoreTake(reader.done, portMAX_DELAY);
    return reader.result;
}

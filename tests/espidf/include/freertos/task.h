#ifndef STUB_FREERTOS_TASK_H
#define STUB_FREERTOS_TASK_H

#include "freertos/FreeRTOS.h"

typedef struct tskTaskControlBlock *TaskHandle_t;
typedef void (*TaskFunction_t)(void *arg);

/* The stack's depth is in bytes. pdPASS, or another value where there is no memory. */
BaseType_t xTaskCreatePinnedToCore(TaskFunction_t code, const char *const name,
                                   const uint32_t stack_depth, void *const arg,
                                   UBaseType_t priority, TaskHandle_t *const created,
                                   const BaseType_t core);
void vTaskDelay(const TickType_t ticks);

#endif

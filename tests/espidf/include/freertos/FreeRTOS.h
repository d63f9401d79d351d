#ifndef STUB_FREERTOS_FREERTOS_H
#define STUB_FREERTOS_FREERTOS_H

#include "sdkconfig.h"

#include <stdint.h>

typedef int BaseType_t;
typedef unsigned int UBaseType_t;
typedef uint32_t TickType_t;

#define pdFALSE            ((BaseType_t)0)
#define pdTRUE             ((BaseType_t)1)
#define pdPASS             pdTRUE
#define pdFAIL             pdFALSE
#define portMAX_DELAY      ((TickType_t)0xffffffffu)
#define configTICK_RATE_HZ CONFIG_FREERTOS_HZ
/* Overflows from 4,294,968 ms on, as the real one does at 1,000 Hz. */
#define pdMS_TO_TICKS(ms)                                                                          \
    ((TickType_t)(((TickType_t)(ms) * (TickType_t)configTICK_RATE_HZ) / (TickType_t)1000u))

#endif

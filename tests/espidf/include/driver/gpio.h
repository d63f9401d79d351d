#ifndef STUB_DRIVER_GPIO_H
#define STUB_DRIVER_GPIO_H

#include "esp_err.h"

#include <stdint.h>

typedef int gpio_num_t; /* an enum in the real header: GPIO_NUM_NC is -1, GPIO_NUM_4 is 4 */
typedef enum {
    GPIO_MODE_DISABLE = 0,
    GPIO_MODE_INPUT = 1,
    GPIO_MODE_OUTPUT = 2
} gpio_mode_t;

#define GPIO_NUM_NC (-1)

esp_err_t gpio_reset_pin(gpio_num_t gpio_num);
esp_err_t gpio_set_level(gpio_num_t gpio_num, uint32_t level);
esp_err_t gpio_set_direction(gpio_num_t gpio_num, gpio_mode_t mode);

#endif

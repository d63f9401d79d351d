#ifndef STUB_DRIVER_UART_H
#define STUB_DRIVER_UART_H

#include "esp_err.h"
#include "freertos/FreeRTOS.h"

#include <stddef.h>
#include <stdint.h>

typedef struct QueueDefinition *QueueHandle_t;

typedef enum {
    UART_NUM_0,
    UART_NUM_1
} uart_port_t;
typedef enum {
    UART_DATA_5_BITS,
    UART_DATA_6_BITS,
    UART_DATA_7_BITS,
    UART_DATA_8_BITS
} uart_word_length_t;
typedef enum {
    UART_PARITY_DISABLE = 0,
    UART_PARITY_EVEN = 2,
    UART_PARITY_ODD = 3
} uart_parity_t;
typedef enum {
    UART_STOP_BITS_1 = 1,
    UART_STOP_BITS_1_5 = 2,
    UART_STOP_BITS_2 = 3
} uart_stop_bits_t;
typedef enum {
    UART_HW_FLOWCTRL_DISABLE = 0,
    UART_HW_FLOWCTRL_RTS = 1
} uart_hw_flowcontrol_t;
typedef enum {
    UART_SCLK_APB = 4,
    UART_SCLK_DEFAULT = UART_SCLK_APB
} uart_sclk_t;

typedef struct {
    int baud_rate;
    uart_word_length_t data_bits;
    uart_parity_t parity;
    uart_stop_bits_t stop_bits;
    uart_hw_flowcontrol_t flow_ctrl;
    uint8_t rx_flow_ctrl_thresh;
    union {
        uart_sclk_t source_clk;
    };
    struct {
        uint32_t allow_pd : 1;
        uint32_t backup_before_sleep : 1;
    } flags;
} uart_config_t;

/* ESP_FAIL where there is no memory, where it is installed already, or for a receive buffer of at
 * most 128 bytes. tx_buffer_size 0: uart_write_bytes waits until all is in the hardware's FIFO. */
esp_err_t uart_driver_install(uart_port_t uart_num, int rx_buffer_size, int tx_buffer_size,
                              int queue_size, QueueHandle_t *uart_queue, int intr_alloc_flags);
esp_err_t uart_param_config(uart_port_t uart_num, const uart_config_t *uart_config);
/* How many bytes in the hardware's FIFO make the driver take them, 1 to 126; 120 by default. */
esp_err_t uart_set_rx_full_threshold(uart_port_t uart_num, int threshold);
esp_err_t uart_set_baudrate(uart_port_t uart_num, uint32_t baudrate);
esp_err_t uart_wait_tx_done(uart_port_t uart_num, TickType_t ticks_to_wait);
int uart_write_bytes(uart_port_t uart_num, const void *src,
                     size_t size); /* -1: an argument is wrong */
/* Waits for all of length, up to ticks_to_wait for each piece that comes; what came, or -1. */
int uart_read_bytes(uart_port_t uart_num, void *buf, uint32_t length, TickType_t ticks_to_wait);
esp_err_t uart_get_buffered_data_len(uart_port_t uart_num, size_t *size);

#endif

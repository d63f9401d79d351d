/* UART 0: the console and the link. */
#include "board.h"

#include "driver/uart.h"
#include "freertos/FreeRTOS.h"

#include <string.h>

#define PORT UART_NUM_0
/* All that an upload sends ahead of its acknowledgements: a card may stall for longer than any less
 * would last at 921,600 baud. */
#define RX_BYTES (DEV_WINDOW * DEV_FRAME + 4096u)
#define RX_FULL  64 /* of the hardware's 128 bytes: at 2,000,000 baud the rest lasts 320 us */

int line_start(void) {
    const uart_config_t config = {
        .baud_rate = (int)BOARD_BAUD,
        .data_bits = UART_DATA_8_BITS,
        .parity = UART_PARITY_DISABLE,
        .stop_bits = UART_STOP_BITS_1,
        .flow_ctrl = UART_HW_FLOWCTRL_DISABLE,
        .source_clk = UART_SCLK_DEFAULT,
    };
    if (uart_driver_install(PORT, (int)RX_BYTES, 0, 0, NULL, 0) != ESP_OK)
        return TLLM_E_FAST;
    return uart_param_config(PORT, &config) == ESP_OK &&
                   uart_set_rx_full_threshold(PORT, RX_FULL) == ESP_OK
               ? 0
               : TLLM_E_ARG;
}

int line_read(void *ctx, void *dst, uint32_t len, uint32_t wait_ms) {
    size_t there = 0;
    (void)ctx;
    if (uart_get_buffered_data_len(PORT, &there) != ESP_OK)
        return TLLM_E_IO;
    if (there == 0) { /* wait for the first byte alone, so that what came is not kept waiting */
        if (wait_ms == 0)
            return 0;
        there = 1;
    }
    if (there < len)
        len = (uint32_t)there;
    const int n = uart_read_bytes(PORT, dst, len, pdMS_TO_TICKS(wait_ms));
    return n < 0 ? TLLM_E_IO : n;
}

int line_write(void *ctx, const void *src, uint32_t len) {
    (void)ctx;
    return uart_write_bytes(PORT, src, len) == (int)len ? 0 : TLLM_E_IO;
}

int line_set_baud(void *ctx, uint32_t baud) {
    (void)ctx;
    if (uart_wait_tx_done(PORT, pdMS_TO_TICKS(1000)) != ESP_OK)
        return TLLM_E_IO;
    return uart_set_baudrate(PORT, baud) == ESP_OK ? 0 : TLLM_E_ARG;
}

void line_say(const char *sentence) {
    (void)line_write(NULL, sentence, (uint32_t)strlen(sentence));
}

/*
 * UART 0 on stdin and stdout. A line of stdin arrives when the program waits for one, so that a run
 * does not depend on time; at stdin's end the next wait ends the program.
 */
#define _XOPEN_SOURCE 700
#include "fake.h"

#include "driver/uart.h"
#include "esp_timer.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FIFO 128

static struct {
    uint8_t bytes[65536];
    size_t from, to, size;
    int baud;
    long taken, written;
    int64_t stop_us; /* when Ctrl-C was typed; 0: not, or it was obeyed */
} uart;

/* A byte from outside; lost where the buffer is full or FAKE_LOSE_AT counts it. */
static void arrive(uint8_t byte) {
    const long at = ++uart.taken, lose = fake_option("LOSE_AT", 0);
    if ((lose > 0 && at >= lose && at < lose + FIFO) || uart.to - uart.from >= uart.size)
        return;
    uart.bytes[uart.to++ % sizeof uart.bytes] = byte;
}

/* With FAKE_LIVE bytes arrive as they are sent, for a client on a pipe. */
static bool arrive_live(int wait_ms) {
    uint8_t bytes[4096];
    struct pollfd ready = {.fd = STDIN_FILENO, .events = POLLIN};
    if (poll(&ready, 1, wait_ms) <= 0)
        return true;
    const ssize_t n = read(STDIN_FILENO, bytes, sizeof bytes);
    for (ssize_t i = 0; i < n; i++)
        arrive(bytes[i]);
    return n > 0;
}

static bool arrive_line(void) {
    int byte;
    do {
        byte = getchar();
        if (byte != EOF)
            arrive((uint8_t)byte);
    } while (byte != EOF && byte != '\n');
    return byte != EOF;
}

esp_err_t uart_driver_install(uart_port_t port, int rx_bytes, int tx_bytes, int queue_size,
                              QueueHandle_t *queue, int flags) {
    if (port != UART_NUM_0 || rx_bytes <= FIFO || (size_t)rx_bytes > sizeof uart.bytes ||
        tx_bytes != 0 || queue || queue_size || flags || uart.size > 0 ||
        fake_option("FAIL_UART", 0))
        return ESP_FAIL;
    uart.size = (size_t)rx_bytes;
    return ESP_OK;
}

esp_err_t uart_param_config(uart_port_t port, const uart_config_t *config) {
    if (port != UART_NUM_0 || config->data_bits != UART_DATA_8_BITS)
        return ESP_FAIL;
    return uart_set_baudrate(port, (uint32_t)config->baud_rate);
}

esp_err_t uart_set_baudrate(uart_port_t port, uint32_t baud) {
    if (port != UART_NUM_0 || baud == 0 || baud > 5000000)
        return ESP_FAIL;
    uart.baud = (int)baud;
    fake_note("baud %u", baud);
    return ESP_OK;
}

esp_err_t uart_wait_tx_done(uart_port_t port, TickType_t ticks) {
    return port == UART_NUM_0 && ticks > 0 ? ESP_OK : ESP_FAIL;
}

int uart_write_bytes(uart_port_t port, const void *src, size_t size) {
    if (port != UART_NUM_0 || !src || uart.size == 0)
        return -1;
    fake_pass_us((uint64_t)size * 10000000 / (uint64_t)uart.baud);
    (void)fwrite(src, 1, size, stdout);
    (void)fflush(stdout);
    if (++uart.written == fake_option("CTRL_C_AT", 0)) {
        uart.stop_us = esp_timer_get_time();
        arrive(0x03);
    }
    return (int)size;
}

esp_err_t uart_get_buffered_data_len(uart_port_t port, size_t *size) {
    if (port != UART_NUM_0 || uart.size == 0)
        return ESP_FAIL;
    if (fake_option("LIVE", 0) && !arrive_live(0))
        fake_end(0);
    *size = uart.to - uart.from;
    return ESP_OK;
}

int uart_read_bytes(uart_port_t port, void *buf, uint32_t length, TickType_t ticks) {
    static long waits;
    uint8_t *to = buf;
    uint32_t got = 0;
    if (port != UART_NUM_0 || !buf || uart.size == 0)
        return -1;
    if (ticks > 0 && uart.stop_us > 0) {
        fake_note("stopped after %lld us", (long long)(esp_timer_get_time() - uart.stop_us));
        uart.stop_us = 0;
    }
    if (uart.from == uart.to && ticks > 0) {
        /* The card's own time passes before the first line is typed, where a test wants that. */
        if (++waits <= fake_option("IDLE_WAITS", 0))
            fake_pass_us((uint64_t)ticks * 1000);
        else if (!(fake_option("LIVE", 0) ? arrive_live((int)ticks) : arrive_line()))
            fake_end(0);
        else if (uart.from == uart.to)
            fake_pass_us((uint64_t)ticks * 1000);
    }
    while (got < length && uart.from < uart.to)
        to[got++] = uart.bytes[uart.from++ % sizeof uart.bytes];
    return (int)got;
}

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
    size_t from, to, size, most;
    int baud;
    long taken, lost, written, turns;
    bool asked;          /* the program works on what it was asked, or boots */
    uint64_t stop_us;    /* when the stop is sent; 0: none is */
    uint64_t stopped_us; /* when it was, and is not obeyed yet; 0: obeyed */
} uart;

/* A byte from outside; lost where the buffer is full or FAKE_LOSE_AT counts it. */
static void arrive(uint8_t byte) {
    const long at = ++uart.taken, lose = fake_option("LOSE_AT", 0);
    if ((lose > 0 && at >= lose && at < lose + FIFO) || uart.to - uart.from >= uart.size) {
        uart.lost++;
        return;
    }
    uart.bytes[uart.to++ % sizeof uart.bytes] = byte;
    if (uart.to - uart.from > uart.most)
        uart.most = uart.to - uart.from;
}

void fake_line_report(void) {
    fake_note("line: at most %zu bytes waited, %ld were lost", uart.most, uart.lost);
}

/* The k-th of what is asked is followed by a stop after k times FAKE_STOP_STEP_US. */
static void begin(void) {
    const long step = fake_option("STOP_STEP_US", 0);
    uart.asked = true;
    if (step > 0 && ++uart.turns <= fake_option("STOPS", 1000))
        uart.stop_us = fake_now_us() + (uint64_t)(uart.turns * step);
}

/* Whether a frame of the type that is named is among the bytes; where none is, any will do. */
static bool has_type(const uint8_t *bytes, ssize_t n, const char *name) {
    const long type = fake_option(name, -1);
    for (ssize_t i = 0; type >= 0 && i + 2 < n; i++)
        if (bytes[i] == 0 && bytes[i + 2] == type)
            return true;
    return type < 0;
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
    if (n > 0 && !uart.asked && has_type(bytes, n, "STOP_TYPE"))
        begin();
    if (n > 0 && fake_text("STUCK_TYPE") && has_type(bytes, n, "STUCK_TYPE"))
        fake_card_sticks();
    return n > 0;
}

/* FAKE_STOP as hexadecimal digits: what is sent for a stop, Ctrl-C where it is not set. */
static void send_stop(void) {
    const char *bytes = fake_text("STOP");
    unsigned byte;
    for (bytes = bytes ? bytes : "03"; sscanf(bytes, "%2x", &byte) == 1; bytes += 2)
        arrive((uint8_t)byte);
    uart.stopped_us = uart.stop_us;
    uart.stop_us = 0;
}

static void stop_in_time(void) {
    if (uart.asked && uart.stop_us > 0 && fake_now_us() >= uart.stop_us)
        send_stop();
}

static void it_is_done(void) {
    if (uart.stopped_us > 0)
        fake_note("stopped after %llu us", (unsigned long long)(fake_now_us() - uart.stopped_us));
    uart.stopped_us = 0;
    uart.asked = false;
}

static bool arrive_line(void) {
    int byte;
    bool any = false;
    do {
        byte = getchar();
        if (byte != EOF)
            arrive((uint8_t)byte);
        any = any || byte != EOF;
    } while (byte != EOF && byte != '\n');
    if (any)
        begin();
    return any;
}

/* The console's prompt, or an answer's first block (its code, its type) but for STOP's and PART's.
 */
static bool ends_it(const uint8_t *bytes, size_t size) {
    static bool after_zero;
    const bool begins = after_zero && size > 1;
    after_zero = size == 1 && bytes[0] == 0;
    if (!begins)
        return size == 2 && memcmp(bytes, "> ", 2) == 0;
    return bytes[1] > 0x80 && bytes[1] != 0x85 && bytes[1] != 0x86;
}

esp_err_t uart_driver_install(uart_port_t port, int rx_bytes, int tx_bytes, int queue_size,
                              QueueHandle_t *queue, int flags) {
    if (port != UART_NUM_0 || rx_bytes <= FIFO || (size_t)rx_bytes > sizeof uart.bytes ||
        tx_bytes != 0 || queue || queue_size || flags || uart.size > 0 ||
        fake_option("FAIL_UART", 0))
        return ESP_FAIL;
    uart.size = (size_t)rx_bytes;
    uart.stop_us = (uint64_t)fake_option("STOP_AT_US", 0);
    for (long i = 0; i < fake_option("TYPED_AHEAD", 0); i++)
        (void)arrive_line();
    uart.asked = true;
    return ESP_OK;
}

esp_err_t uart_param_config(uart_port_t port, const uart_config_t *config) {
    if (port != UART_NUM_0 || config->data_bits != UART_DATA_8_BITS)
        return ESP_FAIL;
    return uart_set_baudrate(port, (uint32_t)config->baud_rate);
}

esp_err_t uart_set_rx_full_threshold(uart_port_t port, int threshold) {
    if (port != UART_NUM_0 || threshold < 1 || threshold > FIFO - 2)
        return ESP_ERR_INVALID_ARG;
    if (uart.size == 0)
        return ESP_ERR_INVALID_STATE;
    fake_note("taken from %d of %d bytes on", threshold, FIFO);
    return ESP_OK;
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
        uart.stop_us = fake_now_us();
        send_stop();
    }
    if (ends_it(src, size))
        it_is_done();
    return (int)size;
}

esp_err_t uart_get_buffered_data_len(uart_port_t port, size_t *size) {
    if (port != UART_NUM_0 || uart.size == 0)
        return ESP_FAIL;
    if (fake_option("LIVE", 0) && !arrive_live(0))
        fake_end(0);
    /* The board looks late until a client that sends much once had so much on its way. */
    static bool looked_late;
    const size_t ahead = (size_t)fake_option("AHEAD", 0);
    while (!looked_late && uart.to - uart.from > ahead / 8 && uart.to - uart.from < ahead) {
        const long taken = uart.taken;
        if (!arrive_live(100) || uart.taken == taken)
            break;
    }
    looked_late = looked_late || uart.to - uart.from >= ahead;
    stop_in_time();
    *size = uart.to - uart.from;
    return ESP_OK;
}

int uart_read_bytes(uart_port_t port, void *buf, uint32_t length, TickType_t ticks) {
    static long waits, ends;
    uint8_t *to = buf;
    uint32_t got = 0;
    if (port != UART_NUM_0 || !buf || uart.size == 0)
        return -1;
    const bool idle = ticks > 0 && uart.from == uart.to;
    if (idle) {
        it_is_done();
        /* The card's own time passes before the first line is typed, where a test wants that. */
        if (++waits <= fake_option("IDLE_WAITS", 0))
            fake_pass_us((uint64_t)ticks * 1000);
        else if (!(fake_option("LIVE", 0) ? arrive_live((int)ticks) : arrive_line()) &&
                 ++ends > fake_option("END_WAITS", 0))
            fake_end(0);
        else if (uart.from == uart.to)
            fake_pass_us((uint64_t)ticks * 1000);
    }
    while (got < length && uart.from < uart.to)
        to[got++] = uart.bytes[uart.from++ % sizeof uart.bytes];
    return (int)got;
}

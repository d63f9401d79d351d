/* The line: stdin and stdout, a pseudo-terminal or a TCP port, at a given rate, with given noise.
 */
#define _XOPEN_SOURCE 700
#include "sim.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#define CLOSED        (-1)
#define STALL_MS      2000 /* nobody reads: what is written is lost, as on a real line */
#define BOOT_NOISE    256u
#define BITS_PER_BYTE 10u
#define WRITE_BYTES   256u
#define OVERSLEPT_US  5000u /* a line so late was idle; a line less late catches up */

/* ---- opening ---- */

static int open_pty(struct sim_line *line) {
    struct termios settings;
    const int master = posix_openpt(O_RDWR | O_NOCTTY);
    const char *name = NULL;
    if (master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0) {
        name = ptsname(master);
    }
    line->held = name == NULL ? -1 : open(name, O_RDWR | O_NOCTTY);
    if (line->held < 0 || tcgetattr(line->held, &settings) != 0) {
        fprintf(stderr, "No pseudo-terminal can be had (%s): use --tcp.\n", strerror(errno));
        return -1;
    }
    settings.c_iflag = 0;
    settings.c_oflag = 0;
    settings.c_lflag = 0;
    settings.c_cflag = CS8 | CREAD | CLOCAL;
    settings.c_cc[VMIN] = 1;
    settings.c_cc[VTIME] = 0;
    tcsetattr(line->held, TCSANOW, &settings);
    line->in = line->out = master;
    printf("%s\n", name);
    return fflush(stdout);
}

static int open_tcp(struct sim_line *line) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t len = sizeof address;
    const int yes = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)line->options->tcp_port);
    line->listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(line->listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(line->listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(line->listener, 1) != 0 ||
        getsockname(line->listener, (struct sockaddr *)&address, &len) != 0) {
        fprintf(stderr, "Port %u of 127.0.0.1 cannot be opened (%s): choose another, or 0.\n",
                line->options->tcp_port, strerror(errno));
        return -1;
    }
    printf("socket://127.0.0.1:%u\n", ntohs(address.sin_port));
    return fflush(stdout);
}

int sim_line_open(struct sim_line *line, const struct sim_options *options, volatile int *end) {
    *line = (struct sim_line){
        .options = options,
        .in = -1,
        .out = -1,
        .listener = -1,
        .held = -1,
        .baud = options->baud,
        .random = options->fault_seed,
        .end = end,
    };
    if (options->transport == SIM_PTY) {
        return open_pty(line);
    }
    if (options->transport == SIM_TCP) {
        return open_tcp(line);
    }
    if (options->transport == SIM_STDIO) {
        line->in = STDIN_FILENO;
        line->out = STDOUT_FILENO;
    }
    return 0;
}

static void hang_up(struct sim_line *line) {
    if (line->in > STDERR_FILENO) {
        close(line->in);
    }
    line->in = line->out = -1;
}

void sim_line_close(struct sim_line *line) {
    hang_up(line);
    if (line->listener >= 0) {
        close(line->listener);
    }
    if (line->held >= 0) {
        close(line->held);
    }
}

/* ---- noise ---- */

static bool strikes(struct sim_line *line, uint32_t probability) {
    return probability > 0 && sim_random(&line->random) < probability;
}

/* One byte becomes none to three. */
static uint32_t disturb(struct sim_line *line, const struct sim_noise *noise, uint8_t byte,
                        uint8_t out[3]) {
    uint32_t n = 0;
    if (line->options->max_baud > 0 && line->baud > line->options->max_baud) {
        byte = (uint8_t)sim_random(&line->random);
    }
    if (strikes(line, noise->insert)) {
        out[n++] = (uint8_t)sim_random(&line->random);
    }
    if (strikes(line, noise->flip)) {
        byte ^= (uint8_t)(1u << (sim_random(&line->random) & 7));
    }
    if (!strikes(line, noise->drop)) {
        out[n++] = byte;
        if (strikes(line, noise->duplicate)) {
            out[n++] = byte;
        }
    }
    return n;
}

/* ---- reading ---- */

static uint64_t byte_us(const struct sim_line *line, uint64_t bytes) {
    return line->baud == 0 ? 0 : bytes * BITS_PER_BYTE * 1000000 / line->baud;
}

/* Waits for bytes. 1: there are some; 0: none in time; negative: closed. */
static int wait_readable(struct sim_line *line, int fd, uint32_t wait_ms) {
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    const int n = poll(&waiting, 1, (int)wait_ms);
    if (*line->end) {
        return CLOSED;
    }
    return n > 0 ? 1 : 0;
}

static int wait_client(struct sim_line *line, uint32_t wait_ms) {
    const int ready = wait_readable(line, line->listener, wait_ms);
    const int yes = 1;
    if (ready <= 0) {
        return ready;
    }
    line->in = line->out = accept(line->listener, NULL, NULL);
    setsockopt(line->in, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    line->stalled = false;
    return 0;
}

static int closed(struct sim_line *line) {
    if (line->options->transport != SIM_TCP || line->options->once) {
        return CLOSED;
    }
    hang_up(line);
    return 0;
}

/* The bytes that have come by now at the line's rate. */
static uint32_t arrived(struct sim_line *line, uint32_t most) {
    if (line->baud == 0) {
        return most;
    }
    if (line->rx_free_us + byte_us(line, 1) > sim_now_us()) {
        sim_sleep_until(line->rx_free_us + byte_us(line, 1));
    }
    const uint64_t n = (sim_now_us() - line->rx_free_us) * line->baud / (BITS_PER_BYTE * 1000000);
    return n < 1 ? 1 : n < most ? (uint32_t)n : most;
}

static int receive(struct sim_line *line, uint32_t wait_ms) {
    uint8_t bytes[sizeof line->pending / 3];
    int ready = wait_readable(line, line->in, 0);
    if (ready == 0) {
        line->rx_free_us = sim_now_us();
        ready = wait_readable(line, line->in, wait_ms);
    }
    if (ready <= 0) {
        return ready;
    }
    const uint64_t left = line->options->reset_after - line->received;
    uint32_t most = arrived(line, sizeof bytes);
    if (line->options->reset_after > line->received && left < most) {
        most = (uint32_t)left;
    }
    const ssize_t n = read(line->in, bytes, most);
    if (n <= 0) {
        return n < 0 && (errno == EINTR || errno == EAGAIN) ? 0 : closed(line);
    }
    line->rx_free_us += byte_us(line, (uint64_t)n);
    line->received += (uint64_t)n;
    line->reset = line->received == line->options->reset_after;
    line->pending_at = line->pending_len = 0;
    for (ssize_t i = 0; i < n; ++i) {
        line->pending_len +=
            disturb(line, &line->options->rx, bytes[i], line->pending + line->pending_len);
    }
    return 0;
}

int sim_line_read(struct sim_line *line, void *dst, uint32_t len, uint32_t wait_ms) {
    if (line->pending_at == line->pending_len) {
        const int status = line->in < 0 ? wait_client(line, wait_ms) : receive(line, wait_ms);
        if (status < 0) {
            return status;
        }
    }
    uint32_t n = line->pending_len - line->pending_at;
    n = n < len ? n : len;
    memcpy(dst, line->pending + line->pending_at, n);
    line->pending_at += n;
    return (int)n;
}

/* ---- writing ---- */

static void send_all(struct sim_line *line, const uint8_t *bytes, size_t len) {
    while (len > 0 && line->out >= 0 && !*line->end) {
        struct pollfd waiting = {.fd = line->out, .events = POLLOUT};
        if (poll(&waiting, 1, line->stalled ? 0 : STALL_MS) <= 0) {
            line->stalled = true;
            return;
        }
        line->stalled = false;
        /* A pseudo-terminal or pipe that poll calls ready takes at least so many without blocking.
         */
        const ssize_t n = write(line->out, bytes, len < 256 ? len : 256);
        if (n < 0 && errno != EINTR && errno != EAGAIN) {
            return;
        }
        bytes += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
}

/* Bytes that leave together: those of a millisecond. */
static uint32_t write_step(const struct sim_line *line) {
    const uint32_t n = line->baud / (BITS_PER_BYTE * 1000);
    return line->baud == 0 || n > WRITE_BYTES ? WRITE_BYTES : n > 0 ? n : 1;
}

int sim_line_write(struct sim_line *line, const void *src, uint32_t len) {
    const uint8_t *bytes = src;
    uint8_t out[3 * WRITE_BYTES];
    while (len > 0) {
        const uint32_t most = write_step(line), part = len < most ? len : most;
        const uint64_t now = sim_now_us();
        uint32_t n = 0;
        for (uint32_t i = 0; i < part; ++i) {
            n += disturb(line, &line->options->tx, bytes[i], out + n);
        }
        if (now > line->tx_free_us + OVERSLEPT_US) {
            line->tx_free_us = now;
        }
        line->tx_free_us += byte_us(line, part);
        sim_sleep_until(line->tx_free_us);
        send_all(line, out, n);
        bytes += part;
        len -= part;
    }
    return 0;
}

int sim_line_set_baud(struct sim_line *line, uint32_t baud) {
    if (line->options->baud > 0) {
        line->baud = baud;
    }
    return 0;
}

/* What the ROM's boot messages look like at another rate. */
void sim_line_boot(struct sim_line *line) {
    line->baud = line->options->baud;
    line->pending_at = line->pending_len = 0;
    if (line->options->boot_noise) {
        uint8_t noise[BOOT_NOISE];
        for (uint32_t i = 0; i < BOOT_NOISE; ++i) {
            noise[i] = (uint8_t)sim_random(&line->random);
        }
        send_all(line, noise, sizeof noise);
    }
}

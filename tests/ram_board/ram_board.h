/* The board's program in this process: card in memory, line and clock of its own. Nothing sleeps.
 */
#ifndef RAM_BOARD_H
#define RAM_BOARD_H

#include "device.h"

#define RAM_BOARD_PAYLOAD 4335 /* more than the protocol allows */

/* Chances of a byte, as fractions of 2^32. A late byte comes up to 30 ms late, those behind it too.
 */
struct ram_noise {
    uint32_t drop, flip, duplicate, insert, late;
};

struct ram_faults {
    struct ram_noise to_board, from_board;
    uint32_t frames; /* chance that a frame has one damaged byte, in both directions */
    uint64_t seed;
    uint64_t reset_after; /* the board resets at this byte it gets; 0: never */
    bool boot_noise;      /* 256 random bytes before each boot */
    uint64_t read;        /* the card's read that fails, from 1; 0: none */
    uint32_t
        read_fault; /* 0 an error, 1 short by a byte, 2 one wrong bit, 3 the card is pulled out */
    bool for_ever;  /* all reads from that one on */
    uint32_t card_bytes; /* a file may have so many; 0: 64 MB */
};

struct ram_board;

/* NULL without memory. baud 0: the line takes no time. */
struct ram_board *ram_board_new(size_t fast_bytes, size_t bulk_bytes, uint32_t baud);
void ram_board_free(struct ram_board *board);
struct ram_faults *ram_board_faults(struct ram_board *board);
struct dev_port *ram_board_port(struct ram_board *board); /* to put other files behind it */

/* Power on. As dev_init. */
int ram_board_boot(struct ram_board *board);

/* What the host writes, at a rate of its own; waits while more than 4,096 bytes are on their way.
 */
void ram_board_send(struct ram_board *board, const uint8_t *bytes, uint32_t len, uint32_t baud);
/* The same for a request's frame, which takes no time. len is at most RAM_BOARD_PAYLOAD. */
void ram_board_request(struct ram_board *board, uint8_t type, uint8_t seq, const uint8_t *payload,
                       uint32_t len);
/* What has come back, waiting at most so long for the first byte. */
uint32_t ram_board_receive(struct ram_board *board, uint8_t *bytes, uint32_t len, uint64_t wait_us);
/* Lets the board run until it has taken all that was sent and waits for more. */
void ram_board_settle(struct ram_board *board);

uint64_t ram_board_clock_us(const struct ram_board *board);
uint64_t ram_board_reads(const struct ram_board *board);
uint32_t ram_board_boots(const struct ram_board *board);
/* Files that are open and that the program has forgotten. */
uint32_t ram_board_leaks(const struct ram_board *board);
/* The card's files: 0 or -1. */
int ram_board_put(struct ram_board *board, const char *path, const uint8_t *bytes, uint32_t len);
const uint8_t *ram_board_get(const struct ram_board *board, const char *path, uint32_t *len);
/* The n-th path, or NULL past the last. */
const char *ram_board_name(const struct ram_board *board, uint32_t n);

#endif

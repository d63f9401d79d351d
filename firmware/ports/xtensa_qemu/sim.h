/* The emulated machine: system calls, cycle counter, memory. */
#ifndef XQ_SIM_H
#define XQ_SIM_H

#include <stdint.h>

/* System calls of QEMU's Xtensa semihosting; files and errors are the host's. */
enum xq_call {
    XQ_EXIT = 1,
    XQ_READ = 3,
    XQ_WRITE = 4,
    XQ_OPEN = 5,
    XQ_CLOSE = 6,
    XQ_LSEEK = 19,
    XQ_SELECT_ONE = 29, /* file, 1 = to read, struct {int32_t s, us} * */
    XQ_ARGC = 1000,
    XQ_ARGV_SIZE = 1001,
    XQ_ARGV = 1002,
};
int32_t xq_simcall(int32_t call, uintptr_t a, uintptr_t b, uintptr_t c);

/* What -m gives the machine: beyond the end an access traps. */
#define XQ_BULK ((uint8_t *)0x60000000)

/* With `-icount shift=5` CCOUNT ticks 32 times for each 25 instructions. */
#define XQ_TICKS        32u
#define XQ_INSTRUCTIONS 25u
#define XQ_TICKS_PER_US 40u

static inline uint32_t xq_ccount(void) {
    uint32_t ticks;
    __asm__ volatile("rsr %0, ccount" : "=a"(ticks));
    return ticks;
}

void xq_print(const char *string);
void xq_print_number(uint64_t number);
_Noreturn void xq_exit(int32_t status);

/* The engine alone, counted: tokens of the package at `card`. Returns the exit status. */
int xq_count(const char *card, uint32_t tokens);

int xq_main(void);
_Noreturn void xq_trap(uint32_t cause, uint32_t pc, uint32_t address);

#endif

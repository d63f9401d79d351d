/*
 * The board's program on a bare Xtensa core.
 *   tllm-lx106 CARD                 boots; the line is standard input and output
 *   tllm-lx106 CARD --count TOKENS  counts the instructions that tokens take, stage by stage
 */
#include "board.h"
#include "sim.h"

#include <string.h>

#define ARGUMENTS      8
#define ARGUMENT_BYTES 512

static uint32_t argument_count;
static const char *arguments[ARGUMENTS];
static uint32_t argument_space[ARGUMENT_BYTES / 4]; /* pointers, then the strings they point to */

static void read_arguments(void) {
    uint32_t count = (uint32_t)xq_simcall(XQ_ARGC, 0, 0, 0);
    uint32_t bytes = (uint32_t)xq_simcall(XQ_ARGV_SIZE, 0, 0, 0);
    if (count > ARGUMENTS || bytes > sizeof argument_space) {
        xq_print("The arguments are too long; shorten the card's path.\n");
        xq_exit(2);
    }
    (void)xq_simcall(XQ_ARGV, (uintptr_t)argument_space, 0, 0);
    for (uint32_t i = 0; i < count; i++)
        arguments[i] = (const char *)(uintptr_t)argument_space[i];
    argument_count = count;
}

static uint32_t number(const char *digits) {
    uint32_t value = 0;
    for (; *digits >= '0' && *digits <= '9' && value < 100000; digits++)
        value = value * 10 + (uint32_t)(*digits - '0');
    return *digits ? 0 : value;
}

int xq_main(void) {
    read_arguments();
    if (argument_count == 2)
        return xq_serve(arguments[1]);
    if (argument_count == 4 && !strcmp(arguments[2], "--count") && number(arguments[3]))
        return xq_count(arguments[1], number(arguments[3]));
    xq_print("usage: tllm-lx106 CARD [--count TOKENS]\n");
    return 2;
}

void xq_print(const char *string) {
    (void)xq_simcall(XQ_WRITE, 1, (uintptr_t)string, strlen(string));
}

void xq_print_number(uint64_t number_) {
    char digits[21];
    uint32_t at = sizeof digits - 1;
    digits[at] = 0;
    do
        digits[--at] = (char)('0' + number_ % 10);
    while (number_ /= 10);
    xq_print(&digits[at]);
}

void xq_exit(int32_t status) {
    (void)xq_simcall(XQ_EXIT, (uintptr_t)status, 0, 0);
    for (;;)
        ;
}

void xq_trap(uint32_t cause, uint32_t pc, uint32_t address) {
    xq_print("\ntrap: cause ");
    xq_print_number(cause);
    xq_print(", pc ");
    xq_print_number(pc);
    xq_print(", address ");
    xq_print_number(address);
    xq_print("\n");
    xq_exit(3);
}

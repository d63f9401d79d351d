#include "tap.h"

#ifdef __XTENSA__
#include "sim.h"
#else
#include <stdio.h>
#endif

static uint32_t tests_run;

static void print(const char *text) {
#ifdef __XTENSA__
    xq_print(text);
#else
    fputs(text, stdout);
#endif
}

static void print_number(uint32_t number) {
    char digits[11];
    char *p = digits + sizeof digits;
    *--p = '\0';
    do {
        *--p = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    print(p);
}

void tap_plan(uint32_t n) {
    print("1..");
    print_number(n);
    print("\n");
}

void tap_ok(bool passed, const char *name) {
    print(passed ? "ok " : "not ok ");
    print_number(++tests_run);
    print(" - ");
    print(name);
    print("\n");
}

#ifdef __XTENSA__
int __wrap_xq_main(void); /* the linker puts it in the place of the port's */

int __wrap_xq_main(void) {
#else
int main(void) {
#endif
    run_tests();
    return 0; /* the runner reads the lines; PlatformIO shows a status of 1 as a signal */
}

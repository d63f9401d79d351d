/* Test Anything Protocol, on the host and on the emulated core. A test defines run_tests. */
#ifndef TAP_H
#define TAP_H

#include <stdbool.h>
#include <stdint.h>

/* Reports one result. */
void tap_ok(bool passed, const char *name);

/* Says how many results will follow; called first. */
void tap_plan(uint32_t n);

/* The test's own. */
void run_tests(void);

#endif

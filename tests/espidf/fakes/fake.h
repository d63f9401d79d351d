/*
 * ESP-IDF on a computer, as much as firmware/src uses of it. What a fake is to do wrong comes from
 * the environment (FAKE_*, listed in README.md); what happened goes to stderr, a line each.
 * Time is the fakes' own: it passes where every task waits.
 */
#ifndef FAKE_H
#define FAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_EXIT_RESTART  42
#define FAKE_EXIT_WATCHDOG 43
#define FAKE_EXIT_MISUSE   44

/* FAKE_<name> as a number. */
long fake_option(const char *name, long fallback);
const char *fake_text(const char *name);
/* The caller waits, and the other tasks go on; ends the program where the watchdog starved. */
void fake_pass_us(uint64_t us);
uint64_t fake_now_us(void);
/* Prints a line on stderr. */
void fake_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The firmware did what the real thing would crash or crawl on. */
void fake_misuse(const char *what) __attribute__((noreturn));
/* Prints what was counted, and ends. */
void fake_end(int code) __attribute__((noreturn));
void fake_card_report(void);
void fake_line_report(void);
/* The next read takes FAKE_STUCK_US more. */
void fake_card_sticks(void);

#endif

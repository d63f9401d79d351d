/* Counts the basic blocks that code built with -fsanitize-coverage=trace-pc runs through. */
#include <stdint.h>

void __sanitizer_cov_trace_pc(void);
uint64_t test_take_blocks(void);

static uint64_t blocks;

__attribute__((no_sanitize_coverage)) void __sanitizer_cov_trace_pc(void) {
    blocks++;
}

__attribute__((no_sanitize_coverage)) uint64_t test_take_blocks(void) {
    const uint64_t taken = blocks;
    blocks = 0;
    return taken;
}

/* What every target's compiler and helper routines must agree on, and refusals of damaged files. */
#include "tap.h"

#include "fixed.h"
#include "tinyllm.h"

static void test_crc32(void) {
    /* The check value of CRC-32/ISO-HDLC. */
    tap_ok(tllm_crc32(0, "123456789", 9) == 0xCBF43926u, "crc32 of the check string");
    uint32_t crc = tllm_crc32(0, "1234", 4);
    tap_ok(tllm_crc32(crc, "56789", 5) == 0xCBF43926u, "crc32 in two parts");
}

/* Ties go towards plus infinity, and a shift past the width leaves nothing. */
static void test_rounding(void) {
    tap_ok(tllm_rsr(5, 1) == 3, "2.5 rounds to 3");
    tap_ok(tllm_rsr(-5, 1) == -2, "-2.5 rounds to -2");
    tap_ok(tllm_rsr(-7, 2) == -2, "-1.75 rounds to -2");
    tap_ok(tllm_rsr(INT64_MAX, 63) == 0, "a shift by 63 leaves 0");
    tap_ok(tllm_asr(-1, 40) == -1, "a negative number shifts towards minus infinity");
    tap_ok(tllm_sat32((int64_t)1 << 40) == INT32_MAX, "saturation above");
    tap_ok(tllm_sat32(-((int64_t)1 << 40)) == -INT32_MAX, "saturation below");
}

/* The 64-bit helpers that lx106 lacks in hardware, through volatile so that nothing is folded. */
static void test_wide_arithmetic(void) {
    volatile int64_t a = -0x123456789ABCDEFLL;
    volatile int64_t b = 0x10001;
    tap_ok(a / b == -0x12344444567LL, "signed 64-bit division");
    tap_ok(a % b == a - (a / b) * b, "signed 64-bit remainder");
    volatile uint32_t c = 0xFFFFFFFFu;
    tap_ok((uint64_t)c * c == 0xFFFFFFFE00000001u, "32 by 32 to 64 bits");
}

/* A short or empty descriptor is an error, never a read past its end. */
static void test_refusals(void) {
    static const uint8_t zeros[64];
    static uint64_t storage[8];
    struct tllm_model model;
    tap_ok(tllm_descriptor_storage(zeros, 0) < 0, "an empty descriptor is refused");
    tap_ok(tllm_descriptor_storage(zeros, sizeof zeros) < 0, "a descriptor of zeros is refused");
    tap_ok(tllm_descriptor_parse(zeros, 3, &model, storage, sizeof storage) < 0,
           "a descriptor of 3 bytes is refused");
}

void run_tests(void) {
    tap_plan(15);
    test_crc32();
    test_rounding();
    test_wide_arithmetic();
    test_refusals();
}

/*
 * The integer helpers that this compiler calls and its libgcc for lx106 leaves to the chip's ROM.
 * Floating-point ones are left out on purpose: a float that slips in does not link.
 */
#include <stdint.h>

uint64_t __umulsidi3(uint32_t a, uint32_t b);
int64_t __mulsidi3(int32_t a, int32_t b);
int64_t __muldi3(int64_t a, int64_t b);
uint32_t __udivsi3(uint32_t a, uint32_t b);
uint32_t __umodsi3(uint32_t a, uint32_t b);
int32_t __divsi3(int32_t a, int32_t b);
int32_t __modsi3(int32_t a, int32_t b);
uint64_t __udivdi3(uint64_t a, uint64_t b);
uint64_t __umoddi3(uint64_t a, uint64_t b);
int64_t __divdi3(int64_t a, int64_t b);
int64_t __moddi3(int64_t a, int64_t b);

static uint64_t join(uint32_t high, uint32_t low) {
    union {
        struct {
            uint32_t low, high;
        } half;
        uint64_t whole;
    } u;
    u.half.low = low;
    u.half.high = high;
    return u.whole;
}

/* Schoolbook, in 16-bit digits: MULL gives the low 32 bits only. */
uint64_t __umulsidi3(uint32_t a, uint32_t b) {
    uint32_t al = a & 0xFFFF, ah = a >> 16, bl = b & 0xFFFF, bh = b >> 16;
    uint32_t low = al * bl;
    uint32_t middle = ah * bl + (low >> 16);
    uint32_t middle2 = al * bh + (middle & 0xFFFF);
    return join(ah * bh + (middle >> 16) + (middle2 >> 16), (middle2 << 16) | (low & 0xFFFF));
}

int64_t __mulsidi3(int32_t a, int32_t b) {
    uint64_t product = __umulsidi3((uint32_t)a, (uint32_t)b);
    uint32_t high = (uint32_t)(product >> 32);
    high -= (a < 0 ? (uint32_t)b : 0) + (b < 0 ? (uint32_t)a : 0);
    return (int64_t)join(high, (uint32_t)product);
}

int64_t __muldi3(int64_t a, int64_t b) {
    uint32_t al = (uint32_t)a, ah = (uint32_t)((uint64_t)a >> 32);
    uint32_t bl = (uint32_t)b, bh = (uint32_t)((uint64_t)b >> 32);
    uint64_t low = __umulsidi3(al, bl);
    return (int64_t)join((uint32_t)(low >> 32) + al * bh + ah * bl, (uint32_t)low);
}

/* Restoring division, a bit at a time. A zero divisor gives all ones, as many chips do. */
static uint32_t divide32(uint32_t a, uint32_t b, uint32_t *rest) {
    uint32_t quotient = 0, r = 0;
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t carry = r >> 31;
        r = (r << 1) | ((a >> bit) & 1u);
        if (carry || r >= b) {
            r -= b;
            quotient |= (uint32_t)1 << bit;
        }
    }
    *rest = r;
    return quotient;
}

static uint64_t divide64(uint64_t a, uint64_t b, uint64_t *rest) {
    uint64_t quotient = 0, r = 0;
    for (int bit = 63; bit >= 0; bit--) {
        uint32_t carry = (uint32_t)(r >> 63);
        r = (r << 1) | ((a >> bit) & 1u);
        if (carry || r >= b) {
            r -= b;
            quotient |= (uint64_t)1 << bit;
        }
    }
    *rest = r;
    return quotient;
}

static uint32_t abs32(int32_t v) {
    return v < 0 ? 0u - (uint32_t)v : (uint32_t)v;
}

static uint64_t abs64(int64_t v) {
    return v < 0 ? 0u - (uint64_t)v : (uint64_t)v;
}

uint32_t __udivsi3(uint32_t a, uint32_t b) {
    uint32_t rest;
    return divide32(a, b, &rest);
}

uint32_t __umodsi3(uint32_t a, uint32_t b) {
    uint32_t rest;
    (void)divide32(a, b, &rest);
    return rest;
}

int32_t __divsi3(int32_t a, int32_t b) {
    uint32_t quotient = __udivsi3(abs32(a), abs32(b));
    return (int32_t)((a ^ b) < 0 ? 0u - quotient : quotient);
}

int32_t __modsi3(int32_t a, int32_t b) {
    uint32_t rest = __umodsi3(abs32(a), abs32(b));
    return (int32_t)(a < 0 ? 0u - rest : rest);
}

uint64_t __udivdi3(uint64_t a, uint64_t b) {
    uint64_t rest;
    return divide64(a, b, &rest);
}

uint64_t __umoddi3(uint64_t a, uint64_t b) {
    uint64_t rest;
    (void)divide64(a, b, &rest);
    return rest;
}

int64_t __divdi3(int64_t a, int64_t b) {
    uint64_t quotient = __udivdi3(abs64(a), abs64(b));
    return (int64_t)((a ^ b) < 0 ? 0u - quotient : quotient);
}

int64_t __moddi3(int64_t a, int64_t b) {
    uint64_t rest = __umoddi3(abs64(a), abs64(b));
    return (int64_t)(a < 0 ? 0u - rest : rest);
}

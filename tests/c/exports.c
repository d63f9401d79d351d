/* The inline functions of fixed.h, for the tests to call. */
#include "fixed.h"

int64_t test_rsr(int64_t v, uint32_t n);
uint32_t test_bits32(uint32_t v);
uint32_t test_bits64(uint64_t v);
int32_t test_sat32(int64_t v);

int64_t test_rsr(int64_t v, uint32_t n) {
    return tllm_rsr(v, n);
}

uint32_t test_bits32(uint32_t v) {
    return tllm_bits32(v);
}

uint32_t test_bits64(uint64_t v) {
    return tllm_bits64(v);
}

int32_t test_sat32(int64_t v) {
    return tllm_sat32(v);
}

/*
 * To AddressSanitizer a region is one piece of memory, however many buffers lie in it. A test build
 * that defines TLLM_RED_ZONE, a multiple of 64, keeps so many bytes free behind each buffer, and
 * may touch only what was handed out. Of any other build this takes nothing.
 */
#ifndef TLLM_RED_ZONE_H
#define TLLM_RED_ZONE_H

#include <stddef.h>

#ifdef TLLM_RED_ZONE

void __asan_poison_memory_region(const volatile void *at, size_t bytes);
void __asan_unpoison_memory_region(const volatile void *at, size_t bytes);

#define tllm_fence(at, bytes)   __asan_poison_memory_region(at, bytes)
#define tllm_unfence(at, bytes) __asan_unpoison_memory_region(at, bytes)

#else

#define TLLM_RED_ZONE           0u
#define tllm_fence(at, bytes)   ((void)0)
#define tllm_unfence(at, bytes) ((void)0)

#endif

#endif

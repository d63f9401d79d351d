/* The two regions, one allocation each. */
#include "board.h"

#include "esp_heap_caps.h"
#include "esp_psram.h"

#define ALIGNMENT 64u
#define FAST_MOST (192u * 1024u)
#define FAST_LEAVE                                                                                 \
    (80u * 1024u) /* internal RAM for the line's buffer, the tasks, the card, FatFs */
#define STEP       MEMORY_LEAST
#define BULK_LEAVE (8u * 1024u)
#define SPREAD     0x9e3779b1u /* odd: no two words of a region are equal, all bits change */
#define INTERNAL   (MALLOC_CAP_INTERNAL | MALLOC_CAP_DMA)

static void *take(size_t largest, size_t leave, size_t most, uint32_t caps, size_t *bytes) {
    size_t size = largest > leave ? largest - leave : 0;
    if (size > most)
        size = most;
    size &= ~(size_t)(ALIGNMENT - 1);
    /* The allocator's own header and alignment may not fit beside what it calls free. */
    void *region = NULL;
    for (; size >= STEP; size -= STEP) {
        region = heap_caps_aligned_alloc(ALIGNMENT, size, caps);
        if (region)
            break;
    }
    *bytes = region ? size : 0;
    return region;
}

/* Writes all of it before reading any, so that most goes through the cache to the chip and back. */
static bool keeps_what_is_written(void *region, size_t bytes) {
    volatile uint32_t *words = region;
    const uint32_t count = (uint32_t)(bytes / sizeof *words);
    for (uint32_t i = 0; i < count; i++)
        words[i] = i * SPREAD;
    for (uint32_t i = 0; i < count; i++)
        if (words[i] != i * SPREAD)
            return false;
    return true;
}

int memory_take(struct memory *memory) {
    memory->psram_bytes = esp_psram_is_initialized() ? esp_psram_get_size() : 0;
    if (memory->psram_bytes == 0)
        return TLLM_E_BULK;
    const size_t largest = memory->fast_largest = heap_caps_get_largest_free_block(INTERNAL);
    const size_t free_bytes = heap_caps_get_free_size(INTERNAL);
    /* The driver's share may come out of another block than the largest. */
    const size_t others = free_bytes - largest;
    memory->fast = take(largest, others >= FAST_LEAVE ? ALIGNMENT : FAST_LEAVE - others, FAST_MOST,
                        INTERNAL, &memory->fast_bytes);
    if (!memory->fast)
        return TLLM_E_FAST;
    memory->bulk_largest = heap_caps_get_largest_free_block(MALLOC_CAP_SPIRAM);
    memory->bulk =
        take(memory->bulk_largest, BULK_LEAVE, SIZE_MAX, MALLOC_CAP_SPIRAM, &memory->bulk_bytes);
    if (!memory->bulk)
        return TLLM_E_BULK;
    memory->psram_fails = !keeps_what_is_written(memory->bulk, memory->bulk_bytes);
    return memory->psram_fails ? TLLM_E_BULK : 0;
}

/* Instructions a token and a stage, and bytes of memory: what tools/xtensa.py tabulates. */
#include "board.h"
#include "sim.h"

static const char *const stage_names[TLLM_STAGES] = {
    "embed",    "attn_norm", "q",  "k",   "v",       "attn",       "attn_out",
    "ffn_norm", "gate",      "up", "act", "ffn_out", "final_norm", "logits",
};

struct counts {
    uint32_t before; /* CCOUNT at the end of the stage before */
    uint64_t ticks[TLLM_STAGES];
};

static void on_stage(void *ctx, const struct tllm_activation *activation) {
    struct counts *counts = ctx;
    uint32_t now = xq_ccount();
    counts->ticks[activation->stage] += now - counts->before;
    counts->before = xq_ccount();
}

static void print_row(const char *name, uint64_t n) {
    xq_print(name);
    xq_print(" ");
    xq_print_number(n);
    xq_print("\n");
}

static uint64_t instructions(uint64_t ticks) {
    return ticks * XQ_INSTRUCTIONS / XQ_TICKS;
}

/* Multiplications of weights with activations in one token, its head included. */
static uint64_t macs(const struct tllm_model *model) {
    uint64_t sum = 0;
    for (uint32_t i = 1; i < model->n_tensors; i++)
        if (model->tensors[i].dtype == TLLM_INT8)
            sum += (uint64_t)model->tensors[i].rows * model->tensors[i].cols;
    return sum;
}

/* The stack's free part, from the end of the zeroed memory up to the frames in use (sim.ld). */
extern uint32_t __bss_end[], __stack_top[];
#define PAINT 0x5AFE57ACu
#define SPARE 256u /* bytes below this frame that are left alone */

static void paint_stack(void) {
    uintptr_t sp;
    __asm__ volatile("mov %0, sp" : "=a"(sp));
    const uintptr_t end = sp - SPARE;
    for (volatile uint32_t *word = __bss_end; (uintptr_t)word < end; word++)
        *word = PAINT;
}

static uint32_t stack_used(void) {
    const uint32_t *word = __bss_end;
    while ((uintptr_t)word < (uintptr_t)__stack_top && *word == PAINT)
        word++;
    return (uint32_t)((uintptr_t)__stack_top - (uintptr_t)word);
}

static void print_memory(const struct dev *dev) {
    const struct dev_memory *memory = &dev->memory;
    print_row("stack", stack_used());
    print_row("fast_engine", memory->fast_engine);
    print_row("fast_program", memory->fast_own);
    print_row("fast_free", memory->fast_free);
    print_row("bulk_engine", memory->bulk_engine);
    print_row("bulk_tokenizer", memory->tokenizer);
    print_row("bulk_weights", memory->resident);
    print_row("bulk_program",
              dev->bulk.used - memory->bulk_engine - memory->tokenizer - memory->resident);
    print_row("bulk_free", memory->bulk_free);
}

int xq_count(const char *card, uint32_t tokens) {
    static struct dev dev;
    struct counts counts = {0};
    struct tllm_trace trace = {&counts, on_stage};
    uint64_t all = 0;

    paint_stack();
    if (xq_boot(&dev, card) < 0 || !dev.model)
        return 1;
    dev.engine.trace = &trace;
    for (uint32_t i = 0; i < tokens; i++) {
        uint32_t token = i * 7 % dev.model->vocab;
        counts.before = xq_ccount();
        if (tllm_feed(&dev.engine, &token, 1, true) < 0)
            return 1;
    }
    xq_print("\ninstructions a token\n");
    for (uint32_t i = 0; i < TLLM_STAGES; i++) {
        print_row(stage_names[i], instructions(counts.ticks[i]) / tokens);
        all += counts.ticks[i];
    }
    print_row("token", instructions(all) / tokens);
    print_row("macs", macs(dev.model));
    xq_print("\nbytes\n");
    print_memory(&dev);
    return 0;
}

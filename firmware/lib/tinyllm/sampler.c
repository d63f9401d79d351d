#include "fixed.h"
#include "stream.h"

#define ONE_Q16         65536u
#define MIN_TEMPERATURE 655u
#define MAX_TEMPERATURE 6553600u
#define MAX_PENALTY     131072u
#define PENALTY_WINDOW  64u
#define YIELD_EACH      1024u /* tokens taken in order: some 50 ms where memory is slow */

uint32_t tllm_rng_next(struct tllm_rng *rng) {
    uint64_t z = rng->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) >> 32);
}

static void penalise(int32_t *logits, uint32_t penalty, const uint32_t *tokens, uint32_t n) {
    int64_t inverse = (int64_t)(((uint64_t)1 << 32) / penalty);
    for (uint32_t i = 0; i < n; i++) {
        bool seen = false;
        for (uint32_t j = 0; j < i; j++)
            seen = seen || tokens[j] == tokens[i];
        if (seen)
            continue;
        int64_t l = logits[tokens[i]];
        logits[tokens[i]] =
            l > 0 ? (int32_t)tllm_rsr(l * inverse, 16) : tllm_sat32(tllm_rsr(l * penalty, 16));
    }
}

static uint32_t greatest(const int32_t *logits, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* ---- probabilities ---- */

struct softmax {
    const int32_t *logits;
    int32_t greatest;            /* of the logits */
    int32_t shift;               /* from logits times LOG2E to log2 units in Q16 */
    int64_t inverse_temperature; /* Q16 */
};

/* 2^30 times the probability of a logit `gap` below the greatest over that of the greatest. */
static uint32_t mass_of_gap(const struct softmax *softmax, uint32_t gap) {
    int64_t z = tllm_scale_by((int64_t)gap * TLLM_LOG2E_M, softmax->shift);
    int64_t d = tllm_rsr(z * softmax->inverse_temperature, 16);
    return (uint32_t)tllm_exp2n(d > UINT32_MAX ? UINT32_MAX : (uint32_t)d);
}

static uint32_t gap_of(const struct softmax *softmax, uint32_t token) {
    return (uint32_t)softmax->greatest - (uint32_t)softmax->logits[token];
}

static uint32_t mass(const struct softmax *softmax, uint32_t token) {
    return mass_of_gap(softmax, gap_of(softmax, token));
}

/* The greatest gap that still has a mass above 0; mass falls as the gap grows. */
static uint32_t reach(const struct softmax *softmax) {
    uint32_t has = 0;
    for (uint32_t step = 1u << 31; step > 0; step >>= 1)
        if (mass_of_gap(softmax, has + step) > 0)
            has += step;
    return has;
}

/* ---- tokens in order: greater logits first, lower ids first on ties ---- */

/* A binary heap, the first in order on top. What was taken stays behind it, last taken first. */
struct order {
    struct tllm_engine *engine;
    const int32_t *logits;
    uint32_t *tokens;
    uint32_t held, total;
};

static bool before(const struct order *order, uint32_t a, uint32_t b) {
    int32_t la = order->logits[a], lb = order->logits[b];
    return la > lb || (la == lb && a < b);
}

static void sift_down(const struct order *order, uint32_t at) {
    uint32_t moving = order->tokens[at];
    for (uint32_t child; (child = 2 * at + 1) < order->held; at = child) {
        if (child + 1 < order->held &&
            before(order, order->tokens[child + 1], order->tokens[child]))
            child++;
        if (!before(order, order->tokens[child], moving))
            break;
        order->tokens[at] = order->tokens[child];
    }
    order->tokens[at] = moving;
}

/* Only tokens with a mass: the others come last, and neither a sum nor the draw sees them. */
static void order_start(struct order *order, const struct softmax *softmax, uint32_t vocab) {
    uint32_t gap = reach(softmax);
    order->held = 0;
    for (uint32_t token = 0; token < vocab; token++)
        if (gap_of(softmax, token) <= gap)
            order->tokens[order->held++] = token;
    order->total = order->held;
    for (uint32_t at = order->held / 2; at > 0; at--)
        sift_down(order, at - 1);
}

/* The token at a rank below order->total, taken from the heap when it has to be, or
 * TLLM_E_CANCELLED. */
static int32_t ranked(struct order *order, uint32_t rank) {
    while (order->total - order->held <= rank) {
        uint32_t top = order->tokens[0];
        if ((order->total - order->held) % YIELD_EACH == 0) {
            int error = tllm_yield(order->engine);
            if (error != TLLM_OK)
                return error;
        }
        order->tokens[0] = order->tokens[--order->held];
        order->tokens[order->held] = top;
        if (order->held > 0)
            sift_down(order, 0);
    }
    return (int32_t)order->tokens[order->total - 1 - rank];
}

/* ---- the draw ---- */

static int32_t draw(struct order *order, const struct softmax *softmax,
                    const struct tllm_sampling *sampling, struct tllm_rng *rng) {
    bool all = sampling->top_k == 0 || sampling->top_k >= order->total;
    uint32_t candidates = all ? order->total : sampling->top_k;
    uint64_t total = 0; /* at most 2^17 * 2^30 */
    for (uint32_t i = 0; i < candidates; i++) {
        int32_t token = all ? (int32_t)order->tokens[i] : ranked(order, i);
        if (token < 0)
            return token;
        total += mass(softmax, (uint32_t)token);
    }
    if (sampling->top_p < ONE_Q16) {
        uint64_t wanted = sampling->top_p * total, sum = 0;
        uint32_t n = 0;
        do {
            int32_t token = ranked(order, n++);
            if (token < 0)
                return token;
            sum += mass(softmax, (uint32_t)token);
        } while (sum * ONE_Q16 < wanted);
        candidates = n;
        total = sum;
    }
    uint64_t target = ((total >> 16) * tllm_rng_next(rng)) >> 16, sum = 0;
    for (uint32_t i = 0; i < candidates; i++) {
        int32_t token = ranked(order, i);
        if (token < 0)
            return token;
        sum += mass(softmax, (uint32_t)token);
        if (sum > target)
            return token;
    }
    return ranked(order, 0); /* never: target < total = sum */
}

static bool sampling_ok(const struct tllm_sampling *sampling) {
    return (sampling->temperature == 0 || (sampling->temperature >= MIN_TEMPERATURE &&
                                           sampling->temperature <= MAX_TEMPERATURE)) &&
           sampling->penalty >= ONE_Q16 && sampling->penalty <= MAX_PENALTY;
}

int32_t tllm_sample(struct tllm_engine *engine, const struct tllm_sampling *sampling,
                    struct tllm_rng *rng, const uint32_t *history, uint32_t n_history) {
    uint32_t vocab = engine->model->vocab;
    uint32_t window = n_history < PENALTY_WINDOW ? n_history : PENALTY_WINDOW;
    const uint32_t *recent = history + (n_history - window);
    if (!sampling_ok(sampling))
        return TLLM_E_ARG;
    if (sampling->penalty > ONE_Q16) {
        for (uint32_t i = 0; i < window; i++)
            if (recent[i] >= vocab)
                return TLLM_E_ARG;
        penalise(engine->logits, sampling->penalty, recent, window);
    }
    uint32_t best = greatest(engine->logits, vocab);
    if (sampling->temperature == 0)
        return (int32_t)best;
    const struct softmax softmax = {
        engine->logits,
        engine->logits[best],
        engine->logits_exponent + TLLM_LOG2E_E + 16,
        (int64_t)(((uint64_t)1 << 32) / sampling->temperature),
    };
    struct order order = {engine, engine->logits, engine->heap, 0, 0};
    order_start(&order, &softmax, vocab);
    return draw(&order, &softmax, sampling, rng);
}

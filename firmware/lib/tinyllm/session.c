#include <string.h>

#include "tinyllm.h"

void tllm_session_init(struct tllm_session *session, struct tllm_engine *engine, uint32_t *tokens,
                       uint8_t *turn_start) {
    memset(session, 0, sizeof *session);
    session->engine = engine;
    session->tokens = tokens;
    session->turn_start = turn_start;
    session->policy = TLLM_CONTEXT_STOP;
    session->sampling = (struct tllm_sampling){0, 0, 65536, 65536};
    tllm_session_reset(session);
}

void tllm_session_reset(struct tllm_session *session) {
    session->n = 0;
    tllm_rewind(session->engine, 0);
}

static bool starts_with_bos(const struct tllm_session *session) {
    int32_t bos = session->engine->model->bos;
    return session->n > 0 && bos >= 0 && session->tokens[0] == (uint32_t)bos;
}

/* Removes tokens [kept, to); what follows belongs to the turn that now begins at 0. */
static void remove_tokens(struct tllm_session *session, uint32_t kept, uint32_t to) {
    uint32_t rest = session->n - to;
    memmove(session->tokens + kept, session->tokens + to, rest * sizeof *session->tokens);
    memmove(session->turn_start + kept, session->turn_start + to, rest);
    session->n = kept + rest;
    if (session->n > kept)
        session->turn_start[kept] = 0;
    if (session->n > 0)
        session->turn_start[0] = 1;
}

/* Where the second turn begins, n if there is none. */
static uint32_t second_turn(const struct tllm_session *session) {
    uint32_t at = 1;
    while (at < session->n && session->turn_start[at] == 0)
        at++;
    return at;
}

/* The list becomes at most `most` tokens long, the oldest turns going first. */
static void drop(struct tllm_session *session, uint32_t most) {
    uint32_t kept = starts_with_bos(session) && most > 0 ? 1 : 0;
    while (session->n > most) {
        uint32_t second = second_turn(session);
        bool one_turn = second >= session->n;
        remove_tokens(session, kept, one_turn ? session->n - most + kept : second);
    }
    tllm_rewind(session->engine, 0);
}

int tllm_session_prompt(struct tllm_session *session, const uint32_t *tokens, uint32_t n) {
    const struct tllm_model *model = session->engine->model;
    uint32_t context = session->engine->context;
    uint32_t bos = session->n == 0 && model->add_bos ? 1 : 0;
    if (n > context - 1 || n + bos > context - 1)
        return TLLM_E_TOO_LONG;
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] >= model->vocab)
            return TLLM_E_ARG;
    if (n + bos == 0)
        return TLLM_OK;
    if (session->n + bos + n > context - 1) {
        if (session->policy == TLLM_CONTEXT_STOP)
            return TLLM_E_CONTEXT;
        drop(session, context - (n + bos + 1));
    }
    memset(session->turn_start + session->n, 0, bos + n);
    session->turn_start[session->n] = 1;
    if (bos != 0)
        session->tokens[session->n++] = (uint32_t)model->bos;
    for (uint32_t i = 0; i < n; i++)
        session->tokens[session->n++] = tokens[i];
    return TLLM_OK;
}

static bool is_stop(const struct tllm_model *model, int32_t token) {
    return token == model->eos || token == model->bos;
}

/* Room for one more token, or no more of the answer. */
static bool make_room(struct tllm_session *session) {
    uint32_t context = session->engine->context;
    if (session->n < context)
        return true;
    if (session->policy == TLLM_CONTEXT_STOP)
        return false;
    drop(session, context - (context < 4 ? 1 : context / 4));
    return session->n > 0;
}

int tllm_session_next(struct tllm_session *session, uint32_t *token, enum tllm_end *end) {
    struct tllm_engine *engine = session->engine;
    *end = TLLM_END_NONE;
    if (session->n == 0)
        return TLLM_E_ARG;
    if (!make_room(session)) {
        *end = TLLM_END_CONTEXT;
        return 0;
    }
    /* Logits are always of a fresh evaluation: sampling may have changed the last ones. */
    tllm_rewind(engine, session->n - 1);
    uint32_t evaluated = engine->n_past;
    int error = tllm_feed(engine, session->tokens + evaluated, session->n - evaluated, true);
    if (error == TLLM_E_CANCELLED) {
        *end = TLLM_END_CANCELLED;
        return 0;
    }
    if (error != TLLM_OK)
        return error;
    int32_t sampled =
        tllm_sample(engine, &session->sampling, &session->rng, session->tokens, session->n);
    if (sampled == TLLM_E_CANCELLED) {
        *end = TLLM_END_CANCELLED;
        return 0;
    }
    if (sampled < 0)
        return sampled;
    if (is_stop(engine->model, sampled)) {
        *end = TLLM_END_STOP_TOKEN;
        return 0;
    }
    *token = (uint32_t)sampled;
    session->turn_start[session->n] = 0;
    session->tokens[session->n++] = *token;
    return 1;
}

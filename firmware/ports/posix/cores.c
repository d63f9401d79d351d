/*
 * The second core: a thread that takes parts of the work side by side with the first.
 *
 * The engine hands over a few microseconds' worth at a time, which is less than waking a thread
 * takes. So the second core looks out for more work for a while before it sleeps, and the first
 * never waits for a part that nobody has begun: it does that itself.
 */
#define _POSIX_C_SOURCE 200809L
#include <sched.h>

#include "sim.h"

#define ROUNDS 200u /* of looking out; between two of them whoever else wants the CPU has it */
#define LOOKS  20u  /* a round */

/* Whether a counter differs from `from` by the end of looking out for it. */
static bool changes(atomic_uint *counter, unsigned from) {
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t look = 0; look < LOOKS; look++) {
            if (atomic_load(counter) != from) {
                return true;
            }
        }
        sched_yield();
    }
    return atomic_load(counter) != from;
}

static void wake(struct sim_cores *cores) {
    pthread_mutex_lock(&cores->lock);
    pthread_cond_broadcast(&cores->changed);
    pthread_mutex_unlock(&cores->lock);
}

/*
 * Does parts until none is left. Only a part that was taken tells that fn, arg and parts are this
 * job's: they change when all parts are done, and before the next are there to take.
 */
static void work(struct sim_cores *cores) {
    unsigned left = atomic_load(&cores->left);
    while (left > 0) {
        if (!atomic_compare_exchange_weak(&cores->left, &left, left - 1)) {
            continue;
        }
        cores->fn(cores->arg, left - 1, cores->parts);
        if (atomic_fetch_sub(&cores->undone, 1) == 1 && atomic_load(&cores->first_sleeps)) {
            wake(cores);
        }
        left = atomic_load(&cores->left);
    }
}

static void *second_core(void *arg) {
    struct sim_cores *cores = arg;
    while (!atomic_load(&cores->quit)) {
        if (changes(&cores->left, 0)) {
            work(cores);
            continue;
        }
        pthread_mutex_lock(&cores->lock);
        atomic_store(&cores->second_sleeps, true);
        while (atomic_load(&cores->left) == 0 && !atomic_load(&cores->quit)) {
            pthread_cond_wait(&cores->changed, &cores->lock);
        }
        atomic_store(&cores->second_sleeps, false);
        pthread_mutex_unlock(&cores->lock);
    }
    return NULL;
}

int sim_cores_start(struct sim_cores *cores) {
    atomic_init(&cores->left, 0);
    atomic_init(&cores->undone, 0);
    atomic_init(&cores->first_sleeps, false);
    atomic_init(&cores->second_sleeps, false);
    atomic_init(&cores->quit, false);
    pthread_mutex_init(&cores->lock, NULL);
    pthread_cond_init(&cores->changed, NULL);
    return pthread_create(&cores->thread, NULL, second_core, cores);
}

void sim_cores_end(struct sim_cores *cores) {
    atomic_store(&cores->quit, true);
    wake(cores);
    pthread_join(cores->thread, NULL);
}

void sim_cores_run(struct sim_cores *cores, void (*fn)(void *, uint32_t, uint32_t), void *arg,
                   uint32_t parts) {
    cores->fn = fn;
    cores->arg = arg;
    cores->parts = parts;
    atomic_store(&cores->undone, parts);
    atomic_store(&cores->left, parts);
    if (atomic_load(&cores->second_sleeps)) {
        wake(cores);
    }
    work(cores);
    /* What is not done now is the one part that the second core has begun. */
    if (atomic_load(&cores->undone) == 0 || changes(&cores->undone, 1)) {
        return;
    }
    pthread_mutex_lock(&cores->lock);
    atomic_store(&cores->first_sleeps, true);
    while (atomic_load(&cores->undone) > 0) {
        pthread_cond_wait(&cores->changed, &cores->lock);
    }
    atomic_store(&cores->first_sleeps, false);
    pthread_mutex_unlock(&cores->lock);
}

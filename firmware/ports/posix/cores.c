/* The second core: a thread that sleeps until there is work. */
#define _POSIX_C_SOURCE 200809L
#include "sim.h"

static void *second_core(void *arg) {
    struct sim_cores *cores = arg;
    pthread_mutex_lock(&cores->lock);
    while (cores->state != SIM_QUIT) {
        if (cores->state == SIM_REST) {
            pthread_cond_wait(&cores->changed, &cores->lock);
            continue;
        }
        pthread_mutex_unlock(&cores->lock);
        for (uint32_t part = 1; part < cores->parts; part += 2) {
            cores->fn(cores->arg, part, cores->parts);
        }
        pthread_mutex_lock(&cores->lock);
        cores->state = SIM_REST;
        pthread_cond_broadcast(&cores->changed);
    }
    pthread_mutex_unlock(&cores->lock);
    return NULL;
}

int sim_cores_start(struct sim_cores *cores) {
    cores->state = SIM_REST;
    pthread_mutex_init(&cores->lock, NULL);
    pthread_cond_init(&cores->changed, NULL);
    return pthread_create(&cores->thread, NULL, second_core, cores);
}

void sim_cores_end(struct sim_cores *cores) {
    pthread_mutex_lock(&cores->lock);
    cores->state = SIM_QUIT;
    pthread_cond_broadcast(&cores->changed);
    pthread_mutex_unlock(&cores->lock);
    pthread_join(cores->thread, NULL);
}

void sim_cores_run(struct sim_cores *cores, void (*fn)(void *, uint32_t, uint32_t), void *arg,
                   uint32_t parts) {
    pthread_mutex_lock(&cores->lock);
    cores->fn = fn;
    cores->arg = arg;
    cores->parts = parts;
    cores->state = SIM_WORK;
    pthread_cond_broadcast(&cores->changed);
    pthread_mutex_unlock(&cores->lock);
    for (uint32_t part = 0; part < parts; part += 2) {
        fn(arg, part, parts);
    }
    pthread_mutex_lock(&cores->lock);
    while (cores->state == SIM_WORK) {
        pthread_cond_wait(&cores->changed, &cores->lock);
    }
    pthread_mutex_unlock(&cores->lock);
}

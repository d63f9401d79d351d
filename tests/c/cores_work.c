/*
 * Jobs for the simulator's two cores: every part must be done once, by whichever core. Some jobs
 * begin when the second core sleeps; in most the first waits until the second does a part too, in
 * some of these that lasts until the first sleeps. Where a core is not woken, this never ends.
 */
#include <sched.h>
#include <stdio.h>

#include "sim.h"

#define JOBS  3000u
#define PARTS 40u

struct job {
    struct sim_cores *cores;
    pthread_t first;
    bool together, slow;
    atomic_bool shared;
    uint32_t done[PARTS];
};

static void wait_for(atomic_bool *flag) {
    while (!atomic_load(flag))
        sched_yield();
}

static void part_of(void *arg, uint32_t part, uint32_t parts) {
    struct job *job = arg;
    bool second = !pthread_equal(pthread_self(), job->first);
    job->done[part] += parts;
    if (second)
        atomic_store(&job->shared, true);
    else if (job->together)
        wait_for(&job->shared);
    if (second && job->slow)
        wait_for(&job->cores->first_sleeps);
}

static bool all_done_once(const struct job *job, uint32_t parts) {
    for (uint32_t part = 0; part < PARTS; part++)
        if (job->done[part] != (part < parts ? parts : 0))
            return false;
    return true;
}

int main(void) {
    struct sim_cores cores = {0};
    if (sim_cores_start(&cores) != 0)
        return 2;
    for (uint32_t i = 0; i < JOBS; i++) {
        uint32_t parts = 1 + i % PARTS;
        struct job job = {.cores = &cores, .first = pthread_self()};
        job.together = parts > 1 && i % 3 != 0;
        job.slow = job.together && i % 5 == 0;
        if (i % 7 == 0)
            wait_for(&cores.second_sleeps);
        sim_cores_run(&cores, part_of, &job, parts);
        if (!all_done_once(&job, parts)) {
            printf("job %u: not every part of %u was done once\n", i, parts);
            return 1;
        }
    }
    sim_cores_end(&cores);
    printf("%u jobs\n", JOBS);
    return 0;
}

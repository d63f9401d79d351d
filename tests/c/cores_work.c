/*
 * Jobs for the simulator's two cores: every part must be done once, by whichever core. Some jobs
 * begin when the second core sleeps; in some the first falls asleep over a part of the second's.
 */
#include <sched.h>
#include <stdio.h>

#include "sim.h"

#define JOBS 3000u

struct job {
    struct sim_cores *cores;
    pthread_t first;
    bool slow;
    uint32_t done[8];
    uint32_t by_second;
};

static void part_of(void *arg, uint32_t part, uint32_t parts) {
    struct job *job = arg;
    bool second = !pthread_equal(pthread_self(), job->first);
    job->done[part] += parts;
    if (second)
        job->by_second = 1;
    while (second && job->slow && !atomic_load(&job->cores->first_sleeps))
        sched_yield();
}

static int run(struct sim_cores *cores, uint32_t *by_second) {
    for (uint32_t i = 0; i < JOBS; i++) {
        uint32_t parts = 1 + i % 8;
        struct job job = {cores, pthread_self(), i % 5 == 0, {0}, 0};
        while (i % 7 == 0 && !atomic_load(&cores->second_sleeps))
            sched_yield();
        sim_cores_run(cores, part_of, &job, parts);
        for (uint32_t part = 0; part < 8; part++)
            if (job.done[part] != (part < parts ? parts : 0)) {
                printf("job %u: part %u of %u came to %u\n", i, part, parts, job.done[part]);
                return 1;
            }
        *by_second += job.by_second;
    }
    return 0;
}

int main(void) {
    struct sim_cores cores = {0};
    uint32_t by_second = 0;
    if (sim_cores_start(&cores) != 0 || run(&cores, &by_second) != 0)
        return 1;
    sim_cores_end(&cores);
    printf("%u jobs, %s\n", JOBS, by_second > 0 ? "shared" : "not shared");
    return 0;
}

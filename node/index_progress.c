/* See index_progress.h. */
#include "node/index_progress.h"

#include <string.h>

#define SHARE_TELLS 0.02 /* done, before what is left is worth telling */

/* In the order of a build (storage/segment/segment_build.c, storage/index/sealed_build.c), by about what each took of
 * building 150,000 rows of 128 dimensions in one thread. Phases that come twice are here twice. */
static const struct {
    const char *phase;
    double share;
} PHASES[] = {
    { "rows", 0.03 },
    { "reduce", 0.02 },
    { "encode", 0.01 },
    { "partition", 0.02 },
    { "multiply", 0.06 },
    { "partition", 0.01 },
    { "multiply", 0.07 },
    { "prune", 0.03 },
    { "reverse", 0.01 },
    { "prune again", 0.07 },
    { "rotate", 0.02 },
    { "encode codes", 0.01 },
    { "pack", 0.05 },
    { "refine", 0.25 },
    { "reverse", 0.01 },
    { "prune again", 0.05 },
    { "pack again", 0.04 },
    { "truth", 0.08 },
    { "calibrate", 0.08 },
    { "payload", 0.08 },
};
#define PHASE_COUNT ((uint32_t)(sizeof PHASES / sizeof *PHASES))

void index_progress_init(struct index_progress *progress)
{
    *progress = (struct index_progress){ .running = false };
    pthread_mutex_init(&progress->lock, NULL);
}

void index_progress_fini(struct index_progress *progress) { pthread_mutex_destroy(&progress->lock); }

/* Needs the lock. */
static void segment_begins(struct index_progress *progress, uint64_t rows, uint64_t now_ns)
{
    progress->step = 0;
    progress->share = 0;
    progress->rows = rows;
    progress->began_ns = now_ns;
}

void index_progress_begin(struct index_progress *progress, uint64_t now_ns)
{
    pthread_mutex_lock(&progress->lock);
    progress->running = true;
    progress->phase = NULL;
    segment_begins(progress, 0, now_ns);
    pthread_mutex_unlock(&progress->lock);
}

/* Where the phase stands from the step on that was reached; PHASE_COUNT: nowhere, it is passed over. */
static uint32_t step_of(const struct index_progress *progress, const char *phase)
{
    for (uint32_t i = progress->step; i < PHASE_COUNT; i++)
        if (strcmp(PHASES[i].phase, phase) == 0) return i;
    return PHASE_COUNT;
}

void index_progress_told(struct index_progress *progress, const char *phase, uint64_t done, uint64_t total,
        uint64_t now_ns)
{
    pthread_mutex_lock(&progress->lock);
    if (done == 0 && strcmp(phase, PHASES[0].phase) == 0) segment_begins(progress, total, now_ns);
    uint32_t step = step_of(progress, phase);
    progress->phase = phase;
    if (step < PHASE_COUNT) {
        double share = total == 0 || done > total ? 0 : PHASES[step].share * (double)done / (double)total;
        for (uint32_t i = 0; i < step; i++) share += PHASES[i].share;
        if (share > progress->share) progress->share = share;
        progress->step = step;
    }
    pthread_mutex_unlock(&progress->lock);
}

void index_progress_end(struct index_progress *progress)
{
    pthread_mutex_lock(&progress->lock);
    progress->running = false;
    pthread_mutex_unlock(&progress->lock);
}

void index_progress_read(struct index_progress *progress, uint64_t now_ns, struct index_work *work_out)
{
    pthread_mutex_lock(&progress->lock);
    double seconds = now_ns > progress->began_ns ? (double)(now_ns - progress->began_ns) / 1e9 : 0;
    double share = progress->share;
    *work_out = (struct index_work){ .running = progress->running && progress->phase != NULL,
        .phase = progress->phase,
        .rows = progress->rows,
        .percent = 100 * share,
        .seconds = seconds,
        .seconds_left = share < SHARE_TELLS ? -1 : seconds * (1 - share) / share };
    pthread_mutex_unlock(&progress->lock);
    if (!work_out->running) *work_out = (struct index_work){ .running = false };
}

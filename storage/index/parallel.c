/* Loops by several threads; see parallel.h. */
#include "storage/index/parallel.h"

#include <pthread.h>
#include <stdatomic.h>

struct loop {
    const struct index_control *control;
    const char *phase;
    uint32_t count, grain;
    parallel_fn *fn;
    void *arg;
    atomic_uint next;
    atomic_int failed; /* enum omen_err */
};

struct worker {
    pthread_t thread;
    struct loop *loop;
    uint32_t number;
};

static void work(struct loop *loop, uint32_t number)
{
    const struct index_control *control = loop->control;
    for (;;) {
        uint32_t first = atomic_fetch_add(&loop->next, loop->grain);
        if (first >= loop->count || atomic_load(&loop->failed) != OMEN_OK) return;
        uint32_t end = loop->count - first < loop->grain ? loop->count : first + loop->grain;
        if (number == 0 && control->progress != NULL)
            control->progress(control->arg, loop->phase, first, loop->count);
        if (number == 0 && control->stop != NULL && control->stop(control->arg))
            atomic_store(&loop->failed, OMEN_ECANCELED);
        else if (!loop->fn(loop->arg, number, first, end))
            atomic_store(&loop->failed, OMEN_ENOMEM);
    }
}

static void *worker_run(void *arg)
{
    struct worker *worker = arg;
    work(worker->loop, worker->number);
    return NULL;
}

enum omen_err parallel_for(const struct index_control *control, const char *phase, uint32_t count,
        uint32_t grain, parallel_fn *fn, void *arg)
{
    struct loop loop = { .control = control,
        .phase = phase,
        .count = count,
        .grain = grain,
        .fn = fn,
        .arg = arg };
    struct worker workers[INDEX_THREADS_MAX];
    uint32_t threads = parallel_threads(control), started = 1;
    for (; started < threads; started++) {
        workers[started] = (struct worker){ .loop = &loop, .number = started };
        if (pthread_create(&workers[started].thread, NULL, worker_run, &workers[started]) != 0) break;
    }
    work(&loop, 0);
    for (uint32_t t = 1; t < started; t++) pthread_join(workers[t].thread, NULL);
    return (enum omen_err)atomic_load(&loop.failed);
}

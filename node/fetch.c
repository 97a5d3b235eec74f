/* Threads of the fetcher, and which node is asked when. See fetch.h; fetch_pull.c brings the files. */
#include "common/err.h"

#include "node/fetch.h"

#include <time.h>

#include "common/check.h"
#include "common/log.h"
#include "common/placement/map.h"

struct fetcher {
    struct vfs *vfs;
    struct clock *clock;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t wake;  /* monotonic clock */
    pthread_cond_t idle;  /* a task ended */
    struct fetch_task *tasks;
    struct rate rate;
    bool stop;
    pthread_t threads[FETCH_THREADS];
    uint32_t thread_count;
};

/* ---- tasks ---- */

static void wait_ns(struct fetcher *f, uint64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    ns += (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(ns / 1000000000);
    until.tv_nsec = (long)(ns % 1000000000);
    pthread_cond_timedwait(&f->wake, &f->lock, &until);
}

/* The task that is due first, if it is due; else waits and answers NULL. */
static struct fetch_task *task_take(struct fetcher *f)
{
    struct fetch_task **first = NULL;
    for (struct fetch_task **link = &f->tasks; *link != NULL; link = &(*link)->next) {
        if ((*link)->running) continue; /* posted again by its own run, which has not returned yet */
        if (first == NULL || (*link)->due_ns < (*first)->due_ns) first = link;
    }
    if (first == NULL) {
        pthread_cond_wait(&f->wake, &f->lock);
        return NULL;
    }
    uint64_t now = clock_monotonic_ns(f->clock);
    if ((*first)->due_ns > now) {
        wait_ns(f, (*first)->due_ns - now);
        return NULL;
    }
    struct fetch_task *task = *first;
    *first = task->next;
    task->queued = false;
    task->running = true;
    return task;
}

static void *fetcher_main(void *arg)
{
    struct fetcher *f = arg;
    pthread_setname_np(pthread_self(), "omen-fetch");
    pthread_mutex_lock(&f->lock);
    while (!f->stop) {
        struct fetch_task *task = task_take(f);
        if (task == NULL) continue;
        pthread_mutex_unlock(&f->lock);
        task->run(task);
        pthread_mutex_lock(&f->lock);
        task->running = false;
        pthread_cond_broadcast(&f->idle);
        pthread_cond_signal(&f->wake); /* it may have been posted again meanwhile */
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

void fetch_post(struct fetcher *f, struct fetch_task *task, uint32_t delay_ms)
{
    uint64_t due_ns = clock_monotonic_ns(f->clock) + delay_ms * 1000000ull;
    pthread_mutex_lock(&f->lock);
    if (!task->queued) {
        task->queued = true;
        task->due_ns = due_ns;
        task->next = f->tasks;
        f->tasks = task;
        pthread_cond_signal(&f->wake);
    }
    pthread_mutex_unlock(&f->lock);
}

void fetch_withdraw(struct fetcher *f, struct fetch_task *task)
{
    pthread_mutex_lock(&f->lock);
    while (task->queued || task->running) {
        for (struct fetch_task **link = &f->tasks; task->queued && *link != NULL; link = &(*link)->next) {
            if (*link != task) continue;
            *link = task->next;
            task->queued = false;
            break;
        }
        if (task->running) pthread_cond_wait(&f->idle, &f->lock);
    }
    pthread_mutex_unlock(&f->lock);
}

enum omen_err fetcher_start(struct vfs *vfs, struct clock *clock, struct fetcher **fetcher_out,
        struct err *err)
{
    struct fetcher *f = mem_must_calloc(1, sizeof *f);
    f->vfs = vfs;
    f->clock = clock;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->wake, &attr);
    pthread_cond_init(&f->idle, NULL);
    pthread_condattr_destroy(&attr);
    int rc = 0;
    while (rc == 0 && f->thread_count < FETCH_THREADS) {
        rc = pthread_create(&f->threads[f->thread_count], NULL, fetcher_main, f);
        if (rc == 0) f->thread_count++;
    }
    *fetcher_out = rc == 0 ? f : NULL;
    if (rc == 0) return OMEN_OK;
    fetcher_stop(f);
    return err_os(err, rc, "start a thread for", "the fetcher of checkpoints");
}

void fetcher_stop(struct fetcher *f)
{
    if (f == NULL) return;
    pthread_mutex_lock(&f->lock);
    CHECK(f->tasks == NULL);
    f->stop = true;
    pthread_cond_broadcast(&f->wake);
    pthread_mutex_unlock(&f->lock);
    for (uint32_t i = 0; i < f->thread_count; i++) pthread_join(f->threads[i], NULL);
    pthread_cond_destroy(&f->idle);
    pthread_cond_destroy(&f->wake);
    pthread_mutex_destroy(&f->lock);
    mem_free(f);
}

/* ---- a fetch ---- */

static uint64_t rate_at(struct fetch *fetch, uint32_t bytes)
{
    struct fetcher *f = fetch->fetcher;
    uint64_t throttle = fetch->throttle != NULL ? fetch->throttle(fetch->arg) : 0;
    pthread_mutex_lock(&f->lock);
    uint64_t at = rate_take(&f->rate, clock_monotonic_ns(f->clock), bytes, throttle);
    pthread_mutex_unlock(&f->lock);
    return at;
}

static uint32_t candidates(struct fetch *fetch, uint32_t nodes[FETCH_CANDIDATES_MAX + 1])
{
    uint32_t others[FETCH_CANDIDATES_MAX], count = 0;
    uint32_t other_count = fetch->candidates(fetch->arg, others);
    if (fetch->node_id != 0) nodes[count++] = fetch->node_id;
    for (uint32_t i = 0; i < other_count; i++)
        if (others[i] != fetch->node_id) nodes[count++] = others[i];
    return count;
}

static enum omen_err attempt(struct fetch *fetch, uint32_t node_id, struct buf *description, struct err *err)
{
    char url[OMEN_ADDRESS_BYTES_MAX + 1];
    struct fetcher *f = fetch->fetcher;
    if (!fetch->address(fetch->arg, node_id, url))
        return err_set(err, OMEN_EUNAVAILABLE, "", "the address of node %u is not known", node_id);
    struct fetch_pull pull = { fetch, f->vfs, f->clock, rate_at, url, fetch->sequence };
    uint64_t began = clock_monotonic_ns(f->clock);
    enum omen_err rc = fetch_pull(&pull, description, err);
    if (rc == OMEN_OK)
        LOG_INFO("fetch.done", "group=%llu node=%u bytes=%llu ms=%llu", (unsigned long long)fetch->group,
                node_id, (unsigned long long)atomic_load(&fetch->done_bytes),
                (unsigned long long)((clock_monotonic_ns(f->clock) - began) / 1000000));
    else if (rc != OMEN_ECANCELED)
        LOG_WARN("fetch.failed", "group=%llu node=%u error=%s message=\"%s\"",
                (unsigned long long)fetch->group, node_id, err_name(rc), err->message);
    return rc;
}

static void fetch_run(struct fetch_task *task)
{
    struct fetch *fetch = (struct fetch *)((char *)task - offsetof(struct fetch, task));
    uint32_t nodes[FETCH_CANDIDATES_MAX + 1], count;
    struct buf description;
    struct err err = { 0 };
    buf_init(&description);
    enum omen_err rc = fetch->here(fetch->arg, fetch->sequence, &description);
    if (rc != OMEN_OK) {
        rc = err_set(&err, OMEN_EUNAVAILABLE, "", "no other replica is known");
        count = candidates(fetch, nodes);
        for (uint32_t i = 0; rc != OMEN_OK && i < count && !atomic_load(&fetch->cancel); i++) {
            buf_clear(&description);
            rc = attempt(fetch, nodes[i], &description, &err);
        }
    }
    atomic_store(&fetch->done_bytes, 0);
    atomic_store(&fetch->total_bytes, 0);
    if (atomic_load(&fetch->cancel)) {
        buf_fini(&description);
        return;
    }
    if (rc != OMEN_OK && fetch->pauses < FETCH_ROUNDS_MAX) {
        fetch_post(fetch->fetcher, task, FETCH_PAUSE_MS << fetch->pauses++);
    } else {
        fetch->ended(fetch->arg, rc, (struct bytes){ description.data, description.len }, &err);
    }
    buf_fini(&description);
}

void fetch_begin(struct fetch *fetch, uint64_t sequence, uint32_t node_id)
{
    fetch->sequence = sequence;
    fetch->node_id = node_id;
    fetch->pauses = 0;
    fetch->task.run = fetch_run;
    fetch_post(fetch->fetcher, &fetch->task, 0);
}

void fetch_cancel(struct fetch *fetch)
{
    if (fetch->fetcher == NULL) return;
    atomic_store(&fetch->cancel, true);
    fetch_withdraw(fetch->fetcher, &fetch->task);
}

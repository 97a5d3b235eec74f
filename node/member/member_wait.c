/* Waiting for what a replica answers by a callback. Who waits may give up before the answer comes: the memory belongs to
 * both, and goes with the last of them. */
#include "common/err.h"

#include <errno.h>
#include <time.h>

#include "common/check.h"
#include "node/member/member_impl.h"

struct waiter *waiter_new(void)
{
    struct waiter *w = mem_must_calloc(1, sizeof *w);
    atomic_init(&w->refs, 2);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->done, &attr);
    pthread_condattr_destroy(&attr);
    return w;
}

void waiter_unref(struct waiter *w)
{
    if (atomic_fetch_sub(&w->refs, 1) > 1) return;
    pthread_cond_destroy(&w->done);
    pthread_mutex_destroy(&w->mutex);
    mem_free(w);
}

void waiter_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    struct waiter *w = arg;
    pthread_mutex_lock(&w->mutex);
    w->finished = true;
    w->result = result;
    if (result != OMEN_OK && err != NULL) w->err = *err;
    pthread_cond_signal(&w->done);
    pthread_mutex_unlock(&w->mutex);
    waiter_unref(w);
}

bool waiter_wait(struct waiter *w, uint32_t ms, enum omen_err *result_out, struct err *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(ms % 1000) * 1000000L;
    until.tv_sec += ms / 1000 + until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&w->mutex);
    int rc = 0;
    while (!w->finished && rc != ETIMEDOUT) rc = pthread_cond_timedwait(&w->done, &w->mutex, &until);
    bool finished = w->finished;
    if (finished) {
        *result_out = w->result;
        if (w->result != OMEN_OK) *err = w->err;
    }
    pthread_mutex_unlock(&w->mutex);
    return finished;
}

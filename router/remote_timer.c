/* Timers for hedges, retries and polls: a binary heap and one thread. Most hedge timers are cancelled before they fire, so
 * arming and cancelling is what must be cheap: one lock, a few moves. */
#include "common/err.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "common/check.h"
#include "router/remote_impl.h"

static void heap_put(struct remote_timers *t, uint32_t slot, struct remote_timer *timer)
{
    t->heap[slot] = timer;
    timer->slot = slot;
}

static void heap_up(struct remote_timers *t, uint32_t slot)
{
    struct remote_timer *timer = t->heap[slot];
    for (; slot > 1 && t->heap[slot / 2]->due_ns > timer->due_ns; slot /= 2)
        heap_put(t, slot, t->heap[slot / 2]);
    heap_put(t, slot, timer);
}

static void heap_down(struct remote_timers *t, uint32_t slot)
{
    struct remote_timer *timer = t->heap[slot];
    for (;;) {
        uint32_t child = 2 * slot;
        if (child > t->count) break;
        if (child < t->count && t->heap[child + 1]->due_ns < t->heap[child]->due_ns) child++;
        if (t->heap[child]->due_ns >= timer->due_ns) break;
        heap_put(t, slot, t->heap[child]);
        slot = child;
    }
    heap_put(t, slot, timer);
}

/* Needs the lock; the timer is armed. */
static void heap_remove(struct remote_timers *t, struct remote_timer *timer)
{
    uint32_t slot = timer->slot;
    CHECK(slot >= 1 && slot <= t->count && t->heap[slot] == timer);
    struct remote_timer *last = t->heap[t->count--];
    timer->slot = 0;
    if (last == timer) return;
    heap_put(t, slot, last);
    heap_up(t, slot);
    heap_down(t, last->slot);
}

void remote_timer_arm(struct remote_timers *t, struct remote_timer *timer, uint64_t due_ns)
{
    pthread_mutex_lock(&t->lock);
    CHECK(timer->slot == 0);
    timer->due_ns = due_ns;
    if (t->count == t->capacity) {
        t->capacity = t->capacity == 0 ? 64 : 2 * t->capacity;
        t->heap = mem_must_realloc(t->heap, (t->capacity + 1) * sizeof *t->heap);
    }
    t->heap[++t->count] = timer;
    timer->slot = t->count;
    heap_up(t, t->count);
    bool first = t->heap[1] == timer;
    pthread_mutex_unlock(&t->lock);
    if (first) pthread_cond_signal(&t->wake);
}

bool remote_timer_cancel(struct remote_timers *t, struct remote_timer *timer)
{
    pthread_mutex_lock(&t->lock);
    bool armed = timer->slot != 0;
    if (armed) heap_remove(t, timer);
    pthread_mutex_unlock(&t->lock);
    return armed;
}

static void *timers_main(void *arg)
{
    struct remote_timers *t = arg;
    pthread_setname_np(pthread_self(), "omen-timers");
    pthread_mutex_lock(&t->lock);
    while (!t->stop) {
        if (t->count == 0) {
            pthread_cond_wait(&t->wake, &t->lock);
            continue;
        }
        struct remote_timer *timer = t->heap[1];
        if (clock_monotonic_ns(t->clock) < timer->due_ns) {
            struct timespec until = { (time_t)(timer->due_ns / 1000000000u),
                (long)(timer->due_ns % 1000000000u) };
            (void)pthread_cond_timedwait(&t->wake, &t->lock, &until);
            continue;
        }
        heap_remove(t, timer);
        pthread_mutex_unlock(&t->lock);
        timer->fire(timer);
        pthread_mutex_lock(&t->lock);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

enum omen_err remote_timers_start(struct remote_timers *t, struct clock *clock, struct err *err)
{
    memset(t, 0, sizeof *t);
    t->clock = clock;
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->wake, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&t->thread, NULL, timers_main, t);
    return rc == 0 ? OMEN_OK : err_os(err, rc, "start a thread for", "timers");
}

void remote_timers_stop(struct remote_timers *t)
{
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    mem_free(t->heap);
}

/* See room_keeper.h. One list, few shards on it: those that run low and those that found the disk full. */
#include "common/err.h"

#include "node/room_keeper.h"

#include <pthread.h>
#include <time.h>

#include "common/check.h"
#include "common/mem.h"

struct room_keeper {
    bool (*make)(struct shard_host *shard);
    pthread_mutex_t mutex;
    pthread_cond_t wake, idle; /* monotonic clock; idle: the work on `busy` ended */
    struct room_ticket *head;
    struct room_ticket *busy;
    bool stop;
    pthread_t thread;
};

/* The first that is not to wait, off the list. */
static struct room_ticket *ticket_take(struct room_keeper *k)
{
    for (struct room_ticket **link = &k->head; *link != NULL; link = &(*link)->next) {
        struct room_ticket *t = *link;
        if (!t->soon) continue;
        *link = t->next;
        t->queued = t->soon = false;
        return t;
    }
    return NULL;
}

static void ticket_put(struct room_keeper *k, struct room_ticket *t)
{
    if (t->queued) return;
    t->queued = true;
    t->next = k->head;
    k->head = t;
}

/* One ticket's work; the mutex is let go meanwhile. */
static void ticket_run(struct room_keeper *k, struct room_ticket *t)
{
    k->busy = t;
    pthread_mutex_unlock(&k->mutex);
    bool again = k->make(t->shard);
    pthread_mutex_lock(&k->mutex);
    k->busy = NULL;
    if (again) ticket_put(k, t);
    pthread_cond_broadcast(&k->idle);
}

static void retry_time(struct timespec *until)
{
    clock_gettime(CLOCK_MONOTONIC, until);
    until->tv_nsec += ROOM_RETRY_MS * 1000000L;
    if (until->tv_nsec < 1000000000L) return;
    until->tv_nsec -= 1000000000L;
    until->tv_sec++;
}

/* Everything that waits for the next try, once each: what is put back meanwhile waits for the one after. */
static void retry_all(struct room_keeper *k)
{
    for (struct room_ticket *t = k->head; t != NULL; t = t->next) t->soon = true;
}

static void *keeper_main(void *arg)
{
    struct room_keeper *k = arg;
    struct timespec until;
    pthread_setname_np(pthread_self(), "omen-room");
    pthread_mutex_lock(&k->mutex);
    retry_time(&until);
    while (!k->stop) {
        struct room_ticket *t = ticket_take(k);
        if (t != NULL) {
            ticket_run(k, t);
        } else if (k->head == NULL) {
            pthread_cond_wait(&k->wake, &k->mutex);
            retry_time(&until);
        } else if (pthread_cond_timedwait(&k->wake, &k->mutex, &until) != 0) {
            retry_all(k);
            retry_time(&until);
        }
    }
    pthread_mutex_unlock(&k->mutex);
    return NULL;
}

enum omen_err room_keeper_start(bool (*make)(struct shard_host *shard), struct room_keeper **keeper_out,
        struct err *err)
{
    struct room_keeper *k = mem_must_calloc(1, sizeof *k);
    k->make = make;
    pthread_mutex_init(&k->mutex, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&k->wake, &attr);
    pthread_cond_init(&k->idle, &attr);
    pthread_condattr_destroy(&attr);
    int rc = pthread_create(&k->thread, NULL, keeper_main, k);
    *keeper_out = rc == 0 ? k : NULL;
    if (rc == 0) return OMEN_OK;
    pthread_cond_destroy(&k->idle);
    pthread_cond_destroy(&k->wake);
    pthread_mutex_destroy(&k->mutex);
    mem_free(k);
    return err_os(err, rc, "start a thread for", "the room of shards");
}

void room_keeper_stop(struct room_keeper *keeper)
{
    if (keeper == NULL) return;
    pthread_mutex_lock(&keeper->mutex);
    CHECK(keeper->head == NULL && keeper->busy == NULL);
    keeper->stop = true;
    pthread_cond_signal(&keeper->wake);
    pthread_mutex_unlock(&keeper->mutex);
    pthread_join(keeper->thread, NULL);
    pthread_cond_destroy(&keeper->idle);
    pthread_cond_destroy(&keeper->wake);
    pthread_mutex_destroy(&keeper->mutex);
    mem_free(keeper);
}

void room_keeper_ask(struct room_keeper *keeper, struct room_ticket *ticket)
{
    pthread_mutex_lock(&keeper->mutex);
    ticket_put(keeper, ticket);
    ticket->soon = true;
    pthread_cond_signal(&keeper->wake);
    pthread_mutex_unlock(&keeper->mutex);
}

void room_keeper_forget(struct room_keeper *keeper, struct room_ticket *ticket)
{
    pthread_mutex_lock(&keeper->mutex);
    for (;;) {
        for (struct room_ticket **link = &keeper->head; *link != NULL; link = &(*link)->next) {
            if (*link != ticket) continue;
            *link = ticket->next;
            ticket->queued = ticket->soon = false;
            break;
        }
        if (keeper->busy != ticket) break;
        pthread_cond_wait(&keeper->idle, &keeper->mutex);
    }
    pthread_mutex_unlock(&keeper->mutex);
}

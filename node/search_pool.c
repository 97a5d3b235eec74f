/* One mutex, one list, N threads: the work is at least tens of microseconds, so finer queues would gain nothing.
 * Idle threads are counted so that a submit wakes one only when one sleeps. */
#include "common/err.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "common/check.h"
#include "common/mem.h"
#include "node/search_pool.h"

struct search_pool {
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct search_task *head, **tail;
    uint32_t depth, queue_max, idle;
    bool stopping;
    uint32_t thread_count;
    pthread_t threads[SEARCH_THREADS_MAX];
};

static void *pool_thread(void *arg)
{
    struct search_pool *pool = arg;
    pthread_setname_np(pthread_self(), "omen-search");
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        while (pool->head == NULL && !pool->stopping) {
            pool->idle++;
            pthread_cond_wait(&pool->wake, &pool->mutex);
            pool->idle--;
        }
        if (pool->head == NULL) break;
        struct search_task *task = pool->head;
        pool->head = task->next;
        if (pool->head == NULL) pool->tail = &pool->head;
        pool->depth--;
        pthread_mutex_unlock(&pool->mutex);
        task->run(task);
        pthread_mutex_lock(&pool->mutex);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

enum omen_err search_pool_start(uint32_t threads, uint32_t queue_max, struct search_pool **pool_out,
        struct err *err)
{
    *pool_out = NULL;
    if (threads == 0) {
        long cores = sysconf(_SC_NPROCESSORS_ONLN);
        threads = cores < 1 ? 1 : cores > SEARCH_THREADS_MAX ? SEARCH_THREADS_MAX : (uint32_t)cores;
    }
    if (threads > SEARCH_THREADS_MAX) {
        return err_set(err, OMEN_EINVAL, "search.threads", "must be at most %d", SEARCH_THREADS_MAX);
    }
    if (queue_max == 0 || queue_max > SEARCH_QUEUE_MAX) {
        return err_set(err, OMEN_EINVAL, "search.queue", "must be 1 to %u", SEARCH_QUEUE_MAX);
    }
    struct search_pool *pool = mem_must_calloc(1, sizeof *pool);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->tail = &pool->head;
    pool->queue_max = queue_max;
    for (uint32_t i = 0; i < threads; i++) {
        int rc = pthread_create(&pool->threads[i], NULL, pool_thread, pool);
        if (rc != 0) {
            search_pool_stop(pool);
            return err_os(err, rc, "start a thread for", "searches");
        }
        pool->thread_count++;
    }
    *pool_out = pool;
    return OMEN_OK;
}

void search_pool_stop(struct search_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (uint32_t i = 0; i < pool->thread_count; i++) pthread_join(pool->threads[i], NULL);
    CHECK(pool->head == NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    mem_free(pool);
}

bool search_pool_submit(struct search_pool *pool, struct search_task *task)
{
    task->next = NULL;
    pthread_mutex_lock(&pool->mutex);
    bool taken = !pool->stopping && pool->depth < pool->queue_max;
    bool wake = false;
    if (taken) {
        *pool->tail = task;
        pool->tail = &task->next;
        pool->depth++;
        wake = pool->idle > 0;
    }
    pthread_mutex_unlock(&pool->mutex);
    if (wake) pthread_cond_signal(&pool->wake);
    return taken;
}

uint32_t search_pool_depth(struct search_pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    uint32_t depth = pool->depth;
    pthread_mutex_unlock(&pool->mutex);
    return depth;
}

uint32_t search_pool_threads(const struct search_pool *pool) { return pool->thread_count; }

/* Worker threads for reads that take time, behind one bounded queue. */
#ifndef OMEN_NODE_SEARCH_POOL_H
#define OMEN_NODE_SEARCH_POOL_H

#include "common/err.h"

struct search_pool;

/* Embedded in what is to be done; the pool's from submit until `run` begins. */
struct search_task {
    void (*run)(struct search_task *task);
    struct search_task *next;
};

#define SEARCH_THREADS_MAX 256
#define SEARCH_QUEUE_MAX (1u << 20)

/* `threads` 0 = one per core. OMEN_EINVAL above the limits. */
OMEN_CHECKED enum omen_err search_pool_start(uint32_t threads, uint32_t queue_max,
        struct search_pool **pool_out, struct err *err);
/* Does what is queued, then ends the threads. */
void search_pool_stop(struct search_pool *pool);
/* false: the queue is full, or the pool is stopping; `run` will not be called. Any thread; never blocks on work. */
OMEN_CHECKED bool search_pool_submit(struct search_pool *pool, struct search_task *task);
uint32_t search_pool_depth(struct search_pool *pool); /* waiting now */
uint32_t search_pool_threads(const struct search_pool *pool);

#endif

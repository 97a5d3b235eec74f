/* Memory with several owners: an entry is held at once by the log in memory, an append on its way to disk,
 * the frames to each follower and the apply queue. Threads: any; the last release frees. */
#ifndef OMEN_CONSENSUS_SHARED_H
#define OMEN_CONSENSUS_SHARED_H

#include <stdatomic.h>
#include <stdint.h>

#include "common/mem.h"

struct shared {
    _Atomic uint32_t refs;
    void *base; /* mem_free'd with the last reference */
};

/* Takes `base`; one reference is the caller's. */
static inline struct shared *shared_new(void *base)
{
    struct shared *s = mem_must_alloc(sizeof *s);
    atomic_init(&s->refs, 1);
    s->base = base;
    return s;
}

static inline struct shared *shared_hold(struct shared *s)
{
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    return s;
}

static inline void shared_release(struct shared *s)
{
    if (s == NULL || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) return;
    mem_free(s->base);
    mem_free(s);
}

#endif

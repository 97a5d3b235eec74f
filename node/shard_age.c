/* Points that have expired die as log time passes them (storage/expiry.h), and log time only moves with entries. Where
 * nobody writes, the leader proposes an entry without operations now and then, so that counts are exact again without a
 * scan and the space is given back. Reads do not depend on it.
 *
 * Threads: the sweep's; done comes from the apply worker. One entry of a shard at a time. */
#include "common/err.h"

#include "node/shard_host_impl.h"

#define AGE_AFTER_MS 1000u /* that writes are given to do it by themselves */

struct age_entry {
    struct shard_call call;
    struct shard_host *shard;
};

static void age_done(struct shard_call *call)
{
    struct age_entry *age = call->arg;
    atomic_store(&age->shard->aging, false); /* before the release: it may be the shard's last call */
    shard_host_release(call);
    mem_free(age);
}

static bool age_is_due(struct shard_host *shard)
{
    if (atomic_load(&shard->stopping) || atomic_load(&shard->inflight_bytes) > 0) return false;
    if (atomic_load(&shard->env->clock_off)) return false; /* it cannot tell what has expired */
    if (shard->group != NULL && atomic_load(&shard->group->lead_term) == 0) return false;
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return false;
    struct shard_store_stats stats;
    shard_store_stats(store, &stats);
    shard_host_store_unhold(shard);
    uint64_t now_ms = clock_wall_ms(shard->env->clock);
    return stats.expires_next_ms != UINT64_MAX && now_ms >= AGE_AFTER_MS &&
            stats.expires_next_ms <= now_ms - AGE_AFTER_MS;
}

void shard_age_sweep(struct shard_host *shard)
{
    if (atomic_load(&shard->aging) || !age_is_due(shard)) return;
    struct age_entry *age = mem_must_calloc(1, sizeof *age);
    age->shard = shard;
    age->call = (struct shard_call){ .kind = CALL_WRITE,
        .shard_id = shard->shard_id,
        .collection_id = shard->collection_id,
        .done = age_done,
        .arg = age };
    atomic_store(&shard->aging, true);
    shard_write_submit(shard, &age->call);
}

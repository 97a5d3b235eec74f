/* Writes that wait until what they wrote is in an index (wait level `indexed`).
 *
 *   applied --index has passed its sequence already--> done(OK)
 *      |--parked--> index thread's next step passes it --> done(OK)
 *      |            deadline --> done(EDEADLINE), shard retired --> done(EUNKNOWN): the write stands in either case, and
 *      |                         asked again with the same op id it waits again
 *      +--too many are parked--> done(EBUSY), likewise
 *
 * "Passed" is what shard_index_settled says: in a graph, or of so few rows that the collection's policy wants none for
 * them. A parked write is in shard->index_waits under write_lock; whoever takes it out owns it. */
#include "common/err.h"

#include "node/shard_host_impl.h"

bool shard_wait_park(struct shard_host *shard, struct shard_write *write)
{
    struct shard_call *call = write->call;
    if (call->in.write.wait != WAIT_INDEXED || call->code != OMEN_OK) return false;
    if (atomic_load(&shard->indexed) >= call->sequence) return false;
    pthread_mutex_lock(&shard->write_lock);
    bool room = atomic_load(&shard->index_wait_count) < SHARD_INDEX_WAITS_MAX;
    if (room) {
        write->next = shard->index_waits;
        shard->index_waits = write;
        atomic_fetch_add(&shard->index_wait_count, 1);
    }
    pthread_mutex_unlock(&shard->write_lock);
    if (room) return true;
    call->code = err_set(&call->err, OMEN_EBUSY, "wait",
            "the write is applied, but %u others wait for the index of shard %llu already",
            SHARD_INDEX_WAITS_MAX, (unsigned long long)shard->shard_id);
    call->err.retry_after_ms = 1000;
    return false;
}

/* Take out those that `over` picks. */
static struct shard_write *waits_take(struct shard_host *shard,
        bool (*over)(const struct shard_host *shard, const struct shard_write *write))
{
    struct shard_write *taken = NULL;
    if (atomic_load(&shard->index_wait_count) == 0) return NULL;
    pthread_mutex_lock(&shard->write_lock);
    for (struct shard_write **link = &shard->index_waits; *link != NULL;) {
        struct shard_write *write = *link;
        if (!over(shard, write)) {
            link = &write->next;
            continue;
        }
        *link = write->next;
        write->next = taken;
        taken = write;
        atomic_fetch_sub(&shard->index_wait_count, 1);
    }
    pthread_mutex_unlock(&shard->write_lock);
    return taken;
}

static bool is_passed(const struct shard_host *shard, const struct shard_write *write)
{
    return write->call->sequence <= atomic_load(&shard->indexed);
}

void shard_wait_passed(struct shard_host *shard, uint64_t sequence)
{
    atomic_store(&shard->indexed, sequence);
    struct shard_write *write = waits_take(shard, is_passed);
    while (write != NULL) {
        struct shard_call *call = write->call; /* done may free the write */
        write = write->next;
        call->done(call);
    }
}

static bool is_late(const struct shard_host *shard, const struct shard_write *write)
{
    return atomic_load(&shard->stopping) || shard_call_late(shard, write->call);
}

void shard_wait_sweep(struct shard_host *shard)
{
    struct shard_write *write = waits_take(shard, is_late);
    bool stopping = atomic_load(&shard->stopping);
    while (write != NULL) {
        struct shard_call *call = write->call;
        unsigned long long sequence = call->sequence;
        write = write->next;
        if (stopping)
            shard_call_fail(call, OMEN_EUNKNOWN,
                    "the write is applied; the shard is closed before it was indexed");
        else
            shard_call_fail(call, OMEN_EDEADLINE,
                    "the write is applied at sequence %llu; the deadline passed before it was indexed "
                    "(up to %llu is)",
                    sequence, (unsigned long long)atomic_load(&shard->indexed));
    }
}

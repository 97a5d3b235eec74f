/* Admission on the worst replica that is there (CORRECTNESS A1): apply never refuses for want of disk, memory or an
 * index, so the leader does not take what another replica has no room for; and a leader without room hands over to
 * one that has. */
#include "common/err.h"

#include <inttypes.h>

#include "common/log.h"
#include "node/shard_host_impl.h"

#define GIVE_WAY_PAUSE_NS (3 * 1000000000ull) /* between two attempts of a leader to hand over */

static unsigned lacks_of(const struct shard_host *shard, const struct replica_follower *f)
{
    const struct shard_peers *peers = shard->group->peers;
    uint32_t node = (uint32_t)f->member.node_id;
    unsigned lacks = peers != NULL && peers->short_of != NULL
            ? peers->short_of(peers->arg, node, shard->shard_id)
            : 0;
    return f->is_short ? lacks | PEER_DISK_FULL : lacks; /* the replica itself says so sooner */
}

/* Whether one more voter is in the way of writes; notes the first of those that are so most. */
static bool in_the_way(struct shard_host *shard, const struct replica_follower *f, enum shard_admission *now)
{
    struct shard_group *g = shard->group;
    uint32_t node = (uint32_t)f->member.node_id;
    unsigned lacks = lacks_of(shard, f);
    bool was = g->behind_ns != 0, late = f->lag_bytes > shard->env->behind_bytes / (was ? 2 : 1);
    enum shard_admission admits = ADMIT_ALL;
    if (late || (lacks & PEER_TAIL_FULL) != 0) admits = ADMIT_LATER;
    if ((lacks & (PEER_DISK_FULL | PEER_MEMORY_FULL)) != 0) admits = ADMIT_DELETES;
    if (admits <= *now) return admits != ADMIT_ALL;
    *now = admits;
    pthread_mutex_lock(&g->trouble_lock);
    if ((lacks & PEER_DISK_FULL) != 0)
        (void)err_set(&g->behind, OMEN_EFULL, "", "the disk of node %u, which has a replica, is full", node);
    else if ((lacks & PEER_MEMORY_FULL) != 0)
        (void)err_set(&g->behind, OMEN_ENOMEM, "",
                "the memory budget of node %u, which has a replica, is used up", node);
    else if (late)
        (void)err_set(&g->behind, OMEN_EBUSY, "", "the replica on node %u is %" PRIu64 " bytes behind", node,
                f->lag_bytes);
    else
        (void)err_set(&g->behind, OMEN_EBUSY, "",
                "too many points are in no index yet at the replica on node %u: it is being built "
                "(index.tail_rows_max)",
                node);
    pthread_mutex_unlock(&g->trouble_lock);
    return true;
}

/* Replicas that do not answer are not waited for; those that do are, but a minority of them not for long. */
void shard_admission_look(struct shard_host *shard)
{
    struct shard_group *g = shard->group;
    struct replica_follower followers[GROUP_MEMBERS_MAX];
    enum shard_admission now = ADMIT_ALL;
    uint32_t count, voters = 1, good = 1, bad = 0;
    replica_followers(shard->replica, followers, &count);
    for (uint32_t i = 0; i < count; i++) {
        if (followers[i].member.role != REPLICA_VOTER) continue;
        voters++;
        if (followers[i].silent_ms > shard_group_silence_max_ms(shard)) continue;
        if (in_the_way(shard, &followers[i], &now))
            bad++;
        else
            good++;
    }
    uint64_t now_ns = clock_monotonic_ns(shard->env->clock);
    if (bad == 0)
        g->behind_ns = 0;
    else if (g->behind_ns == 0)
        g->behind_ns = now_ns;
    bool waited = bad > 0 && now_ns - g->behind_ns >= shard->env->grace_ms * 1000000ull;
    if (waited && good > voters / 2) now = ADMIT_ALL;
    int before = atomic_exchange(&g->admission, (int)now);
    if (before != (int)now)
        LOG_INFO("shard.admission", "shard=%" PRIu64 " writes=%s", shard->shard_id,
                now == ADMIT_ALL             ? "all"
                        : now == ADMIT_LATER ? "later"
                                             : "deletes");
}

bool shard_admits(struct shard_host *shard, struct shard_call *call, bool only_deletes)
{
    struct shard_group *g = shard->group;
    int admission = atomic_load_explicit(&g->admission, memory_order_relaxed);
    if (admission == ADMIT_ALL || (admission == ADMIT_DELETES && only_deletes)) return true;
    pthread_mutex_lock(&g->trouble_lock);
    call->err = g->behind;
    pthread_mutex_unlock(&g->trouble_lock);
    call->code = call->err.code;
    return false;
}

static void gave_way(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    (void)arg, (void)result, (void)sequence, (void)err; /* who leads is told elsewhere */
}

/* Would the voter lead better than a leader whose disk is full, or (`waits`) than one that cannot even apply what is
 * committed? 2: it has room. 1: it does not wait. */
static int heir_worth(struct shard_host *shard, const struct replica_follower *f, bool waits)
{
    if (f->member.role != REPLICA_VOTER || f->silent_ms > shard_group_silence_max_ms(shard) ||
            f->lag_bytes > SHARD_READY_LAG_BYTES)
        return 0;
    unsigned lacks = lacks_of(shard, f);
    if ((lacks & PEER_CLOCK_OFF) != 0) return 0;
    if ((lacks & PEER_DISK_FULL) == 0) return 2;
    return waits && !f->waits ? 1 : 0;
}

/* A leader whose disk is full refuses what a majority without it would take: it hands over to the voter that has
 * most of the log and room, if there is one. The next leader waits for this replica as for any other, and no longer.
 * One that has no room for what is committed already can neither write nor say what is true: anybody will do who
 * has. */
void shard_admission_give_way(struct shard_host *shard, const struct shard_host_status *s)
{
    struct shard_group *g = shard->group;
    struct replica_follower followers[GROUP_MEMBERS_MAX];
    const struct replica_follower *heir = NULL;
    int best = 0;
    uint32_t count;
    uint64_t now_ns = clock_monotonic_ns(shard->env->clock);
    bool off = atomic_load(&shard->env->clock_off);
    bool full = s->replica.disk_full || atomic_load(&shard->env->disk_full);
    if ((!full && !off) || atomic_load(&g->lead_term) == 0 || now_ns < g->give_way_ns + GIVE_WAY_PAUSE_NS)
        return;
    replica_followers(shard->replica, followers, &count);
    for (uint32_t i = 0; i < count; i++) {
        const struct replica_follower *f = &followers[i];
        int worth = heir_worth(shard, f, s->replica.waits);
        if (worth == 0 || worth < best || (worth == best && f->lag_bytes >= heir->lag_bytes)) continue;
        heir = f;
        best = worth;
    }
    if (heir == NULL) return;
    g->give_way_ns = now_ns;
    LOG_INFO("shard.gives_way", "shard=%" PRIu64 " to_node=%" PRIu64 " reason=\"%s\"", shard->shard_id,
            heir->member.node_id, off ? "the clock is off the others'" : "the disk is full");
    replica_transfer(shard->replica, heir->member.replica_id, gave_way, NULL);
}

/* The index thread: has the shards' stores build graphs over what was written, one piece of work at a time, shard
 * after shard. It runs at a lower priority than everything that somebody waits for, for the CPU and for the disk; what is
 * not in a graph yet is searched all the same, so searches are right all along and get faster as it goes on.
 *
 * The tail thread beside it, of little work and not quite as low, takes what is in no graph yet into sketches where there
 * is much of it, so that searches need not scan it however long a graph takes. Past index.tail_rows_max writes are told
 * to come again later (shard_write.c).
 *
 * How graphs lie in memory follows from the node's budget; see node_memory.c. */
#include "common/err.h"

#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "node/node_impl.h"
#include "storage/shard_index.h"

#define INDEX_FAILED_MS 5000u /* without work after an error */
#define IOPRIO_WHO_PROCESS 1  /* of ioprio_set(2), which has no header */
#define IOPRIO_BEST_EFFORT_LOWEST (2 << 13 | 7)

/* The first shard whose id is above `after`, held; NULL when there is none. */
static struct shard_host *shard_after(struct node *node, uint64_t after)
{
    struct shard_host *shard = NULL;
    pthread_rwlock_rdlock(&node->table_lock);
    for (uint32_t i = 0; i < node->slot_count && shard == NULL; i++)
        if (node->slots[i].shard_id > after) shard = node->slots[i].shard;
    if (shard != NULL) shard_host_hold(shard);
    pthread_rwlock_unlock(&node->table_lock);
    return shard;
}

static void memory_policy(struct node *node, struct index_policy *policy)
{
    struct node_memory m;
    node_memory_get(node, &m);
    uint64_t most = node->options.index_memory_bytes; /* of graphs; 0 = what the budget leaves */
    bool is_short = atomic_load(&node->env.memory_short);
    uint64_t taken = is_short ? m.taken : m.fixed + m.pinned;
    policy->memory_left = m.budget > taken ? m.budget - taken : 0;
    policy->memory_whole = policy->memory_left + m.pinned;
    policy->memory_short = is_short;
    policy->memory_over = taken > m.budget || (most != 0 && m.pinned > most);
    policy->pin = most == 0 || m.pinned < most;
}

static void policy_of(const struct node *node, struct index_policy *policy)
{
    index_policy_default(policy);
    policy->tail_rows_max = node->options.index_tail_rows_max;
    if (node->options.index_rows_min != 0) policy->rows_min = node->options.index_rows_min;
}

/* Of the calling thread, and of those it starts. What the system refuses is no reason not to index. */
static void priority_lower(int nice_by)
{
    pid_t self = (pid_t)syscall(SYS_gettid);
    struct sched_param batch = { 0 };
    int nice_now = getpriority(PRIO_PROCESS, (id_t)self) + nice_by;
    if (setpriority(PRIO_PROCESS, (id_t)self, nice_now) != 0) LOG_WARN("index.priority", "nice=%d", nice_now);
    (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &batch);
    (void)syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, self, IOPRIO_BEST_EFFORT_LOWEST);
}

/* What the two threads differ in. */
struct index_duty {
    const char *thread, *event; /* names, of the log's too */
    int nice;
    uint32_t turn_ms;
    bool spares_disk; /* what is left of a nearly full disk is for writes */
    enum omen_err (*step)(struct node *node, struct shard_host *shard, const struct index_policy *policy,
            bool *worked_out, struct err *err);
};

static enum omen_err graph_step(struct node *node, struct shard_host *shard,
        const struct index_policy *policy, bool *worked_out, struct err *err)
{
    return shard_host_index(shard, policy, node->options.index_threads, &node->index_stop, worked_out, err);
}

static enum omen_err tail_step(struct node *node, struct shard_host *shard, const struct index_policy *policy,
        bool *worked_out, struct err *err)
{
    return shard_host_index_tail(shard, policy, &node->index_stop, worked_out, err);
}

static const struct index_duty GRAPHS = { "omen-index", "index.step", 10, 200, true, graph_step };
static const struct index_duty TAILS = { "omen-tail", "index.tail", 4, 50, false, tail_step };

/* One piece of work of every shard, each within what memory the one before it left. Whether there was any;
 * *failed_out: something went wrong. Looking is a walk over all shards, so only who has worked makes another one: of 64
 * idle shards the looks of each at all took 2.7 % of a core (5.1 -> 2.4). */
static bool duty_round(struct node *node, const struct index_duty *duty, bool *failed_out)
{
    struct index_policy policy;
    struct shard_host *shard;
    bool any = false, look = true;
    policy_of(node, &policy);
    for (uint64_t after = 0; !atomic_load(&node->index_stop) && (shard = shard_after(node, after)) != NULL;) {
        struct err err;
        bool worked = false;
        after = shard_host_id(shard);
        if (look) node_memory_look(node);
        memory_policy(node, &policy);
        enum omen_err rc = duty->step(node, shard, &policy, &worked, &err);
        shard_host_unhold(shard);
        any |= worked;
        look = worked || rc != OMEN_OK;
        if (rc == OMEN_OK || rc == OMEN_ECANCELED) continue;
        LOG_WARN(duty->event, "shard=%llu error=%s reason=\"%s\"", (unsigned long long)after, err_name(rc),
                err.message);
        *failed_out = true;
    }
    return any;
}

/* Round after round; after one that failed, a rest, so that a damaged shard does not fill the log. */
static void duty_run(struct node *node, const struct index_duty *duty)
{
    uint32_t rest_ms = 0;
    pthread_setname_np(pthread_self(), duty->thread);
    priority_lower(duty->nice);
    while (!atomic_load(&node->index_stop)) {
        bool failed = false;
        bool room = !duty->spares_disk || !atomic_load(&node->env.disk_full);
        if (rest_ms == 0 && room && duty_round(node, duty, &failed) && !failed) continue;
        if (failed) rest_ms = INDEX_FAILED_MS;
        struct timespec until = { 0, duty->turn_ms * 1000000L };
        (void)nanosleep(&until, NULL);
        rest_ms = rest_ms > duty->turn_ms ? rest_ms - duty->turn_ms : 0;
    }
}

static void *index_main(void *arg)
{
    duty_run(arg, &GRAPHS);
    return NULL;
}

static void *tail_main(void *arg)
{
    duty_run(arg, &TAILS);
    return NULL;
}

enum omen_err node_index_start(struct node *node, struct err *err)
{
    if (node->options.index_disabled) return OMEN_OK;
    int rc = pthread_create(&node->index_thread, NULL, index_main, node);
    if (rc != 0) return err_os(err, rc, "start a thread for", "the indexes");
    node->index_started = true;
    rc = pthread_create(&node->tail_thread, NULL, tail_main, node);
    if (rc != 0)
        return err_os(err, rc, "start a thread for", "the tails of indexes"); /* who closes ends the other */
    node->tail_started = true;
    return OMEN_OK;
}

void node_index_stop(struct node *node)
{
    atomic_store(&node->index_stop, true);
    if (node->index_started) pthread_join(node->index_thread, NULL);
    if (node->tail_started) pthread_join(node->tail_thread, NULL);
    node->index_started = node->tail_started = false;
}

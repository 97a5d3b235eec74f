/* The recall thread: has the shards compare the searches that were kept (shard_recall.c), a batch at a time, shard after
 * shard. It takes at most recall.cpu_percent of one core, by the thread's own CPU time: what a batch took is paid back
 * before the next one is begun, however long a pass over the rows is. It runs at a lower priority than what somebody
 * waits for, and not at all while memory does not hold the rows: a pass would drive out what searches need. */
#include "common/err.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "node/node_impl.h"
#include "node/recall_meter.h"

#define RECALL_TURN_MS 100u
#define RECALL_NICE 10
#define RECALL_BATCH_WAIT_TURNS 20u /* a batch that is not full is compared after 2 s all the same */
#define RECALL_CREDIT_NS 50000000ll /* most that is saved up while there is nothing to do */

struct recall_budget {
    double share;      /* CPU time over time */
    int64_t credit_ns; /* may be spent; below 0: owed */
    uint64_t seen_ns;  /* monotonic time up to which credit was given */
    uint64_t spent_ns; /* CPU time of the thread, already paid */
};

static uint64_t thread_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* Brings the account up to date; whether there is anything to spend. */
static bool budget_settle(struct recall_budget *b, struct node *node)
{
    uint64_t now_ns = clock_monotonic_ns(node->options.clock), cpu_ns = thread_cpu_ns();
    b->credit_ns += (int64_t)((double)(now_ns - b->seen_ns) * b->share) - (int64_t)(cpu_ns - b->spent_ns);
    if (b->credit_ns > RECALL_CREDIT_NS) b->credit_ns = RECALL_CREDIT_NS;
    b->seen_ns = now_ns;
    b->spent_ns = cpu_ns;
    atomic_store(&node->recall_cpu_ns, cpu_ns);
    return b->credit_ns > 0;
}

/* The next shard with searches to compare, from `after` round to it again, held; NULL: none. */
static struct shard_host *shard_due(struct node *node, uint64_t after, uint32_t kept_min)
{
    struct shard_host *above = NULL, *first = NULL;
    pthread_rwlock_rdlock(&node->table_lock);
    for (uint32_t i = 0; i < node->slot_count; i++) {
        struct shard_host *shard = node->slots[i].shard;
        if (shard_host_recall_kept(shard) < kept_min) continue;
        if (first == NULL) first = shard;
        if (above == NULL && node->slots[i].shard_id > after) above = shard;
    }
    if (above == NULL) above = first;
    if (above != NULL) shard_host_hold(above);
    pthread_rwlock_unlock(&node->table_lock);
    return above;
}

static void *recall_main(void *arg)
{
    struct node *node = arg;
    struct recall_budget budget = { .share = node->options.recall_cpu_percent / 100,
        .seen_ns = clock_monotonic_ns(node->options.clock) };
    uint32_t waited = 0;
    uint64_t after = 0;
    pthread_setname_np(pthread_self(), "omen-recall");
    if (setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), RECALL_NICE) != 0)
        LOG_WARN("recall.priority", "nice=%d", RECALL_NICE);
    struct sched_param batch = { 0 };
    (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &batch);
    while (!atomic_load(&node->recall_stop)) {
        bool patient = waited < RECALL_BATCH_WAIT_TURNS;
        bool can = budget_settle(&budget, node) && !atomic_load(&node->env.memory_short);
        struct shard_host *shard = can ? shard_due(node, after, patient ? RECALL_SAMPLES_MAX : 1) : NULL;
        if (shard != NULL) {
            after = shard_host_id(shard);
            (void)shard_host_recall(shard, &node->recall_stop);
            shard_host_unhold(shard);
        }
        waited = patient ? waited + 1 : 0;
        struct timespec until = { 0, RECALL_TURN_MS * 1000000L };
        if (shard == NULL) (void)nanosleep(&until, NULL);
    }
    return NULL;
}

enum omen_err node_recall_start(struct node *node, struct err *err)
{
    if (!node->env.recalls) return OMEN_OK;
    int rc = pthread_create(&node->recall_thread, NULL, recall_main, node);
    if (rc != 0) return err_os(err, rc, "start a thread for", "live recall");
    node->recall_started = true;
    return OMEN_OK;
}

void node_recall_stop(struct node *node)
{
    atomic_store(&node->recall_stop, true);
    if (node->recall_started) pthread_join(node->recall_thread, NULL);
    node->recall_started = false;
}

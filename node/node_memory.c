/* The node's memory, by what it goes for, against one budget (memory.budget).
 *
 *   fixed    what cannot be had smaller: tables of rows, deltas, sketches of tails, and a reserve for the process
 *   pinned   graphs in memory of their own: as many as the budget leaves, then compact ones, then mapped ones
 *   mapped   graphs that the system reads in and drops as it likes: not counted
 *   files    streams and the rows of segments: likewise
 *
 * What is mapped, and the files, share what the limit (the cgroup's, else the machine's) leaves. When that does not hold
 * them the node is short of memory: files are read here and there without what lies around, scans ask for what comes next,
 * sketches are not calibrated, live recall, whose truth is a scan, rests, and what the process really has counts instead of
 * what its parts add up to. So a node with a quarter of what its data would like answers from the disk and is never killed.
 * When the fixed part alone passes the budget, writes but deletes are refused, with the reason (shard_write.c). */
#include "common/err.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/log.h"
#include "node/cgroup.h"
#include "node/member/fields.h"
#include "node/node_impl.h"
#include "storage/shard_index.h"

#define MEMORY_SHARE 2u  /* of the machine's or the cgroup's, when the configuration says nothing */
#define LIMIT_SHARE 8u   /* of a limit, at least so much is left for what no budget counts */
#define RESERVE_SHARE 2u /* of the budget, at most */
#define TRIM_NS UINT64_C(1000000000) /* between two times that free memory is given back while it is short */
#define RESERVE_BYTES (32ull << 20)  /* code, stacks, buffers of requests and of the log */
#define LIMIT_LOOK_NS UINT64_C(1000000000) /* a limit may be set, or the process be moved, at any time */

/* What the system lets the process have. */
static uint64_t memory_limit(void)
{
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t cgroup = cgroup_memory_max("/proc/self/cgroup", "/sys/fs/cgroup");
    return cgroup < machine ? cgroup : machine;
}

static uint64_t limit_look(struct node *node)
{
    uint64_t now_ns = clock_monotonic_ns(node->options.clock);
    pthread_mutex_lock(&node->memory_lock);
    uint64_t limit = node->memory_limit;
    bool due = limit == 0 || now_ns - node->memory_limit_ns >= LIMIT_LOOK_NS;
    if (due) node->memory_limit_ns = now_ns;
    pthread_mutex_unlock(&node->memory_lock);
    if (!due) return limit;
    limit = memory_limit();
    pthread_mutex_lock(&node->memory_lock);
    node->memory_limit = limit;
    pthread_mutex_unlock(&node->memory_lock);
    return limit;
}

/* As it is configured, but never so much that the process would be killed. */
static uint64_t budget_of(const struct node *node, uint64_t limit)
{
    uint64_t most = limit - limit / LIMIT_SHARE, asked = node->options.memory_budget;
    if (asked == 0) return limit / MEMORY_SHARE;
    return asked < most ? asked : most;
}

uint64_t node_memory_budget(struct node *node) { return budget_of(node, limit_look(node)); }

/* Memory of its own that the process has. What no component counts (buffers, stacks, what the allocator keeps) is seen here
 * and nowhere else. */
static uint64_t anonymous_bytes(void)
{
    unsigned long long size = 0, resident = 0, shared = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL) return 0;
    int n = fscanf(f, "%llu %llu %llu", &size, &resident, &shared);
    fclose(f);
    return n == 3 && resident > shared ? (resident - shared) * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

/* What was freed goes back to the system, for files to lie in. */
static void trim(struct node *node)
{
    uint64_t now_ns = clock_monotonic_ns(node->options.clock);
    pthread_mutex_lock(&node->memory_lock);
    bool due = now_ns - node->memory_trim_ns >= TRIM_NS;
    if (due) node->memory_trim_ns = now_ns;
    pthread_mutex_unlock(&node->memory_lock);
    if (due) (void)malloc_trim(0);
}

/* The files do not fit in what is left: reads of theirs are told to bring no more than they must. Where they nearly do it
 * stays as it is. */
static void short_tell(struct node *node, const struct node_memory *m, uint64_t limit)
{
    uint64_t taken = m->taken, left = limit > taken ? limit - taken : 0;
    bool was = atomic_load(&node->env.memory_short);
    bool is = m->files + m->mapped > (was ? left - left / 8 : left);
    if (is == was) return;
    atomic_store(&node->env.memory_short, is);
    LOG_INFO("memory.short", "short=%d files=%llu mapped=%llu left=%llu limit=%llu", is,
            (unsigned long long)m->files, (unsigned long long)m->mapped, (unsigned long long)left,
            (unsigned long long)limit);
}

void node_memory_look(struct node *node)
{
    uint64_t limit = limit_look(node);
    struct node_memory m = { .budget = budget_of(node, limit) };
    m.fixed = m.budget / RESERVE_SHARE < RESERVE_BYTES ? m.budget / RESERVE_SHARE : RESERVE_BYTES;
    pthread_rwlock_rdlock(&node->table_lock);
    for (uint32_t i = 0; i < node->slot_count; i++) {
        struct shard_index_memory index;
        shard_host_memory(node->slots[i].shard, &index, &m.deltas);
        m.pinned += index.pinned;
        m.mapped += index.mapped;
        m.sketches += index.sketches;
        m.rows += index.rows;
        m.files += index.files;
    }
    pthread_rwlock_unlock(&node->table_lock);
    m.fixed += m.deltas + m.sketches + m.rows;
    uint64_t counted = m.fixed + m.pinned, anonymous = anonymous_bytes();
    m.taken = counted > anonymous ? counted : anonymous;
    pthread_mutex_lock(&node->memory_lock);
    node->memory = m;
    pthread_mutex_unlock(&node->memory_lock);
    atomic_store(&node->env.memory_full, m.fixed > m.budget);
    short_tell(node, &m, limit);
    if (atomic_load(&node->env.memory_short)) trim(node);
}

void node_memory_get(struct node *node, struct node_memory *memory_out)
{
    pthread_mutex_lock(&node->memory_lock);
    *memory_out = node->memory;
    pthread_mutex_unlock(&node->memory_lock);
}

void node_memory_put(const struct node_memory *m, struct doc_builder *b)
{
    begin_object(b, "memory");
    put_u64(b, "budget", m->budget);
    put_u64(b, "used", m->fixed + m->pinned);
    put_u64(b, "graphs", m->pinned);
    put_u64(b, "mapped_graphs", m->mapped);
    put_u64(b, "sketches", m->sketches);
    put_u64(b, "rows", m->rows);
    put_u64(b, "deltas", m->deltas);
    put_bool(b, "full", m->fixed > m->budget);
    doc_end(b);
}

void node_memory_parse(struct doc memory, struct node_memory *out)
{
    uint64_t used = field_u64(memory, "used");
    *out = (struct node_memory){ .budget = field_u64(memory, "budget"),
        .pinned = field_u64(memory, "graphs"),
        .mapped = field_u64(memory, "mapped_graphs"),
        .sketches = field_u64(memory, "sketches"),
        .rows = field_u64(memory, "rows"),
        .deltas = field_u64(memory, "deltas") };
    out->fixed = used > out->pinned ? used - out->pinned : 0;
}

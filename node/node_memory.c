/* The node's memory, by what it goes for, against one budget (memory.budget).
 *
 *   fixed    what cannot be had smaller: tables of rows, deltas, sketches of tails, and a reserve for the process
 *   pinned   graphs in memory of their own: as many as the budget leaves, then compact ones, then mapped ones
 *   mapped   graphs, rows and streams that the system reads in and drops as it likes: not counted, bounded by nothing
 *
 * So a node with a quarter of what its data would like answers from the disk and is never killed. When the fixed part alone
 * passes the budget, writes but deletes are refused, with the reason (shard_write.c). */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "node/member/fields.h"
#include "node/node_impl.h"
#include "storage/shard_index.h"

#define MEMORY_SHARE 2u /* of the machine's or the cgroup's, when the configuration says nothing */
#define RESERVE_BYTES (32ull << 20) /* code, stacks, buffers of requests and of the log */

/* The limit that a cgroup sets to this process, UINT64_MAX: none that is to be seen. */
static uint64_t cgroup_bytes(void)
{
    static const char *const paths[] = { "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes" };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        unsigned long long bytes = 0;
        FILE *f = fopen(paths[i], "re");
        if (f == NULL) continue;
        int n = fscanf(f, "%llu", &bytes); /* "max" is no number */
        fclose(f);
        if (n == 1 && bytes > 0) return bytes;
    }
    return UINT64_MAX;
}

uint64_t node_memory_budget(const struct node *node)
{
    if (node->options.memory_budget != 0) return node->options.memory_budget;
    uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t cgroup = cgroup_bytes();
    return (cgroup < machine ? cgroup : machine) / MEMORY_SHARE;
}

void node_memory_look(struct node *node)
{
    struct node_memory m = { .budget = node_memory_budget(node), .fixed = RESERVE_BYTES };
    pthread_rwlock_rdlock(&node->table_lock);
    for (uint32_t i = 0; i < node->slot_count; i++) {
        struct shard_index_memory index;
        shard_host_memory(node->slots[i].shard, &index, &m.deltas);
        m.pinned += index.pinned;
        m.mapped += index.mapped;
        m.sketches += index.sketches;
        m.rows += index.rows;
    }
    pthread_rwlock_unlock(&node->table_lock);
    m.fixed += m.deltas + m.sketches + m.rows;
    pthread_mutex_lock(&node->memory_lock);
    node->memory = m;
    pthread_mutex_unlock(&node->memory_lock);
    atomic_store(&node->env.memory_full, m.fixed > m.budget);
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

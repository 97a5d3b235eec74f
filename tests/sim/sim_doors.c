/* What the product calls and would be a thread: the linker leads calls of these functions here (--wrap). Each stands for a
 * queue, which sim_node.c and sim_fetch.c work on when the world comes by. See sim.h. */
#include "common/err.h"

#include "common/check.h"
#include "tests/sim/sim.h"

/* The linker's names. */
void __wrap_loop_post(struct loop *loop, struct loop_task *task);
void __wrap_loop_call(struct loop *loop, void (*run)(void *arg), void *arg);
uint32_t __wrap_net_random(void);
bool __wrap_node_log_far_over(const struct node_log *log);
bool __wrap_node_log_is_short(const struct node_log *log);
void __wrap_node_log_append(struct node_log *log, struct node_log_append *append);
void __wrap_node_log_release(struct node_log *log, uint64_t group, uint64_t replica, uint64_t index);
enum omen_err __real_raft_group_new(const struct group_options *options, struct group_load *load,
        uint64_t now_ms, struct raft_group **group_out, struct err *err);
enum omen_err __wrap_raft_group_new(const struct group_options *options, struct group_load *load,
        uint64_t now_ms, struct raft_group **group_out, struct err *err);
bool __wrap_search_pool_submit(struct search_pool *pool, struct search_task *task);
void __wrap_room_keeper_ask(struct room_keeper *keeper, struct room_ticket *ticket);
void __wrap_room_keeper_forget(struct room_keeper *keeper, struct room_ticket *ticket);
void __wrap_fetch_begin(struct fetch *fetch, uint64_t sequence, uint32_t node_id);
void __wrap_fetch_cancel(struct fetch *fetch);
void __wrap_fetch_post(struct fetcher *fetcher, struct fetch_task *task, uint32_t delay_ms);
void __wrap_fetch_withdraw(struct fetcher *fetcher, struct fetch_task *task);
void __wrap_ship_register(struct ship *ship, uint64_t group, const struct ship_source *source);
void __wrap_ship_unregister(struct ship *ship, uint64_t group);

/* ---- raft's loop ---- */

void __wrap_loop_post(struct loop *loop, struct loop_task *task)
{
    struct sim_tasks *tasks = (struct sim_tasks *)loop;
    task->next = NULL;
    *tasks->tail = task;
    tasks->tail = &task->next;
}

void __wrap_loop_call(struct loop *loop, void (*run)(void *arg), void *arg) { run(arg); }

uint32_t __wrap_net_random(void) { return (uint32_t)world_below(sim_opening->node->sim->w, UINT32_MAX); }

/* Now and then the log is too long: proposals are refused, followers take no entries. */
bool __wrap_node_log_far_over(const struct node_log *log)
{
    return world_chance(sim_opening->node->sim->w, 5);
}

/* What stands for the log is its node. */
bool __wrap_node_log_is_short(const struct node_log *log)
{
    const struct world_node *n = ((const struct sim_node *)log)->n;
    return n->world->now_ms < n->full_until_ms;
}

static struct world_replica *replica_of_log(struct node_log *log, uint64_t group, uint64_t replica)
{
    struct world_replica *r = &((struct sim_node *)log)->n->replicas[group - 1];
    return r->replica_id == replica ? r : NULL;
}

/* Raft's records take the world's road; what comes here takes a replica out of the log. */
void __wrap_node_log_append(struct node_log *log, struct node_log_append *append)
{
    const struct node_log_record *record = append->records;
    struct world_replica *r = replica_of_log(log, record->group, record->replica);
    CHECK(append->count == 1 && record->kind == NODE_LOG_DROP_GROUP);
    if (r != NULL) world_forget(r);
    append->done(append, OMEN_OK);
}

/* What is released for good may be found at the next start yet. */
void __wrap_node_log_release(struct node_log *log, uint64_t group, uint64_t replica, uint64_t index)
{
    struct world_replica *r = replica_of_log(log, group, replica);
    if (index == UINT64_MAX && r != NULL && world_chance(r->world, 500)) world_forget(r);
}

/* The group's io is the world's, which checks and passes on to what the product gave. */
enum omen_err __wrap_raft_group_new(const struct group_options *options, struct group_load *load,
        uint64_t now_ms, struct raft_group **group_out, struct err *err)
{
    struct sim_shard *s = sim_opening;
    struct group_options o = *options;
    o.io = &world_group_io;
    o.io_arg = s->r;
    enum omen_err rc = __real_raft_group_new(&o, load, now_ms, group_out, err);
    if (rc != OMEN_OK) return rc;
    s->raft = options->io_arg;
    s->r->group = *group_out;
    return OMEN_OK;
}

/* ---- threads of a node; the pointers that the product keeps to them are to the node ---- */

bool __wrap_search_pool_submit(struct search_pool *pool, struct search_task *task)
{
    struct sim_node *node = (struct sim_node *)pool;
    task->next = NULL;
    *node->searches_tail = task;
    node->searches_tail = &task->next;
    return true;
}

void __wrap_room_keeper_ask(struct room_keeper *keeper, struct room_ticket *ticket)
{
    struct sim_shard *s = sim_shard_of(ticket->shard);
    if (!s->room_asked) s->room_at_ms = s->r->world->now_ms + world_below(s->r->world, 20);
    s->room_asked = true;
}

void __wrap_room_keeper_forget(struct room_keeper *keeper, struct room_ticket *ticket)
{
    sim_shard_of(ticket->shard)->room_asked = false;
}

void __wrap_fetch_begin(struct fetch *fetch, uint64_t sequence, uint32_t node_id)
{
    struct sim_shard *s = sim_shard_of(fetch->arg);
    if (s->fetch.state != SIM_FETCH_IDLE) sim_shard_fail(s, "a base is fetched already");
    fetch->sequence = sequence;
    fetch->node_id = node_id;
    s->fetch = (struct sim_fetch){ .state = SIM_FETCH_BEGUN,
        .fetch = fetch,
        .at_ms = s->r->world->now_ms + world_below(s->r->world, 200) };
}

void __wrap_fetch_cancel(struct fetch *fetch)
{
    if (fetch->fetcher == NULL) return; /* as the product says */
    atomic_store(&fetch->cancel, true);
    sim_fetch_drop(sim_shard_of(fetch->arg));
}

void __wrap_fetch_post(struct fetcher *fetcher, struct fetch_task *task, uint32_t delay_ms)
{
    struct sim_node *node = (struct sim_node *)fetcher;
    if (task->queued) return;
    task->queued = true;
    task->next = node->fetch_tasks;
    node->fetch_tasks = task;
}

void __wrap_fetch_withdraw(struct fetcher *fetcher, struct fetch_task *task)
{
    struct fetch_task **link = &((struct sim_node *)fetcher)->fetch_tasks;
    while (*link != NULL && *link != task) link = &(*link)->next;
    if (*link != NULL) *link = task->next;
    task->queued = false;
}

void __wrap_ship_register(struct ship *ship, uint64_t group, const struct ship_source *source)
{
    ((struct sim_node *)ship)->shards[group - 1].source = *source;
}

void __wrap_ship_unregister(struct ship *ship, uint64_t group)
{
    struct sim_shard *s = &((struct sim_node *)ship)->shards[group - 1];
    sim_fetch_source_gone(s);
    s->source = (struct ship_source){ 0 };
}

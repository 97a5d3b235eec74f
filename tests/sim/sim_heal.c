/* What the driver of the cluster group does about a damaged replica (node/member/member_drive.c), with the same commands
 * to the same door of the shard's leader, repeated as it repeats them: a command whose answer was lost is given again,
 * and may have been carried out.
 *
 *   (a quorum of others is ready) --recorded-->
 *   ADD       the node begins an empty replica of a new id; it becomes a spare, then a standby -->
 *   CATCH_UP  it says that it is ready, and becomes a voter -->
 *   SWITCH    the damaged one is removed --> (none)
 *
 * What is recorded here is what the cluster group has committed: no crash undoes it. */
#include "common/err.h"

#include "common/check.h"
#include "tests/sim/sim.h"

#define LOOK_MS 60u /* between two turns of the driver */

struct heal_call {
    struct sim *sim;
    uint32_t slot;
    uint64_t number;
    enum heal_step next; /* when it is carried out */
    bool removal;
};

static void call_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    struct heal_call *c = arg;
    struct sim *sim = c->sim;
    struct sim_heal *h = &sim->heals[c->slot];
    bool good = result == OMEN_OK || result == (c->removal ? OMEN_ENOTFOUND : OMEN_EEXISTS);
    (void)sequence;
    (void)err;
    sim->heal_calls_ended++;
    world_note(sim->w, "healed", c->slot, (uint64_t)result, c->next);
    if (h->call == c->number) {
        h->call = 0;
        if (good) h->step = c->next;
    }
    mem_free(c);
}

static void *call_new(struct sim *sim, uint32_t slot, enum heal_step next, bool removal)
{
    struct heal_call *c = mem_must_alloc(sizeof *c);
    *c = (struct heal_call){ sim, slot, ++sim->heal_calls, next, removal };
    sim->heals[slot].call = c->number;
    return c;
}

/* ---- steps ---- */

static struct sim_shard *shard_at(struct sim *sim, uint32_t slot, uint32_t place)
{
    return &sim->nodes[place].shards[slot];
}

static bool status_of(struct sim *sim, uint32_t slot, uint32_t place, uint64_t replica_id,
        struct shard_host_status *out)
{
    struct sim_shard *s = shard_at(sim, slot, place);
    if (!sim->w->nodes[place].up || s->host == NULL || s->r->replica_id != replica_id) return false;
    shard_host_status(s->host, out);
    return true;
}

static void begin(struct sim *sim, uint32_t slot, uint32_t place, uint64_t replica_id)
{
    struct sim_heal *h = &sim->heals[slot];
    struct world_replica *r = &sim->w->nodes[place].replicas[slot];
    *h = (struct sim_heal){ .step = HEAL_ADD, .from = replica_id, .node = place };
    sim->w->groups[slot].held = true;
    h->to = world_replace(r);
    sim->flips[slot][place] = (struct sim_flip){ 0 };
    world_note(sim->w, "replace", replica_id, h->to, place);
}

/* Is one damaged, and are enough others ready? */
static void look(struct sim *sim, struct world_replica *leader)
{
    struct shard_host_status status;
    uint32_t count, voters = 0, ready = 0;
    const struct replica_member *m = raft_group_members(leader->group, &count), *damaged = NULL;
    for (uint32_t i = 0; i < count; i++) {
        if (m[i].role != REPLICA_VOTER) continue;
        voters++;
        if (!status_of(sim, leader->slot, (uint32_t)m[i].node_id - 1, m[i].replica_id, &status)) continue;
        ready += status.ready;
        if (status.damaged) damaged = &m[i];
    }
    if (damaged != NULL && ready > voters / 2)
        begin(sim, leader->slot, (uint32_t)damaged->node_id - 1, damaged->replica_id);
}

static void go_on(struct sim *sim, struct sim_heal *h, struct world_replica *leader)
{
    uint32_t slot = leader->slot;
    struct shard_host_status status;
    struct sim_shard *s = shard_at(sim, slot, leader->node->place);
    struct replica *replica = s->host != NULL ? shard_host_replica(s->host) : NULL;
    uint32_t count;
    const struct replica_member *m = raft_group_members(leader->group, &count), *target = NULL;
    bool heard = status_of(sim, slot, h->node, h->to, &status);
    if (replica == NULL) return;
    for (uint32_t i = 0; i < count; i++)
        if (m[i].replica_id == h->to) target = &m[i];
    if (h->step == HEAL_ADD && heard && target == NULL)
        replica_add(replica, h->to, h->node + 1, call_done, call_new(sim, slot, HEAL_ADD, false));
    else if (h->step == HEAL_ADD && heard)
        replica_assign(replica, h->to, REPLICA_STANDBY, call_done, call_new(sim, slot, HEAL_CATCH_UP, false));
    else if (h->step == HEAL_CATCH_UP && heard && status.ready && !status.fetching && !status.damaged)
        replica_assign(replica, h->to, REPLICA_VOTER, call_done, call_new(sim, slot, HEAL_SWITCH, false));
    else if (h->step == HEAL_SWITCH)
        replica_remove(replica, h->from, call_done, call_new(sim, slot, HEAL_NONE, true));
}

static void heal_step(struct sim *sim, uint32_t slot)
{
    struct world *w = sim->w;
    struct sim_heal *h = &sim->heals[slot];
    struct world_replica *leader = world_leader(w, slot);
    if (h->step == HEAL_NONE && h->to != 0) { /* it has just ended */
        *h = (struct sim_heal){ 0 };
        w->groups[slot].held = w->groups[slot].lost = false;
        sim->counts.replaced++;
    }
    if (h->call != 0 && w->now_ms % 2000 != 0) return; /* a command may be given up and repeated */
    if (leader == NULL || w->groups[slot].change_out) return;
    if (h->step == HEAL_NONE)
        look(sim, leader);
    else
        go_on(sim, h, leader);
}

void sim_heal_step(struct sim *sim)
{
    if (sim->w->now_ms % LOOK_MS != 0) return;
    for (uint32_t g = 0; g < sim->w->group_count; g++) heal_step(sim, g);
}

bool sim_heal_idle(const struct sim *sim)
{
    bool idle = sim->heal_calls == sim->heal_calls_ended;
    for (uint32_t g = 0; g < sim->w->group_count; g++)
        idle &= sim->heals[g].step == HEAL_NONE && sim->heals[g].to == 0;
    return idle;
}

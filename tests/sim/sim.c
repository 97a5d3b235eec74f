/* One seed: a storm, then calm in which everybody gets on, then all nodes lose their power at once, then calm again.
 * See sim.h. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "tests/sim/sim.h"

#define STORM_STEPS 5000u /* 25 s */
#define CALM_STEPS 6000u
#define CALM_WRITES 12u

static void sim_step(struct sim *sim)
{
    world_step(sim->w, sim->storm);
    sim_clients_step(sim);
    sim_damage_step(sim);
    sim_heal_step(sim);
}

/* ---- begin and end ---- */

static struct sim *sim_new(const struct sim_options *o)
{
    uint64_t seed = o->seed;
    struct sim *sim = mem_must_calloc(1, sizeof *sim);
    sim->seed = seed;
    snprintf(sim->dir, sizeof sim->dir, "%.500s/s%" PRIu64, o->dir, seed);
    (void)!vfs_remove_tree(vfs_posix(), sim->dir, NULL); /* of a seed that failed */
    if (vfs_mkdir(vfs_posix(), sim->dir, NULL) != OMEN_OK) panic("cannot make %s", sim->dir);
    sim->w = world_new(seed, seed % 4 == 0 ? 2 : 1, &sim_machine, sim);
    sim->w->trace = o->trace;
    sim->w->mutations = o->mutations;
    for (uint32_t g = 0; g < sim->w->group_count; g++) model_init(&sim->models[g]);
    sim_lmdb_begin();
    static const uint64_t deltas[] = { 1, 2000, 8000, 1 << 30 };
    shard_store_options_default(&sim->store);
    sim->store.first_chunk_bytes = 16 << 10;
    sim->store.chunk_bytes = 16 << world_below(sim->w, 3) << 10;
    sim->store.delta_bytes_max = deltas[world_below(sim->w, 4)];
    sim->store.op_retention_ms = SIM_RETENTION_MS;
    for (uint32_t i = 0; i < WORLD_NODES; i++) sim_node_init(&sim->nodes[i], sim, &sim->w->nodes[i]);
    static const uint32_t rages[] = { 1000, 350, 100 };
    sim->w->rage_per_mille = rages[world_below(sim->w, 3)];
    static const uint32_t scrubs[] = { 250, 1500, 6000, 1u << 30 };
    sim->flips_come = seed % 3 == 0;
    sim->scrub_ms = scrubs[seed / 3 % 4];
    sim->storm = true;
    world_up(sim->w);
    return sim;
}

static void sim_free(struct sim *sim)
{
    world_free(sim->w);
    for (uint32_t i = 0; i < WORLD_NODES; i++) sim_disk_fini(&sim->nodes[i].disk);
    for (uint32_t g = 0; g < WORLD_GROUPS_MAX; g++) model_fini(&sim->models[g]);
    if (vfs_remove_tree(vfs_posix(), sim->dir, NULL) != OMEN_OK) panic("cannot remove %s", sim->dir);
    mem_free(sim);
}

/* ---- calm ---- */

static bool shard_settled(const struct sim *sim, const struct sim_shard *s)
{
    return s->compared == sim->models[s->r->slot].sequence;
}

/* Every member that gets the log has applied all of it, and it is what the model has. */
static bool settled(struct sim *sim)
{
    struct world *w = sim->w;
    if (!sim_clients_idle(sim) || !sim_heal_idle(sim) || !world_settled(w)) return false;
    for (uint32_t g = 0; g < w->group_count; g++) {
        uint32_t count;
        struct world_replica *leader = world_leader(w, g);
        const struct replica_member *m = raft_group_members(leader->group, &count);
        for (uint32_t i = 0; i < count; i++)
            if (m[i].role != REPLICA_SPARE && !shard_settled(sim, &sim->nodes[m[i].node_id - 1].shards[g]))
                return false;
    }
    return true;
}

static void calm(struct sim *sim, const char *what)
{
    uint64_t before = sim->counts.writes;
    sim->storm = false;
    world_heal(sim->w);
    for (uint32_t i = 0; i < WORLD_NODES; i++) sim->nodes[i].disk.cut_in = 0;
    for (uint32_t i = 0; i < CALM_STEPS; i++) {
        sim->quiet = sim->counts.writes >= before + CALM_WRITES;
        sim_step(sim);
        if (sim->quiet && i % 16 == 0 && settled(sim)) {
            sim->quiet = false;
            return;
        }
    }
    world_print(sim->w);
    for (uint32_t i = 0; i < WORLD_NODES * sim->w->group_count; i++) {
        const struct sim_shard *s = &sim->nodes[i % WORLD_NODES].shards[i / WORLD_NODES];
        if (s->host != NULL)
            printf("node %u group %u applied %" PRIu64 " of %" PRIu64 "\n", i % WORLD_NODES + 1,
                    i / WORLD_NODES + 1, s->compared, sim->models[i / WORLD_NODES].sequence);
    }
    world_fail(sim->w, "no progress in calm %s: %" PRIu64 " writes in it", what, sim->counts.writes - before);
}

static void totals_add(uint64_t *totals, const void *counts, size_t bytes)
{
    const uint64_t *from = counts;
    for (size_t i = 0; i < bytes / sizeof *from; i++) totals[i] += from[i];
}

uint64_t sim_run(const struct sim_options *options, struct sim_counts *totals,
        struct world_counts *world_totals)
{
    struct sim *sim = sim_new(options);
    for (uint32_t i = 0; i < STORM_STEPS; i++) sim_step(sim);
    calm(sim, "after the storm");
    sim_damage_power_cut(sim);
    calm(sim, "after all were down");
    uint64_t hash = sim->w->hash;
    totals_add((uint64_t *)totals, &sim->counts, sizeof *totals);
    totals_add((uint64_t *)world_totals, &sim->w->counts, sizeof *world_totals);
    sim_free(sim);
    return hash;
}

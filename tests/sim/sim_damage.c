/* Bits that flip on a node's disk: one of a replica's files, at most one replica of a group at a time, from the flip
 * until the replica is replaced. While the node is down or the shard is closed any byte of any file may be hit, LMDB's
 * too; while it is open what is mapped or read again later: the stream's rows, segments.
 *
 * What must hold (CORRECTNESS D3): nobody else is ever wrong because of it, whoever copies from there refuses or gets
 * good bytes; the replica notices at open or at a scrub, or the byte meant nothing; sim_heal.c then replaces it. What a
 * replica that has not noticed yet answers is not judged, and counted: reads do not check what they read (D1 leaves
 * that to the scrubber).
 *
 * Left out: LMDB's file while it is mapped, and after a merge that a power cut has interrupted, where its pages are
 * walked before any checksum is known: LMDB itself may end the process on a page that makes no sense. Bytes that say
 * how long something is, in a stream that is open: the same of ours. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "tests/sim/sim.h"

#define FILE_BYTES_MAX (64u << 20)
#define FILES_MAX 256u
#define GENERATIONS_MAX 30u

struct victim_file {
    char path[SIM_PATH_BYTES];
    enum flip_kind kind;
};
struct victim_files {
    struct vfs *vfs;
    const char *dir;
    struct victim_file *files;
    uint32_t count;
};

bool sim_is_flipped(const struct sim_shard *s)
{
    const struct sim_flip *f = &s->node->sim->flips[s->r->slot][s->r->node->place];
    return f->replica_id != 0 && f->replica_id == s->r->replica_id;
}

void sim_damage_noticed(struct sim_shard *s, enum flip_notice how)
{
    struct sim *sim = s->node->sim;
    struct sim_flip *f = &sim->flips[s->r->slot][s->r->node->place];
    if (!sim_is_flipped(s)) sim_shard_fail(s, "a replica calls itself damaged, and is not");
    if (f->noticed != NOTICE_NONE) return;
    f->noticed = how;
    sim->counts.noticed_open += how == NOTICE_OPEN;
    sim->counts.noticed_scrub += how == NOTICE_SCRUB;
    sim->counts.noticed_apply += how == NOTICE_APPLY;
    world_note(sim->w, "noticed", s->r->replica_id, how, f->kind);
}

/* ---- what can be hit ---- */

static bool name_collect(void *arg, const char *name)
{
    buf_append(arg, name, strlen(name) + 1);
    return true;
}

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

static void files_gather(struct victim_files *v, const char *dir, uint32_t depth)
{
    struct buf names;
    buf_init(&names);
    if (vfs_list(v->vfs, dir, name_collect, &names, NULL) != OMEN_OK) names.len = 0;
    for (size_t at = 0; at < names.len; at += strlen((const char *)names.data + at) + 1) {
        char path[SIM_PATH_BYTES];
        struct vfs_file *file = NULL;
        snprintf(path, sizeof path, "%.400s/%.100s", dir, (const char *)names.data + at);
        if (vfs_open(v->vfs, path, VFS_READ, &file, NULL) != OMEN_OK) {
            if (depth > 0) files_gather(v, path, depth - 1);
            continue;
        }
        vfs_close(file);
        if (v->count == FILES_MAX || ends_with(path, ".tmp")) continue;
        struct victim_file *f = &v->files[v->count++];
        snprintf(f->path, sizeof f->path, "%s", path);
        f->kind = ends_with(path, ".chunk")          ? FLIP_STREAM
                : strstr(path, "/segments/") != NULL ? FLIP_SEGMENT
                                                     : FLIP_SMALL;
    }
    buf_fini(&names);
}

/* ---- hitting it ---- */

/* Up to the last byte that is not zero: what was allocated ahead means nothing. */
static size_t used_bytes(const uint8_t *bytes, size_t len)
{
    while (len > 0 && bytes[len - 1] == 0) len--;
    return len;
}

/* Of a stream that is open only what no length hangs on: vectors, and numbers at the ends of payloads. */
static bool may_change(const struct sim_shard *s, enum flip_kind kind, const uint8_t *bytes, size_t at)
{
    if (s->host == NULL || kind != FLIP_STREAM) return true;
    if (at < 4096 || at % 4 != 2) return false;
    float f;
    memcpy(&f, bytes + at - 2, sizeof f);
    return f >= 1 && f < 5000 && f == (float)(uint32_t)f; /* as sim_client.c makes them */
}

static bool simulated_flip(struct sim_shard *s, struct vfs_sim *vfs, const struct victim_file *f)
{
    struct world *w = s->node->sim->w;
    uint8_t *bytes = NULL;
    size_t len = 0;
    if (vfs_read_file(vfs_sim_vfs(vfs), f->path, FILE_BYTES_MAX, &bytes, &len, NULL) != OMEN_OK) return false;
    size_t used = used_bytes(bytes, len);
    bool done = false;
    for (uint32_t tries = 0; used > 0 && !done && tries < 200; tries++) {
        size_t at = world_below(w, used);
        if (!may_change(s, f->kind, bytes, at)) continue;
        done = vfs_sim_flip_bit(vfs, f->path, at, (unsigned)world_below(w, 8));
        world_note(w, "flip", s->r->replica_id, f->kind, at);
    }
    mem_free(bytes);
    return done;
}

/* LMDB's: a real file, which nobody has open. */
static bool lmdb_flip(struct sim_shard *s, struct vfs_sim *vfs, const char *dir)
{
    struct world *w = s->node->sim->w;
    struct vfs_file *file = NULL;
    char path[SIM_PATH_BYTES];
    bool sealed = false, merging = true;
    uint64_t len = 0;
    uint32_t generation = GENERATIONS_MAX;
    for (; generation > 0 && !sealed; generation--) {
        snprintf(path, sizeof path, "%.400s/g%u/meta/CHECKSUM", dir, generation);
        (void)!vfs_exists(vfs_sim_vfs(vfs), path, &sealed, NULL);
    }
    generation++;
    snprintf(path, sizeof path, "%.400s/g%u/meta/MERGING", dir, generation);
    (void)!vfs_exists(vfs_sim_vfs(vfs), path, &merging, NULL);
    snprintf(path, sizeof path, "%.400s/g%u/meta/data.mdb", dir, generation);
    if (!sealed || merging || s->node->disk.undo) return false;
    if (vfs_open(vfs_posix(), path, VFS_READ | VFS_WRITE, &file, NULL) != OMEN_OK) return false;
    enum omen_err rc = vfs_size(file, &len, NULL);
    uint8_t byte = 0;
    uint64_t at = len > 0 ? world_below(w, len) : 0;
    if (rc == OMEN_OK && len > 0) rc = vfs_pread(file, &byte, 1, at, NULL);
    byte ^= (uint8_t)(1u << world_below(w, 8));
    if (rc == OMEN_OK && len > 0) rc = vfs_pwrite(file, &byte, 1, at, NULL);
    vfs_close(file);
    world_note(w, "flip", s->r->replica_id, FLIP_LMDB, at);
    return rc == OMEN_OK && len > 0;
}

static bool shard_flip(struct sim_shard *s, struct sim_flip *flip)
{
    struct sim *sim = s->node->sim;
    struct sim_disk *d = &s->node->disk;
    struct vfs_sim *vfs = d->photo != NULL ? d->photo : d->vfs;
    char dir[SIM_PATH_BYTES];
    bool done = false;
    snprintf(dir, sizeof dir, "%.400s/r%" PRIu64, d->root, s->r->replica_id);
    flip->running = s->host != NULL;
    if (!flip->running && world_chance(sim->w, 400)) {
        flip->kind = FLIP_LMDB;
        return lmdb_flip(s, vfs, dir);
    }
    struct victim_files v = { .vfs = vfs_sim_vfs(vfs),
        .dir = dir,
        .files = mem_must_calloc(FILES_MAX, sizeof *v.files) };
    files_gather(&v, dir, 3);
    for (uint32_t tries = 0; v.count > 0 && !done && tries < 4; tries++) {
        const struct victim_file *f = &v.files[world_below(sim->w, v.count)];
        if (flip->running && f->kind == FLIP_SMALL) continue; /* read at open */
        flip->kind = f->kind;
        done = simulated_flip(s, vfs, f);
    }
    mem_free(v.files);
    return done;
}

/* ---- whom ---- */

/* All voters are well, and there are enough of them. */
static bool group_is_well(struct sim *sim, struct world_replica *leader)
{
    uint32_t count, voters = 0;
    const struct replica_member *m = raft_group_members(leader->group, &count);
    for (uint32_t i = 0; i < count; i++) {
        struct sim_shard *s = &sim->nodes[m[i].node_id - 1].shards[leader->slot];
        voters += m[i].role == REPLICA_VOTER;
        if (s->r == NULL || s->r->replica_id != m[i].replica_id || sim_is_flipped(s)) return false;
    }
    return voters >= 3;
}

/* One whom a flip may hit now; NULL: nobody. */
static struct sim_shard *victim_choose(struct sim *sim, uint32_t slot)
{
    struct world *w = sim->w;
    struct world_replica *leader = world_leader(w, slot);
    uint32_t count;
    if (leader == NULL || w->groups[slot].change_out || w->groups[slot].held || !group_is_well(sim, leader))
        return NULL;
    const struct replica_member *m = raft_group_members(leader->group, &count);
    const struct replica_member *victim = &m[world_below(w, count)];
    return victim->role == REPLICA_VOTER ? &sim->nodes[victim->node_id - 1].shards[slot] : NULL;
}

static void hit(struct sim_shard *s)
{
    struct sim *sim = s->node->sim;
    struct sim_flip flip = { .replica_id = s->r->replica_id };
    if (s->node->disk.is_cut != (s->node->disk.photo != NULL) || !shard_flip(s, &flip)) return;
    sim->flips[s->r->slot][s->r->node->place] = flip;
    sim->w->groups[s->r->slot].held = true;
    sim->counts.flips++;
    sim->counts.flips_of[flip.kind]++;
    sim->counts.flips_running += flip.running;
}

void sim_damage_step(struct sim *sim)
{
    struct world *w = sim->w;
    if (!sim->flips_come || !sim->storm || !world_chance(w, 25)) return;
    struct sim_shard *s = victim_choose(sim, (uint32_t)world_below(w, w->group_count));
    if (s == NULL || (s->host != NULL && !world_chance(w, 100))) return; /* nodes that are down are rare */
    hit(s);
}

void sim_damage_power_cut(struct sim *sim)
{
    struct sim_shard *victims[WORLD_GROUPS_MAX] = { NULL };
    for (uint32_t g = 0; g < sim->w->group_count && sim->flips_come; g++) victims[g] = victim_choose(sim, g);
    for (uint32_t i = 0; i < WORLD_NODES; i++) world_crash(&sim->w->nodes[i]);
    for (uint32_t g = 0; g < sim->w->group_count; g++)
        if (victims[g] != NULL) hit(victims[g]);
}

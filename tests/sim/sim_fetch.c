/* Copying a peer's checkpoint: what fetch.c and fetch_pull.c do with threads and connections, in steps of a file each. The
 * source's lease and all that a shard does with a copy are the product's (node/shard_base.c, storage/shard_lease.c). After a
 * crash a copy begins anew: going on with a half copied one is test_shard_group's. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/crc32c.h"
#include "tests/sim/sim.h"

#define TRIES_MAX 3u

static struct world *world_of(const struct sim_shard *s) { return s->r->world; }

static void lease_close(struct sim_fetch *f)
{
    if (f->source != NULL) f->source->source.close(f->lease.self);
    f->source = NULL;
}

void sim_fetch_drop(struct sim_shard *s)
{
    lease_close(&s->fetch);
    s->fetch.state = SIM_FETCH_IDLE;
}

static void fetch_failed(struct sim_shard *s, const struct err *why)
{
    struct sim_fetch *f = &s->fetch;
    lease_close(f);
    f->state = SIM_FETCH_BEGUN;
    f->at_ms = world_of(s)->now_ms + (100u << f->tries);
    if (f->tries++ < TRIES_MAX) return;
    f->state = SIM_FETCH_IDLE;
    f->fetch->ended(f->fetch->arg, why->code, (struct bytes){ NULL, 0 }, why);
}

void sim_fetch_source_gone(struct sim_shard *source)
{
    struct sim *sim = source->node->sim;
    struct err err = { 0 };
    (void)err_set(&err, OMEN_EUNAVAILABLE, "", "the source has gone");
    for (uint32_t i = 0; i < WORLD_NODES; i++) {
        struct sim_shard *s = &sim->nodes[i].shards[source->r->slot];
        if (s->fetch.state == SIM_FETCH_COPIES && s->fetch.source == source) fetch_failed(s, &err);
    }
}

/* What is wanted is here, durable. */
static void fetch_done(struct sim_shard *s, struct bytes description)
{
    struct sim_fetch *f = &s->fetch;
    uint64_t reaches = shard_store_applied(s->host->group->next);
    if (reaches > s->r->incoming) s->r->incoming = reaches;
    s->node->sim->counts.fetches++;
    world_note(world_of(s), "fetched", s->r->replica_id, reaches, 0);
    f->state = SIM_FETCH_IDLE;
    f->fetch->ended(f->fetch->arg, OMEN_OK, description, NULL);
}

static bool connected(const struct sim_shard *s, const struct sim_shard *other)
{
    const struct world *w = world_of(s);
    uint32_t a = s->node->n->place, b = other->node->n->place;
    return other->node->n->up && !w->cut[a][b] && !w->cut[b][a];
}

/* One of those that a fetch may ask. */
static struct sim_shard *source_choose(struct sim_shard *s)
{
    struct fetch *fetch = s->fetch.fetch;
    uint32_t nodes[FETCH_CANDIDATES_MAX + 1], count = fetch->candidates(fetch->arg, nodes);
    if (fetch->node_id != 0) nodes[count++] = fetch->node_id;
    if (count == 0) return NULL;
    struct sim_shard *other =
            &s->node->sim->nodes[nodes[world_below(world_of(s), count)] - 1].shards[s->r->slot];
    return other != s && other->source.arg != NULL && connected(s, other) ? other : NULL;
}

static void directory_clear(struct sim_shard *s, const char *dir)
{
    if (vfs_remove_tree(vfs_posix(), dir, NULL) != OMEN_OK) sim_shard_fail(s, "a directory stays");
    (void)!vfs_remove_tree(s->node->env.vfs, dir, NULL);
}

/* Where the copy goes, empty; LMDB's part of it lies in a real directory. */
static enum omen_err prepare(struct sim_shard *s, struct err *err)
{
    struct sim_fetch *f = &s->fetch;
    const struct shard_group *g = s->host->group;
    char dir[SIM_PATH_BYTES];
    snprintf(dir, sizeof dir, "%.500s/g%u", g->dir, g->generation + 1);
    directory_clear(s, dir); /* of an earlier attempt */
    if (vfs_mkdir(vfs_posix(), dir, NULL) != OMEN_OK) sim_shard_fail(s, "no directory for LMDB's files");
    return f->fetch->prepare(f->fetch->arg, &f->reply, &f->dir, err);
}

static void fetch_begin_one(struct sim_shard *s)
{
    struct sim_fetch *f = &s->fetch;
    struct fetch *fetch = f->fetch;
    struct err err = { 0 };
    struct sim_shard *source = source_choose(s);
    enum omen_err rc = source != NULL
            ? source->source.open(source->source.arg, fetch->sequence, &f->lease, &err)
            : err_set(&err, OMEN_EUNAVAILABLE, "", "nobody answers");
    if (rc != OMEN_OK) {
        fetch_failed(s, &err);
        return;
    }
    f->source = source;
    f->reply = (struct file_reply){ .replica_id = f->lease.replica_id,
        .sequence = f->lease.sequence,
        .base_sequence = f->lease.base_sequence,
        .description = f->lease.description,
        .manifest = f->lease.manifest,
        .files = f->lease.files,
        .file_count = f->lease.file_count };
    rc = prepare(s, &err);
    f->file = 1;
    f->state = SIM_FETCH_COPIES;
    if (rc != OMEN_OK) fetch_failed(s, &err);
}

static void fetch_look(struct sim_shard *s)
{
    struct replica_status status;
    struct buf description;
    struct fetch *fetch = s->fetch.fetch;
    replica_status(s->host->replica, &status);
    if (status.switching) return; /* the product waits as well */
    buf_init(&description);
    if (fetch->here(fetch->arg, fetch->sequence, &description) == OMEN_OK)
        fetch_done(s, (struct bytes){ description.data, description.len });
    else
        fetch_begin_one(s);
    buf_fini(&description);
}

/* LMDB's goes to the real file system, as LMDB does. */
static enum omen_err file_copy(struct sim_shard *s, uint32_t file, struct err *err)
{
    struct sim_fetch *f = &s->fetch;
    const struct ship_source *source = &f->source->source;
    const struct file_entry *e = &f->reply.files[file];
    struct vfs_file *out = NULL;
    char path[SIM_PATH_BYTES + 100];
    uint32_t crc = 0;
    snprintf(path, sizeof path, "%.500s/%s", f->dir, e->name);
    uint8_t *bytes = mem_must_alloc(e->bytes + 1);
    enum omen_err rc = source->read(f->lease.self, file, 0, bytes, e->bytes, err);
    if (rc == OMEN_OK) rc = source->sum(f->lease.self, file, &crc, err);
    if (rc == OMEN_OK && crc != crc32c(0, bytes, e->bytes)) {
        if (!sim_is_flipped(f->source)) sim_shard_fail(s, "a leased file changes");
        rc = err_set(err, OMEN_ECORRUPT, "", "a leased file is damaged");
    }
    if (rc == OMEN_OK)
        rc = vfs_open(file == 0 ? vfs_posix() : s->node->env.vfs, path, VFS_WRITE | VFS_CREATE, &out, err);
    if (rc == OMEN_OK) rc = vfs_pwrite(out, bytes, e->bytes, 0, err);
    if (rc == OMEN_OK) rc = vfs_datasync(out, err);
    vfs_close(out);
    mem_free(bytes);
    return rc;
}

static enum omen_err copy_end(struct sim_shard *s, struct err *err)
{
    struct sim_fetch *f = &s->fetch;
    static const char *const names[] = { "", "/stream", "/meta" };
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < 3; i++) {
        char path[SIM_PATH_BYTES];
        snprintf(path, sizeof path, "%.500s%s", f->dir, names[i]);
        rc = vfs_sync_dir(s->node->env.vfs, path, err);
    }
    if (rc == OMEN_OK) rc = f->fetch->adopt(f->fetch->arg, &f->reply, err);
    s->node->sim->counts.copies_refused += rc == OMEN_ECORRUPT;
    if (rc == OMEN_ECORRUPT && !sim_is_flipped(f->source)) sim_shard_fail(s, err->message);
    if (rc != OMEN_OK) directory_clear(s, f->dir);
    return rc;
}

static void fetch_copy(struct sim_shard *s)
{
    struct sim_fetch *f = &s->fetch;
    struct err err = { 0 };
    bool last = f->file == f->reply.file_count;
    enum omen_err rc = connected(s, f->source) ? OMEN_OK
                                               : err_set(&err, OMEN_EIO, "", "the connection is cut");
    if (rc == OMEN_OK) rc = file_copy(s, last ? 0 : f->file, &err); /* LMDB last */
    f->file++;
    if (rc == OMEN_OK && !last) return;
    if (rc == OMEN_OK) rc = copy_end(s, &err);
    if (rc != OMEN_OK) {
        fetch_failed(s, &err);
        return;
    }
    struct buf description;
    buf_init(&description);
    buf_append(&description, f->reply.description.data, f->reply.description.len);
    lease_close(f);
    fetch_done(s, (struct bytes){ description.data, description.len });
    buf_fini(&description);
}

void sim_fetch_step(struct sim_shard *s)
{
    struct sim_fetch *f = &s->fetch;
    if (f->state == SIM_FETCH_BEGUN && world_of(s)->now_ms >= f->at_ms)
        fetch_look(s);
    else if (f->state == SIM_FETCH_COPIES && world_chance(world_of(s), 300))
        fetch_copy(s);
}

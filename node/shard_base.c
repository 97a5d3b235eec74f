/* Generations of a replica's store: copying a peer's checkpoint, going over to it, and giving ours to others.
 *
 *   g<N> in use --fetch--> g<N+1>: INCOMING and files --all here: ADOPT, made ours, opened and verified--> `next`
 *     --raft has the base in its log--> CURRENT = N+1 --> in use; g<N> is closed when its last view is gone, and removed
 *
 *   A crash before ADOPT:                 the fetch goes on from INCOMING
 *   between ADOPT and the log's record:   raft asks again, and what ADOPT describes is there (`here`)
 *   between the record and CURRENT:       replica_open_group switches before it opens
 *   after CURRENT:                        g<N+1> is opened, g<N> removed
 *
 * Nothing is told to raft before the new store was opened from its files: a majority never rests on bytes that nobody has
 * looked at (CORRECTNESS C4).
 *
 * CURRENT v1, 16 bytes: 0 "OMGN" | 4 u16 version | 6 zero[2] | 8 u32 generation | 12 u32 crc32c of 0..11; missing = 1.
 * ADOPT v1: 0 "OMAD" | 4 u16 version | 6 zero[2] | 8 u64 sequence of the base | 16 u32 bytes of the description |
 * 20 u32 bytes of the manifest | description | manifest | u32 crc32c of all before. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "node/shard_host_impl.h"
#include "storage/shard_lease.h"

#define CURRENT_BYTES 16u
#define ADOPT_HEADER_BYTES 24u
#define ADOPT_BYTES_MAX (ADOPT_HEADER_BYTES + FILE_DESCRIPTION_BYTES_MAX + FILE_MANIFEST_BYTES_MAX + 4)
#define SWITCH_POLL_US 500u
#define SWITCH_WAIT_US 10000u
#define LEASE_LOG_BYTES (96u << 20) /* of log kept for a replica that copies from here */

typedef char path_buf[SHARD_DIR_BYTES + 64];

/* ---- files ---- */

static void generation_dir(const struct shard_group *g, uint32_t generation, path_buf out)
{
    snprintf(out, sizeof(path_buf), "%s/g%u", g->dir, generation);
}

static enum omen_err current_read(struct shard_host *shard, uint32_t *generation_out, struct err *err)
{
    path_buf path;
    uint8_t *b = NULL;
    size_t len = 0;
    bool there = false;
    snprintf(path, sizeof path, "%s/CURRENT", shard->group->dir);
    *generation_out = 1;
    enum omen_err rc = vfs_exists(shard->env->vfs, path, &there, err);
    if (rc != OMEN_OK || !there) return rc;
    rc = vfs_read_file(shard->env->vfs, path, CURRENT_BYTES, &b, &len, err);
    if (rc == OMEN_ETOOBIG) return err_corrupt(err, path, 0, "size of the file");
    if (rc != OMEN_OK) return rc;
    bool good = len == CURRENT_BYTES && memcmp(b, "OMGN", 4) == 0 && load_u16(b + 4) == 1 &&
            load_u32(b + 12) == crc32c(0, b, 12) && load_u32(b + 8) != 0;
    if (good) *generation_out = load_u32(b + 8);
    mem_free(b);
    return good ? OMEN_OK : err_corrupt(err, path, 0, "checksum of the file");
}

static enum omen_err current_write(struct shard_host *shard, uint32_t generation, struct err *err)
{
    path_buf path;
    uint8_t b[CURRENT_BYTES] = { 0 };
    memcpy(b, "OMGN", 4);
    store_u16(b + 4, 1);
    store_u32(b + 8, generation);
    store_u32(b + 12, crc32c(0, b, 12));
    snprintf(path, sizeof path, "%s/CURRENT", shard->group->dir);
    return vfs_replace_file(shard->env->vfs, path, b, sizeof b, err);
}

static void tree_remove(struct shard_host *shard, const char *dir)
{
    struct err err;
    if (vfs_remove_tree(shard->env->vfs, dir, &err) != OMEN_OK)
        LOG_WARN("shard.remains", "dir=\"%s\" reason=\"%s\"", dir, err.message);
}

static enum omen_err adopt_write(struct shard_host *shard, const struct file_reply *lease, struct err *err)
{
    char path[sizeof(path_buf) + 8];
    struct buf b;
    uint8_t header[ADOPT_HEADER_BYTES] = { 0 }, crc[4];
    memcpy(header, "OMAD", 4);
    store_u16(header + 4, 1);
    store_u64(header + 8, lease->base_sequence);
    store_u32(header + 16, (uint32_t)lease->description.len);
    store_u32(header + 20, (uint32_t)lease->manifest.len);
    buf_init(&b);
    buf_append(&b, header, sizeof header);
    buf_append(&b, lease->description.data, lease->description.len);
    buf_append(&b, lease->manifest.data, lease->manifest.len);
    if (!b.failed) store_u32(crc, crc32c(0, b.data, b.len));
    buf_append(&b, crc, sizeof crc);
    snprintf(path, sizeof path, "%s/ADOPT", shard->group->next_dir);
    enum omen_err rc = b.failed ? err_set(err, OMEN_ENOMEM, "", "no memory for %s", path)
                                : vfs_replace_file(shard->env->vfs, path, b.data, b.len, err);
    buf_fini(&b);
    return rc;
}

/* What ADOPT says; borrows from *bytes_out (mem_free). */
static enum omen_err adopt_read(struct shard_host *shard, const char *dir, uint8_t **bytes_out,
        uint64_t *sequence_out, struct bytes *description_out, struct bytes *manifest_out)
{
    char path[sizeof(path_buf) + 8];
    size_t len = 0;
    snprintf(path, sizeof path, "%s/ADOPT", dir);
    enum omen_err rc = vfs_read_file(shard->env->vfs, path, ADOPT_BYTES_MAX, bytes_out, &len, NULL);
    if (rc != OMEN_OK) return rc;
    const uint8_t *b = *bytes_out;
    bool good = len >= ADOPT_HEADER_BYTES + 4 && memcmp(b, "OMAD", 4) == 0 && load_u16(b + 4) == 1 &&
            load_u32(b + len - 4) == crc32c(0, b, len - 4);
    uint64_t description = good ? load_u32(b + 16) : 0, manifest = good ? load_u32(b + 20) : 0;
    if (good && description + manifest == len - ADOPT_HEADER_BYTES - 4) {
        *sequence_out = load_u64(b + 8);
        *description_out = (struct bytes){ b + ADOPT_HEADER_BYTES, description };
        *manifest_out = (struct bytes){ b + ADOPT_HEADER_BYTES + description, manifest };
        return OMEN_OK;
    }
    mem_free(*bytes_out);
    *bytes_out = NULL;
    return OMEN_ECORRUPT;
}

/* ---- the next generation ---- */

/* Its files become this replica's, and are all looked at. They must reach the base that raft's log will rest on. */
static enum omen_err next_open(struct shard_host *shard, const char *dir, struct bytes manifest,
        uint64_t base_sequence, struct shard_store **store_out, struct err *err)
{
    struct shard_store_options o = shard->env->store;
    o.vfs = shard->env->vfs;
    o.dir = dir;
    o.shard_id = shard->shard_id;
    o.replica_id = shard->replica_id;
    o.schema = &shard->schema;
    enum omen_err rc = shard_store_adopt(&o, manifest, err);
    if (rc == OMEN_OK) rc = shard_host_store_open(shard, dir, 0, store_out, err);
    if (rc != OMEN_OK || shard_store_applied(*store_out) >= base_sequence) return rc;
    uint64_t applied = shard_store_applied(*store_out);
    shard_store_close(*store_out);
    *store_out = NULL;
    return err_set(err, OMEN_ECORRUPT, "", "%s: the copy ends at sequence %" PRIu64 ", its base at %" PRIu64,
            dir, applied, base_sequence);
}

/* What is to become of the next generation when it cannot be used: raft's log may rest on it already, and then only
 * what is wrong with its content takes its place from it. */
enum next_use { NEXT_OFFERED, NEXT_RESTED_ON };

/* No room, no memory, a read that failed: the files are as good as before. */
static bool passes(enum omen_err rc) { return rc == OMEN_EFULL || rc == OMEN_ENOMEM || rc == OMEN_EIO; }

/* The store that is ready to be gone over to and reaches `sequence`, also one that an earlier life left.
 * OMEN_ENOTFOUND: there is none. */
static enum omen_err next_load(struct shard_host *shard, uint64_t sequence, enum next_use use,
        struct buf *description, struct shard_store **store_out, struct err *err)
{
    struct shard_group *g = shard->group;
    path_buf dir;
    uint8_t *b = NULL;
    uint64_t base_sequence = 0;
    struct bytes d, manifest;
    *store_out = NULL;
    pthread_mutex_lock(&g->base_lock);
    struct shard_store *store = g->next;
    g->next = NULL; /* ours while we look */
    generation_dir(g, g->generation + 1, dir);
    pthread_mutex_unlock(&g->base_lock);
    enum omen_err rc = adopt_read(shard, dir, &b, &base_sequence, &d, &manifest);
    bool adopting = rc != OMEN_ENOTFOUND;
    if (rc == OMEN_OK && base_sequence < sequence) rc = OMEN_ENOTFOUND;
    if (rc == OMEN_OK && store == NULL) rc = next_open(shard, dir, manifest, base_sequence, &store, err);
    if (rc == OMEN_OK && description != NULL) buf_append(description, d.data, d.len);
    mem_free(b);
    *store_out = rc == OMEN_OK ? store : NULL;
    if (rc == OMEN_OK) return rc;
    if (rc != OMEN_ENOTFOUND)
        LOG_WARN("shard.next", "shard=%" PRIu64 " dir=\"%s\" error=%s", shard->shard_id, dir, err_name(rc));
    shard_store_close(store);
    /* With ADOPT its files are no copies any more that a fetch could go on with. */
    if (adopting && (use == NEXT_OFFERED || !passes(rc))) tree_remove(shard, dir);
    return rc;
}

/* ---- fetching ---- */

void shard_base_fetch(void *self, uint64_t sequence, uint64_t node_id)
{
    struct shard_host *shard = self;
    fetch_begin(&shard->group->fetch, sequence, (uint32_t)node_id);
    if (shard->group->peers != NULL && shard->group->peers->changed != NULL)
        shard->group->peers->changed(shard->group->peers->arg);
}

static uint32_t fetch_candidates(void *arg, uint32_t *nodes_out)
{
    struct shard_host *shard = arg;
    struct replica_member members[GROUP_MEMBERS_MAX];
    uint32_t count = 0, n = 0;
    if (shard->replica != NULL) replica_members(shard->replica, members, &count);
    for (uint32_t i = 0; i < count && n < FETCH_CANDIDATES_MAX; i++)
        if (members[i].node_id != shard->group->node_id && members[i].role != REPLICA_SPARE)
            nodes_out[n++] = (uint32_t)members[i].node_id;
    const struct shard_peers *peers = shard->group->peers;
    if (n > 0 || peers == NULL || peers->replicas == NULL) return n;
    uint32_t placed[FETCH_CANDIDATES_MAX];
    count = peers->replicas(peers->arg, shard->shard_id, placed);
    for (uint32_t i = 0; i < count; i++)
        if (placed[i] != shard->group->node_id) nodes_out[n++] = placed[i];
    return n;
}

static bool fetch_address(void *arg, uint32_t node_id, char *out)
{
    const struct shard_group *g = ((struct shard_host *)arg)->group;
    return g->peers != NULL && g->peers->address(g->peers->arg, node_id, out);
}

static uint64_t fetch_throttle(void *arg)
{
    const struct shard_group *g = ((struct shard_host *)arg)->group;
    return g->peers != NULL && g->peers->throttle != NULL ? g->peers->throttle(g->peers->arg) : 0;
}

/* Raft may ask for another base before the apply worker has gone over to the last one, which is the next generation until
 * then: that is not ours to look at meanwhile. Nothing is gone over to again before we say that something is ready. */
static bool switch_wait(struct shard_host *shard)
{
    for (;;) {
        struct replica_status status = { .switching = true };
        if (atomic_load(&shard->group->open))
            replica_status(shard->replica, &status); /* it may be opening yet */
        if (!status.switching) return true;
        if (atomic_load(&shard->group->fetch.cancel)) return false;
        usleep(SWITCH_WAIT_US);
    }
}

static enum omen_err fetch_here(void *arg, uint64_t sequence, struct buf *description_out)
{
    struct shard_host *shard = arg;
    if (!switch_wait(shard)) return OMEN_ECANCELED;
    struct shard_store *store;
    struct err err;
    enum omen_err rc = next_load(shard, sequence, NEXT_OFFERED, description_out, &store, &err);
    if (rc != OMEN_OK) return rc;
    pthread_mutex_lock(&shard->group->base_lock);
    shard->group->next = store;
    pthread_mutex_unlock(&shard->group->base_lock);
    return OMEN_OK;
}

/* The list of files is what the manifest says, and nothing else. */
static bool same_files(const struct store_manifest *m, const struct file_reply *lease)
{
    if (m->file_count != lease->file_count || m->sequence != lease->sequence ||
            m->replica_id != lease->replica_id)
        return false;
    for (uint32_t i = 0; i < m->file_count; i++)
        if (strcmp(m->files[i].name, lease->files[i].name) != 0 ||
                m->files[i].bytes != lease->files[i].bytes || (i > 0) != lease->files[i].grows)
            return false;
    return true;
}

static enum omen_err fetch_prepare(void *arg, const struct file_reply *lease, const char **dir_out,
        struct err *err)
{
    struct shard_host *shard = arg;
    struct shard_group *g = shard->group;
    struct store_manifest m;
    enum omen_err rc = store_manifest_decode(lease->manifest, &m, err);
    if (rc != OMEN_OK) return rc;
    if (m.shard_id != shard->shard_id || !same_files(&m, lease))
        rc = err_set(err, OMEN_EPROTO, "", "the lease is no checkpoint of shard %" PRIu64, shard->shard_id);
    else if (m.sequence < lease->base_sequence)
        rc = err_set(err, OMEN_EPROTO, "",
                "the lease is of a checkpoint at sequence %" PRIu64 ", before its base at %" PRIu64,
                m.sequence, lease->base_sequence);
    store_manifest_fini(&m);
    if (rc != OMEN_OK) return rc;
    pthread_mutex_lock(&g->base_lock);
    generation_dir(g, g->generation + 1, g->next_dir);
    pthread_mutex_unlock(&g->base_lock);
    *dir_out = g->next_dir;
    rc = vfs_mkdir(shard->env->vfs, g->next_dir, err);
    if (rc == OMEN_OK) rc = store_manifest_dirs(shard->env->vfs, g->next_dir, err);
    return rc == OMEN_OK ? vfs_sync_dir(shard->env->vfs, g->dir, err) : rc;
}

static enum omen_err fetch_adopt(void *arg, const struct file_reply *lease, struct err *err)
{
    struct shard_host *shard = arg;
    struct shard_group *g = shard->group;
    struct shard_store *store = NULL;
    enum omen_err rc = adopt_write(shard, lease, err);
    if (rc == OMEN_OK) rc = next_open(shard, g->next_dir, lease->manifest, lease->base_sequence, &store, err);
    if (rc != OMEN_OK) return rc;
    pthread_mutex_lock(&g->base_lock);
    CHECK(g->next == NULL);
    g->next = store;
    pthread_mutex_unlock(&g->base_lock);
    return OMEN_OK;
}

static void fetch_ended(void *arg, enum omen_err rc, struct bytes description, const struct err *why)
{
    struct shard_host *shard = arg;
    struct err err;
    if (rc == OMEN_OK) {
        shard_group_trouble(shard, NULL);
        rc = replica_base_ready(shard->replica, description.data, description.len, &err);
        if (rc == OMEN_OK) return;
        why = &err;
    }
    shard_group_trouble(shard, why);
    replica_base_failed(shard->replica);
}

/* ---- going over ---- */

static void old_bury(struct shard_host *shard)
{
    struct shard_group *g = shard->group;
    for (;;) {
        pthread_mutex_lock(&g->base_lock);
        struct old_store *old = g->old;
        if (old != NULL) g->old = old->next;
        pthread_mutex_unlock(&g->base_lock);
        if (old == NULL) return;
        shard_store_close(old->store); /* waits for its views */
        tree_remove(shard, old->dir);
        mem_free(old);
    }
}

static void bury_run(struct fetch_task *task)
{
    struct shard_group *g = (struct shard_group *)((char *)task - offsetof(struct shard_group, bury));
    old_bury(g->fetch.arg);
}

/* Users let go soon: they hold it for one look, or a checkpoint. What reads by a view goes on with the old store. */
static void store_replace(struct shard_host *shard, struct shard_store *next)
{
    struct shard_group *g = shard->group;
    struct shard_store *before = atomic_load(&shard->store);
    struct old_store *old = mem_must_calloc(1, sizeof *old);
    atomic_store(&g->applied, shard_store_applied(before));
    atomic_store(&g->needed_from, shard_store_log_needed_from(before));
    atomic_store(&shard->store, NULL);
    while (atomic_load(&shard->store_users) > 0) usleep(SWITCH_POLL_US);
    atomic_store(&shard->store, next);
    old->store = before;
    pthread_mutex_lock(&g->base_lock);
    generation_dir(g, g->generation++, old->dir);
    old->next = g->old;
    g->old = old;
    pthread_mutex_unlock(&g->base_lock);
    if (g->fetch.fetcher != NULL) fetch_post(g->fetch.fetcher, &g->bury, 0); /* else at the end */
}

enum omen_err shard_base_switch(void *self, uint64_t sequence, struct err *err)
{
    struct shard_host *shard = self;
    struct shard_group *g = shard->group;
    struct shard_store *next;
    enum omen_err rc = next_load(shard, sequence, NEXT_RESTED_ON, NULL, &next, err);
    if (passes(rc)) return rc;
    if (rc != OMEN_OK)
        return err_set(err, OMEN_ECORRUPT, "", "%s: there is no base that reaches sequence %" PRIu64, g->dir,
                sequence);
    uint64_t applied = shard_store_applied(next);
    rc = applied >= sequence
            ? current_write(shard, g->generation + 1, err)
            : err_set(err, OMEN_ECORRUPT, "", "%s: the base ends at sequence %" PRIu64 ", not at %" PRIu64,
                      g->dir, applied, sequence);
    if (rc != OMEN_OK) {
        shard_store_close(next);
        return rc;
    }
    store_replace(shard, next);
    LOG_INFO("shard.switched", "shard=%" PRIu64 " replica=%" PRIu64 " generation=%u sequence=%" PRIu64,
            shard->shard_id, shard->replica_id, g->generation, applied);
    atomic_store(&g->blank, false);
    shard_read_applied(shard, applied);
    return OMEN_OK;
}

/* Nobody fetches meanwhile: raft's base is still being gone over to, as they see it. */
void shard_base_pass_over(void *self)
{
    struct shard_host *shard = self;
    struct shard_group *g = shard->group;
    path_buf dir;
    pthread_mutex_lock(&g->base_lock);
    struct shard_store *next = g->next;
    g->next = NULL;
    generation_dir(g, g->generation + 1, dir);
    pthread_mutex_unlock(&g->base_lock);
    shard_store_close(next);
    tree_remove(shard, dir);
}

/* ---- for others ---- */

/* A lease given to another node. */
struct base_lease {
    struct shard_host *shard;
    struct store_lease *store;
    struct buf description;
    struct file_entry *files;
};

static void leases_count(struct shard_host *shard, int by)
{
    struct shard_group *g = shard->group;
    pthread_mutex_lock(&g->base_lock);
    g->leases += (uint32_t)by;
    replica_keep_log(shard->replica, g->leases > 0 ? LEASE_LOG_BYTES : 0);
    pthread_mutex_unlock(&g->base_lock);
}

static void source_close(void *self)
{
    struct base_lease *l = self;
    leases_count(l->shard, -1);
    store_lease_close(l->store);
    buf_fini(&l->description);
    mem_free(l->files);
    mem_free(l);
}

static enum omen_err source_lease(struct base_lease *l, struct ship_checkpoint *out, uint64_t sequence,
        struct err *err)
{
    struct shard_host *shard = l->shard;
    enum omen_err rc = replica_base_describe(shard->replica, &l->description, &out->base_sequence);
    if (rc != OMEN_OK || out->base_sequence < sequence)
        return err_set(err, OMEN_EUNAVAILABLE, "", "this replica has no base at sequence %" PRIu64 " yet",
                sequence);
    struct shard_store *store = shard_host_store_hold(shard);
    if (store == NULL) return err_set(err, OMEN_EUNAVAILABLE, "", "the store is being replaced");
    rc = store_lease_open(store, &l->store, err);
    shard_host_store_unhold(shard);
    /* This replica's log rests on a base that it has copied itself and not gone over to yet. */
    if (rc == OMEN_OK && store_lease_manifest(l->store)->sequence < out->base_sequence)
        return err_set(err, OMEN_EUNAVAILABLE, "", "the store is about to be replaced");
    return rc;
}

static enum omen_err source_open(void *arg, uint64_t sequence, struct ship_checkpoint *out, struct err *err)
{
    struct shard_host *shard = arg;
    if (shard_group_is_damaged(shard) || atomic_load(&shard->group->blank))
        return err_set(err, OMEN_EUNAVAILABLE, "", "this replica has nothing to copy");
    struct base_lease *l = mem_must_calloc(1, sizeof *l);
    l->shard = shard;
    buf_init(&l->description);
    leases_count(shard, 1); /* the log is kept from the base that is described on */
    enum omen_err rc = source_lease(l, out, sequence, err);
    if (rc != OMEN_OK) {
        source_close(l);
        return rc;
    }
    const struct store_manifest *m = store_lease_manifest(l->store);
    l->files = mem_must_calloc(m->file_count, sizeof *l->files);
    for (uint32_t i = 0; i < m->file_count; i++) {
        snprintf(l->files[i].name, sizeof l->files[i].name, "%s", m->files[i].name);
        l->files[i].bytes = m->files[i].bytes;
        l->files[i].grows = i > 0; /* chunks only grow; LMDB is written all over */
    }
    out->self = l;
    out->replica_id = m->replica_id;
    out->sequence = m->sequence;
    out->description = (struct bytes){ l->description.data, l->description.len };
    out->manifest = store_lease_manifest_bytes(l->store);
    out->files = l->files;
    out->file_count = m->file_count;
    return OMEN_OK;
}

static enum omen_err source_read(void *self, uint32_t file, uint64_t offset, void *dst, size_t len,
        struct err *err)
{
    return store_lease_read(((struct base_lease *)self)->store, file, offset, dst, len, err);
}

static enum omen_err source_sum(void *self, uint32_t file, uint32_t *crc_out, struct err *err)
{
    return store_lease_sum(((struct base_lease *)self)->store, file, crc_out, err);
}

/* ---- life ---- */

/* Generations that are neither the present one nor on their way. */
struct strays {
    const struct shard_group *g;
    struct buf names;
};

static bool stray_each(void *arg, const char *name)
{
    struct strays *s = arg;
    unsigned generation;
    char again[32];
    if (name[0] != 'g' || sscanf(name + 1, "%u", &generation) != 1) return true;
    snprintf(again, sizeof again, "g%u", generation);
    bool ours = strcmp(again, name) == 0;
    if (ours && generation != s->g->generation && generation != s->g->generation + 1)
        buf_append(&s->names, name, strlen(name) + 1);
    return true;
}

static enum omen_err strays_remove(struct shard_host *shard, struct err *err)
{
    struct strays s = { .g = shard->group };
    buf_init(&s.names);
    enum omen_err rc = vfs_list(shard->env->vfs, shard->group->dir, stray_each, &s, err);
    for (size_t at = 0; rc == OMEN_OK && !s.names.failed && at < s.names.len;) {
        path_buf path;
        const char *name = (const char *)s.names.data + at;
        snprintf(path, sizeof path, "%s/%.32s", shard->group->dir, name);
        tree_remove(shard, path);
        at += strlen(name) + 1;
    }
    buf_fini(&s.names);
    return rc;
}

enum omen_err shard_base_open(struct shard_host *shard, uint64_t base_sequence, struct err *err)
{
    struct shard_group *g = shard->group;
    struct shard_store *store = NULL;
    path_buf dir;
    g->fetch = (struct fetch){ .fetcher = shard->env->fetcher,
        .group = shard->shard_id,
        .arg = shard,
        .candidates = fetch_candidates,
        .address = fetch_address,
        .throttle = fetch_throttle,
        .here = fetch_here,
        .prepare = fetch_prepare,
        .adopt = fetch_adopt,
        .ended = fetch_ended };
    g->bury.run = bury_run;
    if (g->peers != NULL) g->fetch.key = g->peers->key;
    enum omen_err rc = current_read(shard, &g->generation, err);
    if (rc == OMEN_OK) rc = strays_remove(shard, err);
    generation_dir(g, g->generation, dir);
    if (rc == OMEN_OK) rc = shard_host_store_open(shard, dir, base_sequence, &store, err);
    if (rc == OMEN_OK) atomic_store(&shard->store, store);
    return rc;
}

void shard_base_serve(struct shard_host *shard)
{
    const struct ship_source source = { shard, source_open, source_read, source_sum, source_close };
    if (shard->env->ship != NULL && shard->replica != NULL)
        ship_register(shard->env->ship, shard->shard_id, &source);
}

void shard_base_stop(struct shard_host *shard)
{
    if (shard->env->ship != NULL) ship_unregister(shard->env->ship, shard->shard_id);
    fetch_cancel(&shard->group->fetch);
}

void shard_base_close(struct shard_host *shard)
{
    struct shard_group *g = shard->group;
    fetch_cancel(&g->fetch); /* raft may have asked until it was closed */
    if (g->fetch.fetcher != NULL) fetch_withdraw(g->fetch.fetcher, &g->bury);
    old_bury(shard);
    shard_store_close(g->next);
    g->next = NULL;
}

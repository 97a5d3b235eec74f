/* The cluster group's bases: a replica that is too far behind the log, or new, copies another's CATALOG file over
 * the same road as shards do (node/ship.h, node/fetch.h).
 *
 *   catalog/CATALOG in use --fetch--> catalog/incoming/CATALOG, whole, durable, looked at --raft has the base in its
 *   log--> imported (durable, then visible) --> incoming removed
 *
 *   A crash before the log's record: raft asks again, and what is there is copied again (it is small). After it:
 *   replica_open_group imports before it opens; a state that is newer already stays (catalog_import). */
#include "common/err.h"

#include <stdio.h>

#include "common/check.h"
#include "common/log.h"
#include "node/fetch.h"
#include "node/member/member_impl.h"
#include "node/ship.h"

#define BASE_FILE "CATALOG"

/* ---- giving ---- */

static enum omen_err base_open(void *arg, uint64_t sequence, struct ship_checkpoint *checkpoint_out,
        struct err *err)
{
    struct member *m = arg;
    struct buf content, description;
    uint64_t at = 0, base_sequence = 0;
    buf_init(&content);
    buf_init(&description);
    enum omen_err rc = replica_base_describe(m->node->catalog_replica, &description, &base_sequence);
    if (rc != OMEN_OK || base_sequence < sequence)
        rc = err_set(err, OMEN_EUNAVAILABLE, "", "this node has no base of the cluster group at %llu yet",
                (unsigned long long)sequence);
    if (rc == OMEN_OK) catalog_export(m->node->catalog, &content, &at);
    if (rc == OMEN_OK && (content.failed || description.failed))
        rc = err_set(err, OMEN_ENOMEM, "", "no memory for a copy of the catalog");
    /* The log here rests on a base that was copied itself and is not gone over to yet. */
    if (rc == OMEN_OK && at < base_sequence)
        rc = err_set(err, OMEN_EUNAVAILABLE, "", "this node's catalog is about to be replaced");
    if (rc == OMEN_OK)
        ship_bytes_checkpoint(BASE_FILE, &content, &description, m->node->dir.identity.catalog_replica_id, at,
                base_sequence, checkpoint_out);
    buf_fini(&content);
    buf_fini(&description);
    return rc;
}

void member_base_register(struct member *m)
{
    const struct ship_source source = { .arg = m,
        .open = base_open,
        .read = ship_bytes_read,
        .sum = ship_bytes_sum,
        .close = ship_bytes_close };
    ship_register(m->node->env.ship, CATALOG_GROUP, &source);
}

/* ---- taking ---- */

static void incoming_path(struct member *m, const char *name, char out[NODE_PATH_BYTES_MAX])
{
    char part[64];
    snprintf(part, sizeof part, "catalog/incoming%s%s", name[0] == '\0' ? "" : "/", name);
    data_dir_path(&m->node->dir, part, out);
}

static enum omen_err incoming_read(struct member *m, uint8_t **bytes_out, size_t *len_out, struct err *err)
{
    char path[NODE_PATH_BYTES_MAX];
    incoming_path(m, BASE_FILE, path);
    return vfs_read_file(m->node->options.vfs, path, CATALOG_FILE_BYTES_MAX, bytes_out, len_out, err);
}

void member_base_fetch(void *self, uint64_t sequence, uint64_t node_id)
{
    struct member *m = self;
    fetch_begin(&m->base_fetch, sequence, (uint32_t)node_id);
}

static uint32_t base_candidates(void *arg, uint32_t *nodes_out)
{
    struct member *m = arg;
    uint32_t n = 0;
    pthread_mutex_lock(&m->lock); /* those that hellos, or the join, told of: the state here may be empty */
    for (uint32_t i = 0; i < MEMBER_NODES_MAX && n < FETCH_CANDIDATES_MAX; i++)
        if (m->views[i].node_id != 0 && m->views[i].node_id != member_id(m))
            nodes_out[n++] = m->views[i].node_id;
    pthread_mutex_unlock(&m->lock);
    return n;
}

static bool base_address(void *arg, uint32_t node_id, char *out)
{
    struct member *m = arg;
    return m->shard_peers.address(m, node_id, out);
}

/* What a crash left is copied again rather than trusted to be the answer to this question. */
static enum omen_err base_here(void *arg, uint64_t sequence, struct buf *description_out)
{
    return OMEN_ENOTFOUND;
}

static enum omen_err base_prepare(void *arg, const struct file_reply *lease, const char **dir_out,
        struct err *err)
{
    struct member *m = arg;
    if (lease->file_count != 1 || strcmp(lease->files[0].name, BASE_FILE) != 0 ||
            lease->files[0].bytes > CATALOG_FILE_BYTES_MAX)
        return err_set(err, OMEN_EPROTO, "", "the lease is no copy of a catalog");
    if (lease->sequence < lease->base_sequence)
        return err_set(err, OMEN_EPROTO, "", "the lease is of a catalog before its base");
    incoming_path(m, "", m->base_dir);
    *dir_out = m->base_dir;
    enum omen_err rc = vfs_mkdir(m->node->options.vfs, m->base_dir, err);
    char parent[NODE_PATH_BYTES_MAX];
    data_dir_path(&m->node->dir, "catalog", parent);
    return rc == OMEN_OK ? vfs_sync_dir(m->node->options.vfs, parent, err) : rc;
}

/* Looked at before raft may count on it (CORRECTNESS C4). */
static enum omen_err base_adopt(void *arg, const struct file_reply *lease, struct err *err)
{
    struct member *m = arg;
    uint8_t *bytes;
    size_t len;
    enum omen_err rc = incoming_read(m, &bytes, &len, err);
    if (rc != OMEN_OK) return rc;
    rc = catalog_import_check(m->node->catalog, (struct bytes){ bytes, len }, err);
    mem_free(bytes);
    return rc;
}

static void base_ended(void *arg, enum omen_err rc, struct bytes description, const struct err *why)
{
    struct member *m = arg;
    struct err err;
    if (rc == OMEN_OK) {
        rc = replica_base_ready(m->node->catalog_replica, description.data, description.len, &err);
        if (rc == OMEN_OK) return;
        why = &err;
    }
    LOG_WARN("cluster.base", "error=\"%s\"", why->message);
    replica_base_failed(m->node->catalog_replica);
}

enum omen_err member_base_switch(void *self, uint64_t sequence, struct err *err)
{
    struct member *m = self;
    uint8_t *bytes;
    size_t len;
    enum omen_err rc = incoming_read(m, &bytes, &len, err);
    if (rc != OMEN_OK) return rc;
    rc = catalog_import(m->node->catalog, (struct bytes){ bytes, len }, err);
    mem_free(bytes);
    if (rc != OMEN_OK) return rc;
    char dir[NODE_PATH_BYTES_MAX];
    struct err ignored;
    incoming_path(m, "", dir);
    if (vfs_remove_tree(m->node->options.vfs, dir, &ignored) != OMEN_OK)
        LOG_WARN("cluster.base", "dir=%s error=\"%s\"", dir, ignored.message);
    LOG_INFO("cluster.base", "sequence=%llu", (unsigned long long)sequence);
    return OMEN_OK;
}

void member_base_init(struct member *m)
{
    m->base_fetch = (struct fetch){
        .fetcher = m->node->env.fetcher,
        .group = CATALOG_GROUP,
        .arg = m,
        .key = m->node->options.cluster.key,
        .candidates = base_candidates,
        .address = base_address,
        .here = base_here,
        .prepare = base_prepare,
        .adopt = base_adopt,
        .ended = base_ended,
    };
}

/* The shards' turn is their own; the replica is closed after. */
void member_base_stop(struct member *m)
{
    if (m->node->env.ship == NULL) return;
    fetch_cancel(&m->base_fetch);
    ship_unregister(m->node->env.ship, CATALOG_GROUP);
}

/* A shard's replica as one of a Raft group: opening it, who may write and read, readiness, damage. What other
 * replicas have room for is shard_admission.c's.
 *
 *   FOLLOWS --elected--> PREPARING --barrier: all that earlier leaders committed is applied--> LEADS
 *      ^------------------ leadership lost ---------+------------------------------------------+
 *   Only LEADS builds entries: log time must not be below what the shard has applied, op ids are looked up at apply
 *   but admission needs the newest table, and room in the stream is counted from what is applied (CORRECTNESS A1,
 *   A3).
 *
 *   Damage:  NONE --apply: ECORRUPT--> SEEN (in this life: an entry of ours may be the cause)
 *            NONE --open, scrubber--> FOUND --DAMAGED is written--> KEPT (halted, out of the log; the files stay)
 *   From SEEN on the replica is halted: it serves nothing, and its group goes on without it (CORRECTNESS D3).
 *
 * Files: shard_base.c's, and <dir>/DAMAGED: why it is not to be opened again. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "node/shard_host_impl.h"

/* ---- damage ---- */

static void path_in(const struct shard_group *g, const char *name, char out[SHARD_DIR_BYTES + 64])
{
    snprintf(out, SHARD_DIR_BYTES + 64, "%s/%s", g->dir, name);
}

static void changed(const struct shard_group *g)
{
    if (g->peers != NULL && g->peers->changed != NULL) g->peers->changed(g->peers->arg);
}

bool shard_group_is_damaged(const struct shard_host *shard)
{
    return atomic_load(&shard->group->damage) != DAMAGE_NONE;
}

/* The first finding stays. */
static void damage_note(struct shard_group *g, const struct err *why, enum shard_damage damage)
{
    pthread_mutex_lock(&g->trouble_lock);
    bool first = atomic_load(&g->damage) == DAMAGE_NONE;
    if (first) {
        g->trouble_code = why->code;
        snprintf(g->trouble, sizeof g->trouble, "%s", why->message);
    }
    if ((int)damage > atomic_load(&g->damage)) atomic_store(&g->damage, (int)damage);
    pthread_mutex_unlock(&g->trouble_lock);
}

/* The replica's id must never vote again once its log is let go of, so that comes after the mark is durable. */
static void damage_keep(struct shard_host *shard)
{
    struct shard_group *g = shard->group;
    char path[SHARD_DIR_BYTES + 64];
    struct err why = { 0 }, err;
    pthread_mutex_lock(&g->trouble_lock);
    err_set(&why, g->trouble_code, "", "%s", g->trouble);
    pthread_mutex_unlock(&g->trouble_lock);
    path_in(g, "DAMAGED", path);
    enum omen_err rc = vfs_replace_file(shard->env->vfs, path, why.message, strlen(why.message), &err);
    if (rc == OMEN_OK) {
        atomic_store(&g->damage, DAMAGE_KEPT);
        LOG_ERROR("shard.quarantined", "shard=%" PRIu64 " replica=%" PRIu64 " reason=\"%s\"", shard->shard_id,
                shard->replica_id, why.message);
    }
    if (shard->replica != NULL) replica_halt(shard->replica, why.code, &why, rc == OMEN_OK);
}

void shard_group_trouble(struct shard_host *shard, const struct err *why)
{
    struct shard_group *g = shard->group;
    pthread_mutex_lock(&g->trouble_lock);
    if (atomic_load(&g->damage) == DAMAGE_NONE)
        snprintf(g->trouble, sizeof g->trouble, "%s", why != NULL ? why->message : "");
    pthread_mutex_unlock(&g->trouble_lock);
}

void shard_group_damaged(struct shard_host *shard, const struct err *why, bool found)
{
    damage_note(shard->group, why, found ? DAMAGE_FOUND : DAMAGE_SEEN);
    changed(shard->group);
}

void shard_host_distrust(struct shard_host *shard, uint64_t replica_id, const struct err *why)
{
    if (shard->group == NULL || shard->replica_id != replica_id || shard_group_is_damaged(shard)) return;
    LOG_ERROR("shard.distrusted", "shard=%" PRIu64 " replica=%" PRIu64 " reason=\"%s\"", shard->shard_id,
            replica_id, why->message);
    shard_group_damaged(shard, why, true);
}

/* At open: marked in an earlier life. */
static enum omen_err damage_read(struct shard_host *shard, bool *damaged_out, struct err *err)
{
    struct shard_group *g = shard->group;
    char path[SHARD_DIR_BYTES + 64];
    uint8_t *text = NULL;
    size_t len = 0;
    path_in(g, "DAMAGED", path);
    enum omen_err rc = vfs_exists(shard->env->vfs, path, damaged_out, err);
    if (rc != OMEN_OK || !*damaged_out) return rc;
    struct err why = { .code = OMEN_ECORRUPT };
    if (vfs_read_file(shard->env->vfs, path, sizeof why.message - 1, &text, &len, NULL) == OMEN_OK)
        memcpy(why.message, text, len);
    mem_free(text);
    damage_note(g, &why, DAMAGE_KEPT);
    return OMEN_OK;
}

/* ---- leadership ---- */

/* The keeper begins what a leader needs, or tells those who wait that it is none any more. */
static void leadership_use(struct shard_host *shard)
{
    if (atomic_load(&shard->group->open)) room_keeper_ask(shard->env->rooms, &shard->room_ticket);
}

/* On raft's loop, from within replica_open_group on: nothing here blocks or calls the door. */
static void on_leader_change(void *arg, bool leads, const struct replica_member *leader, uint64_t term)
{
    struct shard_host *shard = arg;
    struct shard_group *g = shard->group;
    atomic_store(&g->leader_node, leads ? g->node_id : (uint32_t)leader->node_id);
    atomic_store(&g->lead_term, leads ? term : 0);
    leadership_use(shard);
    changed(g);
}

enum shard_lead shard_group_lead(const struct shard_host *shard)
{
    const struct shard_group *g = shard->group;
    if (g == NULL) return LEAD_READY;
    uint64_t term = atomic_load(&g->lead_term);
    if (term == 0 || atomic_load(&g->damage) != DAMAGE_NONE) return LEAD_NOT;
    return g->prepared_term == term ? LEAD_READY : LEAD_PREPARING;
}

bool shard_host_may(const struct shard_host *shard, enum feature feature)
{
    const struct shard_peers *peers = shard->group == NULL ? NULL : shard->group->peers;
    return feature_may(peers == NULL || peers->level == NULL ? feature_level() : peers->level(peers->arg),
            feature);
}

struct lead_barrier {
    struct shard_host *shard;
    uint64_t term;
};

/* Apply worker: everything that was committed before this term is applied here. */
static void lead_prepared(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    struct lead_barrier *b = arg;
    struct shard_host *shard = b->shard;
    uint64_t log_time_ms = 0;
    struct shard_store *store = result == OMEN_OK ? shard_host_store_hold(shard) : NULL;
    if (store != NULL) {
        log_time_ms = shard_store_log_time(store);
        shard_host_store_unhold(shard);
    }
    pthread_mutex_lock(&shard->write_lock);
    if (shard->group->barrier_term == b->term) shard->group->barrier_term = 0;
    if (store != NULL) {
        shard->group->prepared_term = b->term;
        if (log_time_ms > shard->log_time_ms) shard->log_time_ms = log_time_ms;
    }
    pthread_mutex_unlock(&shard->write_lock);
    mem_free(b);
    if (store != NULL) shard_write_pump(shard); /* else the sweep asks again, or leadership is gone */
}

void shard_group_prepare(struct shard_host *shard)
{
    struct shard_group *g = shard->group;
    if (g == NULL || shard->replica == NULL) return;
    pthread_mutex_lock(&shard->write_lock);
    uint64_t term = atomic_load(&g->lead_term);
    bool ask = term != 0 && g->prepared_term != term && g->barrier_term != term;
    if (ask) g->barrier_term = term;
    pthread_mutex_unlock(&shard->write_lock);
    if (!ask) return;
    struct lead_barrier *b = mem_must_alloc(sizeof *b);
    *b = (struct lead_barrier){ shard, term };
    replica_barrier(shard->replica, lead_prepared, b);
}

void shard_group_not_leader(const struct shard_host *shard, struct shard_call *call)
{
    uint32_t node = atomic_load(&shard->group->leader_node);
    call->leader_hint = node != shard->group->node_id ? node : 0;
    if (call->leader_hint != 0)
        err_set(&call->err, OMEN_ENOTLEADER, "", "shard %" PRIu64 " is led by node %u", shard->shard_id,
                call->leader_hint);
    else
        err_set(&call->err, OMEN_ENOTLEADER, "", "shard %" PRIu64 " has no leader that this replica knows of",
                shard->shard_id);
}

/* ---- reads ---- */

uint64_t shard_group_silence_max_ms(const struct shard_host *shard)
{
    return (uint64_t)SHARD_SILENT_ELECTIONS * shard->env->election_ms;
}

bool shard_group_is_silent(const struct shard_host *shard)
{
    return shard->group != NULL && shard->replica != NULL &&
            replica_silent_ms(shard->replica) > shard_group_silence_max_ms(shard);
}

/* By the last sweep, or by now. */
static bool is_ready_to_read(struct shard_host *shard)
{
    struct shard_host_status s;
    if (atomic_load(&shard->group->was_ready)) return true;
    shard_host_status(shard, &s);
    return s.ready;
}

bool shard_group_may_read(struct shard_host *shard, struct shard_call *call)
{
    struct shard_group *g = shard->group;
    const char *why = NULL;
    bool fresh = call->consistency == CONSISTENCY_SESSION && call->token_sequence == 0;
    if (shard_group_is_damaged(shard))
        why = "is damaged and serves nothing";
    else if (atomic_load(&g->blank))
        why = "has not got its data yet";
    else if (call->consistency != CONSISTENCY_EVENTUAL && shard_group_is_silent(shard))
        why = "has heard from no leader for too long: it answers only eventual reads";
    else if (fresh && !is_ready_to_read(shard))
        why = "is behind the others: without a token it answers only eventual reads";
    call->stale = call->consistency == CONSISTENCY_EVENTUAL &&
            (!is_ready_to_read(shard) || shard_group_is_silent(shard));
    if (why == NULL) return true;
    call->code = err_set(&call->err, OMEN_EUNAVAILABLE, "", "this replica of shard %" PRIu64 " %s",
            shard->shard_id, why);
    return false;
}

/* ---- status ---- */

static bool lag_is_small(const struct replica_status *r)
{
    if (r->lag_entries <= SHARD_READY_LAG_ENTRIES) return true;
    return r->lag_unseen == 0 && r->backlog_bytes <= SHARD_READY_LAG_BYTES;
}

static bool is_ready(const struct shard_host *shard, const struct shard_host_status *s)
{
    const struct replica_status *r = &s->replica;
    if (s->damaged || s->fetching || r->fetching || r->stopped != OMEN_OK) return false;
    if (shard->group == NULL) return true;
    return r->is_member && r->caught_up && r->silent_ms <= shard_group_silence_max_ms(shard) &&
            lag_is_small(r);
}

void shard_host_status(struct shard_host *shard, struct shard_host_status *status_out)
{
    struct shard_store_stats store;
    struct shard_group *g = shard->group;
    *status_out = (struct shard_host_status){ 0 };
    shard_host_stats(shard, &store, &status_out->replica);
    status_out->applied = store.applied;
    status_out->bytes = store.stream_bytes + store.meta_bytes;
    status_out->points = store.points;
    status_out->damaged = store.damaged;
    status_out->tail_full = shard_host_tail_is_full(shard);
    status_out->fetching = status_out->replica.fetching || status_out->replica.switching;
    if (g != NULL) {
        status_out->fetch_done = atomic_load(&g->fetch.done_bytes);
        status_out->fetch_total = atomic_load(&g->fetch.total_bytes);
        pthread_mutex_lock(&g->trouble_lock);
        snprintf(status_out->trouble, sizeof status_out->trouble, "%s", g->trouble);
        pthread_mutex_unlock(&g->trouble_lock);
    }
    status_out->ready = is_ready(shard, status_out);
    if (g != NULL && status_out->ready) atomic_store(&g->blank, false);
}

/* About ten times a second: what has no event of its own. */
void shard_group_sweep(struct shard_host *shard)
{
    struct shard_group *g = shard->group;
    struct shard_host_status s;
    if (atomic_load(&g->damage) == DAMAGE_FOUND) damage_keep(shard);
    shard_group_prepare(shard);
    if (shard->replica != NULL) shard_admission_look(shard);
    shard_host_status(shard, &s);
    if (shard->replica != NULL) shard_admission_give_way(shard, &s);
    if (atomic_exchange(&g->was_ready, s.ready) != s.ready) changed(g);
}

/* ---- life ---- */

static enum omen_err dir_make(const struct shard_host *shard, struct err *err)
{
    char parent[SHARD_DIR_BYTES];
    enum omen_err rc = vfs_mkdir(shard->env->vfs, shard->group->dir, err);
    snprintf(parent, sizeof parent, "%s", shard->group->dir);
    char *slash = strrchr(parent, '/');
    if (slash == NULL || rc != OMEN_OK) return rc;
    *slash = '\0';
    return vfs_sync_dir(shard->env->vfs, parent, err);
}

static enum omen_err group_open(struct shard_host *shard, const struct shard_host_options *o, struct err *err)
{
    struct replica_host *host = o->env->replica_host;
    struct replica_fsm fsm = shard_host_fsm;
    fsm.self = shard;
    struct replica_group_options options = {
        .group = o->shard_id,
        .replica_id = o->replica_id,
        .first_sequence = o->base_sequence,
        .fsm = &fsm,
        .bases = { o->env->fetcher != NULL ? shard_base_fetch : NULL, shard_base_switch,
                shard_base_pass_over },
        .on_leader_change = on_leader_change,
        .arg = shard,
    };
    uint64_t applied = shard_host_applied(shard);
    enum omen_err rc = OMEN_OK;
    if (o->bootstrap != NULL && applied == o->base_sequence) {
        rc = replica_bootstrap(host, o->shard_id, o->replica_id, o->bootstrap, o->bootstrap_count, err);
        if (rc == OMEN_EEXISTS) rc = OMEN_OK;
    }
    if (rc == OMEN_OK) rc = replica_open_group(host, &options, &shard->replica, err);
    if (rc != OMEN_OK) return rc;
    struct replica_status status;
    replica_status(shard->replica, &status);
    bool log_empty = status.last_index == 0;
    atomic_store(&shard->group->blank, log_empty && applied == o->base_sequence);
    if (!log_empty || applied == o->base_sequence) return OMEN_OK;
    /* Its votes went with it: the replica would be counted for what it cannot know (C6). */
    return err_set(err, OMEN_ECORRUPT, NULL,
            "%s: the log holds nothing of the shard, its store reaches to sequence %" PRIu64,
            shard->group->dir, applied);
}

enum omen_err shard_group_open(struct shard_host *shard, const struct shard_host_options *o, struct err *err)
{
    struct shard_group *g = mem_must_calloc(1, sizeof *g);
    struct err local = { 0 };
    bool damaged = false;
    shard->group = g;
    g->peers = o->peers;
    g->node_id = o->node_id;
    pthread_mutex_init(&g->trouble_lock, NULL);
    pthread_mutex_init(&g->base_lock, NULL);
    if (strlen(o->dir) >= sizeof g->dir) return err_set(err, OMEN_ETOOBIG, "dir", "the path is too long");
    snprintf(g->dir, sizeof g->dir, "%s", o->dir);
    enum omen_err rc = dir_make(shard, err);
    if (rc == OMEN_OK) rc = damage_read(shard, &damaged, err);
    if (rc != OMEN_OK) return rc;
    if (damaged) {
        replica_host_forget_replica(o->env->replica_host, o->shard_id, o->replica_id);
        return OMEN_OK;
    }
    rc = shard_base_open(shard, o->base_sequence, &local);
    if (rc == OMEN_OK) rc = group_open(shard, o, &local);
    if (rc == OMEN_ECORRUPT) {
        damage_note(g, &local, DAMAGE_FOUND);
        damage_keep(shard);
        if (shard->replica == NULL && atomic_load(&g->damage) == DAMAGE_KEPT)
            replica_host_forget_replica(o->env->replica_host, o->shard_id, o->replica_id);
        rc = OMEN_OK;
    }
    if (rc != OMEN_OK && err != NULL) *err = local;
    if (rc != OMEN_OK) return rc;
    shard_base_serve(shard);
    atomic_store(&g->open, true);
    leadership_use(shard); /* what came before found nobody to tell */
    return OMEN_OK;
}

void shard_group_free(struct shard_host *shard)
{
    struct shard_group *g = shard->group;
    if (g == NULL) return;
    pthread_mutex_destroy(&g->base_lock);
    pthread_mutex_destroy(&g->trouble_lock);
    mem_free(g);
}

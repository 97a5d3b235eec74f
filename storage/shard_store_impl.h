/* Inside of the shard store: what its files share. Other rooms see storage/shard_store.h only.
 *
 *   shard_store.c             options, open, close, stats, scrub
 *   shard_store_recover.c     the stream's scan and replay at open
 *   shard_store_apply.c       one entry: append, plan, commit, publish
 *   shard_store_intent.c      steps of writes by filter
 *   shard_store_plan*.c       what the ops of an entry lead to, before anything is changed
 *   shard_store_room.c        what a write needs of the stream, known before it is proposed
 *   shard_store_checkpoint.c  checkpoints and merges
 *   store_digest.c            what replicas compare
 *   expiry.c                  living rows by the time they expire
 *   shard_store_view.c        views, lookups and walks over deltas and LMDB
 *   shard_store_compact.c     space of dead rows given back
 *   shard_lease.c, shard_manifest.c   checkpoints for other replicas
 *   shard_index.c             which segments there are, and which to build next
 *   shard_tail.c              sketches of what is in none yet
 *   shard_store_read.c        get, scroll, count        shard_search.c   search
 *   shard_select.c            all points that pass a filter, by payload indexes
 *
 * Locks, in order: checkpoint_mutex, apply_mutex, version_mutex. Readers take version_mutex to acquire and release a
 * view and nothing while they read. */
#ifndef OMEN_STORAGE_SHARD_STORE_IMPL_H
#define OMEN_STORAGE_SHARD_STORE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/log.h"
#include "storage/expiry.h"
#include "storage/meta/delta.h"
#include "storage/meta/meta.h"
#include "storage/meta/op_table.h"
#include "storage/shard_store.h"
#include "storage/stream/blocks.h"
#include "storage/stream/checkpoint_file.h"
#include "storage/stream/stream.h"

#define STORE_PATH_BYTES 4000
#define STORE_VIEWS_MAX (META_READERS_MAX - 8) /* alive at once; store_view_acquire waits for one beyond */

struct plan;

/* One version to read: deltas and LMDB transaction that together hold the state at the view's sequence. */
struct view_pin {
    struct meta_txn *txn;          /* begun while the pin is in use */
    enum omen_err meta_rc;         /* not OK: LMDB could not be read; lookups answer this */
    struct delta *active, *frozen; /* referenced; frozen may be NULL */
    uint64_t points;               /* live at the view's sequence, expired ones included */
    uint64_t log_time_ms;          /* of the view's sequence */
    uint64_t expires_next_ms;      /* none of `points` expires before */
    uint32_t era;                  /* see store_hold */
    struct view_pin *next;         /* in the free list */
};

/* Segments; see shard_index.c. */
struct segment_set;
struct tail_set;
struct store_index {
    pthread_mutex_t mutex;          /* guards `set` */
    struct segment_set *set;        /* one reference; NULL before they were opened */
    struct tail_set *tails;         /* of shard_tail.c, likewise */
    struct tail_known *tails_known; /* [fields] owned; of the same, the thread's that adds to sketches */
    bool loaded;                    /* these down to dead_steps are the indexer's */
    uint64_t next_number, dead_seen;
    uint32_t dead_steps;
    _Atomic uint64_t renew_below; /* segments of lower numbers are to be built anew */
    _Atomic uint64_t built_rows;
    _Atomic uint64_t jobs; /* begun, that took a tail */
};

/* Compaction of chunks; see shard_store_compact.c. Leases outlive the store, so their number does too. */
struct lease_count {
    _Atomic uint32_t refs, leases;
};
#define STORE_COMPACT_CHUNKS 4u /* at once */
enum compact_step { COMPACT_IDLE, COMPACT_CHOSEN, COMPACT_REPLACED };
struct store_compact {
    struct checkpoint merged; /* what LMDB holds: sequence, and end of the stream then */
    enum compact_step step;
    uint32_t next_chunk; /* to be looked at */
    uint32_t chunks[STORE_COMPACT_CHUNKS], count;
    uint64_t dropped_through; /* rows that died up to here go */
    struct stream_chunk *old[STORE_COMPACT_CHUNKS];
    struct blocks_replaced replaced[STORE_COMPACT_CHUNKS];
    uint64_t waiting_bytes; /* that chunks would give back if LMDB knew of their rows' deaths */
    struct lease_count *leases;
    _Atomic uint64_t given_back_bytes; /* since open */
};

struct shard_store {
    struct vfs *vfs;
    char dir[STORE_PATH_BYTES];
    uint64_t shard_id, replica_id, base_sequence;
    struct collection_schema schema;
    uint64_t chunk_bytes, delta_bytes_max, op_retention_ms;
    uint32_t op_table_max;
    struct arena schema_arena;
    const struct doc_path *shard_key_path; /* NULL without shard key */

    struct stream *stream;
    struct meta *meta;
    struct checkpoint_file *checkpoint_file;
    struct blocks *blocks;

    pthread_mutex_t apply_mutex; /* held over one entry, and to capture a checkpoint */
    struct op_table *ops;
    uint64_t log_time_ms; /* of the last entry; monotone */
    struct plan *plan;    /* buffers kept from entry to entry */
    uint64_t digest;      /* of the rows that live, each with its own */
    struct expiry expiry; /* rows that live and expire */
    struct view_pin apply_pin;
    enum omen_err stopped; /* why apply stopped, or OMEN_OK; OMEN_EFULL and ENOMEM are retried */
    struct err stopped_err;

    pthread_mutex_t version_mutex; /* what a view captures */
    pthread_cond_t view_released;
    _Atomic uint64_t applied;   /* written under version_mutex, read anywhere */
    struct intent_set *intents; /* one reference; apply alone replaces it */
    uint64_t points;
    struct store_digest digests[STORE_DIGESTS_MAX]; /* `sequence` 0: not known */
    uint64_t view_log_time_ms, expires_next_ms;     /* what view_pin has of `applied` */
    struct delta *active, *frozen;
    struct view_pin *free_pins;
    uint32_t pin_count, view_count;
    uint32_t era, era_holds[2]; /* who may look at what, by era; see store_hold */
    _Atomic uint64_t died_last; /* sequence of the last row that died since open */
    _Atomic uint64_t op_count;  /* for stats */
    _Atomic int stopped_stat;   /* copy of `stopped` */

    pthread_mutex_t checkpoint_mutex;
    struct checkpoint last, older;
    _Atomic uint64_t durable, log_needed;
    struct meta_state frozen_state; /* what LMDB becomes when `frozen` is merged */
    struct op_range frozen_ops;
    struct intent_set *frozen_intents;                          /* one reference; NULL without `frozen` */
    struct store_compact compact;                               /* checkpoint_mutex */
    struct log_repeat merge_fails, freeze_fails, compact_fails; /* checkpoint_mutex */

    struct store_index index;
    uint32_t scrub_next;   /* block; the scrubber's */
    _Atomic bool damaged;  /* the scrubber found something; set once, after damage_err */
    struct err damage_err; /* what, with file and offset */
};

/* Every read asks first: a damaged store answers nothing else. */
static inline enum omen_err store_serves(const struct shard_store *s, struct err *err)
{
    if (!atomic_load_explicit(&s->damaged, memory_order_acquire)) return OMEN_OK;
    if (err != NULL) *err = s->damage_err;
    return s->damage_err.code;
}

/* ---- shard_store_view.c ---- */

/* Fill a pin with the current version (version_mutex held); drop it again. */
void view_pin_take(struct shard_store *s, struct view_pin *pin);
void view_pin_drop(struct view_pin *pin);

/* Row of `key` at `sequence`, ROW_NONE when there is no such point. */
OMEN_CHECKED enum omen_err view_find(const struct shard_store *s, const struct view_pin *pin,
        uint64_t sequence, const struct point_key *key, struct row_ref *row_out, struct err *err);
/* The same of a key that the active delta does not have. */
OMEN_CHECKED enum omen_err view_find_older(const struct shard_store *s, const struct view_pin *pin,
        uint64_t sequence, const struct point_key *key, struct row_ref *row_out, struct err *err);

/* Live points in order of key. */
struct view_iter {
    const struct shard_store *store;
    struct delta_iter active, frozen;
    bool has_frozen;
    struct meta_cursor *cursor;
    struct point_key meta_key;
    struct meta_location meta_location;
    bool meta_valid;
};
OMEN_CHECKED enum omen_err view_iter_open(const struct shard_store *s, const struct view_pin *pin,
        uint64_t sequence, const struct point_key *from, struct view_iter *it_out, struct err *err);
/* *found_out false at the end. */
OMEN_CHECKED enum omen_err view_iter_next(struct view_iter *it, struct point_key *key_out,
        struct row_ref *row_out, bool *found_out, struct err *err);
void view_iter_close(struct view_iter *it);

/* Row that LMDB says, checked against the stream. OMEN_ECORRUPT when there is no such row or it is another point's. */
OMEN_CHECKED enum omen_err row_of_location(const struct shard_store *s, const struct point_key *key,
        const struct meta_location *location, struct row_ref *row_out, struct err *err);

/* Has a row's time come? */
static inline bool row_expired(const struct shard_store *s, struct row_ref row, uint64_t now_ms)
{
    return block_row_expired(blocks_at(s->blocks, row.block), row.op, now_ms);
}

static inline void row_op(const struct shard_store *s, struct row_ref row, struct entry_op *op_out)
{
    entry_op_at(&blocks_at(s->blocks, row.block)->entry, row.op, op_out);
}

/* While it is held, no block that is there now is taken away, and no row that lives at a sequence applied now or later.
 * Views hold by themselves; this is for who looks at rows without one, for longer than a view should live. */
uint32_t store_hold(struct shard_store *s);
void store_unhold(struct shard_store *s, uint32_t era);
/* Let later holds be of another era. False: some of the era before the present one are still there. */
bool store_era_turn(struct shard_store *s);
bool store_era_over(struct shard_store *s); /* no hold of an earlier era is left */

/* ---- shard_store_compact.c ---- */

void store_compact_init(struct shard_store *s);
void store_compact_fini(struct shard_store *s); /* no reader is left */
/* The next step of giving space back; what fails is tried again. checkpoint_mutex held, after a checkpoint. */
void store_compact_step(struct shard_store *s);
/* Would a merge let more be given back than it costs? */
bool store_compact_wants_merge(const struct shard_store *s);

/* ---- shard_store_read.c ---- */

/* A row as a reply carries it. OMEN_ENOMEM when the arena is full. */
OMEN_CHECKED enum omen_err row_point_view(const struct shard_store *s, struct row_ref row,
        const struct point_selection *selection, struct arena *arena, struct point_view *point_out,
        struct err *err);

/* ---- store_digest.c ---- */

#define STORE_DIGEST_SHIFT 3u /* marks are at multiples of 2 * 8^i */

/* blocks_stage, and the rows' digests. Writer. */
OMEN_CHECKED enum omen_err store_block_stage(struct shard_store *s, uint32_t staged,
        const struct stream_unit *unit, const struct entry *entry, struct err *err);
/* Entry `sequence` is committed; version_mutex held by who has apply_mutex too. */
void store_digests_note(struct shard_store *s, uint64_t sequence);

/* ---- shard_store_plan.c ---- */

struct plan *plan_new(const struct collection_schema *schema);
void plan_free(struct plan *plan);

/* Where derived points go: new units of the stream, or, in a replay, those that are there already. */
struct plan_units {
    const struct stream_unit *replay; /* [replay_count] derived units, or NULL to append new ones */
    uint32_t replay_count;
    uint32_t staged; /* blocks staged: the entry's, then one per derived unit */
};

/* Work out what entry `sequence` (block staged at position blocks_count) leads to: outcomes, records in the table of
 * ops, derived units appended and staged. Points are not touched. On error the caller rewinds all of these. */
OMEN_CHECKED enum omen_err plan_entry(struct plan *plan, struct shard_store *s, uint64_t sequence,
        const struct entry *entry, struct plan_units *units, struct apply_outcome *outcomes, struct err *err);
/* Make it so: rows live and die, the delta learns. Cannot fail. Returns the number of live points after it. */
uint64_t plan_commit(struct plan *plan, struct shard_store *s, uint64_t points);
/* The writes by filter that are open after it, when it changes them: the caller's to publish; NULL: they stay. */
struct intent_set *plan_intents_take(struct plan *plan);
/* Or do not: rows that were about to die of age go on waiting. */
void plan_abandon(struct plan *plan, struct shard_store *s);

/* ---- shard_store_apply.c ---- */

/* The common part of apply and replay: plan, commit and publish a staged entry. On error nothing has changed. */
OMEN_CHECKED enum omen_err apply_staged(struct shard_store *s, uint64_t sequence, const struct entry *entry,
        struct plan_units *units, struct apply_outcome *outcomes, struct err *err);
/* The store is over: apply and checkpoint answer this from now on. apply_mutex held. */
enum omen_err store_stop(struct shard_store *s, enum omen_err rc, const struct err *err);

/* ---- shard_index.c ---- */

void store_index_init(struct shard_store *s);
void store_index_fini(struct shard_store *s);

/* ---- shard_lease.c ---- */

void store_leases_forget(const struct shard_store *s); /* what leases of an earlier process left */

/* ---- shard_store_recover.c ---- */

OMEN_CHECKED enum omen_err store_recover(struct shard_store *s, const struct meta_state *state,
        uint64_t end_sequence, struct err *err);

#endif

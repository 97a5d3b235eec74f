/* Giving back the space of dead rows: a chunk most of which is dead is written anew with what is left of it.
 *
 *   choose    rows that died at or before LMDB's sequence: no recovery asks for them again, whichever checkpoint it
 *             starts from, since it goes through LMDB's state and the entries after it
 *   --no view or hold of before is left: nobody sees these rows any more-->
 *   replace   the file, by an atomic rename (stream/compact.c); then the blocks, under the apply lock
 *   --no view or hold of before is left: nobody looks at the old map any more-->
 *   drop      the old map, and with it the space
 *
 * Each arrow may take until a later checkpoint; none waits. A unit keeps its place and its ops their numbers, so nothing
 * that names a row changes: LMDB, deltas, segments, copies of other replicas. What stays of a unit is an entry of the same
 * ops in which the dead ones are deletes of nobody. Units are checked before they are copied or dropped: damage is not to be
 * given a new checksum, and a dead row may be all that tells of damage that a payload operation has carried on into a living
 * one. A chunk in which there is some stays as it is, and the scrubber finds it.
 *
 * Local to a replica: neither results nor digests depend on it. A lease copies chunk files under their names, so there is
 * no replacing while one lives. Threads: the checkpointer's. */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"

#define GAIN 2u            /* a chunk is written anew when that leaves less than one part in so many */
#define LOOKED_AT_MAX 256u /* chunks in one step */
#define BODIES_BYTES_MAX (256u << 20) /* larger remains are left alone: they would be in memory twice */
#define MERGE_WORTH 4u                /* bytes given back for one of the delta that is to be merged for it */

void store_compact_init(struct shard_store *s)
{
    s->compact.leases = mem_must_calloc(1, sizeof *s->compact.leases);
    atomic_init(&s->compact.leases->refs, 1);
    s->compact.next_chunk = 1;
}

static void old_drop(struct store_compact *c)
{
    for (uint32_t i = 0; i < c->count; i++) {
        stream_chunk_drop(c->old[i]);
        blocks_replaced_free(&c->replaced[i]);
        c->old[i] = NULL;
    }
    c->count = 0;
    c->step = COMPACT_IDLE;
}

void store_compact_fini(struct shard_store *s)
{
    struct store_compact *c = &s->compact;
    if (c->step == COMPACT_REPLACED) old_drop(c);
    if (atomic_fetch_sub(&c->leases->refs, 1) == 1) mem_free(c->leases);
}

bool store_compact_wants_merge(const struct shard_store *s)
{
    return s->compact.waiting_bytes > s->chunk_bytes + MERGE_WORTH * delta_bytes(s->active);
}

/* ---- choosing ---- */

/* Blocks of a chunk. */
struct range {
    uint32_t first, end;
};

static struct range chunk_range(const struct shard_store *s, uint32_t chunk)
{
    return (struct range){ blocks_lower_bound(s->blocks, (struct stream_position){ chunk, 0 }),
        blocks_lower_bound(s->blocks, (struct stream_position){ chunk + 1, 0 }) };
}

static uint32_t rows_kept(const struct block *b, uint64_t dropped_through)
{
    uint32_t kept = 0;
    if (b->died == NULL) return 0;
    for (uint32_t op = 0; op < b->entry.op_count; op++) {
        uint64_t died = block_row_died(b, op);
        kept += died == 0 || died > dropped_through;
    }
    return kept;
}

/* Rows that a body still holds: in one that was compacted those that were dead are deletes already. */
static uint32_t rows_held(const struct block *b)
{
    uint32_t held = 0;
    if (!b->unit.compacted) return b->entry.op_count;
    for (uint32_t at = 0; at < b->entry.op_count; at++) {
        struct entry_op op;
        entry_op_at(&b->entry, at, &op);
        held += op.kind == POINT_UPSERT;
    }
    return held;
}

/* About how large a body would be if `kept` of its rows stay. Its table of operations does, whatever they are. */
static uint64_t body_part(const struct block *b, uint32_t kept)
{
    if (kept == 0) return 0;
    uint64_t table = (uint64_t)b->entry.op_count * b->entry.op_stride, held = rows_held(b);
    if (held < kept) held = kept;
    return table + (b->unit.body_bytes - table) * kept / held;
}

/* Is it worth it? Also adds to waiting_bytes what would be if LMDB were up to date. */
static bool chunk_worth(struct shard_store *s, uint32_t chunk)
{
    struct store_compact *c = &s->compact;
    struct range r = chunk_range(s, chunk);
    uint64_t file_bytes = stream_chunk_bytes(s->stream, chunk), live = 0, kept = 0;
    for (uint32_t i = r.first; i < r.end; i++) {
        const struct block *b = blocks_at(s->blocks, i);
        live += body_part(b, atomic_load_explicit(&b->live, memory_order_relaxed));
    }
    uint64_t least = stream_compacted_bytes(r.end - r.first, live);
    if (least > file_bytes / GAIN || least > BODIES_BYTES_MAX) return false;
    for (uint32_t i = r.first; i < r.end; i++) {
        const struct block *b = blocks_at(s->blocks, i);
        kept += body_part(b, rows_kept(b, c->merged.sequence));
    }
    uint64_t now = stream_compacted_bytes(r.end - r.first, kept);
    bool worth = now <= file_bytes / GAIN && now <= BODIES_BYTES_MAX;
    if (!worth) c->waiting_bytes += file_bytes - least;
    return worth;
}

static void choose(struct shard_store *s)
{
    struct store_compact *c = &s->compact;
    uint32_t end = c->merged.end.position.chunk;
    c->waiting_bytes = 0;
    for (uint32_t n = 0; n < LOOKED_AT_MAX && n < end && c->count < STORE_COMPACT_CHUNKS; n++) {
        uint32_t chunk = c->next_chunk;
        c->next_chunk = chunk + 1 < end ? chunk + 1 : 1;
        if (!stream_compactable(s->stream, chunk, c->merged.end)) continue;
        if (chunk_worth(s, chunk)) c->chunks[c->count++] = chunk;
    }
    c->dropped_through = c->merged.sequence;
}

/* ---- replacing ---- */

/* The units of one chunk, as they are to be. */
struct remains {
    struct stream_kept *units; /* [count] */
    struct stream_unit *placed;
    uint8_t **made; /* [made_count] bodies of our own */
    uint32_t made_count;
    struct entry_builder *builder;
};

static void remains_fini(struct remains *m)
{
    for (uint32_t i = 0; i < m->made_count; i++) mem_free(m->made[i]);
    mem_free(m->made);
    mem_free(m->units);
    mem_free(m->placed);
    entry_builder_free(m->builder);
}

static enum omen_err op_keep(const struct shard_store *s, struct remains *m, const struct block *b,
        uint32_t at, bool kept)
{
    struct entry_op op;
    if (!kept) {
        const struct point_op nobody = { .kind = POINT_DELETE,
            .id = { 0, 0, POINT_ID_U64 },
            .any_key = s->shard_key_path != NULL };
        return entry_builder_add(m->builder, &nobody);
    }
    entry_op_at(&b->entry, at, &op);
    struct point_op same = { .kind = op.kind,
        .id = op.key.id,
        .key = { .canonical = op.shard_key },
        .payload = op.payload,
        .expires_ms = op.expires_ms,
        .if_version = op.if_version };
    for (uint32_t f = 0; f < s->schema.field_count; f++)
        if (op.rows[f] != ENTRY_NO_ROW)
            same.vectors[f] = entry_row(&b->entry, f, op.rows[f], s->schema.fields[f].dim);
    return entry_builder_add(m->builder, &same);
}

/* An entry of as many ops, of which the dead ones say nothing. */
static enum omen_err body_make(const struct shard_store *s, struct remains *m, const struct block *b,
        struct stream_kept *unit, struct err *err)
{
    uint64_t through = s->compact.dropped_through;
    uint8_t *bytes = NULL;
    entry_builder_reset(m->builder);
    entry_builder_begin_request(m->builder, (struct op_id){ 0 });
    enum omen_err rc = OMEN_OK;
    for (uint32_t op = 0; rc == OMEN_OK && op < b->entry.op_count; op++) {
        uint64_t died = block_row_died(b, op);
        rc = op_keep(s, m, b, op, died == 0 || died > through);
    }
    if (rc == OMEN_OK)
        rc = entry_builder_finish(m->builder, b->entry.log_time_ms, b->entry.epoch, false, &bytes,
                &unit->body_bytes);
    if (rc != OMEN_OK) return err_set(err, rc, NULL, "writing anew what is left of a unit in %s", s->dir);
    m->made[m->made_count++] = bytes;
    unit->body = bytes;
    return OMEN_OK;
}

static enum omen_err unit_keep(struct shard_store *s, struct remains *m, uint32_t block,
        struct stream_kept *unit, struct err *err)
{
    const struct block *b = blocks_at(s->blocks, block);
    *unit = (struct stream_kept){ .sequence = b->unit.sequence,
        .part = b->unit.part,
        .position = b->unit.position };
    uint32_t kept = rows_kept(b, s->compact.dropped_through);
    enum omen_err rc = stream_unit_check(s->stream, &b->unit, err);
    if (rc != OMEN_OK || kept == 0) return rc;
    if (kept < b->entry.op_count) return body_make(s, m, b, unit, err);
    unit->body = b->unit.body;
    unit->body_bytes = b->unit.body_bytes;
    return OMEN_OK;
}

static enum omen_err chunk_replace(struct shard_store *s, uint32_t slot, struct err *err)
{
    struct store_compact *c = &s->compact;
    struct range r = chunk_range(s, c->chunks[slot]);
    uint32_t count = r.end - r.first;
    uint64_t before = stream_chunk_bytes(s->stream, c->chunks[slot]);
    struct remains m = { .units = mem_must_calloc(count + 1, sizeof *m.units),
        .placed = mem_must_calloc(count + 1, sizeof *m.placed),
        .made = mem_must_calloc(count + 1, sizeof *m.made),
        .builder = entry_builder_new(&s->schema) };
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++)
        rc = unit_keep(s, &m, r.first + i, &m.units[i], err);
    if (rc == OMEN_OK)
        rc = stream_compact(s->stream, c->chunks[slot], m.units, count, m.placed, &c->old[slot], err);
    if (rc == OMEN_OK) {
        pthread_mutex_lock(&s->apply_mutex);
        blocks_replace(s->blocks, r.first, count, m.placed, &s->schema, &c->replaced[slot]);
        pthread_mutex_unlock(&s->apply_mutex);
        uint64_t after = stream_chunk_bytes(s->stream, c->chunks[slot]);
        atomic_fetch_add(&c->given_back_bytes, before - after);
        LOG_INFO("store.compacted", "dir=\"%s\" chunk=%u units=%u bytes=%llu before=%llu", s->dir,
                c->chunks[slot], count, (unsigned long long)after, (unsigned long long)before);
    }
    remains_fini(&m);
    return rc;
}

/* What could not be replaced now is chosen again another time. */
static void replace_all(struct shard_store *s)
{
    struct store_compact *c = &s->compact;
    uint32_t done = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        struct err err;
        c->chunks[done] = c->chunks[i];
        enum omen_err rc = chunk_replace(s, done, &err);
        if (rc == OMEN_OK)
            done++;
        else if (log_repeat_tells(&s->compact_fails))
            LOG_WARN("store.compact_waits", "dir=\"%s\" chunk=%u times=%u error=\"%s\"", s->dir, c->chunks[i],
                    s->compact_fails.times, err.message);
    }
    if (done > 0) (void)log_repeat_ends(&s->compact_fails);
    c->count = done;
    c->step = done > 0 ? COMPACT_REPLACED : COMPACT_IDLE;
    if (done > 0) CHECK(store_era_turn(s)); /* the era before was over, so it turns */
}

void store_compact_step(struct shard_store *s)
{
    struct store_compact *c = &s->compact;
    if (c->step == COMPACT_REPLACED && store_era_over(s)) old_drop(c);
    if (c->step == COMPACT_IDLE) {
        choose(s);
        if (c->count > 0 && store_era_turn(s))
            c->step = COMPACT_CHOSEN;
        else
            c->count = 0;
    }
    if (c->step == COMPACT_CHOSEN && store_era_over(s) && atomic_load(&c->leases->leases) == 0)
        replace_all(s);
    if (c->step == COMPACT_REPLACED && store_era_over(s)) old_drop(c);
}

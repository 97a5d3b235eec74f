/* The plan of an entry: its data, and what its files share. Private to shard_store_plan*.c.
 *
 *   shard_store_plan.c          requests and operations in turn, undo, commit
 *   shard_store_plan_slots.c    slots: the points that the entry touches
 *   shard_store_plan_derive.c   payload operations and the derived units they end in
 *   shard_store_intent.c        requests that begin and go on with writes by filter */
#ifndef OMEN_STORAGE_SHARD_STORE_PLAN_H
#define OMEN_STORAGE_SHARD_STORE_PLAN_H

#include "storage/shard_store_impl.h"

#define PLAN_UNIT_BYTES (1u << 20) /* a derived unit is closed past this */
#define PLAN_DERIVED_BYTES_MAX                                                                               \
    (256u << 20) /* docs and vectors that one entry may derive; a request beyond: ETOOBIG */
#define PLAN_NONE UINT32_MAX
#define PLAN_AGED_MIN 1024u         /* rows that one entry lets die of age, and twice its operations */
#define PLAN_KEEP_BYTES (16u << 20) /* larger buffers are given back after the entry */

enum slot_state { SLOT_UNCHANGED, SLOT_ENTRY_ROW, SLOT_DERIVED, SLOT_ABSENT };

struct plan_slot {
    struct point_key key;
    struct row_ref before; /* ROW_NONE: no such point before the entry */
    enum slot_state state;
    uint32_t value;         /* ENTRY_ROW: op; DERIVED: position in `derived` */
    uint32_t next_same_id;  /* when ids are chained */
    struct delta_spot spot; /* in the active delta */
};

struct plan_undo {
    uint32_t slot;
    enum slot_state state;
    uint32_t value;
};

/* A whole point made by a payload operation. */
struct plan_derived {
    uint32_t slot;
    uint64_t expires_ms;
    struct bytes shard_key;                       /* in the stream or the entry */
    const float *vectors[OMEN_VECTOR_FIELDS_MAX]; /* likewise */
    uint32_t doc_off, doc_len;                    /* in `docs`; len 0 = absent */
    struct row_ref row;                           /* once emitted */
};

struct plan {
    struct plan_slot *slots;
    uint32_t slot_count, slot_cap;
    uint32_t *table; /* [table_size] slot + 1 by key; 0 = empty; power of two, at most half full */
    uint32_t table_size;
    uint32_t *id_table; /* [table_size] first slot + 1 by id */
    bool ids_chained;   /* from the first any_key operation of the entry on */
    struct plan_undo *undo;
    uint32_t undo_count, undo_cap;
    struct plan_derived *derived;
    uint32_t derived_count, derived_cap;
    struct expiry_item *aged; /* taken out of the store's expiry; back they go if the entry fails */
    uint32_t aged_count, aged_cap;
    struct buf docs, scratch;
    struct arena arena; /* of one operation: parsed paths */
    struct entry_builder *builder;

    struct shard_store *store; /* during plan_entry and plan_commit */
    const struct entry *entry;
    uint64_t sequence;
    uint32_t first_block; /* staged block of the entry */
    struct plan_units *units;
    uint64_t derived_bytes;
    uint32_t replay_unit, replay_op;
    enum omen_err reject;       /* why the request at hand must be refused */
    struct intent_set *intents; /* as the entry leaves them; NULL: it has not changed them so far */
};

/* ---- shard_store_plan.c ---- */

/* The operations of one request: all of them, or none and outcome->code says why. */
OMEN_CHECKED enum omen_err plan_request_ops(struct plan *p, const struct entry_request *request,
        struct apply_outcome *outcome, struct err *err);

/* ---- shard_store_intent.c ---- */

/* The write by filter under this op id, as the entry has left it so far; NULL = none is open. */
const struct intent *plan_intent_of_op(const struct plan *p, const struct op_id *op_id);
OMEN_CHECKED enum omen_err plan_intent_begin(struct plan *p, uint32_t part, const struct op_id *op_id,
        const struct entry_intent *begin, struct apply_outcome *outcome, struct err *err);
OMEN_CHECKED enum omen_err plan_intent_step(struct plan *p, const struct entry_request *request,
        const struct entry_intent *step, struct apply_outcome *outcome, struct err *err);

/* ---- shard_store_plan_slots.c ---- */

/* Room for one more item in an array that doubles. */
OMEN_CHECKED enum omen_err plan_reserve_one(void **items, uint32_t count, uint32_t *cap, size_t item_bytes,
        struct err *err);
#define PLAN_RESERVE_ONE(items, count, cap, err)                                                             \
    plan_reserve_one((void **)&(items), (count), &(cap), sizeof *(items), (err))

/* No slots, tables of a size that suits `op_count` operations. */
OMEN_CHECKED enum omen_err plan_slots_reset(struct plan *p, uint32_t op_count, struct err *err);
/* The slot of `key`, made when the entry has not touched it yet. */
OMEN_CHECKED enum omen_err plan_slot_get(struct plan *p, const struct point_key *key, uint32_t *slot_out,
        struct err *err);
/* Give every point of `id` a slot, whatever its shard key; *first_out begins the chain of the id's slots. */
OMEN_CHECKED enum omen_err plan_slots_of_id(struct plan *p, point_id id, uint32_t *first_out,
        struct err *err);
/* Change a slot's state, undoably. */
OMEN_CHECKED enum omen_err plan_slot_set(struct plan *p, uint32_t slot, enum slot_state state, uint32_t value,
        struct err *err);

static inline bool plan_slot_alive(const struct plan_slot *s)
{
    return s->state == SLOT_UNCHANGED ? !row_is_none(s->before) : s->state != SLOT_ABSENT;
}

static inline bool plan_key_equal(const struct point_key *a, const struct point_key *b)
{
    return point_id_equal(a->id, b->id) && a->key_hi == b->key_hi && a->key_lo == b->key_lo;
}

/* ---- shard_store_plan_derive.c ---- */

/* Parsed paths of a DELETE_PAYLOAD operation. A path that does not parse sets p->reject. */
OMEN_CHECKED enum omen_err plan_paths_parse(struct plan *p, struct doc list,
        const struct doc_path ***paths_out, uint32_t *count_out, struct err *err);
/* A payload operation on the living point of one slot; may set p->reject. */
OMEN_CHECKED enum omen_err plan_payload_op(struct plan *p, const struct entry_op *op,
        const struct doc_path *const *paths, uint32_t path_count, uint32_t slot, struct err *err);
/* Give a derived point its row in a derived unit: a new one, or in a replay the one that is there. */
OMEN_CHECKED enum omen_err plan_derived_emit(struct plan *p, struct plan_derived *d, struct err *err);
/* Close the last derived unit; in a replay, see that none is left over. */
OMEN_CHECKED enum omen_err plan_derived_end(struct plan *p, struct err *err);

#endif

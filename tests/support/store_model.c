/* The model of the shard store; see store_model.h. Slow and obvious on purpose. */
#include "common/err.h"
#include "common/check.h"
#include "tests/support/store_model.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#include "storage/kernel/kernel.h"

#define FIELD_DIM(f) ((f) == 0 ? 4u : 17u)

uint64_t store_model_random(struct store_model *m, uint64_t below)
{
    m->rng ^= m->rng << 13;
    m->rng ^= m->rng >> 7;
    m->rng ^= m->rng << 17;
    return (m->rng * 0x2545f4914f6cdd1du >> 11) % below;
}

void store_model_init(struct store_model *m, uint64_t seed)
{
    memset(m, 0, sizeof *m);
    m->rng = seed * 0x9e3779b97f4a7c15u + 1;
    m->schema.field_count = 2;
    m->schema.fields[0] = (struct vector_field){ "", FIELD_DIM(0), METRIC_L2 };
    m->schema.fields[1] = (struct vector_field){ "img", FIELD_DIM(1), METRIC_IP };
    strcpy(m->schema.shard_key, "tenant");
    m->builder = entry_builder_new(&m->schema);
    m->docs = doc_builder_new(DOC_BYTES_MAX);
    m->states[0] = mem_must_calloc(1, sizeof(struct model_state));
    m->states[0]->log_time_ms = 1000;
}

void store_model_fini(struct store_model *m)
{
    for (uint64_t i = 0; i <= m->sequence; i++) {
        mem_free(m->states[i]);
        mem_free(m->entries[i].bytes);
    }
    entry_builder_free(m->builder);
    doc_builder_free(m->docs);
}

/* ---- random operations ---- */

static point_id random_id(struct store_model *m)
{
    uint64_t n = store_model_random(m, 16);
    if (n < 12) return (point_id){ 0, n == 11 ? UINT64_MAX : n, POINT_ID_U64 };
    return (point_id){ n << 60, n * 77, POINT_ID_UUID };
}

static struct bytes shard_key_bytes(uint32_t which)
{
    static const uint8_t keys[3][9] = { { 1, 'a' }, { 1, 'b', 'b' }, { 3, 0, 0, 0, 0, 0, 0, 0, 7 } };
    static const size_t lens[3] = { 2, 3, 9 };
    return (struct bytes){ keys[which], lens[which] };
}

static void put_tenant(struct doc_builder *b, uint32_t which)
{
    doc_key(b, "tenant", 6);
    if (which == 2)
        doc_put_i64(b, 7);
    else
        doc_put_string(b, which == 0 ? "a" : "bb", which + 1);
}

/* A payload; with tenant `which`, or without one for 3. */
static struct doc random_payload(struct store_model *m, uint32_t which, struct arena *arena)
{
    struct doc_builder *b = m->docs;
    struct doc doc;
    doc_builder_reset(b, DOC_BYTES_MAX);
    doc_begin_object(b);
    if (which < 3) put_tenant(b, which);
    if (store_model_random(m, 4) > 0) {
        doc_key(b, "n", 1);
        doc_put_i64(b, (int64_t)store_model_random(m, 10));
    }
    if (store_model_random(m, 2) > 0) {
        char text[100];
        memset(text, 'x', sizeof text);
        doc_key(b, "s", 1);
        doc_put_string(b, text, store_model_random(m, sizeof text));
    }
    doc_end(b);
    ck_assert_int_eq(doc_builder_finish(b, &doc, NULL), OMEN_OK);
    return (struct doc){ arena_copy(arena, doc.data, doc.len), doc.len };
}

static struct doc random_paths(struct store_model *m, struct arena *arena)
{
    static const char *const names[] = { "n", "s", "absent", "tenant" };
    struct doc doc;
    doc_builder_reset(m->docs, DOC_BYTES_MAX);
    doc_begin_array(m->docs);
    for (uint64_t i = 0, n = 1 + store_model_random(m, 2); i < n; i++) {
        const char *name = names[store_model_random(m, 20) == 0 ? 3 : store_model_random(m, 3)];
        doc_put_string(m->docs, name, strlen(name));
    }
    doc_end(m->docs);
    ck_assert_int_eq(doc_builder_finish(m->docs, &doc, NULL), OMEN_OK);
    return (struct doc){ arena_copy(arena, doc.data, doc.len), doc.len };
}

static void random_vectors(struct store_model *m, struct point_op *op, struct arena *arena)
{
    for (uint32_t f = 0; f < 2; f++) {
        if (store_model_random(m, 5) == 0) continue;
        float *v = arena_alloc(arena, FIELD_DIM(f) * sizeof *v);
        for (uint32_t i = 0; i < FIELD_DIM(f); i++) v[i] = (float)store_model_random(m, 3) - 1;
        op->vectors[f] = v;
    }
}

static struct point_op random_op(struct store_model *m, uint64_t now_ms, struct arena *arena)
{
    uint64_t dice = store_model_random(m, 20);
    uint32_t which = (uint32_t)store_model_random(m, 3);
    struct point_op op = { .id = random_id(m), .key = { shard_key_bytes(which) } };
    op.kind = dice < 10 ? POINT_UPSERT
            : dice < 13 ? POINT_DELETE
            : dice < 16 ? POINT_SET_PAYLOAD
            : dice < 18 ? POINT_OVERWRITE_PAYLOAD
                        : POINT_DELETE_PAYLOAD;
    if (op.kind != POINT_UPSERT && store_model_random(m, 4) == 0) {
        op.any_key = true;
        op.key.canonical = (struct bytes){ NULL, 0 };
    }
    if (op.kind != POINT_UPSERT && store_model_random(m, 4) == 0)
        op.if_version = 1 + store_model_random(m, m->sequence);
    switch (op.kind) {
    case POINT_UPSERT:
        op.payload = random_payload(m, which, arena);
        random_vectors(m, &op, arena);
        if (store_model_random(m, 3) == 0) op.expires_ms = now_ms - 5 + store_model_random(m, 100);
        break;
    case POINT_DELETE: break;
    case POINT_SET_PAYLOAD: /* now and then it touches the shard key */
        op.payload = random_payload(m,
                store_model_random(m, 15) == 0 ? (uint32_t)store_model_random(m, 3) : 3, arena);
        break;
    case POINT_OVERWRITE_PAYLOAD:
        op.payload = random_payload(m,
                store_model_random(m, 15) == 0 ? (uint32_t)store_model_random(m, 4) : which, arena);
        break;
    case POINT_DELETE_PAYLOAD: op.payload = random_paths(m, arena); break;
    }
    return op;
}

/* ---- what operations do ---- */

static struct doc point_doc(const struct model_point *p) { return (struct doc){ p->doc, p->doc_len }; }

static struct model_point *find(struct model_state *s, point_id id, struct bytes key)
{
    for (uint32_t i = 0; i < s->point_count; i++) {
        struct model_point *p = &s->points[i];
        if (point_id_equal(p->id, id) && p->shard_key_len == key.len &&
                memcmp(p->shard_key, key.data, key.len) == 0)
            return p;
    }
    return NULL;
}

static void set_doc(struct model_point *p, const uint8_t *data, size_t len)
{
    CHECK(len <= MODEL_DOC_BYTES);
    memcpy(p->doc, data, len);
    p->doc_len = (uint32_t)len;
}

static void do_upsert(struct model_state *s, const struct point_op *op)
{
    struct model_point *p = find(s, op->id, op->key.canonical);
    if (p == NULL) {
        CHECK(s->point_count < MODEL_POINTS_MAX);
        p = &s->points[s->point_count++];
    }
    memset(p, 0, sizeof *p);
    p->id = op->id;
    p->shard_key_len = (uint32_t)op->key.canonical.len;
    memcpy(p->shard_key, op->key.canonical.data, p->shard_key_len);
    p->version = s->sequence;
    p->expires_ms = op->expires_ms;
    set_doc(p, op->payload.data, op->payload.len);
    for (uint32_t f = 0; f < 2; f++) {
        p->has[f] = op->vectors[f] != NULL;
        if (p->has[f]) memcpy(p->vectors[f], op->vectors[f], FIELD_DIM(f) * sizeof(float));
    }
}

/* Points whose time has come are gone. */
static void age(struct model_state *s, uint64_t now_ms)
{
    for (uint32_t i = 0; i < s->point_count;) {
        if (s->points[i].expires_ms != 0 && s->points[i].expires_ms <= now_ms)
            s->points[i] = s->points[--s->point_count];
        else
            i++;
    }
}

static enum omen_err do_payload(struct model_state *s, const struct point_op *op, struct model_point *p)
{
    struct buf out;
    struct arena arena;
    buf_init(&out);
    arena_init(&arena, 1024, 0);
    struct doc before = point_doc(p);
    if (op->kind == POINT_OVERWRITE_PAYLOAD) {
        buf_append(&out, op->payload.data, op->payload.len);
    } else if (op->kind == POINT_SET_PAYLOAD) {
        ck_assert_int_eq(doc_merge(before, op->payload, &out, NULL), OMEN_OK);
    } else {
        const struct doc_path *paths[4];
        uint32_t count = 0;
        struct doc_iter it = doc_iter(op->payload);
        for (struct doc item; doc_next(&it, NULL, &item); count++) {
            struct bytes text = doc_string(item);
            ck_assert_int_eq(doc_path_parse((const char *)text.data, text.len, &arena, &paths[count], NULL),
                    OMEN_OK);
        }
        ck_assert_int_eq(doc_remove(before, paths, count, &out, NULL), OMEN_OK);
    }
    struct doc after = { out.data, (uint32_t)out.len };
    struct bytes name = { (const uint8_t *)"tenant", 6 };
    struct doc old = doc_member(before, name), now = doc_member(after, name);
    bool kept = old.data == NULL ||
            (now.data != NULL && now.len == old.len && memcmp(now.data, old.data, old.len) == 0);
    if (kept) {
        set_doc(p, out.data, out.len);
        p->version = s->sequence;
    }
    buf_fini(&out);
    arena_fini(&arena);
    return kept ? OMEN_OK : OMEN_EINVAL;
}

static enum omen_err do_op(struct model_state *s, const struct point_op *op, uint32_t *affected)
{
    if (op->kind == POINT_UPSERT) {
        do_upsert(s, op);
        age(s, s->log_time_ms);
        ++*affected;
        return OMEN_OK;
    }
    for (uint32_t i = 0; i < s->point_count;) {
        struct model_point *p = &s->points[i];
        bool match = op->any_key ? point_id_equal(p->id, op->id) : p == find(s, op->id, op->key.canonical);
        if (!match) {
            i++;
            continue;
        }
        if (op->if_version != 0 && p->version > op->if_version) {
            i++;
            continue;
        }
        ++*affected;
        if (op->kind == POINT_DELETE) {
            *p = s->points[--s->point_count];
            continue;
        }
        enum omen_err rc = do_payload(s, op, p);
        if (rc != OMEN_OK) return rc;
        i++;
    }
    return OMEN_OK;
}

static bool same_op(const struct op_id *a, const struct op_id *b)
{
    return a->client == b->client && a->seq == b->seq;
}

/* Known, under way, or out of time. */
static bool op_answered(const struct model_state *s, struct op_id id, struct apply_outcome *out)
{
    const struct model_applied *known = NULL;
    if (id.client == 0) return false;
    for (uint32_t i = 0; i < s->intent_count; i++) {
        if (!same_op(&s->intents[i].op_id, &id)) continue;
        out->code = OMEN_EBUSY;
        out->intent = s->intents[i].id;
        return true;
    }
    for (uint32_t i = 0; i < s->op_count; i++)
        if (same_op(&s->ops[i].id, &id)) known = &s->ops[i];
    bool outlives = known != NULL && known->since_ms != 0 &&
            known->since_ms + MODEL_RETENTION_MS >= s->log_time_ms;
    if (!outlives && id.issue_ms + MODEL_RETENTION_MS < s->log_time_ms)
        out->code = OMEN_EOPEXPIRED;
    else if (!outlives && id.issue_ms > s->log_time_ms + MODEL_RETENTION_MS)
        out->code = OMEN_EINVAL;
    else if (known == NULL)
        return false;
    else {
        *out = known->outcome;
        out->duplicate = true;
    }
    return true;
}

static struct apply_outcome do_request(struct model_state *s, struct op_id id, const struct point_op *ops,
        uint32_t count)
{
    struct apply_outcome out = { .code = OMEN_OK, .sequence = s->sequence };
    if (op_answered(s, id, &out)) return out;
    struct model_state *before = mem_must_alloc(sizeof *before);
    *before = *s;
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; i < count && rc == OMEN_OK; i++) rc = do_op(s, &ops[i], &out.affected);
    if (rc != OMEN_OK) {
        *s = *before;
        out.affected = 0;
        out.code = rc;
    }
    mem_free(before);
    if (id.client != 0) {
        CHECK(s->op_count < MODEL_OPS_MAX);
        s->ops[s->op_count++] = (struct model_applied){ id, out, 0 };
    }
    return out;
}

/* ---- writes by filter ---- */

static struct point_key key_of(const struct model_point *p)
{
    return point_key_make(p->id, (struct shard_key){ { p->shard_key, p->shard_key_len } });
}

static int by_key(const void *a, const void *b)
{
    struct point_key ka = key_of(*(struct model_point *const *)a),
                     kb = key_of(*(struct model_point *const *)b);
    return point_key_compare(&ka, &kb);
}

static bool model_n_at_least(const struct model_point *p, int64_t bound)
{
    struct doc n = doc_member(point_doc(p), (struct bytes){ (const uint8_t *)"n", 1 });
    return n.data != NULL && doc_i64(n) >= bound;
}

/* {"must": [{"key": "n", "range": {"gte": bound}}]} */
static struct doc n_filter_doc(struct store_model *m, int64_t bound, struct arena *arena)
{
    struct doc_builder *b = m->docs;
    struct doc doc;
    doc_builder_reset(b, DOC_BYTES_MAX);
    doc_begin_object(b);
    doc_key(b, "must", 4);
    doc_begin_array(b);
    doc_begin_object(b);
    doc_key(b, "key", 3);
    doc_put_string(b, "n", 1);
    doc_key(b, "range", 5);
    doc_begin_object(b);
    doc_key(b, "gte", 3);
    doc_put_i64(b, bound);
    doc_end(b);
    doc_end(b);
    doc_end(b);
    doc_end(b);
    ck_assert_int_eq(doc_builder_finish(b, &doc, NULL), OMEN_OK);
    doc.data = arena_copy(arena, doc.data, doc.len);
    return doc;
}

static struct apply_outcome begin_random(struct store_model *m, struct model_state *s, uint32_t part,
        struct op_id op_id, struct arena *arena)
{
    struct apply_outcome out = { .code = OMEN_OK, .sequence = s->sequence };
    struct point_op op = random_op(m, s->log_time_ms, arena);
    while (op.kind == POINT_UPSERT) op = random_op(m, s->log_time_ms, arena);
    struct model_intent in = { .id = { s->sequence, part }, .op_id = op_id, .op = op.kind };
    in.bound = (int64_t)store_model_random(m, 10);
    struct entry_intent begin = { .kind = ENTRY_INTENT_BEGIN, .op = op.kind, .payload = op.payload };
    begin.filter = n_filter_doc(m, in.bound, arena);
    in.payload_len = op.payload.data != NULL ? op.payload.len : 0;
    CHECK(in.payload_len <= sizeof in.payload);
    if (in.payload_len > 0) memcpy(in.payload, op.payload.data, in.payload_len);
    ck_assert_int_eq(entry_builder_put_intent(m->builder, &begin), OMEN_OK);
    if (op_answered(s, op_id, &out)) return out;
    if (s->intent_count == INTENTS_MAX) {
        out.code = OMEN_EBUSY;
        return out;
    }
    out.intent = in.id;
    s->intents[s->intent_count++] = in;
    return out;
}

/* The next points of a write by filter, as a leader finds them that reads any state since the write began. */
static uint32_t page_of(struct store_model *m, const struct model_intent *in, uint32_t limit,
        struct point_op *ops, bool *more_out, struct arena *arena)
{
    uint64_t at = in->id.sequence + store_model_random(m, m->sequence - in->id.sequence);
    struct model_state *s = m->states[at];
    struct model_point *sorted[MODEL_POINTS_MAX];
    uint32_t count = 0;
    *more_out = false;
    for (uint32_t i = 0; i < s->point_count; i++) sorted[i] = &s->points[i];
    qsort(sorted, s->point_count, sizeof *sorted, by_key);
    for (uint32_t i = 0; i < s->point_count; i++) {
        struct model_point *p = sorted[i];
        struct point_key key = key_of(p);
        if (p->version > in->id.sequence || !model_n_at_least(p, in->bound)) continue;
        if (in->has_cursor && point_key_compare(&key, &in->cursor) <= 0) continue;
        *more_out = count == limit;
        if (count == limit) break;
        struct point_op *op = &ops[count++];
        *op = (struct point_op){ .kind = in->op, .id = p->id, .if_version = in->id.sequence };
        op->key.canonical = (struct bytes){ arena_copy(arena, p->shard_key, p->shard_key_len),
            p->shard_key_len };
        if (in->payload_len > 0)
            op->payload = (struct doc){ arena_copy(arena, in->payload, in->payload_len), in->payload_len };
    }
    return count;
}

/* Nothing that it was to delete is left. */
static void walked_to_its_end(struct store_model *m, const struct model_state *s,
        const struct model_intent *in)
{
    m->intents_ended++;
    for (uint32_t i = 0; in->op == POINT_DELETE && i < s->point_count; i++)
        ck_assert_msg(s->points[i].version > in->id.sequence || !model_n_at_least(&s->points[i], in->bound),
                "a point is left behind by a deletion");
}

static struct apply_outcome step_random(struct store_model *m, struct model_state *s, struct arena *arena)
{
    struct apply_outcome out = { .code = OMEN_OK, .sequence = s->sequence };
    struct model_intent *in = &s->intents[store_model_random(m, s->intent_count)];
    if (in->id.sequence == s->sequence) in = &s->intents[0];
    struct entry_intent step = { .kind = ENTRY_INTENT_STEP, .id = in->id, .step = in->steps };
    struct point_op ops[3];
    bool more = false, late = store_model_random(m, 6) == 0;
    if (late) step.step = in->steps + (store_model_random(m, 2) == 0 ? 1u : UINT32_MAX);
    uint32_t count = in->refused || in->id.sequence == s->sequence
            ? 0
            : page_of(m, in, 1 + (uint32_t)store_model_random(m, 3), ops, &more, arena);
    if (in->refused) step.code = OMEN_EINVAL;
    step.ends = !more;
    step.has_cursor = count > 0;
    if (count > 0) step.cursor = point_key_make(ops[count - 1].id, ops[count - 1].key);
    ck_assert_int_eq(entry_builder_put_intent(m->builder, &step), OMEN_OK);
    for (uint32_t i = 0; i < count; i++) ck_assert_int_eq(entry_builder_add(m->builder, &ops[i]), OMEN_OK);
    if (late) {
        out.code = OMEN_ECANCELED;
        return out;
    }
    struct model_state *before = mem_must_alloc(sizeof *before);
    *before = *s;
    for (uint32_t i = 0; i < count && out.code == OMEN_OK; i++) out.code = do_op(s, &ops[i], &out.affected);
    if (out.code != OMEN_OK) *s = *before;
    mem_free(before);
    in->refused = out.code != OMEN_OK;
    if (in->refused) {
        out.affected = 0;
        return out;
    }
    out.intent = in->id;
    in->steps++;
    in->affected += out.affected;
    in->has_cursor |= step.has_cursor;
    if (step.has_cursor) in->cursor = step.cursor;
    if (!step.ends) return out;
    if (step.code == OMEN_OK && in->id.sequence < s->sequence) walked_to_its_end(m, s, in);
    out.affected = (uint32_t)in->affected;
    out.code = step.code;
    CHECK(s->op_count < MODEL_OPS_MAX);
    uint64_t since_ms = in->op_id.issue_ms > s->log_time_ms ? in->op_id.issue_ms : s->log_time_ms;
    if (in->op_id.client != 0) {
        struct apply_outcome told = { .code = out.code, .affected = out.affected, .sequence = s->sequence };
        s->ops[s->op_count++] = (struct model_applied){ in->op_id, told, since_ms };
    }
    memmove(in, in + 1, (size_t)(&s->intents[--s->intent_count] - in) * sizeof *in);
    return out;
}

/* What the store knows of them is what the model does. */
static void check_intents(const struct store_model *m, struct shard_store *store, uint64_t sequence)
{
    const struct model_state *s = m->states[sequence];
    struct intent_set *set = shard_store_intents(store);
    ck_assert_uint_eq(set->count, s->intent_count);
    for (uint32_t i = 0; i < set->count; i++) {
        const struct intent *a = &set->items[i];
        const struct model_intent *b = &s->intents[i];
        ck_assert(intent_id_equal(a->work->id, b->id) && same_op(&a->work->op_id, &b->op_id));
        ck_assert_uint_eq(a->work->op_id.issue_ms, b->op_id.issue_ms);
        ck_assert_int_eq(a->work->op, b->op);
        ck_assert_uint_eq(a->steps, b->steps);
        ck_assert_uint_eq(a->affected, b->affected);
        ck_assert_int_eq(a->has_cursor, b->has_cursor);
        if (a->has_cursor) ck_assert_int_eq(point_key_compare(&a->cursor, &b->cursor), 0);
        ck_assert_uint_eq(a->work->payload.data != NULL ? a->work->payload.len : 0, b->payload_len);
        if (b->payload_len > 0) ck_assert_mem_eq(a->work->payload.data, b->payload, b->payload_len);
        ck_assert_uint_gt(a->work->filter.len, 0);
    }
    intent_set_unref(set);
}

/* New ids mostly; now and then a retry, an old one, one from the future, or none. A retry has the issue time it had. */
static struct op_id random_op_id(struct store_model *m, const struct model_state *s)
{
    if (s->intent_count > 0 && store_model_random(m, 12) == 0)
        return s->intents[store_model_random(m, s->intent_count)].op_id;
    uint64_t dice = store_model_random(m, 12);
    struct op_id id = { 1 + store_model_random(m, 3), ++m->next_op_seq,
        s->log_time_ms - store_model_random(m, 30) };
    if (dice == 0) return (struct op_id){ 0, 0, 0 };
    if (dice < 3 && s->op_count > 0)
        return s->ops[s->op_count - 1 - store_model_random(m, s->op_count < 30 ? s->op_count : 30)].id;
    if (dice == 3) id.issue_ms = s->log_time_ms - MODEL_RETENTION_MS - store_model_random(m, 3);
    if (dice == 4) id.issue_ms = s->log_time_ms + MODEL_RETENTION_MS - 1 + store_model_random(m, 3);
    return id;
}

void store_model_step(struct store_model *m)
{
    CHECK(m->sequence + 1 < MODEL_SEQUENCES_MAX);
    struct model_state *s = mem_must_alloc(sizeof *s);
    struct model_entry *e = &m->entries[++m->sequence];
    struct arena arena;
    arena_init(&arena, 1 << 14, 0);
    *s = *m->states[m->sequence - 1];
    s->sequence = m->sequence;
    s->log_time_ms += store_model_random(m, 15);
    age(s, s->log_time_ms);
    entry_builder_reset(m->builder);
    e->request_count = 1 + (uint32_t)store_model_random(m, MODEL_REQUESTS_MAX - 2);
    for (uint32_t r = 0; r < e->request_count; r++) {
        struct op_id id = random_op_id(m, s);
        struct point_op ops[8];
        uint32_t count = (uint32_t)store_model_random(m, 9);
        uint64_t dice = store_model_random(m, 10);
        if (dice < 3 && s->intent_count > 0) {
            entry_builder_begin_request(m->builder, (struct op_id){ 0 });
            e->outcomes[r] = step_random(m, s, &arena);
            continue;
        }
        entry_builder_begin_request(m->builder, id);
        if (dice == 3) {
            e->outcomes[r] = begin_random(m, s, r, id, &arena);
            continue;
        }
        for (uint32_t i = 0; i < count; i++) {
            ops[i] = random_op(m, s->log_time_ms, &arena);
            ck_assert_int_eq(entry_builder_add(m->builder, &ops[i]), OMEN_OK);
        }
        e->outcomes[r] = do_request(s, id, ops, count);
    }
    ck_assert_int_eq(entry_builder_finish(m->builder, s->log_time_ms, 1, false, &e->bytes, &e->len), OMEN_OK);
    m->states[m->sequence] = s;
    arena_fini(&arena);
}

enum omen_err store_model_apply(struct store_model *m, struct shard_store *store, uint64_t sequence,
        struct err *err)
{
    struct apply_outcome outcomes[MODEL_REQUESTS_MAX];
    const struct model_entry *e = &m->entries[sequence];
    enum omen_err rc = shard_store_apply(store, sequence, e->bytes, e->len, outcomes, err);
    if (rc != OMEN_OK) return rc;
    for (uint32_t i = 0; i < e->request_count; i++) {
        const struct apply_outcome *a = &outcomes[i], *b = &e->outcomes[i];
        ck_assert_msg(a->code == b->code && a->duplicate == b->duplicate && a->affected == b->affected &&
                        intent_id_equal(a->intent, b->intent) &&
                        (a->code == OMEN_EOPEXPIRED || a->sequence == b->sequence),
                "entry %llu request %u: code %d affected %u sequence %llu duplicate %d, not %d %u %llu %d",
                (unsigned long long)sequence, i, a->code, a->affected, (unsigned long long)a->sequence,
                a->duplicate, b->code, b->affected, (unsigned long long)b->sequence, b->duplicate);
    }
    check_intents(m, store, sequence);
    return OMEN_OK;
}

/* ---- comparing ---- */

static void same_point(const struct model_point *want, const struct point_view *got)
{
    struct point_key a = key_of(want), b = point_key_make(got->id, got->key);
    ck_assert_msg(point_key_compare(&a, &b) == 0, "another point");
    ck_assert_uint_eq(got->version, want->version);
    ck_assert_uint_eq(got->expires_ms, want->expires_ms);
    ck_assert_uint_eq(got->payload.len, want->doc_len);
    ck_assert_mem_eq(got->payload.data, want->doc, want->doc_len);
    for (uint32_t f = 0; f < 2; f++) {
        ck_assert_int_eq(got->vectors[f] != NULL, want->has[f]);
        if (want->has[f]) ck_assert_mem_eq(got->vectors[f], want->vectors[f], FIELD_DIM(f) * sizeof(float));
    }
}

static const struct point_selection everything = { .with_payload = true, .vector_mask = 3 };

static const struct filter *n_filter(struct store_model *m, int64_t bound, struct arena *arena)
{
    const struct filter *filter = NULL;
    ck_assert_int_eq(filter_parse(n_filter_doc(m, bound, arena), arena, &filter, NULL), OMEN_OK);
    return filter;
}

/* Scroll page by page against the sorted points; each exactly once. */
static void check_scroll(struct store_model *m, const struct store_view *view, struct model_point **sorted,
        uint32_t count, const struct filter *filter, struct arena *arena)
{
    struct point_key after;
    const struct point_key *from = NULL;
    uint32_t seen = 0;
    for (bool more = true; more;) {
        struct point_view *points = NULL;
        struct err err;
        uint32_t got = 0, limit = 1 + (uint32_t)store_model_random(m, 20);
        enum omen_err rc = shard_store_scroll(view, from, limit, filter, &everything, NULL, arena, &points,
                &got, &more, &err);
        ck_assert_msg(rc == OMEN_OK, "scroll: %s", err.message);
        ck_assert_uint_le(got, limit);
        ck_assert_uint_le(seen + got, count);
        for (uint32_t i = 0; i < got; i++) same_point(sorted[seen + i], &points[i]);
        seen += got;
        if (got == 0) break;
        after = point_key_make(points[got - 1].id, points[got - 1].key);
        from = &after;
    }
    ck_assert_uint_eq(seen, count);
}

static void check_get(struct store_model *m, const struct store_view *view, struct model_state *s,
        struct arena *arena)
{
    for (uint32_t i = 0; i < 6; i++) {
        struct get_request request = { .id = random_id(m),
            .key = { shard_key_bytes((uint32_t)store_model_random(m, 3)) } };
        request.any_key = store_model_random(m, 2) == 0;
        struct point_view *points = NULL;
        struct err err;
        uint32_t got = 0, want = 0;
        enum omen_err rc = shard_store_get(view, &request, 1, &everything, arena, &points, &got, &err);
        ck_assert_msg(rc == OMEN_OK, "get: %s", err.message);
        for (uint32_t p = 0; p < s->point_count; p++) {
            bool match = point_id_equal(s->points[p].id, request.id) &&
                    (request.any_key || &s->points[p] == find(s, request.id, request.key.canonical));
            want += match;
        }
        ck_assert_uint_eq(got, want);
        for (uint32_t p = 0; p < got; p++) {
            struct model_point *expected = find(s, points[p].id, points[p].key.canonical);
            ck_assert_ptr_nonnull(expected);
            same_point(expected, &points[p]);
        }
    }
}

struct scored {
    float distance;
    struct point_key key;
    const struct model_point *point;
};

static int by_distance(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->distance != y->distance) return x->distance < y->distance ? -1 : 1;
    return point_key_compare(&x->key, &y->key);
}

/* Hit `h` of a search that may go through segments: at the distance of the h-th nearest, and nobody twice. Which of
 * those at one distance it is depends on the segments. */
static void check_near_hit(const struct scored *all, uint32_t n, const struct hit *hits, uint32_t h)
{
    uint32_t p = 0;
    ck_assert(hits[h].distance == all[h].distance);
    struct point_key key = point_key_make(hits[h].point.id, hits[h].point.key);
    while (p < n && point_key_compare(&all[p].key, &key) != 0) p++;
    ck_assert_uint_lt(p, n);
    ck_assert(all[p].distance == hits[h].distance);
    same_point(all[p].point, &hits[h].point);
    for (uint32_t before = 0; before < h; before++) {
        struct point_key other = point_key_make(hits[before].point.id, hits[before].point.key);
        ck_assert_int_ne(point_key_compare(&other, &key), 0);
    }
}

static void check_search(struct store_model *m, const struct store_view *view, const struct model_state *s,
        struct arena *arena)
{
    const struct kernel *kernel = kernel_for(KERNEL_SCALAR);
    struct search_params params[3];
    struct hit *hits[3];
    uint32_t counts[3];
    int64_t bounds[3];
    float queries[3][MODEL_DIM_MAX];
    struct err err;
    memset(params, 0, sizeof params);
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t d = 0; d < MODEL_DIM_MAX; d++) queries[i][d] = (float)store_model_random(m, 3) - 1;
        params[i].field = (uint32_t)store_model_random(m, 2);
        params[i].query = queries[i];
        params[i].k = 1 + (uint32_t)store_model_random(m, 12);
        params[i].selection = everything;
        params[i].exact = store_model_random(m, 2) == 0;
        bounds[i] = store_model_random(m, 2) == 0 ? -1 : (int64_t)store_model_random(m, 10);
        if (bounds[i] >= 0) params[i].filter = n_filter(m, bounds[i], arena);
    }
    enum omen_err rc = shard_store_search(view, params, 3, NULL, arena, hits, counts, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "search: %s", err.message);
    for (uint32_t i = 0; i < 3; i++) {
        struct scored all[MODEL_POINTS_MAX];
        uint32_t n = 0, f = params[i].field;
        for (uint32_t p = 0; p < s->point_count; p++) {
            const struct model_point *point = &s->points[p];
            if (!point->has[f] || (bounds[i] >= 0 && !model_n_at_least(point, bounds[i]))) continue;
            float d = f == 0 ? kernel->l2sq_f32(queries[i], point->vectors[f], FIELD_DIM(f))
                             : -kernel->dot_f32(queries[i], point->vectors[f], FIELD_DIM(f));
            all[n++] = (struct scored){ d, key_of(point), point };
        }
        qsort(all, n, sizeof *all, by_distance);
        ck_assert_uint_eq(counts[i], n < params[i].k ? n : params[i].k);
        for (uint32_t h = 0; h < counts[i]; h++) {
            if (!params[i].exact) {
                check_near_hit(all, n, hits[i], h);
                continue;
            }
            ck_assert(hits[i][h].distance == all[h].distance);
            same_point(all[h].point, &hits[i][h].point);
        }
    }
}

static void check_at(struct store_model *m, const struct store_view *view)
{
    struct model_state *s = mem_must_alloc(sizeof *s);
    *s = *m->states[view->sequence];
    ck_assert_uint_ge(view->now_ms, view->sequence == 0 ? 0 : s->log_time_ms);
    age(s, view->now_ms);
    struct model_point *sorted[MODEL_POINTS_MAX], *matching[MODEL_POINTS_MAX];
    struct arena arena;
    uint32_t matching_count = 0;
    uint64_t count = 0;
    int64_t bound = (int64_t)store_model_random(m, 10);
    arena_init(&arena, 1 << 14, 0);
    for (uint32_t i = 0; i < s->point_count; i++) sorted[i] = &s->points[i];
    qsort(sorted, s->point_count, sizeof *sorted, by_key);
    for (uint32_t i = 0; i < s->point_count; i++)
        if (model_n_at_least(sorted[i], bound)) matching[matching_count++] = sorted[i];
    const struct filter *filter = n_filter(m, bound, &arena);
    ck_assert_int_eq(shard_store_count(view, NULL, NULL, &count, NULL), OMEN_OK);
    ck_assert_uint_eq(count, s->point_count);
    ck_assert_int_eq(shard_store_count(view, filter, NULL, &count, NULL), OMEN_OK);
    ck_assert_uint_eq(count, matching_count);
    check_scroll(m, view, sorted, s->point_count, NULL, &arena);
    check_scroll(m, view, matching, matching_count, filter, &arena);
    check_get(m, view, s, &arena);
    check_search(m, view, s, &arena);
    arena_fini(&arena);
    mem_free(s);
}

void store_model_check(struct store_model *m, const struct store_view *view)
{
    struct store_view later = *view;
    check_at(m, view);
    store_view_at(&later, view->now_ms + store_model_random(m, 60));
    check_at(m, &later);
}

void store_model_check_now(struct store_model *m, struct shard_store *store)
{
    struct store_view view;
    store_view_acquire(store, &view);
    check_intents(m, store, view.sequence);
    store_model_check(m, &view);
    store_view_release(&view);
}

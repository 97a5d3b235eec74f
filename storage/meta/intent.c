/* Sets of open writes by filter, and one of them in data.mdb. Contract in intent.h. */
#include "common/err.h"

#include "storage/meta/intent.h"

#include <assert.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"
#include "storage/entry_layout.h"

#define INTENT_VERSION 1u
#define INTENT_HAS_CURSOR 1u
#define INTENT_CURSOR_OFF 52u

static_assert(INTENT_CURSOR_OFF + POINT_KEY_BYTES + 3 == INTENT_HEAD_BYTES, "the head is part of the format");

static void work_unref(struct intent_work *work)
{
    if (atomic_fetch_sub(&work->refs, 1) == 1) mem_free(work);
}

struct intent_set *intent_set_copy(const struct intent_set *from)
{
    struct intent_set *set = mem_calloc(1, sizeof *set);
    if (set == NULL) return NULL;
    atomic_init(&set->refs, 1);
    set->count = from != NULL ? from->count : 0;
    for (uint32_t i = 0; i < set->count; i++) {
        set->items[i] = from->items[i];
        atomic_fetch_add(&set->items[i].work->refs, 1);
    }
    return set;
}

struct intent_set *intent_set_ref(struct intent_set *set)
{
    atomic_fetch_add(&set->refs, 1);
    return set;
}

void intent_set_unref(struct intent_set *set)
{
    if (set == NULL || atomic_fetch_sub(&set->refs, 1) != 1) return;
    for (uint32_t i = 0; i < set->count; i++) work_unref(set->items[i].work);
    mem_free(set);
}

struct intent *intent_set_find(struct intent_set *set, struct intent_id id)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (intent_id_equal(set->items[i].work->id, id)) return &set->items[i];
    return NULL;
}

struct intent *intent_set_find_op(struct intent_set *set, const struct op_id *op_id)
{
    for (uint32_t i = 0; i < set->count && op_id->client != 0; i++) {
        const struct op_id *its = &set->items[i].work->op_id;
        if (its->client == op_id->client && its->seq == op_id->seq) return &set->items[i];
    }
    return NULL;
}

enum omen_err intent_set_add(struct intent_set *set, struct intent_id id, const struct op_id *op_id,
        const struct entry_intent *begin)
{
    CHECK(set->count < INTENTS_MAX && begin->kind == ENTRY_INTENT_BEGIN);
    uint32_t payload_len = begin->payload.data != NULL ? begin->payload.len : 0;
    struct intent_work *work = mem_alloc(sizeof *work + begin->filter.len + payload_len);
    if (work == NULL) return OMEN_ENOMEM;
    *work = (struct intent_work){ .refs = 1, .id = id, .op_id = *op_id, .op = begin->op };
    memcpy(work->bytes, begin->filter.data, begin->filter.len);
    work->filter = (struct doc){ work->bytes, begin->filter.len };
    if (payload_len > 0) {
        memcpy(work->bytes + begin->filter.len, begin->payload.data, payload_len);
        work->payload = (struct doc){ work->bytes + begin->filter.len, payload_len };
    }
    set->items[set->count++] = (struct intent){ .work = work };
    return OMEN_OK;
}

void intent_set_remove(struct intent_set *set, struct intent *item)
{
    uint32_t at = (uint32_t)(item - set->items);
    CHECK(at < set->count);
    work_unref(item->work);
    set->count--;
    for (uint32_t i = at; i < set->count; i++) set->items[i] = set->items[i + 1];
}

size_t intent_bytes(const struct intent *intent)
{
    const struct intent_work *w = intent->work;
    return INTENT_HEAD_BYTES + w->filter.len + (w->payload.data != NULL ? w->payload.len : 0);
}

void intent_encode(const struct intent *intent, uint8_t *out)
{
    const struct intent_work *w = intent->work;
    uint32_t payload_len = w->payload.data != NULL ? w->payload.len : 0;
    memset(out, 0, INTENT_HEAD_BYTES);
    store_u16(out + 4, INTENT_VERSION);
    out[6] = (uint8_t)w->op;
    out[7] = intent->has_cursor ? INTENT_HAS_CURSOR : 0;
    store_u64(out + 8, w->op_id.client);
    store_u64(out + 16, w->op_id.seq);
    store_u64(out + 24, w->op_id.issue_ms);
    store_u64(out + 32, intent->affected);
    store_u32(out + 40, intent->steps);
    store_u32(out + 44, w->filter.len);
    store_u32(out + 48, payload_len);
    if (intent->has_cursor) point_key_encode(&intent->cursor, out + INTENT_CURSOR_OFF);
    memcpy(out + INTENT_HEAD_BYTES, w->filter.data, w->filter.len);
    if (payload_len > 0) memcpy(out + INTENT_HEAD_BYTES + w->filter.len, w->payload.data, payload_len);
}

/* The cursor and the reserved bytes after it; zeros where there is none. */
static bool cursor_decode(const uint8_t *in, struct intent *item)
{
    uint8_t any = 0;
    for (uint32_t i = item->has_cursor ? POINT_KEY_BYTES : 0; i < POINT_KEY_BYTES + 3; i++) any |= in[i];
    if (any != 0) return false;
    if (!item->has_cursor) return true;
    point_key_decode(in, &item->cursor);
    const point_id *id = &item->cursor.id;
    return id->kind == POINT_ID_UUID || (id->kind == POINT_ID_U64 && id->hi == 0);
}

enum omen_err intent_decode(struct intent_id id, const uint8_t *in, size_t len, struct intent_set *set)
{
    struct doc ignored;
    if (len < INTENT_HEAD_BYTES || load_u16(in + 4) != INTENT_VERSION || (in[7] & ~INTENT_HAS_CURSOR) != 0)
        return OMEN_ECORRUPT;
    struct intent at = { .steps = load_u32(in + 40),
        .affected = load_u64(in + 32),
        .has_cursor = in[7] != 0 };
    if (!cursor_decode(in + INTENT_CURSOR_OFF, &at)) return OMEN_ECORRUPT;
    uint32_t filter_len = load_u32(in + 44), payload_len = load_u32(in + 48);
    if (INTENT_HEAD_BYTES + (uint64_t)filter_len + payload_len != len) return OMEN_ECORRUPT;
    const uint8_t *filter = in + INTENT_HEAD_BYTES, *payload = filter + filter_len;
    struct entry_intent begin = { .kind = ENTRY_INTENT_BEGIN,
        .op = (enum point_op_kind)in[6],
        .filter = { filter_len > 0 ? filter : NULL, filter_len },
        .payload = { payload_len > 0 ? payload : NULL, payload_len } };
    if (id.sequence == 0 || entry_intent_fault(&begin) != NULL) return OMEN_ECORRUPT;
    if (doc_validate((struct bytes){ filter, filter_len }, DOC_FILTER_BYTES_MAX, &ignored, NULL) != OMEN_OK)
        return OMEN_ECORRUPT;
    if (payload_len > 0 &&
            doc_validate((struct bytes){ payload, payload_len }, DOC_BYTES_MAX, &ignored, NULL) != OMEN_OK)
        return OMEN_ECORRUPT;
    const struct op_id op_id = { load_u64(in + 8), load_u64(in + 16), load_u64(in + 24) };
    if (set->count == INTENTS_MAX || intent_set_find(set, id) != NULL ||
            intent_set_find_op(set, &op_id) != NULL)
        return OMEN_ECORRUPT;
    enum omen_err rc = intent_set_add(set, id, &op_id, &begin);
    if (rc != OMEN_OK) return rc;
    struct intent *item = &set->items[set->count - 1];
    at.work = item->work;
    *item = at;
    return OMEN_OK;
}

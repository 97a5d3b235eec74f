/* What a request of a log entry has to do with a write by filter: its bytes in the entry's heap, as storage/entry.h draws
 * them. They come from disk and network: lengths, kinds and reserved bytes are checked here, docs by entry_parse.
 *
 * Threads: no state. Determinism: the verdict is a function of the bytes. */
#include "common/err.h"
#include "common/bytes.h"
#include "common/check.h"
#include "storage/entry_layout.h"

#include <assert.h>

static_assert(ENTRY_STEP_CURSOR_OFF + POINT_KEY_BYTES + 7 == ENTRY_STEP_BYTES,
        "a step is part of the format");

const char *entry_intent_fault(const struct entry_intent *intent)
{
    switch (intent->kind) {
    case ENTRY_INTENT_NONE: return "no intent";
    case ENTRY_INTENT_BEGIN:
        if (intent->op <= POINT_UPSERT || intent->op > POINT_DELETE_PAYLOAD)
            return "unknown kind of write by filter";
        if (intent->filter.data == NULL || intent->filter.len == 0) return "write by filter without a filter";
        if (intent->filter.len > DOC_FILTER_BYTES_MAX) return "filter above its size limit";
        if (intent->payload.data != NULL && intent->payload.len > DOC_BYTES_MAX)
            return "payload above its size limit";
        return entry_payload_fault(intent->op, intent->payload);
    case ENTRY_INTENT_STEP:
        if (intent->id.sequence == 0) return "step of no write by filter";
        if (!intent->ends && intent->code != OMEN_OK) return "outcome of a write by filter that goes on";
        if ((unsigned)intent->code >= OMEN_ERR_COUNT) return "unknown outcome of a write by filter";
        if (!intent->ends && !intent->has_cursor) return "step without a cursor";
        if (intent->has_cursor && intent->cursor.id.kind > POINT_ID_UUID) return "unknown kind of id";
        if (intent->has_cursor && intent->cursor.id.kind == POINT_ID_U64 && intent->cursor.id.hi != 0)
            return "numeric id above 64 bits";
        return NULL;
    }
    return "unknown kind of intent";
}

size_t entry_intent_bytes(const struct entry_intent *intent)
{
    if (intent->kind == ENTRY_INTENT_STEP) return ENTRY_STEP_BYTES;
    return ENTRY_BEGIN_BYTES + (size_t)intent->filter.len +
            (intent->payload.data != NULL ? intent->payload.len : 0);
}

void entry_intent_encode(const struct entry_intent *intent, uint8_t *out)
{
    memset(out, 0, intent->kind == ENTRY_INTENT_STEP ? ENTRY_STEP_BYTES : ENTRY_BEGIN_BYTES);
    out[0] = (uint8_t)intent->kind;
    if (intent->kind == ENTRY_INTENT_BEGIN) {
        uint32_t payload_len = intent->payload.data != NULL ? intent->payload.len : 0;
        out[1] = (uint8_t)intent->op;
        store_u32(out + 4, intent->filter.len);
        store_u32(out + 8, payload_len);
        memcpy(out + ENTRY_BEGIN_BYTES, intent->filter.data, intent->filter.len);
        if (payload_len > 0)
            memcpy(out + ENTRY_BEGIN_BYTES + intent->filter.len, intent->payload.data, payload_len);
        return;
    }
    out[1] = (uint8_t)((intent->ends ? ENTRY_STEP_ENDS : 0) | (intent->has_cursor ? ENTRY_STEP_CURSOR : 0));
    store_u16(out + 2, (uint16_t)intent->code);
    store_u32(out + 4, intent->id.part);
    store_u64(out + 8, intent->id.sequence);
    store_u32(out + 16, intent->step);
    if (intent->has_cursor) point_key_encode(&intent->cursor, out + ENTRY_STEP_CURSOR_OFF);
}

static const char *begin_decode(const uint8_t *in, size_t len, struct entry_intent *out, size_t *wrong_at_out)
{
    if (len < ENTRY_BEGIN_BYTES) return "shorter than an intent";
    uint32_t filter_len = load_u32(in + 4), payload_len = load_u32(in + 8);
    *wrong_at_out = 2;
    if (load_u16(in + 2) != 0) return "intent's reserved bytes are used";
    *wrong_at_out = 12;
    if (load_u32(in + 12) != 0) return "intent's reserved bytes are used";
    *wrong_at_out = 4;
    if (ENTRY_BEGIN_BYTES + (uint64_t)filter_len + payload_len != len)
        return "parts of an intent do not add up";
    out->op = (enum point_op_kind)in[1];
    out->filter = (struct doc){ filter_len > 0 ? in + ENTRY_BEGIN_BYTES : NULL, filter_len };
    out->payload = (struct doc){ payload_len > 0 ? in + ENTRY_BEGIN_BYTES + filter_len : NULL, payload_len };
    return NULL;
}

static bool zeros(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (p[i] != 0) return false;
    return true;
}

static const char *step_decode(const uint8_t *in, size_t len, struct entry_intent *out, size_t *wrong_at_out)
{
    if (len != ENTRY_STEP_BYTES) return "a step of another length";
    *wrong_at_out = 1;
    if ((in[1] & ~(ENTRY_STEP_ENDS | ENTRY_STEP_CURSOR)) != 0) return "unknown flags of a step";
    *wrong_at_out = 20;
    if (load_u32(in + 20) != 0) return "step's reserved bytes are used";
    *wrong_at_out = ENTRY_STEP_CURSOR_OFF + POINT_KEY_BYTES;
    if (!zeros(in + *wrong_at_out, 7)) return "step's reserved bytes are used";
    out->ends = (in[1] & ENTRY_STEP_ENDS) != 0;
    out->has_cursor = (in[1] & ENTRY_STEP_CURSOR) != 0;
    out->code = (enum omen_err)load_u16(in + 2);
    out->id = (struct intent_id){ load_u64(in + 8), load_u32(in + 4) };
    out->step = load_u32(in + 16);
    *wrong_at_out = ENTRY_STEP_CURSOR_OFF;
    if (!out->has_cursor && !zeros(in + ENTRY_STEP_CURSOR_OFF, POINT_KEY_BYTES))
        return "cursor of a step without one";
    if (out->has_cursor) point_key_decode(in + ENTRY_STEP_CURSOR_OFF, &out->cursor);
    return NULL;
}

const char *entry_intent_decode(const uint8_t *in, size_t len, struct entry_intent *intent_out,
        size_t *wrong_at_out)
{
    *wrong_at_out = 0;
    *intent_out = (struct entry_intent){ .kind = ENTRY_INTENT_NONE };
    if (len == 0) return "empty intent";
    intent_out->kind = (enum entry_intent_kind)in[0];
    const char *wrong = in[0] == ENTRY_INTENT_BEGIN ? begin_decode(in, len, intent_out, wrong_at_out)
            : in[0] == ENTRY_INTENT_STEP            ? step_decode(in, len, intent_out, wrong_at_out)
                                                    : "unknown kind of intent";
    if (wrong != NULL) return wrong;
    *wrong_at_out = 0;
    return entry_intent_fault(intent_out);
}

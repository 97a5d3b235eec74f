/* The first pass over a message from the network: nothing is allocated for it before this one has passed.
 *
 * msgpack-c allocates 24 bytes per element as soon as an array or map announces its count, from as little as 5 bytes of
 * input. So each announcement is held against the bytes that are left (an element takes at least one) and against a limit
 * of elements in all. Its own depth limit is 32 and answers with "no memory"; ours is the same and says what is wrong. */
#include <string.h>

#include "common/wire/request.h"
#include "common/wire/value.h"

enum item_kind { ITEM_SKIP, ITEM_ARRAY, ITEM_MAP, ITEM_BAD, ITEM_EXTENSION, ITEM_CUT };

struct item {
    enum item_kind kind;
    bool str;
    size_t header_bytes;
    uint64_t count; /* bytes that follow the header, or elements, or pairs */
};

static uint64_t load_be(const uint8_t *p, size_t width)
{
    uint64_t v = 0;
    for (size_t i = 0; i < width; i++) v = v << 8 | p[i];
    return v;
}

/* Item whose count stands in `width` bytes after the first. */
static struct item counted(const uint8_t *p, size_t left, enum item_kind kind, size_t width)
{
    if (left < 1 + width) return (struct item){ .kind = ITEM_CUT };
    return (struct item){ .kind = kind, .header_bytes = 1 + width, .count = load_be(p + 1, width) };
}

static struct item item_at(const uint8_t *p, size_t left)
{
    uint8_t b = p[0];
    if (b < 0x80 || b >= 0xe0) return (struct item){ .kind = ITEM_SKIP, .header_bytes = 1 };
    if (b < 0x90) return (struct item){ .kind = ITEM_MAP, .header_bytes = 1, .count = b & 0x0f };
    if (b < 0xa0) return (struct item){ .kind = ITEM_ARRAY, .header_bytes = 1, .count = b & 0x0f };
    if (b < 0xc0)
        return (struct item){ .kind = ITEM_SKIP, .header_bytes = 1, .count = b & 0x1f, .str = true };
    struct item item;
    switch (b) {
    case 0xc0: /* nil, false, true */
    case 0xc2:
    case 0xc3: return (struct item){ .kind = ITEM_SKIP, .header_bytes = 1 };
    case 0xc4: /* bin 8, 16, 32 */
    case 0xc5:
    case 0xc6: return counted(p, left, ITEM_SKIP, (size_t)1 << (b - 0xc4));
    case 0xca: /* float 32, 64 */
    case 0xcb: return (struct item){ .kind = ITEM_SKIP, .header_bytes = 1, .count = 4u << (b - 0xca) };
    case 0xcc: /* uint 8 .. 64 */
    case 0xcd:
    case 0xce:
    case 0xcf: return (struct item){ .kind = ITEM_SKIP, .header_bytes = 1, .count = 1u << (b - 0xcc) };
    case 0xd0: /* int 8 .. 64 */
    case 0xd1:
    case 0xd2:
    case 0xd3: return (struct item){ .kind = ITEM_SKIP, .header_bytes = 1, .count = 1u << (b - 0xd0) };
    case 0xd9: /* str 8, 16, 32 */
    case 0xda:
    case 0xdb:
        item = counted(p, left, ITEM_SKIP, (size_t)1 << (b - 0xd9));
        item.str = true;
        return item;
    case 0xdc: /* array 16, 32 */
    case 0xdd: return counted(p, left, ITEM_ARRAY, (size_t)2 << (b - 0xdc));
    case 0xde: /* map 16, 32 */
    case 0xdf: return counted(p, left, ITEM_MAP, (size_t)2 << (b - 0xde));
    case 0xc1: return (struct item){ .kind = ITEM_BAD };
    default: /* c7..c9, d4..d8 */ return (struct item){ .kind = ITEM_EXTENSION };
    }
}

struct scan {
    struct bytes message;
    size_t at;
    uint64_t elements;
    uint64_t left[WIRE_DEPTH_MAX]; /* elements still to come, by depth; a pair is two */
    uint32_t depth;
    struct bytes member; /* key of the top-level member we are in */
    struct err *err;
};

static enum omen_err scan_failed(const struct scan *s, enum omen_err code, const char *what)
{
    char field[ERR_FIELD_BYTES];
    int len = s->member.len < ERR_FIELD_BYTES ? (int)s->member.len : ERR_FIELD_BYTES - 1;
    snprintf(field, sizeof field, "%.*s", len, (const char *)s->member.data);
    return err_set(s->err, code, field, "%s at byte %zu of %zu", what, s->at, s->message.len);
}

/* An array or map begins: check what it announces and go down. */
static enum omen_err scan_enter(struct scan *s, const struct item *item)
{
    size_t left_bytes = s->message.len - s->at - item->header_bytes;
    uint64_t elements = item->kind == ITEM_MAP ? 2 * item->count : item->count;
    if (elements > left_bytes)
        return scan_failed(s, OMEN_EPROTO, "array or map announces more elements than bytes left");
    s->elements += elements;
    if (s->elements > WIRE_ELEMENTS_MAX) {
        return err_set(s->err, OMEN_ETOOBIG, NULL, "message has more than %d elements: use bin columns",
                WIRE_ELEMENTS_MAX);
    }
    if (s->depth == WIRE_DEPTH_MAX) return scan_failed(s, OMEN_ETOOBIG, "nested deeper than 32 levels");
    s->left[s->depth++] = elements;
    s->at += item->header_bytes;
    return OMEN_OK;
}

/* One value that is no container. */
static enum omen_err scan_skip(struct scan *s, const struct item *item)
{
    size_t left_bytes = s->message.len - s->at - item->header_bytes;
    if (item->count > left_bytes) return scan_failed(s, OMEN_EPROTO, "value is longer than the bytes left");
    bool key = s->depth == 1 && s->left[0] % 2 == 1; /* counted down already: a key leaves its value */
    if (key) {
        s->member = (struct bytes){ (const uint8_t *)"", 0 };
        if (item->str)
            s->member = (struct bytes){ s->message.data + s->at + item->header_bytes, item->count };
    }
    s->at += item->header_bytes + item->count;
    return OMEN_OK;
}

/* The next value, header or whole, and up from the containers that it ends. */
static enum omen_err scan_step(struct scan *s)
{
    if (s->depth > 0) s->left[s->depth - 1]--;
    if (s->at == s->message.len) return scan_failed(s, OMEN_EPROTO, "message ends inside a value");
    struct item item = item_at(s->message.data + s->at, s->message.len - s->at);
    enum omen_err rc = OMEN_OK;
    switch (item.kind) {
    case ITEM_SKIP: rc = scan_skip(s, &item); break;
    case ITEM_ARRAY:
    case ITEM_MAP: rc = scan_enter(s, &item); break;
    case ITEM_BAD: return scan_failed(s, OMEN_EPROTO, "byte c1 begins no msgpack value");
    case ITEM_EXTENSION: return scan_failed(s, OMEN_EPROTO, "msgpack extension types are not accepted");
    case ITEM_CUT: return scan_failed(s, OMEN_EPROTO, "message ends inside a value");
    }
    if (rc != OMEN_OK) return rc;
    while (s->depth > 0 && s->left[s->depth - 1] == 0) s->depth--;
    return OMEN_OK;
}

enum omen_err wire_scan(struct bytes message, struct err *err)
{
    struct scan s = { .message = message, .member = { (const uint8_t *)"", 0 }, .err = err };
    do {
        enum omen_err rc = scan_step(&s);
        if (rc != OMEN_OK) return rc;
    } while (s.depth > 0);
    if (s.at != message.len) return scan_failed(&s, OMEN_EPROTO, "bytes after the end of the message");
    return OMEN_OK;
}

/* The str that begins at `at`, which scan_step has just passed. */
static struct bytes str_at(struct bytes message, size_t at)
{
    struct item item = item_at(message.data + at, message.len - at);
    if (item.kind != ITEM_SKIP || !item.str) return (struct bytes){ NULL, 0 };
    return (struct bytes){ message.data + at + item.header_bytes, item.count };
}

static bool member_is(const struct scan *s, const char *name)
{
    return s->member.len == strlen(name) && memcmp(s->member.data, name, s->member.len) == 0;
}

void message_peek(struct bytes message, enum wire_op *op_out, struct bytes *api_key_out)
{
    struct err ignored; /* decode says what is wrong */
    struct scan s = { .message = message, .member = { (const uint8_t *)"", 0 }, .err = &ignored };
    bool have_op = false, have_key = false;
    *op_out = (enum wire_op)0;
    *api_key_out = (struct bytes){ NULL, 0 };
    if (message.len == 0 || item_at(message.data, message.len).kind != ITEM_MAP) return;
    do {
        size_t at = s.at;
        bool value = s.depth == 1 && s.left[0] % 2 == 1; /* of a top-level member; not yet counted down */
        if (scan_step(&s) != OMEN_OK) return;
        if (!value) continue;
        if (member_is(&s, "op")) {
            struct bytes name = str_at(message, at);
            have_op = name.data != NULL && op_parse(name, op_out);
        } else if (member_is(&s, "key")) {
            *api_key_out = str_at(message, at);
            have_key = true;
        }
    } while (s.depth > 0 && !(have_op && have_key));
}

/* Frames between replicas: see frame.h. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "consensus/frame.h"
#include "consensus/members.h"

#define FRAME_MAGIC 0x46524d4fu /* "OMRF" */
#define ENTRY_META_BYTES 24u
#define APPEND_BYTES 40u
#define APPEND_RESULT_BYTES 32u
#define VOTE_BYTES 40u
#define VOTE_RESULT_BYTES 24u
#define INSTALL_BYTES 48u
#define TIMEOUT_NOW_BYTES 24u
#define BARRIER_BYTES 24u
#define VOTE_DISRUPT 1u
#define VOTE_PRE 2u
#define RESULT_GRANTED 1u
#define RESULT_PRE 2u

/* Fixed part of each message's meta. */
static uint32_t fixed_bytes(enum frame_type type)
{
    switch (type) {
    case FRAME_PING: return 0;
    case FRAME_APPEND: return APPEND_BYTES;
    case FRAME_APPEND_RESULT: return APPEND_RESULT_BYTES;
    case FRAME_VOTE: return VOTE_BYTES;
    case FRAME_VOTE_RESULT: return VOTE_RESULT_BYTES;
    case FRAME_INSTALL: return INSTALL_BYTES;
    case FRAME_TIMEOUT_NOW: return TIMEOUT_NOW_BYTES;
    case FRAME_BARRIER:
    case FRAME_BARRIER_RESULT: return BARRIER_BYTES;
    }
    return UINT32_MAX;
}

static enum omen_err malformed(struct err *err, const char *what)
{
    return err_set(err, OMEN_EPROTO, NULL, "frame: %s", what);
}

/* ---- decode ---- */

enum omen_err frame_header_decode(const uint8_t in[FRAME_HEADER_BYTES], struct frame_header *h,
        struct err *err)
{
    if (load_u32(in) != FRAME_MAGIC) return malformed(err, "bad magic");
    if (load_u32(in + 60) != crc32c(0, in, 60)) return malformed(err, "header checksum differs");
    uint32_t fixed = fixed_bytes((enum frame_type)load_u16(in + 4));
    *h = (struct frame_header){
        .type = (enum frame_type)load_u16(in + 4),
        .group = load_u64(in + 8),
        .from = load_u64(in + 16),
        .to = load_u64(in + 24),
        .meta_bytes = load_u32(in + 32),
        .entry_count = load_u32(in + 36),
        .body_bytes = load_u64(in + 40),
        .meta_crc = load_u32(in + 48),
    };
    if (fixed == UINT32_MAX) return malformed(err, "unknown type");
    if (load_u16(in + 6) != 0 || load_u64(in + 52) != 0) return malformed(err, "reserved bytes are not zero");
    if (h->meta_bytes < fixed || h->meta_bytes > FRAME_META_BYTES_MAX)
        return malformed(err, "meta of a wrong size");
    if (h->entry_count > (h->type == FRAME_APPEND ? FRAME_ENTRIES_MAX : 0u))
        return malformed(err, "too many entries");
    uint64_t meta = fixed + (uint64_t)h->entry_count * ENTRY_META_BYTES;
    if (h->type != FRAME_INSTALL && h->meta_bytes != meta) return malformed(err, "meta of a wrong size");
    if (h->body_bytes > FRAME_BODY_BYTES_MAX || h->body_bytes < align_up(h->meta_bytes, 16) ||
            (h->entry_count == 0 && h->body_bytes != align_up(h->meta_bytes, 16)))
        return malformed(err, "body of a wrong size");
    if (h->type != FRAME_PING && (h->from == 0 || h->to == 0)) return malformed(err, "replica id 0");
    return OMEN_OK;
}

/* The entries of an append: sizes, sums, and terms that never fall and never exceed the message's. */
static enum omen_err entries_decode(struct frame *f, struct err *err)
{
    const struct frame_header *h = &f->header;
    struct raft_append_entries *a = &f->message.append_entries;
    uint8_t *body = f->body->base;
    const uint8_t *meta = body + APPEND_BYTES;
    uint64_t at = align_up(h->meta_bytes, 16), term = a->prev_log_term;
    f->slots = mem_calloc(h->entry_count + 1, sizeof *f->slots);
    if (f->slots == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < h->entry_count; i++, meta += ENTRY_META_BYTES) {
        struct log_slot *s = &f->slots[i];
        uint32_t type = load_u32(meta + 8), count;
        *s = (struct log_slot){
            .term = load_u64(meta),
            .type = (enum node_log_entry_type)type,
            .len = load_u32(meta + 12),
            .crc = load_u32(meta + 16),
            .owner = f->body,
            .data = body + at,
        };
        if (type > NODE_LOG_CHANGE || load_u32(meta + 20) != 0)
            return malformed(err, "entry of unknown type");
        if (s->term < term || s->term == 0 || s->term > a->term)
            return malformed(err, "entry of an odd term");
        if (s->len == 0 || s->len % 8 != 0 || s->len > FRAME_ENTRY_BYTES_MAX)
            return malformed(err, "entry of a wrong size");
        if (!range_fits(at, align_up(s->len, 16), h->body_bytes))
            return malformed(err, "entry outside its frame");
        if (crc32c(0, s->data, s->len) != s->crc) return malformed(err, "entry checksum differs");
        if (s->type == NODE_LOG_CHANGE && members_decode(s->data, s->len, NULL, &count) != OMEN_OK)
            return malformed(err, "malformed configuration");
        term = s->term;
        at += align_up(s->len, 16);
    }
    return at == h->body_bytes ? OMEN_OK : malformed(err, "bytes after the last entry");
}

static enum omen_err append_decode(struct frame *f, const uint8_t *p, struct err *err)
{
    struct raft_append_entries *a = &f->message.append_entries;
    f->message.type = RAFT_APPEND_ENTRIES;
    a->term = load_u64(p);
    a->prev_log_index = load_u64(p + 8);
    a->prev_log_term = load_u64(p + 16);
    a->leader_commit = load_u64(p + 24);
    a->version = (unsigned char)load_u64(p + 32);
    a->n_entries = f->header.entry_count;
    if (a->term == 0 || a->prev_log_term > a->term || (a->prev_log_index == 0) != (a->prev_log_term == 0))
        return malformed(err, "append of an odd term");
    if (a->prev_log_index >= UINT64_MAX - FRAME_ENTRIES_MAX) return malformed(err, "append of an odd index");
    return entries_decode(f, err);
}

static enum omen_err append_result_decode(struct frame *f, const uint8_t *p, struct err *err)
{
    struct raft_append_entries_result *r = &f->message.append_entries_result;
    f->message.type = RAFT_APPEND_ENTRIES_RESULT;
    r->term = load_u64(p);
    r->rejected = load_u64(p + 8);
    r->last_log_index = load_u64(p + 16);
    r->features = load_u16(p + 24);
    r->capacity = load_u16(p + 26);
    r->version = (unsigned char)load_u32(p + 28);
    return OMEN_OK;
}

static enum omen_err vote_decode(struct frame *f, const uint8_t *p, struct err *err)
{
    struct raft_request_vote *v = &f->message.request_vote;
    uint32_t flags = load_u32(p + 32);
    f->message.type = RAFT_REQUEST_VOTE;
    v->term = load_u64(p);
    v->candidate_id = load_u64(p + 8);
    v->last_log_index = load_u64(p + 16);
    v->last_log_term = load_u64(p + 24);
    v->disrupt_leader = (flags & VOTE_DISRUPT) != 0;
    v->pre_vote = (flags & VOTE_PRE) != 0;
    v->version = (unsigned char)load_u32(p + 36);
    if (flags > (VOTE_DISRUPT | VOTE_PRE)) return malformed(err, "vote with unknown flags");
    if (v->candidate_id != f->header.from) return malformed(err, "vote asked for somebody else");
    return OMEN_OK;
}

static enum omen_err vote_result_decode(struct frame *f, const uint8_t *p, struct err *err)
{
    struct raft_request_vote_result *v = &f->message.request_vote_result;
    uint32_t flags = load_u32(p + 8);
    f->message.type = RAFT_REQUEST_VOTE_RESULT;
    v->term = load_u64(p);
    v->vote_granted = (flags & RESULT_GRANTED) != 0;
    v->pre_vote = (flags & RESULT_PRE) != 0;
    v->version = (unsigned char)load_u32(p + 12);
    v->features = load_u16(p + 16);
    v->capacity = load_u16(p + 18);
    return flags > (RESULT_GRANTED | RESULT_PRE) ? malformed(err, "vote with unknown flags") : OMEN_OK;
}

static enum omen_err install_decode(struct frame *f, const uint8_t *p, struct err *err)
{
    struct raft_install_snapshot *s = &f->message.install_snapshot;
    uint32_t count;
    f->message.type = RAFT_INSTALL_SNAPSHOT;
    s->term = load_u64(p);
    s->last_index = load_u64(p + 8);
    s->last_term = load_u64(p + 16);
    s->conf_index = load_u64(p + 24);
    f->sequence = load_u64(p + 32);
    f->members_len = load_u32(p + 40);
    s->version = (unsigned char)load_u32(p + 44);
    f->members = p + INSTALL_BYTES;
    if (s->last_index == 0 || s->last_term == 0 || s->last_term > s->term || s->conf_index == 0 ||
            s->conf_index > s->last_index || f->sequence > s->last_index)
        return malformed(err, "snapshot of an odd index");
    if (f->members_len != f->header.meta_bytes - INSTALL_BYTES) return malformed(err, "meta of a wrong size");
    if (members_decode(f->members, f->members_len, NULL, &count) != OMEN_OK)
        return malformed(err, "malformed configuration");
    return OMEN_OK;
}

static enum omen_err timeout_now_decode(struct frame *f, const uint8_t *p)
{
    struct raft_timeout_now *t = &f->message.timeout_now;
    f->message.type = RAFT_TIMEOUT_NOW;
    t->term = load_u64(p);
    t->last_log_index = load_u64(p + 8);
    t->last_log_term = load_u64(p + 16);
    return OMEN_OK;
}

static enum omen_err message_decode(struct frame *f, struct err *err)
{
    const uint8_t *p = f->body->base;
    switch (f->header.type) {
    case FRAME_PING: return OMEN_OK;
    case FRAME_APPEND: return append_decode(f, p, err);
    case FRAME_APPEND_RESULT: return append_result_decode(f, p, err);
    case FRAME_VOTE: return vote_decode(f, p, err);
    case FRAME_VOTE_RESULT: return vote_result_decode(f, p, err);
    case FRAME_INSTALL: return install_decode(f, p, err);
    case FRAME_TIMEOUT_NOW: return timeout_now_decode(f, p);
    case FRAME_BARRIER:
    case FRAME_BARRIER_RESULT:
        f->barrier = (struct frame_barrier){ load_u64(p), load_u64(p + 8), load_u32(p + 16) };
        if (f->barrier.code >= OMEN_ERR_COUNT) return malformed(err, "barrier with an unknown code");
        return OMEN_OK;
    }
    return malformed(err, "unknown type");
}

enum omen_err frame_decode(const struct frame_header *header, uint8_t *body, struct frame **frame_out,
        struct err *err)
{
    *frame_out = NULL;
    if (crc32c(0, body, header->meta_bytes) != header->meta_crc) {
        mem_free(body);
        return malformed(err, "meta checksum differs");
    }
    struct frame *f = mem_must_calloc(1, sizeof *f);
    f->header = *header;
    f->body = shared_new(body);
    f->message.server_id = header->from;
    enum omen_err rc = message_decode(f, err);
    if (rc != OMEN_OK) {
        frame_free(f);
        return rc;
    }
    *frame_out = f;
    return OMEN_OK;
}

void frame_free(struct frame *f)
{
    if (f == NULL) return;
    mem_free(f->slots);
    shared_release(f->body);
    mem_free(f);
}

/* ---- encode ---- */

static const uint8_t zeros[16];

static void message_encode(const struct frame_parts *parts, uint8_t *p)
{
    const struct raft_message *m = parts->message;
    switch (parts->type) {
    case FRAME_PING: break;
    case FRAME_APPEND:
        store_u64(p, m->append_entries.term);
        store_u64(p + 8, m->append_entries.prev_log_index);
        store_u64(p + 16, m->append_entries.prev_log_term);
        store_u64(p + 24, m->append_entries.leader_commit);
        store_u64(p + 32, m->append_entries.version);
        break;
    case FRAME_APPEND_RESULT:
        store_u64(p, m->append_entries_result.term);
        store_u64(p + 8, m->append_entries_result.rejected);
        store_u64(p + 16, m->append_entries_result.last_log_index);
        store_u16(p + 24, m->append_entries_result.features);
        store_u16(p + 26, m->append_entries_result.capacity);
        store_u32(p + 28, m->append_entries_result.version);
        break;
    case FRAME_VOTE:
        store_u64(p, m->request_vote.term);
        store_u64(p + 8, m->request_vote.candidate_id);
        store_u64(p + 16, m->request_vote.last_log_index);
        store_u64(p + 24, m->request_vote.last_log_term);
        store_u32(p + 32,
                (m->request_vote.disrupt_leader ? VOTE_DISRUPT : 0u) |
                        (m->request_vote.pre_vote ? VOTE_PRE : 0u));
        store_u32(p + 36, m->request_vote.version);
        break;
    case FRAME_VOTE_RESULT:
        store_u64(p, m->request_vote_result.term);
        store_u32(p + 8,
                (m->request_vote_result.vote_granted ? RESULT_GRANTED : 0u) |
                        (m->request_vote_result.pre_vote ? RESULT_PRE : 0u));
        store_u32(p + 12, m->request_vote_result.version);
        store_u16(p + 16, m->request_vote_result.features);
        store_u16(p + 18, m->request_vote_result.capacity);
        store_u32(p + 20, 0);
        break;
    case FRAME_INSTALL:
        store_u64(p, m->install_snapshot.term);
        store_u64(p + 8, m->install_snapshot.last_index);
        store_u64(p + 16, m->install_snapshot.last_term);
        store_u64(p + 24, m->install_snapshot.conf_index);
        store_u64(p + 32, parts->sequence);
        store_u32(p + 40, parts->members_len);
        store_u32(p + 44, m->install_snapshot.version);
        memcpy(p + INSTALL_BYTES, parts->members, parts->members_len);
        break;
    case FRAME_TIMEOUT_NOW:
        store_u64(p, m->timeout_now.term);
        store_u64(p + 8, m->timeout_now.last_log_index);
        store_u64(p + 16, m->timeout_now.last_log_term);
        break;
    case FRAME_BARRIER:
    case FRAME_BARRIER_RESULT:
        store_u64(p, parts->barrier->token);
        store_u64(p + 8, parts->barrier->sequence);
        store_u32(p + 16, parts->barrier->code);
        store_u32(p + 20, 0);
        break;
    }
}

static void piece_add(struct frame_out *f, const void *data, size_t len)
{
    if (len == 0) return;
    f->pieces[f->piece_count++] = (struct frame_piece){ data, len };
    f->bytes += len;
}

/* Entry table into the meta, the entries' bytes as pieces. */
static void entries_encode(struct frame_out *f, const struct frame_parts *parts, uint8_t *table)
{
    const struct raft_append_entries *a = &parts->message->append_entries;
    for (uint32_t i = 0; i < a->n_entries; i++, table += ENTRY_META_BYTES) {
        const struct log_slot *s = group_log_get(parts->log, a->prev_log_index + 1 + i);
        CHECK(s != NULL);
        store_u64(table, s->term);
        store_u32(table + 8, s->type);
        store_u32(table + 12, s->len);
        store_u32(table + 16, s->crc);
        store_u32(table + 20, 0);
        f->owners[f->owner_count++] = shared_hold(s->owner);
        piece_add(f, s->data, s->len);
        piece_add(f, zeros, align_up(s->len, 16) - s->len);
    }
}

struct frame_out *frame_encode(const struct frame_parts *parts)
{
    uint32_t entry_count = parts->type == FRAME_APPEND ? parts->message->append_entries.n_entries : 0;
    uint32_t fixed = fixed_bytes(parts->type);
    uint32_t meta_bytes = fixed + entry_count * ENTRY_META_BYTES;
    if (parts->type == FRAME_INSTALL) meta_bytes += parts->members_len;
    CHECK(entry_count <= FRAME_ENTRIES_MAX);
    CHECK(meta_bytes <= FRAME_META_BYTES_MAX);
    size_t head = FRAME_HEADER_BYTES + align_up(meta_bytes, 16);
    struct frame_out *f = mem_must_calloc(1, sizeof *f + head);
    f->pieces = mem_must_alloc((1 + 2 * (size_t)entry_count) * sizeof *f->pieces);
    f->owners = mem_must_alloc((1 + (size_t)entry_count) * sizeof *f->owners);
    uint8_t *meta = f->head + FRAME_HEADER_BYTES;
    piece_add(f, f->head, head);
    message_encode(parts, meta);
    if (entry_count > 0) entries_encode(f, parts, meta + fixed);
    store_u32(f->head, FRAME_MAGIC);
    store_u16(f->head + 4, (uint16_t)parts->type);
    store_u64(f->head + 8, parts->group);
    store_u64(f->head + 16, parts->from);
    store_u64(f->head + 24, parts->to);
    store_u32(f->head + 32, meta_bytes);
    store_u32(f->head + 36, entry_count);
    store_u64(f->head + 40, f->bytes - FRAME_HEADER_BYTES);
    store_u32(f->head + 48, crc32c(0, meta, meta_bytes));
    store_u32(f->head + 60, crc32c(0, f->head, 60));
    return f;
}

void frame_out_free(struct frame_out *f)
{
    if (f == NULL) return;
    for (uint32_t i = 0; i < f->owner_count; i++) shared_release(f->owners[i]);
    mem_free(f->owners);
    mem_free(f->pieces);
    mem_free(f);
}

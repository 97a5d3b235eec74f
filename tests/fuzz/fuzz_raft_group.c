/* A replica of a Raft group that hears arbitrary frames of its peers, which know the secret but are wrong, or
 * wronged: it may refuse, stop, or follow them, but not crash, nor break what its own code checks. Raft's core
 * has its assertions compiled out, so this is also the test of what is checked before it.
 *
 * The input is a list of steps: u8 kind, then for a frame its bytes (checksums repaired, addressed to us), for
 * a tick a time, for an append coming back whether the disk was full. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/members.h"
#include "consensus/raft_group.h"
#include "tests/support/frame_repair.h"

#define OUT_MANY 32u /* appends with the log above which some come back */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct group_append **out; /* with the log, in order */
    uint32_t out_count, out_cap;
    uint64_t committed, sequence;
    bool wants_base;
};

static void io_append(void *arg, struct group_append *append)
{
    struct world *w = arg;
    if (w->out_count == w->out_cap) {
        w->out_cap = w->out_cap == 0 ? 64 : 2 * w->out_cap;
        w->out = mem_must_realloc(w->out, w->out_cap * sizeof *w->out);
    }
    w->out[w->out_count++] = append;
}
static void io_send(void *arg, struct frame_out *frame) { frame_out_free(frame); }
static void io_commit(void *arg, const struct group_commit *entry)
{
    struct world *w = arg;
    CHECK(entry->index == w->committed + 1);
    CHECK(entry->sequence >= w->sequence);
    w->committed = entry->index;
    w->sequence = entry->sequence;
}
static void io_lost(void *arg, enum node_log_entry_type type, void *tag, enum omen_err rc) {}
static bool io_fetch(void *arg, uint64_t sequence, uint64_t node_id)
{
    struct world *w = arg;
    return w->wants_base;
}
static void io_installed(void *arg, uint64_t sequence)
{
    struct world *w = arg;
    w->sequence = sequence;
    w->committed = 0; /* set by the next status */
}
static void io_released(void *arg, uint64_t index) {}
static void io_role_changed(void *arg) {}
static void io_changed(void *arg, void *tag, enum omen_err rc) {}
static void io_barrier(void *arg, enum frame_type type, uint64_t node_id, uint64_t from,
        const struct frame_barrier *barrier)
{
}

static const struct group_io io = { io_append, io_send, io_commit, io_lost, io_fetch, io_installed,
    io_released, io_role_changed, io_changed, io_barrier, NULL };

static struct raft_group *group_make(struct world *w, uint64_t now)
{
    struct replica_member members[] = { { 1, 1, REPLICA_VOTER }, { 2, 2, REPLICA_VOTER },
        { 3, 3, REPLICA_VOTER } };
    struct group_options o = { .group = 1,
        .replica_id = 1,
        .node_id = 1,
        .election_ms = 800,
        .heartbeat_ms = 100,
        .seed = 7,
        .io = &io,
        .io_arg = w };
    struct group_load load = { .term = 1, .first_index = 1, .count = 1 };
    uint32_t len;
    uint8_t *body = members_encode(members, 3, &len);
    load.slots = mem_must_calloc(1, sizeof *load.slots);
    load.slots[0] = (struct log_slot){ .term = 1,
        .owner = shared_new(body),
        .data = body,
        .len = len,
        .type = NODE_LOG_CHANGE };
    struct raft_group *g;
    CHECK(raft_group_new(&o, &load, now, &g, NULL) == OMEN_OK);
    raft_group_start(g, now);
    return g;
}

/* The oldest `count` appends come back. */
static void appends_back(struct world *w, struct raft_group *g, uint32_t count, bool full, uint64_t now)
{
    for (uint32_t i = 0; i < count && w->out_count > 0; i++) {
        struct group_append *a = w->out[0];
        memmove(w->out, w->out + 1, --w->out_count * sizeof w->out[0]);
        a->result = full ? OMEN_EFULL : OMEN_OK;
        raft_group_appended(g, a, now);
    }
}

static size_t frame_feed(struct raft_group *g, uint8_t *data, size_t size, bool strip, uint64_t now)
{
    struct frame_header header;
    struct frame *frame;
    if (size < FRAME_HEADER_BYTES) return size;
    uint64_t from = load_u64(data + 16) % 3 + 2;
    store_u64(data + 8, 1);
    store_u64(data + 16, from);
    store_u64(data + 24, 1);
    if (load_u16(data + 4) == FRAME_VOTE && size >= FRAME_HEADER_BYTES + 16)
        store_u64(data + FRAME_HEADER_BYTES + 8, from);
    size_t len = frame_repair(data, size);
    if (len == 0 || frame_header_decode(data, &header, NULL) != OMEN_OK) return FRAME_HEADER_BYTES;
    uint8_t *body = mem_alloc_aligned(64, header.body_bytes + 1);
    memcpy(body, data + FRAME_HEADER_BYTES, header.body_bytes);
    if (frame_decode(&header, body, &frame, NULL) == OMEN_OK) raft_group_frame(g, frame, from, strip, now);
    return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct world w = { 0 };
    uint64_t now = 1000;
    uint8_t *copy = mem_must_alloc(size + 1);
    memcpy(copy, data, size);
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    struct raft_group *g = group_make(&w, now);
    for (size_t at = 0; at < size;) {
        uint8_t kind = copy[at++];
        if (w.out_count > OUT_MANY) appends_back(&w, g, UINT32_MAX, false, now);
        struct replica_status s;
        raft_group_status(g, &s);
        if (w.committed == 0) w.committed = s.commit_index; /* after the start and after an install */
        w.wants_base = (kind & 0x40) != 0;
        switch (kind & 3) {
        case 0: at += frame_feed(g, copy + at, size - at, (kind & 0x80) != 0, now); break;
        case 1:
            now += (kind >> 2) * 40u;
            raft_group_tick(g, now);
            break;
        case 2: appends_back(&w, g, (kind >> 2 & 7) + 1u, (kind & 0x80) != 0, now); break;
        case 3: raft_group_checkpointed(g, kind >> 2, kind & 0x80 ? 1u << 20 : 0, now); break;
        }
    }
    while (w.out_count > 0) appends_back(&w, g, UINT32_MAX, false, now);
    raft_group_free(g);
    mem_free(w.out);
    mem_free(copy);
    return 0;
}

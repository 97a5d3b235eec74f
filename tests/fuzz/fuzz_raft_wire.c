/* What nodes say to each other, on arbitrary bytes: handshake messages, frames, configurations, descriptions
 * of bases. Nothing is read outside the input, nothing large is allocated for what a header announces, and
 * what is taken says the same when it is encoded again. The first byte chooses whether checksums are repaired. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "consensus/handshake.h"
#include "consensus/members.h"
#include "consensus/raft_group.h"
#include "tests/support/frame_repair.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_handshake(const uint8_t *data, size_t size)
{
    uint8_t hello[HANDSHAKE_HELLO_BYTES], again[HANDSHAKE_HELLO_BYTES];
    struct handshake h = { 0 };
    if (size >= sizeof hello) {
        memcpy(hello, data, sizeof hello);
        store_u32(hello + 92, crc32c(0, hello, 92));
        if (handshake_hello_decode(hello, &h) == OMEN_OK) {
            handshake_hello_encode(&h, again);
            CHECK(memcmp(hello, again, sizeof again) == 0);
        }
    }
    for (int kind = HANDSHAKE_CHALLENGE; size >= HANDSHAKE_REPLY_BYTES && kind <= HANDSHAKE_ACCEPT; kind++) {
        struct handshake_reply reply;
        memcpy(hello, data, HANDSHAKE_REPLY_BYTES);
        store_u32(hello + 60, crc32c(0, hello, 60));
        if (handshake_reply_decode(hello, (enum handshake_kind)kind, &reply) != OMEN_OK) continue;
        handshake_reply_encode(&reply, again);
        CHECK(memcmp(hello, again, HANDSHAKE_REPLY_BYTES) == 0);
    }
}

static void try_members(const uint8_t *data, size_t size)
{
    struct replica_member members[GROUP_MEMBERS_MAX];
    uint32_t count, len;
    if (size > UINT32_MAX || members_decode(data, (uint32_t)size, members, &count) != OMEN_OK) return;
    uint8_t *again = members_encode(members, count, &len);
    CHECK(len == size);
    CHECK(memcmp(again, data, size) == 0);
    mem_free(again);
}

static void try_base(const uint8_t *data, size_t size)
{
    struct group_base base;
    uint32_t len;
    if (group_base_decode(data, size, &base) != OMEN_OK) return;
    uint8_t *again = group_base_encode(&base, &len);
    CHECK(len == size);
    CHECK(memcmp(again, data, size) == 0);
    mem_free(again);
    mem_free(base.members);
}

static void try_frame(const uint8_t *data, size_t size)
{
    struct frame_header header;
    struct frame *frame;
    struct err err = { 0 };
    if (size < FRAME_HEADER_BYTES || frame_header_decode(data, &header, &err) != OMEN_OK) return;
    CHECK(header.body_bytes <= FRAME_BODY_BYTES_MAX);
    if (size - FRAME_HEADER_BYTES < header.body_bytes) return;
    uint8_t *body = mem_alloc_aligned(64, header.body_bytes + 1);
    memcpy(body, data + FRAME_HEADER_BYTES, header.body_bytes);
    if (frame_decode(&header, body, &frame, &err) != OMEN_OK) {
        CHECK(err.message[0] != '\0');
        return;
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < header.entry_count; i++) {
        for (uint32_t j = 0; j < frame->slots[i].len; j++) sum += frame->slots[i].data[j];
    }
    volatile uint64_t used = sum; /* every byte was read */
    (void)used;
    frame_free(frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    size_t len = size - 1;
    uint8_t *copy = mem_must_alloc(len + 1);
    memcpy(copy, data + 1, len);
    try_handshake(copy, len);
    try_members(copy, len);
    try_base(copy, len);
    if (data[0] & 1) (void)frame_repair(copy, len);
    try_frame(copy, len);
    mem_free(copy);
    return 0;
}

/* What replicas say to each other: one frame per message, bytes to struct and back. FORMAT.md has the table.
 *
 * Frame header, 64 bytes, little-endian.  0 magic "OMRF" | 4 u16 type | 6 zero [2] | 8 u64 group |
 *   16 u64 from replica | 24 u64 to replica | 32 u32 meta bytes | 36 u32 entry count | 40 u64 body bytes |
 *   48 u32 crc32c of meta | 52 zero [8], checked | 60 u32 crc32c of 0..59
 * Body: meta, padded to 16; then the entries, each padded to 16. Meta: the message's fields (FRAME_*_BYTES),
 *   then 24 bytes per entry {u64 term, u32 type, u32 bytes, u32 crc32c, zero [4]}, or a configuration.
 * TCP's checksum is 16 bits wide: the entries' own sums, made once by the leader, go with them to every disk.
 *
 * Nothing is believed: the header is checked before the body is allocated, terms and indexes of a message are
 * checked against each other, because raft's core does not (its assertions are compiled out).
 *
 * Threads: pure functions. Determinism: yes. */
#ifndef OMEN_CONSENSUS_FRAME_H
#define OMEN_CONSENSUS_FRAME_H

#include "consensus/group_log.h"
#include "consensus/raft_lib.h"

#define FRAME_HEADER_BYTES 64u
#define FRAME_META_BYTES_MAX (64u << 10)
#define FRAME_ENTRIES_MAX 1024u
#define FRAME_ENTRY_BYTES_MAX (64u << 20)
#define FRAME_BODY_BYTES_MAX ((uint64_t)FRAME_ENTRY_BYTES_MAX + (2u << 20))
#define FRAME_ENTRIES_BYTES_TARGET (4u << 20) /* a sender cuts a longer run of entries here */

enum frame_type {
    FRAME_PING = 1, /* of a connection: keeps it from being idle */
    FRAME_APPEND = 2,
    FRAME_APPEND_RESULT = 3,
    FRAME_VOTE = 4,
    FRAME_VOTE_RESULT = 5,
    FRAME_INSTALL = 6,
    FRAME_TIMEOUT_NOW = 7,
    FRAME_BARRIER = 8,        /* follower to leader: from which index on may a linearizable read start? */
    FRAME_BARRIER_RESULT = 9, /* and the answer */
};

struct frame_header {
    enum frame_type type;
    uint64_t group, from, to;
    uint32_t meta_bytes, entry_count;
    uint64_t body_bytes;
    uint32_t meta_crc;
};

/* OMEN_EPROTO with the reason. */
OMEN_CHECKED enum omen_err frame_header_decode(const uint8_t in[FRAME_HEADER_BYTES],
        struct frame_header *header_out, struct err *err);

/* A barrier asked for, or answered. */
struct frame_barrier {
    uint64_t token;    /* the asker's */
    uint64_t sequence; /* of the answer */
    uint32_t code;     /* enum omen_err of the answer */
};

/* A received message. message.server_id is `from`; server_address is the receiver's to set. */
struct frame {
    struct frame_header header;
    struct raft_message message;
    struct log_slot *slots; /* [entry_count], owned; owner = body, without references of their own */
    uint64_t sequence;      /* of an install: at its index */
    const uint8_t *members; /* of an install: the configuration, inside body */
    uint32_t members_len;
    struct frame_barrier barrier;
    struct shared *body;
};

/* Takes `body` (mem_alloc'ed, header->body_bytes, 16-byte aligned) in every case. */
OMEN_CHECKED enum omen_err frame_decode(const struct frame_header *header, uint8_t *body,
        struct frame **frame_out, struct err *err);
void frame_free(struct frame *frame);

/* A frame to be sent: its own bytes and those of entries it holds references to. */
struct frame_piece {
    const void *data;
    size_t len;
};
struct frame_out {
    struct frame_out *next;
    uint64_t node; /* to whom */
    uint64_t bytes;
    struct frame_piece *pieces; /* [piece_count] */
    uint32_t piece_count;
    struct shared **owners; /* [owner_count] */
    uint32_t owner_count;
    uint8_t head[]; /* header and meta */
};

struct frame_parts {
    enum frame_type type;
    uint64_t group, from, to;
    const struct raft_message *message; /* of the raft types */
    const struct group_log *log;        /* of an append: where its entries are */
    uint64_t sequence;                  /* of an install */
    const uint8_t *members;
    uint32_t members_len;
    const struct frame_barrier *barrier;
};
/* For an append: entries from message's prev_log_index + 1 on, n_entries of them. */
struct frame_out *frame_encode(const struct frame_parts *parts);
void frame_out_free(struct frame_out *frame);

#endif

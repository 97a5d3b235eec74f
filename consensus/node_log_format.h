/* Bytes of the node log: encode, decode and walk, on memory only. consensus/FORMAT.md is the table in prose.
 *
 * Segment header v1, 4096 bytes, little-endian.  0 magic "OMNL" | 4 u16 version | 6 zero [2] |
 *   8 u64 node id | 16 u64 segment number | 24 u64 first batch number | 32 u64 previous segment (0 = none) |
 *   40 u64 offset at which the previous one ended | 48 u64 segment bytes | 56 zero, checked |
 *   4092 u32 crc32c of 0..4091
 * Batch header, 64 bytes.  0 magic "OMNB" | 4 u32 crc32c of 8..63 | 8 u64 segment number |
 *   16 u64 batch number | 24 u64 body bytes | 32 u32 record count | 36 u32 crc32c of all after the header up
 *   to the next multiple of 4096 | 40 zero [24], checked
 * Record, 48 bytes and the body padded to 8.  0 u64 group | 8 u64 replica | 16 u64 term | 24 u64 index |
 *   32 u32 kind | 36 u32 body bytes | 40 u32 type of an entry, else zero | 44 zero [4], checked
 *
 * Batches stand at multiples of 4096, not 512: a page that holds an acknowledged batch is then never written
 * again, so a write cut by power loss cannot take an older batch with it on a disk that rewrites 4 KB
 * sectors. In time the two cannot be told apart (133 us each, see node_log_segment.c); the price is space:
 * a lone 1 KB entry takes 4 KB of log.
 *
 * Threads: pure functions. Determinism: yes. */
#ifndef OMEN_CONSENSUS_NODE_LOG_FORMAT_H
#define OMEN_CONSENSUS_NODE_LOG_FORMAT_H

#include "common/err.h"
#include "consensus/node_log.h"

#define NODE_LOG_VERSION 1
#define NODE_LOG_HEADER_BYTES 4096u
#define NODE_LOG_ALIGN 4096u
#define NODE_LOG_BATCH_HEADER_BYTES 64u
#define NODE_LOG_RECORD_HEADER_BYTES 48u
#define NODE_LOG_SEGMENT_BYTES_MIN (16ull << 10)
#define NODE_LOG_SEGMENT_BYTES_MAX (1ull << 30)
#define NODE_LOG_RECORD_BYTES_MAX (256u << 20) /* of one body */

typedef enum omen_err (*node_log_replay)(void *arg, const struct node_log_record *record);

struct node_log_segment_header {
    uint64_t node_id, number, first_batch, previous, previous_end, bytes;
};

void node_log_header_encode(const struct node_log_segment_header *header, uint8_t out[NODE_LOG_HEADER_BYTES]);
/* OMEN_ECORRUPT, or OMEN_EVERSION for a newer format; `path` only names the file. */
OMEN_CHECKED enum omen_err node_log_header_decode(const uint8_t *data, uint64_t len, const char *path,
        struct node_log_segment_header *header_out, struct err *err);

struct node_log_batch {
    uint64_t segment, number;
    uint64_t body_bytes;
    uint32_t record_count;
    uint32_t body_crc;
};

/* Bytes of one record in a body, header and padding included. */
static inline uint64_t node_log_record_bytes(uint64_t len)
{
    return NODE_LOG_RECORD_HEADER_BYTES + ((len + 7) & ~7ull);
}
/* Bytes of a whole batch on disk. */
static inline uint64_t node_log_batch_bytes(uint64_t body_bytes)
{
    return (NODE_LOG_BATCH_HEADER_BYTES + body_bytes + NODE_LOG_ALIGN - 1) & ~(uint64_t)(NODE_LOG_ALIGN - 1);
}

void node_log_batch_encode(const struct node_log_batch *batch, uint8_t out[NODE_LOG_BATCH_HEADER_BYTES]);
void node_log_record_encode(const struct node_log_record *record, uint8_t out[NODE_LOG_RECORD_HEADER_BYTES]);

/* Walk one segment. In: what its header and its successor's say. Out: where its valid batches end. */
struct node_log_walk {
    const char *path;      /* for errors */
    uint64_t number;       /* of the segment: batches of an older life carry another one */
    uint64_t next_batch;   /* in: number of the first batch; out: after the last valid one */
    uint64_t recorded_end; /* in: end by the successor; 0 = none, a torn tail may be */
    uint64_t end;          /* out: offset after the last valid batch */
    uint64_t batch_count;  /* out */
};

/* image: the whole file. Calls `replay` (may be NULL) for each record of each valid batch, in order; stops at
 * its error. OMEN_ECORRUPT as C3 says: a bad batch before the recorded end, or one followed by a valid later
 * batch. */
OMEN_CHECKED enum omen_err node_log_walk(struct node_log_walk *walk, const uint8_t *image,
        uint64_t image_bytes, node_log_replay replay, void *arg, struct err *err);

#endif

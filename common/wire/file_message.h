/* Bodies of SHARD_KIND_FILE: how a node copies a checkpoint that another one leases to it, by ranges of its files.
 * NODE_PROTOCOL.md has the tables. Threads: any; the functions keep no state.
 *
 *   LEASE group --> id, files, what the checkpoint is --> READ, READ, ... --> RELEASE
 *   A lease that hears nothing for its time is gone: READ and RENEW then say OMEN_ENOTFOUND. */
#ifndef OMEN_COMMON_WIRE_FILE_MESSAGE_H
#define OMEN_COMMON_WIRE_FILE_MESSAGE_H

#include "common/wire/shard_message.h"

#define FILE_RANGE_BYTES_MAX (4u << 20)
#define FILE_NAME_BYTES_MAX 63
#define FILE_COUNT_MAX ((1u << 20) + 16)
#define FILE_DESCRIPTION_BYTES_MAX (32u << 10)
#define FILE_MANIFEST_BYTES_MAX (8u << 20)

enum file_op { FILE_LEASE = 1, FILE_READ = 2, FILE_RENEW = 3, FILE_RELEASE = 4 };

struct file_request {
    enum file_op op;
    uint64_t group, sequence; /* LEASE: of what, and the least sequence that is of use */
    uint64_t lease;           /* the others */
    uint32_t file;            /* READ: position in the list */
    uint32_t len;             /* READ: 1 .. FILE_RANGE_BYTES_MAX */
    uint64_t offset;          /* READ */
};
void file_request_encode(const struct file_request *request, struct buf *out);
OMEN_CHECKED enum omen_err file_request_decode(struct bytes body, struct file_request *request_out,
        struct err *err);

struct file_entry {
    char name[FILE_NAME_BYTES_MAX +
            1]; /* parts of letters, digits, '.', '-', '_', with '/' between: stays below its directory */
    uint64_t bytes;
    /* What an earlier lease of the same replica had of it is the same now: it only grew. */
    bool grows;
};

struct file_reply {
    enum omen_err code;
    struct err err; /* when code is not OK */
    /* LEASE */
    uint64_t lease;
    uint32_t lease_ms; /* lives that long after each request for it */
    uint64_t replica_id;
    uint64_t sequence;        /* of the checkpoint */
    uint64_t base_sequence;   /* of the base that `description` describes */
    struct bytes description; /* replica_base_describe's */
    struct bytes manifest;    /* the state machine's own: what it needs to take the files over */
    const struct file_entry *files;
    uint32_t file_count;
    /* READ */
    struct bytes data;
    uint32_t data_crc; /* crc32c */
    bool has_file_crc; /* with the range that ends the file */
    uint32_t file_crc;
};
void file_reply_encode(enum file_op op, const struct file_reply *reply, struct buf *out);
/* `op`: of the request. files in `arena`, the rest borrows from `body`. data_crc is compared. */
OMEN_CHECKED enum omen_err file_reply_decode(enum file_op op, struct bytes body, struct arena *arena,
        struct file_reply *reply_out, struct err *err);

#endif

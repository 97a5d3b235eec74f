/* Checkpoints for other nodes: leases of what groups registered here hold, served by ranges (SHARD_KIND_FILE).
 *
 *   register --LEASE--> open --READ.. (each keeps it alive)--> RELEASE, silence of SHIP_LEASE_MS, or unregister --> closed
 *
 * Any group may be a source: a shard, or the cluster group with the bytes of its catalog (ship_bytes_*). Fetching is
 * fetch.h's. Threads: own ones, so that reading files never holds up the network's or the searches'. */
#ifndef OMEN_NODE_SHIP_H
#define OMEN_NODE_SHIP_H

#include "common/clock.h"
#include "common/wire/file_message.h"

#define SHIP_THREADS 2u
#define SHIP_QUEUE_MAX 128u /* requests waiting; OMEN_EBUSY above */
#define SHIP_LEASES_MAX 16u /* of this node */
#define SHIP_GROUP_LEASES_MAX 4u
#define SHIP_LEASE_MS 30000u
#define SHIP_BUSY_RETRY_MS 200u

/* A checkpoint that is held still. All memory is the source's and stays until `close`. */
struct ship_checkpoint {
    void *self;
    uint64_t replica_id, sequence, base_sequence;
    struct bytes description, manifest;
    const struct file_entry *files;
    uint32_t file_count;
};

struct ship_source {
    void *arg;
    /* One more checkpoint; `sequence`: the least that is of use. The base is described (replica_base_describe) before the
     * checkpoint is taken. OMEN_EUNAVAILABLE: not now, and why. Blocks. */
    enum omen_err (
            *open)(void *arg, uint64_t sequence, struct ship_checkpoint *checkpoint_out, struct err *err);
    /* Exactly `len` bytes of a range that lies in the file; several threads at once. */
    enum omen_err (*read)(void *self, uint32_t file, uint64_t offset, void *dst, size_t len, struct err *err);
    enum omen_err (
            *sum)(void *self, uint32_t file, uint32_t *crc_out, struct err *err); /* crc32c of it all */
    void (*close)(void *self);
};

struct ship;

struct ship_options {
    struct clock *clock;
    uint64_t (*throttle)(void *arg); /* bytes per second for all leases; 0 = no limit; NULL = none */
    void *arg;
};
OMEN_CHECKED enum omen_err ship_start(const struct ship_options *options, struct ship **ship_out,
        struct err *err);
void ship_stop(struct ship *ship); /* every group is unregistered, no request is in service */

/* `source` is copied. The group is not registered yet. */
void ship_register(struct ship *ship, uint64_t group, const struct ship_source *source);
/* Closes its leases; when it returns, nothing of the source is in use or will be. Not registered: fine. */
void ship_unregister(struct ship *ship, uint64_t group);

/* One request of another node. `body` stays until `done`, which runs on a thread of ours, or before ship_serve returns; by
 * then the reply's body was appended to `reply`. */
struct ship_call {
    struct bytes body;
    struct buf *reply;
    void (*done)(struct ship_call *call);
    struct ship_call *next;
    uint64_t not_before_ns; /* ours: the throttle's */
};
void ship_serve(struct ship *ship, struct ship_call *call);

struct ship_stats {
    uint32_t leases;
    uint64_t bytes; /* sent so far */
};
void ship_stats(struct ship *ship, struct ship_stats *stats_out);

/* ---- a source of one file that is in memory: what `open` of such a group fills in ---- */

/* Takes `content` and `description` over (both emptied). ship_bytes_read, _sum and _close serve it. */
void ship_bytes_checkpoint(const char *name, struct buf *content, struct buf *description,
        uint64_t replica_id, uint64_t sequence, uint64_t base_sequence,
        struct ship_checkpoint *checkpoint_out);
enum omen_err ship_bytes_read(void *self, uint32_t file, uint64_t offset, void *dst, size_t len,
        struct err *err);
enum omen_err ship_bytes_sum(void *self, uint32_t file, uint32_t *crc_out, struct err *err);
void ship_bytes_close(void *self);

#endif

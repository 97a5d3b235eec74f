/* What the files of the node log share; nobody else includes this.
 *
 *   node_log.c          append queue, log thread, batches, statistics
 *   node_log_groups.c   what each group still needs, refusals after a full disk, hard states to carry
 *   node_log_segment.c  segments taken into use and recycled
 *   node_log_spare.c    helper thread: segments prepared ahead, the reserve
 *   node_log_open.c     recovery; reading one group back
 *
 * Locks: `mutex` guards everything marked (m). The log thread alone owns what is marked (l); done callbacks
 * run without a lock. Segment files are renamed by the helper (old ones) and by the log thread (a new one),
 * each followed by a sync of the directory before it does anything else. */
#ifndef OMEN_CONSENSUS_NODE_LOG_IMPL_H
#define OMEN_CONSENSUS_NODE_LOG_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/err.h"
#include "consensus/node_log_format.h"

#define LOG_PATH_BYTES 1024
#define LOG_SPARES_AHEAD 1u     /* of segment_bytes, prepared before they are asked for, beside the reserve */
#define LOG_SPARES_AHEAD_MAX 2u /* kept when segments are recycled; more are removed */
#define LOG_SPARES_MAX (NODE_LOG_RESERVE + LOG_SPARES_AHEAD_MAX)
#define LOG_COPY_BELOW                                                                                       \
    4096u /* bodies shorter than this are copied: an iovec and its share of a system call cost more */

/* One replica of a group in this log. Lives until the log is closed. */
struct log_group {
    uint64_t group, replica;
    uint64_t released;              /* (m) entries up to here are not needed */
    uint64_t refused_from;          /* (l) first index refused on a full disk, 0 = none */
    uint64_t term, vote;            /* (m) last durable hard state */
    bool has_hard_state;            /* (m) */
    uint64_t base_index, base_term; /* (m) last durable snapshot record; index 0 = none */
    uint8_t *base;                  /* (m) its body, owned */
    uint32_t base_len;
    uint64_t use_segment; /* (m) last segment holding an entry, and the position in its `uses` */
    uint32_t use_slot;
};

/* A group's last entry in one segment. */
struct log_use {
    struct log_group *group;
    uint64_t last_index; /* lowered by TRUNCATE; 0 = none */
};

struct log_segment {
    uint64_t number, bytes;
    uint64_t end; /* after the last durable batch */
    uint64_t first_batch;
    uint64_t batch_count; /* > 0: every hard state known when it began is in it */
    struct log_use *uses; /* owned */
    uint32_t use_count, use_cap;
};

/* A file that is allocated and not in use. */
struct log_spare {
    uint64_t name, bytes;
};

struct node_log {
    struct node_log_options options;
    uint64_t reserve_bytes; /* of a segment made for the reserve */
    char *dir;

    pthread_mutex_t mutex;
    pthread_cond_t work;   /* log thread: something queued, or stopping */
    pthread_cond_t chores; /* helper: prepare, recycle, or stop */
    pthread_cond_t
            spare; /* log thread: a spare is ready, or none can be had; readers: helper is out of the way */
    pthread_t log_thread, helper_thread;
    bool log_thread_started, helper_started;
    bool stopping, helper_stopping; /* (m) */

    struct node_log_append *queue_head, **queue_tail; /* (m) */

    struct log_segment **segments; /* (m) ascending numbers without gap; the last may be `current` */
    uint32_t segment_count, segment_cap;
    struct log_group **groups; /* (m) open addressing by (group, replica), power of two */
    uint32_t group_count, group_cap;

    /* (m) The reserve is whichever NODE_LOG_RESERVE of them are left last. */
    struct log_spare spares[LOG_SPARES_MAX];
    uint32_t spare_count;
    uint64_t spare_next;  /* (m) next name */
    uint64_t spare_tries; /* (m) attempts at one that are over */
    bool spare_wanted;    /* (m) the log thread waits for one more attempt */
    bool spare_failed; /* (m) the last attempt met a full disk; also before the first one, when nothing is known */
    bool plain_refused; /* (m) a plain append was, since the disk is full */
    bool recycling;     /* (m) the helper renames or removes an old segment */
    /* Written under the mutex. */
    _Atomic bool far_over; /* the segments there are take half as much again as they may */
    _Atomic bool is_short; /* node_log_is_short */
    /* (m) Those queued up to this one, of this claim or a lesser one, are refused: there is no room. NULL = none
     * are. */
    const struct node_log_append *refuse_through;
    enum node_log_claim refuse_claim;
    uint32_t readers; /* (m) node_log_read_group calls: nothing is recycled meanwhile */

    struct log_segment *current; /* (l) NULL until the first append of this life */
    struct vfs_file *file;       /* (l) of current */
    char path[LOG_PATH_BYTES];   /* (l) of current, for errors */
    uint64_t last_number;        /* (l) highest segment number ever used */
    uint64_t last_end;           /* (l) where it ended */
    uint64_t next_batch;         /* (l) */
    bool carry_due;              /* (l) the next batch begins a segment and carries the hard states */
    struct iovec *iov;           /* (l) */
    uint32_t iov_count, iov_cap;
    uint8_t *scratch; /* (l) headers, padding and short bodies of one batch */
    uint64_t scratch_len, scratch_cap;

    struct node_log_stats stats; /* (m) counters only; the rest is computed */
};

/* node_log_groups.c; all under the mutex */
struct log_group *log_group_get(struct node_log *log, uint64_t group,
        uint64_t replica); /* created when new */
/* The record is durable in `segment`. */
void log_account(struct node_log *log, struct log_segment *segment, const struct node_log_record *record);
bool log_segment_recyclable(const struct node_log *log); /* the oldest one */
uint64_t log_bytes_needed(const struct node_log *log);
void log_bytes_changed(struct node_log *log); /* a segment came or went */
uint64_t log_oldest_group(const struct node_log *log);
/* Must this append be refused because an earlier entry of its group was? */
bool log_append_refused(struct node_log *log, const struct node_log_append *append);
void log_append_refuse(struct node_log *log, const struct node_log_append *append);
/* Records that the first batch of a segment carries, and their bytes. */
uint32_t log_carry_count(const struct node_log *log, uint64_t *bytes_out);
void log_groups_free(struct node_log *log);

/* node_log_segment.c */
void log_segment_path(const struct node_log *log, uint64_t number, char out[LOG_PATH_BYTES]);
void log_spare_path(const struct node_log *log, uint64_t name, char out[LOG_PATH_BYTES]);
bool log_hex16_parse(const char *text, uint64_t *number_out); /* 16 lower-case digits, as names have them */
bool log_segment_name_parse(const char *name, uint64_t *number_out);
bool log_spare_name_parse(const char *name, uint64_t *name_out);
void log_helper_recycle(struct node_log *log); /* helper, mutex held: the oldest segment leaves the chain */
struct log_segment *log_segment_add(struct node_log *log,
        const struct node_log_segment_header *header); /* mutex */
void log_segment_free(struct log_segment *segment);
/* Log thread, without the mutex: make a segment with room for `batch_bytes` the current one. OMEN_OK or
 * OMEN_EFULL. */
OMEN_CHECKED enum omen_err log_roll(struct node_log *log, enum node_log_claim claim, uint64_t batch_bytes);

/* node_log_spare.c */
/* May an append of this claim be written where there is room for it? Mutex. */
bool log_claim_allowed(const struct node_log *log, enum node_log_claim claim);
/* Log thread, mutex held: one more attempt by the helper, waited for. */
void log_spare_ask(struct node_log *log);
/* Log thread, without the mutex: OMEN_OK or OMEN_EFULL. */
OMEN_CHECKED enum omen_err log_spare_take(struct node_log *log, enum node_log_claim claim,
        uint64_t segment_bytes, struct log_spare *spare_out);
void log_spare_give_back(struct node_log *log, const struct log_spare *spare);
/* Allocates, and zeroes when `zero`. OMEN_EFULL leaves nothing behind; any other failure ends the process (C2). */
OMEN_CHECKED enum omen_err log_spare_prepare(struct node_log *log, const struct log_spare *spare, bool zero);
/* Whether a segment that leaves the chain is to be kept as a spare. Mutex. */
bool log_spare_keeps(const struct node_log *log, uint64_t bytes);
void log_spare_add(struct node_log *log, const struct log_spare *spare); /* mutex */
void log_short_changed(struct node_log *log);                            /* mutex */
/* At start: what an earlier life left under this name stays a spare, or goes. */
OMEN_CHECKED enum omen_err log_spare_keep_or_remove(struct node_log *log, const char *name, struct err *err);
void *log_helper_main(void *arg);

/* node_log_open.c */
OMEN_CHECKED enum omen_err log_recover(struct node_log *log, node_log_replay replay, void *arg,
        struct err *err);

#endif

/* A peer's checkpoint, brought here: files by ranges (SHARD_KIND_FILE) from the nodes that hold it, the leader first.
 *
 *   begun --> here already? --> ended(OK)
 *     |  no
 *     +--> each candidate: LEASE -> what grows, round after round while much has grown -> the rest -> adopt --> ended(OK)
 *     |        any failure: the next candidate
 *     +--> all failed: again after a pause; after FETCH_ROUNDS_MAX pauses --> ended(the last failure)
 *
 * A range is checked by its checksum as it arrives, a file by the source's checksum of all of it when it is whole, and then
 * synced; INCOMING in the directory keeps how many files of which replica are whole and durable, so that a fetch goes on
 * after a crash at any line. What the files mean is the owner's: it checks them in `adopt`.
 *
 * Rounds: a shard that is written to grows while it is copied, and the log does not wait for ever. What grows is therefore
 * copied again under a new lease, from where the last one ended, until little is left; what does not (LMDB) comes last.
 *
 * Threads: a few of our own, which block; fetch_begin and fetch_post from any, at once. */
#ifndef OMEN_NODE_FETCH_H
#define OMEN_NODE_FETCH_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/clock.h"
#include "common/siphash.h"
#include "common/vfs.h"
#include "common/wire/file_message.h"
#include "node/rate.h"

#define FETCH_THREADS 2u /* fetches at once on a node */
#define FETCH_CANDIDATES_MAX 64u
#define FETCH_RANGE_BYTES (512u << 10)
#define FETCH_WINDOW 8u               /* ranges asked for and not yet written */
#define FETCH_ROUND_BYTES (16u << 20) /* more than this grew: another round */
#define FETCH_LEASES_MAX 8u           /* of one attempt */
#define FETCH_ROUNDS_MAX 3u
#define FETCH_PAUSE_MS 500u /* after all candidates failed; doubled each time */

struct fetcher;
OMEN_CHECKED enum omen_err fetcher_start(struct vfs *vfs, struct clock *clock, struct fetcher **fetcher_out,
        struct err *err);
void fetcher_stop(struct fetcher *fetcher); /* no task is left */

/* Something for the fetcher's threads; embedded. */
struct fetch_task {
    void (*run)(struct fetch_task *task);
    uint64_t due_ns;
    struct fetch_task *next;
    bool queued, running; /* the fetcher's */
};
/* Any thread, never blocks. One that is queued already stays as it is. */
void fetch_post(struct fetcher *fetcher, struct fetch_task *task, uint32_t delay_ms);
/* Not queued and not running when it returns. */
void fetch_withdraw(struct fetcher *fetcher, struct fetch_task *task);

/* One group's fetches; zeroed, then the first members filled by the owner once. */
struct fetch {
    struct fetcher *fetcher;
    uint64_t group;
    void *arg;
    struct siphash_key key;
    /* Nodes to ask besides the one given to fetch_begin; [FETCH_CANDIDATES_MAX]. */
    uint32_t (*candidates)(void *arg, uint32_t *nodes_out);
    bool (*address)(void *arg, uint32_t node_id, char *out /* [OMEN_ADDRESS_BYTES_MAX + 1] */);
    uint64_t (*throttle)(void *arg); /* bytes per second of this node's fetches; 0 = no limit */
    /* Is there something here that will do (left by an earlier life, say)? Then its description and OK. */
    enum omen_err (*here)(void *arg, uint64_t sequence, struct buf *description_out);
    /* A lease was given: is it of use? Makes the directory that its files go to, with those that names of files hold, and
     * says which (stays until the fetch has ended). */
    enum omen_err (
            *prepare)(void *arg, const struct file_reply *lease, const char **dir_out, struct err *err);
    /* All files are there, whole and durable. Not OK: they are removed. */
    enum omen_err (*adopt)(void *arg, const struct file_reply *lease, struct err *err);
    /* `why`: of a failure. May call fetch_begin only after it has returned. */
    void (*ended)(void *arg, enum omen_err rc, struct bytes description, const struct err *why);

    _Atomic uint64_t done_bytes, total_bytes; /* of the attempt; 0 while there is none */
    _Atomic bool cancel;
    struct fetch_task task; /* ours from here on */
    uint64_t sequence;
    uint32_t node_id, pauses;
};
/* Begin; from raft's loop too. One at a time: not again before `ended`. */
void fetch_begin(struct fetch *fetch, uint64_t sequence, uint32_t node_id);
/* It does not run any more, and `ended` will not be called, when this returns. */
void fetch_cancel(struct fetch *fetch);

/* ---- between fetch.c and fetch_pull.c ---- */

struct fetch_pull {
    struct fetch *fetch;
    struct vfs *vfs;
    struct clock *clock;
    uint64_t (*rate_at)(struct fetch *fetch, uint32_t bytes); /* when a range may go */
    const char *url;
    uint64_t sequence;
};
/* One attempt at one node; the description is appended. Blocks. */
OMEN_CHECKED enum omen_err fetch_pull(const struct fetch_pull *pull, struct buf *description_out,
        struct err *err);

#endif

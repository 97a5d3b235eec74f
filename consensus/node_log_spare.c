/* Segments of the node log that are prepared ahead, and the reserve among them (CORRECTNESS D2). See node_log_impl.h
 * for threads and locks.
 *
 *   (no file) --allocate, sync, sync dir--> spare --log_roll--> in use --released, recycled--> spare
 *
 * How many are left decides, not which: an append takes one only if as many stay as its claim leaves to others, and
 * only while the disk gives no more; whoever comes while it does waits for a new one instead, and the reserve is
 * made before that. So it is whole at the moment the disk is full, whatever filled it, and what fills it again first
 * is what a checkpoint lets go of.
 *
 *   claim    leaves   on a full disk
 *   plain    4        refused, once the segment in use at that moment is full
 *   owed     2        two segments: entries that some leader had let in before it knew
 *   vital    1        one more: barriers, configurations, deletes, what brings room to the cluster
 *   last     0        all of it: votes, also the first of a group, for a start needs no room; bases, without which
 *                     nothing is released
 *
 * A spare of segment_bytes is zeroed (node_log_segment.c says why), one of the reserve only allocated: it is written
 * where nobody asks for speed, and a file system that must not run out there keeps what turning unwritten blocks into
 * written ones takes. Spares outlive a restart: their allocation is renewed, which takes nothing where it is whole.
 * One that is shorter than it should be, or of no use any more, is removed. What a spare holds does not matter:
 * batches are told by their segment's number. */
#include "common/err.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "common/check.h"
#include "common/log.h"
#include "consensus/node_log_impl.h"

#define ZERO_CHUNK_BYTES (256u << 10)
#define ZERO_SYNC_BYTES (4u << 20) /* synced in pieces, so that appends wait for little of it */

static const uint32_t leaves[] = { [NODE_LOG_PLAIN] = NODE_LOG_RESERVE,
    [NODE_LOG_OWED] = NODE_LOG_RESERVE / 2,
    [NODE_LOG_VITAL] = 1,
    [NODE_LOG_LAST] = 0 };

bool log_spare_name_parse(const char *name, uint64_t *name_out)
{
    return strncmp(name, "spare-", 6) == 0 && log_hex16_parse(name + 6, name_out) && name[22] == '\0' &&
            *name_out != UINT64_MAX; /* names go on from the highest */
}

/* ---- what there is ---- */

static uint32_t whole_count(const struct node_log *log)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < log->spare_count; i++) n += log->spares[i].bytes == log->options.segment_bytes;
    return n;
}

bool log_claim_allowed(const struct node_log *log, enum node_log_claim claim)
{
    return !log->spare_failed || log->spare_count >= leaves[claim];
}

void log_short_changed(struct node_log *log)
{
    if (!log->spare_failed) log->plain_refused = false;
    bool is_short = log->spare_failed && log->spare_tries > 0 &&
            (log->plain_refused || log->spare_count < NODE_LOG_RESERVE);
    bool was = atomic_exchange(&log->is_short, is_short);
    if (is_short && !was) LOG_WARN("node_log.short", "dir=\"%s\" segments=%u", log->dir, log->spare_count);
    if (!is_short && was) LOG_INFO("node_log.room", "dir=\"%s\" segments=%u", log->dir, log->spare_count);
}

void log_spare_add(struct node_log *log, const struct log_spare *spare)
{
    CHECK(log->spare_count < LOG_SPARES_MAX);
    log->spares[log->spare_count++] = *spare;
    log_short_changed(log);
}

bool log_spare_keeps(const struct node_log *log, uint64_t bytes)
{
    uint32_t whole = whole_count(log);
    bool one_size = log->reserve_bytes == log->options.segment_bytes;
    if (log->spare_count >= LOG_SPARES_MAX || bytes < log->reserve_bytes) return false;
    if (log->spare_failed && log->spare_count < NODE_LOG_RESERVE + LOG_SPARES_AHEAD) return true;
    if (bytes == log->options.segment_bytes) return one_size || whole < LOG_SPARES_AHEAD_MAX;
    return bytes == log->reserve_bytes && log->spare_count - whole < NODE_LOG_RESERVE;
}

/* Where the spare is that this claim may take. While the disk gives more: one of the usual size that the reserve can
 * do without. Else, or for what is urgent when there is none: the smallest that will do, of the reserve first. */
static bool spare_find(const struct node_log *log, enum node_log_claim claim, uint64_t segment_bytes,
        bool urgent, uint32_t *at_out)
{
    bool whole = !log->spare_failed && !urgent, found = false;
    if (log->spare_count <= (whole ? NODE_LOG_RESERVE : leaves[claim])) return false;
    for (uint32_t i = 0; i < log->spare_count; i++) {
        const struct log_spare *s = &log->spares[i];
        bool usual = s->bytes == log->options.segment_bytes;
        if (s->bytes < segment_bytes || ((whole || claim == NODE_LOG_PLAIN) && !usual)) continue;
        if (found && s->bytes >= log->spares[*at_out].bytes) continue;
        found = true;
        *at_out = i;
    }
    return found;
}

/* ---- preparing ---- */

static enum omen_err zero_fill(struct vfs_file *file, uint64_t bytes, struct err *err)
{
    static const uint8_t zeros[ZERO_CHUNK_BYTES];
    uint64_t unsynced = 0;
    for (uint64_t at = 0; at < bytes;) {
        uint64_t len = bytes - at < sizeof zeros ? bytes - at : sizeof zeros;
        enum omen_err rc = vfs_pwrite(file, zeros, len, at, err);
        if (rc != OMEN_OK) return rc;
        at += len;
        unsynced += len;
        if (unsynced < ZERO_SYNC_BYTES && at < bytes) continue;
        rc = vfs_datasync(file, err);
        if (rc == OMEN_EFULL) panic("node log: sync failed: %s", err->message);
        if (rc != OMEN_OK) return rc;
        unsynced = 0;
    }
    return OMEN_OK;
}

/* Asked before anything is tried: an allocation that fails half way takes all there is from others for a moment. */
static bool space_lacks(struct node_log *log, uint64_t bytes)
{
    uint64_t free_bytes, total_bytes;
    struct err err;
    return vfs_free_space(log->options.vfs, log->dir, &free_bytes, &total_bytes, &err) == OMEN_OK &&
            free_bytes < bytes;
}

enum omen_err log_spare_prepare(struct node_log *log, const struct log_spare *spare, bool zero)
{
    char path[LOG_PATH_BYTES];
    struct err err = { 0 };
    struct vfs_file *file = NULL;
    if (space_lacks(log, spare->bytes)) return OMEN_EFULL;
    log_spare_path(log, spare->name, path);
    enum omen_err rc = vfs_open(log->options.vfs, path, VFS_READ | VFS_WRITE | VFS_CREATE, &file, &err);
    if (rc == OMEN_EFULL) return rc;
    if (rc != OMEN_OK) panic("node log: %s", err.message);
    rc = vfs_allocate(file, spare->bytes, &err);
    if (rc == OMEN_OK && zero) rc = zero_fill(file, spare->bytes, &err);
    if (rc == OMEN_OK && !zero && vfs_datasync(file, &err) != OMEN_OK) panic("node log: %s", err.message);
    vfs_close(file);
    if (rc == OMEN_OK) rc = vfs_sync_dir(log->options.vfs, log->dir, &err);
    if (rc == OMEN_OK) return rc;
    if (rc != OMEN_EFULL) panic("node log: %s", err.message);
    rc = vfs_unlink(log->options.vfs, path, &err);
    if (rc != OMEN_OK) panic("node log: %s", err.message);
    return OMEN_EFULL;
}

static void spare_remove(struct node_log *log, const struct log_spare *spare)
{
    char path[LOG_PATH_BYTES];
    struct err err = { 0 };
    log_spare_path(log, spare->name, path);
    if (vfs_unlink(log->options.vfs, path, &err) != OMEN_OK) panic("node log: %s", err.message);
}

/* ---- the helper ---- */

/* A spare of a size that only a large batch has need of, kept while the disk gave no other; false: there is none. */
static bool odd_find(const struct node_log *log, uint32_t *at_out)
{
    for (uint32_t i = 0; i < log->spare_count; i++) {
        uint64_t bytes = log->spares[i].bytes;
        if (bytes == log->options.segment_bytes || bytes == log->reserve_bytes) continue;
        *at_out = i;
        return true;
    }
    return false;
}

/* Bytes of the next spare to be made: 0 = there are enough. The reserve comes first, whoever waits: a writer that
 * takes segments as fast as the disk makes them would never let it be whole. */
static uint64_t helper_choice(const struct node_log *log)
{
    bool whole = whole_count(log) > 0;
    if (log->spare_count - (whole ? 1 : 0) < NODE_LOG_RESERVE) return log->reserve_bytes;
    return whole ? 0 : log->options.segment_bytes;
}

static void try_over(struct node_log *log)
{
    log->spare_wanted = false;
    log->spare_tries++;
    log_short_changed(log);
    pthread_cond_broadcast(&log->spare);
}

static void helper_prepare(struct node_log *log, uint64_t bytes)
{
    struct log_spare spare = { log->spare_next++, bytes };
    pthread_mutex_unlock(&log->mutex);
    enum omen_err rc = log_spare_prepare(log, &spare, bytes == log->options.segment_bytes);
    pthread_mutex_lock(&log->mutex);
    log->spare_failed = rc != OMEN_OK;
    bool added = rc == OMEN_OK &&
            log->spare_count < LOG_SPARES_MAX; /* one may have been given back meanwhile */
    if (added) log_spare_add(log, &spare);
    try_over(log);
    if (rc != OMEN_OK || added) return;
    pthread_mutex_unlock(&log->mutex);
    spare_remove(log, &spare);
    pthread_mutex_lock(&log->mutex);
}

/* Segments of the usual size that stand in for the reserve since the disk was full: too much of it once it is not. */
static bool helper_trims(const struct node_log *log)
{
    return !log->spare_failed && log->reserve_bytes != log->options.segment_bytes &&
            whole_count(log) > LOG_SPARES_AHEAD_MAX;
}

static void helper_remove(struct node_log *log, uint32_t at)
{
    struct log_spare spare = log->spares[at];
    log->spares[at] = log->spares[--log->spare_count];
    pthread_mutex_unlock(&log->mutex);
    spare_remove(log, &spare);
    pthread_mutex_lock(&log->mutex);
}

static void helper_trim(struct node_log *log)
{
    uint32_t at = 0;
    while (log->spares[at].bytes != log->options.segment_bytes) at++;
    helper_remove(log, at);
}

/* One of the reserve's size takes the place of an odd one. It is there before the other goes: while the disk has no
 * room for both (false), the odd one is the reserve. */
static bool helper_swap(struct node_log *log)
{
    uint32_t at;
    if (log->spare_count < LOG_SPARES_MAX) {
        struct log_spare spare = { log->spare_next++, log->reserve_bytes };
        pthread_mutex_unlock(&log->mutex);
        enum omen_err rc = log_spare_prepare(log, &spare, log->reserve_bytes == log->options.segment_bytes);
        pthread_mutex_lock(&log->mutex);
        if (rc != OMEN_OK) return false;
        if (log->spare_count == LOG_SPARES_MAX) { /* one was given back meanwhile */
            pthread_mutex_unlock(&log->mutex);
            spare_remove(log, &spare);
            pthread_mutex_lock(&log->mutex);
        } else {
            log_spare_add(log, &spare);
        }
    }
    if (odd_find(log, &at)) helper_remove(log, at);
    return true;
}

/* True: so much time has passed that the disk may be asked again. */
static bool helper_wait(struct node_log *log)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += NODE_LOG_REFILL_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    return pthread_cond_timedwait(&log->chores, &log->mutex, &until) != 0;
}

void *log_helper_main(void *arg)
{
    struct node_log *log = arg;
    bool again = true, swaps = true; /* ask a disk that was full */
    uint32_t odd;
    pthread_mutex_lock(&log->mutex);
    while (!log->helper_stopping) {
        uint64_t bytes = helper_choice(log);
        bool is_odd = odd_find(log, &odd);
        if (log_segment_recyclable(log)) {
            log_helper_recycle(log);
            again = true; /* there may be room now */
        } else if (helper_trims(log)) {
            helper_trim(log);
        } else if (bytes == 0 && (log->spare_failed || log->spare_wanted)) {
            log->spare_failed = false; /* nothing is lacking */
            try_over(log);
        } else if (bytes == 0 && is_odd && swaps) {
            swaps = helper_swap(log);
        } else if (bytes == 0 && is_odd) {
            swaps = helper_wait(log);
        } else if (bytes == 0) {
            pthread_cond_wait(&log->chores, &log->mutex);
        } else if (again || log->spare_wanted || !log->spare_failed) {
            again = false;
            helper_prepare(log, bytes);
        } else {
            again = helper_wait(log);
        }
    }
    pthread_mutex_unlock(&log->mutex);
    return NULL;
}

/* ---- the log thread ---- */

void log_spare_ask(struct node_log *log)
{
    uint64_t tries = log->spare_tries;
    log->spare_wanted = true;
    pthread_cond_signal(&log->chores);
    while (log->spare_tries == tries) pthread_cond_wait(&log->spare, &log->mutex);
}

enum omen_err log_spare_take(struct node_log *log, enum node_log_claim claim, uint64_t segment_bytes,
        struct log_spare *spare_out)
{
    uint32_t at;
    pthread_mutex_lock(&log->mutex);
    bool found = spare_find(log, claim, segment_bytes, false, &at), full = false;
    if (log->spare_tries == 0) found = false; /* whether the disk is full is not known yet */
    while (!found && !full) {
        log_spare_ask(log);
        full = log->spare_failed;
        found = spare_find(log, claim, segment_bytes, claim >= NODE_LOG_VITAL, &at);
    }
    if (found) {
        *spare_out = log->spares[at];
        log->spares[at] = log->spares[--log->spare_count];
    }
    log->plain_refused |= !found && claim == NODE_LOG_PLAIN;
    log_short_changed(log);
    pthread_cond_signal(&log->chores);
    pthread_mutex_unlock(&log->mutex);
    return found ? OMEN_OK : OMEN_EFULL;
}

void log_spare_give_back(struct node_log *log, const struct log_spare *spare)
{
    pthread_mutex_lock(&log->mutex);
    bool keep = log_spare_keeps(log, spare->bytes);
    if (keep) log_spare_add(log, spare);
    pthread_mutex_unlock(&log->mutex);
    if (!keep) spare_remove(log, spare);
}

/* ---- start ---- */

static enum omen_err allocation_renew(struct node_log *log, const char *path, uint64_t *bytes_out,
        bool *keep_out, struct err *err)
{
    struct vfs_file *file = NULL;
    enum omen_err rc = vfs_open(log->options.vfs, path, VFS_READ | VFS_WRITE, &file, err);
    if (rc == OMEN_OK) rc = vfs_size(file, bytes_out, err);
    uint64_t bytes = rc == OMEN_OK ? *bytes_out : 0;
    *keep_out = bytes % NODE_LOG_ALIGN == 0 && bytes <= NODE_LOG_SEGMENT_BYTES_MAX &&
            log_spare_keeps(log, bytes);
    if (rc == OMEN_OK && *keep_out) rc = vfs_allocate(file, bytes, err);
    vfs_close(file);
    if (rc != OMEN_EFULL) return rc;
    *keep_out = false;
    return OMEN_OK;
}

enum omen_err log_spare_keep_or_remove(struct node_log *log, const char *name, struct err *err)
{
    char path[LOG_PATH_BYTES];
    struct log_spare spare = { 0 };
    bool keep = false;
    memcpy(path, log->dir, strlen(log->dir) + 1);
    strcat(path, "/");
    strcat(path, name);
    enum omen_err rc = OMEN_OK;
    if (log_spare_name_parse(name, &spare.name)) rc = allocation_renew(log, path, &spare.bytes, &keep, err);
    if (rc != OMEN_OK) return rc;
    if (!keep) return vfs_unlink(log->options.vfs, path, err);
    if (spare.name >= log->spare_next) log->spare_next = spare.name + 1;
    log_spare_add(log, &spare);
    return OMEN_OK;
}

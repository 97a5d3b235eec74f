/* Node write-ahead log: the append queue, the log thread and what it writes. See node_log.h for the contract,
 * node_log_impl.h for the other files, locks and threads.
 *
 * One batch at a time is written and synced; what arrives meanwhile is the next batch. A second batch is
 * never begun before the first is durable, so a good batch after a bad one can only be damage (C3).
 *
 * Buffered pwritev and fdatasync on a zeroed segment; figures in node_log_segment.c. O_DIRECT is measurably
 * faster at 512 KB (289 against 406 us) and not told apart below 64 KB; it is not used yet: struct vfs
 * has no flag for it and every body would have to be copied into aligned memory.
 *
 * Determinism: none of replicated state; the order of records of one group is the order of its appends. */
#include "common/err.h"

#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/node_log_impl.h"

void node_log_options_default(struct node_log_options *options)
{
    *options = (struct node_log_options){
        .segment_bytes = 32ull << 20,
        .bytes_max = 256ull << 20,
        .batch_bytes_max = 4ull << 20,
    };
}

/* ---- one batch ---- */

static uint64_t append_bytes(const struct node_log_append *append)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < append->count; i++) bytes += node_log_record_bytes(append->records[i].len);
    return bytes;
}

static void batch_begin(struct node_log *log, uint64_t body_bytes)
{
    /* Headers, padding and short bodies at most; sized before so that iovecs may point into it. */
    uint64_t need = NODE_LOG_BATCH_HEADER_BYTES + body_bytes + NODE_LOG_ALIGN;
    if (need > log->scratch_cap) {
        log->scratch = mem_must_realloc(log->scratch, need);
        log->scratch_cap = need;
    }
    log->scratch_len = NODE_LOG_BATCH_HEADER_BYTES;
    log->iov_count = 0;
}

static void iov_push(struct node_log *log, const void *data, size_t len)
{
    struct iovec *last = log->iov_count > 0 ? &log->iov[log->iov_count - 1] : NULL;
    if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == (const uint8_t *)data) {
        last->iov_len += len; /* runs within the scratch buffer */
        return;
    }
    if (log->iov_count == log->iov_cap) {
        log->iov_cap = log->iov_cap == 0 ? 256 : log->iov_cap * 2;
        log->iov = mem_must_realloc(log->iov, log->iov_cap * sizeof *log->iov);
    }
    log->iov[log->iov_count++] = (struct iovec){ .iov_base = (void *)(uintptr_t)data, .iov_len = len };
}

/* Copies into the scratch buffer; `src` NULL means zeros. */
static void batch_copy(struct node_log *log, const void *src, size_t len)
{
    CHECK(range_fits(log->scratch_len, len, log->scratch_cap));
    uint8_t *dst = log->scratch + log->scratch_len;
    if (src != NULL)
        memcpy(dst, src, len);
    else
        memset(dst, 0, len);
    log->scratch_len += len;
    iov_push(log, dst, len);
}

static void batch_record(struct node_log *log, const struct node_log_record *record)
{
    uint8_t header[NODE_LOG_RECORD_HEADER_BYTES];
    node_log_record_encode(record, header);
    batch_copy(log, header, sizeof header);
    if (record->len < LOG_COPY_BELOW)
        batch_copy(log, record->len > 0 ? record->body : NULL, record->len);
    else
        iov_push(log, record->body, record->len);
    batch_copy(log, NULL, align_up(record->len, 8) - record->len);
}

/* Pads, sums and writes what was gathered at `offset`. */
static void batch_write(struct node_log *log, uint64_t offset, uint64_t body_bytes, uint32_t record_count)
{
    uint64_t total = node_log_batch_bytes(body_bytes);
    batch_copy(log, NULL, total - NODE_LOG_BATCH_HEADER_BYTES - body_bytes);
    struct node_log_batch batch = {
        .segment = log->last_number,
        .number = log->next_batch,
        .body_bytes = body_bytes,
        .record_count = record_count,
    };
    for (uint32_t i = 0; i < log->iov_count; i++) {
        const struct iovec *v = &log->iov[i];
        size_t skip = i == 0 ? NODE_LOG_BATCH_HEADER_BYTES : 0;
        batch.body_crc = crc32c(batch.body_crc, (const uint8_t *)v->iov_base + skip, v->iov_len - skip);
    }
    node_log_batch_encode(&batch, log->scratch);
    struct err err = { 0 };
    if (vfs_pwritev(log->file, log->iov, (int)log->iov_count, offset, &err) != OMEN_OK)
        panic("node log %s: write at offset %llu: %s", log->path, (unsigned long long)offset, err.message);
}

static void batch_sync(struct node_log *log)
{
    struct err err = { 0 };
    if (vfs_datasync(log->file, &err) != OMEN_OK) panic("node log %s: %s", log->path, err.message);
}

/* ---- log thread ---- */

static void appends_done(struct node_log_append *first, enum omen_err result)
{
    while (first != NULL) {
        struct node_log_append *next = first->next; /* `done` may free its append */
        first->done(first, result);
        first = next;
    }
}

/* Hard states and snapshot records of all groups: the first records of a segment. Votes are stored beside,
 * bodies of snapshots are the groups' own: only this thread replaces those. */
struct carry {
    struct node_log_record *records;
    uint64_t *votes;
    uint32_t count;
    uint64_t bytes;
};

static void carry_group(struct carry *carry, const struct log_group *g)
{
    if (g->has_hard_state) {
        carry->votes[carry->count] = g->vote;
        carry->records[carry->count] = (struct node_log_record){
            .group = g->group,
            .replica = g->replica,
            .term = g->term,
            .kind = NODE_LOG_HARD_STATE,
            .body = &carry->votes[carry->count],
            .len = sizeof(uint64_t),
        };
        carry->count++;
    }
    if (g->base_index == 0) return;
    carry->records[carry->count++] = (struct node_log_record){
        .group = g->group,
        .replica = g->replica,
        .term = g->base_term,
        .index = g->base_index,
        .kind = NODE_LOG_SNAPSHOT,
        .body = g->base,
        .len = g->base_len,
    };
}

static void carry_collect(struct node_log *log, struct carry *carry)
{
    memset(carry, 0, sizeof *carry);
    if (!log->carry_due) return;
    pthread_mutex_lock(&log->mutex);
    uint32_t count = log_carry_count(log, &carry->bytes);
    if (count > 0) {
        carry->records = mem_must_calloc(count, sizeof *carry->records);
        carry->votes = mem_must_calloc(count, sizeof *carry->votes);
    }
    for (uint32_t i = 0; i < log->group_cap; i++) {
        if (log->groups[i] != NULL) carry_group(carry, log->groups[i]);
    }
    CHECK(carry->count == count);
    pthread_mutex_unlock(&log->mutex);
}

static uint64_t carry_bytes(struct node_log *log)
{
    uint64_t bytes;
    pthread_mutex_lock(&log->mutex);
    (void)log_carry_count(log, &bytes);
    pthread_mutex_unlock(&log->mutex);
    return bytes;
}

/* Durable: groups and segments learn of it, statistics too. */
static void batch_account(struct node_log *log, const struct carry *carry,
        const struct node_log_append *first, uint64_t total, uint32_t record_count)
{
    pthread_mutex_lock(&log->mutex);
    log->current->batch_count++;
    log->current->end = log->last_end;
    for (uint32_t i = 0; i < carry->count; i++) log_account(log, log->current, &carry->records[i]);
    for (const struct node_log_append *a = first; a != NULL; a = a->next) {
        for (uint32_t i = 0; i < a->count; i++) log_account(log, log->current, &a->records[i]);
        log->stats.appends++;
    }
    log->stats.syncs++;
    log->stats.records += record_count;
    log->stats.bytes_written += total;
    if (log_segment_recyclable(log)) pthread_cond_signal(&log->chores);
    pthread_mutex_unlock(&log->mutex);
}

static void batch_run(struct node_log *log, struct node_log_append *first, uint64_t append_body_bytes)
{
    struct carry carry;
    carry_collect(log, &carry);
    uint64_t body_bytes = append_body_bytes + carry.bytes;
    uint64_t total = node_log_batch_bytes(body_bytes);
    CHECK(range_fits(log->last_end, total, log->current->bytes));
    uint32_t record_count = carry.count;
    batch_begin(log, body_bytes);
    iov_push(log, log->scratch, NODE_LOG_BATCH_HEADER_BYTES);
    for (uint32_t i = 0; i < carry.count; i++) batch_record(log, &carry.records[i]);
    for (const struct node_log_append *a = first; a != NULL; a = a->next) {
        for (uint32_t i = 0; i < a->count; i++) batch_record(log, &a->records[i]);
        record_count += a->count;
    }
    batch_write(log, log->last_end, body_bytes, record_count);
    if (!log->options.test_ack_before_sync) batch_sync(log);
    log->last_end += total;
    log->next_batch++;
    log->carry_due = false;
    batch_account(log, &carry, first, total, record_count);
    mem_free(carry.records);
    mem_free(carry.votes);
    appends_done(first, OMEN_OK);
    if (log->options.test_ack_before_sync) batch_sync(log);
}

static struct node_log_append *queue_pop(struct node_log *log)
{
    struct node_log_append *a = log->queue_head;
    log->queue_head = a->next;
    if (log->queue_head == NULL) log->queue_tail = &log->queue_head;
    if (log->refuse_through == a) log->refuse_through = NULL;
    a->next = NULL;
    return a;
}

/* Is what the disk has left for this one too? */
static bool may_write(const struct node_log *log, const struct node_log_append *a)
{
    if (log->refuse_through != NULL && a->claim <= log->refuse_claim) return false;
    return log_claim_allowed(log, a->claim);
}

/* Takes the head of the queue (there is one) and, as long as they fit the batch and the segment, what follows
 * it. Ends early at an append to be refused, so that results are given in order. */
static struct node_log_append *queue_take(struct node_log *log, uint64_t bytes_max, uint64_t *bytes_out)
{
    struct node_log_append *first = NULL, **tail = &first;
    uint64_t bytes = 0;
    pthread_mutex_lock(&log->mutex);
    while (log->queue_head != NULL) {
        struct node_log_append *a = log->queue_head;
        uint64_t len = append_bytes(a);
        if (first != NULL && (bytes + len > bytes_max || log_append_refused(log, a) || !may_write(log, a)))
            break;
        (void)queue_pop(log);
        *tail = a;
        tail = &a->next;
        bytes += len;
    }
    pthread_mutex_unlock(&log->mutex);
    *bytes_out = bytes;
    return first;
}

/* No segment can be had for the head of the queue: it is refused, and so will be what is queued behind it now with no
 * greater a claim, without another look at the disk. What follows in the same groups is until they start over. */
static void head_refuse(struct node_log *log)
{
    pthread_mutex_lock(&log->mutex);
    struct node_log_append *head = log->queue_head;
    bool first = log->refuse_through == NULL;
    if (first || head->claim > log->refuse_claim) log->refuse_claim = head->claim;
    if (first) {
        log->refuse_through = head;
        while (log->refuse_through->next != NULL) log->refuse_through = log->refuse_through->next;
    }
    log->plain_refused |= head->claim == NODE_LOG_PLAIN;
    log_short_changed(log);
    uint32_t spares = log->spare_count;
    (void)queue_pop(log);
    log_append_refuse(log, head);
    pthread_mutex_unlock(&log->mutex);
    if (first && head->claim != NODE_LOG_PLAIN) /* of those node_log.short tells */
        LOG_WARN("node_log.full", "dir=\"%s\" claim=%d segments=%u", log->dir, (int)head->claim, spares);
    appends_done(head, OMEN_EFULL);
}

static uint64_t segment_room(const struct node_log *log)
{
    if (log->current == NULL) return 0;
    uint64_t room = log->current->bytes - log->last_end;
    return room > NODE_LOG_BATCH_HEADER_BYTES ? room - NODE_LOG_BATCH_HEADER_BYTES : 0;
}

/* One round: refuse the head, or make room for it and write a batch that begins with it. */
static void log_round(struct node_log *log)
{
    pthread_mutex_lock(&log->mutex);
    struct node_log_append *head = log->queue_head;
    bool refused = log_append_refused(log, head);
    if (refused) (void)queue_pop(log);
    if (!refused && log->refuse_through == NULL && !may_write(log, head)) log_spare_ask(log);
    bool full = !refused && !may_write(log, head);
    pthread_mutex_unlock(&log->mutex);
    if (refused) {
        appends_done(head, OMEN_EFULL);
        return;
    }
    if (full) {
        head_refuse(log);
        return;
    }
    uint64_t first_bytes = append_bytes(head);
    if (log->carry_due || first_bytes > segment_room(log)) {
        uint64_t body_bytes = first_bytes + carry_bytes(log);
        bool fits = log->carry_due && body_bytes <= segment_room(log);
        if (!fits && log_roll(log, head->claim, node_log_batch_bytes(body_bytes)) != OMEN_OK) {
            head_refuse(log);
            return;
        }
    }
    uint64_t room = segment_room(log) - (log->carry_due ? carry_bytes(log) : 0);
    uint64_t bytes;
    struct node_log_append *first = queue_take(log,
            room < log->options.batch_bytes_max ? room : log->options.batch_bytes_max, &bytes);
    batch_run(log, first, bytes);
}

static void *log_thread_main(void *arg)
{
    struct node_log *log = arg;
    for (;;) {
        pthread_mutex_lock(&log->mutex);
        while (log->queue_head == NULL && !log->stopping) pthread_cond_wait(&log->work, &log->mutex);
        bool over = log->queue_head == NULL;
        pthread_mutex_unlock(&log->mutex);
        if (over) return NULL;
        log_round(log);
    }
}

/* ---- the door ---- */

void node_log_append(struct node_log *log, struct node_log_append *append)
{
    CHECK(append->count > 0);
    for (uint32_t i = 0; i < append->count; i++) CHECK(append->records[i].len <= NODE_LOG_RECORD_BYTES_MAX);
    append->next = NULL;
    pthread_mutex_lock(&log->mutex);
    CHECK(!log->stopping);
    bool idle = log->queue_head == NULL;
    *log->queue_tail = append;
    log->queue_tail = &append->next;
    if (idle) pthread_cond_signal(&log->work);
    pthread_mutex_unlock(&log->mutex);
}

void node_log_release(struct node_log *log, uint64_t group, uint64_t replica, uint64_t index)
{
    pthread_mutex_lock(&log->mutex);
    struct log_group *g = log_group_get(log, group, replica);
    if (index > g->released) g->released = index;
    if (log_segment_recyclable(log)) pthread_cond_signal(&log->chores);
    pthread_mutex_unlock(&log->mutex);
}

bool node_log_far_over(const struct node_log *log)
{
    return atomic_load_explicit(&log->far_over, memory_order_relaxed);
}

bool node_log_is_short(const struct node_log *log)
{
    return atomic_load_explicit(&log->is_short, memory_order_relaxed);
}

void node_log_stats(struct node_log *log, struct node_log_stats *stats_out)
{
    pthread_mutex_lock(&log->mutex);
    *stats_out = log->stats;
    stats_out->bytes = log_bytes_needed(log);
    stats_out->oldest_group = log_oldest_group(log);
    stats_out->over_limit = stats_out->bytes > log->options.bytes_max;
    stats_out->spares = log->spare_count;
    pthread_mutex_unlock(&log->mutex);
}

static OMEN_CHECKED enum omen_err options_check(const struct node_log_options *o, struct err *err)
{
    if (o->segment_bytes < NODE_LOG_SEGMENT_BYTES_MIN || o->segment_bytes > NODE_LOG_SEGMENT_BYTES_MAX ||
            o->segment_bytes % NODE_LOG_ALIGN != 0)
        return err_set(err, OMEN_EINVAL, "segment_bytes",
                "must be a multiple of 4096 between 16 KiB and 1 GiB");
    if (o->batch_bytes_max < NODE_LOG_ALIGN)
        return err_set(err, OMEN_EINVAL, "batch_bytes_max", "must be at least 4096");
    if (strlen(o->dir) + 64 > LOG_PATH_BYTES)
        return err_set(err, OMEN_EINVAL, "dir", "log directory name is longer than %u", LOG_PATH_BYTES - 64);
    return OMEN_OK;
}

static void log_free(struct node_log *log)
{
    vfs_close(log->file);
    for (uint32_t i = 0; i < log->segment_count; i++) log_segment_free(log->segments[i]);
    log_groups_free(log);
    mem_free(log->segments);
    mem_free(log->iov);
    mem_free(log->scratch);
    mem_free(log->dir);
    pthread_cond_destroy(&log->spare);
    pthread_cond_destroy(&log->chores);
    pthread_cond_destroy(&log->work);
    pthread_mutex_destroy(&log->mutex);
    mem_free(log);
}

enum omen_err node_log_open(const struct node_log_options *options, node_log_replay replay, void *arg,
        struct node_log **log_out, struct err *err)
{
    *log_out = NULL;
    enum omen_err rc = options_check(options, err);
    if (rc != OMEN_OK) return rc;
    struct node_log *log = mem_must_calloc(1, sizeof *log);
    log->options = *options;
    log->dir = mem_must_strdup(options->dir);
    log->options.dir = log->dir;
    log->queue_tail = &log->queue_head;
    pthread_mutex_init(&log->mutex, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&log->work, NULL);
    pthread_cond_init(&log->chores, &attr);
    pthread_cond_init(&log->spare, NULL);
    pthread_condattr_destroy(&attr);
    log->spare_failed = true; /* until the helper has asked the disk */
    log->reserve_bytes = NODE_LOG_RESERVE_BYTES < options->segment_bytes ? NODE_LOG_RESERVE_BYTES
                                                                         : options->segment_bytes;
    rc = log_recover(log, replay, arg, err);
    if (rc == OMEN_OK && pthread_create(&log->log_thread, NULL, log_thread_main, log) != 0)
        rc = err_set(err, OMEN_ENOMEM, NULL, "cannot start the log thread");
    else if (rc == OMEN_OK)
        log->log_thread_started = true;
    if (rc == OMEN_OK && pthread_create(&log->helper_thread, NULL, log_helper_main, log) != 0)
        rc = err_set(err, OMEN_ENOMEM, NULL, "cannot start the log's helper thread");
    else if (rc == OMEN_OK)
        log->helper_started = true;
    if (rc != OMEN_OK) {
        node_log_close(log);
        return rc;
    }
    *log_out = log;
    return OMEN_OK;
}

void node_log_close(struct node_log *log)
{
    if (log == NULL) return;
    pthread_mutex_lock(&log->mutex);
    log->stopping = true;
    pthread_cond_broadcast(&log->work);
    pthread_mutex_unlock(&log->mutex);
    if (log->log_thread_started) pthread_join(log->log_thread, NULL);
    pthread_mutex_lock(&log->mutex);
    log->helper_stopping = true;
    pthread_cond_broadcast(&log->chores);
    pthread_mutex_unlock(&log->mutex);
    if (log->helper_started) pthread_join(log->helper_thread, NULL);
    log_free(log);
}

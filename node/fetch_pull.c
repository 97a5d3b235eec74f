/* One attempt at one node: leases, ranges, files. See fetch.h.
 *
 *   A range:  FREE --asked--> OUT --answer, on the network's thread--> BACK --written here--> FREE
 *   A file:   opened by its first range, ended by its last: whole checksum, synced, closed.
 *
 * INCOMING v1, 36 bytes: 0 "OMIN" | 4 u16 version | 6 zero[2] | 8 u64 group | 16 u64 replica_id | 24 u32 files_done |
 * 28 zero[4] | 32 u32 crc32c of 0..31. Of the list of files, those that grow and come before files_done are here, as far as
 * their length says, and synced. */
#include "common/err.h"

#include "node/fetch.h"

#include <stdio.h>
#include <sys/random.h>
#include <time.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "common/mem.h"
#include "common/net/net.h"

#define READ_TIMEOUT_MS 30000u
#define LEASE_TIMEOUT_MS 120000u
#define BUSY_RETRIES_MAX 100u
#define BUSY_PAUSE_MS 200u
#define INCOMING_BYTES 36u
#define INCOMING_EVERY_BYTES (16u << 20) /* durable and not yet noted */
#define LEASE_ARENA_BYTES_MAX (256u << 20)
#define CANCEL_POLL_MS 100u
#define PATH_BYTES 4200u
#define SUM_PART_BYTES (256u << 10)

enum range_state { RANGE_FREE, RANGE_OUT, RANGE_BACK };

struct pull;

struct range {
    struct pull *p;
    enum range_state state; /* guarded by the pull's lock */
    enum omen_err rc;
    struct buf reply;
    uint64_t nonce, offset;
    uint32_t file, len, retries;
};

struct open_file {
    struct vfs_file *file; /* NULL: not in use */
    uint32_t index;
    uint64_t asked, left; /* next byte to ask for; bytes not written yet */
    bool has_crc;
    uint32_t crc;
};

struct pull {
    const struct fetch_pull *o;
    struct net_client *client; /* NULL: closed, for the fetch was canceled */
    uint64_t nonce;
    pthread_mutex_t lock; /* guards the states of ranges */
    pthread_cond_t back;  /* monotonic clock */
    struct range ranges[FETCH_WINDOW];
    struct range single; /* a request that is waited for */
    uint32_t out;
    struct open_file files[FETCH_WINDOW];
    struct arena arena; /* of the lease */
    struct buf lease_bytes;
    struct file_reply lease;
    bool leased;
    const char *dir;
    uint64_t *have; /* [have_count] bytes of each file that are here */
    uint32_t have_count;
    uint64_t replica_id; /* whose these are; 0 = not known yet */
    uint32_t files_done; /* as in INCOMING */
    uint64_t unnoted_bytes;
};

/* ---- requests ---- */

static bool canceled(const struct pull *p) { return atomic_load(&p->o->fetch->cancel); }

static void request_make(struct pull *p, const struct file_request *r, struct buf *out, uint64_t *nonce_out)
{
    *nonce_out = ++p->nonce;
    buf_clear(out);
    shard_message_begin(out, SHARD_REQUEST, SHARD_KIND_FILE, *nonce_out);
    file_request_encode(r, out);
    if (out->failed) panic("no memory for a request of %zu bytes", out->len);
    shard_message_seal(out->data, out->len, &p->o->fetch->key);
}

static enum omen_err reply_open(struct pull *p, enum file_op op, uint64_t nonce, struct bytes message,
        struct arena *arena, struct file_reply *reply, struct err *err)
{
    struct shard_envelope e;
    enum omen_err rc = shard_message_open(message, SHARD_REPLY, &p->o->fetch->key, &e, err);
    if (rc == OMEN_OK && (e.kind != SHARD_KIND_FILE || e.nonce != nonce))
        rc = err_set(err, OMEN_EPROTO, "", "%s answered another request", p->o->url);
    if (rc == OMEN_OK) rc = file_reply_decode(op, e.body, arena, reply, err);
    if (rc == OMEN_OK && reply->code != OMEN_OK) {
        rc = reply->code;
        if (err != NULL) *err = reply->err;
    }
    return rc;
}

/* On the network's thread. */
static void range_back(void *arg, enum omen_err result, struct bytes reply)
{
    struct range *r = arg;
    struct pull *p = r->p;
    r->rc = result;
    buf_clear(&r->reply);
    if (result == OMEN_OK) buf_append(&r->reply, reply.data, reply.len);
    if (r->reply.failed) r->rc = OMEN_ENOMEM;
    pthread_mutex_lock(&p->lock);
    r->state = RANGE_BACK;
    pthread_cond_signal(&p->back);
    pthread_mutex_unlock(&p->lock);
}

/* Lock held, and let go meanwhile. A peer that says nothing does not hold up whoever cancels: then everything asked for
 * comes back. */
static void back_wait(struct pull *p)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += CANCEL_POLL_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    (void)pthread_cond_timedwait(&p->back, &p->lock, &until);
    if (!canceled(p) || p->client == NULL) return;
    struct net_client *client = p->client;
    p->client = NULL;
    pthread_mutex_unlock(&p->lock);
    net_client_close(client);
    pthread_mutex_lock(&p->lock);
}

static enum omen_err canceled_error(struct err *err)
{
    return err_set(err, OMEN_ECANCELED, "", "the replica is being closed");
}

/* A request that is waited for. The reply borrows from `bytes`. */
static enum omen_err ask(struct pull *p, const struct file_request *request, uint32_t timeout_ms,
        struct buf *bytes, struct arena *arena, struct file_reply *reply, struct err *err)
{
    struct range *r = &p->single;
    struct buf message;
    if (p->client == NULL) return canceled_error(err);
    buf_init(&message);
    request_make(p, request, &message, &r->nonce);
    r->state = RANGE_OUT;
    enum omen_err rc = net_call_start(p->client, (struct bytes){ message.data, message.len }, timeout_ms,
            range_back, r, err);
    buf_fini(&message);
    if (rc != OMEN_OK) return rc;
    pthread_mutex_lock(&p->lock);
    while (r->state != RANGE_BACK) back_wait(p);
    pthread_mutex_unlock(&p->lock);
    buf_clear(bytes);
    if (r->rc != OMEN_OK) return err_set(err, r->rc, "", "%s: %s", p->o->url, err_name(r->rc));
    buf_append(bytes, r->reply.data, r->reply.len);
    if (bytes->failed) return err_set(err, OMEN_ENOMEM, "", "no memory for a reply");
    return reply_open(p, request->op, r->nonce, (struct bytes){ bytes->data, bytes->len }, arena, reply, err);
}

/* ---- the lease ---- */

static void lease_release(struct pull *p, uint64_t lease)
{
    struct file_request r = { .op = FILE_RELEASE, .lease = lease };
    struct file_reply reply;
    struct buf bytes;
    struct err err;
    buf_init(&bytes);
    if (ask(p, &r, READ_TIMEOUT_MS, &bytes, NULL, &reply, &err) != OMEN_OK)
        LOG_INFO("fetch.lease_left", "url=%s reason=\"%s\"", p->o->url, err.message); /* it expires */
    buf_fini(&bytes);
}

/* A new lease, and only then the old one's end: the log goes on being kept for us there. */
static enum omen_err lease_take(struct pull *p, struct err *err)
{
    struct file_request r = { .op = FILE_LEASE, .group = p->o->fetch->group, .sequence = p->o->sequence };
    uint64_t old = p->leased ? p->lease.lease : 0;
    struct buf bytes;
    buf_init(&bytes);
    if (old != 0) arena_reset(&p->arena);
    enum omen_err rc = OMEN_OK;
    for (uint32_t tries = 0; tries < BUSY_RETRIES_MAX && !canceled(p); tries++) {
        rc = ask(p, &r, LEASE_TIMEOUT_MS, &bytes, &p->arena, &p->lease, err);
        if (rc != OMEN_EBUSY || old == 0) break; /* without one we had better ask somebody else */
        struct timespec pause = { 0, BUSY_PAUSE_MS * 1000000L };
        nanosleep(&pause, NULL);
    }
    if (old != 0) lease_release(p, old);
    buf_fini(&p->lease_bytes);
    p->lease_bytes = bytes;
    p->leased = rc == OMEN_OK;
    if (rc != OMEN_OK) return rc;
    if (p->lease.base_sequence < p->o->sequence || p->lease.sequence < p->lease.base_sequence)
        return err_set(err, OMEN_EUNAVAILABLE, "",
                "%s has a base at sequence %llu and a checkpoint at %llu, %llu is needed", p->o->url,
                (unsigned long long)p->lease.base_sequence, (unsigned long long)p->lease.sequence,
                (unsigned long long)p->o->sequence);
    return OMEN_OK;
}

/* ---- what is here already ---- */

static void incoming_path(const struct pull *p, char out[PATH_BYTES])
{
    snprintf(out, PATH_BYTES, "%s/INCOMING", p->dir);
}

static enum omen_err incoming_write(struct pull *p, struct err *err)
{
    char path[PATH_BYTES];
    uint8_t b[INCOMING_BYTES] = { 0 };
    memcpy(b, "OMIN", 4);
    store_u16(b + 4, 1);
    store_u64(b + 8, p->o->fetch->group);
    store_u64(b + 16, p->lease.replica_id);
    store_u32(b + 24, p->files_done);
    store_u32(b + 32, crc32c(0, b, 32));
    incoming_path(p, path);
    p->unnoted_bytes = 0;
    return vfs_replace_file(p->o->vfs, path, b, sizeof b, err);
}

/* Files that an earlier attempt left, of the lease's replica; 0 = none. */
static uint32_t incoming_read(struct pull *p)
{
    char path[PATH_BYTES];
    uint8_t *b = NULL;
    size_t len = 0;
    uint32_t done = 0;
    incoming_path(p, path);
    if (vfs_read_file(p->o->vfs, path, INCOMING_BYTES, &b, &len, NULL) != OMEN_OK) return 0;
    bool good = len == INCOMING_BYTES && memcmp(b, "OMIN", 4) == 0 && load_u16(b + 4) == 1 &&
            load_u32(b + 32) == crc32c(0, b, 32);
    if (good && load_u64(b + 8) == p->o->fetch->group && load_u64(b + 16) == p->lease.replica_id)
        done = load_u32(b + 24);
    mem_free(b);
    return done;
}

static void file_path(const struct pull *p, uint32_t index, char out[PATH_BYTES])
{
    snprintf(out, PATH_BYTES, "%s/%s", p->dir, p->lease.files[index].name);
}

static enum omen_err have_look(struct pull *p, struct err *err)
{
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < p->files_done; i++) {
        char path[PATH_BYTES];
        struct vfs_file *file = NULL;
        uint64_t size = 0;
        if (!p->lease.files[i].grows) continue;
        file_path(p, i, path);
        rc = vfs_open(p->o->vfs, path, VFS_READ, &file, err);
        if (rc == OMEN_OK) rc = vfs_size(file, &size, err);
        vfs_close(file);
        p->have[i] = size;
    }
    return rc;
}

/* A file that is shorter there than here was written anew: its chunk was compacted while there was no lease. */
static void have_fit(struct pull *p)
{
    for (uint32_t i = 0; i < p->lease.file_count; i++)
        if (p->have[i] > p->lease.files[i].bytes) p->have[i] = 0;
}

static void have_resize(struct pull *p)
{
    uint32_t count = p->lease.file_count;
    if (count <= p->have_count) return;
    p->have = mem_must_realloc(p->have, count * sizeof *p->have);
    memset(p->have + p->have_count, 0, (count - p->have_count) * sizeof *p->have);
    p->have_count = count;
}

/* The directory, and what of the lease's files is in it. */
static enum omen_err lease_prepare(struct pull *p, struct err *err)
{
    struct fetch *f = p->o->fetch;
    enum omen_err rc = f->prepare(f->arg, &p->lease, &p->dir, err);
    if (rc != OMEN_OK) return rc;
    have_resize(p);
    have_fit(p); /* a lease may have ended unnoticed before this one was taken */
    if (p->replica_id == p->lease.replica_id) return OMEN_OK;
    if (p->replica_id != 0)
        return err_set(err, OMEN_EUNAVAILABLE, "", "%s serves another replica now", p->o->url);
    p->replica_id = p->lease.replica_id;
    p->files_done = incoming_read(p);
    if (p->files_done > p->lease.file_count) p->files_done = p->lease.file_count;
    if (p->files_done > 0 && have_look(p, err) == OMEN_OK) {
        have_fit(p);
        return OMEN_OK;
    }
    /* Of another replica, or damaged: from the beginning. */
    memset(p->have, 0, p->have_count * sizeof *p->have);
    p->files_done = 0;
    rc = vfs_remove_tree(p->o->vfs, p->dir, err);
    return rc == OMEN_OK ? f->prepare(f->arg, &p->lease, &p->dir, err) : rc;
}

static enum omen_err room_check(struct pull *p, struct err *err)
{
    uint64_t free_bytes = 0, total = 0, here = 0, wanted = 0;
    for (uint32_t i = 0; i < p->lease.file_count; i++) {
        wanted += p->lease.files[i].bytes;
        here += p->have[i];
    }
    atomic_store(&p->o->fetch->done_bytes, here);
    atomic_store(&p->o->fetch->total_bytes, wanted);
    enum omen_err rc = vfs_free_space(p->o->vfs, p->dir, &free_bytes, &total, err);
    if (rc != OMEN_OK || wanted - here <= free_bytes) return rc;
    return err_set(err, OMEN_EFULL, "", "a checkpoint of %llu bytes is to come, the disk has room for %llu",
            (unsigned long long)(wanted - here), (unsigned long long)free_bytes);
}

/* ---- files ---- */

static enum omen_err file_sum(struct vfs_file *file, uint64_t bytes, uint32_t *crc_out, struct err *err)
{
    uint8_t *part = mem_must_alloc(SUM_PART_BYTES);
    enum omen_err rc = OMEN_OK;
    *crc_out = 0;
    for (uint64_t at = 0; rc == OMEN_OK && at < bytes;) {
        size_t len = bytes - at < SUM_PART_BYTES ? (size_t)(bytes - at) : SUM_PART_BYTES;
        rc = vfs_pread(file, part, len, at, err);
        if (rc == OMEN_OK) *crc_out = crc32c(*crc_out, part, len);
        at += len;
    }
    mem_free(part);
    return rc;
}

/* Whole: compared with the source's checksum, synced, closed, counted. */
static enum omen_err file_end(struct pull *p, struct open_file *f, struct err *err)
{
    const struct file_entry *entry = &p->lease.files[f->index];
    uint32_t crc = 0;
    enum omen_err rc = file_sum(f->file, entry->bytes, &crc, err);
    if (rc == OMEN_OK && entry->bytes > 0 && (!f->has_crc || crc != f->crc)) {
        char path[PATH_BYTES];
        file_path(p, f->index, path);
        p->have[f->index] = 0;
        (void)!vfs_unlink(p->o->vfs, path, NULL); /* not gone on from: it would fail again */
        rc = err_corrupt(err, path, 0, "a file that was copied differs from its source");
    }
    if (rc == OMEN_OK) rc = vfs_datasync(f->file, err);
    vfs_close(f->file);
    f->file = NULL;
    if (rc != OMEN_OK) return rc;
    p->unnoted_bytes += entry->bytes - p->have[f->index];
    p->have[f->index] = entry->bytes;
    return OMEN_OK;
}

/* Notes what is durable up to the first file that is not whole. */
static enum omen_err progress_note(struct pull *p, bool now, struct err *err)
{
    if (!now && p->unnoted_bytes < INCOMING_EVERY_BYTES) return OMEN_OK;
    while (p->files_done < p->lease.file_count) {
        const struct file_entry *f = &p->lease.files[p->files_done];
        if (f->grows && p->have[p->files_done] != f->bytes) break;
        p->files_done++;
    }
    return incoming_write(p, err);
}

static enum omen_err file_begin(struct pull *p, struct open_file *f, uint32_t index, struct err *err)
{
    char path[PATH_BYTES];
    const struct file_entry *entry = &p->lease.files[index];
    uint64_t from = entry->grows ? p->have[index] : 0;
    p->have[index] = from;
    file_path(p, index, path);
    *f = (struct open_file){ .index = index, .asked = from, .left = entry->bytes - from };
    enum omen_err rc = OMEN_OK;
    if (index < p->files_done && f->left > 0) { /* its length will not say what is durable any more */
        p->files_done = index;
        rc = incoming_write(p, err);
    }
    if (rc == OMEN_OK) rc = vfs_open(p->o->vfs, path, VFS_READ | VFS_WRITE | VFS_CREATE, &f->file, err);
    if (rc == OMEN_OK) rc = vfs_truncate(f->file, from, err);
    return rc == OMEN_OK && f->left == 0 ? file_end(p, f, err) : rc;
}

static struct open_file *file_of(struct pull *p, uint32_t index)
{
    for (uint32_t i = 0; i < FETCH_WINDOW; i++)
        if (p->files[i].file != NULL && p->files[i].index == index) return &p->files[i];
    return NULL;
}

/* ---- ranges ---- */

static void pause_until(const struct pull *p, uint64_t at_ns)
{
    for (;;) {
        uint64_t now = clock_monotonic_ns(p->o->clock);
        if (now >= at_ns || canceled(p)) return;
        uint64_t ns = at_ns - now < 50000000 ? at_ns - now : 50000000;
        struct timespec pause = { 0, (long)ns };
        nanosleep(&pause, NULL);
    }
}

static enum omen_err range_send(struct pull *p, struct range *r, struct err *err)
{
    struct file_request request = { .op = FILE_READ,
        .lease = p->lease.lease,
        .file = r->file,
        .offset = r->offset,
        .len = r->len };
    struct buf message;
    buf_init(&message);
    pause_until(p, p->o->rate_at(p->o->fetch, r->len));
    request_make(p, &request, &message, &r->nonce);
    if (p->client == NULL) {
        buf_fini(&message);
        return canceled_error(err);
    }
    r->state = RANGE_OUT;
    p->out++;
    enum omen_err rc = net_call_start(p->client, (struct bytes){ message.data, message.len }, READ_TIMEOUT_MS,
            range_back, r, err);
    buf_fini(&message);
    if (rc == OMEN_OK) return OMEN_OK;
    r->state = RANGE_FREE;
    p->out--;
    return rc;
}

static enum omen_err range_take(struct pull *p, struct range *r, struct err *err)
{
    struct file_reply reply;
    if (r->rc != OMEN_OK) return err_set(err, r->rc, "", "%s: %s", p->o->url, err_name(r->rc));
    enum omen_err rc = reply_open(p, FILE_READ, r->nonce, (struct bytes){ r->reply.data, r->reply.len }, NULL,
            &reply, err);
    if (rc == OMEN_EBUSY && r->retries++ < BUSY_RETRIES_MAX) {
        pause_until(p, clock_monotonic_ns(p->o->clock) + BUSY_PAUSE_MS * 1000000ull);
        return range_send(p, r, err);
    }
    if (rc != OMEN_OK) return rc;
    if (reply.data.len != r->len) return err_set(err, OMEN_EPROTO, "", "a range of another length came");
    struct open_file *f = file_of(p, r->file);
    CHECK(f != NULL && f->left >= r->len);
    rc = vfs_pwrite(f->file, reply.data.data, reply.data.len, r->offset, err);
    if (rc != OMEN_OK) return rc;
    vfs_writeback_hint(f->file, r->offset, r->len);
    f->left -= r->len;
    if (reply.has_file_crc) {
        f->has_crc = true;
        f->crc = reply.file_crc;
    }
    atomic_fetch_add(&p->o->fetch->done_bytes, r->len);
    if (f->left > 0) return OMEN_OK;
    rc = file_end(p, f, err);
    return rc == OMEN_OK ? progress_note(p, false, err) : rc;
}

/* The next range of what is open, or of the next file in `grows`' kind; *done_out: there is none. */
static enum omen_err range_next(struct pull *p, bool grows, uint32_t *cursor, struct range *r, bool *done_out,
        struct err *err)
{
    struct open_file *f = NULL, *unused = NULL;
    *done_out = false;
    for (uint32_t i = 0; i < FETCH_WINDOW; i++) {
        struct open_file *o = &p->files[i];
        if (o->file == NULL)
            unused = o;
        else if (o->asked < p->lease.files[o->index].bytes)
            f = o;
    }
    while (f == NULL && *cursor < p->lease.file_count) {
        uint32_t i = (*cursor)++;
        const struct file_entry *entry = &p->lease.files[i];
        if (entry->grows != grows || (grows && entry->bytes > 0 && p->have[i] == entry->bytes)) continue;
        CHECK(unused != NULL); /* as many as ranges, and one of these is free */
        enum omen_err rc = file_begin(p, unused, i, err);
        if (rc != OMEN_OK) return rc;
        if (unused->file != NULL) f = unused;
    }
    *done_out = f == NULL;
    if (f == NULL) return OMEN_OK;
    uint64_t left = p->lease.files[f->index].bytes - f->asked;
    r->file = f->index;
    r->offset = f->asked;
    r->len = left < FETCH_RANGE_BYTES ? (uint32_t)left : FETCH_RANGE_BYTES;
    r->retries = 0;
    f->asked += r->len;
    return OMEN_OK;
}

/* The one asked for first: files end in their order, and no answer waits behind younger ones for ever. */
static struct range *range_find(struct pull *p, enum range_state state)
{
    struct range *first = NULL;
    for (uint32_t i = 0; i < FETCH_WINDOW; i++) {
        struct range *r = &p->ranges[i];
        if (r->state == state && (first == NULL || r->nonce - first->nonce > UINT64_MAX / 2)) first = r;
    }
    return first;
}

/* One that is back; waits. */
static struct range *range_wait(struct pull *p)
{
    struct range *r;
    pthread_mutex_lock(&p->lock);
    while ((r = range_find(p, RANGE_BACK)) == NULL) back_wait(p);
    r->state = RANGE_FREE;
    p->out--;
    pthread_mutex_unlock(&p->lock);
    return r;
}

/* Every file that grows, or every one that does not. After a failure no range is out and no file open. */
static enum omen_err files_pull(struct pull *p, bool grows, struct err *err)
{
    enum omen_err rc = OMEN_OK;
    uint32_t cursor = 0;
    bool done = false;
    while (rc == OMEN_OK) {
        while (rc == OMEN_OK && !done && p->out < FETCH_WINDOW) {
            pthread_mutex_lock(&p->lock);
            struct range *r = range_find(p, RANGE_FREE);
            pthread_mutex_unlock(&p->lock);
            rc = range_next(p, grows, &cursor, r, &done, err);
            if (rc == OMEN_OK && !done) rc = range_send(p, r, err);
        }
        if (rc != OMEN_OK || p->out == 0) break;
        rc = range_take(p, range_wait(p), err);
        if (canceled(p)) rc = canceled_error(err);
    }
    while (p->out > 0) (void)range_wait(p);
    for (uint32_t i = 0; i < FETCH_WINDOW; i++) {
        if (p->files[i].file != NULL) vfs_close(p->files[i].file);
        p->files[i].file = NULL;
    }
    return rc;
}

/* ---- all of it ---- */

static uint64_t growth_left(const struct pull *p)
{
    uint64_t left = 0;
    for (uint32_t i = 0; i < p->lease.file_count; i++)
        if (p->lease.files[i].grows) left += p->lease.files[i].bytes - p->have[i];
    return left;
}

/* Names of the files, durable: of each directory that holds one. */
static enum omen_err names_sync(struct pull *p, struct err *err)
{
    char last[PATH_BYTES] = "", path[PATH_BYTES];
    enum omen_err rc = vfs_sync_dir(p->o->vfs, p->dir, err);
    for (uint32_t i = 0; rc == OMEN_OK && i < p->lease.file_count; i++) {
        file_path(p, i, path);
        *strrchr(path, '/') = '\0';
        if (strcmp(path, last) == 0) continue;
        memcpy(last, path, sizeof last);
        rc = vfs_sync_dir(p->o->vfs, path, err);
    }
    return rc;
}

/* Lease after lease until little grows. */
static enum omen_err rounds(struct pull *p, struct err *err)
{
    for (uint32_t n = 1;; n++) {
        enum omen_err rc = lease_take(p, err);
        if (rc == OMEN_OK) rc = lease_prepare(p, err);
        if (rc == OMEN_OK) rc = room_check(p, err);
        uint64_t grown = rc == OMEN_OK ? growth_left(p) : 0;
        if (rc == OMEN_OK) rc = files_pull(p, true, err);
        if (rc == OMEN_OK) rc = names_sync(p, err);
        if (rc == OMEN_OK) rc = progress_note(p, true, err);
        if (rc != OMEN_OK || grown <= FETCH_ROUND_BYTES || n == FETCH_LEASES_MAX) return rc;
    }
}

static enum omen_err pull_run(struct pull *p, struct buf *description, struct err *err)
{
    struct fetch *f = p->o->fetch;
    enum omen_err rc = rounds(p, err);
    if (rc == OMEN_OK) rc = files_pull(p, false, err);
    if (rc == OMEN_OK) rc = names_sync(p, err);
    if (rc != OMEN_OK) return rc;
    buf_append(description, p->lease.description.data, p->lease.description.len);
    if (description->failed) return err_set(err, OMEN_ENOMEM, "", "no memory for a description");
    rc = f->adopt(f->arg, &p->lease, err);
    struct err ignored;
    if (rc != OMEN_OK && vfs_remove_tree(p->o->vfs, p->dir, &ignored) != OMEN_OK)
        LOG_WARN("fetch.remains", "dir=\"%s\" reason=\"%s\"", p->dir, ignored.message);
    return rc;
}

static void pull_free(struct pull *p)
{
    if (p->client != NULL) net_client_close(p->client);
    for (uint32_t i = 0; i < FETCH_WINDOW; i++) buf_fini(&p->ranges[i].reply);
    buf_fini(&p->single.reply);
    buf_fini(&p->lease_bytes);
    arena_fini(&p->arena);
    mem_free(p->have);
    pthread_cond_destroy(&p->back);
    pthread_mutex_destroy(&p->lock);
    mem_free(p);
}

enum omen_err fetch_pull(const struct fetch_pull *pull, struct buf *description_out, struct err *err)
{
    struct net_client *client = NULL;
    enum omen_err rc = net_client_open(pull->url, SHARD_MESSAGE_BYTES_MAX, &client, err);
    if (rc != OMEN_OK) return rc;
    struct pull *p = mem_must_calloc(1, sizeof *p);
    p->o = pull;
    p->client = client;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->back, &attr);
    pthread_condattr_destroy(&attr);
    p->single.p = p;
    buf_init(&p->single.reply);
    arena_init(&p->arena, 4096, LEASE_ARENA_BYTES_MAX);
    buf_init(&p->lease_bytes);
    for (uint32_t i = 0; i < FETCH_WINDOW; i++) {
        p->ranges[i].p = p;
        buf_init(&p->ranges[i].reply);
    }
    while (getrandom(&p->nonce, sizeof p->nonce, 0) != (ssize_t)sizeof p->nonce) continue;
    rc = pull_run(p, description_out, err);
    if (p->leased && p->client != NULL) lease_release(p, p->lease.lease);
    pull_free(p);
    return rc;
}

/* See ship.h.
 *
 * One lock. A source's functions run without it; `users` of a lease, and `opening` of a source, keep what they work on. A
 * lease that is to go while it is used goes with its last user. */
#include "common/err.h"

#include "node/ship.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/random.h>
#include <time.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "common/log.h"
#include "node/rate.h"

struct shipper { /* a registered group */
    struct shipper *next;
    uint64_t group;
    struct ship_source source;
    uint32_t leases, opening;
    bool gone;
};

struct lease {
    struct lease *next;
    uint64_t id;
    struct shipper *of;
    struct ship_checkpoint checkpoint;
    uint64_t used_ns;
    uint32_t users;
    bool doomed;
};

struct ship {
    struct ship_options options;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t wake;  /* monotonic clock: requests, or stop */
    pthread_cond_t freed; /* a lease or an opening ended */
    struct shipper *shippers;
    struct lease *leases;
    uint32_t lease_count, opening;
    struct ship_call *head, **tail;
    uint32_t queued;
    struct rate rate;
    uint64_t bytes;
    bool stop;
    pthread_t threads[SHIP_THREADS];
    uint32_t thread_count;
};

static uint64_t now_ns(const struct ship *ship) { return clock_monotonic_ns(ship->options.clock); }

/* ---- leases ---- */

/* Closes it, unless it is used: then its last user does. Lock held, and let go meanwhile. */
static void lease_end(struct ship *ship, struct lease *l)
{
    l->doomed = true;
    if (l->users > 0) return;
    struct lease **link = &ship->leases;
    while (*link != l) link = &(*link)->next;
    *link = l->next;
    ship->lease_count--;
    pthread_mutex_unlock(&ship->lock);
    l->of->source.close(l->checkpoint.self);
    pthread_mutex_lock(&ship->lock);
    l->of->leases--;
    mem_free(l);
    pthread_cond_broadcast(&ship->freed);
}

/* Lock held. */
static void leases_expire(struct ship *ship)
{
    uint64_t now = now_ns(ship);
    for (struct lease *l = ship->leases; l != NULL;) {
        bool late = !l->doomed && now - l->used_ns > SHIP_LEASE_MS * 1000000ull;
        if (!late || l->users > 0) {
            l = l->next;
            continue;
        }
        LOG_INFO("ship.expired", "group=%llu", (unsigned long long)l->of->group);
        lease_end(ship, l);
        l = ship->leases; /* the lock was let go */
    }
}

static struct lease *lease_use(struct ship *ship, uint64_t id)
{
    struct lease *l = ship->leases;
    while (l != NULL && (l->id != id || l->doomed)) l = l->next;
    if (l == NULL) return NULL;
    l->users++;
    l->used_ns = now_ns(ship);
    return l;
}

static void lease_unuse(struct ship *ship, struct lease *l)
{
    l->used_ns = now_ns(ship);
    if (--l->users == 0 && l->doomed) lease_end(ship, l);
}

/* ---- requests ---- */

static struct shipper *shipper_find(struct ship *ship, uint64_t group)
{
    struct shipper *s = ship->shippers;
    while (s != NULL && (s->group != group || s->gone)) s = s->next;
    return s;
}

static enum omen_err busy(struct err *err, const char *why)
{
    enum omen_err rc = err_set(err, OMEN_EBUSY, "", "%s", why);
    err->retry_after_ms = SHIP_BUSY_RETRY_MS;
    return rc;
}

/* Ids cannot be guessed: who was not given one reads nothing. */
static uint64_t random_id(void)
{
    uint64_t v = 0;
    while (v == 0)
        if (getrandom(&v, sizeof v, 0) != (ssize_t)sizeof v) v = 0;
    return v;
}

static enum omen_err lease_check(struct ship *ship, const struct shipper *s, uint64_t group, struct err *err)
{
    if (s == NULL)
        return err_set(err, OMEN_ENOTFOUND, "", "no replica of group %llu serves files here",
                (unsigned long long)group);
    if (ship->lease_count + ship->opening >= SHIP_LEASES_MAX)
        return busy(err, "the node leases as many checkpoints as it may");
    if (s->leases + s->opening >= SHIP_GROUP_LEASES_MAX)
        return busy(err, "the replica leases as many checkpoints as it may");
    return OMEN_OK;
}

static enum omen_err serve_lease(struct ship *ship, const struct file_request *r, struct file_reply *reply,
        struct lease **lease_out)
{
    struct ship_checkpoint c = { 0 };
    pthread_mutex_lock(&ship->lock);
    leases_expire(ship);
    struct shipper *s = shipper_find(ship, r->group);
    enum omen_err rc = lease_check(ship, s, r->group, &reply->err);
    if (rc == OMEN_OK) {
        s->opening++;
        ship->opening++;
    }
    pthread_mutex_unlock(&ship->lock);
    if (rc != OMEN_OK) return rc;
    rc = s->source.open(s->source.arg, r->sequence, &c, &reply->err);
    struct lease *l = rc == OMEN_OK ? mem_must_calloc(1, sizeof *l) : NULL;
    pthread_mutex_lock(&ship->lock);
    s->opening--;
    ship->opening--;
    if (l != NULL) {
        *l = (struct lease){ .next = ship->leases, .id = random_id(), .of = s, .checkpoint = c };
        l->used_ns = now_ns(ship);
        l->users = 1; /* until the reply is made */
        ship->leases = l;
        ship->lease_count++;
        s->leases++;
        reply->lease = l->id;
    }
    pthread_cond_broadcast(&ship->freed);
    pthread_mutex_unlock(&ship->lock);
    if (l == NULL) return rc;
    *lease_out = l;
    reply->lease_ms = SHIP_LEASE_MS;
    reply->replica_id = c.replica_id;
    reply->sequence = c.sequence;
    reply->base_sequence = c.base_sequence;
    reply->description = c.description;
    reply->manifest = c.manifest;
    reply->files = c.files;
    reply->file_count = c.file_count;
    return OMEN_OK;
}

static enum omen_err range_read(const struct lease *l, const struct file_request *r, uint8_t *dst,
        struct file_reply *reply)
{
    const struct ship_source *source = &l->of->source;
    const struct file_entry *f = &l->checkpoint.files[r->file];
    enum omen_err rc = source->read(l->checkpoint.self, r->file, r->offset, dst, r->len, &reply->err);
    if (rc != OMEN_OK) return rc;
    reply->data = (struct bytes){ dst, r->len };
    reply->data_crc = crc32c(0, dst, r->len);
    reply->has_file_crc = r->offset + r->len == f->bytes;
    if (!reply->has_file_crc) return OMEN_OK;
    return source->sum(l->checkpoint.self, r->file, &reply->file_crc, &reply->err);
}

static enum omen_err serve_read(const struct lease *l, const struct file_request *r, uint8_t **data_out,
        struct file_reply *reply)
{
    bool there = r->file < l->checkpoint.file_count;
    if (!there || !range_fits(r->offset, r->len, l->checkpoint.files[r->file].bytes))
        return err_set(&reply->err, OMEN_EINVAL, "", "the range lies outside the file");
    *data_out = mem_alloc(r->len);
    if (*data_out == NULL) return busy(&reply->err, "no memory for a range");
    return range_read(l, r, *data_out, reply);
}

static void serve(struct ship *ship, struct ship_call *call)
{
    struct file_request r;
    struct file_reply reply = { 0 };
    struct lease *l = NULL;
    uint8_t *data = NULL;
    enum omen_err rc = file_request_decode(call->body, &r, &reply.err);
    if (rc == OMEN_OK && r.op == FILE_LEASE) {
        rc = serve_lease(ship, &r, &reply, &l);
    } else if (rc == OMEN_OK) {
        pthread_mutex_lock(&ship->lock);
        l = lease_use(ship, r.lease);
        pthread_mutex_unlock(&ship->lock);
        if (l == NULL) rc = err_set(&reply.err, OMEN_ENOTFOUND, "", "the lease has ended");
    }
    if (rc == OMEN_OK && r.op == FILE_READ) rc = serve_read(l, &r, &data, &reply);
    reply.code = rc;
    file_reply_encode(r.op, &reply, call->reply);
    pthread_mutex_lock(&ship->lock);
    ship->bytes += reply.data.len;
    if (l != NULL && r.op == FILE_RELEASE) l->doomed = true;
    if (l != NULL) lease_unuse(ship, l);
    pthread_mutex_unlock(&ship->lock);
    mem_free(data);
    call->done(call);
}

/* ---- threads ---- */

static void wait_until(struct ship *ship, uint64_t ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    until.tv_sec += (time_t)(ms / 1000) + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&ship->wake, &ship->lock, &until);
}

/* The first request, when its time has come; else waits a while and answers NULL. */
static struct ship_call *call_take(struct ship *ship)
{
    struct ship_call *call = ship->head;
    uint64_t now = now_ns(ship);
    if (call != NULL && (call->not_before_ns <= now || ship->stop)) {
        ship->head = call->next;
        if (ship->head == NULL) ship->tail = &ship->head;
        ship->queued--;
        return call;
    }
    if (call != NULL)
        wait_until(ship, (call->not_before_ns - now) / 1000000 + 1);
    else if (ship->leases != NULL)
        wait_until(ship, 1000);
    else if (!ship->stop)
        pthread_cond_wait(&ship->wake, &ship->lock);
    return NULL;
}

static void *ship_main(void *arg)
{
    struct ship *ship = arg;
    pthread_setname_np(pthread_self(), "omen-ship");
    pthread_mutex_lock(&ship->lock);
    while (!ship->stop || ship->head != NULL) {
        struct ship_call *call = call_take(ship);
        if (call != NULL) {
            pthread_mutex_unlock(&ship->lock);
            serve(ship, call);
            pthread_mutex_lock(&ship->lock);
        } else {
            leases_expire(ship);
        }
    }
    pthread_mutex_unlock(&ship->lock);
    return NULL;
}

/* What a READ will take of the rate; anything else takes nothing. */
static uint32_t call_bytes(const struct ship_call *call)
{
    struct file_request r;
    if (file_request_decode(call->body, &r, NULL) != OMEN_OK || r.op != FILE_READ) return 0;
    return r.len;
}

void ship_serve(struct ship *ship, struct ship_call *call)
{
    uint64_t throttle = ship->options.throttle != NULL ? ship->options.throttle(ship->options.arg) : 0;
    uint32_t bytes = call_bytes(call);
    pthread_mutex_lock(&ship->lock);
    bool room = ship->queued < SHIP_QUEUE_MAX && !ship->stop;
    if (room) {
        call->not_before_ns = bytes == 0 ? 0 : rate_take(&ship->rate, now_ns(ship), bytes, throttle);
        call->next = NULL;
        *ship->tail = call;
        ship->tail = &call->next;
        ship->queued++;
        pthread_cond_signal(&ship->wake);
    }
    pthread_mutex_unlock(&ship->lock);
    if (room) return;
    struct file_reply reply = { 0 };
    reply.code = busy(&reply.err, "too many requests for files are waiting");
    file_reply_encode(FILE_RENEW, &reply, call->reply);
    call->done(call);
}

/* ---- life ---- */

enum omen_err ship_start(const struct ship_options *options, struct ship **ship_out, struct err *err)
{
    struct ship *ship = mem_must_calloc(1, sizeof *ship);
    *ship_out = NULL;
    ship->options = *options;
    ship->tail = &ship->head;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&ship->lock, NULL);
    pthread_cond_init(&ship->wake, &attr);
    pthread_cond_init(&ship->freed, NULL);
    pthread_condattr_destroy(&attr);
    int rc = 0;
    while (rc == 0 && ship->thread_count < SHIP_THREADS) {
        rc = pthread_create(&ship->threads[ship->thread_count], NULL, ship_main, ship);
        if (rc == 0) ship->thread_count++;
    }
    *ship_out = ship;
    if (rc == 0) return OMEN_OK;
    ship_stop(ship);
    *ship_out = NULL;
    return err_os(err, rc, "start a thread for", "the server of files");
}

void ship_stop(struct ship *ship)
{
    if (ship == NULL) return;
    pthread_mutex_lock(&ship->lock);
    ship->stop = true;
    pthread_cond_broadcast(&ship->wake);
    pthread_mutex_unlock(&ship->lock);
    for (uint32_t i = 0; i < ship->thread_count; i++) pthread_join(ship->threads[i], NULL);
    CHECK(ship->shippers == NULL && ship->leases == NULL);
    pthread_cond_destroy(&ship->freed);
    pthread_cond_destroy(&ship->wake);
    pthread_mutex_destroy(&ship->lock);
    mem_free(ship);
}

void ship_register(struct ship *ship, uint64_t group, const struct ship_source *source)
{
    struct shipper *s = mem_must_calloc(1, sizeof *s);
    s->group = group;
    s->source = *source;
    pthread_mutex_lock(&ship->lock);
    CHECK(shipper_find(ship, group) == NULL);
    s->next = ship->shippers;
    ship->shippers = s;
    pthread_mutex_unlock(&ship->lock);
}

void ship_unregister(struct ship *ship, uint64_t group)
{
    pthread_mutex_lock(&ship->lock);
    struct shipper *s = shipper_find(ship, group);
    if (s != NULL) s->gone = true;
    while (s != NULL && (s->leases > 0 || s->opening > 0)) {
        struct lease *l = ship->leases;
        while (l != NULL && (l->of != s || l->doomed)) l = l->next;
        if (l != NULL)
            lease_end(ship, l);
        else
            pthread_cond_wait(&ship->freed, &ship->lock);
    }
    struct shipper **link = &ship->shippers;
    while (*link != NULL && *link != s) link = &(*link)->next;
    if (*link != NULL) *link = s->next;
    pthread_mutex_unlock(&ship->lock);
    mem_free(s);
}

void ship_stats(struct ship *ship, struct ship_stats *stats_out)
{
    pthread_mutex_lock(&ship->lock);
    *stats_out = (struct ship_stats){ ship->lease_count, ship->bytes };
    pthread_mutex_unlock(&ship->lock);
}

/* ---- one file in memory ---- */

struct ship_bytes {
    struct buf content, description;
    struct file_entry file;
};

void ship_bytes_checkpoint(const char *name, struct buf *content, struct buf *description,
        uint64_t replica_id, uint64_t sequence, uint64_t base_sequence,
        struct ship_checkpoint *checkpoint_out)
{
    struct ship_bytes *b = mem_must_calloc(1, sizeof *b);
    b->content = *content;
    b->description = *description;
    buf_init(content);
    buf_init(description);
    CHECK(strlen(name) <= FILE_NAME_BYTES_MAX);
    memcpy(b->file.name, name, strlen(name) + 1);
    b->file.bytes = b->content.len;
    *checkpoint_out = (struct ship_checkpoint){ .self = b,
        .replica_id = replica_id,
        .sequence = sequence,
        .base_sequence = base_sequence,
        .description = { b->description.data, b->description.len },
        .files = &b->file,
        .file_count = 1 };
}

enum omen_err ship_bytes_read(void *self, uint32_t file, uint64_t offset, void *dst, size_t len,
        struct err *err)
{
    const struct ship_bytes *b = self;
    CHECK(file == 0 && range_fits(offset, len, b->content.len));
    memcpy(dst, b->content.data + offset, len);
    return OMEN_OK;
}

enum omen_err ship_bytes_sum(void *self, uint32_t file, uint32_t *crc_out, struct err *err)
{
    const struct ship_bytes *b = self;
    *crc_out = crc32c(0, b->content.data, b->content.len);
    return OMEN_OK;
}

void ship_bytes_close(void *self)
{
    struct ship_bytes *b = self;
    buf_fini(&b->content);
    buf_fini(&b->description);
    mem_free(b);
}

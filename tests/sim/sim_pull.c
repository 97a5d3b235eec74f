/* node/fetch_pull.c in the simulated world: it blocks, so each attempt has a thread, which runs only while the world waits
 * for it and the world only while it waits for something: one runs at a time, and who that is follows from the seed.
 *
 *   world:  WAITS --sim_pull_step: what has come back is handed over--> pull runs until it waits or has ended --> world
 *
 * Simulated is what it reaches the outside by (--wrap): a client of the network whose requests are late, lost, or find
 * nobody; waiting, sleeping. Files go to the node's simulated disk, LMDB's too: that is brought to where LMDB maps it when
 * the copy becomes a store (shard_store_adopt), and must be durable by then. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/check.h"
#include "common/crc32c.h"
#include "common/net/net.h"
#include "storage/shard_lease.h"
#include "tests/sim/sim.h"

#define SILENCE_MS 600u /* until a lost request is known to be */
#define FILE_BYTES_MAX (64u << 20)

struct sim_request {
    struct sim_request *next;
    uint64_t at_ms; /* of arrival there, then here */
    bool lost, answered;
    struct buf message, reply;
    net_done done;
    void *arg;
};

static __thread struct sim_pull *pull_here; /* whose thread this is */

/* ---- whose turn it is ---- */

static void turn_give(struct sim_pull *p, bool pulls)
{
    pthread_mutex_lock(&p->lock);
    p->pulls = pulls;
    pthread_cond_broadcast(&p->turned);
    while (p->pulls == pulls && !p->over) pthread_cond_wait(&p->turned, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static uint64_t rate_none(struct fetch *fetch, uint32_t bytes) { return 0; }

static void *pull_main(void *arg)
{
    struct sim_pull *p = arg;
    struct sim_node *node = p->s->node;
    pull_here = p;
    pthread_mutex_lock(&p->lock);
    while (!p->pulls) pthread_cond_wait(&p->turned, &p->lock);
    pthread_mutex_unlock(&p->lock);
    struct fetch_pull o = { &p->fetch, node->env.vfs, &node->clock.base, rate_none, "sim", p->of->sequence };
    p->rc = fetch_pull(&o, &p->description, &p->err);
    pthread_mutex_lock(&p->lock);
    p->over = true;
    p->pulls = false;
    pthread_cond_broadcast(&p->turned);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* ---- the network ---- */

/* The linker's names. */
enum omen_err __wrap_net_client_open(const char *url, size_t message_bytes_max,
        struct net_client **client_out, struct err *err);
void __wrap_net_client_close(struct net_client *client);
enum omen_err __wrap_net_call_start(struct net_client *client, struct bytes message, uint32_t timeout_ms,
        net_done done, void *arg, struct err *err);
int __real_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until);
int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until);
int __real_nanosleep(const struct timespec *wanted, struct timespec *left);
int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left);
enum omen_err __real_shard_store_adopt(const struct shard_store_options *options, struct bytes manifest,
        struct err *err);
enum omen_err __wrap_shard_store_adopt(const struct shard_store_options *options, struct bytes manifest,
        struct err *err);

static void request_end(struct sim_request *q, enum omen_err rc)
{
    q->done(q->arg, rc,
            rc == OMEN_OK ? (struct bytes){ q->reply.data, q->reply.len } : (struct bytes){ NULL, 0 });
    buf_fini(&q->message);
    buf_fini(&q->reply);
    mem_free(q);
}

enum omen_err __wrap_net_client_open(const char *url, size_t message_bytes_max,
        struct net_client **client_out, struct err *err)
{
    *client_out = (struct net_client *)pull_here;
    return OMEN_OK;
}

void __wrap_net_client_close(struct net_client *client)
{
    struct sim_pull *p = (struct sim_pull *)client;
    while (p->requests != NULL) {
        struct sim_request *q = p->requests;
        p->requests = q->next;
        request_end(q, OMEN_ECANCELED);
    }
}

enum omen_err __wrap_net_call_start(struct net_client *client, struct bytes message, uint32_t timeout_ms,
        net_done done, void *arg, struct err *err)
{
    struct sim_pull *p = (struct sim_pull *)client;
    struct world *w = p->s->node->sim->w;
    struct sim_request *q = mem_must_calloc(1, sizeof *q), **last = &p->requests;
    buf_init(&q->message);
    buf_init(&q->reply);
    buf_append(&q->message, message.data, message.len);
    q->lost = world_chance(w, w->loss_per_mille / 8); /* a stream: what is lost is the connection */
    q->at_ms = w->now_ms + (q->lost ? SILENCE_MS : world_below(w, world_chance(w, 200) ? 600 : 40));
    q->done = done;
    q->arg = arg;
    while (*last != NULL) last = &(*last)->next;
    *last = q;
    return OMEN_OK;
}

static bool reaches(const struct sim_pull *p)
{
    const struct world *w = p->s->node->sim->w;
    uint32_t a = p->s->node->n->place, b = p->source;
    return w->nodes[b].up && !w->nodes[b].cut && !w->cut[a][b] && !w->cut[b][a];
}

/* At the source. */
static void request_serve(struct sim_pull *p, struct sim_request *q)
{
    struct sim *sim = p->s->node->sim;
    struct shard_envelope e;
    struct bytes message = { q->message.data, q->message.len };
    if (!reaches(p)) {
        q->lost = true;
        q->at_ms += world_below(sim->w, SILENCE_MS);
        return;
    }
    if (shard_message_open(message, SHARD_REQUEST, &p->fetch.key, &e, NULL) != OMEN_OK)
        sim_shard_fail(p->s, "a request for files is none");
    shard_message_begin(&q->reply, SHARD_REPLY, SHARD_KIND_FILE, e.nonce);
    sim_ship_serve(&sim->nodes[p->source], e.body, &q->reply);
    shard_message_seal(q->reply.data, q->reply.len, &p->fetch.key);
    q->answered = true;
    q->at_ms += world_below(sim->w, 20);
    sim->nodes[p->source].n->cut = sim->nodes[p->source].disk.is_cut;
}

/* What is due: arrives there, or comes back. */
static void requests_step(struct sim_pull *p)
{
    uint64_t now_ms = p->s->node->sim->w->now_ms;
    for (struct sim_request **link = &p->requests; *link != NULL;) {
        struct sim_request *q = *link;
        bool due = q->at_ms <= now_ms, back = q->lost || q->answered;
        if (due && !back) request_serve(p, q);
        if (!due || !back) {
            link = &q->next;
            continue;
        }
        *link = q->next;
        request_end(q, q->lost ? OMEN_EUNKNOWN : OMEN_OK);
    }
}

/* ---- waiting ---- */

int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until)
{
    if (pull_here == NULL) return __real_pthread_cond_timedwait(cond, mutex, until);
    pthread_mutex_unlock(mutex);
    turn_give(pull_here, false);
    pthread_mutex_lock(mutex);
    return 0;
}

int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left)
{
    if (pull_here == NULL) return __real_nanosleep(wanted, left);
    for (long ms = wanted->tv_nsec / 1000000; ms > 0; ms -= (long)WORLD_STEP_MS) turn_give(pull_here, false);
    return 0;
}

/* ---- LMDB's file ---- */

/* The real file becomes what was copied, unless it was made a store already: then LMDB has written to it since. */
static void lmdb_bring(struct sim_disk *d, const char *dir)
{
    char path[SIM_PATH_BYTES + 32];
    struct vfs_file *file = NULL;
    uint8_t *bytes = NULL;
    size_t len = 0;
    snprintf(path, sizeof path, "%.500s/meta/data.mdb", dir);
    enum omen_err rc = vfs_read_file(vfs_sim_vfs(d->vfs), path, FILE_BYTES_MAX, &bytes, &len, NULL);
    if (rc != OMEN_OK) return; /* the product will say so */
    if (!vfs_sim_is_durable(d->vfs, path) && !d->is_cut)
        world_fail(d->sim->w, "%s becomes a store's and is not durable", path);
    uint32_t crc = crc32c(0, bytes, len);
    bool ours = strcmp(d->adopted_dir, dir) == 0 && d->adopted_crc == crc;
    if (!ours) rc = vfs_open(vfs_posix(), path, VFS_WRITE | VFS_CREATE, &file, NULL);
    if (!ours && rc == OMEN_OK) rc = vfs_truncate(file, 0, NULL);
    if (!ours && rc == OMEN_OK && len > 0) rc = vfs_pwrite(file, bytes, len, 0, NULL);
    if (!ours) vfs_close(file);
    if (rc != OMEN_OK) world_fail(d->sim->w, "%s cannot be written", path);
    d->adopting_crc = crc;
    mem_free(bytes);
}

enum omen_err __wrap_shard_store_adopt(const struct shard_store_options *options, struct bytes manifest,
        struct err *err)
{
    struct sim_disk *d = sim_disk_of(options->dir);
    lmdb_bring(d, options->dir);
    enum omen_err rc = __real_shard_store_adopt(options, manifest, err);
    if (rc != OMEN_OK) return rc;
    snprintf(d->adopted_dir, sizeof d->adopted_dir, "%s", options->dir);
    d->adopted_crc = d->adopting_crc;
    return OMEN_OK;
}

/* ---- an attempt ---- */

static enum omen_err pull_prepare(void *arg, const struct file_reply *lease, const char **dir_out,
        struct err *err)
{
    struct sim_pull *p = arg;
    struct sim_shard *s = p->s;
    const struct shard_group *g = s->host->group;
    char path[SIM_PATH_BYTES];
    bool before = false;
    snprintf(path, sizeof path, "%.480s/g%u", g->dir, g->generation + 1);
    if (vfs_mkdir(vfs_posix(), path, NULL) != OMEN_OK) sim_shard_fail(s, "no directory for LMDB's files");
    snprintf(path, sizeof path, "%.480s/g%u/INCOMING", g->dir, g->generation + 1);
    (void)!vfs_exists(s->node->env.vfs, path, &before, NULL);
    s->node->sim->counts.resumed += before && !p->prepared;
    p->prepared = true;
    return p->of->prepare(p->of->arg, lease, dir_out, err);
}

static enum omen_err pull_adopt(void *arg, const struct file_reply *lease, struct err *err)
{
    struct sim_pull *p = arg;
    enum omen_err rc = p->of->adopt(p->of->arg, lease, err);
    const struct sim_shard *source = &p->s->node->sim->nodes[p->source].shards[p->s->r->slot];
    p->s->node->sim->counts.copies_refused += rc == OMEN_ECORRUPT;
    if (rc == OMEN_ECORRUPT && !sim_is_flipped(source) && !p->s->node->disk.is_cut)
        sim_shard_fail(p->s, err->message);
    return rc;
}

struct sim_pull *sim_pull_new(struct sim_shard *s, uint32_t source)
{
    struct sim_pull *p = mem_must_calloc(1, sizeof *p);
    struct fetch *f = s->fetch.fetch;
    p->s = s;
    p->of = f;
    p->source = source;
    p->fetch.group = f->group;
    p->fetch.key = f->key;
    p->fetch.arg = p;
    p->fetch.prepare = pull_prepare;
    p->fetch.adopt = pull_adopt;
    buf_init(&p->description);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->turned, NULL);
    if (pthread_create(&p->thread, NULL, pull_main, p) != 0) panic("no thread for a copy");
    return p;
}

bool sim_pull_step(struct sim_pull *p)
{
    requests_step(p);
    turn_give(p, true);
    if (p->over) pthread_join(p->thread, NULL); /* at once: what it frees as it goes belongs to its turn */
    return p->over;
}

void sim_pull_free(struct sim_pull *p)
{
    atomic_store(&p->fetch.cancel, true);
    while (!p->over && !sim_pull_step(p)) continue;
    CHECK(p->requests == NULL);
    pthread_cond_destroy(&p->turned);
    pthread_mutex_destroy(&p->lock);
    buf_fini(&p->description);
    mem_free(p);
}

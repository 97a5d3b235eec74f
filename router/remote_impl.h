/* What the remote_*.c files share.
 *
 * Locks, none held while another room is called except where said: remote->lock guards the table of endpoints, the routing
 * that is published and the poll round; a call's lock its attempts; timers_lock the heap; an
 * endpoint's flying_lock the attempts there. Order: call, remote, timers; call, flying. */
#ifndef OMEN_ROUTER_REMOTE_IMPL_H
#define OMEN_ROUTER_REMOTE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/net/net.h"
#include "common/placement/map_index.h"
#include "common/wire/shard_message.h"
#include "router/remote.h"

#define REMOTE_ENDPOINTS_MAX (OMEN_NODES_MAX + REMOTE_SEEDS_MAX)
#define REMOTE_ATTEMPTS_MAX 64                /* of one call */
#define REMOTE_ARENA_BYTES_MAX (256u << 20)   /* one call's outputs */
#define REMOTE_REPLY_BYTES_MAX (512ull << 20) /* reply bytes held by all calls: OMEN_EBUSY above */
#define REMOTE_SMALL_BYTES                                                                                   \
    (64u << 10) /* answers that always fit: the outcome of a write is not thrown away */
#define REMOTE_REFRESHES_MAX                                                                                 \
    4096u /* waiting for a newer map; more are answered at once, with what there is */
#define REMOTE_BACKOFF_MS_MIN 5u
#define REMOTE_BACKOFF_MS_MAX 200u
#define REMOTE_POLL_TIMEOUT_MS 500u
#define REMOTE_GRACE_MS                                                                                      \
    250u /* a node's own answer that the deadline passed is worth waiting for: it knows more */
#define REMOTE_WRITE_ATTEMPT_MS                                                                              \
    3000u /* then another replica is asked, if there is one and the write has an op id */
#define REMOTE_DOWN_NS 250000000ull /* an endpoint that failed is passed over for so long */
#define REMOTE_HEDGE_MIN_NS 1000000ull
#define REMOTE_SAMPLES 512u /* latencies kept per kind */
#define REMOTE_KINDS SHARD_CALL_KINDS
#define MS_NS 1000000ull

/* ---- timers: remote_timer.c ---- */

struct remote_timer {
    uint64_t due_ns;
    uint32_t slot;                            /* in the heap, from 1; 0 = not armed */
    void (*fire)(struct remote_timer *timer); /* on the timers' thread, without a lock */
};

struct remote_timers {
    pthread_mutex_t lock;
    pthread_cond_t wake;        /* monotonic clock */
    struct remote_timer **heap; /* [capacity + 1], earliest at 1 */
    uint32_t count, capacity;
    bool stop;
    pthread_t thread;
    struct clock *clock;
};
OMEN_CHECKED enum omen_err remote_timers_start(struct remote_timers *timers, struct clock *clock,
        struct err *err);
void remote_timers_stop(struct remote_timers *timers); /* what is armed never fires */
/* Must not be armed. */
void remote_timer_arm(struct remote_timers *timers, struct remote_timer *timer, uint64_t due_ns);
/* true: it was armed and will not fire. */
bool remote_timer_cancel(struct remote_timers *timers, struct remote_timer *timer);

/* ---- endpoints and routing: remote_map.c, remote_poll.c ---- */

struct attempt; /* remote_call.h */

/* One address. In the table until nobody needs it; closed by the timers' thread. */
struct endpoint {
    char address[OMEN_ADDRESS_BYTES_MAX + 1];
    struct net_client *client;
    _Atomic uint32_t refs;        /* routings and calls that use it, and the table */
    _Atomic uint32_t outstanding; /* calls */
    _Atomic uint64_t latency_ns;  /* of reads, smoothed; 0 = none yet */
    _Atomic uint64_t down_until_ns;
    _Atomic uint64_t heard_ns; /* when anything was answered last */
    _Atomic bool silent;       /* the last poll was not answered, nor was anything else meanwhile */
    pthread_mutex_t flying_lock;
    struct attempt *flying; /* all that are out there, linked by next_there; guarded by flying_lock */
    bool seed,
            listed; /* configured; in the directory of nodes last seen. These down to `status` under remote->lock */
    uint64_t listed_round; /* the last round in which a node listed it */
    uint32_t node_id;      /* of who answered last; 0 = nobody yet */
    bool answered;         /* the last poll */
    uint64_t epoch;        /* of its map then */
    char trouble[160];     /* why the last poll failed */
    char not_ready[SHARD_REASON_BYTES_MAX + 1];
    struct buf status; /* a doc, or empty */
};

struct node_ref {
    uint32_t node_id;
    struct endpoint *endpoint;
};

/* What is known of a shard beside the map, learned from answers. */
struct shard_route {
    _Atomic uint32_t leader;                       /* node id, 0 = not known */
    _Atomic uint64_t sequences[OMEN_REPLICAS_MAX]; /* at least applied there, beside map_shard.node_ids */
};

/* A snapshot: map, and where its nodes are reached. */
struct routing {
    struct map_index *index;
    struct shard_route *routes; /* [index->count] beside index->places */
    struct node_ref *nodes;     /* [node_count] ascending by id */
    uint32_t node_count;
    _Atomic uint32_t refs;
};

struct map_waiter {
    void (*done)(void *arg);
    void *arg;
};

struct latencies { /* of one kind of call */
    pthread_mutex_t lock;
    uint32_t samples_us[REMOTE_SAMPLES]; /* ring */
    uint64_t count;
    _Atomic uint64_t p95_ns; /* 0 = too few samples */
};

struct remote_metrics { /* NULL without a registry */
    struct metric_counter *attempts, *retries, *hedges, *hedge_wins, *wrong_epoch, *not_leader, *unknown,
            *maps, *unproven, *abandoned;
    struct metric_gauge *nodes_up, *epoch;
};

struct remote {
    struct remote_options options;
    struct shard_service service;
    struct remote_timers timers;
    struct remote_metrics metrics;
    uint64_t nonce_first;
    _Atomic uint64_t nonces;
    _Atomic bool stopping;
    _Atomic uint64_t reply_bytes; /* held by calls */
    _Atomic int64_t hedge_credit; /* in hundredths of a hedge */
    _Atomic uint32_t
            catalog_node; /* who made the last change, of the catalog or the cluster; 0 = not known */
    struct latencies latencies[REMOTE_KINDS];

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t quiet; /* calls == 0 and round_pending == 0 */
    uint64_t calls;       /* not freed yet */
    struct endpoint **endpoints;
    uint32_t endpoint_count;
    struct routing *routing; /* NULL before the first map */
    uint64_t round;          /* counts them */
    uint32_t round_pending;  /* polls of the round under way */
    uint32_t round_answers;  /* of those, so far */
    bool round_again;        /* another one at once: waiters came after it began, or a node was found */
    bool nodes_changed;      /* the routing must be built anew when the round ends */
    struct map_waiter *waiting, *waiting_next; /* for this round; for the next. [count] owned */
    uint32_t waiting_count, waiting_next_count;
    struct remote_timer poll_timer;
};

uint64_t remote_now_ns(const struct remote *remote);
uint64_t remote_nonce(struct remote *remote);

/* remote_map.c */
struct routing *routing_acquire(struct remote *remote); /* NULL before the first map */
struct routing *routing_ref(struct routing *routing);
void routing_unref(struct routing *routing);
/* The endpoint of a node, borrowed from the routing; NULL when none is known. */
struct endpoint *routing_endpoint(const struct routing *routing, uint32_t node_id);
/* Takes over a newer map, or one of another incarnation; an older one is left. Borrows `map`. */
void remote_map_install(struct remote *remote, struct map *map);
/* Publish a routing anew after endpoints or node ids changed; needs remote->lock. `map` NULL = the one there is. */
void remote_routing_rebuild(struct remote *remote, struct map *map);
/* NULL when there are too many, or the address is none (then err says so). Needs remote->lock. */
struct endpoint *remote_endpoint_add(struct remote *remote, const char *address, struct err *err);
void endpoint_ref(struct endpoint *endpoint);
void endpoint_unref(struct endpoint *endpoint);
void endpoint_free(struct endpoint *endpoint);
void endpoint_down(struct remote *remote, struct endpoint *endpoint);
void endpoint_heard(struct remote *remote, struct endpoint *endpoint);

/* remote_poll.c */
void remote_poll_begin(struct remote *remote); /* a round soon, and every poll_ns from then on */
void remote_refresh(struct remote *remote, void (*done)(void *arg), void *arg);
void remote_poll_end(
        struct remote *remote); /* no further round; answers who waits; waits for the one under way */

/* remote_pick.c */
struct pick {
    uint32_t node_id;
    struct endpoint *endpoint; /* NULL: nobody */
};
/* Who should answer next. `routing` NULL: before the first map, CALL_CLUSTER only. `tried` [tried_count]: node ids that are
 * not asked again in this turn. */
struct pick remote_pick(struct remote *remote, const struct routing *routing, const struct shard_call *call,
        const struct map_place *place, struct shard_route *route, const uint32_t *tried,
        uint32_t tried_count);
/* Which configured address did not answer, and why. */
void remote_silent_seed(struct remote *remote, char *out, size_t out_bytes);
void remote_learn(const struct map_place *place, struct shard_route *route, const struct shard_call *call,
        uint32_t node_id, bool led);
bool call_needs_leader(const struct shard_call *call);
bool call_is_read(const struct shard_call *call);
void latency_note(struct remote *remote, enum shard_call_kind kind, struct endpoint *endpoint,
        uint64_t took_ns);
/* When a read that began now should be asked of a second replica; 0 = never. */
uint64_t hedge_delay_ns(struct remote *remote, enum shard_call_kind kind);
void hedge_earn(struct remote *remote);
bool hedge_spend(struct remote *remote);

/* remote_call.c */
void remote_submit(void *self, struct shard_call *call);
void remote_release(void *self, struct shard_call *call);
/* A poll of the endpoint was not answered: attempts that wait there for longer than that are given up. */
void remote_silence(struct remote *remote, struct endpoint *endpoint);

#endif

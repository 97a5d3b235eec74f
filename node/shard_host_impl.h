/* What shard_host.c, shard_group.c, shard_write.c and shard_read.c share. */
#ifndef OMEN_NODE_SHARD_HOST_IMPL_H
#define OMEN_NODE_SHARD_HOST_IMPL_H

#include "common/feature.h"
#include "node/fetch.h"
#include "node/index_progress.h"
#include "node/recall_meter.h"
#include "node/shard_host.h"
#include "node/ship.h"

#define SHARD_FULL_AHEAD_NS 300000000ull /* so long before its deadline whoever waits for room is told */
#define SHARD_DIR_BYTES 3900u            /* of a path; what lies in it has short names */

/* First member of what call->service_data points to. */
struct call_state {
    struct shard_host *shard;
    bool is_read;
};

/* A write request from submit to release. Between submit and done it is in exactly one of: the queue, an entry being
 * built, a batch in flight. */
struct shard_write {
    struct call_state state;
    struct shard_call *call;
    uint64_t bytes;                    /* what it adds to an entry, about */
    struct write_need need;            /* what it needs of the stream, at most */
    bool deletes;                      /* and nothing else */
    struct filter_write *by_filter;    /* owned; NULL: by ids */
    const struct entry_intent *intent; /* that it records, borrowed until done; NULL = none */
    struct intent_id
            intent_id;        /* set before done: of the write by filter that it began, went on with or met */
    bool joined;              /* of a write by filter that was begun for an earlier attempt */
    struct shard_write *next; /* in the queue, in shard->index_waits, or waiting for a write by filter */
};

/* A BEGIN of a write by filter in flight; see shard_intent.c. */
struct intent_floor {
    struct intent_floor *next, **link; /* in shard->intent_floors */
    uint64_t applied;                  /* when it was submitted: what it begins is younger */
};

/* What is found next of a write by filter. */
struct filter_page {
    enum point_op_kind op; /* in, with the payload: done to each point */
    struct doc payload;
    const struct filter *filter;
    uint32_t limit; /* points */
    struct read_limit stop;
    uint64_t began; /* in: points written after this sequence are left alone; 0 = the view's, filled in */
    bool has_after; /* in: go on after that key; out: how far this page went */
    struct point_key after;
    struct point_op *ops; /* out [count], in the caller's arena */
    uint32_t count;
    bool more; /* out: others may follow */
};

/* One proposed entry and the requests in it. */
struct write_batch {
    struct shard_host *shard;
    struct write_batch *next, **link; /* in shard->flying; guarded by write_lock */
    uint64_t bytes;                   /* sum over writes, for admission */
    struct write_need need;           /* sum over writes */
    uint32_t count;
    uint64_t log_time_ms;           /* of the entry */
    struct apply_outcome *outcomes; /* [count] the proposal's arg for shard_store_apply */
    struct shard_write *writes[];   /* [count]; NULL: its deadline passed and it was answered */
};

/* A read from submit to release. */
struct shard_read {
    struct call_state state;
    struct search_task task;
    struct shard_call *call;
    struct arena arena;
    struct store_view view;
    bool view_held;
    uint32_t boost;                  /* of live recall, when the view was taken */
    uint64_t wanted_sequence;        /* waiting until this is applied; 0 = for the barrier */
    struct barrier_wait *barrier;    /* while one is outstanding; guarded by read_lock */
    struct search_explain explain;   /* of a search that is to be explained */
    uint64_t submitted_ns;           /* likewise */
    struct shard_read *next, **link; /* in shard->waiting, or in env->reads */
};

/* What a replica of a Raft group has beside. */
struct shard_group {
    const struct shard_peers *peers; /* may be NULL */
    uint32_t node_id;
    char dir[SHARD_DIR_BYTES];
    _Atomic uint32_t leader_node; /* the leader's, 0 = not known */
    _Atomic uint64_t lead_term;   /* that this replica leads in; 0 = it does not */
    uint64_t
            /* what earlier leaders committed is applied: entries of this term may be built; write_lock */
            prepared_term;
    uint64_t barrier_term;  /* a barrier of this term is on its way to that end; write_lock */
    _Atomic bool blank;     /* nothing of the group has come yet: there is nothing to read */
    _Atomic bool was_ready; /* at the last sweep: in touch, nothing much committed that is not applied here */
    _Atomic int admission;  /* enum shard_admission: what the other replicas allow; the sweep's */
    uint64_t behind_ns;     /* since when one is behind or full; 0 = none; the sweep's */
    struct err behind;      /* which, as the refusal of a write; guarded by trouble_lock */
    uint64_t give_way_ns;   /* of the last attempt to; the sweep's */
    _Atomic bool open;      /* shard->replica is set */
    _Atomic uint64_t applied, needed_from; /* of the store, for while there is none to ask */
    /* DAMAGE_SEEN: serves nothing. DAMAGE_KEPT: and never will again, that is on the disk too. */
    _Atomic int damage;
    pthread_mutex_t trouble_lock;
    enum omen_err trouble_code; /* guarded by trouble_lock, with the text */
    char trouble[ERR_MESSAGE_BYTES];

    struct fetch fetch;
    char next_dir[SHARD_DIR_BYTES + 64]; /* that a fetch fills; the fetch's */
    pthread_mutex_t base_lock;           /* guards the members below */
    uint32_t generation;                 /* of the store in use */
    struct shard_store *next;            /* fetched, verified, not yet gone over to */
    struct old_store *old;               /* to be closed and removed */
    struct fetch_task bury;
    uint32_t leases;
};

/* A generation that was left; its directory goes once nobody reads it. */
struct old_store {
    struct old_store *next;
    struct shard_store *store;
    char dir[SHARD_DIR_BYTES + 64];
};
enum shard_admission { ADMIT_ALL, ADMIT_LATER, ADMIT_DELETES }; /* from the widest to the narrowest */
enum shard_damage { DAMAGE_NONE, DAMAGE_SEEN, DAMAGE_FOUND, DAMAGE_KEPT };

struct shard_host {
    struct shard_env *env;
    uint64_t shard_id, replica_id, collection_id;
    struct collection_schema schema;
    _Atomic float recall_target; /* with the options, as the newest map has them */
    pthread_mutex_t options_lock;
    struct collection_options options; /* guarded by options_lock */
    uint64_t index_checkpoint_ns;      /* none before, for the index's sake; the index thread's */
    bool bulk_loading;                 /* at the last step; the index thread's */
    char collection_name[OMEN_NAME_BYTES_MAX + 1];
    struct recall_meter recall;
    struct index_progress progress; /* of the index thread */
    /* Used between shard_host_store_hold and _unhold; NULL while there is none: between two generations of
     * it, or for ever when it could not be opened. */
    struct shard_store *_Atomic store;
    _Atomic uint32_t store_users;
    struct replica *replica;   /* NULL: damage kept it from being opened */
    struct shard_group *group; /* NULL: not of a Raft group */

    pthread_mutex_t call_lock;
    pthread_cond_t calls_idle; /* calls == 0 */
    uint64_t calls;            /* submitted and not yet released, and holds; guarded by call_lock */
    enum omen_err refuse;      /* not OK: retired; guarded by call_lock */
    _Atomic bool stopping;     /* searches give up */
    _Atomic bool aging;        /* an entry for points that expired is on its way */

    pthread_mutex_t write_lock; /* guards the members down to index_waits */
    struct shard_write *queue_head, **queue_tail;
    uint32_t queued;
    bool building;      /* one thread is making entries; others leave their requests to it */
    uint32_t proposals; /* in flight */
    uint64_t proposal_bytes;
    struct write_batch *flying;      /* newest first */
    enum omen_err room_rc;           /* not OK: no room could be made; what does not fit is refused */
    struct err room_err;             /* why */
    struct write_need room_need;     /* what there was no room for */
    uint64_t ahead_failed_ns;        /* when there was none for the time ahead; not asked for again at once */
    _Atomic bool ahead_full;         /* because the disk is full; the keeper tries again and again */
    struct room_ticket room_ticket;  /* the keeper's */
    _Atomic uint64_t inflight_bytes; /* queued and in flight */
    struct entry_builder *builder;   /* of the thread that set `building` */
    float *row;           /* [sum of dims] of the same: a point's vectors on their way into the entry */
    uint64_t log_time_ms; /* of the last entry; monotone */
    struct shard_write *index_waits;   /* applied, to be answered when they are indexed */
    _Atomic uint32_t index_wait_count; /* of them: looked at without the lock */
    _Atomic uint64_t indexed;          /* sequence that the index was last seen to have passed */

    pthread_mutex_t intent_lock; /* guards the members below; see shard_intent.c */
    struct intent_run *intent_runs;
    struct intent_floor *intent_floors;

    pthread_mutex_t read_lock; /* guards the members below */
    struct shard_read *waiting;
    uint32_t waiting_count;
    _Atomic uint32_t token_waits; /* waiting for a sequence: apply looks at it without the lock */
};

/* The store, which stays until shard_host_store_unhold; NULL: there is none now. Not for long and not nested. */
static inline struct shard_store *shard_host_store_hold(struct shard_host *shard)
{
    atomic_fetch_add(&shard->store_users, 1);
    struct shard_store *store = atomic_load(&shard->store);
    if (store == NULL) atomic_fetch_sub(&shard->store_users, 1);
    return store;
}
static inline void shard_host_store_unhold(struct shard_host *shard)
{
    atomic_fetch_sub(&shard->store_users, 1);
}

/* shard_host.c: what is applied of the shard, also while there is no store. */
uint64_t shard_host_applied(struct shard_host *shard);
/* index.tail_rows_max is reached here. */
bool shard_host_tail_is_full(struct shard_host *shard);
extern const struct replica_fsm shard_host_fsm; /* without its self */
OMEN_CHECKED enum omen_err shard_host_store_open(struct shard_host *shard, const char *dir,
        uint64_t base_sequence, struct shard_store **store_out, struct err *err);

/* shard_group.c */
OMEN_CHECKED enum omen_err shard_group_open(struct shard_host *shard,
        const struct shard_host_options *options, struct err *err);
void shard_group_free(struct shard_host *shard);
enum shard_lead { LEAD_NOT, LEAD_PREPARING, LEAD_READY };
/* May entries be proposed? Needs write_lock. */
enum shard_lead shard_group_lead(const struct shard_host *shard);
/* May an entry of this shard be proposed in a form that the feature brought? Any thread, cheap; once true it stays. */
bool shard_host_may(const struct shard_host *shard, enum feature feature);
/* Leads, but may not propose yet: see to it. Not under write_lock. */
void shard_group_prepare(struct shard_host *shard);
/* Sets the refusal in `call` and returns false, or this replica may answer it. */
bool shard_group_may_read(struct shard_host *shard, struct shard_call *call);
/* It has heard from no leader for two election times. */
bool shard_group_is_silent(const struct shard_host *shard);
void shard_group_not_leader(const struct shard_host *shard, struct shard_call *call); /* sets the refusal */
/* Something of this replica's own data is not what it was. Any thread; `found`: no entry can be the cause. */
void shard_group_damaged(struct shard_host *shard, const struct err *why, bool found);
uint64_t shard_group_silence_max_ms(const struct shard_host *shard); /* two election times */
void shard_group_sweep(struct shard_host *shard);
void shard_group_trouble(struct shard_host *shard, const struct err *why); /* NULL: none any more */

/* shard_admission.c */
/* Sets the refusal in `call` and returns false when another replica has no room for a write. Leader. */
bool shard_admits(struct shard_host *shard, struct shard_call *call, bool only_deletes);
/* Of the sweep: what the replicas say now; and hands leadership over for want of room. */
void shard_admission_look(struct shard_host *shard);
void shard_admission_give_way(struct shard_host *shard, const struct shard_host_status *s);

/* shard_base.c: generations of the store, checkpoints from and for other replicas */
OMEN_CHECKED enum omen_err shard_base_open(struct shard_host *shard, uint64_t base_sequence, struct err *err);
void shard_base_fetch(void *self, uint64_t sequence, uint64_t node_id);          /* bases.fetch */
enum omen_err shard_base_switch(void *self, uint64_t sequence, struct err *err); /* bases.switch_base */
void shard_base_pass_over(void *self);                                           /* bases.pass_over */
void shard_base_serve(struct shard_host *shard); /* others may copy from here, and this one may fetch */
void shard_base_stop(struct shard_host *shard);  /* neither any more; the replica is still open */
void shard_base_close(struct shard_host *shard); /* the replica is closed, the store's views are gone */
bool shard_group_is_damaged(const struct shard_host *shard);

/* shard_host.c: takes a reference for `call`, or answers it with the reason why not. */
bool shard_call_begin(struct shard_host *shard, struct shard_call *call, struct call_state *state);
void shard_call_end(struct shard_host *shard);
/* Set the error's code and sentence and call done. */
void shard_call_fail(struct shard_call *call, enum omen_err code, const char *fmt, ...) OMEN_PRINTF(3, 4);
bool shard_call_late(const struct shard_host *shard, const struct shard_call *call);

/* shard_write.c */
void shard_write_submit(struct shard_host *shard, struct shard_call *call);
/* What apply refused, or would refuse at this log time, as a sentence in the call's err. */
void shard_write_explain(const struct shard_host *shard, uint64_t now_ms, enum omen_err code,
        struct shard_call *call);
void shard_write_release(struct shard_write *write);
void shard_write_sweep(struct shard_host *shard);
void shard_write_pump(struct shard_host *shard);
/* Apply worker, after an entry that another replica's leader let in: room for the next ones is made in time. */
void shard_write_applied(struct shard_host *shard);
bool shard_write_make_room(struct shard_host *shard); /* the keeper's thread; see room_keeper_start */
bool shard_write_is_full(struct shard_host *shard);   /* writes are refused for want of room */

/* The same of a request that begins or goes on with a write by filter; `intent` is borrowed until done. */
void shard_write_submit_intent(struct shard_host *shard, struct shard_call *call,
        const struct entry_intent *intent);
/* Of a call that is done: which write by filter it began, went on with, or met under its op id; sequence 0 = none. */
struct intent_id shard_write_intent(const struct shard_call *call);

/* shard_filter_write.c */
void shard_filter_write_start(struct shard_host *shard, struct shard_write *write);
void shard_filter_write_free(struct filter_write *f); /* NULL is fine; the call is done */

/* shard_filter_page.c */
uint32_t filter_page_limit(struct doc payload); /* points of a page, each with this payload */
/* OMEN_EDEADLINE: it was stopped. OMEN_EBUSY, OMEN_ENOMEM, OMEN_EUNAVAILABLE, OMEN_ECORRUPT. */
OMEN_CHECKED enum omen_err filter_page_take(struct shard_host *shard, struct filter_page *page,
        struct arena *arena, struct err *err);

/* shard_intent.c */
/* The write waits until the one by filter has ended, and is answered then; a `floor` of its BEGIN ends here. False: that one
 * is not open any more. */
bool shard_intent_wait(struct shard_host *shard, struct shard_write *write, struct intent_id id,
        struct intent_floor *floor);
/* Answer with an outcome, or let it wait for the index. */
void shard_intent_tell(struct shard_host *shard, struct shard_write *write,
        const struct apply_outcome *outcome);
void intent_floor_begin(struct shard_host *shard, struct intent_floor *floor);
void intent_floor_end(struct shard_host *shard, struct intent_floor *floor);
bool shard_intents_full(struct shard_host *shard); /* one more would be refused */
void shard_intent_sweep(struct shard_host *shard);
enum omen_err shard_intent_why(struct shard_host *shard,
        struct intent_id id); /* it is paused; OK = it is not */

/* shard_age.c */
void shard_age_sweep(struct shard_host *shard);

/* shard_wait.c */
/* The write is applied, its outcome set: keep it until it is indexed, if it wants that and it is not. False: to be
 * answered now, maybe with an error. */
bool shard_wait_park(struct shard_host *shard, struct shard_write *write);
void shard_wait_passed(struct shard_host *shard, uint64_t sequence); /* index thread, after a step */
void shard_wait_sweep(struct shard_host *shard);

/* shard_read.c */
void shard_read_submit(struct shard_host *shard, struct shard_call *call);
void shard_read_release(struct shard_read *read);
void shard_read_sweep(struct shard_host *shard);
void shard_read_applied(struct shard_host *shard, uint64_t sequence); /* apply worker, after each entry */
void shard_read_free_kept(struct shard_env *env);

/* shard_explain.c: before the search of a call and after it, with the monotonic time of its begin and end. What is
 * told goes to call->out.search.explain, in the read's arena. */
void shard_explain_begin(struct shard_read *read);
void shard_explain_end(struct shard_read *read, uint64_t began_ns, uint64_t ended_ns);

/* shard_detail.c: what is told of the shard beside its numbers, as a doc in the read's arena; absent when there is no
 * memory. */
struct doc shard_detail(struct shard_read *read);

/* shard_recall.c: searches [count] of the call were answered; some are kept to be answered exactly too. */
void shard_recall_keep(struct shard_read *read, const struct search_params *params);

#endif

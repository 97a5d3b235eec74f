/* Live recall of one shard's replica: which searches are kept to be answered exactly too, what comparing them told, and
 * how much more effort searches take for it.
 *
 *   a search --recall_meter_slot--> kept in a reservoir, uniform over those since the last batch
 *   a batch:  recall_meter_take --exact answers, recall_sample_compare--> counts --recall_meter_told--> effort, renewal
 *
 *   STEADY --all of the interval below the target--> RAISED: searches take more effort, step by step, until they get what
 *   was promised; from the second step on the segments are built anew --all of the interval above it--> a step back, once
 *   the segments are new or some time has passed; a step back that was wrong doubles that time
 *
 * What was measured counts only for the effort it was measured with, so every step begins to count anew.
 *
 * Both answers need not be of one view. Points that live in both views are compared: an exact hit that was written after
 * the search's sequence is left out, and a hit of the search that the exact answer lacks although it is near enough has
 * died since, and leaves room for one fewer (recall_sample_compare).
 *
 * Threads: slot and keep from any; take, told from one; the rest from any. Randomness: a hash of the seed and the number
 * of the search. No clock: time comes as an argument. */
#ifndef OMEN_NODE_RECALL_METER_H
#define OMEN_NODE_RECALL_METER_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/query/point.h"
#include "common/recall.h"

#define RECALL_SAMPLES_MAX 64u /* kept at a time, and so queries that share a pass over the rows */
#define RECALL_K_MAX 256u      /* searches for more are not kept */
#define RECALL_BUCKETS 8u      /* the window: the last so many times RECALL_BUCKET_SEARCHES */
#define RECALL_BUCKET_SEARCHES 128u
#define RECALL_RAISE_SEARCHES 64u /* fewer say nothing */
#define RECALL_LOWER_SEARCHES 256u
/* Steps of effort: half the misses by calibration, half again; then wide walks, each twice as wide as the one before,
 * because calibration knows nothing of queries unlike the rows it held out; then every row. */
#define RECALL_BOOST_WIDE 3u
#define RECALL_BOOST_MAX 8u
#define RECALL_WIDE_FIRST 128u
#define RECALL_LOWER_NS 60000000000ull
#define RECALL_LOWER_NS_MAX 3600000000000ull
#define RECALL_RENEW_NS 600000000000ull
#define RECALL_RENEW_NS_MAX 86400000000000ull

struct recall_row {
    struct point_key key;
    uint64_t version;
    float distance;
};

/* A search that was answered. */
struct recall_sample {
    struct search_params params; /* query and filter_doc are ours, filter is not there */
    uint64_t sequence, now_ms;   /* of its view */
    uint32_t boost;              /* it was answered with */
    struct recall_row *rows;     /* [count] nearest first */
    uint32_t count;
};
void recall_sample_free(struct recall_sample *sample); /* NULL is fine */

/* Of the exact answer's rows [count], nearest first, at a later view: how many the search should have found, and how many
 * it did. A row counts as found when it is no farther than the last one sought, times 1 + 1e-5: ties are as good. */
void recall_sample_compare(const struct recall_sample *sample, const struct recall_row *exact, uint32_t count,
        uint32_t *found_out, uint32_t *sought_out);

struct recall_meter {
    uint64_t seed;
    _Atomic uint32_t seen;  /* searches since the last batch */
    _Atomic uint32_t boost; /* steps of effort above the target */
    pthread_mutex_t lock;   /* guards the members below */
    struct recall_sample *samples[RECALL_SAMPLES_MAX];
    struct recall_counts buckets[RECALL_BUCKETS];
    uint32_t bucket;
    uint64_t compared;                /* searches, ever */
    uint64_t segments;                /* newest, when last told */
    uint64_t lower_ns, lower_wait_ns; /* not before; how long after a raise */
    uint64_t renew_ns, renew_wait_ns; /* likewise */
    bool lowered;                     /* the last step was one back */
};
void recall_meter_init(struct recall_meter *meter, uint64_t seed);
void recall_meter_fini(struct recall_meter *meter);

/* Count a search; where to keep it, RECALL_SAMPLES_MAX = not. Cost: one atomic addition. */
uint32_t recall_meter_slot(struct recall_meter *meter);
/* Keep an answered search; copies what it needs. Without memory it is not kept. */
void recall_meter_keep(struct recall_meter *meter, uint32_t slot, const struct search_params *params,
        uint32_t dim, const struct hit *hits, uint32_t count, uint64_t sequence, uint64_t now_ms,
        uint32_t boost);
/* How many are kept. */
uint32_t recall_meter_kept(struct recall_meter *meter);
/* All that are kept [RECALL_SAMPLES_MAX], to be freed by the caller; begins to keep anew. */
uint32_t recall_meter_take(struct recall_meter *meter, struct recall_sample **samples_out);

/* What to ask of graphs: a recall, and from RECALL_BOOST_WIDE on a width (else 0). At RECALL_BOOST_MAX all is exact. */
float recall_meter_ask(float target, uint32_t boost, uint32_t *effort_out);

enum recall_step { RECALL_STAY, RECALL_RAISE, RECALL_LOWER };
struct recall_verdict {
    enum recall_step step;
    bool renew; /* build the segments anew */
    uint32_t boost;
    struct recall_estimate estimate; /* what it was decided by */
};
/* A batch was compared. `segments`: number of the newest one. */
struct recall_verdict recall_meter_told(struct recall_meter *meter, const struct recall_counts *batch,
        float target, uint64_t segments, uint64_t now_ns);

/* Counts of the window and of all time. */
void recall_meter_read(struct recall_meter *meter, struct recall_counts *window_out, uint64_t *compared_out);

#endif

/* The room's third door: background indexing of a store. A search walks the graphs of sealed segments and scans what
 * is not in one yet; which rows are in segments is decided here, a step at a time, by whoever has time.
 *
 * Segments cover the blocks [0, covered) of a field without a gap, so the tail is the blocks from there on. A step
 * takes the tail when it is large enough, together with the last segments that are no larger than what has come
 * after them: every row is built into a graph about log2(rows / rows_min) times at most, once or twice when data
 * come in bulk. A segment of which a fifth is dead is built anew.
 *
 * What is taken together is routed (segment/route.h) to one segment or several, a batch: it is merged as a whole, but its
 * segments are built anew one by one, and a group whose segment has become small goes back to those that share one.
 *
 * Nothing here is part of the replicated state: what is lost is built again. */
#ifndef OMEN_STORAGE_SHARD_INDEX_H
#define OMEN_STORAGE_SHARD_INDEX_H

#include "storage/index/index.h"
#include "storage/quant/quant.h"
#include "storage/segment/route.h"
#include "storage/shard_store.h"

/* Defaults are index_policy_default's. */
struct index_policy {
    uint32_t rows_min; /* a tail of fewer rows is not worth a graph; default 10,000 */
    uint32_t
            tail_rows_min; /* of rows in no segment, fewer are scanned and more have a sketch; default 4,096 */
    float recall_target;   /* of the collection; default 0.95 */
    /* What graphs in memory of their own, sketches and a build may still take. Less than a segment needs: it is compact,
     * then also mapped, and no larger than can be built. Default UINT64_MAX. */
    uint64_t memory_left;
    uint64_t memory_whole; /* what memory_left would be if there were no graphs; default UINT64_MAX */
    /* The files that searches read do not fit in memory: none of the steps reads more of them than it must. */
    bool memory_short;
    bool memory_over; /* more is taken than there is: a step maps a graph that was in memory of its own */
    bool pin;         /* graphs in memory of their own rather than mapped */
    bool eager;       /* a tail of rows_min is taken at once, however large the segments are */
    uint64_t
            tail_rows_max; /* half of it, and the tail is taken however few or young its rows are; 0 = never */
    uint64_t ripe_ms;      /* only what was written (log time) up to then; default UINT64_MAX = all */
    uint64_t
            bucket_ms; /* segments end with such spans of log time, those of few rows together; 0 = anywhere */
    enum quant_profile quantization;
    const char *payload_first; /* payload paths to index before others: payload_source.first; default NULL */
    struct route_rules
            rules; /* which rows go together; default none, 20,000 rows for a segment of one's own */
};
void index_policy_default(struct index_policy *policy);

/* Do the next piece of work: open the segments that are there, or build one. *worked_out false: there is none to do.
 * One thread at a time. Errors: OMEN_ECANCELED (control->stop), OMEN_EFULL and OMEN_ENOMEM (try again later),
 * OMEN_EIO; searches go on as before. `control` as storage/index has it. Blocks for as long as a graph takes. */
OMEN_CHECKED enum omen_err shard_index_step(struct shard_store *store, const struct index_policy *policy,
        const struct index_control *control, bool *worked_out, struct err *err);

/* Have the steps to come build every segment that is there now anew, one each, and so calibrate it on the rows that live
 * by then. Any thread. Not kept over a reopening. */
void shard_index_renew(struct shard_store *store);

/* Up to which sequence nothing is left to do: rows are in segments, or they are so few that the policy wants none of them.
 * Not beside shard_index_step. Cost: looks at the blocks that are in no segment. */
uint64_t shard_index_settled(struct shard_store *store, const struct index_policy *policy);

/* After a checkpoint the next step would have a tail to take. One that is made before a tail is taken, although some of it
 * is durable already, makes the job larger, so that rows are built less often. Not beside shard_index_step. Cost: as
 * shard_index_settled. */
bool shard_index_wants_checkpoint(struct shard_store *store, const struct index_policy *policy);

/* Take some of the newest rows into a sketch (shard_tail.c), where the tail is large: what a search then goes by instead
 * of a scan. *worked_out false: there was nothing to add. One thread at a time, beside shard_index_step. Of `policy`
 * the recall target and the memory count. OMEN_ECANCELED, OMEN_ENOMEM: searches scan what is in no sketch. */
OMEN_CHECKED enum omen_err shard_index_tail(struct shard_store *store, const struct index_policy *policy,
        const struct index_control *control, bool *worked_out, struct err *err);

/* Where the memory is. Cheap; any thread. */
struct shard_index_memory {
    uint64_t pinned, mapped; /* graphs; the system takes back what is mapped */
    uint64_t sketches;
    uint64_t rows; /* the table of blocks, when rows died, segments' slots and payload indexes */
    uint64_t
            files; /* the stream and segments' rows: what searches read of them the system keeps as it likes */
};
void shard_index_memory(struct shard_store *store, struct shard_index_memory *memory_out);

/* Rows that are in no segment, of the field that has most of them, dead ones included. Cheap; any thread. */
uint64_t shard_index_tail_rows(struct shard_store *store);

struct shard_index_stats {
    uint64_t segments, rows; /* rows: in segments, dead ones included, of all fields */
    uint64_t own_segments;   /* of these, those of one group of rows */
    uint64_t tail_rows;      /* not in one, dead ones included */
    uint64_t indexed;        /* every row of up to this sequence is in a segment */
    uint64_t memory_bytes, disk_bytes;
    uint64_t newest;     /* number of the newest segment */
    uint64_t renewing;   /* segments that shard_index_renew asked for and that are not built yet */
    uint64_t built_rows; /* since open; over `rows` it says how often a row was built */
};
void shard_index_stats(struct shard_store *store, struct shard_index_stats *stats_out);

/* A payload path that segments have an index of. */
struct shard_payload_field {
    const char *path;
    uint32_t segments;               /* that have one */
    uint64_t rows;                   /* in these */
    uint64_t values, numbers, times; /* distinct ones in each, added up; rows with a number, a date-time */
    uint64_t words, places;          /* distinct ones in each, added up; places */
};
/* All of them, by path; [*count_out] in `arena`. Any thread. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err shard_index_payload(struct shard_store *store, struct arena *arena,
        struct shard_payload_field **fields_out, uint32_t *count_out);

#endif

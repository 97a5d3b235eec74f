/* Routing: which of the rows that are sealed together go into which segment, and in which order they lie there.
 *
 *   rows of a range of blocks --by tenant, time bucket, type--> groups in order of their keys
 *      a group of `own_rows` rows and more: a segment of its own          the others: one segment, in order of keys
 *
 * Rules are asked in their order. A row that a rule says nothing of (no value at its path, or one that is no key) goes
 * by the next one; what none says anything of is the rest. Inside a group of its own the next rule groups on: a tenant
 * with many rows in each of several time buckets has a segment for each. What is left of a group when its larger parts
 * have gone stays a segment while it is large enough, else it joins the others.
 *
 * A key is a 64-bit hash (times: the bucket's number): rows with equal hashes lie together, whoever they are of. Grouping
 * changes how fast a search is and nothing else, so nothing here is ever wrong, only worse.
 * Threads: the indexer. Determinism: a function of rows and rules; local, in no digest. */
#ifndef OMEN_STORAGE_SEGMENT_ROUTE_H
#define OMEN_STORAGE_SEGMENT_ROUTE_H

#include "storage/index/index.h"
#include "storage/stream/blocks.h"

#define ROUTE_PARTS_MAX 257u /* segments of one range of blocks: 256 groups, and the rest */

/* Paths are of payloads, NULL or "": no such rule. */
struct route_rules {
    bool by_shard_key;       /* the tenant is the shard key, `tenant` is not asked */
    const char *tenant;      /* a string, integer or bool */
    const char *time;        /* an RFC 3339 string, or an integer of Unix milliseconds */
    uint64_t time_bucket_ms; /* width of a bucket, > 0 with `time` */
    const char *type;        /* a string, integer or bool */
    uint32_t own_rows;       /* a group of so many rows has a segment of its own; 0 = none has */
};

struct route_part {
    uint32_t first, count; /* rows of the plan */
    bool own;              /* a group's */
};

struct route_plan {
    struct row_ref *rows; /* [count] owned, part by part */
    uint32_t count;
    struct route_part *parts; /* [part_count] owned, the one with most rows first */
    uint32_t part_count;      /* 0 = no rows */
};

/* The field's rows in blocks [first, end) that a view at `as_of` sees, in order of blocks. A row of these blocks that such
 * a view or a later one sees is among them. The plan has one part. OMEN_ETOOBIG, OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err route_collect(const struct blocks *blocks, uint32_t field, uint32_t first_block,
        uint32_t end_block, uint64_t as_of, struct route_plan *plan_out, struct err *err);
/* Put the plan's rows in order by the rules, which are valid (as options are checked), and cut it into parts. Without a
 * rule nothing changes. OMEN_ENOMEM: the plan is as it was. Cost: a look at every payload, a sort. */
OMEN_CHECKED enum omen_err route_group(const struct blocks *blocks, const struct route_rules *rules,
        struct route_plan *plan, struct err *err);
void route_plan_fini(struct route_plan *plan);

#endif

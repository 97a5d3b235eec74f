/* What a search did, part by part: every segment of the field, and the rows that are in none. Filled by
 * shard_store_search when the view carries one (store_view.explain); whoever passes it on adds shards, names and times:
 * storage reads no clock.
 *
 * Threads: the searching one. Memory: the arena of the search; dies with it. Cost: an allocation per part. */
#ifndef OMEN_STORAGE_SEARCH_EXPLAIN_H
#define OMEN_STORAGE_SEARCH_EXPLAIN_H

#include "common/mem.h"

#define EXPLAIN_UNKNOWN UINT64_MAX
#define EXPLAIN_TAIL 0u                 /* as a segment's number: the rows that are in no segment */
#define EXPLAIN_ALL_SEARCHES UINT32_MAX /* one pass over the data answered all searches on the field */

enum explain_plan {
    EXPLAIN_PRUNED, /* nothing there can match: not looked at */
    EXPLAIN_WALK,   /* the graph; under a filter through rows that fail as well */
    EXPLAIN_GATHER, /* every row that passes, in full */
    EXPLAIN_SCAN,   /* short codes of the rows that pass, the nearest in full */
    EXPLAIN_ROWS,   /* every row: filter first, distance where it passes */
    EXPLAIN_PLAN_COUNT
};

/* Why nothing there can match. */
enum explain_prune {
    EXPLAIN_NOT_PRUNED,
    EXPLAIN_PRUNED_FIELD,  /* no row has a value at the path */
    EXPLAIN_PRUNED_VALUES, /* no row has one of the values */
    EXPLAIN_PRUNED_RANGE,  /* all values lie outside, or between the bounds there is none */
    EXPLAIN_PRUNED_FILTER, /* conditions each have rows, together they have none */
    EXPLAIN_PRUNED_ALL_DEAD,
    EXPLAIN_PRUNE_COUNT
};

/* How the filter was answered. */
enum explain_filter {
    EXPLAIN_FILTER_NONE,    /* there was none */
    EXPLAIN_FILTER_INDEX,   /* the payload index told all rows that pass */
    EXPLAIN_FILTER_PARTLY,  /* it told all that may; the rest was asked of the payloads */
    EXPLAIN_FILTER_PAYLOAD, /* every payload was looked at, or those of the rows that were found */
    EXPLAIN_FILTER_COUNT
};

const char *explain_plan_name(enum explain_plan plan); /* "pruned", "walk", "gather", "scan", "rows" */
const char *explain_prune_name(
        enum explain_prune prune); /* "", "field", "values", "range", "filter", "all_dead" */
const char *explain_filter_name(enum explain_filter filter); /* "none", "index", "partly", "payload" */

struct explain_part {
    uint64_t segment;                /* its number, or EXPLAIN_TAIL */
    uint32_t search;                 /* position in the request, or EXPLAIN_ALL_SEARCHES */
    uint32_t field;                  /* schema field */
    uint32_t first_block, end_block; /* of the stream */
    uint64_t rows;                   /* in it, dead ones included */
    enum explain_plan plan;          /* the one that gave the answer */
    enum explain_plan given_up;      /* one tried before and found dearer; EXPLAIN_PRUNED = none */
    enum explain_prune pruned_by;
    const char *pruned_path; /* payload path of the condition that pruned it; NULL = none alone did */
    enum explain_filter filter;
    uint64_t estimated;        /* rows that pass, as told before anything was computed; EXPLAIN_UNKNOWN */
    uint64_t real;             /* as the bitmap has them; EXPLAIN_UNKNOWN */
    uint64_t rows_scanned;     /* read whole, or compared by short codes under a bitmap */
    uint64_t distances;        /* in full or by full codes */
    uint64_t estimates;        /* from short codes */
    uint64_t hops;             /* nodes of the graph */
    uint64_t filter_evaluated; /* payloads asked */
    uint64_t rounds;           /* times the index was asked: again when too many of what it found are dead */
    uint64_t found;            /* rows that entered the k nearest, at that time */
};

struct search_explain {
    struct explain_part *parts; /* [count] in the search's arena, in the order of work */
    uint32_t count, cap;
};

/* A zeroed part at the end; NULL: no memory. */
struct explain_part *search_explain_add(struct search_explain *explain, struct arena *arena);

#endif

/* What a search did, part by part: every segment of the field, and the rows that are in none. Filled by
 * shard_store_search when the view carries one (store_view.explain); whoever passes it on adds shards and names. Times
 * are read from the caller's clock, if it gives one: storage has none.
 *
 * Threads: the searching one. Memory: the arena of the search; dies with it. Cost: an allocation per part. */
#ifndef OMEN_STORAGE_SEARCH_EXPLAIN_H
#define OMEN_STORAGE_SEARCH_EXPLAIN_H

#include <stdbool.h>

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
    EXPLAIN_PRUNED_WORDS,  /* no row has a text with one of the words */
    EXPLAIN_PRUNED_AREA,   /* all places lie outside */
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

/* What of the payload index told of the filter's conditions: bits. */
enum explain_structure {
    EXPLAIN_BY_VALUES = 1,    /* lists of rows by value */
    EXPLAIN_BY_NUMBERS = 2,   /* numbers in order */
    EXPLAIN_BY_TIMES = 4,     /* date-times in order */
    EXPLAIN_BY_WORDS = 8,     /* lists of rows by word */
    EXPLAIN_BY_PLACES = 16,   /* places in boxes */
    EXPLAIN_BY_PRESENCE = 32, /* rows that have values, none, null */
    EXPLAIN_BY_IDS = 64,
};
#define EXPLAIN_STRUCTURES 7u
#define EXPLAIN_STRUCTURES_BYTES 64u

/* Why that plan gave the answer. */
enum explain_why {
    EXPLAIN_WHY_PRUNED,    /* pruned_by says it */
    EXPLAIN_WHY_NO_FILTER, /* a walk is what graphs are for */
    EXPLAIN_WHY_CHEAPEST,  /* of all plans, for so many rows that pass */
    EXPLAIN_WHY_MOST_PASS, /* of the rows that may pass most do: all are walked through, what is found is asked */
    EXPLAIN_WHY_GAVE_UP,    /* the one tried before turned out dearer, or found too few */
    EXPLAIN_WHY_EXACT,      /* every row was asked for */
    EXPLAIN_WHY_OLD_VIEW,   /* the segment is younger than what is read: it may lack rows */
    EXPLAIN_WHY_NOT_SEALED, /* in no segment yet, too few or too new for a sketch */
    EXPLAIN_WHY_SKETCH,     /* in no segment yet, but a sketch knows them */
    EXPLAIN_WHY_COUNT
};

const char *explain_plan_name(enum explain_plan plan); /* "pruned", "walk", "gather", "scan", "rows" */
const char *explain_prune_name(
        enum explain_prune prune); /* "", "field", "values", "range", "words", "area", "filter", "all_dead" */
const char *explain_filter_name(enum explain_filter filter); /* "none", "index", "partly", "payload" */
/* "values, words"; "" without any. */
void explain_structures_text(uint32_t structures, char out[EXPLAIN_STRUCTURES_BYTES]);
/* "pruned", "no_filter", "cheapest", "most_pass", "gave_up", "exact", "older_view", "not_sealed", "sketch" */
const char *explain_why_name(enum explain_why why);

/* The index of a segment. Names are static; NULL: there is none. */
struct explain_index {
    const char *kind, *layout; /* index_kind_name, index_layout_name */
    const char *quant;         /* quant_kind_name of the codes that a walk compares */
    uint32_t bits;             /* of a component in these */
    bool pinned;               /* in memory of its own; else mapped */
};

struct explain_part {
    uint64_t segment;                /* its number, or EXPLAIN_TAIL */
    uint32_t search;                 /* position in the request, or EXPLAIN_ALL_SEARCHES */
    uint32_t field;                  /* schema field */
    uint32_t first_block, end_block; /* of the stream */
    uint64_t rows;                   /* in it, dead ones included */
    enum explain_plan plan;          /* the one that gave the answer */
    enum explain_plan given_up;      /* one tried before and found dearer; EXPLAIN_PRUNED = none */
    enum explain_why why;
    struct explain_index index;
    float recall_target; /* that the index was asked for; 0 = none was asked */
    uint64_t effort;     /* width of its candidate pool, summed over rounds */
    enum explain_prune pruned_by;
    const char *pruned_path; /* payload path of the condition that pruned it; NULL = none alone did */
    enum explain_filter filter;
    uint32_t filter_by;        /* of enum explain_structure: what was looked into for it */
    uint64_t estimated;        /* rows that pass, as told before anything was computed; EXPLAIN_UNKNOWN */
    uint64_t real;             /* as the bitmap has them; EXPLAIN_UNKNOWN */
    uint64_t rows_scanned;     /* read whole, or compared by short codes under a bitmap */
    uint64_t distances;        /* in full or by full codes */
    uint64_t rescored;         /* of those, rows read in full for their final distance */
    uint64_t bytes_read;       /* of full vectors */
    uint64_t estimates;        /* from short codes */
    uint64_t hops;             /* nodes of the graph */
    uint64_t filter_evaluated; /* payloads asked */
    uint64_t rounds;           /* times the index was asked: again when too many of what it found are dead */
    uint64_t found;            /* rows that entered the k nearest, at that time */
    uint64_t ns;               /* by the caller's clock; 0 without one */
};

struct search_explain {
    struct explain_part *parts; /* [count] in the search's arena, in the order of work */
    uint32_t count, cap;
    uint64_t (*now_ns)(void *arg); /* the caller's clock, monotonic; NULL = parts have no times */
    void *clock_arg;
};

/* A zeroed part at the end; NULL: no memory. */
struct explain_part *search_explain_add(struct search_explain *explain, struct arena *arena);

#endif

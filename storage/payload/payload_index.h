/* The payload index of a sealed segment: which of its rows pass a filter, told without looking at payloads, and whether
 * any can. One file beside the segment's, built from the payloads of its rows, never changed after.
 *
 *   payload_index_build --writes the file--> payload_index_open --mapped, checked in full--> payload_index_filter ...
 *
 * Every payload path whose values can be asked for is indexed (PAYLOAD_FIELDS_MAX of them, those that most rows have):
 * lists of rows by value (dense ones also as roaring bitmaps), numbers and date-times in order, lists of rows by word of
 * texts, places in boxes, and bits for rows that have values, none, several, null. Values and words are known by their
 * 128-bit hash alone: as with point keys, equal hashes count as equal.
 *
 * The answer is what filter_match says, row by row, where `exact`; else every row for which it says yes and some others,
 * and who wants to know asks it. Rows that were compacted away before it was built have no payload in it; who asks
 * looks at liveness anyway.
 * Threads: any number of readers, each with its own scratch. Determinism: local, rebuildable, in no digest. */
#ifndef OMEN_STORAGE_PAYLOAD_PAYLOAD_INDEX_H
#define OMEN_STORAGE_PAYLOAD_PAYLOAD_INDEX_H

#include "common/query/filter.h"
#include "common/vfs.h"
#include "storage/search_explain.h"

#define PAYLOAD_FIELDS_MAX 64u /* indexed paths of a segment, ids not counted */

/* Where rows come from; called for rows 0 .. count - 1 in order, several times over. */
struct payload_source {
    uint32_t count;
    /* False: the row is dead and gone. */
    bool (*row)(void *arg, uint32_t row, point_id *id_out, struct doc *payload_out);
    bool (*stop)(void *arg); /* NULL = never */
    void *arg;
    /* Paths that come before all others when not all can be indexed: one after the other, each with its NUL, an empty one
     * ends them; NULL = none. Brackets at their end count for nothing; ":text" and ":geo" (common/query/path_kind.h) are no
     * part of the path, and the words of a path with ":text" are listed however much they take. */
    const char *first;
};

/* Write the file, durable when it returns (its directory is the caller's to sync). Errors: OMEN_ECANCELED,
 * OMEN_ENOMEM, OMEN_EFULL, OMEN_EIO; what was written is the caller's to remove. Memory: one field at a time, about 40
 * bytes per value of it. Cost: a walk over all payloads per field. */
OMEN_CHECKED enum omen_err payload_index_build(const struct payload_source *source, struct vfs *vfs,
        const char *path, struct err *err);

struct payload_index;
/* Errors: OMEN_ECORRUPT and OMEN_EVERSION with the file's name, OMEN_ENOTFOUND, OMEN_EIO, OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err payload_index_open(struct vfs *vfs, const char *path, uint32_t rows,
        struct payload_index **index_out, struct err *err);
struct payload_index *payload_index_ref(struct payload_index *index); /* one more user; NULL is fine */
void payload_index_free(struct payload_index *index);                 /* one less; NULL is fine */

struct payload_index_stats {
    uint32_t fields;
    bool complete; /* every path that a row has is indexed */
    uint64_t memory_bytes, disk_bytes;
};
void payload_index_stats(const struct payload_index *index, struct payload_index_stats *stats_out);
/* Field i, 0 .. stats.fields - 1: its path, and how many distinct values, numbers, date-times, distinct words and places
 * it has. */
struct payload_field_info {
    const char *path; /* lives as long as the index */
    uint32_t values, numbers, times, words, places;
    bool has_words; /* match text is answered by them; false: its texts have none, or too many */
};
void payload_index_field(const struct payload_index *index, uint32_t i, struct payload_field_info *info_out);

/* What a filter comes to before any row is looked at. */
struct payload_estimate {
    double rows;               /* expected to pass; an upper bound only when it is 0 */
    enum explain_prune pruned; /* proof that none does */
    const char *path;          /* of the condition that proves it, in the filter; NULL = none alone does */
};
/* Cost: a binary search per value. */
void payload_index_estimate(const struct payload_index *index, const struct filter *filter,
        struct payload_estimate *estimate_out);

struct payload_scratch;
struct payload_scratch *payload_scratch_new(void);          /* NULL: no memory */
void payload_scratch_free(struct payload_scratch *scratch); /* NULL is fine */

struct payload_answer {
    uint64_t *rows; /* one bit a row, in the scratch until it is used again; the caller may clear bits */
    uint64_t count; /* of set bits */
    bool exact;     /* the rows that pass; else those and others */
    uint32_t by;    /* of enum explain_structure: what was looked into */
};
/* Errors: OMEN_ENOMEM. Cost: about rows / 64 word operations per condition. */
OMEN_CHECKED enum omen_err payload_index_filter(const struct payload_index *index,
        const struct filter *filter, struct payload_scratch *scratch, struct payload_answer *answer_out);
/* The rows that pass, when these are exactly a run [first, end) and that is known without a look at rows: as those of
 * one value are where rows were grouped by it. False: they are not, or it takes payload_index_filter to tell. */
struct payload_run {
    uint32_t first, end;
};
bool payload_index_run(const struct payload_index *index, const struct filter *filter,
        struct payload_run *run_out);
/* All rows, for who wants to clear bits of what does not pass. OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err payload_scratch_rows(struct payload_scratch *scratch, uint32_t rows,
        uint64_t **rows_out);

#endif

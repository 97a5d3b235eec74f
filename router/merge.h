/* Merging of what shards answered, and the scroll cursor. Pure functions over arrays. */
#ifndef OMEN_ROUTER_MERGE_H
#define OMEN_ROUTER_MERGE_H

#include "common/mem.h"
#include "common/query/point.h"

/* One shard's part of a result, sorted already. */
struct hit_run {
    const struct hit *hits;
    uint32_t count;
};
struct point_run {
    const struct point_view *points;
    uint32_t count;
};

/* Nearest first by hit_compare over all runs: skips `offset`, keeps at most `k`, leaves out the point `left_out` (may be
 * NULL) before counting. hits_out [*count_out] in `arena`. Cost: O((offset + k) log runs).
 * Errors: OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err merge_hits(const struct hit_run *runs, uint32_t run_count, uint32_t offset,
        uint32_t k, const struct point_key *left_out, struct arena *arena, struct hit **hits_out,
        uint32_t *count_out);

/* Ascending by point key over all runs, at most `limit`; *left_out: whether points remained. */
OMEN_CHECKED enum omen_err merge_points(const struct point_run *runs, uint32_t run_count, uint32_t limit,
        struct arena *arena, struct point_view *points_out, uint32_t *count_out, bool *remained_out);

/* Scroll cursor v1, 46 bytes written as 92 hex digits so that it travels as text:
 *   0 u8 version | 1 u64 collection id | 9 point key [33] | 42 u32 crc32c of 0..42 */
#define CURSOR_BYTES 46
#define CURSOR_TEXT_BYTES (2 * CURSOR_BYTES)
void cursor_encode(uint64_t collection_id, const struct point_key *last, char text_out[CURSOR_TEXT_BYTES]);
/* Untrusted text. OMEN_EINVAL with field "cursor": not ours, damaged, or of another collection. */
OMEN_CHECKED enum omen_err cursor_decode(struct bytes text, uint64_t collection_id,
        struct point_key *last_out, struct err *err);

#endif

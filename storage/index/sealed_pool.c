/* What a walk rarely does with its candidates, and the order of what it visited; see sealed_pool.h. Threads: no
 * state. */
#include "storage/index/sealed_pool.h"

#define SORT_FEW 12 /* keys that are put in order one by one */

static void keys_insert(uint64_t *keys, uint32_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        uint64_t key = keys[i];
        uint32_t at = i;
        for (; at > 0 && keys[at - 1] > key; at--) keys[at] = keys[at - 1];
        keys[at] = key;
    }
}

/* Those below `pivot` to the front, without a branch; how many. */
static uint32_t keys_part(uint64_t *keys, uint32_t count, uint64_t pivot)
{
    uint32_t low = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t key = keys[i];
        keys[i] = keys[low];
        keys[low] = key;
        low += key < pivot;
    }
    return low;
}

/* Quicksort of the parts that matter. */
void sealed_keys_least(uint64_t *keys, uint32_t count, uint32_t want)
{
    while (count > SORT_FEW) {
        uint64_t a = keys[0], b = keys[count / 2], c = keys[count - 1];
        uint64_t pivot = a < b ? (b < c ? b : a < c ? c : a) : (a < c ? a : b < c ? c : b);
        uint32_t low = keys_part(keys, count, pivot);
        if (low == 0) { /* equal keys: those of copies of one row */
            low = keys_part(keys, count, pivot + 1);
            if (low < want) sealed_keys_least(keys + low, count - low, want - low);
            return;
        }
        if (low < want) sealed_keys_least(keys + low, count - low, want - low);
        count = low;
    }
    keys_insert(keys, count);
}

/* ---- behind the front ---- */

static inline uint32_t lowest_bucket(const struct candidates *c)
{
    uint32_t word = 0;
    while (word < BUCKETS / 64 && c->filled[word] == 0) word++;
    return word < BUCKETS / 64 ? word * 64 + (uint32_t)__builtin_ctzll(c->filled[word]) : BUCKETS;
}

/* What is in a bucket, below `limit`, to keys_out; it is empty then. */
static uint32_t bucket_take(struct candidates *c, uint32_t bucket, uint64_t limit, uint64_t *keys_out)
{
    uint32_t count = 0;
    for (uint32_t place = c->heads[bucket]; place != BEHIND_NONE; place = c->next[place]) {
        keys_out[count] = c->behind[place];
        count += keys_out[count] < limit;
    }
    c->heads[bucket] = BEHIND_NONE;
    c->filled[bucket / 64] &= ~(1ull << bucket % 64);
    return count;
}

static void put_behind(struct candidates *c, const uint64_t *keys, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bucket = candidates_bucket(c->bucket_first, keys[i]), place = c->behind_used++;
        c->behind[place] = keys[i];
        c->next[place] = c->heads[bucket];
        c->heads[bucket] = place;
        c->filled[bucket / 64] |= 1ull << bucket % 64;
    }
}

void sealed_candidates_halve(struct candidates *c)
{
    uint32_t count = 0, bucket;
    while ((bucket = lowest_bucket(c)) < BUCKETS)
        count += bucket_take(c, bucket, UINT64_MAX, c->moving + count);
    if (count > c->behind_cap / 2) {
        sealed_keys_least(c->moving, count, c->behind_cap / 2);
        count = c->behind_cap / 2;
    }
    c->behind_used = 0;
    put_behind(c, c->moving, count);
}

void sealed_candidates_spill(struct candidates *c)
{
    uint32_t count = c->count - FRONT_SPILL;
    if (c->behind_used + count > c->behind_cap) sealed_candidates_halve(c);
    c->count = FRONT_SPILL;
    c->edge = c->front[FRONT_SPILL];
    put_behind(c, c->front + FRONT_SPILL, count);
}

/* Keys of a bucket that was taken, into its places again. */
static void bucket_return(struct candidates *c, uint32_t bucket, uint32_t head, const uint64_t *keys,
        uint32_t count)
{
    for (uint32_t i = 0, place = head; i < count; i++) {
        uint32_t next = c->next[place];
        c->behind[place] = keys[i];
        if (i + 1 == count) c->next[place] = BEHIND_NONE;
        place = next;
    }
    c->heads[bucket] = head;
    c->filled[bucket / 64] |= 1ull << bucket % 64;
}

/* Those of one bucket; of a large one the nearest. */
static void bucket_move(struct candidates *c, const struct code_kernel *kernel, uint32_t bucket,
        uint64_t limit)
{
    uint32_t head = c->heads[bucket], count = bucket_take(c, bucket, limit, c->moving);
    uint64_t *keys = c->moving;
    c->edge = bucket + 1 < BUCKETS ? (uint64_t)(c->bucket_first + (int64_t)bucket + 1) << BUCKET_SHIFT
                                   : UINT64_MAX;
    if (count > FRONT_ROOM) {
        sealed_keys_least(keys, count, FRONT_ROOM + 1);
        c->edge = keys[FRONT_ROOM];
        bucket_return(c, bucket, head, keys + FRONT_ROOM, count - FRONT_ROOM);
        count = FRONT_ROOM;
    }
    if (count > 0) candidates_merge(c, kernel, keys, count);
}

void sealed_candidates_move(struct candidates *c, const struct code_kernel *kernel, uint64_t limit)
{
    uint32_t bucket;
    while (c->count - c->cursor < FRONT_FEW && (bucket = lowest_bucket(c)) < BUCKETS)
        bucket_move(c, kernel, bucket, limit);
}

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

void sealed_candidates_halve(struct candidates *c)
{
    sealed_keys_least(c->behind, c->behind_count, c->behind_cap / 2);
    c->behind_count = c->behind_cap / 2;
}

/* The few nearest of a few. */
static void move_few(struct candidates *c)
{
    uint32_t count = c->behind_count, live = c->count - c->cursor, moved = count / FRONT_SHARE;
    if (moved < FRONT_MOVES) moved = count < FRONT_MOVES ? count : FRONT_MOVES;
    sealed_keys_least(c->behind, count, moved + 1);
    memmove(c->front, c->front + c->cursor, live * sizeof *c->front);
    memcpy(c->front + live, c->behind, moved * sizeof *c->front);
    c->count = live + moved;
    c->cursor = 0;
    c->behind_least = moved < count ? c->behind[moved] : UINT64_MAX;
    c->behind_count = count - moved;
    memmove(c->behind, c->behind + moved, c->behind_count * sizeof *c->behind);
}

#define SAMPLE 31
#define SAMPLE_PLACE 2 /* of 1,000 keys some 60 are below it */

static uint64_t threshold_about(const uint64_t *keys, uint32_t count)
{
    uint64_t sample[SAMPLE];
    for (uint32_t i = 0; i < SAMPLE; i++) sample[i] = keys[(uint64_t)i * count / SAMPLE];
    keys_insert(sample, SAMPLE);
    return sample[SAMPLE_PLACE - 1];
}

/* The nearest of many, more or less a sixteenth of them, in one pass. */
static void move_many(struct candidates *c, const struct code_kernel *kernel)
{
    uint64_t *behind = c->behind, *near = c->moving, least = UINT64_MAX,
             threshold = threshold_about(behind, c->behind_count);
    uint32_t moved = 0, left = 0;
    for (uint32_t i = 0; i < c->behind_count; i++) { /* nobody can foretell where a key goes: no branch */
        uint64_t key = behind[i], is_near = key < threshold, other = key | (0 - is_near);
        near[moved] = behind[left] = key;
        moved += (uint32_t)is_near;
        left += 1 - (uint32_t)is_near;
        least = other < least ? other : least;
    }
    if (moved > FRONT_ROOM) { /* the sample was not like the rest */
        sealed_keys_least(near, moved, FRONT_ROOM + 1);
        least = near[FRONT_ROOM];
        for (; moved > FRONT_ROOM; left++) behind[left] = near[--moved];
    }
    c->behind_count = left;
    c->behind_least = least;
    for (uint32_t from = 0; from < moved; from += CODE_GROUP)
        candidates_merge(c, kernel, near + from, moved - from < CODE_GROUP ? moved - from : CODE_GROUP);
}

void sealed_candidates_move(struct candidates *c, const struct code_kernel *kernel, uint64_t limit)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < c->behind_count; i++) {
        uint64_t key = c->behind[i];
        c->behind[left] = key;
        left += key < limit;
    }
    c->behind_count = left;
    if (left < BEHIND_MANY)
        move_few(c);
    else
        move_many(c, kernel);
}

/* K-way merges by a binary heap of runs: a shard's answer is sorted, so only run heads are compared.
 * Deterministic: hit_compare and point_key_compare are total orders over distinct points. */
#include "common/err.h"

#include "common/crc32c.h"
#include "router/merge.h"

#define CURSOR_VERSION 1

struct merge_head {
    uint32_t run, at;
};

/* A heap of run heads under `before(ctx, a, b)`: the smallest on top. */
struct merge_heap {
    struct merge_head *heads;
    uint32_t count;
    const void *runs;
    bool (*before)(const void *runs, struct merge_head a, struct merge_head b);
};

static void heap_sift(struct merge_heap *heap, uint32_t i)
{
    for (;;) {
        uint32_t left = 2 * i + 1, least = i;
        if (left < heap->count && heap->before(heap->runs, heap->heads[left], heap->heads[least]))
            least = left;
        if (left + 1 < heap->count && heap->before(heap->runs, heap->heads[left + 1], heap->heads[least])) {
            least = left + 1;
        }
        if (least == i) return;
        struct merge_head swap = heap->heads[i];
        heap->heads[i] = heap->heads[least];
        heap->heads[least] = swap;
        i = least;
    }
}

static void heap_make(struct merge_heap *heap)
{
    for (uint32_t i = heap->count / 2; i-- > 0;) heap_sift(heap, i);
}

/* Move the top run on by one; drop it when it is used up. */
static void heap_advance(struct merge_heap *heap, uint32_t run_length)
{
    if (++heap->heads[0].at == run_length) heap->heads[0] = heap->heads[--heap->count];
    heap_sift(heap, 0);
}

static bool hits_before(const void *runs, struct merge_head a, struct merge_head b)
{
    const struct hit_run *r = runs;
    return hit_compare(&r[a.run].hits[a.at], &r[b.run].hits[b.at]) < 0;
}

static struct point_key view_key(const struct point_view *view)
{
    return point_key_make(view->id, view->key);
}

static bool points_before(const void *runs, struct merge_head a, struct merge_head b)
{
    const struct point_run *r = runs;
    struct point_key ka = view_key(&r[a.run].points[a.at]), kb = view_key(&r[b.run].points[b.at]);
    return point_key_compare(&ka, &kb) < 0;
}

enum omen_err merge_hits(const struct hit_run *runs, uint32_t run_count, uint32_t offset, uint32_t k,
        const struct point_key *left_out, struct arena *arena, struct hit **hits_out, uint32_t *count_out)
{
    *hits_out = NULL;
    *count_out = 0;
    uint64_t total = 0;
    struct merge_heap heap = { .runs = runs, .before = hits_before };
    heap.heads = arena_alloc(arena, sizeof *heap.heads * (run_count + 1));
    if (heap.heads == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < run_count; i++) {
        total += runs[i].count;
        if (runs[i].count > 0) heap.heads[heap.count++] = (struct merge_head){ i, 0 };
    }
    if (total > k) total = k;
    struct hit *hits = arena_alloc(arena, sizeof *hits * (size_t)(total + 1));
    if (hits == NULL) return OMEN_ENOMEM;
    heap_make(&heap);

    uint32_t skipped = 0, count = 0;
    while (heap.count > 0 && count < total) {
        struct merge_head head = heap.heads[0];
        const struct hit *hit = &runs[head.run].hits[head.at];
        struct point_key key = view_key(&hit->point);
        if (left_out != NULL && point_key_compare(&key, left_out) == 0) {
            /* the point that asks */
        } else if (skipped < offset) {
            skipped++;
        } else {
            hits[count++] = *hit;
        }
        heap_advance(&heap, runs[head.run].count);
    }
    *hits_out = hits;
    *count_out = count;
    return OMEN_OK;
}

enum omen_err merge_points(const struct point_run *runs, uint32_t run_count, uint32_t limit,
        struct arena *arena, struct point_view *points_out, uint32_t *count_out, bool *remained_out)
{
    struct merge_heap heap = { .runs = runs, .before = points_before };
    heap.heads = arena_alloc(arena, sizeof *heap.heads * (run_count + 1));
    if (heap.heads == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < run_count; i++) {
        if (runs[i].count > 0) heap.heads[heap.count++] = (struct merge_head){ i, 0 };
    }
    heap_make(&heap);
    uint32_t count = 0;
    while (heap.count > 0 && count < limit) {
        struct merge_head head = heap.heads[0];
        points_out[count++] = runs[head.run].points[head.at];
        heap_advance(&heap, runs[head.run].count);
    }
    *count_out = count;
    *remained_out = heap.count > 0;
    return OMEN_OK;
}

void cursor_encode(uint64_t collection_id, const struct point_key *last, char text_out[CURSOR_TEXT_BYTES])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t raw[CURSOR_BYTES];
    raw[0] = CURSOR_VERSION;
    store_u64(raw + 1, collection_id);
    point_key_encode(last, raw + 9);
    store_u32(raw + 42, crc32c(0, raw, 42));
    for (int i = 0; i < CURSOR_BYTES; i++) {
        text_out[2 * i] = digits[raw[i] >> 4];
        text_out[2 * i + 1] = digits[raw[i] & 15];
    }
}

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

enum omen_err cursor_decode(struct bytes text, uint64_t collection_id, struct point_key *last_out,
        struct err *err)
{
    uint8_t raw[CURSOR_BYTES];
    if (text.len != CURSOR_TEXT_BYTES) {
        return err_set(err, OMEN_EINVAL, "cursor", "is %zu bytes long, a cursor of ours has %d", text.len,
                CURSOR_TEXT_BYTES);
    }
    for (int i = 0; i < CURSOR_BYTES; i++) {
        int high = hex_digit(text.data[2 * i]), low = hex_digit(text.data[2 * i + 1]);
        if (high < 0 || low < 0) return err_set(err, OMEN_EINVAL, "cursor", "is no cursor of ours");
        raw[i] = (uint8_t)(high << 4 | low);
    }
    if (load_u32(raw + 42) != crc32c(0, raw, 42)) {
        return err_set(err, OMEN_EINVAL, "cursor", "is damaged: its checksum does not match");
    }
    if (raw[0] != CURSOR_VERSION) {
        return err_set(err, OMEN_EINVAL, "cursor", "has version %u, this server knows %d", raw[0],
                CURSOR_VERSION);
    }
    if (load_u64(raw + 1) != collection_id) {
        return err_set(err, OMEN_EINVAL, "cursor", "belongs to another collection");
    }
    point_key_decode(raw + 9, last_out);
    return OMEN_OK;
}

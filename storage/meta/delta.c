/* Skip list of the delta; contract in delta.h. */
#include "common/err.h"

#include "storage/meta/delta.h"

#include <stdatomic.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"

#define DELTA_HEIGHT_MAX 16 /* 4^16 nodes at one in four */
#define DELTA_ARENA_FIRST (64u << 10)

/* One cache line holds all that a step along the lowest level looks at. */
struct delta_node {
    struct point_key key;
    uint64_t sequence;
    struct row_ref row;
    struct delta_node *_Atomic next[]; /* [height] */
};

struct delta {
    _Atomic uint32_t refs;
    struct arena arena;      /* writer */
    struct delta_node *head; /* no key; DELTA_HEIGHT_MAX links */
    /* bytes: of nodes, each in whole cache lines; not the arena's, which has gaps where memory happens to lie: when deltas
     * are merged follows from what was applied. */
    _Atomic uint64_t bytes, count;
    uint64_t random; /* writer */
};

/* As point_key_compare, in line: numbers before UUIDs, then id, then hash of the shard key. */
static inline int key_compare(const struct point_key *a, const struct point_key *b)
{
    if (a->id.kind != b->id.kind) return a->id.kind < b->id.kind ? -1 : 1;
    if (a->id.hi != b->id.hi) return a->id.hi < b->id.hi ? -1 : 1;
    if (a->id.lo != b->id.lo) return a->id.lo < b->id.lo ? -1 : 1;
    if (a->key_hi != b->key_hi) return a->key_hi < b->key_hi ? -1 : 1;
    return a->key_lo == b->key_lo ? 0 : a->key_lo < b->key_lo ? -1 : 1;
}

/* Does `n` stand before (key, sequence)? Newer sequences of a key come first. */
static inline bool node_before(const struct delta_node *n, const struct point_key *key, uint64_t sequence)
{
    int c = key_compare(&n->key, key);
    return c < 0 || (c == 0 && n->sequence > sequence);
}

static inline struct delta_node *node_next(const struct delta_node *n, uint32_t level)
{
    return atomic_load_explicit(&n->next[level], memory_order_acquire);
}

static struct delta_node *node_new(struct delta *d, uint32_t height)
{
    size_t bytes = sizeof(struct delta_node) + height * sizeof(struct delta_node *);
    struct delta_node *n = arena_alloc_aligned(&d->arena, 64, bytes);
    atomic_fetch_add_explicit(&d->bytes, align_up(bytes, 64), memory_order_relaxed);
    if (n == NULL) panic("out of memory in the delta (%llu bytes)", (unsigned long long)d->arena.used_bytes);
    return n;
}

struct delta *delta_new(void)
{
    struct delta *d = mem_must_calloc(1, sizeof *d);
    atomic_init(&d->refs, 1);
    arena_init(&d->arena, DELTA_ARENA_FIRST, 0);
    d->head = node_new(d, DELTA_HEIGHT_MAX);
    for (uint32_t i = 0; i < DELTA_HEIGHT_MAX; i++) atomic_init(&d->head->next[i], NULL);
    d->random = 0x9e3779b97f4a7c15u;
    return d;
}

struct delta *delta_ref(struct delta *delta)
{
    if (delta != NULL) atomic_fetch_add_explicit(&delta->refs, 1, memory_order_relaxed);
    return delta;
}

void delta_unref(struct delta *delta)
{
    if (delta == NULL || atomic_fetch_sub_explicit(&delta->refs, 1, memory_order_acq_rel) != 1) return;
    arena_fini(&delta->arena);
    mem_free(delta);
}

static uint32_t random_height(struct delta *d)
{
    d->random ^= d->random << 13;
    d->random ^= d->random >> 7;
    d->random ^= d->random << 17;
    uint32_t height = 1;
    for (uint64_t r = d->random; height < DELTA_HEIGHT_MAX && (r & 3) == 0; r >>= 2) height++;
    return height;
}

/* Last node before (key, sequence) on `level`, walking from `at`, which stands before it. */
static inline struct delta_node *walk(struct delta_node *at, uint32_t level, const struct point_key *key,
        uint64_t sequence)
{
    for (struct delta_node *next; (next = node_next(at, level)) != NULL && node_before(next, key, sequence);)
        at = next;
    return at;
}

/* First node at or after (key, sequence); `before` [levels] gets the ones before it on the lowest levels. */
static struct delta_node *seek(const struct delta *d, const struct point_key *key, uint64_t sequence,
        struct delta_node **before, uint32_t levels)
{
    struct delta_node *at = d->head;
    for (uint32_t level = DELTA_HEIGHT_MAX; level-- > 0;) {
        at = walk(at, level, key, sequence);
        if (level < levels) before[level] = at;
    }
    return node_next(at, 0);
}

void delta_put(struct delta *delta, const struct point_key *key, uint64_t sequence, struct row_ref row,
        const struct delta_spot *spot)
{
    struct delta_node *before[DELTA_HEIGHT_MAX];
    uint32_t height = random_height(delta);
    if (spot == NULL || height > DELTA_SPOT_LEVELS) {
        seek(delta, key, sequence, before, height);
    } else {
        for (uint32_t level = 0; level < height; level++)
            before[level] = walk(spot->before[level], level, key, sequence);
    }
    struct delta_node *n = node_new(delta, height);
    n->key = *key;
    n->sequence = sequence;
    n->row = row;
    for (uint32_t level = 0; level < height; level++) {
        atomic_init(&n->next[level], atomic_load_explicit(&before[level]->next[level], memory_order_relaxed));
        atomic_store_explicit(&before[level]->next[level], n, memory_order_release);
    }
    atomic_fetch_add_explicit(&delta->count, 1, memory_order_relaxed);
}

bool delta_find(struct delta *delta, const struct point_key *key, struct delta_spot *spot_out,
        struct row_ref *row_out)
{
    const struct delta_node *n = seek(delta, key, UINT64_MAX, spot_out->before, DELTA_SPOT_LEVELS);
    if (n == NULL || key_compare(&n->key, key) != 0) return false;
    *row_out = n->row;
    return true;
}

bool delta_get(const struct delta *delta, const struct point_key *key, uint64_t sequence,
        struct row_ref *row_out)
{
    const struct delta_node *n = seek(delta, key, sequence, NULL, 0);
    if (n == NULL || key_compare(&n->key, key) != 0) return false;
    *row_out = n->row;
    return true;
}

/* From `n` on: the first node whose sequence the view sees; it is the newest seen one of its key. */
static void iter_settle(struct delta_iter *it, const struct delta_node *n)
{
    while (n != NULL && n->sequence > it->sequence) n = node_next(n, 0);
    it->node = n;
    if (n == NULL) return;
    it->key = n->key;
    it->row = n->row;
    it->version = n->sequence;
}

void delta_iter_seek(const struct delta *delta, const struct point_key *from, uint64_t sequence,
        struct delta_iter *it_out)
{
    it_out->sequence = sequence;
    iter_settle(it_out, from == NULL ? node_next(delta->head, 0) : seek(delta, from, sequence, NULL, 0));
}

void delta_iter_next(struct delta_iter *it)
{
    const struct delta_node *n = it->node;
    do n = node_next(n, 0); /* older states of this key */
    while (n != NULL && key_compare(&n->key, &it->key) == 0);
    iter_settle(it, n);
}

uint64_t delta_bytes(const struct delta *delta)
{
    return atomic_load_explicit(&delta->bytes, memory_order_relaxed);
}
uint64_t delta_count(const struct delta *delta)
{
    return atomic_load_explicit(&delta->count, memory_order_relaxed);
}

/* Partition and multiply: near neighbours of every node from overlapping partitions (PiPNN, arXiv
 * 2602.21247).
 *
 * A partition is one pass of all nodes over a random sample of leaders; every node joins the leaves of its
 * nearest few, so that leaves overlap where clusters meet. Inside a leaf all pairs are multiplied in tiles
 * (i8 codes) and the 16 nearest of each row are merged into its list. Repeated with other leaders until
 * the lists are good. Threads: leaves and blocks of nodes in parallel; lists under a lock per node.
 * Determinism: lists are the best of a set, so they do not depend on the order of merges. */
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/sealed_build.h"

#define LEAF_ROWS 600      /* aimed at */
#define LEAF_ROWS_MAX 2048 /* a larger leaf is cut again */
#define LEAF_DEPTH_MAX 8
#define LEADERS_MAX 65536
#define PARTITIONS 2
#define OVERLAP 3 /* leaves that a node joins per partition */
#define BLOCK 64  /* rows multiplied with one packed group while it is in L1 */

/* A packed set of codes to multiply with. */
struct tiles {
    uint8_t *packed; /* [groups][padded * 32] */
    int32_t *bias;   /* [groups * 32] norms; a missing row has a bias that never wins */
    uint32_t count, groups;
};

static bool tiles_pack(const struct build *b, const uint32_t *nodes, uint32_t count, struct tiles *tiles_out)
{
    const struct code_kernel *kernel = code_kernel_get();
    tiles_out->count = count;
    tiles_out->groups = (count + CODE_TILE_ROWS - 1) / CODE_TILE_ROWS;
    size_t group_bytes = (size_t)b->padded * CODE_TILE_ROWS;
    tiles_out->packed = mem_alloc_aligned(64, tiles_out->groups * group_bytes);
    tiles_out->bias = mem_alloc_aligned(64, (size_t)tiles_out->groups * CODE_TILE_ROWS * sizeof(int32_t));
    if (tiles_out->packed == NULL || tiles_out->bias == NULL) return false;
    for (uint32_t g = 0; g < tiles_out->groups; g++) {
        const int8_t *rows[CODE_TILE_ROWS];
        uint32_t n = count - g * CODE_TILE_ROWS < CODE_TILE_ROWS ? count - g * CODE_TILE_ROWS
                                                                 : CODE_TILE_ROWS;
        for (uint32_t i = 0; i < n; i++) rows[i] = build_code(b, nodes[g * CODE_TILE_ROWS + i]);
        kernel->pack_tile(rows, n, b->padded, tiles_out->packed + g * group_bytes);
        for (uint32_t i = 0; i < CODE_TILE_ROWS; i++)
            tiles_out->bias[g * CODE_TILE_ROWS + i] = i < n ? b->norms[nodes[g * CODE_TILE_ROWS + i]]
                                                            : INT32_MAX / 2;
    }
    return true;
}

static void tiles_free(struct tiles *tiles)
{
    mem_free(tiles->packed);
    mem_free(tiles->bias);
}

/* The 16 nearest of the packed set for each of `count` <= BLOCK nodes. Values are distances less what depends
 * on the node; none that is not below bounds[i] (NULL = all), then with an id of UINT32_MAX. The packed set is gone
 * through from group `start` on and then from its beginning: where the near ones are likely to be comes first, so that
 * most of the others are not even offered. */
static void tiles_nearest(const struct build *b, const struct tiles *tiles, const uint32_t *nodes,
        uint32_t count, uint32_t start, const int32_t *bounds, struct code_top16 tops_out[BLOCK])
{
    const struct code_kernel *kernel = code_kernel_get();
    const int8_t *rows[BLOCK];
    int32_t dots[BLOCK][CODE_TILE_ROWS] __attribute__((aligned(64)));
    size_t group_bytes = (size_t)b->padded * CODE_TILE_ROWS;
    for (uint32_t i = 0; i < count; i++) {
        rows[i] = build_code(b, nodes[i]);
        code_top16_init(&tops_out[i]);
        for (uint32_t j = 0; bounds != NULL && j < 16; j++) tops_out[i].value[j] = bounds[i];
    }
    for (uint32_t i = 0; i < tiles->groups; i++) {
        uint32_t g = start + i < tiles->groups ? start + i : start + i - tiles->groups;
        kernel->dot_tile(rows, count, b->padded, tiles->packed + g * group_bytes, &dots[0][0],
                CODE_TILE_ROWS);
        for (uint32_t j = 0; j < count; j++)
            kernel->select_32(dots[j], tiles->bias + g * CODE_TILE_ROWS, g * CODE_TILE_ROWS, &tops_out[j]);
    }
}

/* ---- partition ---- */

struct partition {
    struct build *b;
    struct tiles leaders;
    uint32_t leader_count, overlap;
    uint32_t *leader_nodes; /* [leader_count] */
    bool placed;            /* nodes are in order of place: near ones have near numbers */
    uint32_t *leader_of;    /* [n][overlap] */
    uint32_t *starts;       /* [leader_count + 1] */
    uint32_t *members;      /* [n * overlap] */
};

static void partition_fini(struct partition *p)
{
    tiles_free(&p->leaders);
    mem_free(p->leader_nodes);
    mem_free(p->leader_of);
    mem_free(p->starts);
    mem_free(p->members);
}

#define NEAR_LEADERS 320 /* of a run of nodes: their leaders are among those nearest to its middle */

static int compare_key(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The NEAR_LEADERS leaders nearest to a node, by number. */
static bool leaders_near(const struct partition *p, uint32_t node, uint32_t *chosen_out)
{
    const struct tiles *t = &p->leaders;
    const int8_t *row = build_code(p->b, node);
    size_t group_bytes = (size_t)p->b->padded * CODE_TILE_ROWS;
    uint64_t *keys = mem_alloc((size_t)p->leader_count * sizeof *keys);
    if (keys == NULL) return false;
    int32_t dots[CODE_TILE_ROWS] __attribute__((aligned(64)));
    for (uint32_t i = 0; i < p->leader_count; i++) {
        if (i % CODE_TILE_ROWS == 0)
            code_kernel_get()->dot_tile(&row, 1, p->b->padded, t->packed + i / CODE_TILE_ROWS * group_bytes,
                    dots, CODE_TILE_ROWS);
        int64_t value = (int64_t)t->bias[i] - 2 * (int64_t)dots[i % CODE_TILE_ROWS] - INT32_MIN * INT64_C(4);
        keys[i] = (uint64_t)value << 16 | i;
    }
    qsort(keys, p->leader_count, sizeof *keys, compare_key);
    for (uint32_t i = 0; i < NEAR_LEADERS; i++) chosen_out[i] = (uint32_t)(keys[i] & 0xffff);
    mem_free(keys);
    return true;
}

#define RUN 256 /* nodes that lie near each other once they are in order of place */

/* Nodes [first, end), all near each other, by the leaders that are nearest to the middle one. */
static bool assign_near(struct partition *p, uint32_t first, uint32_t end)
{
    struct tiles near;
    struct code_top16 tops[BLOCK];
    uint32_t *chosen = mem_alloc(NEAR_LEADERS * sizeof *chosen),
             *nodes = mem_alloc(NEAR_LEADERS * sizeof *nodes);
    bool fine = chosen != NULL && nodes != NULL && leaders_near(p, (first + end) / 2, chosen);
    for (uint32_t i = 0; fine && i < NEAR_LEADERS; i++) nodes[i] = p->leader_nodes[chosen[i]];
    if (fine && !tiles_pack(p->b, nodes, NEAR_LEADERS, &near)) {
        tiles_free(&near);
        fine = false;
    }
    for (uint32_t i = first; fine && i < end; i += BLOCK) {
        uint32_t block[BLOCK], n = end - i < BLOCK ? end - i : BLOCK;
        for (uint32_t j = 0; j < n; j++) block[j] = i + j;
        tiles_nearest(p->b, &near, block, n, 0, NULL, tops);
        for (uint32_t j = 0; j < n; j++)
            for (uint32_t o = 0; o < p->overlap; o++)
                p->leader_of[(size_t)(i + j) * p->overlap + o] = chosen[tops[j].id[o]];
    }
    if (fine) tiles_free(&near);
    mem_free(chosen);
    mem_free(nodes);
    return fine;
}

static bool assign_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct partition *p = arg;
    struct code_top16 tops[BLOCK];
    (void)thread;
    if (p->placed && p->leader_count > 2 * NEAR_LEADERS) {
        for (uint32_t i = first; i < end; i += RUN)
            if (!assign_near(p, i, end - i < RUN ? end : i + RUN)) return false;
        return true;
    }
    for (uint32_t i = first; i < end; i += BLOCK) {
        uint32_t nodes[BLOCK], n = end - i < BLOCK ? end - i : BLOCK;
        for (uint32_t j = 0; j < n; j++) nodes[j] = i + j;
        tiles_nearest(p->b, &p->leaders, nodes, n, 0, NULL, tops);
        for (uint32_t j = 0; j < n; j++)
            for (uint32_t o = 0; o < p->overlap; o++)
                p->leader_of[(size_t)(i + j) * p->overlap + o] = tops[j].id[o];
    }
    return true;
}

/* Members by leader, in order of nodes. */
static void partition_sort(struct partition *p)
{
    uint64_t entries = (uint64_t)p->b->n * p->overlap;
    memset(p->starts, 0, (p->leader_count + 1) * sizeof *p->starts);
    for (uint64_t i = 0; i < entries; i++) p->starts[p->leader_of[i] + 1]++;
    for (uint32_t l = 0; l < p->leader_count; l++) p->starts[l + 1] += p->starts[l];
    for (uint64_t i = 0; i < entries; i++)
        p->members[p->starts[p->leader_of[i]]++] = (uint32_t)(i / p->overlap);
    for (uint32_t l = p->leader_count; l > 0; l--) p->starts[l] = p->starts[l - 1];
    p->starts[0] = 0;
}

static uint32_t gcd(uint32_t a, uint32_t b) { return b == 0 ? a : gcd(b, a % b); }

/* `count` different nodes out of `n`: steps through them by a random stride that shares no factor with n. */
static void sample(uint64_t seed, uint32_t n, uint32_t count, uint32_t *nodes_out)
{
    uint32_t at = (uint32_t)(rotation_random(seed, 0) % n), step = (uint32_t)(rotation_random(seed, 1) % n);
    while (gcd(step, n) != 1) step = (step + 1) % n;
    for (uint32_t i = 0; i < count; i++) {
        nodes_out[i] = at;
        at = (uint32_t)(((uint64_t)at + step) % n);
    }
}

static enum omen_err partition_init(struct partition *p, struct build *b, uint32_t leader_count,
        uint32_t overlap, bool placed, uint64_t seed)
{
    memset(p, 0, sizeof *p);
    p->placed = placed;
    if (leader_count > LEADERS_MAX) leader_count = LEADERS_MAX;
    if (leader_count > b->n) leader_count = b->n;
    if (overlap > leader_count) overlap = leader_count;
    if (leader_count >= 8 && overlap > 15) overlap = 15;
    p->b = b;
    p->leader_count = leader_count;
    p->overlap = overlap;
    p->leader_of = mem_alloc((size_t)b->n * overlap * sizeof *p->leader_of);
    p->starts = mem_alloc(((size_t)leader_count + 1) * sizeof *p->starts);
    p->members = mem_alloc((size_t)b->n * overlap * sizeof *p->members);
    p->leader_nodes = mem_alloc((size_t)leader_count * sizeof *p->leader_nodes);
    enum omen_err rc = OMEN_ENOMEM;
    if (p->leader_of != NULL && p->starts != NULL && p->members != NULL && p->leader_nodes != NULL) {
        sample(seed, b->n, leader_count, p->leader_nodes);
        if (tiles_pack(b, p->leader_nodes, leader_count, &p->leaders))
            rc = parallel_for(b->control, "partition", b->n, 1024, assign_range, p);
    }
    if (rc == OMEN_OK)
        partition_sort(p);
    else
        partition_fini(p);
    return rc;
}

/* ---- leaves ---- */

static void list_merge(struct build *b, uint32_t node, const struct build_near *found, uint32_t count)
{
    uint32_t most = b->list_rows;
    struct build_near merged[BUILD_LIST], *list = b->lists + (size_t)node * most;
    atomic_flag *lock = &b->locks[node % BUILD_LOCKS];
    while (atomic_flag_test_and_set_explicit(lock, memory_order_acquire)) {}
    if (count > 0 && list[most - 1].distance > found[0].distance) {
        uint32_t i = 0, j = 0, n = 0;
        while (n < most) {
            bool ours = j == count || list[i].distance < found[j].distance ||
                    (list[i].distance == found[j].distance && list[i].node <= found[j].node);
            if (ours && j < count && list[i].node == found[j].node)
                j++; /* the same pair: the same distance */
            merged[n++] = ours ? list[i++] : found[j++];
        }
        memcpy(list, merged, most * sizeof *merged);
    }
    atomic_flag_clear_explicit(lock, memory_order_release);
}

static bool near_before(struct build_near a, struct build_near b)
{
    return a.distance < b.distance || (a.distance == b.distance && a.node < b.node);
}

/* What a candidate of a node must beat to enter its full list, as tiles_nearest gives values. */
static int32_t list_bound(struct build *b, uint32_t node)
{
    atomic_flag *lock = &b->locks[node % BUILD_LOCKS];
    while (atomic_flag_test_and_set_explicit(lock, memory_order_acquire)) {}
    int32_t worst = b->lists[((size_t)node + 1) * b->list_rows - 1].distance;
    atomic_flag_clear_explicit(lock, memory_order_release);
    return worst == INT32_MAX ? worst : worst - b->norms[node] - 2 * CODE_TILE_OFFSET * b->sums[node];
}

static bool leaf_multiply(struct build *b, const uint32_t *members, uint32_t count)
{
    struct tiles tiles;
    struct code_top16 tops[BLOCK];
    int32_t bounds[BLOCK];
    bool fine = tiles_pack(b, members, count, &tiles);
    for (uint32_t first = 0; fine && first < count; first += BLOCK) {
        uint32_t n = count - first < BLOCK ? count - first : BLOCK;
        for (uint32_t j = 0; j < n; j++) bounds[j] = list_bound(b, members[first + j]);
        tiles_nearest(b, &tiles, members + first, n, first / CODE_TILE_ROWS, bounds, tops);
        for (uint32_t j = 0; j < n; j++) {
            uint32_t node = members[first + j], found = 0;
            struct build_near nearest[16];
            int32_t own = b->norms[node] +
                    2 * CODE_TILE_OFFSET * b->sums[node]; /* undo the offset of the packed side */
            for (uint32_t i = 0; i < 16 && tops[j].id[i] < count; i++) {
                if (members[tops[j].id[i]] == node) continue;
                struct build_near x = { tops[j].value[i] + own, members[tops[j].id[i]] };
                uint32_t at = found++;
                for (; at > 0 && near_before(x, nearest[at - 1]); at--) nearest[at] = nearest[at - 1];
                nearest[at] = x;
            }
            list_merge(b, node, nearest, found);
        }
    }
    tiles_free(&tiles);
    return fine;
}

/* Cut a leaf that is too large by leaders of its own; copies of one point cannot be told apart and are cut by
 * position. */
static bool leaf_run(struct build *b, const uint32_t *members, uint32_t count, uint32_t depth, uint64_t seed)
{
    if (count < 2) return true;
    if (count <= LEAF_ROWS_MAX) return leaf_multiply(b, members, count);
    uint32_t parts = (count + LEAF_ROWS - 1) / LEAF_ROWS;
    if (parts > 512) parts = 512;
    uint32_t *leaders = mem_alloc(parts * sizeof *leaders), *part_of = mem_alloc(count * sizeof *part_of);
    uint32_t *sorted = mem_alloc(count * sizeof *sorted), *starts = mem_calloc(parts + 1, sizeof *starts);
    struct tiles tiles = { 0 };
    bool fine = leaders != NULL && part_of != NULL && sorted != NULL && starts != NULL;
    if (fine) {
        sample(seed, count, parts, leaders);
        for (uint32_t i = 0; i < parts; i++) leaders[i] = members[leaders[i]];
        fine = tiles_pack(b, leaders, parts, &tiles);
    }
    for (uint32_t first = 0; fine && first < count; first += BLOCK) {
        struct code_top16 tops[BLOCK];
        uint32_t n = count - first < BLOCK ? count - first : BLOCK;
        if (depth < LEAF_DEPTH_MAX) tiles_nearest(b, &tiles, members + first, n, 0, NULL, tops);
        for (uint32_t j = 0; j < n; j++) {
            part_of[first + j] = depth < LEAF_DEPTH_MAX ? tops[j].id[0] : (first + j) / LEAF_ROWS % parts;
            starts[part_of[first + j] + 1]++;
        }
    }
    if (fine) {
        for (uint32_t i = 0; i < parts; i++) starts[i + 1] += starts[i];
        for (uint32_t i = 0; i < count; i++) sorted[starts[part_of[i]]++] = members[i];
        for (uint32_t i = 0, start = 0; fine && i < parts; start = starts[i++]) {
            uint32_t deeper = starts[i] - start == count ? LEAF_DEPTH_MAX : depth + 1;
            fine = leaf_run(b, sorted + start, starts[i] - start, deeper, seed + i + 1);
        }
    }
    tiles_free(&tiles);
    mem_free(leaders);
    mem_free(part_of);
    mem_free(sorted);
    mem_free(starts);
    return fine;
}

static bool leaf_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct partition *p = arg;
    (void)thread;
    for (uint32_t leaf = first; leaf < end; leaf++) {
        if (!leaf_run(p->b, p->members + p->starts[leaf], p->starts[leaf + 1] - p->starts[leaf], 0, leaf))
            return false;
    }
    return true;
}

enum omen_err build_multiply(struct build *b)
{
    for (uint64_t i = 0; i < (uint64_t)b->n * b->list_rows; i++)
        b->lists[i] = (struct build_near){ INT32_MAX, UINT32_MAX };
    bool one_leaf = b->n <= LEAF_ROWS_MAX;
    for (uint32_t copy = 0; copy < (one_leaf ? 1 : PARTITIONS); copy++) {
        struct partition p;
        uint32_t leaders = one_leaf ? 1 : (uint32_t)((uint64_t)b->n * OVERLAP / LEAF_ROWS) + 1;
        enum omen_err rc = partition_init(&p, b, leaders, one_leaf ? 1 : OVERLAP, true,
                b->params->seed * 31 + copy);
        if (rc != OMEN_OK) return rc;
        rc = parallel_for(b->control, "multiply", p.leader_count, 1, leaf_range, &p);
        partition_fini(&p);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

/* ---- order ---- */

/* Leaders by their nearest of a few super leaders, nodes by their leader: neighbours lie near each other in
 * memory. */
enum omen_err build_order(struct build *b, uint32_t *order_out)
{
    struct partition fine, coarse;
    uint32_t leaders = b->n / LEAF_ROWS + 1;
    enum omen_err rc = partition_init(&fine, b, leaders, 1, false, b->params->seed * 31 + 101);
    if (rc != OMEN_OK) return rc;
    uint32_t super = 1;
    while (super * super < leaders) super++;
    rc = partition_init(&coarse, b, super, 1, false, b->params->seed * 31 + 102);
    if (rc != OMEN_OK) {
        partition_fini(&fine);
        return rc;
    }
    uint32_t n = 0;
    uint8_t *taken = mem_calloc(fine.leader_count, 1);
    if (taken == NULL) rc = OMEN_ENOMEM;
    for (uint32_t i = 0; rc == OMEN_OK && i < b->n;
            i++) { /* leaves in the order in which coarse clusters meet them */
        uint32_t leaf = fine.leader_of[coarse.members[i]];
        if (taken[leaf]) continue;
        taken[leaf] = 1;
        for (uint32_t m = fine.starts[leaf]; m < fine.starts[leaf + 1]; m++) order_out[n++] = fine.members[m];
    }
    CHECK(rc != OMEN_OK || n == b->n);
    mem_free(taken);
    partition_fini(&coarse);
    partition_fini(&fine);
    return rc;
}

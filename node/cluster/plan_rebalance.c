/* Rebalancing: which replicas to move so that the active nodes hold alike.
 *
 * What is weighed is one number, J = PAY_MOVED * (weight moved) + PAY_OVER * (what lies above the mean, over all
 * nodes): a move is made when it lowers J, that is when it brings down what is too much by 4/9 of its weight at
 * least; one that fits on both sides brings down all of it. A plan of the least J moves the least of all plans that
 * end at least as even: any other such plan would have a lower J. Finding it is a kind of bin packing, so it is
 * approached:
 *
 *   1. replicas that share a failure domain without need are moved apart, whatever that costs
 *   2. greedily: from the fullest node, first what fits on both sides (the largest of it), then what lowers J most
 *   3. single moves, and pairs of them in small plans, are given up, redirected or replaced while that lowers J;
 *   then 2 again
 *
 * Whether anything is done by 2 and 3 depends on a tolerance, where they stop does not: so they are not called for
 * again when shards have grown a little. No shard has two replicas moved by one plan (one change per shard at a
 * time, CORRECTNESS K2). Running a plan and planning again gives nothing, unless a second replica of some shard has
 * to move as well. */
#include "common/err.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/mem.h"
#include "node/cluster/plan_board.h"

#define PAY_MOVED 4
#define PAY_OVER 9
#define TOLERANCE 20 /* all nodes within a twentieth of the mean: even enough to be left alone */
#define ROUNDS_MAX 64
#define PAIR_PLAN_MAX 24u /* moves */
#define PAIR_SHARDS_MAX 1024u
#define PAIR_MOVES_MAX 4u /* instead of two */

static const char PARTED[] = "its failure domain holds another replica of the shard";

static int64_t over(const struct plan_board *b, uint64_t load)
{
    return load > b->mean ? (int64_t)(load - b->mean) : 0;
}

/* By how much what lies above the mean shrinks when `weight` goes from one bin to another. */
static int64_t gain_of(const struct plan_board *b, uint8_t from, uint8_t to, uint64_t weight)
{
    const struct plan_bin *f = &b->bins[from], *t = &b->bins[to];
    return over(b, f->load) + over(b, t->load) - over(b, f->load - weight) - over(b, t->load + weight);
}

/* J's fall; above 0: worth it. */
static int64_t worth(int64_t gain, uint64_t weight) { return PAY_OVER * gain - PAY_MOVED * (int64_t)weight; }

struct choice {
    struct plan_item *item; /* NULL: none */
    uint8_t replica, to;
    bool fits; /* on both sides */
    int64_t worth;
};

enum choose_by { BY_FIT, BY_WORTH };

static bool better(const struct choice *a, const struct choice *b, enum choose_by by)
{
    if (b->item == NULL) return true;
    if (by == BY_FIT && a->fits != b->fits) return a->fits;
    return a->worth > b->worth;
}

static bool domain_kept(const struct plan_board *b, const struct plan_item *item, uint32_t replica,
        uint8_t to)
{
    return plan_crowd(b, item, replica, to) <= plan_crowd(b, item, replica, item->bins[replica]);
}

/* The best target of one replica that was not moved yet. */
static void choose_target(const struct plan_board *b, struct plan_item *item, uint8_t replica,
        enum choose_by by, struct choice *best)
{
    uint8_t from = item->bins[replica];
    for (uint32_t t = 0; t < b->bin_count; t++) {
        uint8_t to = (uint8_t)t;
        if (!b->bins[t].takes || b->bins[t].load >= b->mean) continue;
        int64_t gain = gain_of(b, from, to, item->weight);
        struct choice c = { item, replica, to, gain == (int64_t)item->weight, worth(gain, item->weight) };
        if (c.worth <= 0 || !better(&c, best, by)) continue;
        if (plan_may(b, item, to) && domain_kept(b, item, replica, to)) *best = c;
    }
}

static struct choice choose_from(const struct plan_board *b, uint8_t from, enum choose_by by)
{
    struct choice best = { NULL, 0, 0, false, 0 };
    for (uint32_t i = b->slot_first[from]; i < b->slot_first[from + 1]; i++) {
        struct plan_item *item = &b->items[b->slots[i].item];
        if (!item->fixed && item->moved == PLAN_NO_BIN)
            choose_target(b, item, b->slots[i].replica, by, &best);
    }
    return best;
}

/* ---- failure domains ---- */

/* The move of one replica that leaves the fewest together, and of those the one that evens out most. Redone when
 * others have changed. */
static bool part_one(struct plan_board *b, struct plan_item *item)
{
    uint32_t most = 0, replica = 0;
    int64_t gain = 0;
    uint8_t target = PLAN_NO_BIN;
    for (uint32_t r = 0; r < item->shard->replica_count; r++) {
        if (item->bins[r] == PLAN_NO_BIN) continue;
        uint32_t crowd = plan_crowd(b, item, r, item->bins[r]);
        for (uint32_t t = 0; crowd > 0 && t < b->bin_count; t++) {
            uint32_t there = plan_crowd(b, item, r, (uint8_t)t);
            if (there >= crowd || crowd - there < most || !plan_may(b, item, (uint8_t)t)) continue;
            int64_t g = gain_of(b, item->bins[r], (uint8_t)t, item->weight);
            if (crowd - there == most && g <= gain) continue;
            most = crowd - there;
            gain = g;
            replica = r;
            target = (uint8_t)t;
        }
    }
    if (target == PLAN_NO_BIN) return false;
    plan_move_do(b, item, replica, target);
    item->reason = PARTED;
    return true;
}

static int heavy_first(const void *x, const void *y)
{
    const struct plan_item *a = *(struct plan_item *const *)x, *b = *(struct plan_item *const *)y;
    if (a->weight != b->weight) return a->weight > b->weight ? -1 : 1;
    return a->shard->shard_id < b->shard->shard_id ? -1 : 1;
}

/* The heavy ones first: they have the most to say about loads. */
static enum omen_err part(struct plan_board *b, struct err *err)
{
    struct plan_item **items = mem_calloc((size_t)b->item_count + 1, sizeof *items);
    if (items == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a plan");
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->item_count; i++)
        if (!b->items[i].fixed) items[n++] = &b->items[i];
    qsort(items, n, sizeof *items, heavy_first);
    for (uint32_t i = 0; i < n && b->move_count < CLUSTER_MOVES_MAX; i++) (void)part_one(b, items[i]);
    mem_free(items);
    return OMEN_OK;
}

/* ---- greedily ---- */

/* Bins with more than the mean, the fullest first. */
static uint32_t bins_full(const struct plan_board *b, uint8_t *bins_out)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->bin_count; i++) {
        if (!b->bins[i].takes || b->bins[i].load <= b->mean) continue;
        uint32_t at = n++;
        for (; at > 0 && b->bins[bins_out[at - 1]].load < b->bins[i].load; at--)
            bins_out[at] = bins_out[at - 1];
        bins_out[at] = (uint8_t)i;
    }
    return n;
}

/* One more move; NULL: none is worth it. */
static struct plan_item *greedy_step(struct plan_board *b, enum choose_by by)
{
    uint8_t full[CLUSTER_NODES_MAX];
    uint32_t n = bins_full(b, full);
    struct choice best = { NULL, 0, 0, false, 0 };
    for (uint32_t i = 0; i < n; i++) {
        struct choice c = choose_from(b, full[i], by);
        if (c.item != NULL && better(&c, &best, by)) best = c;
        if (best.item != NULL && best.fits && by == BY_FIT) break;
    }
    if (best.item == NULL || b->move_count >= CLUSTER_MOVES_MAX) return NULL;
    plan_move_do(b, best.item, best.replica, best.to);
    return best.item;
}

/* ---- single moves, looked at again ---- */

/* Give one move up, redirect it, or take another replica of its source instead; false: it is best as it is. */
static bool improve_one(struct plan_board *b, struct plan_item *item)
{
    uint8_t replica = item->moved, from = item->from, to = item->to;
    plan_move_undo(b, item);
    int64_t as_it_was = worth(gain_of(b, from, to, item->weight), item->weight);
    struct choice best = choose_from(b, from, BY_WORTH);
    if (best.item != NULL && best.worth > as_it_was) {
        plan_move_do(b, best.item, best.replica, best.to);
        return true;
    }
    if (as_it_was <= 0) return true;
    plan_move_do(b, item, replica, to);
    return false;
}

static bool improve(struct plan_board *b)
{
    bool improved = false;
    for (uint32_t i = 0; i < b->item_count; i++) {
        struct plan_item *item = &b->items[i];
        if (item->moved == PLAN_NO_BIN) continue;
        if (item->reason == NULL) {
            improved |= improve_one(b, item);
            continue;
        }
        uint8_t from = item->from, to = item->to;
        plan_move_undo(b, item);
        CHECK(part_one(b, item));
        improved |= item->from != from || item->to != to;
    }
    return improved;
}

/* ---- two moves at once, in plans of few moves, where single shards make a difference ---- */

static uint64_t above_mean(const struct plan_board *b)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < b->bin_count; i++)
        if (b->bins[i].takes) sum += (uint64_t)over(b, b->bins[i].load);
    return sum;
}

static int64_t cost_of(const struct plan_board *b)
{
    int64_t cost = PAY_OVER * (int64_t)above_mean(b);
    for (uint32_t i = 0; i < b->item_count; i++)
        if (b->items[i].moved != PLAN_NO_BIN) cost += PAY_MOVED * (int64_t)b->items[i].weight;
    return cost;
}

/* Take two moves back and see whether others come cheaper. */
static bool improve_pair(struct plan_board *b, struct plan_item *x, struct plan_item *y)
{
    int64_t before = cost_of(b);
    struct plan_item *pair[2] = { x, y }, *others[PAIR_MOVES_MAX];
    uint8_t replicas[2] = { x->moved, y->moved }, targets[2] = { x->to, y->to };
    const char *reasons[2] = { x->reason, y->reason };
    uint32_t n = 0;
    plan_move_undo(b, x);
    plan_move_undo(b, y);
    for (uint32_t i = 0; i < 2; i++)
        if (reasons[i] != NULL && part_one(b, pair[i])) others[n++] = pair[i];
    while (n < PAIR_MOVES_MAX && (others[n] = greedy_step(b, BY_WORTH)) != NULL) n++;
    if (cost_of(b) < before) return true;
    while (n > 0) plan_move_undo(b, others[--n]);
    for (uint32_t i = 0; i < 2; i++) {
        plan_move_do(b, pair[i], replicas[i], targets[i]);
        pair[i]->reason = reasons[i];
    }
    return false;
}

static bool improve_pairs(struct plan_board *b)
{
    struct plan_item *moved[PAIR_PLAN_MAX];
    uint32_t n = 0;
    if (b->move_count > PAIR_PLAN_MAX || b->item_count > PAIR_SHARDS_MAX) return false;
    for (uint32_t i = 0; i < b->item_count; i++)
        if (b->items[i].moved != PLAN_NO_BIN) moved[n++] = &b->items[i];
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < i; k++)
            if (improve_pair(b, moved[i], moved[k])) return true;
    return false;
}

/* ---- the plan ---- */

static bool even_enough(const struct plan_board *b)
{
    uint64_t slack = b->mean / TOLERANCE;
    for (uint32_t i = 0; i < b->bin_count; i++) {
        const struct plan_bin *bin = &b->bins[i];
        if (bin->takes && (bin->load > b->mean + slack || bin->load + slack < b->mean)) return false;
    }
    return true;
}

enum omen_err plan_rebalance(const struct cluster_state *state, const struct plan_size *sizes,
        uint32_t size_count, struct plan_move **moves_out, uint32_t *count_out, uint64_t *bytes_minimum_out,
        struct err *err)
{
    struct plan_board b;
    *moves_out = NULL;
    *count_out = 0;
    *bytes_minimum_out = 0;
    enum omen_err rc = plan_board_init(&b, state, sizes, size_count, err);
    if (rc != OMEN_OK) return rc;
    *bytes_minimum_out = above_mean(&b);
    rc = part(&b, err);
    bool go_on = rc == OMEN_OK && !even_enough(&b);
    for (uint32_t round = 0; go_on && round < ROUNDS_MAX; round++) {
        while (greedy_step(&b, BY_FIT) != NULL) continue;
        go_on = improve(&b) || improve_pairs(&b);
    }
    if (rc == OMEN_OK) rc = plan_moves_give(&b, moves_out, count_out, err);
    plan_board_fini(&b);
    return rc;
}

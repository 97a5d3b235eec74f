/* Draining: every replica off a node. See plan.h; rebalancing is in plan_rebalance.c. */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/mem.h"
#include "node/cluster/plan_board.h"

/* The failure domain with the fewest of the shard's other replicas first, then the emptiest node. */
static uint8_t target_of(const struct plan_board *b, const struct plan_item *item, uint32_t replica)
{
    uint8_t best = PLAN_NO_BIN;
    uint32_t best_crowd = 0;
    for (uint32_t i = 0; i < b->bin_count; i++) {
        if (!plan_may(b, item, (uint8_t)i)) continue;
        uint32_t crowd = plan_crowd(b, item, replica, (uint8_t)i);
        if (best != PLAN_NO_BIN &&
                (crowd > best_crowd || (crowd == best_crowd && b->bins[i].load >= b->bins[best].load)))
            continue;
        best = (uint8_t)i;
        best_crowd = crowd;
    }
    return best;
}

struct heavy {
    struct plan_item *item;
    uint8_t replica;
};

/* The large ones first: the small ones then even out what those left uneven. */
static int heavy_compare(const void *x, const void *y)
{
    const struct plan_item *a = ((const struct heavy *)x)->item, *b = ((const struct heavy *)y)->item;
    if (a->weight != b->weight) return a->weight > b->weight ? -1 : 1;
    return a->shard->shard_id < b->shard->shard_id ? -1 : 1;
}

static enum omen_err drain(struct plan_board *b, uint8_t from, const char *reason, struct plan_stuck *stuck,
        struct err *err)
{
    uint32_t first = b->slot_first[from], n = b->slot_first[from + 1] - first;
    struct heavy *all = mem_calloc((size_t)n + 1, sizeof *all);
    if (all == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a plan");
    for (uint32_t i = 0; i < n; i++)
        all[i] = (struct heavy){ &b->items[b->slots[first + i].item], b->slots[first + i].replica };
    qsort(all, n, sizeof *all, heavy_compare);
    for (uint32_t i = 0; i < n && b->move_count < CLUSTER_MOVES_MAX; i++) {
        struct plan_item *item = all[i].item;
        if (item->fixed) continue;
        uint8_t to = target_of(b, item, all[i].replica);
        if (to == PLAN_NO_BIN) {
            if (stuck->count < PLAN_STUCK_NAMED) stuck->shard_ids[stuck->count] = item->shard->shard_id;
            stuck->count++;
            continue;
        }
        plan_move_do(b, item, all[i].replica, to);
        item->reason = reason;
    }
    mem_free(all);
    return OMEN_OK;
}

void plan_stuck_text(const struct plan_stuck *stuck, char *out, size_t cap)
{
    struct buf text;
    uint32_t named = stuck->count < PLAN_STUCK_NAMED ? stuck->count : PLAN_STUCK_NAMED;
    buf_init(&text);
    for (uint32_t i = 0; i < named; i++)
        buf_printf(&text, "%s%llu", i == 0 ? "" : ", ", (unsigned long long)stuck->shard_ids[i]);
    if (stuck->count > named) buf_printf(&text, " and %u others", stuck->count - named);
    if (stuck->count == 0 || text.failed)
        out[0] = '\0';
    else
        snprintf(out, cap,
                "the replica%s of shard%s %.*s %s nowhere to go: all other active nodes that are up hold one",
                stuck->count == 1 ? "" : "s", stuck->count == 1 ? "" : "s", (int)text.len,
                (const char *)text.data, stuck->count == 1 ? "has" : "have");
    buf_fini(&text);
}

enum omen_err plan_drain(const struct cluster_state *state, uint32_t node_id, const struct plan_size *sizes,
        uint32_t size_count, struct plan_move **moves_out, uint32_t *count_out, struct plan_stuck *stuck_out,
        struct err *err)
{
    struct plan_board b;
    *moves_out = NULL;
    *count_out = 0;
    *stuck_out = (struct plan_stuck){ .count = 0 };
    enum omen_err rc = plan_board_init(&b, state, sizes, size_count, err);
    if (rc != OMEN_OK) return rc;
    char reason[64];
    snprintf(reason, sizeof reason, "node %u is drained", node_id);
    uint8_t from = plan_board_bin(&b, node_id);
    if (from != PLAN_NO_BIN) {
        b.bins[from].takes = false; /* also before it is recorded as draining */
        rc = drain(&b, from, reason, stuck_out, err);
    }
    if (rc == OMEN_OK) rc = plan_moves_give(&b, moves_out, count_out, err);
    plan_board_fini(&b);
    return rc;
}

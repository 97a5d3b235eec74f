/* Rebalancing to its end, in thought: plan, carry the plan out on a copy of the state, and plan again. See plan.h. */
#include "common/err.h"

#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "node/cluster/plan.h"
#include "node/cluster/state.h"

/* The map as it is when the moves have ended. A replica that was moved is another one. */
static void carry_out(struct cluster_state *state, const struct plan_move *moves, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct map_shard *shard = cluster_map_shard(state, moves[i].shard_id, NULL);
        uint32_t r = 0;
        while (r < shard->replica_count && shard->replica_ids[r] != moves[i].from_replica) r++;
        CHECK(r < shard->replica_count);
        shard->node_ids[r] = moves[i].to_node;
        shard->replica_ids[r] = state->next_replica++;
    }
}

static enum omen_err moves_add(struct plan_rounds *out, const struct plan_move *moves, uint32_t count,
        struct err *err)
{
    struct plan_move *all = mem_realloc(out->moves, ((size_t)out->count + count) * sizeof *all);
    if (all == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a plan");
    out->moves = all;
    memcpy(all + out->count, moves, count * sizeof *all);
    out->rounds++;
    for (uint32_t i = 0; i < count; i++) {
        all[out->count + i].round = out->rounds;
        out->bytes_total += moves[i].bytes;
    }
    out->count += count;
    if (out->rounds > 1) return OMEN_OK;
    out->first_count = count;
    out->bytes_first = out->bytes_total;
    return OMEN_OK;
}

enum omen_err plan_rebalance_rounds(const struct cluster_state *state, const struct plan_size *sizes,
        uint32_t size_count, uint32_t rounds_max, struct plan_rounds *out, struct err *err)
{
    *out = (struct plan_rounds){ .count = 0 };
    struct cluster_state *later = cluster_state_clone(state);
    if (later == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a plan");
    enum omen_err rc = OMEN_OK;
    bool more = true;
    while (rc == OMEN_OK && more && out->rounds < rounds_max) {
        struct plan_move *moves;
        uint32_t count;
        uint64_t minimum;
        rc = plan_rebalance(later, sizes, size_count, &moves, &count, &minimum, err);
        if (rc == OMEN_OK && out->rounds == 0) out->bytes_minimum = minimum;
        more = rc == OMEN_OK && count > 0;
        if (more) rc = moves_add(out, moves, count, err);
        if (more && rc == OMEN_OK) carry_out(later, moves, count);
        mem_free(moves);
    }
    cluster_state_unref(later);
    out->more = more;
    if (rc != OMEN_OK) plan_rounds_fini(out);
    return rc;
}

void plan_rounds_fini(struct plan_rounds *rounds)
{
    mem_free(rounds->moves);
    *rounds = (struct plan_rounds){ .count = 0 };
}

struct cluster_state *plan_state_without(const struct cluster_state *state, const uint32_t *node_ids,
        uint32_t count)
{
    struct cluster_state *copy = cluster_state_clone(state);
    for (uint32_t i = 0; copy != NULL && i < count; i++)
        for (uint32_t k = 0; k < copy->node_count; k++)
            if (copy->nodes[k].node_id == node_ids[i] && copy->nodes[k].state == CLUSTER_NODE_ACTIVE)
                copy->nodes[k].state = CLUSTER_NODE_DRAINING;
    return copy;
}

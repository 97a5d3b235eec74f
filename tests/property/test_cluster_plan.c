/* Plans against a brute force that tries every plan of a small cluster, and against what must hold of any plan:
 * moves help, move hardly more than the least, keep replicas apart, are accepted by the state machine, and leave
 * nothing to do. OMEN_SEED=n repeats a run. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "node/cluster/plan.h"
#include "node/cluster/state.h"

#define MB 1000000ull
#define REPLICA_WEIGHT 65536u

static uint64_t random_state;

static uint32_t rnd(uint32_t n)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return n == 0 ? 0 : (uint32_t)(random_state >> 11) % n;
}

static void seed_set(int i)
{
    const char *given = getenv("OMEN_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : 4000 + (uint64_t)i;
    printf("seed %llu\n", (unsigned long long)seed);
    random_state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int k = 0; k < 8; k++) (void)rnd(1);
}

/* ---- small clusters, made without a state machine ---- */

struct made {
    struct cluster_state *state;
    struct plan_size *sizes; /* [shards] */
    struct map_shard *shards;
    uint32_t shard_count;
};

static struct made make(uint32_t nodes, uint32_t zones, uint32_t shards, uint32_t replication)
{
    struct made m = { .state = cluster_state_new(1), .shard_count = shards };
    ck_assert_ptr_nonnull(m.state);
    m.state->cluster_id = 5;
    for (uint32_t i = 0; i < nodes; i++) {
        struct cluster_node *n = cluster_insert(&m.state->nodes, &m.state->node_count, i, sizeof *n);
        n->node_id = (uint32_t)m.state->next_node++;
        n->state = CLUSTER_NODE_ACTIVE;
        if (zones > 0) snprintf(n->labels, sizeof n->labels, "zone=%c", (char)('a' + i % zones));
    }
    m.shards = mem_must_calloc(shards, sizeof *m.shards);
    m.sizes = mem_must_calloc(shards + 1, sizeof *m.sizes);
    for (uint32_t i = 0; i < shards; i++) {
        m.shards[i].shard_id = m.state->next_group++;
        m.shards[i].replica_count = replication;
        for (uint32_t r = 0; r < replication; r++) m.shards[i].replica_ids[r] = m.state->next_replica++;
    }
    struct map *map = m.state->map;
    map->collections = mem_must_calloc(1, sizeof *map->collections);
    map->collection_count = 1;
    map->collections[0] = (struct map_collection){ .id = 1,
        .name = "c",
        .replication = replication,
        .shards = m.shards,
        .shard_count = shards };
    m.state->next_collection = 2;
    return m;
}

static void unmake(struct made *m)
{
    mem_free(m->sizes);
    cluster_state_unref(m->state);
}

static bool holds(const struct map_shard *shard, uint32_t node_id)
{
    for (uint32_t r = 0; r < shard->replica_count; r++)
        if (shard->node_ids[r] == node_id) return true;
    return false;
}

/* Replicas on random different nodes among the first `nodes`. */
static void place_random(struct made *m, uint32_t nodes)
{
    for (uint32_t i = 0; i < m->shard_count; i++) {
        struct map_shard *shard = &m->shards[i];
        for (uint32_t r = 0; r < shard->replica_count; r++) {
            uint32_t node_id;
            do {
                node_id = 1 + rnd(nodes);
            } while (holds(shard, node_id));
            shard->node_ids[r] = node_id;
        }
    }
}

static void sizes_random(struct made *m, uint64_t least, uint64_t most)
{
    for (uint32_t i = 0; i < m->shard_count; i++)
        m->sizes[i] = (struct plan_size){ m->shards[i].shard_id,
            least + (uint64_t)rnd(1000000) * (most - least) / 1000000 };
}

/* ---- what a plan comes to ---- */

struct value {
    uint64_t moved; /* weight */
    uint64_t over;  /* above the mean, over all active nodes */
    uint32_t pairs; /* of replicas of one shard in one failure domain */
};

static void value_of(const struct made *m, struct value *out)
{
    uint64_t load[CLUSTER_NODES_MAX + 1] = { 0 }, sum = 0, active = 0;
    out->over = out->pairs = 0;
    for (uint32_t i = 0; i < m->shard_count; i++) {
        const struct map_shard *shard = &m->shards[i];
        for (uint32_t r = 0; r < shard->replica_count; r++) {
            load[shard->node_ids[r]] += m->sizes[i].bytes + REPLICA_WEIGHT;
            for (uint32_t k = 0; k < r; k++)
                out->pairs += cluster_same_domain(cluster_state_node(m->state, shard->node_ids[r]),
                        cluster_state_node(m->state, shard->node_ids[k]));
        }
    }
    for (uint32_t i = 0; i < m->state->node_count; i++) {
        if (m->state->nodes[i].state != CLUSTER_NODE_ACTIVE) continue;
        sum += load[m->state->nodes[i].node_id];
        active++;
    }
    for (uint32_t i = 0; i < m->state->node_count; i++) {
        const struct cluster_node *n = &m->state->nodes[i];
        if (n->state == CLUSTER_NODE_ACTIVE && load[n->node_id] > sum / active)
            out->over += load[n->node_id] - sum / active;
    }
}

static uint64_t carry_out(struct made *m, const struct plan_move *moves, uint32_t count)
{
    uint64_t moved = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t s = 0, r = 0;
        while (s < m->shard_count && m->shards[s].shard_id != moves[i].shard_id) s++;
        ck_assert_uint_lt(s, m->shard_count);
        struct map_shard *shard = &m->shards[s];
        while (r < shard->replica_count && shard->replica_ids[r] != moves[i].from_replica) r++;
        ck_assert_uint_lt(r, shard->replica_count);
        ck_assert_uint_eq(shard->node_ids[r], moves[i].from_node);
        ck_assert(!holds(shard, moves[i].to_node));
        const struct cluster_node *to = cluster_state_node(m->state, moves[i].to_node);
        ck_assert_ptr_nonnull(to);
        ck_assert_int_eq(to->state, CLUSTER_NODE_ACTIVE);
        ck_assert_uint_eq(moves[i].bytes, m->sizes[s].bytes);
        ck_assert_uint_gt(strlen(moves[i].why), 0);
        shard->node_ids[r] = moves[i].to_node;
        moved += moves[i].bytes + REPLICA_WEIGHT;
    }
    return moved;
}

/* ---- every plan there is ---- */

struct search {
    struct made *m;
    struct value wanted; /* at least as even, and as far apart, as this */
    uint64_t least;      /* moved */
};

static void search_shard(struct search *s, uint32_t at, uint64_t moved)
{
    if (moved >= s->least) return;
    if (at == s->m->shard_count) {
        struct value v;
        value_of(s->m, &v);
        if (v.over <= s->wanted.over && v.pairs <= s->wanted.pairs) s->least = moved;
        return;
    }
    search_shard(s, at + 1, moved);
    struct map_shard *shard = &s->m->shards[at];
    for (uint32_t r = 0; r < shard->replica_count; r++) {
        uint32_t from = shard->node_ids[r];
        for (uint32_t i = 0; i < s->m->state->node_count; i++) {
            const struct cluster_node *n = &s->m->state->nodes[i];
            if (n->state != CLUSTER_NODE_ACTIVE || holds(shard, n->node_id)) continue;
            shard->node_ids[r] = n->node_id;
            search_shard(s, at + 1, moved + s->m->sizes[at].bytes + REPLICA_WEIGHT);
            shard->node_ids[r] = from;
        }
    }
}

static struct plan_move *plan(const struct made *m, uint32_t *count_out)
{
    struct plan_move *moves;
    struct err err;
    uint64_t minimum;
    ck_assert_int_eq(plan_rebalance(m->state, m->sizes, m->shard_count, &moves, count_out, &minimum, &err),
            OMEN_OK);
    return moves;
}

/* What the plan moved beside the least that any as even, as far apart, moves: {moved, least}; both 0 when nothing
 * was. */
static void held_against_all(struct made *m, uint64_t *moved_out, uint64_t *least_out)
{
    uint32_t count;
    struct plan_move *moves = plan(m, &count);
    struct map_shard before[8];
    struct value first, after;
    ck_assert_uint_le(m->shard_count, 8);
    memcpy(before, m->shards, m->shard_count * sizeof *before);
    value_of(m, &first);
    *moved_out = carry_out(m, moves, count);
    value_of(m, &after);
    ck_assert_uint_le(after.pairs, first.pairs);
    if (after.pairs == first.pairs) ck_assert_uint_le(after.over, first.over);
    memcpy(m->shards, before, m->shard_count * sizeof *before);
    struct search s = { m, after, *moved_out + 1 };
    search_shard(&s, 0, 0);
    *least_out = *moved_out == 0 ? 0 : s.least;
    mem_free(moves);
}

/* Of 100 random clusters none moves more than a quarter above the least, and hardly any more than a tenth. */
START_TEST(a_plan_moves_hardly_more_than_the_least_that_is_as_even)
{
    seed_set(_i);
    uint32_t above = 0, some = 0;
    for (int i = 0; i < 100; i++) {
        uint32_t nodes = 2 + rnd(3), replication = 1 + rnd(nodes - 1), zones = rnd(2) == 0 ? 0 : 2 + rnd(2);
        struct made m = make(nodes, zones, 1 + rnd(6), replication);
        place_random(&m, rnd(2) == 0 && nodes > replication ? nodes - 1 : nodes);
        sizes_random(&m, (rnd(2) == 0 ? 1 : 90) * MB, 100 * MB);
        uint64_t moved, least;
        held_against_all(&m, &moved, &least);
        ck_assert_msg(moved * 4 <= least * 5, "%llu moved, %llu would do", (unsigned long long)moved,
                (unsigned long long)least);
        above += moved * 10 > least * 11;
        some += moved > 0;
        unmake(&m);
    }
    ck_assert_uint_gt(some, 40);
    ck_assert_uint_le(above, 2);
}
END_TEST

/* A node joined: never more than a tenth above the least. */
START_TEST(a_joined_node_is_filled_with_at_most_a_tenth_above_the_least)
{
    seed_set(1000 + _i);
    for (int i = 0; i < 40; i++) {
        uint32_t nodes = 3 + rnd(2), replication = 1 + rnd(nodes - 1);
        struct made m = make(nodes, 0, 2 + rnd(5), replication > 3 ? 3 : replication);
        place_random(&m, nodes - 1);
        sizes_random(&m, 80 * MB, 100 * MB);
        uint64_t moved, least;
        held_against_all(&m, &moved, &least);
        ck_assert_msg(moved * 10 <= least * 11, "%llu moved, %llu would do", (unsigned long long)moved,
                (unsigned long long)least);
        unmake(&m);
    }
}
END_TEST

/* Larger ones: nobody can try every plan, but what is above the mean must be moved byte by byte at least. */
START_TEST(large_clusters_become_even_by_little_more_than_what_is_above_the_mean)
{
    seed_set(2000 + _i);
    uint32_t nodes = 4 + rnd(20), replication = 1 + rnd(3);
    struct made m = make(nodes, rnd(2) == 0 ? 0 : nodes, 100 + rnd(400), replication);
    place_random(&m, nodes - 1); /* the last one is new */
    sizes_random(&m, 50 * MB, 100 * MB);
    struct value first, after;
    value_of(&m, &first);
    uint32_t count;
    struct plan_move *moves = plan(&m, &count);
    uint64_t moved = carry_out(&m, moves, count);
    value_of(&m, &after);
    ck_assert_uint_le(after.over, (uint64_t)nodes * 50 * MB);
    ck_assert_msg(moved * 10 <= (first.over - after.over) * 11, "%llu moved for %llu",
            (unsigned long long)moved, (unsigned long long)(first.over - after.over));
    mem_free(moves);
    unmake(&m);
}
END_TEST

START_TEST(a_plan_made_again_gives_nothing_to_do)
{
    seed_set(3000 + _i);
    uint32_t nodes = 2 + rnd(8), replication = 1 + rnd(nodes < 4 ? nodes : 4);
    struct made m = make(nodes, rnd(3), 1 + rnd(40), replication);
    place_random(&m, replication + rnd(nodes - replication + 1));
    sizes_random(&m, rnd(3) == 0 ? 0 : MB, rnd(4) == 0 ? MB : 1000 * MB);
    uint32_t count = 1, rounds = 0;
    while (count > 0) { /* once more for every replica of a shard that has to move */
        struct plan_move *moves = plan(&m, &count);
        (void)carry_out(&m, moves, count);
        mem_free(moves);
        ck_assert_uint_le(rounds++, replication + 1);
    }
    unmake(&m);
}
END_TEST

/* Several nodes joined at once, which takes a round for each replica of a shard that has to move. In all rounds together
 * hardly more is moved than what was above the mean, and the last round leaves nothing; the forecast is what comes. */
START_TEST(rounds_end_even_and_move_hardly_more_than_what_was_above_the_mean)
{
    seed_set(6000 + _i);
    uint32_t old = 3 + rnd(6), replication = 1 + rnd(3), nodes = old + 1 + rnd(2 * old);
    struct made m = make(nodes, 0, 100 + rnd(200), replication);
    place_random(&m, old);
    sizes_random(&m, 50 * MB, 100 * MB);
    struct plan_rounds forecast;
    struct err err;
    ck_assert_int_eq(plan_rebalance_rounds(m.state, m.sizes, m.shard_count, 64, &forecast, &err), OMEN_OK);
    ck_assert(!forecast.more);
    struct value first, after;
    value_of(&m, &first);
    uint64_t moved = 0;
    uint32_t count = 1, rounds = 0, at = 0;
    while (count > 0) {
        struct plan_move *moves = plan(&m, &count);
        for (uint32_t i = 0; i < count; i++, at++) {
            ck_assert_uint_lt(at, forecast.count);
            const struct plan_move *said = &forecast.moves[at];
            ck_assert_uint_eq(said->round, rounds + 1);
            ck_assert(said->shard_id == moves[i].shard_id && said->to_node == moves[i].to_node);
        }
        moved += carry_out(&m, moves, count);
        rounds += count > 0;
        mem_free(moves);
        ck_assert_uint_le(rounds, replication + 1);
    }
    value_of(&m, &after);
    ck_assert_uint_eq(at, forecast.count);
    ck_assert_uint_eq(rounds, forecast.rounds);
    ck_assert_uint_eq(moved, forecast.bytes_total + (uint64_t)forecast.count * REPLICA_WEIGHT);
    ck_assert_msg(after.over <= (uint64_t)nodes * 50 * MB, "%llu are still above the mean",
            (unsigned long long)after.over);
    ck_assert_msg(moved * 10 <= (first.over - after.over) * 11, "%llu moved for %llu in %u rounds",
            (unsigned long long)moved, (unsigned long long)(first.over - after.over), rounds);
    plan_rounds_fini(&forecast);
    unmake(&m);
}
END_TEST

/* Whatever the cluster, and although shards grow and shrink from round to round, the rounds come to an end. */
START_TEST(rounds_end_while_shards_change)
{
    seed_set(7000 + _i);
    uint32_t nodes = 2 + rnd(10), replication = 1 + rnd(nodes < 4 ? nodes : 4);
    struct made m = make(nodes, rnd(4), 1 + rnd(100), replication);
    place_random(&m, replication + rnd(nodes - replication + 1));
    sizes_random(&m, rnd(2) == 0 ? MB : 50 * MB, 100 * MB);
    uint32_t count = 1, rounds = 0;
    while (count > 0) {
        struct plan_move *moves = plan(&m, &count);
        (void)carry_out(&m, moves, count);
        mem_free(moves);
        ck_assert_uint_le(rounds++, 2 * replication + 6);
        for (uint32_t i = 0; i < m.shard_count; i++) /* a hundredth up or down */
            m.sizes[i].bytes = m.sizes[i].bytes * (990 + rnd(21)) / 1000;
    }
    unmake(&m);
}
END_TEST

START_TEST(clusters_that_are_even_are_left_alone)
{
    struct made m = make(3, 0, 30, 1);
    for (uint32_t i = 0; i < 30; i++) m.shards[i].node_ids[0] = 1 + i % 3;
    random_state = 7;
    sizes_random(&m, 98 * MB, 102 * MB);
    uint32_t count;
    mem_free(plan(&m, &count));
    ck_assert_uint_eq(count, 0);
    m.state->nodes[2].state = CLUSTER_NODE_DRAINING; /* its replicas are a drain's business */
    mem_free(plan(&m, &count));
    ck_assert_uint_eq(count, 0);
    unmake(&m);
}
END_TEST

START_TEST(empty_shards_are_spread_by_their_number)
{
    struct made m = make(4, 0, 16, 3);
    random_state = 7;
    place_random(&m, 3);
    sizes_random(&m, 0, 0);
    uint32_t count;
    struct plan_move *moves = plan(&m, &count);
    ck_assert_uint_eq(count, 12);
    for (uint32_t i = 0; i < count; i++) ck_assert_uint_eq(moves[i].to_node, 4);
    mem_free(moves);
    unmake(&m);
}
END_TEST

/* Replicas on their way are counted where they go, and their shards left alone. */
START_TEST(a_plan_under_way_is_not_made_again)
{
    struct made m = make(4, 0, 16, 3);
    random_state = 9;
    place_random(&m, 3);
    sizes_random(&m, 90 * MB, 110 * MB);
    uint32_t count;
    struct plan_move *moves = plan(&m, &count);
    ck_assert_uint_ge(count, 10);
    for (uint32_t i = 0; i < count; i++) {
        struct cluster_op *op = cluster_insert(&m.state->ops, &m.state->op_count, i, sizeof *op);
        *op = (struct cluster_op){ .op_id = i + 1,
            .shard_id = moves[i].shard_id,
            .from_replica = moves[i].from_replica,
            .to_replica = m.state->next_replica++,
            .from_node = moves[i].from_node,
            .to_node = moves[i].to_node,
            .step = i % 2 == 0 ? OP_ADD : OP_CATCH_UP };
    }
    mem_free(moves);
    moves = plan(&m, &count);
    ck_assert_uint_eq(count, 0);
    mem_free(moves);
    for (uint32_t i = 0; i < m.state->op_count; i++) m.state->ops[i].step = OP_CANCELING;
    moves = plan(&m, &count); /* they stay where they are: others have to go, as many as there are */
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < m.state->op_count; k++)
            ck_assert_uint_ne(moves[i].shard_id, m.state->ops[k].shard_id);
    mem_free(moves);
    unmake(&m);
}
END_TEST

START_TEST(a_drain_empties_the_node)
{
    seed_set(5000 + _i);
    uint32_t nodes = 3 + rnd(6), replication = 1 + rnd(nodes < 5 ? nodes - 1 : 3), held = 0;
    struct made m = make(nodes, rnd(4), 1 + rnd(40), replication);
    place_random(&m, nodes);
    sizes_random(&m, MB, 1000 * MB);
    uint32_t gone = 1 + rnd(nodes), count;
    for (uint32_t i = 0; i < m.shard_count; i++) held += holds(&m.shards[i], gone);
    struct plan_move *moves;
    struct plan_stuck stuck;
    struct err err;
    enum omen_err rc = plan_drain(m.state, gone, m.sizes, m.shard_count, &moves, &count, &stuck, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    ck_assert_uint_eq(count, held);
    ck_assert_uint_eq(stuck.count, 0);
    (void)carry_out(&m, moves, count);
    for (uint32_t i = 0; i < m.shard_count; i++) ck_assert(!holds(&m.shards[i], gone));
    mem_free(moves);
    unmake(&m);
}
END_TEST

/* Of three nodes every one holds a replica of the shards with three; those with two move. */
START_TEST(a_drain_moves_what_it_can_and_names_the_rest)
{
    seed_set(5500 + _i);
    uint32_t three = rnd(7), two = rnd(8), held = 0, count;
    struct made m = make(3, 0, three + two + 1, 3);
    place_random(&m, 3);
    for (uint32_t i = three; i < m.shard_count; i++) m.shards[i].replica_count = 2;
    sizes_random(&m, MB, 1000 * MB);
    for (uint32_t i = three; i < m.shard_count; i++) held += holds(&m.shards[i], 2);
    struct plan_move *moves;
    struct plan_stuck stuck;
    struct err err;
    char text[200];
    ck_assert_int_eq(plan_drain(m.state, 2, m.sizes, m.shard_count, &moves, &count, &stuck, &err), OMEN_OK);
    ck_assert_uint_eq(count, held);
    ck_assert_uint_eq(stuck.count, three);
    plan_stuck_text(&stuck, text, sizeof text);
    ck_assert_msg((strstr(text, "nowhere to go") != NULL) == (three > 0), "%s", text);
    ck_assert_msg((strstr(text, "others") != NULL) == (three > PLAN_STUCK_NAMED), "%s", text);
    (void)carry_out(&m, moves, count);
    for (uint32_t i = 0; i < m.shard_count; i++) ck_assert(holds(&m.shards[i], 2) == (i < three));
    mem_free(moves);
    unmake(&m);
}
END_TEST

/* As many shards as there may be: in a moment, and within the limit of one entry. */
START_TEST(plans_are_bounded_however_many_shards_there_are)
{
    struct made m = make(20, 4, 60000, 3);
    random_state = 11;
    place_random(&m, 10);
    sizes_random(&m, 0, 1000 * MB);
    uint32_t count;
    struct plan_move *moves = plan(&m, &count);
    ck_assert_uint_eq(count, CLUSTER_MOVES_MAX);
    (void)carry_out(&m, moves, count);
    mem_free(moves);
    unmake(&m);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cluster_plan");
    TCase *tcase = tcase_create("all");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, a_plan_moves_hardly_more_than_the_least_that_is_as_even, 0, 20);
    tcase_add_loop_test(tcase, a_joined_node_is_filled_with_at_most_a_tenth_above_the_least, 0, 20);
    tcase_add_loop_test(tcase, large_clusters_become_even_by_little_more_than_what_is_above_the_mean, 0, 20);
    tcase_add_loop_test(tcase, a_plan_made_again_gives_nothing_to_do, 0, 100);
    tcase_add_loop_test(tcase, rounds_end_even_and_move_hardly_more_than_what_was_above_the_mean, 0, 60);
    tcase_add_loop_test(tcase, rounds_end_while_shards_change, 0, 100);
    tcase_add_test(tcase, clusters_that_are_even_are_left_alone);
    tcase_add_test(tcase, empty_shards_are_spread_by_their_number);
    tcase_add_test(tcase, a_plan_under_way_is_not_made_again);
    tcase_add_loop_test(tcase, a_drain_empties_the_node, 0, 50);
    tcase_add_loop_test(tcase, a_drain_moves_what_it_can_and_names_the_rest, 0, 20);
    tcase_add_test(tcase, plans_are_bounded_however_many_shards_there_are);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

/* Whose clock is off (CORRECTNESS A3), as it travels with the reports: a node reports where its clock is for sure against
 * the monotone one of the cluster group's leader; the answer tells what that one showed, and how far the node is off
 * the median for sure. The node itself concludes (clock_skew.h) and says so in its next report, so that a new leader
 * need not find out again. Who is off hands its shards over and takes no writes (shard_admission.c, shard_write.c), is
 * heir to none, and hands over the cluster group as well (member_group.c). */
#include "common/err.h"

#include <inttypes.h>

#include "common/log.h"
#include "node/member/member_impl.h"

#define NODE_LOST_NS 60000000000ull /* not heard of for so long: its clock does not count any more */

/* ---- the node's side ---- */

void clock_begin(struct member *m)
{
    m->clock = (struct clock_watch){ 0 };
    atomic_init(&m->clock_life, clock_wall_ms(m->node->options.clock) << 10 & INT64_MAX);
}

static bool step_seen(struct member *m)
{
    uint64_t before_ns = member_now_ns(m), wall_ms = clock_wall_ms(m->node->options.clock);
    if (!clock_watch_read(&m->clock, before_ns, wall_ms, member_now_ns(m))) return false;
    LOG_INFO("member.clock_stepped", "wall_ms=%" PRIu64, wall_ms);
    atomic_fetch_add(&m->clock_life, 1); /* what others measured against it may be wrong: it may have slept */
    atomic_store(&m->report_soon, true);
    return true;
}

void clock_look(struct member *m) { (void)step_seen(m); }

void clock_report_put(struct member *m, struct doc_builder *b)
{
    struct clock_span offset;
    put_bool(b, "clock_off", m->clock.off);
    if (!clock_watch_offset(&m->clock, member_now_ns(m), &offset)) return;
    put_u64(b, "clock_leader", m->clock.leader);
    put_u64(b, "clock_life", m->clock.leader_life);
    put_i64(b, "clock_low_ns", offset.low_ns);
    put_i64(b, "clock_high_ns", offset.high_ns);
}

/* Who leads shards here gives way by `clock_off`; people read the rest. */
static void skew_tell(struct member *m, bool changed)
{
    struct shard_env *env = &m->node->env;
    int64_t skew_ms = clock_span_ms(m->clock.skew);
    atomic_store(&env->clock_skew_ms, skew_ms);
    if (!changed) return;
    atomic_store(&env->clock_off, m->clock.off);
    atomic_store(&m->report_soon, true);
    if (m->clock.off)
        LOG_WARN("member.clock_off",
                "skew_ms=%" PRId64 " error_ms=%" PRId64 " reason=\"this node may not lead\"", skew_ms,
                clock_span_error_ms(m->clock.skew));
    else
        LOG_INFO("member.clock_right", "skew_ms=%" PRId64, skew_ms);
}

void clock_answer_take(struct member *m, struct doc reply, uint32_t leader, uint64_t began_ns)
{
    uint64_t ended_ns = member_now_ns(m), life = field_u64(reply, "clock_life");
    struct clock_span skew;
    if (step_seen(m) || life == 0) return;
    clock_watch_trip(&m->clock, leader, life, began_ns, ended_ns, field_u64(reply, "monotonic_ns"));
    if (!field_i64(reply, "clock_low_ns", &skew.low_ns) ||
            !field_i64(reply, "clock_high_ns", &skew.high_ns) || skew.low_ns > skew.high_ns ||
            skew.low_ns < -CLOCK_FAR_NS || skew.high_ns > CLOCK_FAR_NS)
        return;
    bool changed = clock_watch_told(&m->clock, ended_ns, skew);
    skew_tell(m, changed);
}

/* ---- the leader's ---- */

void clock_report_parse(struct doc request, struct clock_report *out)
{
    *out = (struct clock_report){ .off = field_bool(request, "clock_off"),
        .life = field_u64(request, "clock_life") };
    bool whole = field_i64(request, "clock_low_ns", &out->offset.low_ns) &&
            field_i64(request, "clock_high_ns", &out->offset.high_ns) &&
            out->offset.low_ns <= out->offset.high_ns && out->offset.low_ns > -CLOCK_FAR_NS &&
            out->offset.high_ns < CLOCK_FAR_NS;
    if (whole) out->leader = field_u32(request, "clock_leader");
}

static bool offset_counts(struct member *m, const struct node_report *r)
{
    return r != NULL && r->clock.leader == member_id(m) && r->clock.life == atomic_load(&m->clock_life) &&
            member_now_ns(m) - r->heard_ns <= CLOCK_FRESH_NS;
}

static const struct node_report *report_at(struct member *m, uint32_t node_id)
{
    for (uint32_t i = 0; i < MEMBER_NODES_MAX; i++)
        if (m->reports[i].node_id == node_id) return &m->reports[i];
    return NULL;
}

bool clock_median_now(struct member *m, const struct cluster_state *state, struct clock_span *median_out)
{
    struct clock_span offsets[MEMBER_NODES_MAX];
    uint32_t count = 0;
    uint64_t now = member_now_ns(m), led_ns = atomic_load(&m->led_since_ns);
    for (uint32_t i = 0; i < state->node_count && count < MEMBER_NODES_MAX; i++) {
        if (state->nodes[i].state == CLUSTER_NODE_REMOVED) continue;
        const struct node_report *r = report_at(m, state->nodes[i].node_id);
        uint64_t silent_since = r == NULL || r->heard_ns < led_ns ? led_ns : r->heard_ns;
        if (now - silent_since > NODE_LOST_NS) continue;
        offsets[count++] = offset_counts(m, r) ? r->clock.offset : CLOCK_ANYTHING;
    }
    return clock_median(offsets, count, median_out);
}

void clock_answer_put(struct member *m, uint32_t node_id, struct doc_builder *reply)
{
    struct clock_span median, skew;
    struct cluster_state *state = member_state(m);
    pthread_mutex_lock(&m->lock);
    const struct node_report *r = report_at(m, node_id);
    bool known = offset_counts(m, r) && clock_median_now(m, state, &median);
    if (known) skew = clock_skew(r->clock.offset, median);
    pthread_mutex_unlock(&m->lock);
    cluster_state_unref(state);
    put_u64(reply, "clock_life", atomic_load(&m->clock_life));
    if (known && skew.low_ns > -CLOCK_FAR_NS && skew.high_ns < CLOCK_FAR_NS) {
        put_i64(reply, "clock_low_ns", skew.low_ns);
        put_i64(reply, "clock_high_ns", skew.high_ns);
    }
    put_u64(reply, "monotonic_ns", member_now_ns(m));
}

void clock_status_put(struct member *m, const struct node_report *r, const struct clock_span *median,
        struct doc_builder *b)
{
    struct clock_span skew = { 0, 0 };
    bool known = median != NULL && offset_counts(m, r);
    if (known) skew = clock_skew(r->clock.offset, *median);
    known = known && skew.low_ns > -CLOCK_FAR_NS && skew.high_ns < CLOCK_FAR_NS;
    begin_object(b, "clock");
    put_bool(b, "off", r != NULL && r->clock.off);
    put_bool(b, "known", known);
    put_i64(b, "skew_ms", known ? clock_span_ms(skew) : 0);
    put_i64(b, "error_ms", known ? clock_span_error_ms(skew) : 0);
    doc_end(b);
}

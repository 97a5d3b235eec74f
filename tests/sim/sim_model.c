/* What shards should hold: committed entries applied by a second, naive definition of what they mean (CORRECTNESS A3, A4).
 * It knows the requests that sim_client.c makes and no others. All states are kept, so that a read is compared with the
 * state of exactly the sequence it says it saw. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "tests/sim/sim.h"

void model_init(struct model *m)
{
    memset(m, 0, sizeof *m);
    m->schema.field_count = 1;
    m->schema.fields[0] = (struct vector_field){ "", SIM_DIM, METRIC_L2 };
    m->after[0] = mem_must_calloc(1, sizeof *m->after[0]);
}

void model_fini(struct model *m)
{
    for (uint64_t i = 0; i <= m->sequence; i++) mem_free(m->after[i]);
}

const struct model_op *model_find(const struct model *m, uint64_t client, uint64_t seq)
{
    for (uint32_t i = m->op_count; i-- > 0;) {
        if (m->ops[i].client == client && m->ops[i].seq == seq) return &m->ops[i];
    }
    return NULL;
}

static int64_t member(struct doc payload, const char *name)
{
    struct doc v = doc_member(payload, (struct bytes){ (const uint8_t *)name, strlen(name) });
    return v.data != NULL ? doc_i64(v) : -1;
}

/* ---- commit ---- */

static bool lives(const struct model_row *row, uint64_t now_ms)
{
    return row->there && (row->expires_ms == 0 || row->expires_ms > now_ms);
}

static uint32_t op_apply(struct model *m, struct model_rows *s, const struct entry *e,
        const struct entry_op *op)
{
    struct model_row *row = &s->rows[op->key.id.lo - 1];
    bool was = lives(row, s->log_time_ms);
    if (op->kind == POINT_UPSERT) {
        *row = (struct model_row){ .there = true,
            .version = m->sequence,
            .expires_ms = op->expires_ms,
            .n = member(op->payload, "n"),
            .t = member(op->payload, "t") };
        memcpy(row->vector, entry_row(e, 0, op->rows[0], SIM_DIM), sizeof row->vector);
        return 1;
    }
    if (op->kind == POINT_DELETE) {
        *row = (struct model_row){ 0 };
        return was;
    }
    if (!was) return 0;
    row->version = m->sequence;
    if (member(op->payload, "t") >= 0) row->t = member(op->payload, "t");
    return 1;
}

static void request_apply(struct model *m, struct model_rows *s, const struct entry *e, uint32_t i)
{
    struct entry_request r;
    struct model_op nobody = { 0 }, *done = &nobody; /* a node's own have no op id */
    entry_request_at(e, i, &r);
    if (r.op_id.client != 0) {
        if (r.op_id.issue_ms + SIM_RETENTION_MS < s->log_time_ms) return; /* expired */
        if (model_find(m, r.op_id.client, r.op_id.seq) != NULL) return;   /* applied before */
        done = &m->ops[m->op_count++];
        *done = (struct model_op){ r.op_id.client, r.op_id.seq, m->sequence, 0 };
    }
    for (uint32_t j = r.first_op; j < r.first_op + r.op_count; j++) {
        struct entry_op op;
        entry_op_at(e, j, &op);
        done->affected += op_apply(m, s, e, &op);
    }
}

const char *model_commit(struct model *m, uint64_t sequence, const void *entry, uint32_t len)
{
    struct entry e;
    if (sequence != ++m->sequence) return "a sequence was left out";
    if (sequence >= WORLD_INDEXES_MAX) return "too many entries";
    if (entry_parse(entry, len, &m->schema, true, &e, NULL) != OMEN_OK) return "an entry that does not parse";
    struct model_rows *s = mem_must_alloc(sizeof *s);
    *s = *m->after[sequence - 1];
    m->after[sequence] = s;
    if (e.log_time_ms < s->log_time_ms) return "log time went back";
    s->log_time_ms = e.log_time_ms;
    if (m->op_count + e.request_count > SIM_APPLIED_MAX) return "too many requests";
    for (uint32_t i = 0; i < e.request_count; i++) request_apply(m, s, &e, i);
    return NULL;
}

/* ---- compare ---- */

const char *model_digests(struct model *m, const struct store_digest *digests, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct store_digest *known = &m->digests[digests[i].sequence];
        if (known->sequence != 0 && known->sum != digests[i].sum) return "replicas have other digests";
        *known = digests[i];
    }
    return NULL;
}

static uint64_t read_time(const struct model_rows *s, uint64_t now_ms)
{
    return now_ms > s->log_time_ms ? now_ms : s->log_time_ms;
}

uint32_t model_count(const struct model *m, uint64_t sequence, uint64_t now_ms)
{
    const struct model_rows *s = m->after[sequence];
    uint32_t count = 0;
    for (uint32_t i = 0; i < SIM_POINTS; i++) count += lives(&s->rows[i], read_time(s, now_ms));
    return count;
}

const char *model_compare(const struct model *m, uint64_t sequence, uint64_t now_ms, uint64_t id,
        const struct point_view *point)
{
    const struct model_rows *s = m->after[sequence];
    const struct model_row *row = &s->rows[id - 1];
    bool there = lives(row, read_time(s, now_ms));
    if (point == NULL) return there ? "a point is missing" : NULL;
    if (!there) return row->there ? "an expired point came back" : "a deleted point came back";
    if (point->version != row->version) return "a point has another version";
    if (point->expires_ms != row->expires_ms) return "a point expires at another time";
    if (point->vectors[0] == NULL || memcmp(point->vectors[0], row->vector, sizeof row->vector) != 0)
        return "a point has another vector";
    if (member(point->payload, "n") != row->n || member(point->payload, "t") != row->t)
        return "a point has another payload";
    return NULL;
}

static float distance(const float *a, const float *b)
{
    float sum = 0;
    for (uint32_t i = 0; i < SIM_DIM; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

/* How many live rows are nearer than `hit`, in the order of hits. */
static uint32_t nearer(const struct model_rows *s, uint64_t at_ms, const float *query, const struct hit *hit)
{
    uint32_t count = 0;
    for (uint64_t id = 1; id <= SIM_POINTS; id++) {
        const struct model_row *row = &s->rows[id - 1];
        if (!lives(row, at_ms)) continue;
        float d = distance(query, row->vector);
        count += d < hit->distance || (d == hit->distance && id < hit->point.id.lo);
    }
    return count;
}

const char *model_search(const struct model *m, uint64_t sequence, uint64_t now_ms,
        const struct search_params *search, const struct hit *hits, uint32_t count)
{
    const struct model_rows *s = m->after[sequence];
    uint64_t at_ms = read_time(s, now_ms);
    uint32_t live = model_count(m, sequence, now_ms);
    if (count != (live < search->k ? live : search->k)) return "a search has another number of hits";
    for (uint32_t i = 0; i < count; i++) {
        const char *wrong = model_compare(m, sequence, now_ms, hits[i].point.id.lo, &hits[i].point);
        if (wrong != NULL) return wrong;
        if (hits[i].distance != distance(search->query, hits[i].point.vectors[0]))
            return "a hit has another distance";
        if (i > 0 && hit_compare(&hits[i - 1], &hits[i]) >= 0) return "hits are not in order";
        if (search->exact && nearer(s, at_ms, search->query, &hits[i]) != i)
            return "an exact search missed a point";
    }
    return NULL;
}

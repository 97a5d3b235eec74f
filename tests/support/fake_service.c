/* See fake_service.h. Outputs of a call live in one arena per call, freed by release, so a router that reads an answer after
 * it gave the call back is caught by the sanitizers. */
#include "common/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "tests/support/fake_service.h"

static struct point_key key_of(const struct fake_point *p)
{
    return point_key_make(p->id, (struct shard_key){ { p->key, p->key_len } });
}

static struct point_view view_of(const struct fake_point *p, uint32_t vector_mask)
{
    struct point_view view = { .id = p->id, .key = { { p->key, p->key_len } }, .version = 1 };
    if (vector_mask & 1) view.vectors[0] = p->vector;
    return view;
}

static void run_write(struct fake_service *fake, struct shard_call *call)
{
    const struct collection_schema *schema = &fake->map->collections[0].schema;
    fake->last_op_id = call->in.write.op_id;
    for (uint32_t i = 0; i < call->in.write.count; i++) {
        const struct point_op *op = &call->in.write.ops[i];
        if (op->kind != POINT_UPSERT) {
            for (uint32_t p = 0; p < fake->point_count; p++) {
                if (fake->points[p].shard_id == call->shard_id &&
                        point_id_equal(fake->points[p].id, op->id)) {
                    call->out.write.affected++;
                }
            }
            continue;
        }
        CHECK(fake->point_count < FAKE_POINTS_MAX && op->key.canonical.len <= sizeof fake->points[0].key);
        struct fake_point *p = &fake->points[fake->point_count++];
        *p = (struct fake_point){ .shard_id = call->shard_id, .id = op->id };
        p->key_len = (uint32_t)op->key.canonical.len;
        if (p->key_len > 0) memcpy(p->key, op->key.canonical.data, p->key_len);
        if (op->vectors[0] != NULL)
            memcpy(p->vector, (const void *)op->vectors[0], 4 * schema->fields[0].dim);
        call->out.write.affected++;
    }
    call->sequence = ++fake->sequence;
}

static int hit_order(const void *a, const void *b) { return hit_compare(a, b); }

static void run_search(struct fake_service *fake, struct shard_call *call, struct arena *arena)
{
    uint32_t count = call->in.search.count;
    call->out.search.hits = arena_calloc(arena, count, sizeof *call->out.search.hits);
    call->out.search.counts = arena_calloc(arena, count, sizeof *call->out.search.counts);
    for (uint32_t s = 0; s < count; s++) {
        const struct search_params *params = &call->in.search.searches[s];
        struct hit *hits = arena_calloc(arena, fake->point_count + 1, sizeof *hits);
        uint32_t n = 0;
        for (uint32_t p = 0; p < fake->point_count; p++) {
            if (fake->points[p].shard_id != call->shard_id) continue;
            hits[n].distance = fabsf(fake->points[p].vector[0] - params->query[0]);
            hits[n].score = hits[n].distance;
            hits[n++].point = view_of(&fake->points[p], params->selection.vector_mask);
        }
        qsort(hits, n, sizeof *hits, hit_order);
        call->out.search.hits[s] = hits;
        call->out.search.counts[s] = n < params->k ? n : params->k;
        call->out.search.rows_scanned += n;
    }
    if (call->in.search.explain) call->out.search.explain = fake->explain;
}

static void run_get(struct fake_service *fake, struct shard_call *call, struct arena *arena)
{
    struct point_view *points = arena_calloc(arena, call->in.get.count * 8 + 1, sizeof *points);
    for (uint32_t i = 0; i < call->in.get.count; i++) {
        const struct call_get *item = &call->in.get.items[i];
        struct point_key wanted = point_key_make(item->id, item->key);
        for (uint32_t p = 0; p < fake->point_count; p++) {
            if (fake->points[p].shard_id != call->shard_id) continue;
            struct point_key key = key_of(&fake->points[p]);
            bool match = item->any_key ? point_id_equal(key.id, item->id)
                                       : point_key_compare(&key, &wanted) == 0;
            CHECK(call->out.points.count < call->in.get.count * 8 + 1);
            if (match)
                points[call->out.points.count++] = view_of(&fake->points[p],
                        call->in.get.selection.vector_mask);
        }
    }
    call->out.points.points = points;
}

static int view_order(const void *a, const void *b)
{
    const struct point_view *va = a, *vb = b;
    struct point_key ka = point_key_make(va->id, va->key), kb = point_key_make(vb->id, vb->key);
    return point_key_compare(&ka, &kb);
}

static void run_scroll(struct fake_service *fake, struct shard_call *call, struct arena *arena)
{
    struct point_view *points = arena_calloc(arena, fake->point_count + 1, sizeof *points);
    uint32_t n = 0;
    for (uint32_t p = 0; p < fake->point_count; p++) {
        struct point_key key = key_of(&fake->points[p]);
        if (fake->points[p].shard_id != call->shard_id) continue;
        if (call->in.scroll.after != NULL && point_key_compare(&key, call->in.scroll.after) <= 0) continue;
        points[n++] = view_of(&fake->points[p], 0);
    }
    qsort(points, n, sizeof *points, view_order);
    call->out.points.more = n > call->in.scroll.limit;
    call->out.points.count = n < call->in.scroll.limit ? n : call->in.scroll.limit;
    call->out.points.points = points;
}

static void run_count(struct fake_service *fake, struct shard_call *call)
{
    for (uint32_t p = 0; p < fake->point_count; p++)
        call->out.count.points += fake->points[p].shard_id == call->shard_id;
}

static void run(struct fake_service *fake, struct shard_call *call)
{
    struct arena *arena = call->service_data;
    if (fake->fail_code != OMEN_OK && call->shard_id == fake->fail_shard) {
        call->code = err_set(&call->err, fake->fail_code, "", "told to fail");
        if (fake->fail_code == OMEN_EBUSY) call->err.retry_after_ms = 77;
        call->done(call);
        return;
    }
    call->sequence = fake->sequence;
    switch (call->kind) {
    case CALL_WRITE: run_write(fake, call); break;
    case CALL_SEARCH: run_search(fake, call, arena); break;
    case CALL_GET: run_get(fake, call, arena); break;
    case CALL_SCROLL: run_scroll(fake, call, arena); break;
    case CALL_COUNT: run_count(fake, call); break;
    case CALL_STATS:
        call->out.stats = (struct shard_stats){ .points = call->shard_id };
        if (call->in.stats.detail) call->out.stats.detail = fake->detail;
        if (call->in.stats.detail && fake->plain)
            call->code = err_set(&call->err, OMEN_EPROTO, "flags", "has a bit that means nothing");
        break;
    case CALL_CATALOG: call->out.catalog.collection_id = 99; break;
    case CALL_CLUSTER: call->out.cluster.reply = call->in.cluster.request; break; /* said back */
    }
    call->done(call);
}

static void submit(void *self, struct shard_call *call)
{
    struct fake_service *fake = self;
    fake->calls_by_kind[call->kind]++;
    fake->outstanding++;
    struct arena *arena = mem_must_calloc(1, sizeof *arena);
    arena_init(arena, 4096, 0);
    call->service_data = arena;
    if (!fake->hold) {
        run(fake, call);
        return;
    }
    CHECK(fake->held_count < FAKE_CALLS_MAX);
    fake->held[fake->held_count++] = call;
}

static void release(void *self, struct shard_call *call)
{
    struct fake_service *fake = self;
    CHECK(fake->outstanding > 0);
    fake->outstanding--;
    arena_fini(call->service_data);
    mem_free(call->service_data);
    call->service_data = NULL;
}

static struct map *map_acquire(void *self) { return map_ref(((struct fake_service *)self)->map); }
static const char *not_ready(void *self) { return NULL; }

struct fake_service *fake_service_new(const struct collection_schema *schema, uint32_t shards)
{
    struct fake_service *fake = mem_must_calloc(1, sizeof *fake);
    struct map *map = mem_must_calloc(1, sizeof *map);
    atomic_init(&map->refs, 1);
    map->epoch = 5;
    map->incarnation = 77;
    map->collections = mem_must_calloc(1, sizeof *map->collections);
    map->collection_count = 1;
    struct map_collection *c = map->collections;
    c->id = 3;
    memcpy(c->name, "c", 2);
    c->schema = *schema;
    c->replication = 1;
    c->recall_target = 0.95f;
    c->shards = mem_must_calloc(shards, sizeof *c->shards);
    c->shard_count = shards;
    map_cut_slots(c->shards, shards);
    for (uint32_t i = 0; i < shards; i++) c->shards[i].shard_id = 11 + i;
    fake->map = map;
    fake->service = (struct shard_service){
        .self = fake,
        .submit = submit,
        .release = release,
        .map_acquire = map_acquire,
        .not_ready = not_ready,
    };
    return fake;
}

void fake_service_free(struct fake_service *fake)
{
    CHECK(fake->outstanding == 0);
    map_unref(fake->map);
    mem_free(fake);
}

void fake_service_let_go(struct fake_service *fake)
{
    fake->hold = false;
    uint32_t count = fake->held_count;
    fake->held_count = 0;
    for (uint32_t i = 0; i < count; i++) run(fake, fake->held[i]);
}

const struct fake_point *fake_service_find(const struct fake_service *fake, uint64_t number)
{
    for (uint32_t p = 0; p < fake->point_count; p++) {
        if (fake->points[p].id.kind == POINT_ID_U64 && fake->points[p].id.lo == number)
            return &fake->points[p];
    }
    return NULL;
}

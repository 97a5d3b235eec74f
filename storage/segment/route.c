/* Routing of rows to segments; see route.h. */
#include "storage/segment/route.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/hash.h"
#include "common/mem.h"
#include "common/query/filter.h"

#define RULES 3u
#define NO_KEY UINT64_MAX /* last in every order */

struct keyed_row {
    uint64_t keys[RULES]; /* tenant, bucket, type; NO_KEY = the rule says nothing of it */
    struct row_ref row;
    uint32_t part;
};

enum omen_err route_collect(const struct blocks *blocks, uint32_t field, uint32_t first_block,
        uint32_t end_block, uint64_t as_of, struct route_plan *plan_out, struct err *err)
{
    uint64_t most = 0;
    *plan_out = (struct route_plan){ .part_count = 0 };
    for (uint32_t b = first_block; b < end_block; b++) most += blocks_at(blocks, b)->entry.row_count[field];
    if (most > INDEX_SLOTS_MAX) return err_set(err, OMEN_ETOOBIG, "", "more rows than a segment may have");
    plan_out->rows = mem_alloc((most + 1) * sizeof *plan_out->rows);
    plan_out->parts = mem_calloc(1, sizeof *plan_out->parts);
    if (plan_out->rows == NULL || plan_out->parts == NULL) {
        route_plan_fini(plan_out);
        return err_set(err, OMEN_ENOMEM, "", "no memory for a segment's slots");
    }
    for (uint32_t b = first_block; b < end_block; b++) {
        const struct block *block = blocks_at(blocks, b);
        for (uint32_t op = 0; op < block->entry.op_count; op++) {
            struct entry_op parsed;
            if (!block_row_visible(block, op, as_of, 0)) continue;
            entry_op_at(&block->entry, op, &parsed);
            if (parsed.rows[field] == ENTRY_NO_ROW) continue;
            CHECK(plan_out->count < most);
            plan_out->rows[plan_out->count++] = (struct row_ref){ b, op };
        }
    }
    plan_out->part_count = plan_out->count > 0;
    plan_out->parts[0] = (struct route_part){ 0, plan_out->count, false };
    return OMEN_OK;
}

void route_plan_fini(struct route_plan *plan)
{
    mem_free(plan->rows);
    mem_free(plan->parts);
    *plan = (struct route_plan){ .part_count = 0 };
}

/* ---- keys ---- */

struct paths {
    const struct doc_path *tenant, *time, *type; /* NULL: no such rule */
};

static const struct doc_path *path_read(const char *text, struct arena *arena, bool *good)
{
    const struct doc_path *path = NULL;
    struct err err;
    if (text == NULL || text[0] == '\0') return NULL;
    if (doc_path_parse(text, strlen(text), arena, &path, &err) == OMEN_OK) return path;
    *good = false;
    return NULL;
}

static bool first_value(void *arg, struct doc value)
{
    *(struct doc *)arg = value;
    return false;
}

static struct doc value_at(const struct doc_path *path, struct doc payload)
{
    struct doc value = { NULL, 0 };
    if (path != NULL && payload.data != NULL) doc_path_each(path, payload, false, first_value, &value);
    return value;
}

static uint64_t key_of(uint64_t hash) { return hash == NO_KEY ? NO_KEY - 1 : hash; }

static uint64_t name_key(const struct doc_path *path, struct doc payload)
{
    struct doc value = value_at(path, payload);
    if (value.data == NULL) return NO_KEY;
    switch (doc_type(value)) {
    case DOC_STRING:
    case DOC_I64:
    case DOC_FALSE:
    case DOC_TRUE: return key_of(hash128(value.data, value.len).hi);
    default: return NO_KEY;
    }
}

/* Times before 1970 as well, in order. */
static uint64_t bucket_key(const struct doc_path *path, struct doc payload, uint64_t bucket_ms)
{
    struct doc value = value_at(path, payload);
    int64_t ms, us, width = (int64_t)bucket_ms;
    if (value.data == NULL) return NO_KEY;
    if (doc_type(value) == DOC_I64)
        ms = doc_i64(value);
    else if (doc_type(value) == DOC_STRING &&
            datetime_parse((const char *)doc_string(value).data, doc_string(value).len, &us))
        ms = us / 1000;
    else
        return NO_KEY;
    int64_t bucket = ms / width - (ms % width < 0);
    return key_of((uint64_t)bucket ^ UINT64_C(1) << 63);
}

static int keyed_compare(const void *a, const void *b)
{
    const struct keyed_row *x = a, *y = b;
    for (uint32_t i = 0; i < RULES; i++)
        if (x->keys[i] != y->keys[i]) return x->keys[i] < y->keys[i] ? -1 : 1;
    if (x->row.block != y->row.block) return x->row.block < y->row.block ? -1 : 1;
    return (x->row.op > y->row.op) - (x->row.op < y->row.op);
}

static void rows_key(const struct blocks *blocks, const struct route_rules *rules, const struct paths *paths,
        const struct route_plan *plan, struct keyed_row *rows)
{
    for (uint32_t i = 0; i < plan->count; i++) {
        struct entry_op op;
        entry_op_at(&blocks_at(blocks, plan->rows[i].block)->entry, plan->rows[i].op, &op);
        rows[i] = (struct keyed_row){ .keys = { rules->by_shard_key ? key_of(op.key.key_hi)
                                                                    : name_key(paths->tenant, op.payload),
                                              bucket_key(paths->time, op.payload, rules->time_bucket_ms),
                                              name_key(paths->type, op.payload) },
            .row = plan->rows[i] };
    }
    qsort(rows, plan->count, sizeof *rows, keyed_compare);
}

/* ---- parts ---- */

struct cut {
    struct keyed_row *rows;
    uint32_t own_rows; /* at least this many, so that there are never more parts than ROUTE_PARTS_MAX */
    uint32_t parts;    /* part 0 is the rest */
};

/* Rows [from, end) are in order by the rules from `rule` on; some are of part `part`, which the large groups among them
 * leave. */
static void cut_groups(struct cut *c, uint32_t from, uint32_t end, uint32_t rule, uint32_t part);

static void cut_group(struct cut *c, uint32_t from, uint32_t end, uint32_t rule, uint32_t part)
{
    if (c->rows[from].keys[rule] == NO_KEY) {
        cut_groups(c, from, end, rule + 1, part);
        return;
    }
    if (end - from < c->own_rows) return;
    uint32_t own = c->parts++, left = 0;
    for (uint32_t i = from; i < end; i++) c->rows[i].part = own;
    cut_groups(c, from, end, rule + 1, own);
    for (uint32_t i = from; i < end; i++) left += c->rows[i].part == own;
    for (uint32_t i = from; left < c->own_rows && i < end; i++)
        if (c->rows[i].part == own) c->rows[i].part = part;
}

static void cut_groups(struct cut *c, uint32_t from, uint32_t end, uint32_t rule, uint32_t part)
{
    if (rule == RULES) return;
    while (from < end) {
        uint32_t next = from + 1;
        while (next < end && c->rows[next].keys[rule] == c->rows[from].keys[rule]) next++;
        cut_group(c, from, next, rule, part);
        from = next;
    }
}

static int part_compare(const void *a, const void *b)
{
    const struct route_part *x = a, *y = b;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    return (x->first > y->first) - (x->first < y->first);
}

/* The plan's rows part by part, in their order within each; parts without rows are none. */
static enum omen_err parts_lay_out(const struct cut *c, struct route_plan *plan, struct err *err)
{
    struct route_part *parts = mem_calloc(c->parts, sizeof *parts);
    if (parts == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory to order a segment's rows");
    for (uint32_t i = 0; i < plan->count; i++) parts[c->rows[i].part].count++;
    for (uint32_t p = 0, first = 0; p < c->parts; first += parts[p++].count)
        parts[p] = (struct route_part){ first, parts[p].count, p > 0 };
    for (uint32_t i = 0; i < plan->count; i++) {
        struct route_part *part = &parts[c->rows[i].part];
        plan->rows[part->first++] = c->rows[i].row;
    }
    uint32_t count = 0;
    for (uint32_t p = 0; p < c->parts; p++) {
        if (parts[p].count == 0) continue;
        parts[count] = parts[p];
        parts[count++].first -= parts[p].count;
    }
    qsort(parts, count, sizeof *parts, part_compare);
    mem_free(plan->parts);
    plan->parts = parts;
    plan->part_count = count;
    CHECK(count <= ROUTE_PARTS_MAX);
    return OMEN_OK;
}

enum omen_err route_group(const struct blocks *blocks, const struct route_rules *rules,
        struct route_plan *plan, struct err *err)
{
    struct arena arena;
    bool good = true;
    arena_init(&arena, 4096, 0);
    struct paths paths = { .tenant = rules->by_shard_key ? NULL : path_read(rules->tenant, &arena, &good) };
    paths.time = rules->time_bucket_ms == 0 || rules->time_bucket_ms > INT64_MAX
            ? NULL
            : path_read(rules->time, &arena, &good);
    paths.type = path_read(rules->type, &arena, &good);
    enum omen_err rc = OMEN_OK;
    bool any = rules->by_shard_key || paths.tenant != NULL || paths.time != NULL || paths.type != NULL;
    if (!good) rc = err_set(err, OMEN_ENOMEM, "", "no memory for the paths of routing rules");
    if (rc == OMEN_OK && any && plan->count > 0) {
        uint32_t least = plan->count / (ROUTE_PARTS_MAX - 1) + 1;
        struct cut cut = { mem_alloc(plan->count * sizeof(struct keyed_row)),
            rules->own_rows > least ? rules->own_rows : least, 1 };
        if (cut.rows == NULL) rc = err_set(err, OMEN_ENOMEM, "", "no memory to order a segment's rows");
        if (rc == OMEN_OK) rows_key(blocks, rules, &paths, plan, cut.rows);
        if (rc == OMEN_OK && rules->own_rows > 0) cut_groups(&cut, 0, plan->count, 0, 0);
        if (rc == OMEN_OK) rc = parts_lay_out(&cut, plan, err);
        mem_free(cut.rows);
    }
    arena_fini(&arena);
    return rc;
}

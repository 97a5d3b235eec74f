/* Of a collection that is described: what its shards tell of their indexes (node/shard_detail.c), summed up. What shards
 * say is copied with theirs and trusted for nothing but sums. Threads: that of the merge. */
#include "common/err.h"

#include <string.h>

#include "router/request.h"

#define BY_FILTER_MAX 16u /* writes by filter of a shard that are listed */
#define FIELDS_MAX 512u   /* payload paths of a collection that are listed */

static const char *const SUMS[] = { "segments", "own_segments", "rows", "built_rows", "tail_rows",
    "disk_bytes" };
static const char *const MEMORY[] = { "graphs", "mapped_graphs", "sketches", "rows", "deltas" };
static const char *const FIELD_SUMS[] = { "segments", "rows", "values", "numbers", "times", "words",
    "places" };
#define COUNT(a) (sizeof(a) / sizeof *(a))

struct field {
    struct bytes path;
    uint64_t sums[COUNT(FIELD_SUMS)];
};

struct info {
    struct doc_builder *b;
    const struct map_shard *places; /* [count] */
    const struct shard_stats *shards;
    uint32_t count;
    struct field *fields; /* [field_count] by path */
    uint32_t field_count;
};

static struct doc get(struct doc object, const char *key)
{
    if (object.data == NULL || doc_type(object) != DOC_OBJECT) return (struct doc){ NULL, 0 };
    return doc_member(object, (struct bytes){ (const uint8_t *)key, strlen(key) });
}

static uint64_t get_u64(struct doc object, const char *key)
{
    struct doc v = get(object, key);
    return v.data == NULL || doc_type(v) != DOC_I64 || doc_i64(v) < 0 ? 0 : (uint64_t)doc_i64(v);
}

static void put_u64(struct doc_builder *b, const char *key, uint64_t v)
{
    doc_key(b, key, strlen(key));
    doc_put_i64(b, v > INT64_MAX ? INT64_MAX : (int64_t)v);
}

static void put_sums(const struct info *i, const char *within, const char *const *names, size_t count)
{
    for (size_t n = 0; n < count; n++) {
        uint64_t sum = 0;
        for (uint32_t s = 0; s < i->count; s++) {
            struct doc detail = i->shards[s].detail;
            sum += get_u64(within == NULL ? detail : get(detail, within), names[n]);
        }
        put_u64(i->b, names[n], sum);
    }
}

/* Of all shards the largest: when it is 0, everything is indexed. */
static void put_lag(const struct info *i)
{
    uint64_t lag = 0;
    for (uint32_t s = 0; s < i->count; s++) {
        uint64_t of_shard = get_u64(i->shards[s].detail, "lag");
        if (of_shard > lag) lag = of_shard;
    }
    put_u64(i->b, "lag", lag);
}

/* Of what may come from anywhere: a number, or a word. */
static bool is_short(struct doc v)
{
    return v.data != NULL && (doc_is_number(v) || (doc_type(v) == DOC_STRING && doc_string(v).len <= 64));
}

/* What is being built, shard by shard. */
static void put_work(const struct info *i)
{
    static const char *const names[] = { "phase", "rows", "percent", "seconds", "seconds_left" };
    doc_key(i->b, "work", 4);
    doc_begin_array(i->b);
    for (uint32_t s = 0; s < i->count; s++) {
        struct doc work = get(i->shards[s].detail, "work");
        if (work.data == NULL || doc_type(work) != DOC_OBJECT) continue;
        doc_begin_object(i->b);
        put_u64(i->b, "shard", i->places[s].shard_id);
        for (size_t n = 0; n < COUNT(names); n++) {
            struct doc v = get(work, names[n]);
            if (!is_short(v)) continue;
            doc_key(i->b, names[n], strlen(names[n]));
            doc_put_doc(i->b, v);
        }
        doc_end(i->b);
    }
    doc_end(i->b);
}

/* Writes by filter that are under way, shard by shard; at most so many of each. */
static void put_by_filter(const struct info *i)
{
    static const char *const names[] = { "op", "sequence", "steps", "affected", "at", "waits" };
    doc_key(i->b, "by_filter", 9);
    doc_begin_array(i->b);
    for (uint32_t s = 0; s < i->count; s++) {
        struct doc_iter it = doc_iter(get(i->shards[s].detail, "by_filter"));
        struct doc said;
        for (uint32_t most = BY_FILTER_MAX; most > 0 && doc_next(&it, NULL, &said); most--) {
            if (doc_type(said) != DOC_OBJECT) continue;
            doc_begin_object(i->b);
            put_u64(i->b, "shard", i->places[s].shard_id);
            for (size_t n = 0; n < COUNT(names); n++) {
                struct doc v = get(said, names[n]);
                if (!is_short(v)) continue;
                doc_key(i->b, names[n], strlen(names[n]));
                doc_put_doc(i->b, v);
            }
            doc_end(i->b);
        }
    }
    doc_end(i->b);
}

/* ---- payload paths ---- */

static struct field *field_of(struct info *i, struct bytes path)
{
    uint32_t low = 0, high = i->field_count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        int order = doc_key_compare(i->fields[mid].path, path);
        if (order == 0) return &i->fields[mid];
        if (order > 0)
            high = mid;
        else
            low = mid + 1;
    }
    if (i->field_count == FIELDS_MAX) return NULL;
    memmove(&i->fields[low + 1], &i->fields[low], (i->field_count++ - low) * sizeof *i->fields);
    i->fields[low] = (struct field){ .path = path };
    return &i->fields[low];
}

static void fields_collect(struct info *i)
{
    for (uint32_t s = 0; s < i->count; s++) {
        struct doc_iter it = doc_iter(get(i->shards[s].detail, "payload"));
        struct doc said;
        while (doc_next(&it, NULL, &said)) {
            struct doc path = get(said, "path");
            if (path.data == NULL || doc_type(path) != DOC_STRING) continue;
            if (doc_string(path).len > DOC_PATH_BYTES_MAX) continue;
            struct field *f = field_of(i, doc_string(path));
            for (size_t n = 0; f != NULL && n < COUNT(FIELD_SUMS); n++)
                f->sums[n] += get_u64(said, FIELD_SUMS[n]);
        }
    }
}

static void put_payload(struct info *i)
{
    fields_collect(i);
    doc_key(i->b, "payload", 7);
    doc_begin_array(i->b);
    for (uint32_t f = 0; f < i->field_count; f++) {
        doc_begin_object(i->b);
        doc_key(i->b, "path", 4);
        doc_put_string(i->b, (const char *)i->fields[f].path.data, i->fields[f].path.len);
        for (size_t n = 0; n < COUNT(FIELD_SUMS); n++) put_u64(i->b, FIELD_SUMS[n], i->fields[f].sums[n]);
        doc_end(i->b);
    }
    doc_end(i->b);
}

static enum omen_err info_build(struct info *i, struct request *r, struct doc *doc_out)
{
    struct doc doc;
    doc_begin_object(i->b);
    put_sums(i, NULL, SUMS, COUNT(SUMS));
    put_lag(i);
    put_work(i);
    put_by_filter(i);
    doc_key(i->b, "memory", 6);
    doc_begin_object(i->b);
    put_sums(i, "memory", MEMORY, COUNT(MEMORY));
    doc_end(i->b);
    put_payload(i);
    doc_end(i->b);
    enum omen_err rc = doc_builder_finish(i->b, &doc, &r->reply.err);
    if (rc != OMEN_OK) return rc;
    *doc_out = (struct doc){ arena_copy(&r->arena, doc.data, doc.len), doc.len };
    if (doc_out->data != NULL) return OMEN_OK;
    return err_set(&r->reply.err, OMEN_ENOMEM, "", "the request needs too much memory");
}

enum omen_err index_info(struct request *r, const struct map_collection *collection,
        const struct shard_stats *shards, struct doc *doc_out)
{
    struct info i = { .b = doc_builder_new(WIRE_INDEX_BYTES_MAX),
        .places = collection->shards,
        .shards = shards,
        .count = collection->shard_count,
        .fields = arena_alloc(&r->arena, FIELDS_MAX * sizeof *i.fields) };
    enum omen_err rc = i.b == NULL || i.fields == NULL
            ? err_set(&r->reply.err, OMEN_ENOMEM, "", "the request needs too much memory")
            : info_build(&i, r, doc_out);
    if (i.b != NULL) doc_builder_free(i.b);
    return rc;
}

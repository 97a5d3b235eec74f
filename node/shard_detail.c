/* What is told of a shard beside its numbers, for whoever describes its collection: how far indexing is and what is being
 * built, where its memory is, which payload paths have an index, writes by filter under way. PROTOCOL.md, *Collection
 * map*, lists the members.
 * Bounded: paths are listed while there is room. */
#include <string.h>

#include "common/mem.h"
#include "node/member/fields.h"
#include "node/shard_host_impl.h"
#include "storage/shard_index.h"

#define REST_BYTES 8192u /* for all but payload paths; of it 16 writes by filter take 3,300 at most */
#define FIELD_BYTES 150u /* of one, without the path itself */

static void put_f64(struct doc_builder *b, const char *key, double v)
{
    doc_key(b, key, strlen(key));
    doc_put_f64(b, v);
}

static void put_work(struct doc_builder *b, struct shard_host *shard)
{
    struct index_work work;
    shard_host_index_work(shard, &work);
    if (!work.running) return;
    begin_object(b, "work");
    put_text(b, "phase", work.phase);
    put_u64(b, "rows", work.rows);
    put_f64(b, "percent", work.percent);
    put_f64(b, "seconds", work.seconds);
    if (work.seconds_left >= 0) put_f64(b, "seconds_left", work.seconds_left);
    doc_end(b);
}

static void put_memory(struct doc_builder *b, struct shard_host *shard)
{
    struct shard_index_memory memory;
    uint64_t deltas = 0;
    shard_host_memory(shard, &memory, &deltas);
    begin_object(b, "memory");
    put_u64(b, "graphs", memory.pinned);
    put_u64(b, "mapped_graphs", memory.mapped);
    put_u64(b, "sketches", memory.sketches);
    put_u64(b, "rows", memory.rows);
    put_u64(b, "deltas", deltas);
    doc_end(b);
}

static void put_by_filter(struct doc_builder *b, struct shard_host *shard, struct shard_store *store)
{
    static const char *const OPS[] = { [POINT_DELETE] = "delete",
        [POINT_SET_PAYLOAD] = "set_payload",
        [POINT_OVERWRITE_PAYLOAD] = "overwrite_payload",
        [POINT_DELETE_PAYLOAD] = "delete_payload" };
    struct intent_set *set = shard_store_intents(store);
    if (set->count > 0) begin_array(b, "by_filter");
    for (uint32_t i = 0; i < set->count; i++) {
        const struct intent *intent = &set->items[i];
        enum omen_err why = shard_intent_why(shard, intent->work->id);
        char at[POINT_ID_TEXT_BYTES];
        doc_begin_object(b);
        put_text(b, "op", OPS[intent->work->op]);
        put_u64(b, "sequence", intent->work->id.sequence);
        put_u64(b, "steps", intent->steps);
        put_u64(b, "affected", intent->affected);
        if (intent->has_cursor) {
            point_id_format(intent->cursor.id, at);
            put_text(b, "at", at);
        }
        if (why != OMEN_OK) put_text(b, "waits", err_name(why));
        doc_end(b);
    }
    if (set->count > 0) doc_end(b);
    intent_set_unref(set);
}

static void put_payload(struct doc_builder *b, struct shard_read *read)
{
    struct shard_payload_field *fields;
    uint32_t count = 0;
    if (shard_index_payload(read->view.store, &read->arena, &fields, &count) != OMEN_OK) return;
    size_t left = DETAIL_SHARD_BYTES_MAX - REST_BYTES;
    begin_array(b, "payload");
    for (uint32_t i = 0; i < count; i++) {
        size_t bytes = strlen(fields[i].path) + FIELD_BYTES;
        if (bytes > left) break;
        left -= bytes;
        doc_begin_object(b);
        put_text(b, "path", fields[i].path);
        put_u64(b, "segments", fields[i].segments);
        put_u64(b, "rows", fields[i].rows);
        put_u64(b, "values", fields[i].values);
        put_u64(b, "numbers", fields[i].numbers);
        put_u64(b, "times", fields[i].times);
        put_u64(b, "words", fields[i].words);
        put_u64(b, "places", fields[i].places);
        doc_end(b);
    }
    doc_end(b);
}

struct doc shard_detail(struct shard_read *read)
{
    struct shard_host *shard = read->state.shard;
    struct shard_index_stats index;
    struct doc doc, none = { NULL, 0 };
    struct err ignored;
    struct doc_builder *b = doc_builder_new(DETAIL_SHARD_BYTES_MAX);
    if (b == NULL) return none;
    uint64_t applied = shard_host_applied(shard); /* before: the lag is not below what it was */
    shard_host_index_stats(shard, &index);
    doc_begin_object(b);
    put_u64(b, "segments", index.segments);
    put_u64(b, "own_segments", index.own_segments);
    put_u64(b, "rows", index.rows);
    put_u64(b, "built_rows", index.built_rows);
    put_u64(b, "tail_rows", index.tail_rows);
    put_u64(b, "indexed", index.indexed);
    put_u64(b, "lag", applied > index.indexed ? applied - index.indexed : 0);
    put_u64(b, "disk_bytes", index.disk_bytes);
    put_work(b, shard);
    put_memory(b, shard);
    put_by_filter(b, shard, read->view.store);
    put_payload(b, read);
    doc_end(b);
    if (doc_builder_finish(b, &doc, &ignored) == OMEN_OK) {
        uint8_t *copy = arena_copy(&read->arena, doc.data, doc.len);
        if (copy != NULL) none = (struct doc){ copy, doc.len };
    }
    doc_builder_free(b);
    return none;
}

/* Promises of the shard store that random histories meet too seldom: limits, refusals, sizes, stale bytes. */
#include "common/err.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/shard_store.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"
#include "tests/support/vfs_sim.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#define DIM 4

static char dir[200];
static struct vfs_sim *sim; /* NULL: the real file system */
static struct collection_schema schema;
static struct shard_store_options options;
static struct shard_store *store;
static struct entry_builder *builder;
static struct arena arena;
static uint64_t sequence; /* of the last entry sent */

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    schema = test_schema_simple(DIM, "");
    shard_store_options_default(&options);
    options.vfs = vfs_posix();
    options.dir = dir;
    options.schema = &schema;
    options.chunk_bytes = 64 << 10;
    builder = entry_builder_new(&schema);
    arena_init(&arena, 1 << 14, 0);
    sequence = 0;
    sim = NULL;
    store = NULL;
}

static void teardown(void)
{
    shard_store_close(store);
    entry_builder_free(builder);
    arena_fini(&arena);
    if (sim != NULL) vfs_sim_free(sim);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
}

static void reopen(void)
{
    struct err err;
    shard_store_close(store);
    enum omen_err rc = shard_store_open(&options, &store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
    sequence = shard_store_applied(store);
}

static void checkpoint(void) { ck_assert_int_eq(shard_store_checkpoint(store, NULL, NULL), OMEN_OK); }

static void begin(struct op_id id)
{
    entry_builder_reset(builder);
    entry_builder_begin_request(builder, id);
}

static void add(enum point_op_kind kind, uint64_t id, const char *payload)
{
    static const float v[DIM] = { 1, 2, 3, 4 };
    struct point_op op = { .kind = kind, .id = { 0, id, POINT_ID_U64 } };
    if (payload != NULL) op.payload = doc_of(&arena, payload);
    if (kind == POINT_UPSERT) op.vectors[0] = v;
    ck_assert_int_eq(entry_builder_add(builder, &op), OMEN_OK);
}

/* Send what was built, at log time 1000; outcome of the first request (ENOTFOUND: none was filled in). */
static struct apply_outcome send(void)
{
    struct apply_outcome outcomes[8] = { { .code = OMEN_ENOTFOUND } };
    struct err err;
    uint8_t *bytes;
    uint32_t len;
    ck_assert_int_eq(entry_builder_finish(builder, 1000, 1, false, &bytes, &len), OMEN_OK);
    enum omen_err rc = shard_store_apply(store, ++sequence, bytes, len, outcomes, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    mem_free(bytes);
    return outcomes[0];
}

static void upsert(uint64_t id, const char *payload)
{
    begin((struct op_id){ 0 });
    add(POINT_UPSERT, id, payload);
    ck_assert_int_eq(send().code, OMEN_OK);
}

/* A string of `len` letters as payload member `name`. */
static const char *long_payload(const char *name, size_t len)
{
    char *text = arena_alloc(&arena, len + 40);
    int at = sprintf(text, "{'%s': '", name);
    memset(text + at, 'y', len);
    strcpy(text + at + len, "'}");
    return text;
}

static uint64_t count_now(void)
{
    struct store_view view;
    uint64_t count = 0;
    store_view_acquire(store, &view);
    ck_assert_int_eq(shard_store_count(&view, NULL, NULL, &count, NULL), OMEN_OK);
    store_view_release(&view);
    return count;
}

/* Payload of a point as text, or "gone". */
static const char *payload_now(uint64_t id, const struct point_selection *selection)
{
    static const struct point_selection all = { .with_payload = true };
    struct get_request request = { .id = { 0, id, POINT_ID_U64 } };
    struct store_view view;
    struct point_view *points;
    uint32_t count = 0;
    store_view_acquire(store, &view);
    ck_assert_int_eq(shard_store_get(&view, &request, 1, selection != NULL ? selection : &all, &arena,
                             &points, &count, NULL),
            OMEN_OK);
    const char *text = count == 0 ? "gone" : doc_show(&arena, points[0].payload);
    store_view_release(&view);
    return text;
}

START_TEST(a_payload_grown_too_big_refuses_its_request_whole)
{
    reopen();
    upsert(1, long_payload("a", 40000));
    upsert(2, "{'x': 1}");
    begin((struct op_id){ 5, 1, 1000 });
    add(POINT_SET_PAYLOAD, 2, "{'x': 2}");
    add(POINT_DELETE, 2, NULL);
    add(POINT_SET_PAYLOAD, 1, long_payload("b", 40000));
    struct apply_outcome first = send();
    ck_assert_int_eq(first.code, OMEN_ETOOBIG);
    ck_assert_uint_eq(first.affected, 0);
    ck_assert_str_eq(payload_now(2, NULL), "{'x':1}");
    ck_assert_uint_eq(count_now(), 2);
    checkpoint();
    reopen();
    begin((struct op_id){ 5, 1, 1000 });
    add(POINT_DELETE, 2, NULL);
    struct apply_outcome again = send();
    ck_assert(again.duplicate && again.code == OMEN_ETOOBIG);
    ck_assert_uint_eq(again.sequence, first.sequence);
    ck_assert_uint_eq(count_now(), 2);
}
END_TEST

static struct apply_outcome begin_by_filter(uint64_t op)
{
    const struct entry_intent what = { .kind = ENTRY_INTENT_BEGIN,
        .op = POINT_DELETE,
        .filter = doc_of(&arena, "{}") };
    begin((struct op_id){ 6, op, 1000 });
    ck_assert_int_eq(entry_builder_put_intent(builder, &what), OMEN_OK);
    return send();
}

static struct apply_outcome step_by_filter(struct intent_id id, uint32_t step, uint64_t point, bool ends)
{
    struct entry_intent what = { .kind = ENTRY_INTENT_STEP, .id = id, .step = step, .ends = ends };
    what.has_cursor = true;
    what.cursor = point_key_make((point_id){ 0, point, POINT_ID_U64 }, (struct shard_key){ { NULL, 0 } });
    begin((struct op_id){ 0 });
    ck_assert_int_eq(entry_builder_put_intent(builder, &what), OMEN_OK);
    struct point_op op = { .kind = POINT_DELETE, .id = { 0, point, POINT_ID_U64 } };
    op.if_version = id.sequence;
    ck_assert_int_eq(entry_builder_add(builder, &op), OMEN_OK);
    return send();
}

static uint64_t digest_now(void)
{
    struct store_digest digests[STORE_DIGESTS_MAX];
    ck_assert_uint_gt(shard_store_digests(store, digests), 0);
    ck_assert_uint_eq(digests[0].sequence, sequence);
    return digests[0].sum;
}

static uint32_t intents_now(void)
{
    struct intent_set *set = shard_store_intents(store);
    uint32_t count = set->count;
    struct shard_store_stats stats;
    shard_store_stats(store, &stats);
    ck_assert_uint_eq(stats.intents, count);
    intent_set_unref(set);
    return count;
}

/* INTENTS_MAX are open over checkpoints, merges and reopenings; one more is told to wait, which is not remembered. Each goes
 * on where it stood, is known under its op id all the time, and gives its place back when it ends. */
START_TEST(writes_by_filter_are_bounded_and_outlive_restarts)
{
    struct intent_id ids[INTENTS_MAX];
    options.delta_bytes_max = 1; /* merge at every checkpoint */
    reopen();
    for (uint64_t id = 1; id <= 3; id++) upsert(id, NULL);
    uint64_t without = digest_now();
    for (uint32_t i = 0; i < INTENTS_MAX; i++) {
        struct apply_outcome o = begin_by_filter(i + 1);
        ck_assert_int_eq(o.code, OMEN_OK);
        ids[i] = o.intent;
        ck_assert_uint_eq(o.intent.sequence, sequence);
    }
    ck_assert_uint_ne(digest_now(), without); /* they are state that replicas compare */
    upsert(2, "{'new': true}");               /* after all of them began: theirs to leave alone */
    for (int round = 0; round < 2; round++) {
        struct apply_outcome o = begin_by_filter(100);
        ck_assert(o.code == OMEN_EBUSY && o.intent.sequence == 0);
        o = begin_by_filter(1);
        ck_assert(o.code == OMEN_EBUSY && intent_id_equal(o.intent, ids[0]));
        ck_assert(shard_store_op_outcome(store, &(struct op_id){ 6, 2, 1000 }, &o));
        ck_assert(o.code == OMEN_EBUSY && intent_id_equal(o.intent, ids[1]));
        o = step_by_filter(ids[0], (uint32_t)round, 1 + (uint64_t)round, false);
        ck_assert_int_eq(o.code, OMEN_OK);
        ck_assert_uint_eq(o.affected, round == 0);
        ck_assert_int_eq(step_by_filter(ids[0], (uint32_t)round, 3, false).code, OMEN_ECANCELED);
        uint64_t digest = digest_now();
        checkpoint();
        reopen();
        ck_assert_uint_eq(intents_now(), INTENTS_MAX);
        ck_assert_uint_eq(digest_now(), digest);
    }
    ck_assert_uint_eq(count_now(), 2);
    struct apply_outcome end = step_by_filter(ids[0], 2, 3, true);
    ck_assert(end.code == OMEN_OK && end.affected == 2);
    ck_assert_uint_eq(intents_now(), INTENTS_MAX - 1);
    checkpoint();
    reopen();
    struct apply_outcome again = begin_by_filter(1);
    ck_assert(again.code == OMEN_OK && again.duplicate && again.affected == 2);
    ck_assert_uint_eq(again.sequence, end.sequence);
    ck_assert_int_eq(begin_by_filter(100).code, OMEN_OK);
    ck_assert_uint_eq(intents_now(), INTENTS_MAX);
    ck_assert_str_eq(payload_now(2, NULL), "{'new':true}");
    ck_assert_uint_eq(count_now(), 1);
}
END_TEST

START_TEST(derived_points_fill_several_units_and_come_back)
{
    reopen();
    begin((struct op_id){ 0 });
    for (uint64_t id = 0; id < 60; id++) add(POINT_UPSERT, id, long_payload("a", 60000));
    send(); /* 3.6 MB in chunks of 64 KiB */
    begin((struct op_id){ 0 });
    for (uint64_t id = 0; id < 60; id++) add(POINT_SET_PAYLOAD, id, "{'n': 1}");
    for (uint64_t id = 0; id < 60; id += 2) add(POINT_DELETE_PAYLOAD, id, "['a']");
    for (uint64_t id = 0; id < 60; id += 3) add(POINT_DELETE, id, NULL);
    ck_assert_uint_eq(send().affected, 110);
    for (int round = 0; round < 3; round++) {
        ck_assert_uint_eq(count_now(), 40);
        ck_assert_str_eq(payload_now(2, NULL), "{'n':1}");
        ck_assert_uint_gt(strlen(payload_now(1, NULL)), 60000);
        ck_assert_str_eq(payload_now(3, NULL), "gone");
        if (round == 1) options.delta_bytes_max = 1;
        checkpoint();
        reopen();
    }
}
END_TEST

START_TEST(entries_already_applied_are_skipped)
{
    reopen();
    upsert(1, "{}");
    upsert(2, "{}");
    sequence = 0;
    for (uint64_t id = 3; id <= 4; id++) {
        begin((struct op_id){ 0 });
        add(POINT_UPSERT, id, "{}");
        ck_assert_int_eq(send().code, OMEN_ENOTFOUND);
    }
    ck_assert_uint_eq(count_now(), 2);
    ck_assert_uint_eq(shard_store_applied(store), 2);
    upsert(3, "{}");
    ck_assert_uint_eq(count_now(), 3);
}
END_TEST

START_TEST(what_was_cut_never_comes_back)
{
    reopen();
    upsert(1, "{}");
    checkpoint();
    upsert(2, "{'other': 'life'}");
    upsert(3, "{'other': 'life'}");
    upsert(4, "{'other': 'life'}");
    reopen();
    ck_assert_uint_eq(count_now(), 1);
    upsert(2, "{'other': 'life'}"); /* as long as before: the stale units follow on at the byte */
    reopen();
    ck_assert_uint_eq(count_now(), 1);
    upsert(9, "{'other': 'wife'}");
    checkpoint();
    reopen();
    ck_assert_uint_eq(count_now(), 2);
    ck_assert_str_eq(payload_now(2, NULL), "gone");
    ck_assert_str_eq(payload_now(3, NULL), "gone");
    ck_assert_str_eq(payload_now(9, NULL), "{'other':'wife'}");
    upsert(3, "{'other': 'wife'}");
    checkpoint();
    reopen();
    ck_assert_uint_eq(count_now(), 3);
}
END_TEST

static void file_of_store(const char *name, char path[300]) { snprintf(path, 300, "%s/%s", dir, name); }

static void open_refused(enum omen_err code, const char *word)
{
    struct err err;
    struct shard_store *other = NULL;
    enum omen_err rc = shard_store_open(&options, &other, &err);
    ck_assert_msg(rc == code, "code %d, expected %d: %s", rc, code, err.message);
    ck_assert_ptr_null(other);
    ck_assert_msg(strstr(err.message, word) != NULL || strstr(err.field, word) != NULL, "%s: %s", err.field,
            err.message);
}

START_TEST(a_write_that_the_disk_lost_is_noticed)
{
    char path[300];
    uint8_t *old_life, *now;
    size_t len;
    file_of_store("stream/0000000000000001.chunk", path);
    reopen();
    upsert(1, "{}");
    checkpoint();
    upsert(2, "{'other': 'life'}");
    upsert(3, "{'other': 'life'}");
    ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 1 << 20, &old_life, &len, NULL), OMEN_OK);
    reopen();
    upsert(2, "{'other': 'wife'}");
    upsert(3, "{'other': 'wife'}");
    checkpoint();
    shard_store_close(store);
    store = NULL;
    ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 1 << 20, &now, &len, NULL), OMEN_OK);
    ck_assert_mem_ne(now, old_life, len);
    /* The old life's units, whole and valid by themselves: one of them, then both. */
    size_t unit = 0;
    for (unit = 4096 + 64; memcmp(now + unit, "OMUN", 4) != 0;) unit += 64;
    size_t next = unit + 64;
    while (memcmp(now + next, "OMUN", 4) != 0) next += 64;
    memcpy(now + unit, old_life + unit, next - unit);
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, now, len, NULL), OMEN_OK);
    open_refused(OMEN_ECORRUPT, "0000000000000001.chunk");
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, old_life, len, NULL), OMEN_OK);
    open_refused(OMEN_ECORRUPT, "0000000000000001.chunk");
    mem_free(now);
    mem_free(old_life);
}
END_TEST

START_TEST(another_replica_or_schema_is_refused)
{
    reopen();
    upsert(1, "{}");
    checkpoint();
    shard_store_close(store);
    store = NULL;
    options.shard_id = 4;
    open_refused(OMEN_EINVAL, "shard_id");
    options.shard_id = 0;
    options.replica_id = 4;
    open_refused(OMEN_EINVAL, "replica_id");
    options.replica_id = 0;
    schema.fields[0].dim++;
    open_refused(OMEN_EINVAL, "schema");
    schema.fields[0].dim--;
    options.chunk_bytes = 5000;
    open_refused(OMEN_EINVAL, "chunk_bytes");
    options.chunk_bytes = 32 << 10; /* may change: the files say their own size */
    reopen();
    ck_assert_uint_eq(count_now(), 1);
}
END_TEST

START_TEST(missing_files_are_named)
{
    static const char *const names[] = { "CHECKPOINT", "stream/0000000000000001.chunk", "meta/data.mdb",
        "meta/CHECKSUM" };
    for (size_t i = 0; i < 4; i++) {
        if (i > 0) {
            teardown();
            setup();
        }
        reopen();
        upsert(1, "{}");
        checkpoint();
        shard_store_close(store);
        store = NULL;
        char path[300];
        file_of_store(names[i], path);
        ck_assert_int_eq(vfs_unlink(vfs_posix(), path, NULL), OMEN_OK);
        open_refused(OMEN_ECORRUPT, names[i]);
        open_refused(OMEN_ECORRUPT, names[i]); /* nothing was repaired by guessing */
    }
}
END_TEST

START_TEST(unknown_files_in_the_stream_are_removed)
{
    char path[300];
    bool there = true;
    reopen();
    upsert(1, "{}");
    checkpoint();
    shard_store_close(store);
    store = NULL;
    file_of_store("stream/leftover.tmp", path);
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, "x", 1, NULL), OMEN_OK);
    reopen();
    ck_assert_int_eq(vfs_exists(vfs_posix(), path, &there, NULL), OMEN_OK);
    ck_assert(!there);
    ck_assert_uint_eq(count_now(), 1);
}
END_TEST

START_TEST(an_interrupted_merge_is_verified_and_sealed_again)
{
    char path[300];
    bool there = true;
    options.delta_bytes_max = 1;
    reopen();
    upsert(1, "{}");
    checkpoint();
    shard_store_close(store);
    store = NULL;
    file_of_store("meta/MERGING", path);
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, "OMMG", 4, NULL), OMEN_OK);
    char checksum[300];
    file_of_store("meta/CHECKSUM", checksum); /* of the file before the merge */
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), checksum, "old", 3, NULL), OMEN_OK);
    reopen();
    ck_assert_uint_eq(count_now(), 1);
    ck_assert_int_eq(vfs_exists(vfs_posix(), path, &there, NULL), OMEN_OK);
    ck_assert(!there);
    reopen();
}
END_TEST

static bool stop_at_once(void *arg)
{
    ++*(int *)arg;
    return true;
}

START_TEST(reads_stop_when_told)
{
    reopen();
    begin((struct op_id){ 0 });
    for (uint64_t id = 0; id < 2000; id++) add(POINT_UPSERT, id, "{'n': 1}");
    send();
    const struct filter *filter;
    ck_assert_int_eq(filter_parse(doc_of(&arena, "{'must': {'key': 'n', 'match': {'value': 2}}}"), &arena,
                             &filter, NULL),
            OMEN_OK);
    int polls = 0;
    struct read_limit limit = { stop_at_once, &polls };
    struct store_view view;
    struct point_view *points;
    uint32_t count = 7;
    uint64_t n = 7;
    bool more;
    store_view_acquire(store, &view);
    ck_assert_int_eq(shard_store_count(&view, filter, &limit, &n, NULL), OMEN_EDEADLINE);
    ck_assert_int_eq(shard_store_scroll(&view, NULL, 10, filter, NULL, &limit, &arena, &points, &count, &more,
                             NULL),
            OMEN_EDEADLINE);
    ck_assert_int_eq(polls, 2);
    ck_assert(count == 7 && n == 7);
    ck_assert_int_eq(shard_store_scroll(&view, NULL, 0, NULL, NULL, NULL, &arena, &points, &count, &more,
                             NULL),
            OMEN_EINVAL);
    ck_assert_int_eq(shard_store_scroll(&view, NULL, OMEN_SCROLL_LIMIT_MAX + 1, NULL, NULL, NULL, &arena,
                             &points, &count, &more, NULL),
            OMEN_EINVAL);
    store_view_release(&view);
}
END_TEST

START_TEST(a_search_out_of_range_is_refused_by_place)
{
    static const float query[DIM];
    struct search_params params[2] = { { .query = query, .k = 1 }, { .query = query, .k = 0 } };
    struct hit *hits[2];
    uint32_t counts[2];
    struct store_view view;
    struct err err;
    reopen();
    upsert(1, "{}");
    store_view_acquire(store, &view);
    ck_assert_int_eq(shard_store_search(&view, params, 2, NULL, &arena, hits, counts, NULL, &err),
            OMEN_EINVAL);
    ck_assert_str_eq(err.field, "searches[1].k");
    params[1] = (struct search_params){ .query = query, .k = OMEN_K_MAX, .field = 1 };
    ck_assert_int_eq(shard_store_search(&view, params, 2, NULL, &arena, hits, counts, NULL, &err),
            OMEN_EINVAL);
    ck_assert_str_eq(err.field, "searches[1].field");
    params[1].field = 0;
    ck_assert_int_eq(shard_store_search(&view, params, 2, NULL, &arena, hits, counts, NULL, &err), OMEN_OK);
    ck_assert_uint_eq(counts[1], 1);
    store_view_release(&view);
}
END_TEST

START_TEST(a_selection_returns_what_it_names)
{
    const struct doc_path *path;
    reopen();
    upsert(1, "{'a': 1, 'b': {'c': 2, 'd': 3}}");
    ck_assert_int_eq(doc_path_parse("b.c", 3, &arena, &path, NULL), OMEN_OK);
    struct point_selection s = { .with_payload = true,
        .payload_include = true,
        .payload_paths = &path,
        .payload_path_count = 1 };
    ck_assert_str_eq(payload_now(1, &s), "{'b':{'c':2}}");
    s.payload_include = false;
    ck_assert_str_eq(payload_now(1, &s), "{'a':1,'b':{'d':3}}");
    begin((struct op_id){ 0 });
    add(POINT_UPSERT, 2, NULL);
    send();
    ck_assert_str_eq(payload_now(2, NULL), "{}");
}
END_TEST

START_TEST(a_full_op_table_is_reported_and_never_evicts)
{
    struct shard_store_stats stats;
    options.op_table_max = 10;
    reopen();
    for (uint64_t n = 1; n <= 20; n++) {
        begin((struct op_id){ 1, n, 1000 });
        add(POINT_UPSERT, n, NULL);
        send();
        shard_store_stats(store, &stats);
        ck_assert_uint_eq(stats.op_table_full, n >= 10);
    }
    begin((struct op_id){ 1, 1, 1000 });
    add(POINT_DELETE, 1, NULL);
    ck_assert(send().duplicate);
    ck_assert_uint_eq(stats.applied_ops, 20);
    ck_assert_uint_eq(stats.points, 20);
}
END_TEST

/* Reads, writes and their admission answer what was found. */
static void serves_nothing(enum omen_err wanted, const char *named)
{
    struct err err;
    struct store_view view;
    struct shard_store_stats stats;
    struct point_view *points;
    struct write_need need;
    struct hit *hits[1];
    uint32_t n;
    uint64_t points_count;
    bool more;
    static const float query[DIM] = { 1, 2, 3, 4 };
    const struct search_params search = { .query = query, .k = 1 };
    const struct get_request get = { .id = { 0, 1, POINT_ID_U64 } };
    const struct point_op delete = { .kind = POINT_DELETE, .id = { 0, 1, POINT_ID_U64 } };
    store_view_acquire(store, &view);
#define ANSWERS(call)                                                                                        \
    do {                                                                                                     \
        err_clear(&err);                                                                                     \
        ck_assert_int_eq(call, wanted);                                                                      \
        ck_assert_ptr_nonnull(strstr(err.message, named));                                                   \
    } while (0)
    ANSWERS(shard_store_search(&view, &search, 1, NULL, &arena, hits, &n, NULL, &err));
    ANSWERS(shard_store_get(&view, &get, 1, NULL, &arena, &points, &n, &err));
    ANSWERS(shard_store_scroll(&view, NULL, 5, NULL, NULL, NULL, &arena, &points, &n, &more, &err));
    ANSWERS(shard_store_count(&view, NULL, NULL, &points_count, &err));
    ANSWERS(shard_store_need(store, &delete, 1, &need, &err));
    ANSWERS(shard_store_checkpoint(store, NULL, &err));
#undef ANSWERS
    store_view_release(&view);
    shard_store_stats(store, &stats);
    ck_assert(stats.damaged);
    ck_assert_int_eq(stats.stopped, wanted);
}

static void on_a_simulated_disk(void)
{
    sim = vfs_sim_new(3);
    for (size_t i = 1; i <= strlen(dir); i++) {
        char part[200];
        if (dir[i] != '/' && dir[i] != '\0') continue;
        snprintf(part, sizeof part, "%.*s", (int)i, dir);
        ck_assert_int_eq(vfs_mkdir(vfs_sim_vfs(sim), part, NULL), OMEN_OK);
    }
    options.vfs = vfs_sim_vfs(sim);
    reopen();
}

START_TEST(the_scrubber_finds_a_flipped_bit)
{
    struct err err;
    char path[300];
    on_a_simulated_disk();
    for (uint64_t id = 0; id < 20; id++) upsert(id, "{'some': 'payload'}");
    struct scrub_result result;
    uint64_t checked = 0;
    do {
        ck_assert_int_eq(shard_store_scrub(store, 3000, &result, &err), OMEN_OK);
        checked += result.bytes;
    } while (!result.wrapped);
    ck_assert_uint_gt(checked, 20 * 256);
    file_of_store("stream/0000000000000001.chunk", path);
    ck_assert(vfs_sim_flip_bit(sim, path, 4096 + 2500, 1));
    enum omen_err rc = OMEN_OK;
    for (int i = 0; i < 10 && rc == OMEN_OK; i++) rc = shard_store_scrub(store, 3000, NULL, &err);
    ck_assert_int_eq(rc, OMEN_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(err.message, "0000000000000001.chunk"));
    serves_nothing(OMEN_ECORRUPT, "0000000000000001.chunk");
}
END_TEST

/* A bit that flipped in a row goes on into the point that a payload operation derives from it, under a checksum of its own.
 * What tells that it did is the row, and it stays until somebody has looked at it, dead as it is. */
START_TEST(damage_is_not_compacted_away_before_it_was_seen)
{
    struct shard_store_stats stats;
    struct err err;
    char path[300];
    uint8_t *bytes = NULL;
    size_t len = 0;
    options.first_chunk_bytes = options.chunk_bytes = 64 << 10;
    options.delta_bytes_max = 1;
    on_a_simulated_disk();
    upsert(1, "{'some': 'payload', 'old': 1}");
    file_of_store("stream/0000000000000001.chunk", path);
    ck_assert_int_eq(vfs_read_file(options.vfs, path, 1 << 20, &bytes, &len, NULL), OMEN_OK);
    const uint8_t *at = memmem(bytes, len, "payload", 7);
    ck_assert_ptr_nonnull(at);
    ck_assert(vfs_sim_flip_bit(sim, path, (uint64_t)(at - bytes), 0));
    mem_free(bytes);
    begin((struct op_id){ 0 });
    add(POINT_SET_PAYLOAD, 1, "{'old': 2}");
    ck_assert_int_eq(send().code, OMEN_OK);
    ck_assert_ptr_nonnull(strstr(payload_now(1, NULL), "qayload"));
    for (int round = 0; round < 300; round++) {
        upsert(2, long_payload("some", 1000));
        if (round == 10) upsert(1, "{'some': 'payload'}");
        checkpoint();
    }
    shard_store_stats(store, &stats);
    ck_assert_uint_gt(stats.given_back_bytes, 0);
    enum omen_err rc = OMEN_OK;
    struct scrub_result result = { 0 };
    while (rc == OMEN_OK && !result.wrapped) rc = shard_store_scrub(store, 1 << 20, &result, &err);
    ck_assert_msg(rc == OMEN_ECORRUPT, "the damage has gone unseen");
    ck_assert_ptr_nonnull(strstr(err.message, "0000000000000001.chunk"));
}
END_TEST

START_TEST(chunks_begin_small_and_double)
{
    struct shard_store_stats stats;
    options.first_chunk_bytes = 16 << 10;
    options.chunk_bytes = 64 << 10;
    reopen();
    shard_store_stats(store, &stats);
    ck_assert_uint_eq(stats.stream_bytes, 0);
    upsert(1, "{'a': 1}");
    checkpoint();
    shard_store_stats(store, &stats);
    ck_assert_uint_eq(stats.stream_bytes, 16 << 10); /* all that a small collection takes */
    uint64_t id = 2;
    for (; stats.stream_chunks < 5; id++) {
        upsert(id, "{'some': 'payload'}");
        shard_store_stats(store, &stats);
    }
    ck_assert_uint_eq(stats.stream_bytes, (16 + 32 + 64 + 64 + 64) << 10);
    checkpoint();
    for (uint64_t first = 64 << 10; first >= 16 << 10;
            first /= 2) { /* sizes of files there are do not count */
        options.first_chunk_bytes = first;
        reopen();
        ck_assert_uint_eq(sequence, id - 1);
        shard_store_stats(store, &stats);
        ck_assert_uint_eq(stats.points, id - 1);
    }
}
END_TEST

/* Admission counted on an entry that came out smaller, or not at all: what was made for the one after it is still used, and
 * the chunk between, too small for it, is passed over. */
START_TEST(room_made_for_a_large_entry_is_found_behind_a_small_chunk)
{
    struct shard_store_stats before, after;
    struct err err;
    options.first_chunk_bytes = 16 << 10;
    reopen();
    upsert(1, "{'a': 1}");
    struct write_need needs[2] = { { .entry_bytes = 11500 }, { .entry_bytes = 30000 } };
    while (shard_store_has_room(store, needs, 1, STORE_SPARE_NONE)) upsert(1, "{'a': 1}");
    ck_assert_int_eq(shard_store_make_room(store, needs, 1, STORE_SPARE_NONE, &err), OMEN_OK);
    ck_assert_int_eq(shard_store_make_room(store, needs, 2, STORE_SPARE_NONE, &err), OMEN_OK);
    needs[1].entry_bytes = 60000; /* more than the second chunk holds */
    ck_assert_int_eq(shard_store_make_room(store, needs, 2, STORE_SPARE_NONE, &err), OMEN_OK);
    shard_store_stats(store, &before);
    ck_assert_uint_eq(before.stream_chunks, 3);
    begin((struct op_id){ 0 });
    for (uint64_t id = 10; id < 300; id++) add(POINT_UPSERT, id, "{'some': 'payload', 'of': 'a point'}");
    ck_assert_uint_gt(entry_builder_bytes(builder), 32 << 10);
    ck_assert_uint_le(entry_builder_bytes(builder), 60000);
    ck_assert_int_eq(send().code, OMEN_OK);
    shard_store_stats(store, &after);
    ck_assert_uint_eq(after.stream_bytes, before.stream_bytes);
    ck_assert_uint_eq(after.stream_chunks, 3);
    checkpoint();
    reopen();
    shard_store_stats(store, &after);
    ck_assert_uint_eq(after.points, 291);
}
END_TEST

/* Points [first, first + count) that expire at `expires_ms`, and `log_time_ms` of their entry. */
static void upsert_expiring(uint64_t first, uint32_t count, uint64_t expires_ms, uint64_t log_time_ms)
{
    static const float v[DIM] = { 1, 2, 3, 4 };
    struct err err;
    uint8_t *bytes;
    uint32_t len;
    begin((struct op_id){ 0 });
    for (uint32_t i = 0; i < count; i++) {
        struct point_op op = { .kind = POINT_UPSERT,
            .id = { 0, first + i, POINT_ID_U64 },
            .expires_ms = expires_ms,
            .vectors = { v } };
        ck_assert_int_eq(entry_builder_add(builder, &op), OMEN_OK);
    }
    ck_assert_int_eq(entry_builder_finish(builder, log_time_ms, 1, false, &bytes, &len), OMEN_OK);
    enum omen_err rc = shard_store_apply(store, ++sequence, bytes, len, NULL, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    mem_free(bytes);
}

static uint64_t count_at(uint64_t now_ms)
{
    struct store_view view;
    uint64_t count = 0;
    store_view_acquire(store, &view);
    store_view_at(&view, now_ms);
    ck_assert_int_eq(shard_store_count(&view, NULL, NULL, &count, NULL), OMEN_OK);
    store_view_release(&view);
    return count;
}

/* More at once than one entry lets die: they are absent all the same, and die of the entries after it, before or after a
 * restart alike. A view from before sees them until its own time passes theirs. */
START_TEST(thousands_expire_at_one_instant)
{
    struct shard_store_stats stats;
    struct store_view before;
    uint64_t count = 0;
    options.delta_bytes_max = _i == 0 ? 1 : 64u << 20; /* the restart finds them in LMDB, or in the stream */
    reopen();
    for (uint64_t i = 0; i < 10; i++) upsert_expiring(i * 500, 500, 2000, 1000);
    upsert_expiring(9000, 3, 0, 1000);
    upsert_expiring(9010, 2, 4000, 1000);
    checkpoint();
    ck_assert_uint_eq(count_at(0), 5005);
    ck_assert_uint_eq(count_at(1999), 5005);
    ck_assert_uint_eq(count_at(2000), 5);
    ck_assert_uint_eq(count_at(4000), 3);
    store_view_acquire(store, &before);
    upsert_expiring(9020, 1, 0, 2500);
    ck_assert_int_eq(shard_store_count(&before, NULL, NULL, &count, NULL), OMEN_OK);
    ck_assert_uint_eq(count, 5005);
    store_view_at(&before, 2000);
    ck_assert_int_eq(shard_store_count(&before, NULL, NULL, &count, NULL), OMEN_OK);
    ck_assert_uint_eq(count, 5);
    store_view_release(&before);
    for (int i = 0; i < 8; i++) {
        shard_store_stats(store, &stats);
        ck_assert_uint_eq(count_at(0), 6);
        ck_assert_uint_le(stats.points, i == 0 ? 5006 - 1024 : 5006);
        if (i == 3) {
            checkpoint();
            reopen();
        }
        upsert_expiring(9020, 1, 0, 2500);
    }
    shard_store_stats(store, &stats);
    ck_assert_uint_eq(stats.points, 6);
    ck_assert_uint_eq(stats.expires_next_ms, 4000);
    ck_assert_str_eq(payload_now(9010, NULL), "{}");
    upsert_expiring(9010, 1, 0, 2500);    /* written anew without a time */
    upsert_expiring(9030, 4, 2500, 2500); /* its time has come before it does */
    ck_assert_uint_eq(count_at(UINT64_MAX), 5);
    ck_assert_uint_eq(count_at(0), 6);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR + 1, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("shard_store");
    TCase *tc = tcase_create("promises");
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_payload_grown_too_big_refuses_its_request_whole);
    tcase_add_test(tc, writes_by_filter_are_bounded_and_outlive_restarts);
    tcase_add_test(tc, derived_points_fill_several_units_and_come_back);
    tcase_add_test(tc, entries_already_applied_are_skipped);
    tcase_add_test(tc, what_was_cut_never_comes_back);
    tcase_add_test(tc, a_write_that_the_disk_lost_is_noticed);
    tcase_add_test(tc, another_replica_or_schema_is_refused);
    tcase_add_test(tc, missing_files_are_named);
    tcase_add_test(tc, unknown_files_in_the_stream_are_removed);
    tcase_add_test(tc, an_interrupted_merge_is_verified_and_sealed_again);
    tcase_add_test(tc, reads_stop_when_told);
    tcase_add_test(tc, a_search_out_of_range_is_refused_by_place);
    tcase_add_test(tc, a_selection_returns_what_it_names);
    tcase_add_test(tc, a_full_op_table_is_reported_and_never_evicts);
    tcase_add_test(tc, the_scrubber_finds_a_flipped_bit);
    tcase_add_test(tc, damage_is_not_compacted_away_before_it_was_seen);
    tcase_add_test(tc, chunks_begin_small_and_double);
    tcase_add_loop_test(tc, thousands_expire_at_one_instant, 0, 2);
    tcase_add_test(tc, room_made_for_a_large_entry_is_found_behind_a_small_chunk);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

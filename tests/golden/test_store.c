/* A store of format version 1, written once and read for ever: tests/golden/store-v1, its points in store-v1.txt.
 *
 * OMEN_GOLDEN_WRITE=1 writes both anew (for a new format version, under a new name). The store has merged points, points
 * in the stream only, derived units, deletions and applied ops on both sides of the merge. */
#include "common/err.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/shard_store.h"
#include "tests/support/doc_text.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#define STORE "tests/golden/store-v1"
#define LISTING "tests/golden/store-v1.txt"
#define ENTRIES 6
#define MERGED 4 /* entries below the merge */

static const char *const files[] = { "CHECKPOINT", "stream/0000000000000001.chunk", "meta/data.mdb",
    "meta/CHECKSUM" };

static struct collection_schema schema(void)
{
    struct collection_schema s = { .field_count = 2, .shard_key = "tenant" };
    s.fields[0] = (struct vector_field){ "", 4, METRIC_L2 };
    s.fields[1] = (struct vector_field){ "img", 17, METRIC_IP };
    return s;
}

static void options_of(struct shard_store_options *o, const struct collection_schema *s, const char *dir,
        uint64_t delta)
{
    shard_store_options_default(o);
    o->vfs = vfs_posix();
    o->dir = dir;
    o->schema = s;
    o->shard_id = 0x1122334455667788;
    o->replica_id = 42;
    o->base_sequence = 100;
    o->chunk_bytes = 16384;
    o->delta_bytes_max = delta;
}

static struct shard_key tenant(uint32_t n)
{
    static const uint8_t keys[2][3] = { { 1, 'a' }, { 1, 'b', 'b' } };
    return (struct shard_key){ { keys[n], n + 2 } };
}

/* Entry `n` of the script: two upserts, an operation on what came before. */
static void entry_make(struct entry_builder *b, uint32_t n, struct arena *arena, uint8_t **bytes,
        uint32_t *len)
{
    float v[4], w[17];
    for (uint32_t i = 0; i < 4; i++) v[i] = (float)(n * 10 + i) / 4;
    for (uint32_t i = 0; i < 17; i++) w[i] = (float)n - (float)i;
    entry_builder_reset(b);
    entry_builder_begin_request(b, (struct op_id){ 77, n, 1000 + n });
    struct point_op up = { .kind = POINT_UPSERT,
        .id = { 0, n, POINT_ID_U64 },
        .key = tenant(0),
        .vectors = { v, w },
        .payload = doc_of(arena, "{'tenant': 'a', 'n': 1, 'tags': ['x', 2.5, null]}") };
    ck_assert_int_eq(entry_builder_add(b, &up), OMEN_OK);
    up = (struct point_op){ .kind = POINT_UPSERT,
        .id = { 0x0102030405060708, n, POINT_ID_UUID },
        .key = tenant(n % 2),
        .vectors = { v },
        .payload = doc_of(arena, n % 2 == 0 ? "{'tenant': 'a'}" : "{'tenant': 'bb', 'deep': {'er': true}}") };
    ck_assert_int_eq(entry_builder_add(b, &up), OMEN_OK);
    entry_builder_begin_request(b, (struct op_id){ 78, n, 1000 + n });
    struct point_op set = { .kind = POINT_SET_PAYLOAD,
        .id = { 0, n / 2, POINT_ID_U64 },
        .any_key = true,
        .payload = doc_of(arena, "{'n': 2, 'more': 'text'}") };
    struct point_op gone = { .kind = POINT_DELETE, .id = { 0, n - 2, POINT_ID_U64 }, .key = tenant(0) };
    ck_assert_int_eq(entry_builder_add(b, n % 3 == 0 && n > 1 ? &gone : &set), OMEN_OK);
    ck_assert_int_eq(entry_builder_finish(b, 1000 + n, 3, false, bytes, len), OMEN_OK);
}

static struct shard_store *open_at(const char *dir, const struct collection_schema *s, uint64_t delta)
{
    struct shard_store_options o;
    struct shard_store *store;
    struct err err;
    options_of(&o, s, dir, delta);
    enum omen_err rc = shard_store_open(&o, &store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
    return store;
}

/* Apply entry `n`; both requests must be answered as duplicates, or not. */
static void apply_entry(struct shard_store *store, struct entry_builder *b, uint32_t n, uint64_t sequence,
        bool duplicate)
{
    struct apply_outcome outcomes[2];
    struct arena arena;
    uint8_t *bytes;
    uint32_t len;
    arena_init(&arena, 4096, 0);
    entry_make(b, n, &arena, &bytes, &len);
    ck_assert_int_eq(shard_store_apply(store, sequence, bytes, len, outcomes, NULL), OMEN_OK);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(outcomes[i].duplicate, duplicate);
        if (duplicate) ck_assert_uint_eq(outcomes[i].sequence, 100 + n);
    }
    mem_free(bytes);
    arena_fini(&arena);
}

static void listing_of(struct shard_store *store, struct buf *out)
{
    const struct point_selection everything = { .with_payload = true, .vector_mask = 3 };
    const struct collection_schema s = schema();
    struct store_view view;
    struct point_view *points;
    struct arena arena;
    uint32_t count;
    bool more;
    arena_init(&arena, 4096, 0);
    store_view_acquire(store, &view);
    buf_printf(out, "sequence %llu\n", (unsigned long long)view.sequence);
    ck_assert_int_eq(shard_store_scroll(&view, NULL, 100, NULL, &everything, NULL, &arena, &points, &count,
                             &more, NULL),
            OMEN_OK);
    for (uint32_t i = 0; i < count; i++) {
        char id[POINT_ID_TEXT_BYTES];
        point_id_format(points[i].id, id);
        buf_printf(out, "%s key %.*s version %llu %s", id, (int)points[i].key.canonical.len - 1,
                (const char *)points[i].key.canonical.data + 1, (unsigned long long)points[i].version,
                doc_show(&arena, points[i].payload));
        for (uint32_t f = 0; f < 2; f++) {
            buf_printf(out, " [");
            for (uint32_t d = 0; points[i].vectors[f] != NULL && d < s.fields[f].dim; d++)
                buf_printf(out, "%s%g", d > 0 ? " " : "", (double)points[i].vectors[f][d]);
            buf_printf(out, "]");
        }
        buf_printf(out, "\n");
    }
    store_view_release(&view);
    arena_fini(&arena);
    ck_assert(!out->failed);
}

static void file_write(const char *path, const void *data, size_t len)
{
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, data, len, NULL), OMEN_OK);
}

static void golden_write(void)
{
    const struct collection_schema s = schema();
    struct entry_builder *b = entry_builder_new(&s);
    struct buf listing;
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), STORE, NULL), OMEN_OK);
    struct shard_store *store = open_at(STORE, &s, 1);
    for (uint32_t n = 1; n <= MERGED; n++) apply_entry(store, b, n, 100 + n, false);
    ck_assert_int_eq(shard_store_checkpoint(store, NULL, NULL), OMEN_OK);
    shard_store_close(store);
    store = open_at(STORE, &s, 1 << 20);
    for (uint32_t n = MERGED + 1; n <= ENTRIES; n++) apply_entry(store, b, n, 100 + n, false);
    ck_assert_int_eq(shard_store_checkpoint(store, NULL, NULL), OMEN_OK);
    buf_init(&listing);
    listing_of(store, &listing);
    file_write(LISTING, listing.data, listing.len);
    shard_store_close(store);
    ck_assert_int_eq(vfs_unlink(vfs_posix(), STORE "/meta/lock.mdb", NULL), OMEN_OK);
    /* Allocated ahead, empty. */
    ck_assert_int_eq(vfs_unlink(vfs_posix(), STORE "/stream/0000000000000002.chunk", NULL), OMEN_OK);
    buf_fini(&listing);
    entry_builder_free(b);
}

static void golden_copy(const char *dir)
{
    char path[300];
    snprintf(path, sizeof path, "%s/stream", dir);
    ck_assert_int_eq(vfs_mkdir(vfs_posix(), path, NULL), OMEN_OK);
    snprintf(path, sizeof path, "%s/meta", dir);
    ck_assert_int_eq(vfs_mkdir(vfs_posix(), path, NULL), OMEN_OK);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        uint8_t *data;
        size_t len;
        snprintf(path, sizeof path, STORE "/%s", files[i]);
        ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 1 << 20, &data, &len, NULL), OMEN_OK);
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        file_write(path, data, len);
        mem_free(data);
    }
}

START_TEST(a_store_of_version_1_is_read_and_written_on)
{
    if (getenv("OMEN_GOLDEN_WRITE") != NULL) golden_write();
    const char *tmp = getenv("TMPDIR");
    const struct collection_schema s = schema();
    char dir[200];
    struct buf listing;
    uint8_t *expected;
    size_t len;
    snprintf(dir, sizeof dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    golden_copy(dir);
    struct shard_store *store = open_at(dir, &s, 1);
    buf_init(&listing);
    listing_of(store, &listing);
    ck_assert_int_eq(vfs_read_file(vfs_posix(), LISTING, 1 << 20, &expected, &len, NULL), OMEN_OK);
    ck_assert_msg(len == listing.len && memcmp(expected, listing.data, len) == 0, "expected\n%.*s\ngot\n%.*s",
            (int)len, (const char *)expected, (int)listing.len, (const char *)listing.data);
    struct entry_builder *b = entry_builder_new(&s);
    for (uint32_t n = 1; n <= ENTRIES; n++)
        apply_entry(store, b, n, 100 + ENTRIES + n, true); /* known on both sides of the merge */
    apply_entry(store, b, ENTRIES + 1, 100 + 2 * ENTRIES + 1, false);
    ck_assert_int_eq(shard_store_checkpoint(store, NULL, NULL), OMEN_OK);
    shard_store_close(store);
    shard_store_close(open_at(dir, &s, 1));
    entry_builder_free(b);
    buf_fini(&listing);
    mem_free(expected);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
}
END_TEST

int main(void)
{
    log_configure(LOG_LEVEL_ERROR, LOG_FORMAT_TEXT, 2);
    Suite *suite = suite_create("store_format");
    TCase *tc = tcase_create("golden");
    tcase_add_test(tc, a_store_of_version_1_is_read_and_written_on);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

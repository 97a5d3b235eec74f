/* A payload index of file version 1, written once and read for ever: tests/golden/payload-v1.index. Its rows follow from
 * row_at. OMEN_GOLDEN_WRITE=1 writes it anew (for a new version, under a new name). */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "storage/payload/payload_index.h"
#include "storage/payload/rowbits.h"
#include "tests/support/doc_text.h"

#define GOLDEN "tests/golden/payload-v1.index"
#define ROWS 30

static struct arena arena;
static struct err err;

static bool row_at(void *arg, uint32_t row, point_id *id_out, struct doc *payload_out)
{
    static const char *const payloads[5] = {
        "{'section': 'libs', 'size': 10, 'at': '2024-01-01', 'tags': ['a', 'b']}",
        "{'section': 'net', 'size': 2.5, 'tags': ['b', null], 'ok': true}",
        "{'section': null, 'size': -7, 'at': ['2024-02-01T00:00:00Z', '2023-01-01'], 'tags': []}",
        "{'items': [{'price': 3}, {'price': 4, 'of': 'x'}], 'ok': false}", "{}"
    };
    (void)arg;
    *id_out = (point_id){ row % 7 == 0 ? 99 : 0, row * 10, row % 7 == 0 ? POINT_ID_UUID : POINT_ID_U64 };
    *payload_out = doc_of(&arena, payloads[row % 5]);
    return row != 13; /* a row that had died */
}

static const struct {
    const char *filter;
    uint64_t count;
    bool exact;
} asked[] = {
    { "{'must': [{'key': 'section', 'match': {'value': 'libs'}}]}", 6, true },
    { "{'must': [{'key': 'tags', 'match': {'value': 'b'}}]}", 12, true },
    { "{'must': [{'key': 'size', 'range': {'lt': 5}}]}", 12, true },
    { "{'must': [{'key': 'at', 'range': {'lt': '2024-01-15'}}]}", 12, true },
    { "{'must': [{'is_null': {'key': 'tags'}}]}", 6, true },
    { "{'must': [{'is_empty': {'key': 'ok'}}]}", 19, true },
    { "{'must': [{'key': 'items[].price', 'range': {'gt': 3}}]}", 5, true },
    { "{'must': [{'has_id': [10, 20]}]}", 2, true },
    { "{'must': [{'nested': {'key': 'items', "
      "'filter': {'must': [{'key': 'of', 'match': {'value': 'x'}}]}}}]}",
            5, false },
};

START_TEST(version_1_is_read_and_written_alike)
{
    const struct payload_source source = { .count = ROWS, .row = row_at };
    struct payload_index *index;
    struct payload_scratch *scratch = payload_scratch_new();
    uint8_t *bytes, *again;
    size_t len, again_len;
    char path[] = "/tmp/omen-XXXXXX";
    arena_init(&arena, 1 << 14, 0);
    if (getenv("OMEN_GOLDEN_WRITE") != NULL)
        ck_assert_int_eq(payload_index_build(&source, vfs_posix(), GOLDEN, &err), OMEN_OK);
    ck_assert_msg(payload_index_open(vfs_posix(), GOLDEN, ROWS, &index, &err) == OMEN_OK, "%s", err.message);
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        const struct filter *filter;
        struct payload_answer answer;
        ck_assert_int_eq(filter_parse(doc_of(&arena, asked[i].filter), &arena, &filter, &err), OMEN_OK);
        ck_assert_int_eq(payload_index_filter(index, filter, scratch, &answer), OMEN_OK);
        ck_assert_msg(answer.count == asked[i].count, "%s: %llu", asked[i].filter,
                (unsigned long long)answer.count);
        ck_assert_int_eq(answer.exact, asked[i].exact);
    }
    ck_assert_int_ge(close(mkstemp(path)), 0);
    ck_assert_int_eq(payload_index_build(&source, vfs_posix(), path, &err), OMEN_OK);
    ck_assert_int_eq(vfs_read_file(vfs_posix(), GOLDEN, 1 << 20, &bytes, &len, &err), OMEN_OK);
    ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 1 << 20, &again, &again_len, &err), OMEN_OK);
    ck_assert(len == again_len && memcmp(bytes, again, len) == 0);
    unlink(path);
    mem_free(bytes);
    mem_free(again);
    payload_index_free(index);
    payload_scratch_free(scratch);
    arena_fini(&arena);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("payload_index_golden");
    TCase *tc = tcase_create("files");
    tcase_add_test(tc, version_1_is_read_and_written_alike);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

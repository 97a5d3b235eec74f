/* Payload indexes of all file versions, written once and read for ever: tests/golden/payload-v*.index. Their rows follow
 * from row_at. OMEN_GOLDEN_WRITE=1 writes the newest anew (for a new version, under a new name). */
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

#define GOLDEN_1 "tests/golden/payload-v1.index" /* without words and places */
#define GOLDEN_2 "tests/golden/payload-v2.index"
#define ROWS 30

static struct arena arena;
static struct err err;

/* The rows of version 1, and what has been added since; `arg`: version 1. */
static bool row_at(void *arg, uint32_t row, point_id *id_out, struct doc *payload_out)
{
    static const char *const old[5] = {
        "{'section': 'libs', 'size': 10, 'at': '2024-01-01', 'tags': ['a', 'b']}",
        "{'section': 'net', 'size': 2.5, 'tags': ['b', null], 'ok': true}",
        "{'section': null, 'size': -7, 'at': ['2024-02-01T00:00:00Z', '2023-01-01'], 'tags': []}",
        "{'items': [{'price': 3}, {'price': 4, 'of': 'x'}], 'ok': false}", "{}"
    };
    static const char *const payloads[5] = {
        "{'title': 'Der alte Mann und das Meer', 'place': {'lon': 13.4, 'lat': 52.5}}",
        "{'title': ['Straße am MEER', 'der Berg'], "
        "'place': [{'lon': 179.9, 'lat': 0}, {'lon': -179.9, 'lat': 1}]}",
        "{'title': 'Ωμέγα 東京', 'place': {'lon': -180, 'lat': 90}}",
        "{'items': [{'at': {'lon': 2, 'lat': 48}, 'name': 'das Meer'}], 'section': 'libs'}", "{'title': 7}"
    };
    *id_out = (point_id){ row % 7 == 0 ? 99 : 0, row * 10, row % 7 == 0 ? POINT_ID_UUID : POINT_ID_U64 };
    *payload_out = doc_of(&arena, arg != NULL || row % 2 == 0 ? old[row % 5] : payloads[row % 5]);
    return row != 13; /* a row that had died */
}

struct question {
    const char *filter;
    uint64_t count;
    bool exact;
};

static const struct question asked_1[] = {
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
    { "{'must': [{'key': 'section', 'match': {'text': 'libs'}}]}", ROWS, false }, /* it has no words */
};

static const struct question asked_2[] = {
    { "{'must': [{'key': 'section', 'match': {'value': 'libs'}}]}", 5, true },
    { "{'must': [{'key': 'section', 'match': {'text': 'LIBS'}}]}", 5, true },
    { "{'must': [{'key': 'title', 'match': {'text': 'meer'}}]}", 6, true },
    { "{'must': [{'key': 'title', 'match': {'text': 'meer mann der'}}]}", 3, true },
    { "{'must': [{'key': 'title', 'match': {'text': 'strasse'}}]}", 0, true },
    { "{'must': [{'key': 'title', 'match': {'text': 'der meer'}}]}", 6, false }, /* in one value or in two */
    { "{'must': [{'key': 'title', 'match': {'text': 'ΩΜΈΓΑ 京'}}]}", 3, true },
    { "{'must': [{'key': 'items[].name', 'match': {'text': 'das'}}]}", 2, true },
    { "{'must': [{'key': 'place', 'geo_bounding_box': {'top_left': {'lon': 179, 'lat': 2}, "
      "'bottom_right': {'lon': -179.9, 'lat': 1}}}]}",
            3, true },
    { "{'must': [{'key': 'place', 'geo_radius': {'center': {'lon': 55, 'lat': 90}, 'radius': 1}}]}", 3,
            true },
    { "{'must': [{'key': 'items[].at', 'geo_polygon': {'exterior': {'points': [{'lon': 0, 'lat': 40}, "
      "{'lon': 5, 'lat': 40}, {'lon': 2, 'lat': 60}, {'lon': 0, 'lat': 40}]}}}]}",
            2, true },
};

static void ask(const char *golden, const struct question *asked, size_t count)
{
    struct payload_index *index;
    struct payload_scratch *scratch = payload_scratch_new();
    ck_assert_msg(payload_index_open(vfs_posix(), golden, ROWS, &index, &err) == OMEN_OK, "%s", err.message);
    for (size_t i = 0; i < count; i++) {
        const struct filter *filter;
        struct payload_answer answer;
        ck_assert_int_eq(filter_parse(doc_of(&arena, asked[i].filter), &arena, &filter, &err), OMEN_OK);
        ck_assert_int_eq(payload_index_filter(index, filter, scratch, &answer), OMEN_OK);
        ck_assert_msg(answer.count == asked[i].count, "%s: %llu", asked[i].filter,
                (unsigned long long)answer.count);
        ck_assert_msg(answer.exact == asked[i].exact, "%s: exact is %d", asked[i].filter, answer.exact);
    }
    payload_index_free(index);
    payload_scratch_free(scratch);
}

START_TEST(version_1_is_read)
{
    arena_init(&arena, 1 << 14, 0);
    ask(GOLDEN_1, asked_1, sizeof asked_1 / sizeof *asked_1);
    arena_fini(&arena);
}
END_TEST

START_TEST(version_2_is_read_and_written_alike)
{
    const struct payload_source source = { .count = ROWS, .row = row_at };
    uint8_t *bytes, *again;
    size_t len, again_len;
    char path[] = "/tmp/omen-XXXXXX";
    arena_init(&arena, 1 << 14, 0);
    if (getenv("OMEN_GOLDEN_WRITE") != NULL)
        ck_assert_int_eq(payload_index_build(&source, vfs_posix(), GOLDEN_2, &err), OMEN_OK);
    ask(GOLDEN_2, asked_2, sizeof asked_2 / sizeof *asked_2);
    ck_assert_int_ge(close(mkstemp(path)), 0);
    ck_assert_int_eq(payload_index_build(&source, vfs_posix(), path, &err), OMEN_OK);
    ck_assert_int_eq(vfs_read_file(vfs_posix(), GOLDEN_2, 1 << 20, &bytes, &len, &err), OMEN_OK);
    ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 1 << 20, &again, &again_len, &err), OMEN_OK);
    ck_assert(len == again_len && memcmp(bytes, again, len) == 0);
    unlink(path);
    mem_free(bytes);
    mem_free(again);
    arena_fini(&arena);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("payload_index_golden");
    TCase *tc = tcase_create("files");
    tcase_add_test(tc, version_1_is_read);
    tcase_add_test(tc, version_2_is_read_and_written_alike);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

/* The payload index against the evaluator: for random payloads and random filters of every kind, an exact answer is the
 * rows that pass, another holds all of them; what is called impossible has none. Over few rows of odd shapes, and over
 * many, where values have bitmaps and columns have prefixes. Files that are cut or flipped are refused by name.
 * OMEN_SEED=n replays one seed. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/payload/filter_eval.h"
#include "storage/payload/payload_index.h"
#include "storage/payload/rowbits.h"
#include "tests/support/doc_text.h"
#include "tests/support/filter_random.h"

#define SEEDS 40
#define FILTERS 60 /* a seed */

struct rows {
    struct doc *payloads; /* [count] data NULL: the row is dead and gone */
    point_id *ids;
    uint32_t count;
    struct arena arena;
    char path[200];
};

static bool row_at(void *arg, uint32_t row, point_id *id_out, struct doc *payload_out)
{
    const struct rows *r = arg;
    *id_out = r->ids[row];
    *payload_out = r->payloads[row];
    return r->payloads[row].data != NULL;
}

static void rows_init(struct rows *r, uint32_t count)
{
    const char *tmp = getenv("TMPDIR");
    memset(r, 0, sizeof *r);
    r->count = count;
    r->payloads = mem_must_calloc(count + 1, sizeof *r->payloads);
    r->ids = mem_must_calloc(count + 1, sizeof *r->ids);
    arena_init(&r->arena, 1 << 16, 0);
    snprintf(r->path, sizeof r->path, "%.150s/omen-payload-XXXXXX", tmp != NULL ? tmp : "/tmp");
    int fd = mkstemp(r->path);
    ck_assert_int_ge(fd, 0);
    fclose(fdopen(fd, "w"));
}

static void rows_fini(struct rows *r)
{
    remove(r->path);
    arena_fini(&r->arena);
    mem_free(r->payloads);
    mem_free(r->ids);
}

static struct payload_index *index_of(struct rows *r)
{
    struct err err;
    struct payload_index *index;
    const struct payload_source source = { .count = r->count, .row = row_at, .arg = r };
    enum omen_err rc = payload_index_build(&source, vfs_posix(), r->path, &err);
    ck_assert_msg(rc == OMEN_OK, "build: %s", err.message);
    rc = payload_index_open(vfs_posix(), r->path, r->count, &index, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
    return index;
}

struct tally {
    uint64_t exact, superset, pruned, passed, candidates, runs;
};

/* A run is exactly the rows that pass. */
static void check_run(const struct rows *r, const struct payload_index *index, const struct filter *filter,
        const char *what, struct tally *tally)
{
    struct payload_run run;
    if (!payload_index_run(index, filter, &run)) return;
    ck_assert_uint_lt(run.first, run.end);
    ck_assert_uint_le(run.end, r->count);
    tally->runs++;
    for (uint32_t i = 0; i < r->count; i++) {
        bool in = i >= run.first && i < run.end;
        if (r->payloads[i].data == NULL) continue;
        if (filter_match(filter, r->ids[i], r->payloads[i]) != in)
            ck_abort_msg("%s: row %u and the run %u..%u", what, i, run.first, run.end);
    }
}

static void check_filter(const struct rows *r, const struct payload_index *index, const struct filter *filter,
        struct payload_scratch *scratch, struct tally *tally, const char *what)
{
    struct payload_answer answer;
    struct payload_estimate estimate;
    uint64_t passed = 0, candidates = 0;
    ck_assert_int_eq(payload_index_filter(index, filter, scratch, &answer), OMEN_OK);
    payload_index_estimate(index, filter, &estimate);
    for (uint32_t i = 0; i < r->count; i++) {
        bool in = rowbits_has(answer.rows, i);
        candidates += in;
        if (r->payloads[i].data == NULL) continue;
        bool passes = filter_match(filter, r->ids[i], r->payloads[i]);
        passed += passes;
        if (passes && !in) ck_abort_msg("%s: row %u passes and is not in the answer", what, i);
        if (answer.exact && in != passes) ck_abort_msg("%s: row %u does not pass", what, i);
    }
    ck_assert_msg(candidates == answer.count, "%s: %llu rows counted as %llu", what,
            (unsigned long long)candidates, (unsigned long long)answer.count);
    check_run(r, index, filter, what, tally);
    if (estimate.pruned != EXPLAIN_NOT_PRUNED) ck_assert_msg(passed == 0, "%s: pruned, yet rows pass", what);
    tally->pruned += estimate.pruned != EXPLAIN_NOT_PRUNED;
    tally->exact += answer.exact;
    tally->superset += !answer.exact;
    tally->passed += passed;
    tally->candidates += candidates;
}

static struct doc built(struct doc_builder *b, struct arena *arena)
{
    struct doc doc;
    ck_assert_int_eq(doc_builder_finish(b, &doc, NULL), OMEN_OK);
    doc.data = arena_copy(arena, doc.data, doc.len);
    ck_assert_ptr_nonnull(doc.data);
    return doc;
}

static void check_seed(uint64_t seed, struct tally *tally)
{
    struct rows r;
    char what[64];
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    struct payload_scratch *scratch = payload_scratch_new();
    filter_random_seed(seed * 0x9e3779b97f4a7c15ull + 1);
    rows_init(&r, 1 + filter_random_below(200));
    for (uint32_t i = 0; i < r.count; i++) {
        r.ids[i] = (point_id){ .lo = filter_random_below(6) };
        if (filter_random_below(5) == 0) r.ids[i].kind = POINT_ID_UUID;
        if (filter_random_below(20) == 0) continue;
        doc_builder_reset(b, DOC_BYTES_MAX);
        filter_random_payload(b, (int)(seed % 4));
        r.payloads[i] = built(b, &r.arena);
    }
    struct payload_index *index = index_of(&r);
    for (uint32_t f = 0; f < FILTERS; f++) {
        const struct filter *filter;
        struct err err;
        doc_builder_reset(b, DOC_FILTER_BYTES_MAX);
        filter_random_filter(b, (int)(seed / 4 % 3));
        enum omen_err rc = filter_parse(built(b, &r.arena), &r.arena, &filter, &err);
        ck_assert_msg(rc == OMEN_OK, "filter: %s %s", err.field, err.message);
        snprintf(what, sizeof what, "seed %llu filter %u", (unsigned long long)seed, f);
        check_filter(&r, index, filter, scratch, tally, what);
    }
    payload_index_free(index);
    payload_scratch_free(scratch);
    doc_builder_free(b);
    rows_fini(&r);
}

START_TEST(answers_agree_with_the_evaluator)
{
    struct tally tally = { 0 };
    const char *one = getenv("OMEN_SEED");
    uint64_t first = one != NULL ? strtoull(one, NULL, 10) : 1, count = one != NULL ? 1 : SEEDS;
    for (uint64_t seed = first; seed < first + count; seed++) check_seed(seed, &tally);
    printf("seeds %llu..%llu: exact %llu, superset %llu (%llu rows for %llu), pruned %llu\n",
            (unsigned long long)first, (unsigned long long)(first + count - 1),
            (unsigned long long)tally.exact, (unsigned long long)tally.superset,
            (unsigned long long)tally.candidates, (unsigned long long)tally.passed,
            (unsigned long long)tally.pruned);
    if (one != NULL) return;
    ck_assert_uint_gt(tally.exact, tally.superset / 4); /* else little of it is an index */
    ck_assert_uint_gt(tally.pruned, 0);
    ck_assert_uint_gt(tally.runs, 20);
    ck_assert_uint_gt(tally.passed, tally.candidates / 4);
}
END_TEST

/* ---- many rows: bitmaps and prefixes ---- */

#define MANY 150000u

static const struct filter *filter_of(struct rows *r, const char *text)
{
    const struct filter *filter;
    struct err err;
    enum omen_err rc = filter_parse(doc_of(&r->arena, text), &r->arena, &filter, &err);
    ck_assert_msg(rc == OMEN_OK, "%s: %s %s", text, err.field, err.message);
    return filter;
}

static struct doc many_payload(struct doc_builder *b, struct arena *arena, uint32_t i)
{
    static const char *const words[] = { "half", "quarter", "tenth", "rare" };
    doc_builder_reset(b, DOC_BYTES_MAX);
    doc_begin_object(b);
    doc_key(b, "at", 2);
    doc_put_i64(b, i); /* in order of rows: long runs */
    doc_key(b, "n", 1);
    doc_put_f64(b, (double)filter_random_below(100000) / 8 - 3000);
    doc_key(b, "tags", 4);
    doc_begin_array(b);
    for (uint32_t w = 0, odds = 2; w < 4; w++, odds *= 8)
        if (filter_random_below(odds) == 0) doc_put_string(b, words[w], strlen(words[w]));
    doc_end(b);
    doc_key(b, "several", 7);
    doc_begin_array(b);
    for (uint32_t n = filter_random_below(3); n > 0; n--) doc_put_i64(b, filter_random_below(1000));
    doc_end(b);
    doc_end(b);
    return built(b, arena);
}

START_TEST(many_rows_are_answered_exactly)
{
    struct rows r;
    struct tally tally = { 0 };
    char text[200];
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    struct payload_scratch *scratch = payload_scratch_new();
    filter_random_seed(7);
    rows_init(&r, MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        r.ids[i] = (point_id){ .lo = (uint64_t)i * 3 };
        r.payloads[i] = many_payload(b, &r.arena, i);
    }
    struct payload_index *index = index_of(&r);
    static const char *const fixed[] = { "{'must': [{'key': 'tags', 'match': {'value': 'half'}}]}",
        "{'must': [{'key': 'tags[]', 'match': {'any': ['half', 'rare']}}]}",
        "{'must': [{'key': 'tags', 'match': {'value': 'quarter'}}, {'key': 'n', 'range': {'lt': 0}}]}",
        "{'must_not': [{'key': 'tags', 'match': {'value': 'half'}}]}",
        "{'should': [{'key': 'tags', 'match': {'value': 'rare'}}, "
        "{'key': 'several', 'range': {'gte': 900}}]}",
        "{'must': [{'has_id': [0, 3, 4, 299997, 449997]}]}", "{'must': [{'is_empty': {'key': 'tags'}}]}",
        "{'must': [{'key': 'several', 'range': {'gt': 100, 'lt': 900}}]}",
        "{'must': [{'key': 'nowhere', 'match': {'value': 1}}]}" };
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        check_filter(&r, index, filter_of(&r, fixed[i]), scratch, &tally, fixed[i]);
    for (int i = 0; i < 60; i++) {
        uint32_t low = filter_random_below(MANY), wide = filter_random_below(i % 2 ? MANY : 3000);
        if (i % 3 == 0)
            snprintf(text, sizeof text, "{'must': [{'key': 'at', 'range': {'gte': %u, 'lt': %u}}]}", low,
                    low + wide);
        else
            snprintf(text, sizeof text, "{'must': [{'key': 'n', 'range': {'gt': %g, 'lte': %g}}]}",
                    low / 12.0 - 3000, (low + wide) / 12.0 - 3000);
        check_filter(&r, index, filter_of(&r, text), scratch, &tally, text);
    }
    ck_assert_uint_eq(tally.superset, 0);
    ck_assert_uint_gt(tally.passed, 0);
    payload_index_free(index);
    payload_scratch_free(scratch);
    doc_builder_free(b);
    rows_fini(&r);
}
END_TEST

/* ---- damage ---- */

static void file_put(const char *path, const uint8_t *bytes, size_t len)
{
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, len, file), len);
    fclose(file);
}

/* Checksums of what the bytes are now: who wrote them may have meant it. */
static void repair(uint8_t *bytes, size_t len)
{
    uint32_t fields = load_u32(bytes + 12);
    size_t head = 64 + (size_t)fields * 64, at = head;
    if (fields > 65 || head > len) return;
    for (uint32_t f = 0; f < fields; f++) {
        uint8_t *entry = bytes + 64 + (size_t)f * 64;
        uint64_t section = load_u64(entry + 8);
        if (section > len - at) break;
        store_u32(entry + 20, crc32c(0, bytes + at, section));
        at += section;
    }
    store_u32(bytes + 24, crc32c(0, bytes + 64, head - 64));
    store_u32(bytes + 60, crc32c(0, bytes, 60));
}

/* A lie with right checksums is refused, or only tells wrong rows: nothing is read or written past an end. */
static void check_lies(struct rows *r, const uint8_t *bytes, size_t len)
{
    struct err err;
    struct payload_index *index;
    struct payload_answer answer;
    struct payload_scratch *scratch = payload_scratch_new();
    uint8_t *lie = mem_must_alloc(len);
    uint32_t opened = 0;
    for (size_t i = 0; i < 600; i++) {
        size_t at = i < 300 ? filter_random_below(64 * 10) : filter_random_below((uint32_t)len);
        memcpy(lie, bytes, len);
        lie[at] = (uint8_t)(lie[at] + 1 + filter_random_below(255));
        repair(lie, len);
        file_put(r->path, lie, len);
        enum omen_err rc = payload_index_open(vfs_posix(), r->path, r->count, &index, &err);
        if (rc != OMEN_OK) continue;
        opened++;
        static const char *const asked[] = { "{'must': [{'key': 'a', 'match': {'value': 1}}]}",
            "{'must': [{'key': 'b', 'range': {'gte': 0}}, {'key': 'c', 'match': {'except': ['x']}}]}",
            "{'should': [{'has_id': [0, 1]}, {'key': 'a.b', 'range': {'lt': '2024-06-01'}}]}" };
        for (int f = 0; f < 3; f++)
            ck_assert_int_eq(payload_index_filter(index, filter_of(r, asked[f]), scratch, &answer), OMEN_OK);
        payload_index_free(index);
    }
    ck_assert_uint_gt(opened, 0);
    ck_assert_uint_lt(opened, 600);
    payload_scratch_free(scratch);
    mem_free(lie);
}

static bool is_indexed(const struct payload_index *index, const char *path)
{
    struct payload_index_stats stats;
    struct payload_field_info info;
    payload_index_stats(index, &stats);
    for (uint32_t i = 0; i < stats.fields; i++) {
        payload_index_field(index, i, &info);
        if (strcmp(info.path, path) == 0) return true;
    }
    return false;
}

/* More paths than are indexed, each in every row, and two that few rows have. */
START_TEST(paths_that_are_asked_for_come_before_more_frequent_ones)
{
    enum { ROWS = 40, PATHS = PAYLOAD_FIELDS_MAX + 20 };
    struct rows r;
    rows_init(&r, ROWS);
    for (uint32_t row = 0; row < ROWS; row++) {
        char text[PATHS * 16 + 64];
        size_t len = (size_t)snprintf(text, sizeof text, "{");
        for (uint32_t p = 0; p < PATHS; p++)
            len += (size_t)snprintf(text + len, sizeof text - len, "'p%u': %u, ", p, row);
        snprintf(text + len, sizeof text - len, row < 2 ? "'rare': {'tags': ['x']}, 'odd': 1}" : "'z': 1}");
        r.payloads[row] = doc_of(&r.arena, text);
        r.ids[row] = (point_id){ .lo = row };
    }
    for (int asked = 0; asked < 2; asked++) {
        struct err err;
        struct payload_index *index;
        struct payload_index_stats stats;
        const struct payload_source source = { .count = ROWS,
            .row = row_at,
            .arg = &r,
            .first = asked ? "rare.tags[]\0not.there\0[\0odd\0" : NULL };
        ck_assert_int_eq(payload_index_build(&source, vfs_posix(), r.path, &err), OMEN_OK);
        ck_assert_int_eq(payload_index_open(vfs_posix(), r.path, ROWS, &index, &err), OMEN_OK);
        payload_index_stats(index, &stats);
        ck_assert_uint_eq(stats.fields, PAYLOAD_FIELDS_MAX);
        ck_assert(!stats.complete);
        ck_assert_int_eq(is_indexed(index, "rare.tags"), asked);
        ck_assert_int_eq(is_indexed(index, "odd"), asked);
        ck_assert(!is_indexed(index, "not.there"));
        struct payload_scratch *scratch = payload_scratch_new();
        struct tally tally = { 0 };
        const struct filter *filter;
        struct doc doc = doc_of(&r.arena, "{'must': [{'key': 'rare.tags', 'match': {'value': 'x'}}]}");
        ck_assert_int_eq(filter_parse(doc, &r.arena, &filter, &err), OMEN_OK);
        check_filter(&r, index, filter, scratch, &tally, "rare");
        ck_assert_uint_eq(tally.exact, (uint64_t)asked);
        payload_scratch_free(scratch);
        payload_index_free(index);
    }
    rows_fini(&r);
}
END_TEST

START_TEST(a_damaged_file_is_refused_by_name)
{
    struct rows r;
    struct err err;
    uint8_t *bytes;
    size_t len;
    struct payload_index *index;
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    filter_random_seed(11);
    rows_init(&r, 100);
    for (uint32_t i = 0; i < r.count; i++) {
        doc_builder_reset(b, DOC_BYTES_MAX);
        filter_random_payload(b, 3);
        r.payloads[i] = built(b, &r.arena);
    }
    payload_index_free(index_of(&r));
    ck_assert_int_eq(vfs_read_file(vfs_posix(), r.path, 1 << 24, &bytes, &len, &err), OMEN_OK);
    for (size_t at = 0; at < len; at += 1 + at / 97) {
        bytes[at] ^= 0x40;
        file_put(r.path, bytes, len);
        enum omen_err rc = payload_index_open(vfs_posix(), r.path, r.count, &index, &err);
        ck_assert_msg(rc == OMEN_ECORRUPT || rc == OMEN_EVERSION, "byte %zu: %d", at, rc);
        ck_assert_msg(strstr(err.message, r.path) != NULL, "byte %zu: %s", at, err.message);
        bytes[at] ^= 0x40;
    }
    for (size_t cut = 0; cut < len; cut += 1 + cut / 29) {
        file_put(r.path, bytes, cut);
        ck_assert_int_eq(payload_index_open(vfs_posix(), r.path, r.count, &index, &err), OMEN_ECORRUPT);
    }
    file_put(r.path, bytes, len);
    ck_assert_int_eq(payload_index_open(vfs_posix(), r.path, r.count + 1, &index, &err), OMEN_ECORRUPT);
    ck_assert_int_eq(payload_index_open(vfs_posix(), r.path, r.count, &index, &err), OMEN_OK);
    payload_index_free(index);
    check_lies(&r, bytes, len);
    mem_free(bytes);
    doc_builder_free(b);
    rows_fini(&r);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("payload_index");
    TCase *tc = tcase_create("payload_index");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, answers_agree_with_the_evaluator);
    tcase_add_test(tc, many_rows_are_answered_exactly);
    tcase_add_test(tc, paths_that_are_asked_for_come_before_more_frequent_ones);
    tcase_add_test(tc, a_damaged_file_is_refused_by_name);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

/* Payload paths and the payload operations of apply: parse, walk, merge, remove, select. */
#include <check.h>
#include <stdio.h>

#include "common/query/doc_path.h"
#include "tests/support/doc_text.h"

static struct arena arena;
static struct err err;

static void setup(void)
{
    arena_init(&arena, 1 << 16, 0);
    err_clear(&err);
}

static void teardown(void) { arena_fini(&arena); }

static enum omen_err parse(const char *text, const struct doc_path **path_out)
{
    return doc_path_parse(text, strlen(text), &arena, path_out, &err);
}

static const struct doc_path *path_of(const char *text)
{
    const struct doc_path *path;
    ck_assert_msg(parse(text, &path) == OMEN_OK, "%s: %s", text, err.message);
    return path;
}

static bool show_each(void *arg, struct doc value)
{
    buf_printf(arg, "%s ", doc_show(&arena, value));
    return true;
}

static void assert_values(const char *path, const char *root, bool open_arrays, const char *want)
{
    struct buf got;
    buf_init(&got);
    ck_assert(doc_path_each(path_of(path), doc_of(&arena, root), open_arrays, show_each, &got));
    buf_append_zero(&got, 1);
    ck_assert_str_eq((const char *)got.data, want);
    buf_fini(&got);
}

/* ---- parsing ----------------------------------------------------------------------------------------- */

START_TEST(path_reads_its_grammar)
{
    static const char *const good[] = { "a", "a.b", "tags[]", "tags[0]", "a[][3].b", "\"odd.key\".x",
        "a.\"\"", "\"[]\"[]", "section name", "\xc3\xa9t\xc3\xa9", "a-b_c", "a[4294967295]" };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        const struct doc_path *path = path_of(good[i]);
        ck_assert_uint_eq(doc_path_text(path).len, strlen(good[i]));
        ck_assert_str_eq((const char *)doc_path_text(path).data, good[i]);
    }
    ck_assert(!doc_path_has_arrays(path_of("a.\"[]\"")));
    ck_assert(doc_path_has_arrays(path_of("a[]")));
    ck_assert(doc_path_has_arrays(path_of("a[1].b")));
}
END_TEST

START_TEST(path_refuses_what_is_none)
{
    static const char *const bad[] = { "", ".", ".a", "a.", "a..b", "[]", "a[", "a[x]", "a[-1]", "a[1", "a]",
        "a[]b", "\"a", "\"a\"b", "a\"b\"", "a\nb", "a[4294967296]", "\xff" };
    const struct doc_path *path;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert_msg(parse(bad[i], &path) == OMEN_EINVAL, "%s", bad[i]);
        ck_assert_ptr_null(path);
    }
    ck_assert_int_eq(parse("a..b", &path), OMEN_EINVAL);
    ck_assert_str_eq(err.message, "path \"a..b\": a key is expected at byte 2");
}
END_TEST

START_TEST(path_holds_its_limits)
{
    const struct doc_path *path;
    char text[DOC_PATH_BYTES_MAX + 2];
    for (size_t len = DOC_KEY_BYTES_MAX; len <= DOC_KEY_BYTES_MAX + 1; len++) {
        memset(text, 'k', len);
        enum omen_err want = len <= DOC_KEY_BYTES_MAX ? OMEN_OK : OMEN_ETOOBIG;
        ck_assert_int_eq(doc_path_parse(text, len, &arena, &path, &err), want);
    }
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = i % 205 == 204 ? '.' : 'k'; /* 5 keys of 204 in 1024 bytes */
    ck_assert_int_eq(doc_path_parse(text, DOC_PATH_BYTES_MAX, &arena, &path, &err), OMEN_OK);
    text[DOC_PATH_BYTES_MAX] = 'k';
    ck_assert_int_eq(doc_path_parse(text, DOC_PATH_BYTES_MAX + 1, &arena, &path, &err), OMEN_ETOOBIG);
    for (size_t steps = DOC_PATH_STEPS_MAX; steps <= DOC_PATH_STEPS_MAX + 1; steps++) {
        text[0] = 'a';
        for (size_t i = 1; i < steps; i++) memcpy(text + 2 * i - 1, "[]", 2);
        enum omen_err want = steps <= DOC_PATH_STEPS_MAX ? OMEN_OK : OMEN_ETOOBIG;
        ck_assert_int_eq(doc_path_parse(text, 2 * steps - 1, &arena, &path, &err), want);
    }
    struct arena tiny;
    arena_init(&tiny, 16, 16);
    ck_assert_int_eq(doc_path_parse("a", 1, &tiny, &path, &err), OMEN_ENOMEM);
    arena_fini(&tiny);
}
END_TEST

START_TEST(path_owns_its_text)
{
    char text[] = "a.b";
    const struct doc_path *path = path_of(text);
    memset(text, 'x', 3);
    ck_assert_int_eq(doc_i64(doc_path_first(path, doc_of(&arena, "{'a': {'b': 7}}"))), 7);
}
END_TEST

/* ---- walking ----------------------------------------------------------------------------------------- */

START_TEST(path_leads_to_every_value)
{
    const char *root =
            "{'a': {'b': 1, 'c': null}, 'tags': ['x', 'y', ['z']], 'odd.key': {'x': 2}, 'empty': [],"
            " 'items': [{'price': 3}, 4, {'price': [5, 6]}, {'other': 7}], '': 8}";
    assert_values("a.b", root, true, "1 ");
    assert_values("a.c", root, true, "null ");
    assert_values("a.d", root, true, "");
    assert_values("a.b.c", root, true, "");
    assert_values("a", root, true, "{'b':1,'c':null} ");
    assert_values("tags", root, false, "['x','y',['z']] ");
    assert_values("tags", root, true, "'x' 'y' ['z'] ");
    assert_values("tags[]", root, false, "'x' 'y' ['z'] ");
    assert_values("tags[]", root, true, "'x' 'y' 'z' ");
    assert_values("tags[1]", root, true, "'y' ");
    assert_values("tags[3]", root, true, "");
    assert_values("a[]", root, true, "");
    assert_values("empty", root, true, "");
    assert_values("empty", root, false, "[] ");
    assert_values("items[].price", root, false, "3 [5,6] ");
    assert_values("items[].price", root, true, "3 5 6 ");
    assert_values("items.price", root, true, "");
    assert_values("\"odd.key\".x", root, true, "2 ");
    assert_values("\"\"", root, true, "8 ");
}
END_TEST

static bool stop_at_second(void *arg, struct doc value) { return ++*(int *)arg < 2; }

START_TEST(walk_stops_when_told)
{
    int seen = 0;
    struct doc root = doc_of(&arena, "{'a': [[1, 2, 3], [4]]}");
    ck_assert(!doc_path_each(path_of("a[][]"), root, false, stop_at_second, &seen));
    ck_assert_int_eq(seen, 2);
    seen = 0;
    ck_assert(!doc_path_each(path_of("a[0]"), root, true, stop_at_second, &seen));
    ck_assert_int_eq(seen, 2);
    ck_assert(doc_path_each(path_of("a"), (struct doc){ NULL, 0 }, true, stop_at_second, &seen));
    ck_assert_int_eq(seen, 2);
    ck_assert_str_eq(doc_show(&arena, doc_path_first(path_of("a[][]"), root)), "1");
    ck_assert_str_eq(doc_show(&arena, doc_path_first(path_of("a"), root)), "[[1,2,3],[4]]");
    ck_assert_ptr_null(doc_path_first(path_of("b"), root).data);
}
END_TEST

/* ---- operations -------------------------------------------------------------------------------------- */

static struct doc take(struct buf *out)
{
    struct doc d;
    ck_assert_msg(doc_validate((struct bytes){ out->data, out->len }, DOC_BYTES_MAX, &d, &err) == OMEN_OK,
            "%s: %s", err.field, err.message);
    d.data = arena_copy(&arena, d.data, d.len);
    buf_fini(out);
    return d;
}

static void assert_merge(const char *base, const char *patch, const char *want)
{
    struct buf out;
    buf_init(&out);
    ck_assert_int_eq(doc_merge(doc_of(&arena, base), doc_of(&arena, patch), &out, &err), OMEN_OK);
    ck_assert_str_eq(doc_show(&arena, take(&out)), want);
}

START_TEST(merge_replaces_members_of_the_top_level)
{
    assert_merge("{}", "{}", "{}");
    assert_merge("{'a': 1, 'c': 3}", "{'b': 2}", "{'a':1,'b':2,'c':3}");
    assert_merge("{'a': 1, 'b': {'x': 1}}", "{'b': {'y': 2}, 'z': 1}", "{'a':1,'b':{'y':2},'z':1}");
    assert_merge("{'a': 1}", "{'a': null}", "{'a':null}");
    struct buf out;
    buf_init(&out);
    ck_assert_int_eq(doc_merge((struct doc){ NULL, 0 }, doc_of(&arena, "{'a': 1}"), &out, &err), OMEN_OK);
    ck_assert_str_eq(doc_show(&arena, take(&out)), "{'a':1}");
    buf_init(&out);
    ck_assert_int_eq(doc_merge(doc_of(&arena, "{}"), doc_of(&arena, "[]"), &out, &err), OMEN_EINVAL);
    ck_assert_uint_eq(out.len, 0);
}
END_TEST

/* {'<key>': '<len x>'} */
static struct doc big_doc(const char *key, size_t len)
{
    struct doc_builder *b = doc_builder_new(DOC_BYTES_MAX);
    char *text = arena_calloc(&arena, 1, len);
    memset(text, 'x', len);
    doc_begin_object(b);
    doc_key(b, key, strlen(key));
    doc_put_string(b, text, len);
    doc_end(b);
    struct doc d;
    ck_assert_int_eq(doc_builder_finish(b, &d, NULL), OMEN_OK);
    d.data = arena_copy(&arena, d.data, d.len);
    doc_builder_free(b);
    return d;
}

START_TEST(merge_holds_the_limit_and_leaves_out_alone)
{
    /* 9 + 2 * (2 + 1 + 5) bytes around the text */
    const size_t text = DOC_BYTES_MAX - 9 - 2 * 8;
    for (size_t over = 0; over <= 1; over++) {
        struct buf out;
        buf_init(&out);
        buf_append(&out, "before", 6);
        enum omen_err rc = doc_merge(big_doc("a", text / 2), big_doc("b", text - text / 2 + over), &out,
                &err);
        ck_assert_int_eq(rc, over == 0 ? OMEN_OK : OMEN_ETOOBIG);
        ck_assert_uint_eq(out.len, 6 + (over == 0 ? DOC_BYTES_MAX : 0));
        ck_assert_mem_eq(out.data, "before", 6);
        buf_fini(&out);
    }
}
END_TEST

enum edit { REMOVE, INCLUDE, EXCLUDE };

static void assert_edit(enum edit edit, const char *base, const char *const *texts, const char *want)
{
    const struct doc_path *paths[8];
    uint32_t count = 0;
    while (texts[count] != NULL) {
        paths[count] = path_of(texts[count]);
        count++;
    }
    struct buf out;
    buf_init(&out);
    struct doc d = doc_of(&arena, base);
    enum omen_err rc = edit == REMOVE ? doc_remove(d, paths, count, &out, &err)
                                      : doc_select(d, paths, count, edit == INCLUDE, &out, &err);
    ck_assert_int_eq(rc, OMEN_OK);
    ck_assert_str_eq(doc_show(&arena, take(&out)), want);
}

#define PATHS(...) ((const char *const[]){ __VA_ARGS__, NULL })
#define BASE                                                                                                 \
    "{'a': {'b': 1, 'c': {'d': 2}}, 'items': [{'n': 1, 'p': 2}, {'n': 3}, 4], 's': 'x', 't': ['u', 'v', 'w']}"

START_TEST(remove_drops_what_the_paths_name)
{
    assert_edit(REMOVE, "{'a': 1, 'b': 2, 'c': 3}", PATHS("b"), "{'a':1,'c':3}");
    assert_edit(REMOVE, "{'a': 1}", PATHS("a", "a", "z", "a.b"), "{}");
    assert_edit(REMOVE, BASE, PATHS("a.c", "items", "t"), "{'a':{'b':1},'s':'x'}");
    assert_edit(REMOVE, BASE, PATHS("a.c.d", "items[].n", "t[]", "s[]"),
            "{'a':{'b':1,'c':{}},'items':[{'p':2},{},4],'s':'x','t':[]}");
    assert_edit(REMOVE, BASE, PATHS("a", "items", "t[0]", "t[1]", "t[7]"), "{'s':'x','t':['w']}");
    assert_edit(REMOVE, BASE, PATHS("items[0]", "items[].p", "a", "t"), "{'items':[{'n':3},4],'s':'x'}");
}
END_TEST

START_TEST(select_keeps_or_leaves_out_the_paths)
{
    assert_edit(INCLUDE, BASE, PATHS("s", "a.b"), "{'a':{'b':1},'s':'x'}");
    assert_edit(INCLUDE, BASE, PATHS("a.c", "a"), "{'a':{'b':1,'c':{'d':2}}}");
    assert_edit(INCLUDE, BASE, PATHS("items[].p", "t[1]", "s.z", "nothing"),
            "{'items':[{'p':2},{}],'t':['v']}");
    assert_edit(INCLUDE, BASE, PATHS("nothing"), "{}");
    assert_edit(EXCLUDE, BASE, PATHS("items", "a.c", "t[]"), "{'a':{'b':1},'s':'x','t':[]}");
    assert_edit(EXCLUDE, "{'a': 1}", PATHS("b"), "{'a':1}");
}
END_TEST

START_TEST(edits_of_an_absent_payload_give_an_empty_one)
{
    const struct doc_path *path = path_of("a");
    for (int i = 0; i < 3; i++) {
        struct buf out;
        buf_init(&out);
        struct doc absent = { NULL, 0 };
        enum omen_err rc = i == 0 ? doc_remove(absent, &path, 1, &out, &err)
                                  : doc_select(absent, &path, 1, i == 1, &out, &err);
        ck_assert_int_eq(rc, OMEN_OK);
        ck_assert_str_eq(doc_show(&arena, take(&out)), "{}");
    }
}
END_TEST

START_TEST(operations_survive_each_failed_allocation)
{
    const struct doc_path *paths[] = { path_of("a.c.d"), path_of("items[].n"), path_of("t[]") };
    struct doc base = doc_of(&arena, BASE);
    for (int operation = 0; operation < 3; operation++) {
        enum omen_err rc = OMEN_ENOMEM;
        for (uint64_t n = 1; rc != OMEN_OK; n++) {
            ck_assert_uint_lt(n, 100);
            struct buf out;
            buf_init(&out);
            mem_fail_at(n);
            if (operation == 0)
                rc = doc_merge(base, base, &out, &err);
            else if (operation == 1)
                rc = doc_remove(base, paths, 3, &out, &err);
            else
                rc = doc_select(base, paths, 3, true, &out, &err);
            mem_fail_at(0);
            ck_assert(rc == OMEN_OK || rc == OMEN_ENOMEM);
            if (rc != OMEN_OK && !out.failed) ck_assert_uint_eq(out.len, 0);
            buf_fini(&out);
        }
    }
}
END_TEST

/* ---- edits against their definition, on random docs and paths ---------------------------------------------------- */

static uint32_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static void put_random(struct doc_builder *b, uint64_t *state, uint32_t depth)
{
    uint32_t kind = depth == 4 ? 0 : next_random(state) % 4, count = next_random(state) % 5;
    if (kind == 0) {
        doc_put_i64(b, count);
        return;
    }
    if (kind == 1 && depth > 0) {
        doc_begin_array(b);
        for (uint32_t i = 0; i < count; i++) put_random(b, state, depth + 1);
    } else {
        doc_begin_object(b);
        for (uint32_t i = 0; i < count; i++) {
            char key = (char)('a' + i);
            if (next_random(state) % 4 == 0) continue;
            doc_key(b, &key, 1);
            put_random(b, state, depth + 1);
        }
    }
    doc_end(b);
}

static const struct doc_path *random_path(uint64_t *state)
{
    char text[64];
    int len = snprintf(text, sizeof text, "%c", 'a' + next_random(state) % 5);
    for (uint32_t steps = next_random(state) % 4; steps > 0; steps--) {
        char *at = text + len;
        size_t room = sizeof text - (size_t)len;
        uint32_t kind = next_random(state) % 4;
        if (kind == 0)
            len += snprintf(at, room, "[]");
        else if (kind == 1)
            len += snprintf(at, room, "[%u]", next_random(state) % 5);
        else
            len += snprintf(at, room, ".%c", 'a' + next_random(state) % 5);
    }
    return path_of(text);
}

struct trail {
    struct doc_step steps[8];
    uint32_t count;
};

/* 0: the path leads elsewhere; 1: through here and on; 2: here. */
static int path_meets(const struct doc_path *path, const struct trail *trail)
{
    if (path->step_count < trail->count) return 0;
    for (uint32_t i = 0; i < trail->count; i++) {
        const struct doc_step *want = &path->steps[i], *here = &trail->steps[i];
        bool object = here->kind == DOC_STEP_KEY;
        if (object != (want->kind == DOC_STEP_KEY)) return 0;
        if (object && doc_key_compare(want->key, here->key) != 0) return 0;
        if (want->kind == DOC_STEP_SLOT && want->slot != here->slot) return 0;
    }
    return path->step_count == trail->count ? 2 : 1;
}

/* The definition: each place is held against each path. */
static void put_edited(struct doc_builder *b, struct doc from, const struct doc_path *const *paths,
        uint32_t path_count, bool include, struct trail *trail)
{
    struct doc_iter it = doc_iter(from);
    struct bytes key;
    struct doc value;
    bool object = doc_type(from) == DOC_OBJECT;
    if (object)
        doc_begin_object(b);
    else
        doc_begin_array(b);
    for (uint32_t slot = 0; doc_next(&it, &key, &value); slot++) {
        trail->steps[trail->count++] = (struct doc_step){ object ? DOC_STEP_KEY : DOC_STEP_SLOT, slot,
            object ? key : (struct bytes){ 0 } };
        int meets = 0;
        for (uint32_t i = 0; i < path_count; i++) {
            int met = path_meets(paths[i], trail);
            if (met > meets) meets = met;
        }
        bool descend = meets == 1 && doc_type(value) >= DOC_ARRAY;
        if (descend || (meets == 2) == include) {
            if (object) doc_key(b, (const char *)key.data, key.len);
            if (descend)
                put_edited(b, value, paths, path_count, include, trail);
            else
                doc_put_doc(b, value);
        }
        trail->count--;
    }
    doc_end(b);
}

START_TEST(edits_with_many_paths_are_as_with_each_place_held_against_each)
{
    uint64_t seed = 20261122, state = seed;
    struct doc_builder *builder = doc_builder_new(DOC_BYTES_MAX), *model = doc_builder_new(DOC_BYTES_MAX);
    for (int round = 0; round < 3000; round++) {
        doc_builder_reset(builder, DOC_BYTES_MAX);
        doc_begin_object(builder);
        for (char key = 'a'; key < 'f'; key++) {
            doc_key(builder, &key, 1);
            put_random(builder, &state, 1);
        }
        doc_end(builder);
        struct doc base, want;
        ck_assert_int_eq(doc_builder_finish(builder, &base, &err), OMEN_OK);
        const struct doc_path *paths[40];
        uint32_t count = next_random(&state) % 40;
        for (uint32_t i = 0; i < count; i++) paths[i] = random_path(&state);
        bool include = round % 2 == 0;
        struct trail trail = { .count = 0 };
        doc_builder_reset(model, DOC_BYTES_MAX);
        put_edited(model, base, paths, count, include, &trail);
        ck_assert_int_eq(doc_builder_finish(model, &want, &err), OMEN_OK);
        struct buf out;
        buf_init(&out);
        ck_assert_int_eq(doc_select(base, paths, count, include, &out, &err), OMEN_OK);
        ck_assert_msg(out.len == want.len && memcmp(out.data, want.data, want.len) == 0, "seed %llu round %d",
                (unsigned long long)seed, round);
        buf_fini(&out);
        arena_reset(&arena);
    }
    doc_builder_free(builder);
    doc_builder_free(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("doc_path");
    TCase *tc = tcase_create("doc_path");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, path_reads_its_grammar);
    tcase_add_test(tc, path_refuses_what_is_none);
    tcase_add_test(tc, path_holds_its_limits);
    tcase_add_test(tc, path_owns_its_text);
    tcase_add_test(tc, path_leads_to_every_value);
    tcase_add_test(tc, walk_stops_when_told);
    tcase_add_test(tc, merge_replaces_members_of_the_top_level);
    tcase_add_test(tc, merge_holds_the_limit_and_leaves_out_alone);
    tcase_add_test(tc, remove_drops_what_the_paths_name);
    tcase_add_test(tc, select_keeps_or_leaves_out_the_paths);
    tcase_add_test(tc, edits_of_an_absent_payload_give_an_empty_one);
    tcase_add_test(tc, operations_survive_each_failed_allocation);
    tcase_add_test(tc, edits_with_many_paths_are_as_with_each_place_held_against_each);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures;
}

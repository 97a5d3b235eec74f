/* Names of points: ids as text, shard keys, point keys, slots against the golden file, scores and the order
 * of hits. */
#include <check.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/hash.h"
#include "common/query/point.h"
#include "tests/support/doc_text.h"

#define GOLDEN "tests/golden/shard_keys.txt"

static struct arena arena;
static struct err err;

static void setup(void)
{
    arena_init(&arena, 1 << 16, 0);
    err_clear(&err);
}

static void teardown(void) { arena_fini(&arena); }

static point_id id_of(const char *text)
{
    point_id id;
    ck_assert_msg(point_id_parse(text, strlen(text), &id) == OMEN_OK, "%s", text);
    return id;
}

static point_id number(uint64_t v) { return (point_id){ .lo = v, .kind = POINT_ID_U64 }; }

/* ---- ids --------------------------------------------------------------------------------------------- */

START_TEST(id_survives_its_text)
{
    static const char *const texts[] = { "0", "1", "42", "9223372036854775808", "18446744073709551615",
        "00000000-0000-0000-0000-000000000000", "12345678-9abc-def0-1234-56789abcdef0",
        "ffffffff-ffff-ffff-ffff-ffffffffffff" };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char text[POINT_ID_TEXT_BYTES];
        point_id_format(id_of(texts[i]), text);
        ck_assert_str_eq(text, texts[i]);
    }
    point_id u = id_of("12345678-9abc-def0-1234-56789abcdef0");
    ck_assert_uint_eq(u.hi, UINT64_C(0x123456789abcdef0));
    ck_assert_uint_eq(u.lo, UINT64_C(0x123456789abcdef0));
    ck_assert_int_eq(u.kind, POINT_ID_UUID);
    ck_assert(point_id_equal(u, id_of("123456789ABCDEF0123456789abcDEF0")));
    ck_assert(point_id_equal(u, id_of("12345678-9ABC-DEF0-1234-56789ABCDEF0")));
}
END_TEST

START_TEST(id_refuses_what_is_none)
{
    static const char *const bad[] = { "", "-1", "+1", "01", "00", " 1", "1 ", "1.0", "1e3", "0x10",
        "18446744073709551616", "99999999999999999999", "100000000000000000000", "abc",
        "12345678-9abc-def0-1234-56789abcdef", "12345678-9abc-def0-1234-56789abcdef00",
        "12345678_9abc-def0-1234-56789abcdef0", "123456789-abc-def0-1234-56789abcdef0",
        "{12345678-9abc-def0-1234-56789abcde}", "1234567g-9abc-def0-1234-56789abcdef0",
        "123456789abcdef0123456789abcdeg0", "12345678-9abcdef0123456789abcdef0" };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        point_id id = number(7);
        ck_assert_msg(point_id_parse(bad[i], strlen(bad[i]), &id) == OMEN_EINVAL, "%s", bad[i]);
        ck_assert_uint_eq(id.lo, 7);
    }
    point_id id;
    ck_assert_int_eq(point_id_parse("1\0", 2, &id), OMEN_EINVAL);
}
END_TEST

START_TEST(ids_are_ordered_numbers_first)
{
    static const char *const ascending[] = { "0", "1", "255", "256", "18446744073709551615",
        "00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001",
        "00000000-0000-0001-0000-000000000000", "ffffffff-ffff-ffff-0000-000000000000" };
    const int count = sizeof ascending / sizeof ascending[0];
    for (int i = 0; i < count; i++)
        for (int j = 0; j < count; j++) {
            int order = point_id_compare(id_of(ascending[i]), id_of(ascending[j]));
            ck_assert_int_eq((order > 0) - (order < 0), (i > j) - (i < j));
        }
}
END_TEST

/* ---- shard keys -------------------------------------------------------------------------------------- */

static enum omen_err key_from(const char *text, struct shard_key *key_out)
{
    struct doc value = text == NULL ? (struct doc){ NULL, 0 } : doc_of(&arena, text);
    return shard_key_from_doc(value, "tenant", &arena, key_out, &err);
}

START_TEST(shard_key_is_one_string_bool_or_integer)
{
    static const char *const bad[] = { "null", "1.0", "1.5", "[]", "['a']", "{}", NULL };
    struct shard_key key = { { NULL, 0 } };
    for (int i = 0; i == 0 || bad[i - 1] != NULL; i++) {
        ck_assert_int_eq(key_from(bad[i], &key), OMEN_EINVAL);
        ck_assert_str_eq(err.field, "tenant");
        ck_assert_ptr_null(key.canonical.data);
    }
    ck_assert_int_eq(key_from("1.5", &key), OMEN_EINVAL);
    ck_assert_str_eq(err.message,
            "the shard key must be a string, a bool or an integer, not a floating-point number");
    ck_assert_int_eq(key_from("''", &key), OMEN_OK);
    ck_assert_uint_eq(key.canonical.len, 1); /* not empty: the empty string is a key */
}
END_TEST

START_TEST(shard_key_holds_its_limit)
{
    char text[OMEN_SHARD_KEY_BYTES_MAX + 3];
    for (size_t len = OMEN_SHARD_KEY_BYTES_MAX - 1; len <= OMEN_SHARD_KEY_BYTES_MAX; len++) {
        memset(text, 'x', sizeof text);
        text[0] = text[len + 1] = '\'';
        text[len + 2] = '\0';
        struct shard_key key;
        enum omen_err rc = key_from(text, &key);
        ck_assert_int_eq(rc, len < OMEN_SHARD_KEY_BYTES_MAX ? OMEN_OK : OMEN_ETOOBIG);
        if (rc == OMEN_OK) ck_assert_uint_eq(key.canonical.len, OMEN_SHARD_KEY_BYTES_MAX);
    }
    struct arena tiny;
    arena_init(&tiny, 16, 16);
    struct shard_key key;
    ck_assert_int_eq(shard_key_from_doc(doc_of(&arena, "'a'"), "", &tiny, &key, &err), OMEN_ENOMEM);
    arena_fini(&tiny);
}
END_TEST

/* A doc of the golden file's value. */
static struct doc golden_doc(const char *kind, const char *value)
{
    char text[1024];
    bool quoted = strcmp(kind, "string") == 0;
    snprintf(text, sizeof text, quoted ? "'%s'" : "%s", value);
    return doc_of(&arena, text);
}

static void check_golden_line(char *line)
{
    char *columns[5], *rest = line;
    for (int i = 0; i < 5; i++) {
        columns[i] = strsep(&rest, "\t\n");
        ck_assert_msg(columns[i] != NULL, "a column is missing");
    }
    struct shard_key key = { { NULL, 0 } };
    point_id id = number(7);
    uint8_t hashed[OMEN_SHARD_KEY_BYTES_MAX];
    size_t len;
    if (strcmp(columns[0], "id") == 0) {
        id = id_of(columns[1]);
        const struct point_key point_key = { .id = id };
        uint8_t encoded[POINT_KEY_BYTES];
        point_key_encode(&point_key, encoded);
        hashed[0] = 'i';
        memcpy(hashed + 1, encoded, 17);
        len = 18;
    } else {
        ck_assert_int_eq(shard_key_from_doc(golden_doc(columns[0], columns[1]), "k", &arena, &key, &err),
                OMEN_OK);
        len = key.canonical.len;
        memcpy(hashed, key.canonical.data, len);
    }
    char hex[2 * OMEN_SHARD_KEY_BYTES_MAX + 1] = "", hash[17], slot[12];
    for (size_t i = 0; i < len; i++) snprintf(hex + 2 * i, 3, "%02x", hashed[i]);
    snprintf(hash, sizeof hash, "%016" PRIx64, hash64(hashed, len));
    snprintf(slot, sizeof slot, "%u", point_slot(id, key));
    ck_assert_str_eq(hex, columns[2]);
    ck_assert_str_eq(hash, columns[3]);
    ck_assert_str_eq(slot, columns[4]);
}

START_TEST(shard_keys_and_slots_are_those_of_the_golden_file)
{
    FILE *file = fopen(GOLDEN, "r"); /* tests run at the root of the repository */
    ck_assert_msg(file != NULL, "%s is missing", GOLDEN);
    char line[4096];
    int count = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        if (line[0] == '#') continue;
        check_golden_line(line);
        count++;
    }
    fclose(file);
    ck_assert_int_ge(count, 28);
}
END_TEST

START_TEST(slot_ignores_the_id_once_there_is_a_key)
{
    struct shard_key key;
    ck_assert_int_eq(key_from("'acme'", &key), OMEN_OK);
    uint32_t slot = point_slot(number(1), key);
    for (uint64_t i = 0; i < 100; i++) ck_assert_uint_eq(point_slot(number(i), key), slot);
}
END_TEST

/* ---- point keys -------------------------------------------------------------------------------------- */

static uint64_t rng_state;

static uint64_t rng(void) /* splitmix64 */
{
    uint64_t z = rng_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Few values, so that equal parts and single differing bytes are met often. */
static uint64_t random_part(void)
{
    switch (rng() % 4) {
    case 0: return rng() % 3;
    case 1: return UINT64_C(1) << rng() % 64;
    case 2: return UINT64_MAX - rng() % 3;
    default: return rng();
    }
}

static struct point_key random_key(void)
{
    struct point_key key = { .id = { .lo = random_part(), .kind = (uint8_t)(rng() % 2) } };
    if (key.id.kind == POINT_ID_UUID) key.id.hi = random_part();
    key.key_hi = random_part();
    key.key_lo = random_part();
    return key;
}

START_TEST(point_key_bytes_sort_as_the_keys_do)
{
    const uint64_t seed = 20261122;
    rng_state = seed;
    for (int i = 0; i < 100000; i++) {
        struct point_key a = random_key(), b = rng() % 8 == 0 ? a : random_key(), back;
        if (rng() % 2 == 0) b.id = a.id;
        uint8_t a_bytes[POINT_KEY_BYTES], b_bytes[POINT_KEY_BYTES];
        point_key_encode(&a, a_bytes);
        point_key_encode(&b, b_bytes);
        int by_bytes = memcmp(a_bytes, b_bytes, POINT_KEY_BYTES), by_key = point_key_compare(&a, &b);
        ck_assert_msg((by_bytes > 0) - (by_bytes < 0) == (by_key > 0) - (by_key < 0),
                "seed %" PRIu64 " pair %d", seed, i);
        point_key_decode(a_bytes, &back);
        ck_assert_int_eq(point_key_compare(&a, &back), 0);
    }
}
END_TEST

START_TEST(point_key_tells_shard_keys_apart)
{
    struct shard_key none = { { NULL, 0 } }, a, b;
    ck_assert_int_eq(key_from("1", &a), OMEN_OK);
    ck_assert_int_eq(key_from("'1'", &b), OMEN_OK);
    struct point_key key_none = point_key_make(number(5), none);
    struct point_key key_a = point_key_make(number(5), a), key_b = point_key_make(number(5), b);
    ck_assert(key_none.key_hi == 0 && key_none.key_lo == 0);
    ck_assert_int_ne(point_key_compare(&key_a, &key_b), 0);
    ck_assert_int_lt(point_key_compare(&key_none, &key_a), 0); /* a range by id begins with zeros */
}
END_TEST

/* ---- metrics and hits -------------------------------------------------------------------------------- */

START_TEST(metrics_have_their_names)
{
    static const char *const names[] = { "l2", "ip", "cosine" };
    for (int m = 0; m < 3; m++) {
        enum metric metric;
        ck_assert_str_eq(metric_name((enum metric)m), names[m]);
        ck_assert(metric_parse(names[m], strlen(names[m]), &metric));
        ck_assert_int_eq(metric, m);
        ck_assert_int_eq(metric_higher_is_nearer(metric), m != METRIC_L2);
    }
    enum metric metric;
    ck_assert(!metric_parse("", 0, &metric));
    ck_assert(!metric_parse("L2", 2, &metric));
    ck_assert(!metric_parse("l2x", 3, &metric));
    ck_assert(!metric_parse("cosine", 3, &metric));
}
END_TEST

START_TEST(scores_are_what_users_expect)
{
    ck_assert_float_eq(score_of_distance(METRIC_L2, 25.0f), 5.0f);
    ck_assert_float_eq(score_of_distance(METRIC_L2, -1e-7f), 0.0f);
    ck_assert_float_eq(score_of_distance(METRIC_IP, -3.5f), 3.5f);
    ck_assert_float_eq(score_of_distance(METRIC_COSINE, 0.25f), -0.25f);
    ck_assert(!signbit(score_of_distance(METRIC_IP, 0.0f)));
    ck_assert(!signbit(score_of_distance(METRIC_L2, -0.0f)));
}
END_TEST

START_TEST(hits_are_ordered_by_distance_id_and_key)
{
    struct shard_key a, b;
    ck_assert_int_eq(key_from("'a'", &a), OMEN_OK);
    ck_assert_int_eq(key_from("'b'", &b), OMEN_OK);
    struct hit x = { .distance = 1.0f, .point = { .id = number(2), .key = a } }, y = x;
    ck_assert_int_eq(hit_compare(&x, &y), 0);
    y.point.key = b;
    struct point_key key_a = point_key_make(number(2), a), key_b = point_key_make(number(2), b);
    ck_assert_int_eq(hit_compare(&x, &y), point_key_compare(&key_a, &key_b));
    ck_assert_int_eq(hit_compare(&y, &x), point_key_compare(&key_b, &key_a));
    y.point.id = number(3);
    ck_assert_int_lt(hit_compare(&x, &y), 0);
    y.distance = 0.5f;
    ck_assert_int_gt(hit_compare(&x, &y), 0);
    x.distance = 0.0f;
    y.distance = -0.0f;
    ck_assert_int_lt(hit_compare(&x, &y), 0); /* equal distances: by id */
}
END_TEST

START_TEST(only_canonical_shard_keys_are_valid)
{
    static const struct {
        const char *bytes;
        size_t len;
        bool valid;
    } cases[] = {
        { "", 0, false },
        { "\1", 1, true },
        { "\1abc", 4, true },
        { "\1\xff", 2, false },
        { "\2\0", 2, true },
        { "\2\1", 2, true },
        { "\2\2", 2, false },
        { "\2", 1, false },
        { "\3\0\0\0\0\0\0\0\0", 9, true },
        { "\3\0\0\0\0\0\0\0", 8, false },
        { "\4\0", 2, false },
        { "\0", 1, false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bytes key = { (const uint8_t *)cases[i].bytes, cases[i].len };
        ck_assert_msg(shard_key_valid(key) == cases[i].valid, "case %zu", i);
    }
    uint8_t text[OMEN_SHARD_KEY_BYTES_MAX + 1];
    memset(text, 'x', sizeof text);
    text[0] = 1;
    ck_assert(shard_key_valid((struct bytes){ text, OMEN_SHARD_KEY_BYTES_MAX }));
    ck_assert(!shard_key_valid((struct bytes){ text, OMEN_SHARD_KEY_BYTES_MAX + 1 }));
}
END_TEST

START_TEST(nan_and_infinity_are_found_where_they_are)
{
    uint8_t bytes[4 * 3000 + 1];
    float *one = mem_must_alloc(4);
    static const float bad[] = { __builtin_nanf(""), __builtin_inff(), -__builtin_inff() };
    static const uint64_t at[] = { 0, 1, 1023, 1024, 2047, 2999 };
    for (int b = 0; b < 3; b++) {
        for (int i = 0; i < 6; i++) {
            memset(bytes, 0x3f, sizeof bytes);
            uint64_t position = 7;
            ck_assert(floats_finite(bytes + 1, 3000, &position)); /* unaligned */
            *one = bad[b];
            memcpy(bytes + 1 + 4 * at[i], one, 4);
            ck_assert(!floats_finite(bytes + 1, 3000, &position));
            ck_assert_uint_eq(position, at[i]);
        }
    }
    mem_free(one);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("point");
    TCase *tc = tcase_create("point");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, id_survives_its_text);
    tcase_add_test(tc, id_refuses_what_is_none);
    tcase_add_test(tc, ids_are_ordered_numbers_first);
    tcase_add_test(tc, shard_key_is_one_string_bool_or_integer);
    tcase_add_test(tc, shard_key_holds_its_limit);
    tcase_add_test(tc, shard_keys_and_slots_are_those_of_the_golden_file);
    tcase_add_test(tc, slot_ignores_the_id_once_there_is_a_key);
    tcase_add_test(tc, point_key_bytes_sort_as_the_keys_do);
    tcase_add_test(tc, point_key_tells_shard_keys_apart);
    tcase_add_test(tc, metrics_have_their_names);
    tcase_add_test(tc, scores_are_what_users_expect);
    tcase_add_test(tc, hits_are_ordered_by_distance_id_and_key);
    tcase_add_test(tc, only_canonical_shard_keys_are_valid);
    tcase_add_test(tc, nan_and_infinity_are_found_where_they_are);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures;
}

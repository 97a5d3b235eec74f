/* When points end, as an upsert says it: one time for all of them or a column, and what is neither is named. */
#include <check.h>

#include "common/wire/value.h"

static struct arena arena;
static struct buf message;
static struct err err;
static msgpack_packer pk;

static void setup(void)
{
    arena_init(&arena, 4096, 1u << 20);
    buf_init(&message);
    err_clear(&err);
}

static void teardown(void)
{
    buf_fini(&message);
    arena_fini(&arena);
}

static int append(void *out, const char *data, size_t len)
{
    buf_append(out, data, len);
    return 0;
}

static void put(const char *text)
{
    msgpack_pack_str(&pk, strlen(text));
    msgpack_pack_str_body(&pk, text, strlen(text));
}

static void put_int(const char *name, int64_t v)
{
    put(name);
    msgpack_pack_int64(&pk, v);
}

static void expect_error(enum omen_err code, const char *field)
{
    struct wire_request out;
    ck_assert_int_eq(message_decode_request((struct bytes){ message.data, message.len }, &arena, &out, &err),
            code);
    ck_assert_str_eq(err.field, field);
    ck_assert_str_ne(err.message, "");
}

/* An upsert of two points with `put_times` as its expires_ms. */
static void upsert_with(void (*put_times)(void))
{
    static const float row[2] = { 1, 2 };
    buf_clear(&message);
    msgpack_packer_init(&pk, &message, append);
    msgpack_pack_map(&pk, 6);
    put_int("v", 1);
    put("op");
    put("points.upsert");
    put("collection");
    put("docs");
    put("ids");
    msgpack_pack_array(&pk, 2);
    msgpack_pack_uint8(&pk, 1);
    msgpack_pack_uint8(&pk, 2);
    put("vectors");
    msgpack_pack_bin(&pk, sizeof row);
    msgpack_pack_bin_body(&pk, row, sizeof row);
    put("expires_ms");
    put_times();
}

static void times_one(void) { msgpack_pack_uint64(&pk, 1790000000000); }
static void times_column(void)
{
    msgpack_pack_array(&pk, 2);
    msgpack_pack_nil(&pk);
    msgpack_pack_uint64(&pk, 5);
}
static void times_short(void)
{
    msgpack_pack_bin(&pk, 8);
    msgpack_pack_bin_body(&pk, "12345678", 8);
}
static void times_too_late(void)
{
    msgpack_pack_array(&pk, 2);
    msgpack_pack_nil(&pk);
    msgpack_pack_uint64(&pk, 1ull << 63);
}
static void times_text(void) { put("tomorrow"); }
static void times_negative(void) { msgpack_pack_int64(&pk, -1); }

START_TEST(a_time_stands_for_all_points_or_each_has_its_own)
{
    struct wire_request out;
    upsert_with(times_one);
    ck_assert_int_eq(message_decode_request((struct bytes){ message.data, message.len }, &arena, &out, &err),
            OMEN_OK);
    ck_assert_uint_eq(out.write.expires_ms[0], 1790000000000);
    ck_assert_uint_eq(out.write.expires_ms[1], 1790000000000);
    upsert_with(times_column);
    ck_assert_int_eq(message_decode_request((struct bytes){ message.data, message.len }, &arena, &out, &err),
            OMEN_OK);
    ck_assert_uint_eq(out.write.expires_ms[0], 0);
    ck_assert_uint_eq(out.write.expires_ms[1], 5);
    upsert_with(times_short);
    expect_error(OMEN_EINVAL, "expires_ms");
    upsert_with(times_too_late);
    expect_error(OMEN_ETOOBIG, "expires_ms[1]");
    upsert_with(times_text);
    expect_error(OMEN_EINVAL, "expires_ms");
    upsert_with(times_negative);
    expect_error(OMEN_EINVAL, "expires_ms");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("message_expiry");
    TCase *tc = tcase_create("expiry");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_time_stands_for_all_points_or_each_has_its_own);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

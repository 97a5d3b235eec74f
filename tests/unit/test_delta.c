/* The delta and the table of applied ops against plain arrays. */
#include "common/err.h"
#include "common/mem.h"
#include "storage/meta/delta.h"
#include "storage/meta/intent.h"
#include "storage/meta/op_table.h"
#include "tests/support/golden.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#define KEYS 200
#define STEPS 5000

static uint64_t rng_state = 88172645463325252u;

static uint64_t rng(uint64_t below)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state % below;
}

/* Keys that differ in each part in turn. */
static struct point_key key_of(uint32_t n)
{
    struct point_key k = { .id = { 0, n % 50, POINT_ID_U64 } };
    if (n % 4 == 0) k.id.lo = n;
    if (n % 4 == 1) k.id = (point_id){ n % 3, n, POINT_ID_UUID };
    if (n % 4 == 2) k.key_hi = n;
    if (n % 4 == 3) k.key_lo = UINT64_MAX - n;
    return k;
}

struct written {
    uint32_t key;
    struct row_ref row;
};

static int by_key(const void *a, const void *b)
{
    struct point_key ka = key_of(*(const uint32_t *)a), kb = key_of(*(const uint32_t *)b);
    return point_key_compare(&ka, &kb);
}

/* Newest state of `key` at `sequence` in the list of writes (sequence i + 1 is writes[i]). */
static bool model_get(const struct written *writes, uint32_t key, uint64_t sequence, struct row_ref *row_out)
{
    for (uint64_t s = sequence; s > 0; s--) {
        if (writes[s - 1].key != key) continue;
        *row_out = writes[s - 1].row;
        return true;
    }
    return false;
}

START_TEST(delta_answers_exactly_for_every_sequence)
{
    struct delta *d = delta_new();
    static struct written writes[STEPS];
    uint32_t order[KEYS];
    for (uint32_t i = 0; i < KEYS; i++) order[i] = i;
    qsort(order, KEYS, sizeof *order, by_key);
    for (uint64_t i = 0; i < STEPS; i++) {
        writes[i].key = (uint32_t)rng(KEYS);
        writes[i].row = rng(4) == 0 ? ROW_NONE : (struct row_ref){ (uint32_t)rng(1000), (uint32_t)i };
        struct point_key k = key_of(writes[i].key);
        struct delta_spot spot;
        struct row_ref now, want = ROW_NONE;
        bool found = delta_find(d, &k, &spot, &now);
        ck_assert_int_eq(found, model_get(writes, writes[i].key, i, &want));
        if (found) ck_assert(row_equal(now, want));
        delta_put(d, &k, i + 1, writes[i].row, rng(2) == 0 ? &spot : NULL);
    }
    ck_assert_uint_eq(delta_count(d), STEPS);
    for (int i = 0; i < 3000; i++) {
        uint32_t key = (uint32_t)rng(KEYS);
        uint64_t sequence = rng(STEPS + 10);
        struct point_key k = key_of(key);
        struct row_ref got, want = ROW_NONE;
        bool found = delta_get(d, &k, sequence, &got);
        ck_assert_int_eq(found, model_get(writes, key, sequence < STEPS ? sequence : STEPS, &want));
        if (found) ck_assert(row_equal(got, want));
    }
    for (uint64_t sequence = 0; sequence <= STEPS; sequence += 613) {
        uint32_t from = (uint32_t)rng(KEYS);
        struct point_key start = key_of(order[from]);
        struct delta_iter it;
        delta_iter_seek(d, &start, sequence, &it);
        for (uint32_t i = from; i < KEYS; i++) {
            struct row_ref want;
            struct point_key k = key_of(order[i]);
            if (!model_get(writes, order[i], sequence, &want)) continue;
            ck_assert(delta_iter_valid(&it));
            ck_assert_int_eq(point_key_compare(&it.key, &k), 0);
            ck_assert(row_equal(it.row, want));
            ck_assert_uint_le(it.version, sequence);
            delta_iter_next(&it);
        }
        ck_assert(!delta_iter_valid(&it));
    }
    delta_unref(d);
}
END_TEST

static struct op_record record_of(uint64_t n, uint64_t issue_ms)
{
    return (struct op_record){ n % 7 + 1, n, issue_ms, n + 10, (uint32_t)n, (uint16_t)(n % 3), 0 };
}

START_TEST(op_table_finds_what_lives_and_forgets_the_rest)
{
    struct op_table *t = op_table_new(5);
    uint64_t first = 0, next = 0;
    for (int step = 0; step < 300; step++) {
        uint64_t added = rng(60);
        for (uint64_t i = 0; i < added; i++, next++) {
            struct op_record r = record_of(next, next);
            ck_assert_int_eq(op_table_put(t, &r), OMEN_OK);
        }
        if (rng(3) == 0) { /* an entry that failed takes its records back */
            uint64_t undone = rng(added + 1);
            next -= undone;
            op_table_undo(t, 5 + next);
        }
        if (rng(2) == 0) {
            uint64_t now = next > 3000 ? next - rng(500) : 0;
            op_table_expire(t, now, 2000);
            while (first < next && now >= 2000 && first < now - 2000) first++;
        }
        ck_assert_uint_eq(op_table_first(t), 5 + first);
        ck_assert_uint_eq(op_table_next(t), 5 + next);
        for (int i = 0; i < 20; i++) {
            uint64_t n = rng(next + 20);
            const struct op_record *r = op_table_find(t, n % 7 + 1, n);
            ck_assert_int_eq(r != NULL, n >= first && n < next);
            if (r != NULL) ck_assert_uint_eq(r->sequence, n + 10);
        }
    }
    ck_assert_uint_gt(first, 0);
    op_table_free(t);
}
END_TEST

START_TEST(a_pinned_range_outlives_expiry)
{
    struct op_table *t = op_table_new(0);
    for (uint64_t n = 0; n < 5000; n++) {
        struct op_record r = record_of(n, n);
        ck_assert_int_eq(op_table_put(t, &r), OMEN_OK);
    }
    struct op_range range;
    ck_assert_int_eq(op_table_pin(t, &range), OMEN_OK);
    op_table_expire(t, 4900, 100);
    for (uint64_t n = 5000; n < 9000; n++) {
        struct op_record r = record_of(n, n);
        ck_assert_int_eq(op_table_put(t, &r), OMEN_OK);
    }
    ck_assert_uint_eq(op_table_first(t), 4800);
    for (uint64_t n = range.first; n < range.next; n++) ck_assert_uint_eq(op_range_at(&range, n)->seq, n);
    op_table_unpin(t, &range);
    ck_assert_ptr_nonnull(op_table_find(t, 4801 % 7 + 1, 4801));
    ck_assert_ptr_null(op_table_find(t, 4799 % 7 + 1, 4799));
    op_table_free(t);
}
END_TEST

START_TEST(an_op_record_survives_its_encoding)
{
    uint8_t bytes[OP_RECORD_BYTES];
    struct op_record in = { 1, UINT64_MAX, 3, 4, 5, OMEN_ETOOBIG, 9 }, out;
    op_record_encode(&in, bytes);
    op_record_decode(bytes, &out);
    ck_assert_uint_eq(out.seq, in.seq);
    ck_assert_uint_eq(out.client, 1);
    ck_assert_uint_eq(out.issue_ms, 3);
    ck_assert_uint_eq(out.sequence, 4);
    ck_assert_uint_eq(out.affected, 5);
    ck_assert_uint_eq(out.code, OMEN_ETOOBIG);
    ck_assert_uint_eq(out.since_ms, 9);
    ck_assert_uint_eq(op_record_since_ms(&out), 9);
    out.since_ms = 0;
    ck_assert_uint_eq(op_record_since_ms(&out), 3);
}
END_TEST

/* The file is the format. Every byte of it counts: another one is refused, or decodes to what encodes to it. */
START_TEST(a_write_by_filter_survives_its_encoding)
{
    static const uint8_t doc[] = { 7, 12, 0, 0, 0, 1, 0, 0, 0, 1, 0, 'a', 3, 7, 0, 0, 0, 0, 0, 0, 0 };
    const struct entry_intent begin = { .kind = ENTRY_INTENT_BEGIN,
        .op = POINT_SET_PAYLOAD,
        .filter = { doc, sizeof doc },
        .payload = { doc, sizeof doc } };
    const struct intent_id id = { 77, 3 };
    uint8_t golden[256], bytes[256];
    struct intent_set *set = intent_set_copy(NULL);
    ck_assert_int_eq(intent_set_add(set, id, &(struct op_id){ 9, 4, 1700000000000 }, &begin), OMEN_OK);
    set->items[0].affected = 2500;
    set->items[0].steps = 3;
    set->items[0].has_cursor = true;
    set->items[0].cursor = (struct point_key){ .id = { 0, 42, POINT_ID_U64 }, .key_hi = 5, .key_lo = 6 };
    size_t len = intent_bytes(&set->items[0]);
    ck_assert_uint_eq(len, INTENT_HEAD_BYTES + 2 * sizeof doc);
    intent_encode(&set->items[0], bytes);
    if (getenv("OMEN_GOLDEN_WRITE") != NULL)
        golden_write("tests/golden/intent-v1.hex", (struct bytes){ bytes, len }, "");
    ck_assert_uint_eq(golden_read("tests/golden/intent-v1.hex", golden, sizeof golden), len);
    ck_assert_mem_eq(golden, bytes, len);
    for (size_t at = 4; at <= len; at++) { /* the last time nothing is changed */
        struct intent_set *read = intent_set_copy(NULL);
        memcpy(bytes, golden, len);
        if (at < len) bytes[at] ^= 0x41;
        enum omen_err rc = intent_decode(id, bytes, len, read);
        ck_assert(rc == OMEN_OK || (rc == OMEN_ECORRUPT && at < len));
        if (rc == OMEN_OK) {
            uint8_t again[256];
            ck_assert_uint_eq(intent_bytes(&read->items[0]), len);
            intent_encode(&read->items[0], again);
            ck_assert_mem_eq(again + 4, bytes + 4, len - 4);
        }
        intent_set_unref(read);
    }
    intent_set_unref(set);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("delta");
    TCase *tc = tcase_create("delta");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, delta_answers_exactly_for_every_sequence);
    tcase_add_test(tc, op_table_finds_what_lives_and_forgets_the_rest);
    tcase_add_test(tc, a_pinned_range_outlives_expiry);
    tcase_add_test(tc, an_op_record_survives_its_encoding);
    tcase_add_test(tc, a_write_by_filter_survives_its_encoding);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

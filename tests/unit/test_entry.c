/* Log entries: what is built is what is parsed, and nothing else is parsed. */
#include "common/err.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/kernel/kernel.h"
#include "tests/support/entry_support.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define GOLDEN_V1 "tests/golden/entry-v1.hex"
#define GOLDEN_V2 "tests/golden/entry-v2.hex"
#define GOLDEN_V3 "tests/golden/entry-v3.hex"
#define EXPIRES_MS 1800000000123ull

/* {"a": i64 7} and ["a"] as docs; canonical keys. */
static const uint8_t object_doc[] = { 7, 12, 0, 0, 0, 1, 0, 0, 0, 1, 0, 'a', 3, 7, 0, 0, 0, 0, 0, 0, 0 };
static const uint8_t paths_doc[] = { 6, 6, 0, 0, 0, 1, 0, 0, 0, 5, 1, 0, 0, 0, 'a' };
static const uint8_t string_key[] = { 1, 'a', 'c', 'm', 'e' };
static const uint8_t bool_key[] = { 2, 1 };
static const uint8_t i64_key[] = { 3, 0, 0, 0, 0, 0, 0, 0, 9 };

static struct shard_key key_of(const uint8_t *data, size_t len)
{
    return (struct shard_key){ { data, len } };
}
static struct doc object(void) { return (struct doc){ object_doc, sizeof object_doc }; }

static void add(struct entry_builder *b, const struct point_op *op)
{
    ck_assert_int_eq(entry_builder_add(b, op), OMEN_OK);
}

static float four[4] = { 1, 2, 3, 4 }, text[17] = { 0.5f, [16] = -0.5f },
             image[33] = { [0] = 9, [32] = 1e-40f };

static uint64_t sample_expires_ms; /* of its first point */
static bool sample_intents;        /* requests of writes by filter follow */
static const struct intent_id write_id = { 77, 3 };

/* One begins, one goes on with an operation, one ends without any. */
static void add_intents(struct entry_builder *b)
{
    struct entry_intent begin = { .kind = ENTRY_INTENT_BEGIN,
        .op = POINT_SET_PAYLOAD,
        .filter = object(),
        .payload = object() };
    entry_builder_begin_request(b, (struct op_id){ 13, 8, 1002 });
    ck_assert_int_eq(entry_builder_put_intent(b, &begin), OMEN_OK);
    struct entry_intent step = { .kind = ENTRY_INTENT_STEP, .id = write_id, .step = 5, .has_cursor = true };
    step.cursor = point_key_make((point_id){ 0, 42, POINT_ID_U64 }, key_of(bool_key, sizeof bool_key));
    entry_builder_begin_request(b, (struct op_id){ 0, 0, 0 });
    ck_assert_int_eq(entry_builder_put_intent(b, &step), OMEN_OK);
    struct point_op op = { .kind = POINT_DELETE, .id = { 0, 42, POINT_ID_U64 }, .if_version = 77 };
    op.key = key_of(bool_key, sizeof bool_key);
    add(b, &op);
    step = (struct entry_intent){ .kind = ENTRY_INTENT_STEP, .id = write_id, .step = 6, .ends = true };
    step.code = OMEN_ETOOBIG;
    entry_builder_begin_request(b, (struct op_id){ 0, 0, 0 });
    ck_assert_int_eq(entry_builder_put_intent(b, &step), OMEN_OK);
}

/* One of everything: all kinds, both kinds of id, all kinds of key, missing vectors, an empty request. */
static uint8_t *build_sample(struct entry_builder *b, uint32_t *len_out)
{
    struct point_op op = { .kind = POINT_UPSERT, .id = { 0, 42, POINT_ID_U64 } };
    op.key = key_of(string_key, sizeof string_key);
    op.payload = object();
    op.expires_ms = sample_expires_ms;
    op.vectors[0] = four;
    op.vectors[1] = text;
    entry_builder_reset(b);
    entry_builder_begin_request(b, (struct op_id){ 11, 1, 1000 });
    add(b, &op);
    op.id = (point_id){ 0x0123456789abcdefull, 0xfedcba9876543210ull, POINT_ID_UUID };
    op.expires_ms = 0;
    op.key = key_of(bool_key, sizeof bool_key);
    op.payload = (struct doc){ NULL, 0 };
    op.vectors[0] = NULL;
    op.vectors[1] = NULL;
    op.vectors[2] = image;
    add(b, &op);
    entry_builder_begin_request(b, (struct op_id){ 12, 7, 1001 });
    entry_builder_begin_request(b, (struct op_id){ 0, 0, 0 });
    op.vectors[0] = four;
    op.vectors[1] = NULL;
    op.vectors[2] = NULL;
    op.key = key_of(i64_key, sizeof i64_key);
    add(b, &op);
    op.vectors[0] = NULL;
    op.kind = POINT_SET_PAYLOAD;
    op.payload = object();
    add(b, &op);
    op.kind = POINT_OVERWRITE_PAYLOAD;
    add(b, &op);
    op.kind = POINT_DELETE_PAYLOAD;
    op.payload = (struct doc){ paths_doc, sizeof paths_doc };
    add(b, &op);
    op.kind = POINT_DELETE;
    op.payload = (struct doc){ NULL, 0 };
    op.key = key_of(NULL, 0);
    op.any_key = true;
    add(b, &op);
    if (sample_intents) add_intents(b);
    uint8_t *bytes;
    size_t promised = entry_builder_bytes(b);
    ck_assert_int_eq(entry_builder_finish(b, 1700000000000, 3, false, &bytes, len_out), OMEN_OK);
    ck_assert_uint_eq(promised, *len_out);
    return bytes;
}

static struct collection_schema schema;
static struct entry_builder *builder;
static uint8_t *sample;
static uint32_t sample_len;

static void setup_of(uint64_t expires_ms)
{
    sample_expires_ms = expires_ms;
    schema = test_schema_three(true);
    builder = entry_builder_new(&schema);
    sample = build_sample(builder, &sample_len);
}

static void setup(void) { setup_of(0); }
static void setup_expiring(void) { setup_of(EXPIRES_MS); }
static void setup_intents(void)
{
    sample_intents = true;
    setup_of(EXPIRES_MS);
}

static void teardown(void)
{
    mem_free(sample);
    entry_builder_free(builder);
}

static void fix_checksum(uint8_t *bytes, uint32_t len)
{
    store_u32(bytes + 12, crc32c(0, bytes + 16, len - 16));
}

START_TEST(parsed_entry_holds_what_was_built)
{
    struct entry e;
    struct err err;
    ck_assert_uint_eq((uintptr_t)sample % ENTRY_ALIGN, 0);
    ck_assert_uint_eq(sample_len % ENTRY_ALIGN, 0);
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, &err), OMEN_OK);
    ck_assert_uint_eq(e.log_time_ms, 1700000000000);
    ck_assert_uint_eq(e.epoch, 3);
    ck_assert(!e.derived);
    ck_assert_uint_eq(e.request_count, 3);
    ck_assert_uint_eq(e.op_count, 7);
    ck_assert_uint_eq(e.row_count[0], 2);
    ck_assert_uint_eq(e.row_count[1], 1);
    ck_assert_uint_eq(e.row_count[2], 1);
    ck_assert_uint_eq(e.row_ops[0][0], 0);
    ck_assert_uint_eq(e.row_ops[0][1], 2);
    ck_assert_uint_eq(e.row_ops[2][0], 1);
    struct entry_request request;
    entry_request_at(&e, 1, &request);
    ck_assert_uint_eq(request.op_id.client, 12);
    ck_assert_uint_eq(request.op_count, 0);
    entry_request_at(&e, 2, &request);
    ck_assert_uint_eq(request.first_op, 2);
    ck_assert_uint_eq(request.op_count, 5);
    struct entry_op op;
    entry_op_at(&e, 0, &op);
    ck_assert_int_eq(op.kind, POINT_UPSERT);
    ck_assert_uint_eq(op.key.id.lo, 42);
    ck_assert_uint_eq(op.expires_ms, sample_expires_ms);
    ck_assert_uint_eq(entry_expires_ms(&e, 0), sample_expires_ms);
    ck_assert_uint_eq(entry_expires_ms(&e, 1), 0);
    ck_assert_uint_eq(load_u16(sample + 4), sample_expires_ms != 0 ? 2 : 1);
    struct point_key hashed = point_key_make(op.key.id, key_of(string_key, sizeof string_key));
    ck_assert_int_eq(point_key_compare(&hashed, &op.key), 0);
    ck_assert_mem_eq(op.shard_key.data, string_key, sizeof string_key);
    ck_assert_mem_eq(op.payload.data, object_doc, sizeof object_doc);
    ck_assert_uint_eq(op.rows[2], ENTRY_NO_ROW);
    ck_assert_uint_eq(op.rows[7], ENTRY_NO_ROW);
    ck_assert_mem_eq(entry_row(&e, 1, op.rows[1], 17), text, sizeof text);
    ck_assert_uint_eq((uintptr_t)entry_row(&e, 2, 0, 33) % 64, 0);
    entry_op_at(&e, 6, &op);
    ck_assert(op.any_key);
    ck_assert_int_eq(op.kind, POINT_DELETE);
    ck_assert_ptr_null(op.payload.data);
}
END_TEST

START_TEST(rebuilding_gives_the_same_bytes)
{
    struct entry e, attached;
    struct err err;
    uint32_t len;
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, &err), OMEN_OK);
    entry_attach(sample, &schema, &attached);
    uint8_t *again = test_entry_rebuild(&attached, &schema, &len);
    ck_assert_uint_eq(len, sample_len);
    ck_assert_mem_eq(again, sample, len);
    mem_free(again);
    again = build_sample(builder, &len); /* a reused builder forgets */
    ck_assert_uint_eq(len, sample_len);
    ck_assert_mem_eq(again, sample, len);
    mem_free(again);
}
END_TEST

START_TEST(every_flipped_bit_is_found)
{
    struct entry e;
    for (uint32_t at = 0; at < sample_len; at++) {
        for (int bit = 0; bit < 8; bit++) {
            struct err err = { 0 };
            sample[at] ^= (uint8_t)(1 << bit);
            ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, &err), OMEN_ECORRUPT);
            ck_assert_str_ne(err.message, "");
            sample[at] ^= (uint8_t)(1 << bit);
        }
    }
}
END_TEST

/* A liar computes checksums: every byte gets every value that a single change can, and what still parses must
 * be an honest entry, byte for byte what the builder would have made of it. */
START_TEST(change_with_right_checksum_is_found_or_honest)
{
    uint32_t honest = 0;
    for (uint32_t at = 16; at < sample_len; at++) {
        for (int delta = 1; delta < 256; delta = delta * 2 + 1) {
            struct entry e;
            uint8_t saved = sample[at];
            sample[at] = (uint8_t)(sample[at] + delta);
            fix_checksum(sample, sample_len);
            enum omen_err rc = entry_parse(sample, sample_len, &schema, true, &e, NULL);
            if (rc == OMEN_OK) {
                uint32_t len;
                uint8_t *again = test_entry_rebuild(&e, &schema, &len);
                ck_assert_uint_eq(len, sample_len);
                ck_assert_mem_eq(again, sample, len);
                mem_free(again);
                honest++;
            } else {
                ck_assert_int_eq(rc, OMEN_ECORRUPT);
            }
            sample[at] = saved;
        }
    }
    ck_assert_uint_gt(honest, 0); /* e.g. the time, an id, a component */
}
END_TEST

START_TEST(every_cut_is_found)
{
    struct entry e;
    for (uint32_t len = 0; len < sample_len; len++) {
        uint8_t *cut = mem_alloc_aligned(ENTRY_ALIGN, len + 1);
        memcpy(cut, sample, len);
        ck_assert_int_eq(entry_parse(cut, len, &schema, false, &e, NULL), OMEN_ECORRUPT);
        mem_free(cut);
    }
}
END_TEST

START_TEST(entry_of_another_schema_is_refused)
{
    struct entry e;
    struct collection_schema other = test_schema_three(false);
    ck_assert_int_eq(entry_parse(sample, sample_len, &other, true, &e, NULL), OMEN_ECORRUPT);
    other = test_schema_three(true);
    other.fields[2].dim = 49;
    ck_assert_int_eq(entry_parse(sample, sample_len, &other, true, &e, NULL), OMEN_ECORRUPT);
    other = test_schema_simple(4, "tenant");
    ck_assert_int_eq(entry_parse(sample, sample_len, &other, true, &e, NULL), OMEN_ECORRUPT);
}
END_TEST

START_TEST(components_and_padding_are_checked)
{
    struct entry e;
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, NULL), OMEN_OK);
    uint8_t *component = sample + ((const uint8_t *)entry_row(&e, 0, 1, 4) - sample) + 8;
    const float bad[] = { NAN, INFINITY, -INFINITY };
    for (int i = 0; i < 3; i++) {
        memcpy(component, &bad[i], sizeof bad[i]);
        fix_checksum(sample, sample_len);
        struct err err = { 0 };
        ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, &err), OMEN_ECORRUPT);
        ck_assert_ptr_nonnull(strstr(err.message, "finite"));
    }
    memcpy(component, &four[2], sizeof four[2]);
    component[8] = 1; /* first byte past the row's four components */
    fix_checksum(sample, sample_len);
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, NULL), OMEN_ECORRUPT);
}
END_TEST

/* Lies that need more than one change, each told consistently. */
START_TEST(swapped_rows_are_found)
{
    struct entry e;
    uint8_t *row_ops = sample + load_u32(sample + 52), *ops = sample + load_u32(sample + 48);
    uint32_t stride = load_u16(sample + 42);
    store_u32(row_ops, 2); /* ops 0 and 2 have rows 0 and 1 of field 0 */
    store_u32(row_ops + 4, 0);
    store_u32(ops + 60, 1);
    store_u32(ops + 2 * stride + 60, 0);
    fix_checksum(sample, sample_len);
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, NULL), OMEN_ECORRUPT);
}
END_TEST

START_TEST(shard_key_that_is_not_canonical_is_found)
{
    struct entry e;
    static const uint8_t lies[][sizeof string_key] = { { 4, 'a', 'c', 'm', 'e' }, { 2, 1, 0, 0, 0 },
        { 3, 0, 0, 0, 1 }, { 1, 'a', 0xff, 'm', 'e' } };
    uint8_t *op = sample + load_u32(sample + 48), *heap = sample + load_u32(sample + 56);
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct err err = { 0 };
        memcpy(heap, lies[i], sizeof lies[i]);
        struct point_key hashed = point_key_make((point_id){ 0, 42, POINT_ID_U64 },
                key_of(lies[i], sizeof lies[i]));
        store_u64(op + 24, hashed.key_hi);
        store_u64(op + 32, hashed.key_lo);
        fix_checksum(sample, sample_len);
        ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, &err), OMEN_ECORRUPT);
        ck_assert_ptr_nonnull(strstr(err.message, "canonical"));
    }
}
END_TEST

START_TEST(derived_entry_needs_no_request)
{
    struct point_op op = { .kind = POINT_UPSERT, .id = { 0, 1, POINT_ID_U64 }, .vectors = { four } };
    op.key = key_of(bool_key, sizeof bool_key);
    uint8_t *bytes;
    uint32_t len;
    struct entry e;
    entry_builder_reset(builder);
    add(builder, &op);
    add(builder, &op);
    ck_assert_int_eq(entry_builder_finish(builder, 5, 6, true, &bytes, &len), OMEN_OK);
    ck_assert_int_eq(entry_parse(bytes, len, &schema, true, &e, NULL), OMEN_OK);
    ck_assert(e.derived);
    ck_assert_uint_eq(e.request_count, 0);
    ck_assert_uint_eq(e.op_count, 2);
    store_u16(bytes + 6, 0); /* the same as an entry of the log has nobody to answer to */
    fix_checksum(bytes, len);
    ck_assert_int_eq(entry_parse(bytes, len, &schema, true, &e, NULL), OMEN_ECORRUPT);
    mem_free(bytes);
}
END_TEST

START_TEST(unaligned_vectors_are_copied)
{
    uint8_t memory[4 * sizeof(float) + 1];
    memcpy(memory + 1, four, sizeof four);
    struct point_op op = { .kind = POINT_UPSERT, .id = { 0, 1, POINT_ID_U64 } };
    op.vectors[0] = (const void *)(memory + 1);
    op.key = key_of(bool_key, sizeof bool_key);
    uint8_t *bytes;
    uint32_t len;
    struct entry e;
    entry_builder_reset(builder);
    entry_builder_begin_request(builder, (struct op_id){ 1, 1, 1 });
    add(builder, &op);
    ck_assert_int_eq(entry_builder_finish(builder, 5, 6, false, &bytes, &len), OMEN_OK);
    ck_assert_int_eq(entry_parse(bytes, len, &schema, true, &e, NULL), OMEN_OK);
    ck_assert_mem_eq(entry_row(&e, 0, 0, 4), four, sizeof four);
    mem_free(bytes);
}
END_TEST

START_TEST(builder_refuses_past_the_size_limit_and_goes_on)
{
    struct collection_schema wide = test_schema_simple(OMEN_DIM_MAX, "");
    struct entry_builder *b = entry_builder_new(&wide);
    static float row[OMEN_DIM_MAX];
    struct point_op op = { .kind = POINT_UPSERT, .id = { 0, 1, POINT_ID_U64 }, .vectors = { row } };
    uint8_t *bytes;
    uint32_t len;
    struct entry e;
    entry_builder_begin_request(b, (struct op_id){ 1, 1, 1 });
    uint32_t count = 0;
    enum omen_err rc;
    while ((rc = entry_builder_add(b, &op)) == OMEN_OK) count++;
    ck_assert_int_eq(rc, OMEN_ETOOBIG);
    ck_assert_uint_eq(entry_builder_op_count(b), count);
    ck_assert_uint_le(entry_builder_bytes(b), ENTRY_BYTES_MAX);
    ck_assert_uint_gt(entry_builder_bytes(b) + 2 * OMEN_DIM_MAX * sizeof(float), ENTRY_BYTES_MAX);
    op.kind = POINT_DELETE; /* a small one may still fit */
    op.vectors[0] = NULL;
    ck_assert_int_eq(entry_builder_add(b, &op), OMEN_OK);
    ck_assert_int_eq(entry_builder_finish(b, 5, 6, false, &bytes, &len), OMEN_OK);
    ck_assert_int_eq(entry_parse(bytes, len, &wide, true, &e, NULL), OMEN_OK);
    ck_assert_uint_eq(e.op_count, count + 1);
    mem_free(bytes);
    entry_builder_free(b);
}
END_TEST

START_TEST(request_count_is_limited)
{
    uint8_t *bytes;
    uint32_t len;
    struct entry e;
    entry_builder_reset(builder);
    for (uint32_t i = 0; i < ENTRY_REQUESTS_MAX; i++)
        entry_builder_begin_request(builder, (struct op_id){ 1, i, 1 });
    ck_assert_uint_eq(entry_builder_request_count(builder), ENTRY_REQUESTS_MAX);
    ck_assert_int_eq(entry_builder_finish(builder, 5, 6, false, &bytes, &len), OMEN_OK);
    ck_assert_int_eq(entry_parse(bytes, len, &schema, true, &e, NULL), OMEN_OK);
    mem_free(bytes);
}
END_TEST

/* Version 1 has no times and version 2 has one, or content would have two encodings; of an upsert it is an expiry, of
 * another operation a version. */
START_TEST(version_and_expiries_agree)
{
    struct entry e;
    uint8_t *op = sample + load_u32(sample + 48);
    store_u16(sample + 4, 1);
    fix_checksum(sample, sample_len);
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, NULL), OMEN_ECORRUPT);
    store_u16(sample + 4, 2);
    store_u64(op + ENTRY_OP_TIME_OFF, 0);
    fix_checksum(sample, sample_len);
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, NULL), OMEN_ECORRUPT);
    store_u64(op + 6 * load_u16(sample + 42) + ENTRY_OP_TIME_OFF, 9); /* of the deletion: a version */
    fix_checksum(sample, sample_len);
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, NULL), OMEN_OK);
    struct entry_op parsed;
    entry_op_at(&e, 6, &parsed);
    ck_assert_uint_eq(parsed.if_version, 9);
    ck_assert_uint_eq(parsed.expires_ms, 0);
    ck_assert_uint_eq(entry_expires_ms(&e, 6), 0);
}
END_TEST

START_TEST(parsed_intents_are_what_was_built)
{
    struct entry e;
    struct entry_intent in;
    struct entry_request request;
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, NULL), OMEN_OK);
    ck_assert_uint_eq(load_u16(sample + 4), ENTRY_VERSION);
    ck_assert_uint_eq(e.request_count, 6);
    for (uint32_t r = 0; r < 3; r++) ck_assert(!entry_intent_at(&e, r, &in));
    ck_assert(entry_intent_at(&e, 3, &in));
    ck_assert_int_eq(in.kind, ENTRY_INTENT_BEGIN);
    ck_assert_int_eq(in.op, POINT_SET_PAYLOAD);
    ck_assert_mem_eq(in.filter.data, object_doc, sizeof object_doc);
    ck_assert_mem_eq(in.payload.data, object_doc, sizeof object_doc);
    entry_request_at(&e, 3, &request);
    ck_assert_uint_eq(request.op_id.client, 13);
    ck_assert(entry_intent_at(&e, 4, &in));
    ck_assert(in.kind == ENTRY_INTENT_STEP && intent_id_equal(in.id, write_id) && in.step == 5);
    ck_assert(in.has_cursor && !in.ends && in.cursor.id.lo == 42 && in.cursor.key_hi != 0);
    entry_request_at(&e, 4, &request);
    ck_assert_uint_eq(request.op_count, 1);
    ck_assert(entry_intent_at(&e, 5, &in));
    ck_assert(in.ends && in.code == OMEN_ETOOBIG && in.step == 6 && !in.has_cursor);
    ck_assert_uint_eq(entry_expires_ms(&e, 0), EXPIRES_MS);
    ck_assert(!entry_only_deletes(sample, sample_len, &schema));
}
END_TEST

/* Each with a right checksum. */
START_TEST(lies_about_intents_are_found)
{
    static const struct {
        uint32_t request, at; /* in the request, or 1000 + in its intent */
        uint8_t value;
        const char *what;
    } lies[] = { { 3, 1000, 9, "kind of intent" }, { 3, 1001, POINT_UPSERT, "kind of write" },
        { 3, 1002, 1, "reserved" }, { 3, 1004, 1, "add up" }, { 3, 1016, 99, "malformed filter" },
        { 3, 1001, POINT_DELETE, "payload" }, { 4, 1001, 4, "flags" }, { 4, 1002, 4, "goes on" },
        { 4, 1001, 0, "cursor" }, { 4, 1024, 7, "kind of id" }, { 4, 1060, 1, "reserved" },
        { 4, 0, 1, "op id of a step" }, { 5, 1002, 200, "outcome" }, { 5, 1024, 1, "without one" },
        { 5, 1008, 0, "no write" }, { 5, 32, 1, "out of order" }, { 0, 32, 1, "no intent" } };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        uint8_t *copy = mem_alloc_aligned(ENTRY_ALIGN, sample_len);
        struct entry e;
        struct err err = { 0 };
        memcpy(copy, sample, sample_len);
        uint8_t *r = copy + load_u32(copy + 44) + (size_t)lies[i].request * ENTRY_REQUEST_BYTES;
        uint8_t *heap = copy + load_u32(copy + 56);
        uint8_t *at = lies[i].at < 1000 ? r + lies[i].at : heap + load_u32(r + 32) + lies[i].at - 1000;
        *at = lies[i].value;
        fix_checksum(copy, sample_len);
        ck_assert_int_eq(entry_parse(copy, sample_len, &schema, true, &e, &err), OMEN_ECORRUPT);
        ck_assert_msg(strstr(err.message, lies[i].what) != NULL, "lie %zu: %s", i, err.message);
        mem_free(copy);
    }
    struct entry e; /* and content has one version */
    store_u16(sample + 4, ENTRY_VERSION_TIMED);
    fix_checksum(sample, sample_len);
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, NULL), OMEN_ECORRUPT);
}
END_TEST

START_TEST(an_entry_without_intents_is_not_of_their_version)
{
    struct entry e;
    struct err err;
    store_u16(sample + 4, ENTRY_VERSION);
    fix_checksum(sample, sample_len);
    ck_assert_int_eq(entry_parse(sample, sample_len, &schema, true, &e, &err), OMEN_ECORRUPT);
}
END_TEST

/* On a full disk what deletes by filter goes on: its begin, its steps, its end. */
START_TEST(deletes_by_filter_are_deletes)
{
    struct entry_intent begin = { .kind = ENTRY_INTENT_BEGIN, .op = POINT_DELETE, .filter = object() };
    struct entry_intent end = { .kind = ENTRY_INTENT_STEP, .id = write_id, .ends = true };
    for (int with = 0; with < 3; with++) {
        uint8_t *bytes;
        uint32_t len;
        begin.op = with == 1 ? POINT_OVERWRITE_PAYLOAD : POINT_DELETE;
        begin.payload = with == 1 ? object() : (struct doc){ NULL, 0 };
        entry_builder_reset(builder);
        entry_builder_begin_request(builder, (struct op_id){ 1, 1, 1 });
        if (with < 2) ck_assert_int_eq(entry_builder_put_intent(builder, &begin), OMEN_OK);
        entry_builder_begin_request(builder, (struct op_id){ 0 });
        if (with < 2) ck_assert_int_eq(entry_builder_put_intent(builder, &end), OMEN_OK);
        ck_assert_int_eq(entry_builder_finish(builder, 5, 6, false, &bytes, &len), OMEN_OK);
        ck_assert_int_eq(entry_only_deletes(bytes, len, &schema), with == 0);
        mem_free(bytes);
    }
}
END_TEST

/* The file is the format: 32 bytes of the sample a line. OMEN_GOLDEN_WRITE=1 writes it, for a new version
 * only. */
START_TEST(format_has_not_changed)
{
    const char *path = sample_intents ? GOLDEN_V3 : sample_expires_ms != 0 ? GOLDEN_V2 : GOLDEN_V1;
    if (getenv("OMEN_GOLDEN_WRITE") != NULL) {
        FILE *out = fopen(path, "w");
        ck_assert_ptr_nonnull(out);
        for (uint32_t i = 0; i < sample_len; i++) fprintf(out, "%02x%s", sample[i], i % 32 == 31 ? "\n" : "");
        fclose(out);
    }
    FILE *in = fopen(path, "r");
    ck_assert_msg(in != NULL, "%s is missing (tests run in the top folder)", path);
    uint8_t *golden = mem_alloc_aligned(ENTRY_ALIGN, sample_len);
    uint32_t len = 0;
    unsigned byte;
    while (fscanf(in, "%2x", &byte) == 1) {
        ck_assert_uint_lt(len, sample_len);
        golden[len++] = (uint8_t)byte;
    }
    fclose(in);
    ck_assert_uint_eq(len, sample_len);
    ck_assert_mem_eq(golden, sample, len);
    struct entry e;
    ck_assert_int_eq(entry_parse(golden, len, &schema, true, &e, NULL), OMEN_OK);
    mem_free(golden);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("entry");
    TCase *tc = tcase_create("entry");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, parsed_entry_holds_what_was_built);
    tcase_add_test(tc, rebuilding_gives_the_same_bytes);
    tcase_add_test(tc, every_flipped_bit_is_found);
    tcase_add_test(tc, change_with_right_checksum_is_found_or_honest);
    tcase_add_test(tc, every_cut_is_found);
    tcase_add_test(tc, entry_of_another_schema_is_refused);
    tcase_add_test(tc, components_and_padding_are_checked);
    tcase_add_test(tc, swapped_rows_are_found);
    tcase_add_test(tc, shard_key_that_is_not_canonical_is_found);
    tcase_add_test(tc, derived_entry_needs_no_request);
    tcase_add_test(tc, unaligned_vectors_are_copied);
    tcase_add_test(tc, builder_refuses_past_the_size_limit_and_goes_on);
    tcase_add_test(tc, request_count_is_limited);
    tcase_add_test(tc, an_entry_without_intents_is_not_of_their_version);
    tcase_add_test(tc, format_has_not_changed);
    suite_add_tcase(suite, tc);
    tc = tcase_create("expiring");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup_expiring, teardown);
    tcase_add_test(tc, parsed_entry_holds_what_was_built);
    tcase_add_test(tc, rebuilding_gives_the_same_bytes);
    tcase_add_test(tc, every_flipped_bit_is_found);
    tcase_add_test(tc, change_with_right_checksum_is_found_or_honest);
    tcase_add_test(tc, version_and_expiries_agree);
    tcase_add_test(tc, format_has_not_changed);
    suite_add_tcase(suite, tc);
    tc = tcase_create("intents");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup_intents, teardown);
    tcase_add_test(tc, parsed_intents_are_what_was_built);
    tcase_add_test(tc, lies_about_intents_are_found);
    tcase_add_test(tc, deletes_by_filter_are_deletes);
    tcase_add_test(tc, rebuilding_gives_the_same_bytes);
    tcase_add_test(tc, every_flipped_bit_is_found);
    tcase_add_test(tc, change_with_right_checksum_is_found_or_honest);
    tcase_add_test(tc, every_cut_is_found);
    tcase_add_test(tc, format_has_not_changed);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

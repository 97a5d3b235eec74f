/* The codec between routers and nodes: what is encoded is decoded to the same; cut, flipped and lying messages are errors
 * that allocate nothing to speak of; the envelope takes nothing from who has not the secret. OMEN_TEST_SEED
 * repeats a run. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tests/support/call_support.h"

#define ROUNDS 150

static struct call_source source;
static struct arena arena;
static struct buf out, again;
static struct err err;
static const struct siphash_key key = { 1, 2 };

static uint64_t seed(void)
{
    const char *text = getenv("OMEN_TEST_SEED");
    uint64_t v = text != NULL ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)v);
    fflush(stdout);
    return v;
}

static void setup(void)
{
    call_source_init(&source, seed());
    arena_init(&arena, 4096, 8u << 20);
    buf_init(&out);
    buf_init(&again);
}

static void teardown(void)
{
    buf_fini(&again);
    buf_fini(&out);
    arena_fini(&arena);
    call_source_fini(&source);
}

static struct bytes all(const struct buf *b) { return (struct bytes){ b->data, b->len }; }

/* ---- requests ---- */

static void encode_request(const struct shard_call *call, uint32_t deadline_ms)
{
    buf_clear(&out);
    shard_request_encode(call, &source.schema, deadline_ms, &out);
    ck_assert(!out.failed);
}

START_TEST(requests_come_back_as_they_were)
{
    for (int round = 0; round < ROUNDS; round++) {
        for (int kind = CALL_WRITE; kind < SHARD_CALL_KINDS; kind++) {
            struct shard_call call, back;
            struct shard_request_info info;
            call_draw_schema(&source);
            call_draw_inputs(&source, (enum shard_call_kind)kind, &call);
            encode_request(&call, 1234);
            enum omen_err rc = shard_request_decode((uint8_t)kind, all(&out), &arena, &back, &info, &err);
            ck_assert_msg(rc == OMEN_OK, "kind %d: %s: %s", kind, err.field, err.message);
            ck_assert_uint_eq(info.deadline_ms, 1234);
            ck_assert_uint_eq(back.shard_id, call.shard_id);
            ck_assert_uint_eq(back.epoch, call.epoch);
            ck_assert_uint_eq(back.token_sequence, call.token_sequence);
            ck_assert_uint_eq(back.now_ms, call.now_ms);
            ck_assert_int_eq(back.consistency, call.consistency);
            for (uint32_t f = 0; f < info.field_count; f++)
                ck_assert_uint_eq(info.dims[f], source.schema.fields[f].dim);
            buf_clear(&again);
            shard_request_encode(&back, &source.schema, 1234, &again);
            ck_assert_uint_eq(again.len, out.len);
            ck_assert_mem_eq(again.data, out.data, out.len);
            arena_reset(&arena);
            arena_reset(&source.arena);
        }
    }
}
END_TEST

START_TEST(vectors_of_a_write_are_not_copied)
{
    struct shard_call call, back;
    struct shard_request_info info;
    call_draw_inputs(&source, CALL_WRITE, &call);
    encode_request(&call, 0);
    ck_assert_int_eq(shard_request_decode(CALL_WRITE, all(&out), &arena, &back, &info, &err), OMEN_OK);
    for (uint32_t i = 0; i < call.in.write.count; i++) {
        for (uint32_t f = 0; f < source.schema.field_count; f++) {
            const uint8_t *row = (const void *)back.in.write.ops[i].vectors[f];
            const float *was = call.in.write.ops[i].vectors[f];
            ck_assert((row == NULL) == (was == NULL));
            if (row == NULL) continue;
            ck_assert(row >= out.data && row < out.data + out.len);
            ck_assert_mem_eq(row, was, 4 * source.schema.fields[f].dim);
        }
    }
}
END_TEST

START_TEST(cut_requests_are_refused)
{
    for (int kind = CALL_WRITE; kind < SHARD_CALL_KINDS; kind++) {
        struct shard_call call, back;
        struct shard_request_info info;
        call_draw_inputs(&source, (enum shard_call_kind)kind, &call);
        encode_request(&call, 1);
        for (size_t len = 0; len < out.len; len++) {
            uint8_t *exact = malloc(len + 1); /* its own block: a read past the end is seen */
            memcpy(exact, out.data, len);
            struct bytes cut = { exact, len };
            ck_assert_int_ne(shard_request_decode((uint8_t)kind, cut, &arena, &back, &info, &err), OMEN_OK);
            ck_assert_str_ne(err.message, "");
            free(exact);
            arena_reset(&arena);
        }
        buf_append_zero(&out, 1);
        ck_assert_int_ne(shard_request_decode((uint8_t)kind, all(&out), &arena, &back, &info, &err), OMEN_OK);
    }
}
END_TEST

/* A count that lies is refused before anything is allocated for it. */
START_TEST(announced_gigabytes_allocate_nothing)
{
    struct shard_call call, back;
    struct shard_request_info info;
    static const int kinds[] = { CALL_WRITE, CALL_SEARCH, CALL_GET };
    for (int k = 0; k < 3; k++) {
        call_draw_inputs(&source, (enum shard_call_kind)kinds[k], &call);
        encode_request(&call, 1);
        for (size_t at = 0; at + 4 <= out.len; at++) {
            uint32_t was = load_u32(out.data + at);
            static const uint32_t lies[] = { 0xffffffff, 0x7fffffff, 10000, 65536 };
            for (int i = 0; i < 4; i++) {
                store_u32(out.data + at, lies[i]);
                (void)!shard_request_decode((uint8_t)kinds[k], all(&out), &arena, &back, &info, &err);
                ck_assert_uint_le(arena.reserved_bytes, 200000);
                arena_reset(&arena);
            }
            store_u32(out.data + at, was);
        }
    }
}
END_TEST

static enum omen_err try_write(struct point_op *op)
{
    struct shard_call call = { .kind = CALL_WRITE }, back;
    struct shard_request_info info;
    call.in.write.ops = op;
    call.in.write.count = 1;
    encode_request(&call, 1);
    return shard_request_decode(CALL_WRITE, all(&out), &arena, &back, &info, &err);
}

START_TEST(values_that_storage_could_not_take_are_refused_by_name)
{
    float bad[16] = { 0 };
    struct point_op op = { .kind = POINT_UPSERT, .id = { 0, 1, POINT_ID_U64 } };
    op.vectors[0] = bad;
    ck_assert_int_eq(try_write(&op), OMEN_OK);
    bad[0] = __builtin_nanf("");
    ck_assert_int_eq(try_write(&op), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "vectors");
    bad[0] = 0;
    op.payload = call_json(&arena, "[1]");
    ck_assert_int_eq(try_write(&op), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "payload");
    op.vectors[0] = NULL;
    op.kind = POINT_DELETE_PAYLOAD;
    ck_assert_int_eq(try_write(&op), OMEN_EINVAL);
    op.payload = call_json(&arena, "[\"a..b\"]");
    ck_assert_int_eq(try_write(&op), OMEN_EINVAL);
    op.payload = call_json(&arena, "{}");
    op.kind = POINT_DELETE;
    ck_assert_int_eq(try_write(&op), OMEN_EINVAL);
    op.payload = (struct doc){ NULL, 0 };
    op.vectors[0] = bad;
    ck_assert_int_eq(try_write(&op), OMEN_EINVAL);
    op.vectors[0] = NULL;
    static const uint8_t not_canonical[] = { 2, 7 };
    op.key.canonical = (struct bytes){ not_canonical, 2 };
    ck_assert_int_eq(try_write(&op), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "key");
}
END_TEST

START_TEST(the_arena_bounds_a_request)
{
    struct shard_call call, back;
    struct shard_request_info info;
    struct arena small;
    arena_init(&small, 64, 64);
    do call_draw_inputs(&source, CALL_WRITE, &call);
    while (call.in.write.count < 10);
    encode_request(&call, 1);
    ck_assert_int_eq(shard_request_decode(CALL_WRITE, all(&out), &small, &back, &info, &err), OMEN_ENOMEM);
    arena_fini(&small);
}
END_TEST

/* ---- replies ---- */

/* Decoding wants aligned bytes; a block of the exact size shows reads past it. */
static uint8_t *aligned_copy(const struct buf *b, size_t len)
{
    uint8_t *copy = malloc(len + 1);
    memcpy(copy, b->data, len);
    return copy;
}

START_TEST(replies_come_back_as_they_were)
{
    for (int round = 0; round < ROUNDS; round++) {
        for (int kind = CALL_WRITE; kind < SHARD_CALL_KINDS; kind++) {
            struct shard_call call;
            struct map *map = round % 3 == 0 ? call_draw_map(&source) : NULL;
            call_draw_schema(&source);
            call_draw_inputs(&source, (enum shard_call_kind)kind, &call);
            call_draw_outputs(&source, &call);
            struct shard_reply_info info = { .epoch = 77, .map = map, .node_id = 3 }, info_back;
            buf_clear(&out);
            shard_reply_encode(&call, &source.schema, &info, &out);
            uint8_t *copy = aligned_copy(&out, out.len);
            struct shard_call back = call;
            enum omen_err rc = shard_reply_decode((struct bytes){ copy, out.len }, &source.schema, &arena,
                    &back, &info_back, &err);
            ck_assert_msg(rc == OMEN_OK, "kind %d: %s: %s", kind, err.field, err.message);
            ck_assert_int_eq(back.code, call.code);
            ck_assert_uint_eq(back.sequence, call.sequence);
            ck_assert_uint_eq(info_back.epoch, 77);
            ck_assert_uint_eq(info_back.node_id, 3);
            ck_assert((info_back.map == NULL) == (map == NULL));
            if (call.code != OMEN_OK) {
                ck_assert_str_eq(back.err.message, call.err.message);
                ck_assert_str_eq(back.err.field, call.err.field);
                ck_assert_uint_eq(back.err.retry_after_ms, call.err.retry_after_ms);
            }
            buf_clear(&again);
            shard_reply_encode(&back, &source.schema, &info_back, &again);
            ck_assert_uint_eq(again.len, out.len);
            ck_assert_mem_eq(again.data, out.data, out.len);
            map_unref(map);
            map_unref(info_back.map);
            free(copy);
            arena_reset(&arena);
            arena_reset(&source.arena);
        }
    }
}
END_TEST

START_TEST(cut_replies_are_refused)
{
    for (int kind = CALL_WRITE; kind < SHARD_CALL_KINDS; kind++) {
        struct shard_call call;
        struct map *map = call_draw_map(&source);
        call_draw_inputs(&source, (enum shard_call_kind)kind, &call);
        do call_draw_outputs(&source, &call);
        while (call.code != OMEN_OK);
        struct shard_reply_info info = { .epoch = 77, .map = map }, info_back;
        buf_clear(&out);
        shard_reply_encode(&call, &source.schema, &info, &out);
        size_t whole = kind == CALL_STATS && call.out.stats.recall.searches + call.out.stats.recall_boost > 0
                ? out.len - 7 * sizeof(uint64_t)
                : out.len; /* without the recall it is the reply of a shard that measured none */
        for (size_t len = 0; len < out.len; len++) {
            if (len == whole) continue;
            uint8_t *cut = aligned_copy(&out, len);
            struct shard_call back = call;
            ck_assert_int_ne(shard_reply_decode((struct bytes){ cut, len }, &source.schema, &arena, &back,
                                     &info_back, &err),
                    OMEN_OK);
            ck_assert_ptr_null(info_back.map);
            free(cut);
            arena_reset(&arena);
        }
        map_unref(map);
    }
}
END_TEST

START_TEST(replies_that_do_not_fit_their_request_are_refused)
{
    struct shard_call call;
    struct shard_reply_info info = { .epoch = 1 };
    do {
        call_draw_inputs(&source, CALL_SEARCH, &call);
        call_draw_outputs(&source, &call);
    } while (call.code != OMEN_OK || call.out.search.counts[0] < 2);
    shard_reply_encode(&call, &source.schema, &info, &out);
    uint8_t *copy = aligned_copy(&out, out.len);
    struct bytes body = { copy, out.len };

    struct shard_call asked = call; /* more hits than were asked for */
    struct search_params *params = arena_copy(&source.arena, call.in.search.searches,
            call.in.search.count * sizeof *params);
    params[0].k = 1;
    asked.in.search.searches = params;
    ck_assert_int_ne(shard_reply_decode(body, &source.schema, &arena, &asked, &info, &err), OMEN_OK);

    asked = call; /* another number of searches */
    asked.in.search.count++;
    ck_assert_int_ne(shard_reply_decode(body, &source.schema, &arena, &asked, &info, &err), OMEN_OK);

    asked = call; /* vectors of other dims */
    struct collection_schema other = source.schema;
    other.fields[0].dim++;
    ck_assert_int_ne(shard_reply_decode(body, &other, &arena, &asked, &info, &err), OMEN_OK);
    free(copy);
}
END_TEST

START_TEST(sentences_cut_inside_a_character_arrive_readable)
{
    struct shard_call call = { .kind = CALL_STATS, .code = OMEN_EIO }, back = call;
    struct shard_reply_info info = { .epoch = 1 };
    memcpy(call.err.message, "disk \xc3", 7);
    call.err.code = OMEN_EIO;
    shard_reply_encode(&call, &source.schema, &info, &out);
    ck_assert_int_eq(shard_reply_decode(all(&out), &source.schema, &arena, &back, &info, &err), OMEN_OK);
    ck_assert_str_eq(back.err.message, "disk ?");
}
END_TEST

/* ---- map and poll ---- */

START_TEST(maps_come_back_as_they_were)
{
    for (int round = 0; round < ROUNDS; round++) {
        struct map *map = call_draw_map(&source), *back;
        buf_clear(&out);
        shard_map_encode(map, &out);
        enum omen_err rc = shard_map_decode(all(&out), &back, &err);
        ck_assert_msg(rc == OMEN_OK, "%s: %s", err.field, err.message);
        buf_clear(&again);
        shard_map_encode(back, &again);
        ck_assert_uint_eq(again.len, out.len);
        ck_assert_mem_eq(again.data, out.data, out.len);
        ck_assert_uint_eq(back->epoch, map->epoch);
        map_unref(back);
        for (size_t len = 0; len < out.len; len++) {
            uint8_t *cut = aligned_copy(&out, len);
            ck_assert_int_ne(shard_map_decode((struct bytes){ cut, len }, &back, &err), OMEN_OK);
            ck_assert_ptr_null(back);
            free(cut);
        }
        map_unref(map);
    }
}
END_TEST

/* What a router takes for granted of a map, it may: gaps, unsorted names and impossible schemas do not pass. */
START_TEST(maps_that_break_their_promises_are_refused)
{
    for (int what = 0; what < 8; what++) {
        struct map *map, *back = NULL;
        for (;;) {
            map = call_draw_map(&source);
            if (map->collection_count >= 2 && map->alias_count >= 2 && map->collections[0].shard_count >= 2)
                break;
            map_unref(map);
        }
        struct map_collection *c = &map->collections[0];
        switch (what) {
        case 0: c->shards[1].slot_first++; break;
        case 1: c->shards[1].slot_count--; break;
        case 2: c->name[0] = 'z'; break;
        case 3: c->name[0] = '.'; break;
        case 4: c->schema.fields[0].dim = 0; break;
        case 5: c->schema.field_count = 0; break;
        case 6: map->aliases[1].name[0] = 'A'; break;
        case 7: c->recall_target = __builtin_nanf(""); break;
        }
        buf_clear(&out);
        shard_map_encode(map, &out);
        ck_assert_msg(shard_map_decode(all(&out), &back, &err) != OMEN_OK, "case %d", what);
        ck_assert_ptr_null(back);
        map_unref(map);
    }
}
END_TEST

START_TEST(polls_come_back_as_they_were)
{
    struct shard_poll poll = { 41, 42, true }, poll_back;
    shard_poll_encode(&poll, &out);
    ck_assert_int_eq(shard_poll_decode(all(&out), &poll_back, &err), OMEN_OK);
    ck_assert(poll_back.have_incarnation == 41 && poll_back.have_epoch == 42 && poll_back.with_status);

    struct map *map = call_draw_map(&source);
    const struct map_node nodes[] = { { 1, "tcp://127.0.0.1:7710" }, { 9, "" } };
    struct shard_poll_reply reply = { .node_id = 9,
        .epoch = 43,
        .map = map,
        .nodes = nodes,
        .node_count = 2 },
                            back;
    reply.not_ready = (struct bytes){ (const uint8_t *)"stopping", 8 };
    reply.status = call_json(&arena, "{\"points\": 5}");
    buf_clear(&out);
    shard_poll_reply_encode(&reply, &out);
    ck_assert_int_eq(shard_poll_reply_decode(all(&out), &arena, &back, &err), OMEN_OK);
    ck_assert_uint_eq(back.node_count, 2);
    ck_assert_str_eq(back.nodes[0].address, "tcp://127.0.0.1:7710");
    ck_assert_uint_eq(back.nodes[1].node_id, 9);
    ck_assert(doc_equal(back.status, reply.status));
    shard_poll_reply_encode(&back, &again);
    ck_assert_uint_eq(again.len, out.len);
    ck_assert_mem_eq(again.data, out.data, out.len);
    map_unref(back.map);
    for (size_t len = 0; len < out.len; len++) {
        ck_assert_int_ne(shard_poll_reply_decode((struct bytes){ out.data, len }, &arena, &back, &err),
                OMEN_OK);
        ck_assert_ptr_null(back.map);
    }
    map_unref(map);
}
END_TEST

/* ---- envelope ---- */

static void seal_something(void)
{
    buf_clear(&out);
    shard_message_begin(&out, SHARD_REQUEST, CALL_STATS, 99);
    buf_append(&out, "content", 7);
    shard_message_seal(out.data, out.len, &key);
}

START_TEST(only_the_secret_opens_a_message)
{
    struct shard_envelope e;
    seal_something();
    ck_assert_int_eq(shard_message_open(all(&out), SHARD_REQUEST, &key, &e, &err), OMEN_OK);
    ck_assert(e.kind == CALL_STATS && e.nonce == 99 && e.body.len == 7);
    const struct siphash_key other = { 1, 3 };
    ck_assert_int_eq(shard_message_open(all(&out), SHARD_REQUEST, &other, &e, &err), OMEN_EAUTH);
    ck_assert_uint_eq(e.nonce, 99);
    ck_assert_uint_eq(e.body.len, 0);
}
END_TEST

START_TEST(no_bit_of_a_message_can_be_changed)
{
    struct shard_envelope e;
    seal_something();
    for (size_t bit = 0; bit < 8 * out.len; bit++) {
        out.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        ck_assert_int_ne(shard_message_open(all(&out), SHARD_REQUEST, &key, &e, &err), OMEN_OK);
        out.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t len = 0; len < out.len; len++)
        ck_assert_int_ne(shard_message_open((struct bytes){ out.data, len }, SHARD_REQUEST, &key, &e, &err),
                OMEN_OK);
    ck_assert_int_eq(shard_message_open(all(&out), SHARD_REQUEST, &key, &e, &err), OMEN_OK);
}
END_TEST

START_TEST(a_request_is_no_reply_and_a_refusal_is_neither)
{
    struct shard_envelope e;
    seal_something();
    ck_assert_int_eq(shard_message_open(all(&out), SHARD_REPLY, &key, &e, &err), OMEN_EPROTO);
    buf_clear(&out);
    shard_message_refuse(&out, 5, OMEN_EAUTH);
    ck_assert_int_eq(shard_message_open(all(&out), SHARD_REPLY, &key, &e, &err), OMEN_EAUTH);
    ck_assert_ptr_nonnull(strstr(err.message, "secret"));
    ck_assert_int_eq(shard_message_open(all(&out), SHARD_REQUEST, &key, &e, &err), OMEN_EPROTO);
    seal_something();
    store_u16(out.data + 4, 2);
    shard_message_seal(out.data, out.len, &key);
    ck_assert_int_eq(shard_message_open(all(&out), SHARD_REQUEST, &key, &e, &err), OMEN_EVERSION);
    ck_assert_int_eq(
            shard_message_open((struct bytes){ (const uint8_t *)"GET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n\r\n",
                                       33 },
                    SHARD_REQUEST, &key, &e, &err),
            OMEN_EPROTO);
}
END_TEST

START_TEST(a_deadline_can_be_changed_in_place)
{
    struct shard_envelope e;
    struct shard_call call, back;
    struct shard_request_info info;
    call_draw_inputs(&source, CALL_GET, &call);
    shard_message_begin(&out, SHARD_REQUEST, CALL_GET, 1);
    shard_request_encode(&call, &source.schema, 1000, &out);
    shard_message_seal(out.data, out.len, &key);
    store_u32(out.data + SHARD_REQUEST_DEADLINE_OFFSET, 700);
    ck_assert_int_eq(shard_message_open(all(&out), SHARD_REQUEST, &key, &e, &err), OMEN_EAUTH);
    shard_message_seal(out.data, out.len, &key);
    ck_assert_int_eq(shard_message_open(all(&out), SHARD_REQUEST, &key, &e, &err), OMEN_OK);
    ck_assert_int_eq(shard_request_decode(e.kind, e.body, &arena, &back, &info, &err), OMEN_OK);
    ck_assert_uint_eq(info.deadline_ms, 700);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("shard_message");
    TCase *tcase = tcase_create("shard_message");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, requests_come_back_as_they_were);
    tcase_add_test(tcase, vectors_of_a_write_are_not_copied);
    tcase_add_test(tcase, cut_requests_are_refused);
    tcase_add_test(tcase, announced_gigabytes_allocate_nothing);
    tcase_add_test(tcase, values_that_storage_could_not_take_are_refused_by_name);
    tcase_add_test(tcase, the_arena_bounds_a_request);
    tcase_add_test(tcase, replies_come_back_as_they_were);
    tcase_add_test(tcase, cut_replies_are_refused);
    tcase_add_test(tcase, replies_that_do_not_fit_their_request_are_refused);
    tcase_add_test(tcase, sentences_cut_inside_a_character_arrive_readable);
    tcase_add_test(tcase, maps_come_back_as_they_were);
    tcase_add_test(tcase, maps_that_break_their_promises_are_refused);
    tcase_add_test(tcase, polls_come_back_as_they_were);
    tcase_add_test(tcase, only_the_secret_opens_a_message);
    tcase_add_test(tcase, no_bit_of_a_message_can_be_changed);
    tcase_add_test(tcase, a_request_is_no_reply_and_a_refusal_is_neither);
    tcase_add_test(tcase, a_deadline_can_be_changed_in_place);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

/* The map: lookups, slots, life of snapshots, rules for names and schemas. */
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "common/placement/map.h"

static struct err err;

/* Collections "c00".."c<n-1>" with ids 100.. and 3 shards each, an alias "a00".. for every one. */
static struct map *map_of(uint32_t n)
{
    struct map *map = mem_must_calloc(1, sizeof *map);
    map->epoch = 5;
    map->incarnation = 9;
    map->collection_count = n;
    map->alias_count = n;
    map->collections = mem_must_calloc(n + 1, sizeof *map->collections);
    map->aliases = mem_must_calloc(n + 1, sizeof *map->aliases);
    atomic_init(&map->refs, 1);
    for (uint32_t i = 0; i < n; i++) {
        struct map_collection *c = &map->collections[i];
        snprintf(c->name, sizeof c->name, "c%02u", i);
        c->id = 100 + n - i;
        c->shard_count = 3;
        c->shards = mem_must_calloc(3, sizeof *c->shards);
        map_cut_slots(c->shards, 3);
        snprintf(map->aliases[i].name, sizeof map->aliases[i].name, "a%02u", i);
        map->aliases[i].collection_id = c->id;
    }
    return map;
}

START_TEST(find_knows_names_and_aliases)
{
    for (uint32_t n = 0; n <= 20; n++) {
        struct map *map = map_of(n);
        for (uint32_t i = 0; i < n; i++) {
            char name[8];
            snprintf(name, sizeof name, "c%02u", i);
            ck_assert_ptr_eq(map_find(map, name, 3), &map->collections[i]);
            ck_assert_ptr_eq(map_find_id(map, map->collections[i].id), &map->collections[i]);
            name[0] = 'a';
            ck_assert_ptr_eq(map_find(map, name, 3), &map->collections[i]);
        }
        static const char *const unknown[] = { "", "c", "c0", "c000", "c99", "a99", "b", "C00", "d00", "A",
            "zz" };
        for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
            ck_assert_ptr_null(map_find(map, unknown[i], strlen(unknown[i])));
        ck_assert_ptr_null(map_find(map, "c00\0", 4));
        ck_assert_ptr_null(map_find_id(map, 99));
        map_unref(map);
    }
}
END_TEST

START_TEST(slots_are_cut_evenly_and_every_slot_has_its_shard)
{
    struct map_shard shards[OMEN_SHARDS_MAX];
    struct map_collection collection = { .shards = shards };
    for (uint32_t count = 1; count <= OMEN_SHARDS_MAX; count++) {
        map_cut_slots(shards, count);
        collection.shard_count = count;
        uint32_t next = 0;
        for (uint32_t i = 0; i < count; i++) {
            ck_assert_uint_eq(shards[i].slot_first, next);
            uint32_t even = OMEN_SLOT_COUNT / count;
            ck_assert(shards[i].slot_count == even || shards[i].slot_count == even + 1);
            ck_assert_ptr_eq(map_shard_of_slot(&collection, next), &shards[i]);
            next += shards[i].slot_count;
            ck_assert_ptr_eq(map_shard_of_slot(&collection, next - 1), &shards[i]);
        }
        ck_assert_uint_eq(next, OMEN_SLOT_COUNT);
    }
}
END_TEST

START_TEST(clone_shares_nothing)
{
    struct map *map = map_of(4), *copy = map_clone(map);
    ck_assert_ptr_nonnull(copy);
    ck_assert_uint_eq(copy->epoch, 5);
    ck_assert_uint_eq(copy->incarnation, 9);
    ck_assert_uint_eq(copy->refs, 1);
    map->collections[2].shards[1].shard_id = 77;
    memcpy(map->collections[2].name, "zzz", 3);
    memcpy(map->aliases[1].name, "zzz", 3);
    map_unref(map);
    ck_assert_uint_eq(map_find(copy, "c02", 3)->shards[1].shard_id, 0);
    ck_assert_ptr_nonnull(map_find(copy, "a01", 3));
    map_unref(copy);

    struct map *none = map_of(0), *none_copy = map_clone(none);
    ck_assert_ptr_null(map_find(none_copy, "x", 1));
    map_unref(none);
    map_unref(none_copy);
}
END_TEST

START_TEST(clone_is_whole_or_null)
{
    struct map *map = map_of(3), *copy = NULL;
    for (uint64_t n = 1; copy == NULL; n++) {
        ck_assert_uint_lt(n, 100);
        mem_fail_at(n);
        copy = map_clone(map);
        mem_fail_at(0);
    }
    ck_assert_ptr_nonnull(map_find(copy, "c02", 3)->shards);
    map_unref(copy);
    map_unref(map);
}
END_TEST

START_TEST(map_lives_until_its_last_reference)
{
    struct map *map = map_of(1);
    ck_assert_ptr_eq(map_ref(map), map);
    map_unref(map);
    ck_assert_str_eq(map->collections[0].name, "c00");
    map_unref(map);
    map_unref(NULL);
}
END_TEST

START_TEST(names_follow_their_rules)
{
    static const char *const good[] = { "a", "A-1_b.c", "0", "-", "_" };
    static const char *const bad[] = { "", ".a", "a b", "a/b", "\xc3\xa9", "a\n", "a:b" };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        ck_assert_int_eq(map_check_name(good[i], strlen(good[i]), "name", &err), OMEN_OK);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert_msg(map_check_name(bad[i], strlen(bad[i]), "target", &err) == OMEN_EINVAL, "%s", bad[i]);
        ck_assert_str_eq(err.field, "target");
    }
    ck_assert_int_eq(map_check_name("a\0b", 3, "name", &err), OMEN_EINVAL);
    char name[OMEN_NAME_BYTES_MAX + 1];
    memset(name, 'n', sizeof name);
    ck_assert_int_eq(map_check_name(name, OMEN_NAME_BYTES_MAX, "name", &err), OMEN_OK);
    ck_assert_int_eq(map_check_name(name, OMEN_NAME_BYTES_MAX + 1, "name", &err), OMEN_ETOOBIG);
}
END_TEST

static struct collection_schema schema_of(uint32_t fields)
{
    struct collection_schema s = { .field_count = fields };
    for (uint32_t i = 0; i < fields && i < OMEN_VECTOR_FIELDS_MAX; i++) {
        if (i > 0) snprintf(s.fields[i].name, sizeof s.fields[i].name, "f%u", i);
        s.fields[i].dim = 4;
    }
    return s;
}

static void assert_schema(const struct collection_schema *s, enum omen_err code, const char *field)
{
    err_clear(&err);
    ck_assert_int_eq(map_check_schema(s, &err), code);
    ck_assert_str_eq(err.field, field);
    ck_assert_int_eq(map_check_schema(s, NULL), code);
}

START_TEST(schema_holds_its_limits)
{
    for (uint32_t n = 0; n <= OMEN_VECTOR_FIELDS_MAX + 1; n++) {
        struct collection_schema s = schema_of(n);
        if (n == 0)
            assert_schema(&s, OMEN_EINVAL, "vectors");
        else if (n > OMEN_VECTOR_FIELDS_MAX)
            assert_schema(&s, OMEN_ETOOBIG, "vectors");
        else
            assert_schema(&s, OMEN_OK, "");
    }
    struct collection_schema s = schema_of(2);
    s.fields[1].dim = OMEN_DIM_MAX;
    assert_schema(&s, OMEN_OK, "");
    s.fields[1].dim = OMEN_DIM_MAX + 1;
    assert_schema(&s, OMEN_ETOOBIG, "vectors[1].dim");
    s.fields[1].dim = 0;
    assert_schema(&s, OMEN_EINVAL, "vectors[1].dim");
}
END_TEST

START_TEST(schema_names_the_field_at_fault)
{
    struct collection_schema s = schema_of(3);
    strcpy(s.fields[2].name, "f1");
    assert_schema(&s, OMEN_EINVAL, "vectors[2].name");
    s.fields[2].name[0] = '\0';
    assert_schema(&s, OMEN_EINVAL, "vectors[2].name"); /* two unnamed */
    strcpy(s.fields[2].name, "a b");
    assert_schema(&s, OMEN_EINVAL, "vectors[2].name");
    memset(s.fields[2].name, 'n', sizeof s.fields[2].name); /* not terminated */
    assert_schema(&s, OMEN_ETOOBIG, "vectors[2].name");
    s = schema_of(1);
    s.fields[0].metric = (enum metric)3;
    assert_schema(&s, OMEN_EINVAL, "vectors[0].metric");
}
END_TEST

START_TEST(shard_key_is_a_path_to_one_value)
{
    static const struct {
        const char *path;
        enum omen_err code;
    } cases[] = { { "tenant", OMEN_OK }, { "meta.tenant", OMEN_OK }, { "\"odd.key\"", OMEN_OK },
        { "tags[]", OMEN_EINVAL }, { "a[0].b", OMEN_EINVAL }, { "a..b", OMEN_EINVAL }, { ".", OMEN_EINVAL } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct collection_schema s = schema_of(1);
        strcpy(s.shard_key, cases[i].path);
        assert_schema(&s, cases[i].code, cases[i].code == OMEN_OK ? "" : "shard_key");
    }
    struct collection_schema s = schema_of(1);
    memset(s.shard_key, 'k', sizeof s.shard_key); /* not terminated */
    assert_schema(&s, OMEN_ETOOBIG, "shard_key");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("map");
    TCase *tc = tcase_create("map");
    tcase_add_test(tc, find_knows_names_and_aliases);
    tcase_add_test(tc, slots_are_cut_evenly_and_every_slot_has_its_shard);
    tcase_add_test(tc, clone_shares_nothing);
    tcase_add_test(tc, clone_is_whole_or_null);
    tcase_add_test(tc, map_lives_until_its_last_reference);
    tcase_add_test(tc, names_follow_their_rules);
    tcase_add_test(tc, schema_holds_its_limits);
    tcase_add_test(tc, schema_names_the_field_at_fault);
    tcase_add_test(tc, shard_key_is_a_path_to_one_value);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures;
}

/* The catalog: typed rejections, ids that never come back, determinism, a file that is not believed when damaged. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "node/cluster/cluster.h"
#include "node/data_dir.h"
#include "tests/support/doc_text.h"
#include "tests/support/entry_support.h"
#include "tests/support/vfs_sim.h"

#define INCARNATION 4711u

static char dir[256];
static struct catalog *catalog;
static struct replica_fsm fsm;
static uint64_t sequence;

static void open_catalog(void)
{
    struct err err;
    enum omen_err rc = catalog_open(vfs_posix(), dir, INCARNATION, &catalog, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message);
    catalog_fsm(catalog, &fsm);
    sequence = fsm.applied(fsm.self);
}

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    open_catalog();
}

static void teardown(void)
{
    if (catalog != NULL) catalog_close(catalog);
    catalog = NULL;
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
}

static struct catalog_outcome apply_to(const struct replica_fsm *machine, uint64_t at,
        const struct catalog_change *change)
{
    static const uint32_t nodes[] = { 7 };
    uint8_t *entry;
    uint32_t len;
    struct catalog_outcome outcome;
    ck_assert_int_eq(catalog_entry_encode(change, 1000 + at, nodes, 1, 1, &entry, &len), OMEN_OK);
    ck_assert_uint_eq(len % 8, 0);
    ck_assert_int_eq(machine->apply(machine->self, at, entry, len, &outcome, NULL), OMEN_OK);
    mem_free(entry);
    return outcome;
}

static struct catalog_outcome apply(const struct catalog_change *change)
{
    return apply_to(&fsm, ++sequence, change);
}

static struct catalog_change create(const char *name, uint32_t shards)
{
    struct catalog_change c = { .kind = CATALOG_CREATE,
        .shard_count = shards,
        .replication = 1,
        .recall_target = 0.95f };
    snprintf(c.name, sizeof c.name, "%s", name);
    c.schema = test_schema_simple(8, "tenant");
    return c;
}

static struct catalog_change other(enum catalog_change_kind kind, const char *name, const char *target)
{
    struct catalog_change c = { .kind = kind };
    snprintf(c.name, sizeof c.name, "%s", name);
    snprintf(c.target, sizeof c.target, "%s", target);
    return c;
}

static enum omen_err apply_create(const char *name, uint32_t shards)
{
    struct catalog_change c = create(name, shards);
    return apply(&c).code;
}

static enum omen_err apply_other(enum catalog_change_kind kind, const char *name, const char *target)
{
    struct catalog_change c = other(kind, name, target);
    return apply(&c).code;
}

START_TEST(created_collection_has_slots_ids_and_its_schema)
{
    ck_assert_int_eq(apply_create("docs", 5), OMEN_OK);
    struct map *map = catalog_map(catalog);
    const struct map_collection *c = map_find(map, "docs", 4);
    ck_assert_ptr_nonnull(c);
    ck_assert_uint_eq(c->created_ms, 1001);
    ck_assert_str_eq(c->schema.shard_key, "tenant");
    ck_assert_uint_eq(c->schema.fields[0].dim, 8);
    uint32_t slot = 0;
    for (uint32_t i = 0; i < 5; i++) {
        ck_assert_uint_eq(c->shards[i].slot_first, slot);
        ck_assert_uint_gt(c->shards[i].shard_id, CATALOG_GROUP);
        ck_assert_uint_eq(c->shards[i].node_ids[0], 7);
        slot += c->shards[i].slot_count;
        for (uint32_t j = 0; j < i; j++) ck_assert_uint_ne(c->shards[i].shard_id, c->shards[j].shard_id);
    }
    ck_assert_uint_eq(slot, OMEN_SLOT_COUNT);
    map_unref(map);
}
END_TEST

START_TEST(rejections_are_typed_and_change_nothing)
{
    ck_assert_int_eq(apply_create("docs", 1), OMEN_OK);
    ck_assert_int_eq(apply_other(CATALOG_ALIAS_SET, "latest", "docs"), OMEN_OK);
    struct map *before = catalog_map(catalog);
    uint64_t next = catalog_next_group(catalog);
    ck_assert_int_eq(apply_create("docs", 1), OMEN_EEXISTS);
    ck_assert_int_eq(apply_create("latest", 1), OMEN_EEXISTS);
    ck_assert_int_eq(apply_create("bad name", 1), OMEN_EINVAL);
    ck_assert_int_eq(apply_create("none", 0), OMEN_EINVAL);
    ck_assert_int_eq(apply_create("many", OMEN_SHARDS_MAX + 1), OMEN_EINVAL);
    struct catalog_change c = create("three", 1);
    c.replication = 3;
    ck_assert_int_eq(apply(&c).code, OMEN_EINVAL);
    c = create("recall", 1);
    c.recall_target = 1.5f;
    ck_assert_int_eq(apply(&c).code, OMEN_EINVAL);
    c = create("dim", 1);
    c.schema.fields[0].dim = OMEN_DIM_MAX + 1;
    ck_assert_int_ne(apply(&c).code, OMEN_OK);
    ck_assert_int_eq(apply_other(CATALOG_DROP, "nope", ""), OMEN_ENOTFOUND);
    ck_assert_int_eq(apply_other(CATALOG_DROP, "latest", ""), OMEN_ENOTFOUND);
    ck_assert_int_eq(apply_other(CATALOG_ALIAS_SET, "docs", "docs"), OMEN_EEXISTS);
    ck_assert_int_eq(apply_other(CATALOG_ALIAS_SET, "x", "nope"), OMEN_ENOTFOUND);
    ck_assert_int_eq(apply_other(CATALOG_ALIAS_DROP, "docs", ""), OMEN_ENOTFOUND);
    struct map *after = catalog_map(catalog);
    ck_assert_uint_eq(after->epoch, before->epoch);
    ck_assert_uint_eq(after->collection_count, 1);
    ck_assert_uint_eq(catalog_next_group(catalog), next);
    ck_assert_uint_eq(fsm.applied(fsm.self), sequence); /* a rejected entry is applied all the same */
    map_unref(before);
    map_unref(after);
}
END_TEST

START_TEST(ids_are_never_given_out_twice)
{
    uint64_t collection_before = 0, shard_before = CATALOG_GROUP;
    for (int i = 0; i < 10; i++) {
        struct catalog_change c = create("docs", 2);
        struct catalog_outcome outcome = apply(&c);
        ck_assert_int_eq(outcome.code, OMEN_OK);
        ck_assert_uint_gt(outcome.collection_id, collection_before);
        collection_before = outcome.collection_id;
        struct map *map = catalog_map(catalog);
        for (uint32_t s = 0; s < 2; s++) {
            ck_assert_uint_gt(map->collections[0].shards[s].shard_id, shard_before);
            shard_before = map->collections[0].shards[s].shard_id;
        }
        map_unref(map);
        ck_assert_int_eq(apply_other(CATALOG_DROP, "docs", ""), OMEN_OK);
        if (i == 5) { /* also over a restart */
            ck_assert_int_eq(fsm.checkpoint(fsm.self, NULL), OMEN_OK);
            catalog_close(catalog);
            open_catalog();
        }
    }
}
END_TEST

START_TEST(options_are_set_at_creation_and_later_and_outlive_a_restart)
{
    struct arena arena;
    arena_init(&arena, 1024, 0);
    struct catalog_change c = create("docs", 1);
    c.options = doc_of(&arena, "{'profile': 'speed', 'segments': 'time_based'}");
    c.recall_target = 0.7f;
    ck_assert_int_eq(apply(&c).code, OMEN_OK);
    ck_assert_int_eq(apply_create("plain", 1), OMEN_OK);
    ck_assert_int_eq(apply_other(CATALOG_ALIAS_SET, "latest", "docs"), OMEN_OK);
    struct catalog_change set = { .kind = CATALOG_SET, .name = "latest" };
    set.options = doc_of(&arena, "{'index_delay_ms': 9, 'recall_target': 0.8}");
    struct catalog_outcome outcome = apply(&set);
    ck_assert_int_eq(outcome.code, OMEN_OK);
    struct map *before = catalog_map(catalog);
    static const char *const wrong[] = { "{'index_delay_ms': 1, 'write_mode': 'x'}", "{'colour': 'red'}",
        "[]" };
    for (int i = 0; i < 3; i++) {
        set.options = doc_of(&arena, wrong[i]);
        ck_assert_int_eq(apply(&set).code, OMEN_EINVAL);
        memcpy(c.name, "other", 6);
        c.options = set.options;
        ck_assert_int_eq(apply(&c).code, OMEN_EINVAL);
    }
    memcpy(set.name, "nope", 5);
    set.options = doc_of(&arena, "{'index_delay_ms': 1}");
    ck_assert_int_eq(apply(&set).code, OMEN_ENOTFOUND);
    for (int i = 0; i < 2; i++) {
        struct map *map = catalog_map(catalog);
        const struct map_collection *docs = map_find(map, "docs", 4), *plain = map_find(map, "plain", 5);
        ck_assert_uint_eq(map->epoch, before->epoch);
        ck_assert_uint_eq(docs->id, outcome.collection_id);
        ck_assert_int_eq(docs->options.profile, PROFILE_SPEED);
        ck_assert_int_eq(docs->options.write_mode, WRITE_STREAM_ONLY);
        ck_assert_int_eq(docs->options.segments, SEGMENTS_TIME_BASED);
        ck_assert_uint_eq(options_index_delay_ms(&docs->options), 9);
        ck_assert(docs->recall_target == 0.8f);
        ck_assert(collection_options_equal(&plain->options, &(struct collection_options){ 0 }));
        map_unref(map);
        ck_assert_int_eq(fsm.checkpoint(fsm.self, NULL), OMEN_OK);
        catalog_close(catalog);
        open_catalog();
    }
    map_unref(before);
    arena_fini(&arena);
}
END_TEST

START_TEST(dropping_a_collection_drops_its_aliases_and_moving_one_is_at_once)
{
    apply_create("a", 1);
    apply_create("b", 1);
    apply_other(CATALOG_ALIAS_SET, "x", "a");
    apply_other(CATALOG_ALIAS_SET, "y", "b");
    apply_other(CATALOG_ALIAS_SET, "z", "a");
    ck_assert_int_eq(apply_other(CATALOG_ALIAS_SET, "x", "b"), OMEN_OK);
    struct map *map = catalog_map(catalog);
    ck_assert_str_eq(map_find(map, "x", 1)->name, "b");
    map_unref(map);
    ck_assert_int_eq(apply_other(CATALOG_DROP, "b", ""), OMEN_OK);
    map = catalog_map(catalog);
    ck_assert_uint_eq(map->alias_count, 1);
    ck_assert_ptr_null(map_find(map, "x", 1));
    ck_assert_str_eq(map_find(map, "z", 1)->name, "a");
    map_unref(map);
}
END_TEST

START_TEST(old_snapshots_stay_as_they_were)
{
    apply_create("a", 1);
    struct map *map = catalog_map(catalog);
    apply_other(CATALOG_DROP, "a", "");
    ck_assert_ptr_nonnull(map_find(map, "a", 1));
    map_unref(map);
}
END_TEST

/* Bytes of the checkpoint of a catalog with a few things in it. */
static uint8_t *checkpoint_bytes(size_t *len_out)
{
    apply_create("docs", 3);
    apply_create("ten", 1);
    apply_other(CATALOG_ALIAS_SET, "latest", "docs");
    apply_other(CATALOG_DROP, "ten", "");
    ck_assert_int_eq(fsm.checkpoint(fsm.self, NULL), OMEN_OK);
    char path[300];
    snprintf(path, sizeof path, "%s/CATALOG", dir);
    uint8_t *bytes;
    ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 1 << 20, &bytes, len_out, NULL), OMEN_OK);
    return bytes;
}

START_TEST(checkpoint_and_log_give_the_same_state)
{
    apply_create("docs", 3);
    apply_other(CATALOG_ALIAS_SET, "latest", "docs");
    ck_assert_uint_eq(fsm.log_needed_from(fsm.self), 0);
    ck_assert_int_eq(fsm.checkpoint(fsm.self, NULL), OMEN_OK);
    ck_assert_uint_eq(fsm.log_needed_from(fsm.self), 2);
    struct catalog_change third = create("third", 2);
    apply(&third);
    catalog_close(catalog); /* the third change is only in the log */
    open_catalog();
    ck_assert_uint_eq(sequence, 2);
    apply_to(&fsm, 2, &third); /* delivered again: skipped */
    ck_assert_uint_eq(fsm.applied(fsm.self), 2);
    apply_to(&fsm, 3, &third);
    struct map *map = catalog_map(catalog);
    ck_assert_uint_eq(map->collection_count, 2);
    ck_assert_uint_eq(map->incarnation, INCARNATION);
    ck_assert_uint_eq(map_find(map, "third", 5)->shards[1].shard_id, 6);
    map_unref(map);
}
END_TEST

START_TEST(two_replicas_of_the_same_entries_write_the_same_file)
{
    size_t len, len_of_other;
    uint8_t *bytes = checkpoint_bytes(&len);
    catalog_close(catalog);
    catalog = NULL;
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
    ck_assert_int_eq(vfs_mkdir(vfs_posix(), dir, NULL), OMEN_OK);
    open_catalog();
    uint8_t *bytes_of_other = checkpoint_bytes(&len_of_other);
    ck_assert_uint_eq(len, len_of_other);
    ck_assert_mem_eq(bytes, bytes_of_other, len);
    mem_free(bytes);
    mem_free(bytes_of_other);
}
END_TEST

START_TEST(every_flipped_bit_and_every_cut_is_found)
{
    size_t len;
    uint8_t *bytes = checkpoint_bytes(&len);
    catalog_close(catalog);
    catalog = NULL;
    char path[300];
    snprintf(path, sizeof path, "%s/CATALOG", dir);
    for (size_t i = 0; i < 2 * len; i++) {
        size_t cut = i < len ? len : i - len;
        if (i < len) bytes[i] ^= (uint8_t)(1u << (i % 8));
        FILE *f = fopen(path, "wb");
        ck_assert_uint_eq(fwrite(bytes, 1, cut, f), cut);
        fclose(f);
        struct err err;
        enum omen_err rc = catalog_open(vfs_posix(), dir, INCARNATION, &catalog, &err);
        ck_assert_msg(rc == OMEN_ECORRUPT || rc == OMEN_EVERSION, "byte %zu: %s", i, err_name(rc));
        ck_assert_ptr_nonnull(strstr(err.message, "CATALOG"));
        ck_assert_ptr_null(catalog);
        if (i < len) bytes[i] ^= (uint8_t)(1u << (i % 8));
    }
    mem_free(bytes);
}
END_TEST

static struct catalog_outcome create_in(const struct replica_fsm *machine, uint64_t at, const char *name)
{
    struct catalog_change change = create(name, 1);
    return apply_to(machine, at, &change);
}

/* The log of the cluster group is let go of on a disk without a byte left, and no crash in between leaves half a file. */
START_TEST(a_full_disk_does_not_keep_the_state_from_being_written)
{
    struct vfs_sim *sim = vfs_sim_new(77);
    struct vfs *vfs = vfs_sim_vfs(sim);
    struct catalog *c;
    struct replica_fsm f;
    struct err err = { 0 };
    uint64_t free_bytes, total_bytes;
    ck_assert_int_eq(vfs_mkdir(vfs, "/catalog", NULL), OMEN_OK);
    vfs_sim_sync_all(sim);
    ck_assert_int_eq(catalog_open(vfs, "/catalog", INCARNATION, &c, NULL), OMEN_OK);
    catalog_fsm(c, &f);
    ck_assert_int_eq(f.checkpoint(f.self, NULL), OMEN_OK);
    vfs_sim_set_capacity(sim, 1ull << 30);
    ck_assert_int_eq(vfs_free_space(vfs, "/", &free_bytes, &total_bytes, NULL), OMEN_OK);
    vfs_sim_set_capacity(sim, total_bytes - free_bytes);
    for (uint64_t i = 1; i <= 5; i++) {
        char name[16];
        snprintf(name, sizeof name, "books%d", (int)i);
        ck_assert_int_eq(create_in(&f, i, name).code, OMEN_OK);
        for (uint64_t n = 1; n < 12; n++) { /* the machine stops at the n-th change of the disk */
            struct vfs_sim *crashed = vfs_sim_after_crash(sim, 1000 * i + n);
            struct catalog *again;
            struct replica_fsm g;
            vfs_sim_stop_at(crashed, 0);
            ck_assert_int_eq(catalog_open(vfs_sim_vfs(crashed), "/catalog", INCARNATION, &again, NULL),
                    OMEN_OK);
            catalog_fsm(again, &g);
            ck_assert_uint_eq(g.applied(g.self), i - 1);
            ck_assert_int_eq(create_in(&g, i, name).code, OMEN_OK);
            vfs_sim_stop_at(crashed, n);
            (void)!g.checkpoint(g.self, NULL);
            catalog_close(again);
            vfs_sim_crash(crashed, n);
            enum omen_err rc = catalog_open(vfs_sim_vfs(crashed), "/catalog", INCARNATION, &again, &err);
            ck_assert_msg(rc == OMEN_OK, "%s", err.message);
            catalog_fsm(again, &g);
            ck_assert_uint_ge(g.applied(g.self), i - 1);
            catalog_close(again);
            vfs_sim_free(crashed);
        }
        ck_assert_int_eq(f.checkpoint(f.self, &err), OMEN_OK);
        ck_assert_uint_eq(f.log_needed_from(f.self), i);
    }
    catalog_close(c);
    vfs_sim_free(sim);
}
END_TEST

START_TEST(catalog_of_another_incarnation_is_refused)
{
    size_t len;
    mem_free(checkpoint_bytes(&len));
    catalog_close(catalog);
    struct err err;
    ck_assert_int_eq(catalog_open(vfs_posix(), dir, INCARNATION + 1, &catalog, &err), OMEN_ECORRUPT);
    ck_assert_ptr_null(catalog);
}
END_TEST

START_TEST(damaged_entries_stop_the_replica)
{
    struct catalog_change change = create("docs", 2);
    static const uint32_t nodes[] = { 7 };
    uint8_t *entry;
    uint32_t len;
    ck_assert_int_eq(catalog_entry_encode(&change, 1, nodes, 1, 1, &entry, &len), OMEN_OK);
    for (uint32_t i = 0; i < len; i++) {
        entry[i] ^= 0x10;
        ck_assert_int_ne(fsm.apply(fsm.self, 1, entry, len, NULL, NULL), OMEN_OK);
        entry[i] ^= 0x10;
        ck_assert_int_ne(fsm.apply(fsm.self, 1, entry, i, NULL, NULL), OMEN_OK);
    }
    ck_assert_uint_eq(fsm.applied(fsm.self), 0);
    mem_free(entry);
}
END_TEST

START_TEST(data_directory_has_one_owner_and_keeps_its_identity)
{
    char data[300];
    snprintf(data, sizeof data, "%s/deep/data", dir);
    struct data_dir first, second;
    struct err err;
    ck_assert_int_eq(data_dir_open(&first, vfs_posix(), data, DATA_DIR_SINGLE, clock_system(), &err),
            OMEN_OK);
    ck_assert_int_eq(data_dir_open(&second, vfs_posix(), data, DATA_DIR_SINGLE, clock_system(), &err),
            OMEN_EBUSY);
    ck_assert_uint_ne(first.identity.node_id, 0);
    struct node_identity identity = first.identity;
    data_dir_close(&first);
    ck_assert_int_eq(data_dir_open(&first, vfs_posix(), data, DATA_DIR_SINGLE, clock_system(), &err),
            OMEN_OK);
    ck_assert_uint_eq(first.identity.node_id, identity.node_id);
    ck_assert_uint_eq(first.identity.incarnation, identity.incarnation);
    data_dir_close(&first);
}
END_TEST

START_TEST(damaged_identity_is_found)
{
    char data[300], path[400];
    snprintf(data, sizeof data, "%s/data", dir);
    struct data_dir d;
    struct err err;
    ck_assert_int_eq(data_dir_open(&d, vfs_posix(), data, DATA_DIR_SINGLE, clock_system(), &err), OMEN_OK);
    data_dir_close(&d);
    snprintf(path, sizeof path, "%s/NODE", data);
    uint8_t *raw;
    size_t len;
    ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 4096, &raw, &len, &err), OMEN_OK);
    for (size_t i = 0; i < len; i++) {
        raw[i] ^= 0x40;
        ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, raw, len, &err), OMEN_OK);
        enum omen_err rc = data_dir_open(&d, vfs_posix(), data, DATA_DIR_SINGLE, clock_system(), &err);
        ck_assert_msg(rc == OMEN_ECORRUPT || rc == OMEN_EVERSION, "byte %zu: %s", i, err_name(rc));
        raw[i] ^= 0x40;
    }
    mem_free(raw);
}
END_TEST

/* Until the cluster's first entry is in a checkpoint; after that NODE is what builds before it read. */
START_TEST(a_founder_remembers_who_asked_for_the_cluster)
{
    char data[300], path[400];
    snprintf(data, sizeof data, "%s/founder", dir);
    struct data_dir d;
    struct err err;
    uint8_t *raw;
    size_t len;
    ck_assert_int_eq(data_dir_open(&d, vfs_posix(), data, DATA_DIR_MEMBER, clock_system(), &err), OMEN_OK);
    struct node_identity id = { .node_id = 1,
        .incarnation = 2,
        .cluster_id = 3,
        .catalog_replica_id = 1,
        .founder = true,
        .asked_as = { 7, 8, 9 } };
    memset(id.cluster_name, 'n', NODE_CLUSTER_NAME_BYTES_MAX);
    ck_assert_int_eq(data_dir_identify(&d, &id, &err), OMEN_OK);
    data_dir_close(&d);
    ck_assert_int_eq(data_dir_open(&d, vfs_posix(), data, DATA_DIR_MEMBER, clock_system(), &err), OMEN_OK);
    ck_assert(d.identity.founder);
    ck_assert_str_eq(d.identity.cluster_name, id.cluster_name);
    ck_assert_mem_eq(&d.identity.asked_as, &id.asked_as, sizeof id.asked_as);
    data_dir_close(&d);
    snprintf(path, sizeof path, "%s/NODE", data);
    ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 4096, &raw, &len, &err), OMEN_OK);
    ck_assert_uint_eq(len, NODE_FOUNDER_FILE_BYTES);
    for (size_t i = 0; i < len; i++) {
        raw[i] ^= 0x40;
        ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, raw, len, &err), OMEN_OK);
        enum omen_err rc = data_dir_open(&d, vfs_posix(), data, DATA_DIR_MEMBER, clock_system(), &err);
        ck_assert_msg(rc == OMEN_ECORRUPT || rc == OMEN_EVERSION, "byte %zu: %s", i, err_name(rc));
        raw[i] ^= 0x40;
        ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, raw, i, &err), OMEN_OK);
        ck_assert_int_ne(data_dir_open(&d, vfs_posix(), data, DATA_DIR_MEMBER, clock_system(), &err),
                OMEN_OK);
    }
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, raw, len, &err), OMEN_OK);
    mem_free(raw);
    ck_assert_int_eq(data_dir_open(&d, vfs_posix(), data, DATA_DIR_MEMBER, clock_system(), &err), OMEN_OK);
    id = d.identity;
    id.founder = false;
    ck_assert_int_eq(data_dir_identify(&d, &id, &err), OMEN_OK);
    data_dir_close(&d);
    ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 4096, &raw, &len, &err), OMEN_OK);
    ck_assert_uint_eq(len, NODE_FILE_BYTES);
    ck_assert_uint_eq(raw[4], 2);
    mem_free(raw);
}
END_TEST

START_TEST(missing_identity_beside_data_is_damage)
{
    char data[300], path[400];
    snprintf(data, sizeof data, "%s/data", dir);
    struct data_dir d;
    struct err err;
    ck_assert_int_eq(data_dir_open(&d, vfs_posix(), data, DATA_DIR_SINGLE, clock_system(), &err), OMEN_OK);
    data_dir_close(&d);
    snprintf(path, sizeof path, "%s/shards/2-2", data);
    ck_assert_int_eq(vfs_mkdir(vfs_posix(), path, &err), OMEN_OK);
    snprintf(path, sizeof path, "%s/NODE", data);
    ck_assert_int_eq(vfs_unlink(vfs_posix(), path, &err), OMEN_OK);
    ck_assert_int_eq(data_dir_open(&d, vfs_posix(), data, DATA_DIR_SINGLE, clock_system(), &err),
            OMEN_ECORRUPT);
    ck_assert_ptr_nonnull(strstr(err.message, "NODE"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("catalog");
    TCase *tcase = tcase_create("catalog");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, created_collection_has_slots_ids_and_its_schema);
    tcase_add_test(tcase, rejections_are_typed_and_change_nothing);
    tcase_add_test(tcase, ids_are_never_given_out_twice);
    tcase_add_test(tcase, options_are_set_at_creation_and_later_and_outlive_a_restart);
    tcase_add_test(tcase, dropping_a_collection_drops_its_aliases_and_moving_one_is_at_once);
    tcase_add_test(tcase, old_snapshots_stay_as_they_were);
    tcase_add_test(tcase, checkpoint_and_log_give_the_same_state);
    tcase_add_test(tcase, two_replicas_of_the_same_entries_write_the_same_file);
    tcase_add_test(tcase, every_flipped_bit_and_every_cut_is_found);
    tcase_add_test(tcase, a_full_disk_does_not_keep_the_state_from_being_written);
    tcase_add_test(tcase, catalog_of_another_incarnation_is_refused);
    tcase_add_test(tcase, damaged_entries_stop_the_replica);
    tcase_add_test(tcase, data_directory_has_one_owner_and_keeps_its_identity);
    tcase_add_test(tcase, damaged_identity_is_found);
    tcase_add_test(tcase, a_founder_remembers_who_asked_for_the_cluster);
    tcase_add_test(tcase, missing_identity_beside_data_is_damage);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

/* Leased checkpoints over random histories: what is copied from a lease, however late and in whatever order, and made
 * another replica's store is the state at the lease's sequence, and goes on from there. OMEN_SEED=n runs one seed. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "storage/shard_lease.h"
#include "tests/support/store_model.h"
#include "tests/support/vfs_hook.h"

#define SEEDS 10
#define STEPS 80
#define COPY_REPLICA 10u

struct history {
    struct store_model model;
    char dir[200], source[240], copy[240];
    struct shard_store_options options;
    struct shard_store *store;
    struct vfs_hook hook;
    uint32_t fail_at; /* changing operation of an adoption that fails; 0 = none */
};

static enum omen_err maybe_fail(void *arg, enum vfs_hook_op op, struct err *err)
{
    struct history *h = arg;
    if (h->fail_at == 0 || --h->fail_at > 0) return OMEN_OK;
    return err_set(err, OMEN_EIO, NULL, "told to fail");
}

static void start(struct history *h, uint64_t seed)
{
    const char *tmp = getenv("TMPDIR");
    struct err err;
    memset(h, 0, sizeof *h);
    store_model_init(&h->model, seed);
    snprintf(h->dir, sizeof h->dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(h->dir));
    snprintf(h->source, sizeof h->source, "%s/source", h->dir);
    snprintf(h->copy, sizeof h->copy, "%s/copy", h->dir);
    shard_store_options_default(&h->options);
    vfs_hook_init(&h->hook, vfs_posix(), maybe_fail, h);
    h->options.vfs = &h->hook.base;
    h->options.dir = h->source;
    h->options.shard_id = 7;
    h->options.replica_id = 9;
    h->options.schema = &h->model.schema;
    h->options.first_chunk_bytes = 16 << 10;
    h->options.chunk_bytes = 16 << store_model_random(&h->model, 3) << 10;
    h->options.op_retention_ms = MODEL_RETENTION_MS;
    static const uint64_t delta_bounds[] = { 1, 3000, 20000, 1 << 30 };
    h->options.delta_bytes_max = delta_bounds[store_model_random(&h->model, 4)];
    enum omen_err rc = shard_store_open(&h->options, &h->store, &err);
    ck_assert_msg(rc == OMEN_OK, "open: %s", err.message);
}

static void step(struct history *h)
{
    struct err err;
    store_model_step(&h->model);
    enum omen_err rc = store_model_apply(&h->model, h->store, h->model.sequence, &err);
    ck_assert_msg(rc == OMEN_OK, "apply: %s", err.message);
    if (store_model_random(&h->model, 5) == 0)
        ck_assert_int_eq(shard_store_checkpoint(h->store, NULL, NULL), OMEN_OK);
}

/* One file, by ranges of random sizes. */
static void file_copy(struct history *h, const struct store_lease *lease, uint32_t i)
{
    const struct store_file *f = &store_lease_manifest(lease)->files[i];
    char path[400];
    struct err err;
    struct vfs_file *file;
    uint32_t crc = 0, want;
    uint8_t part[9000];
    snprintf(path, sizeof path, "%s/%s", h->copy, f->name);
    ck_assert_int_eq(vfs_open(vfs_posix(), path, VFS_WRITE | VFS_CREATE, &file, &err), OMEN_OK);
    for (uint64_t at = 0; at < f->bytes;) {
        size_t len = 1 + store_model_random(&h->model, sizeof part);
        if (len > f->bytes - at) len = (size_t)(f->bytes - at);
        enum omen_err rc = store_lease_read(lease, i, at, part, len, &err);
        ck_assert_msg(rc == OMEN_OK, "read: %s", err.message);
        ck_assert_int_eq(vfs_pwrite(file, part, len, at, &err), OMEN_OK);
        crc = crc32c(crc, part, len);
        at += len;
    }
    ck_assert_int_eq(store_lease_read(lease, i, f->bytes, part, 1, &err), OMEN_EINVAL);
    ck_assert_int_eq(store_lease_sum(lease, i, &want, &err), OMEN_OK);
    ck_assert_uint_eq(crc, want);
    vfs_close(file);
}

static struct shard_store_options copy_options(struct history *h)
{
    struct shard_store_options o = h->options;
    o.dir = h->copy;
    o.replica_id = COPY_REPLICA;
    return o;
}

static void files_copy(struct history *h, const struct store_lease *lease)
{
    const struct store_manifest *m = store_lease_manifest(lease);
    ck_assert_int_eq(vfs_mkdir(vfs_posix(), h->copy, NULL), OMEN_OK);
    ck_assert_int_eq(store_manifest_dirs(vfs_posix(), h->copy, NULL), OMEN_OK);
    for (uint32_t i = m->file_count; i > 0; i--) file_copy(h, lease, i - 1);
}

/* The copy is the state at its sequence, and what was applied since leads to the same as at the source. */
static void copy_check(struct history *h, struct shard_store *copy, uint64_t sequence)
{
    struct err err;
    ck_assert_uint_eq(shard_store_applied(copy), sequence);
    ck_assert_uint_eq(shard_store_log_needed_from(copy), sequence);
    store_model_check_now(&h->model, copy);
    for (uint64_t i = sequence + 1; i <= h->model.sequence; i++) {
        enum omen_err rc = store_model_apply(&h->model, copy, i, &err);
        ck_assert_msg(rc == OMEN_OK, "apply at the copy: %s", err.message);
    }
    store_model_check_now(&h->model, copy);
    ck_assert_int_eq(shard_store_checkpoint(copy, NULL, NULL), OMEN_OK);
}

/* Crash of the adoption at every changing operation: it is done again, and its store is whole. */
static void copy_adopt(struct history *h, struct bytes manifest)
{
    struct shard_store_options o = copy_options(h);
    struct err err;
    enum omen_err rc;
    for (uint32_t n = 1;; n += 1 + (uint32_t)store_model_random(&h->model, 9)) {
        h->fail_at = n;
        rc = shard_store_adopt(&o, manifest, &err);
        if (h->fail_at != 0) break; /* nothing failed */
        ck_assert_int_ne(rc, OMEN_OK);
    }
    h->fail_at = 0;
    ck_assert_msg(rc == OMEN_OK, "adopt: %s", err.message);
}

static void lease_round(struct history *h)
{
    struct store_lease *lease;
    struct err err;
    enum omen_err rc = store_lease_open(h->store, &lease, &err);
    ck_assert_msg(rc == OMEN_OK, "lease: %s", err.message);
    for (uint64_t i = store_model_random(&h->model, 30); i > 0; i--) step(h);
    struct bytes manifest = store_lease_manifest_bytes(lease);
    struct store_manifest m;
    ck_assert_int_eq(store_manifest_decode(manifest, &m, &err), OMEN_OK);
    ck_assert_uint_eq(m.file_count, store_lease_manifest(lease)->file_count);
    ck_assert_uint_eq(m.total_bytes, store_lease_manifest(lease)->total_bytes);
    files_copy(h, lease);
    copy_adopt(h, manifest);
    struct shard_store_options o = copy_options(h);
    struct shard_store *copy;
    rc = shard_store_open(&o, &copy, &err);
    ck_assert_msg(rc == OMEN_OK, "open of the copy: %s", err.message);
    copy_check(h, copy, m.sequence);
    shard_store_close(copy);
    rc = shard_store_open(&o, &copy, &err);
    ck_assert_msg(rc == OMEN_OK, "open of the copy again: %s", err.message);
    store_model_check_now(&h->model, copy);
    shard_store_close(copy);
    store_manifest_fini(&m);
    store_lease_close(lease);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), h->copy, NULL), OMEN_OK);
}

static void end(struct history *h)
{
    shard_store_close(h->store);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), h->dir, NULL), OMEN_OK);
    store_model_fini(&h->model);
}

static uint64_t seed_of(int i)
{
    const char *seed = getenv("OMEN_SEED");
    uint64_t s = seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t)i + 1;
    printf("seed %llu\n", (unsigned long long)s);
    return s;
}

START_TEST(a_copy_of_a_lease_is_the_store_at_its_checkpoint)
{
    static struct history h;
    start(&h, seed_of(_i));
    for (int i = 0; i < STEPS; i++) {
        step(&h);
        if (store_model_random(&h.model, 40) == 0) lease_round(&h);
    }
    lease_round(&h);
    end(&h);
}
END_TEST

/* A byte of a unit that is not as it was is found when the copy is opened. */
START_TEST(a_flipped_byte_of_a_copy_is_found)
{
    static struct history h;
    struct store_lease *lease;
    struct err err;
    start(&h, seed_of(_i));
    for (int i = 0; i < STEPS; i++) step(&h);
    ck_assert_int_eq(shard_store_checkpoint(h.store, NULL, NULL), OMEN_OK);
    ck_assert_int_eq(store_lease_open(h.store, &lease, &err), OMEN_OK);
    struct bytes manifest = store_lease_manifest_bytes(lease);
    const struct store_manifest *m = store_lease_manifest(lease);
    uint32_t found = 0;
    for (int round = 0; round < 10; round++) {
        files_copy(&h, lease);
        uint32_t file = 1 + (uint32_t)store_model_random(&h.model, m->file_count - 1);
        uint64_t at = 4096 + store_model_random(&h.model, m->files[file].bytes - 4096);
        char path[400];
        struct vfs_file *f;
        uint8_t byte;
        snprintf(path, sizeof path, "%s/%s", h.copy, m->files[file].name);
        ck_assert_int_eq(vfs_open(vfs_posix(), path, VFS_WRITE, &f, &err), OMEN_OK);
        ck_assert_int_eq(vfs_pread(f, &byte, 1, at, &err), OMEN_OK);
        byte ^= (uint8_t)(1u << store_model_random(&h.model, 8));
        ck_assert_int_eq(vfs_pwrite(f, &byte, 1, at, &err), OMEN_OK);
        vfs_close(f);
        struct shard_store_options o = copy_options(&h);
        struct shard_store *copy;
        ck_assert_int_eq(shard_store_adopt(&o, manifest, &err), OMEN_OK);
        enum omen_err rc = shard_store_open(&o, &copy, &err);
        ck_assert_msg(rc == OMEN_OK || rc == OMEN_ECORRUPT, "%s", err.message);
        found += rc == OMEN_ECORRUPT;
        if (rc == OMEN_OK) store_model_check_now(&h.model, copy); /* it lay between two units */
        if (rc == OMEN_OK) shard_store_close(copy);
        ck_assert_int_eq(vfs_remove_tree(vfs_posix(), h.copy, NULL), OMEN_OK);
    }
    ck_assert_uint_ge(found, 3);
    store_lease_close(lease);
    end(&h);
}
END_TEST

START_TEST(a_lease_of_another_shard_or_schema_is_refused_and_leftovers_go)
{
    static struct history h;
    struct store_lease *lease;
    struct err err;
    bool there = true;
    char path[400];
    start(&h, seed_of(1));
    for (int i = 0; i < STEPS; i++) step(&h);
    ck_assert_int_eq(store_lease_open(h.store, &lease, &err), OMEN_OK);
    files_copy(&h, lease);
    struct shard_store_options o = copy_options(&h);
    o.shard_id++;
    ck_assert_int_eq(shard_store_adopt(&o, store_lease_manifest_bytes(lease), &err), OMEN_EINVAL);
    struct collection_schema other = h.model.schema;
    other.fields[0].dim++;
    o = copy_options(&h);
    o.schema = &other;
    ck_assert_int_eq(shard_store_adopt(&o, store_lease_manifest_bytes(lease), &err), OMEN_EINVAL);
    /* A process that ended left its lease: gone at the next open. */
    snprintf(path, sizeof path, "%s/lease-77", h.source);
    ck_assert_int_eq(vfs_mkdir(vfs_posix(), path, &err), OMEN_OK);
    store_lease_close(lease);
    shard_store_close(h.store);
    ck_assert_int_eq(shard_store_open(&h.options, &h.store, &err), OMEN_OK);
    ck_assert_int_eq(vfs_exists(vfs_posix(), path, &there, &err), OMEN_OK);
    ck_assert(!there);
    end(&h);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("store_lease");
    TCase *tc = tcase_create("leases");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, a_copy_of_a_lease_is_the_store_at_its_checkpoint, 0, SEEDS);
    tcase_add_loop_test(tc, a_flipped_byte_of_a_copy_is_found, 0, 4);
    tcase_add_test(tc, a_lease_of_another_shard_or_schema_is_refused_and_leftovers_go);
    suite_add_tcase(s, tc);
    SRunner *runner = srunner_create(s);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

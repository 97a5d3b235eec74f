/* Sealed graphs of file version 1, fast and compact layout, the latter with 4-bit codes and with rows of f16, written
 * once and read for ever: sealed-v1.index, compact-v1.index and compact-f16-v1.index in tests/golden. Their rows
 * follow from rows(). OMEN_GOLDEN_WRITE=1 writes them anew (for a new version, under new names). */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/index/index.h"
#include "storage/kernel/kernel.h"

#define ROWS 40
#define DIM 8

static const struct {
    const char *path;
    enum index_layout layout;
    enum index_quant quant;
    uint32_t bits;
} files[] = { { "tests/golden/sealed-v1.index", INDEX_LAYOUT_FAST, INDEX_QUANT_AUTO, 0 },
    { "tests/golden/compact-v1.index", INDEX_LAYOUT_COMPACT, INDEX_QUANT_AUTO, 0 },
    { "tests/golden/compact-f16-v1.index", INDEX_LAYOUT_COMPACT, INDEX_QUANT_NONE, 16 } };

static float data[ROWS][DIM];
static struct err err;

static struct index_rows rows(void)
{
    for (uint32_t i = 0; i < ROWS; i++)
        for (uint32_t j = 0; j < DIM; j++) data[i][j] = (float)((i * 37 + j * 11 + i * j) % 101) / 4;
    return (struct index_rows){ data[0], DIM, ROWS, DIM, METRIC_L2 };
}

START_TEST(version_1_is_read_and_written_alike)
{
    struct index_rows all = rows();
    const char *golden = files[_i].path;
    struct index_params params = { .layout = files[_i].layout,
        .quant = files[_i].quant,
        .bits = files[_i].bits,
        .seed = 12345 };
    struct index_stats stats;
    struct index *index;
    struct index_scratch *scratch;
    uint8_t *bytes, *again;
    size_t len, again_len;
    char dir[] = "/tmp/omen-XXXXXX", path[64];
    if (getenv("OMEN_GOLDEN_WRITE") != NULL) {
        ck_assert_int_eq(index_build(INDEX_SEALED, &all, &params, NULL, &index, &err), OMEN_OK);
        ck_assert_int_eq(index_save(index, vfs_posix(), golden, &err), OMEN_OK);
        index_free(index);
    }
    ck_assert_msg(index_map(vfs_posix(), golden, &all, false, &index, &err) == OMEN_OK, "%s", err.message);
    index_stats(index, false, &stats);
    if (files[_i].quant != INDEX_QUANT_AUTO) {
        ck_assert_int_eq(stats.quant, files[_i].quant);
        ck_assert_uint_eq(stats.bits, files[_i].bits);
    }
    scratch = index_scratch_new(index);
    for (int plan = INDEX_PLAN_WALK; plan < INDEX_PLAN_COUNT; plan++) {
        for (uint32_t i = 0; i < ROWS; i++) {
            struct index_search search = { .query = data[i],
                .k = 3,
                .effort = ROWS,
                .plan = (enum index_plan)plan };
            struct index_hit hits[3];
            uint32_t count;
            ck_assert_int_eq(index_search(index, &search, scratch, hits, &count, NULL), OMEN_OK);
            ck_assert_uint_eq(count, 3);
            ck_assert(hits[0].distance == 0);
            for (uint32_t j = 0; j < 3; j++)
                ck_assert(hits[j].distance == kernel_get()->l2sq_f32(data[i], data[hits[j].slot], DIM));
        }
    }
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/again.index", dir);
    ck_assert_int_eq(index_save(index, vfs_posix(), path, &err), OMEN_OK);
    ck_assert_int_eq(vfs_read_file(vfs_posix(), golden, 1 << 20, &bytes, &len, &err), OMEN_OK);
    ck_assert_int_eq(vfs_read_file(vfs_posix(), path, 1 << 20, &again, &again_len, &err), OMEN_OK);
    ck_assert_uint_eq(len, again_len);
    ck_assert_mem_eq(bytes, again, len);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, &err), OMEN_OK);
    mem_free(bytes);
    mem_free(again);
    index_scratch_free(index, scratch);
    index_free(index);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sealed_index");
    TCase *tc = tcase_create("sealed_index");
    tcase_add_loop_test(tc, version_1_is_read_and_written_alike, 0, 3);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

/* Every key of omen-router is documented in deploy/omen-router.yaml, and what stands there are the defaults; the list of
 * nodes and the cluster's secret are read as the page says. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/process/process.h"
#include "router/config.h"

#define YAML "deploy/omen-router.yaml"

static struct arena arena;
static struct err err;

static void setup(void) { arena_init(&arena, 4096, 0); }
static void teardown(void) { arena_fini(&arena); }

/* "group.key" stands as a line "group:" followed, indented, by "key:". */
static bool documented(const char *text, const char *name)
{
    char line[128];
    const char *dot = strchr(name, '.'), *at = text;
    if (dot != NULL) {
        snprintf(line, sizeof line, "\n%.*s:\n", (int)(dot - name), name);
        at = strstr(text, line);
        if (at == NULL) return false;
        snprintf(line, sizeof line, "\n  %s:", dot + 1);
    } else {
        snprintf(line, sizeof line, "\n%s:", name);
    }
    return strstr(at, line) != NULL;
}

START_TEST(every_key_is_documented)
{
    uint8_t *data;
    size_t len;
    enum omen_err rc = vfs_read_file(vfs_posix(), YAML, 1 << 20, &data, &len, &err);
    ck_assert_msg(rc == OMEN_OK, "run from the repository's top: %s", err.message);
    char *text = mem_must_alloc(len + 1);
    memcpy(text, data, len);
    text[len] = '\0';
    for (const struct config_key *key = router_config_keys; key->name != NULL; key++) {
        ck_assert_msg(documented(text, key->name), "%s is not in " YAML, key->name);
        ck_assert_msg(key->help != NULL && key->help[0] != '\0', "%s has no help", key->name);
    }
    mem_free(text);
    mem_free(data);
}
END_TEST

START_TEST(documented_values_are_known_and_are_the_defaults)
{
    struct router_config file, defaults;
    struct config *a, *b;
    memset(&file, 0, sizeof file);
    memset(&defaults, 0, sizeof defaults);
    enum omen_err rc = config_load(YAML, router_config_keys, NULL, 0, &file, &a, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message); /* an unknown key is an error that names it */
    ck_assert_int_eq(config_load(NULL, router_config_keys, NULL, 0, &defaults, &b, &err), OMEN_OK);
    for (const struct config_key *key = router_config_keys; key->name != NULL; key++) {
        const char *x = (const char *)&file + key->offset, *y = (const char *)&defaults + key->offset;
        if (key->type == CONFIG_LIST) continue;
        if (key->type == CONFIG_STRING) {
            ck_assert_str_eq(*(char *const *)x, *(char *const *)y);
            continue;
        }
        size_t bytes = key->type == CONFIG_ENUM ? sizeof(int) : sizeof(uint64_t);
        ck_assert_msg(memcmp(x, y, bytes) == 0, "%s differs from its default %s", key->name,
                key->default_text);
    }
    ck_assert_uint_eq(file.api_keys.count, 0);
    config_free(a);
    config_free(b);
}
END_TEST

START_TEST(nodes_are_cut_at_commas_and_blanks)
{
    const char *seeds[REMOTE_SEEDS_MAX];
    uint32_t count;
    ck_assert_int_eq(router_config_seeds("tcp://a:1", &arena, seeds, &count, &err), OMEN_OK);
    ck_assert_uint_eq(count, 1);
    ck_assert_str_eq(seeds[0], "tcp://a:1");
    ck_assert_int_eq(router_config_seeds(" tcp://a:1, tcp://b:2 ,,tcp://c:3,", &arena, seeds, &count, &err),
            OMEN_OK);
    ck_assert_uint_eq(count, 3);
    ck_assert_str_eq(seeds[1], "tcp://b:2");
    ck_assert_str_eq(seeds[2], "tcp://c:3");
    ck_assert_int_eq(router_config_seeds(" , ", &arena, seeds, &count, &err), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "nodes");
    char many[2 * REMOTE_SEEDS_MAX + 3];
    for (uint32_t i = 0; i <= REMOTE_SEEDS_MAX; i++) memcpy(many + 2 * i, "x,", 2);
    many[2 * REMOTE_SEEDS_MAX + 2] = '\0';
    ck_assert_int_eq(router_config_seeds(many, &arena, seeds, &count, &err), OMEN_EINVAL);
    many[2 * REMOTE_SEEDS_MAX] = '\0';
    ck_assert_int_eq(router_config_seeds(many, &arena, seeds, &count, &err), OMEN_OK);
    ck_assert_uint_eq(count, REMOTE_SEEDS_MAX);
}
END_TEST

START_TEST(the_secret_comes_from_one_place_and_is_long_enough)
{
    struct siphash_key inline_key, file_key;
    char dir[300], path[320];
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/secret", dir);
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, "0123456789abcdef  \nmore\n", 24, &err), OMEN_OK);
    ck_assert_int_eq(cluster_key_read("0123456789abcdef", "", vfs_posix(), &inline_key, &err), OMEN_OK);
    ck_assert_int_eq(cluster_key_read("", path, vfs_posix(), &file_key, &err), OMEN_OK);
    ck_assert(inline_key.k0 == file_key.k0 && inline_key.k1 == file_key.k1);
    ck_assert_int_eq(cluster_key_read("", "", vfs_posix(), &file_key, &err), OMEN_EINVAL);
    ck_assert_str_eq(err.field, "cluster.secret_file");
    ck_assert_int_eq(cluster_key_read("0123456789abcdef", path, vfs_posix(), &file_key, &err), OMEN_EINVAL);
    ck_assert_int_eq(cluster_key_read("0123456789abcde", "", vfs_posix(), &file_key, &err), OMEN_EINVAL);
    ck_assert_int_ne(cluster_key_read("", "/nonexistent", vfs_posix(), &file_key, &err), OMEN_OK);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
}
END_TEST

START_TEST(urls_get_the_port_that_was_taken)
{
    char url[PROCESS_URL_BYTES_MAX];
    process_url_with_port("tcp://127.0.0.1:0", 7712, url);
    ck_assert_str_eq(url, "tcp://127.0.0.1:7712");
    process_url_with_port("tcp://[::1]:0", 7712, url);
    ck_assert_str_eq(url, "tcp://[::1]:7712");
    process_url_with_port("ipc:///tmp/x", 0, url);
    ck_assert_str_eq(url, "ipc:///tmp/x");
    ck_assert(process_url_is_public("tcp://0.0.0.0:7700"));
    ck_assert(process_url_is_public("tcp://10.1.2.3:7700"));
    ck_assert(!process_url_is_public("tcp://127.0.0.1:7700"));
    ck_assert(!process_url_is_public("ipc:///tmp/x"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("router_config");
    TCase *tcase = tcase_create("router_config");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, every_key_is_documented);
    tcase_add_test(tcase, documented_values_are_known_and_are_the_defaults);
    tcase_add_test(tcase, nodes_are_cut_at_commas_and_blanks);
    tcase_add_test(tcase, the_secret_comes_from_one_place_and_is_long_enough);
    tcase_add_test(tcase, urls_get_the_port_that_was_taken);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

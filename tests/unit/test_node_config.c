/* Every key is documented and every documented key exists; documented defaults are the real ones; key files are read. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/config.h"

#define YAML "deploy/omendb.yaml"

static char *text;

static void setup(void)
{
    uint8_t *data;
    size_t len;
    struct err err;
    enum omen_err rc = vfs_read_file(vfs_posix(), YAML, 1 << 20, &data, &len, &err);
    ck_assert_msg(rc == OMEN_OK, "run from the repository's top: %s", err.message);
    text = mem_must_alloc(len + 1);
    memcpy(text, data, len);
    text[len] = '\0';
    mem_free(data);
}

static void teardown(void) { mem_free(text); }

/* Whether "group.key" stands in the file as a line "group:" followed, indented, by "key:". */
static bool documented(const char *name)
{
    char group[64] = "", line[128];
    const char *dot = strchr(name, '.'), *key = name, *at = text;
    if (dot != NULL) {
        snprintf(group, sizeof group, "\n%.*s:\n", (int)(dot - name), name);
        at = strstr(text, group);
        if (at == NULL) return false;
        at += strlen(group) - 1;
        key = dot + 1;
    }
    snprintf(line, sizeof line, dot != NULL ? "\n  %s:" : "\n%s:", key);
    const char *found = strstr(at, line);
    if (found == NULL || dot == NULL) return found != NULL;
    for (const char *c = at; c < found;
            c++) { /* still in the group: no line begins at the margin in between */
        if (c[0] == '\n' && c[1] >= 'a' && c[1] <= 'z') return false;
    }
    return true;
}

START_TEST(every_key_is_documented)
{
    for (const struct config_key *key = node_config_keys; key->name != NULL; key++) {
        ck_assert_msg(documented(key->name), "%s is not in " YAML, key->name);
        ck_assert_msg(key->help != NULL && key->help[0] != '\0', "%s has no help", key->name);
        for (const struct config_key *item = key->item_keys; item != NULL && item->name != NULL; item++) {
            ck_assert_msg(strstr(text, item->name) != NULL, "%s[].%s is not in " YAML, key->name, item->name);
        }
    }
}
END_TEST

START_TEST(documented_values_are_known_and_are_the_defaults)
{
    struct node_config from_file, defaults;
    struct config *a, *b;
    struct err err;
    memset(&from_file, 0, sizeof from_file);
    memset(&defaults, 0, sizeof defaults);
    enum omen_err rc = config_load(YAML, node_config_keys, NULL, 0, &from_file, &a, &err);
    ck_assert_msg(rc == OMEN_OK, "%s", err.message); /* an unknown key is an error that names it */
    ck_assert_int_eq(config_load(NULL, node_config_keys, NULL, 0, &defaults, &b, &err), OMEN_OK);
    ck_assert_str_eq(from_file.listen, defaults.listen);
    ck_assert_str_eq(from_file.http_listen, defaults.http_listen);
    ck_assert_str_eq(from_file.data_dir, defaults.data_dir);
    ck_assert_uint_eq(from_file.api_keys.count, 0);
    for (const struct config_key *key = node_config_keys; key->name != NULL; key++) {
        if (key->type == CONFIG_STRING || key->type == CONFIG_LIST) continue;
        size_t bytes = key->type == CONFIG_ENUM ? sizeof(int) : sizeof(uint64_t);
        ck_assert_msg(memcmp((char *)&from_file + key->offset, (char *)&defaults + key->offset, bytes) == 0,
                "%s differs from its default %s", key->name, key->default_text);
    }
    config_free(a);
    config_free(b);
}
END_TEST

/* `yaml` holds one %s for the path of a key file. */
static void fill(const char *yaml, const char *secret, char *out, size_t out_bytes)
{
    const char *hole = strstr(yaml, "%s");
    ck_assert_ptr_nonnull(hole);
    snprintf(out, out_bytes, "%.*s%s%s", (int)(hole - yaml), yaml, secret, hole + 2);
}

static enum omen_err keys_of(const char *yaml, struct api_key *keys, uint32_t *count, struct err *err)
{
    char path[300], secret[300], filled[1000];
    const char *tmp = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/omen-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(path));
    char dir[300];
    memcpy(dir, path, sizeof dir);
    snprintf(secret, sizeof secret, "%.200s/secret", dir);
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), secret, "from-a-file \r\nmore\n", 19, err), OMEN_OK);
    fill(yaml, secret, filled, sizeof filled);
    snprintf(path, sizeof path, "%.200s/c.yaml", dir);
    ck_assert_int_eq(vfs_replace_file(vfs_posix(), path, filled, strlen(filled), err), OMEN_OK);
    struct node_config values;
    memset(&values, 0, sizeof values);
    struct config *config;
    enum omen_err rc = config_load(path, node_config_keys, NULL, 0, &values, &config, err);
    ck_assert_msg(rc == OMEN_OK, "%s", err->message);
    rc = api_keys_read(&values.api_keys, vfs_posix(), keys, count, err);
    config_free(config);
    ck_assert_int_eq(vfs_remove_tree(vfs_posix(), dir, NULL), OMEN_OK);
    return rc;
}

START_TEST(keys_come_from_the_file_or_stand_inline)
{
    static struct api_key keys[API_KEYS_MAX];
    uint32_t count;
    struct err err;
    ck_assert_int_eq(keys_of("auth:\n  keys:\n    - name: app\n      key_file: %s\n      role: read-write\n"
                             "    - name: boss\n      key: in-the-open\n      role: admin\n",
                             keys, &count, &err),
            OMEN_OK);
    ck_assert_uint_eq(count, 2);
    ck_assert_str_eq(keys[0].key, "from-a-file");
    ck_assert_int_eq(keys[0].role, WIRE_ROLE_WRITE);
    ck_assert_str_eq(keys[1].key, "in-the-open");
    ck_assert_int_eq(keys[1].role, WIRE_ROLE_ADMIN);
}
END_TEST

START_TEST(short_missing_and_double_keys_are_refused_by_name)
{
    static const char *const bad[] = {
        "auth:\n  keys:\n    - name: a\n      key: short # %s\n",
        "auth:\n  keys:\n    - name: a # %s\n",
        "auth:\n  keys:\n    - name: a\n      key: long-enough\n      key_file: %s\n",
    };
    static struct api_key keys[API_KEYS_MAX];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint32_t count;
        struct err err;
        ck_assert_int_eq(keys_of(bad[i], keys, &count, &err), OMEN_EINVAL);
        ck_assert_str_eq(err.field, "auth.keys[0]");
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("node_config");
    TCase *tcase = tcase_create("node_config");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, every_key_is_documented);
    tcase_add_test(tcase, documented_values_are_known_and_are_the_defaults);
    tcase_add_test(tcase, keys_come_from_the_file_or_stand_inline);
    tcase_add_test(tcase, short_missing_and_double_keys_are_refused_by_name);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

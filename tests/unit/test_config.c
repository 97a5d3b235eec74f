/* Configuration: what may be written, and the exact sentence for every mistake (a person reads it at three
 * at night). */
#include "common/config.h"

#include <check.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"

struct peer {
    char *address;
    uint64_t weight;
    struct config_list tags;
};

struct tag {
    char *name;
};

struct settings {
    char *name;
    uint64_t port, chunk_bytes, interval_ns;
    bool verify;
    double ratio;
    int format;
    struct config_list peers;
};

static const char *const FORMATS[] = { "text", "json", NULL };
static const struct config_key TAG_KEYS[] = {
    { .name = "name", .type = CONFIG_STRING, .offset = offsetof(struct tag, name) },
    { .name = NULL },
};
static const struct config_key PEER_KEYS[] = {
    { .name = "address",
            .type = CONFIG_STRING,
            .offset = offsetof(struct peer, address),
            .help = "host:port" },
    { .name = "weight",
            .type = CONFIG_U64,
            .offset = offsetof(struct peer, weight),
            .default_text = "7",
            .min = 1,
            .max = 9 },
    { .name = "tags",
            .type = CONFIG_LIST,
            .offset = offsetof(struct peer, tags),
            .default_text = "[]",
            .item_keys = TAG_KEYS,
            .item_bytes = sizeof(struct tag),
            .item_count_max = 2 },
    { .name = NULL },
};
static const struct config_key KEYS[] = {
    { .name = "node.name",
            .type = CONFIG_STRING,
            .offset = offsetof(struct settings, name),
            .default_text = "omen" },
    { .name = "node.port",
            .type = CONFIG_U64,
            .offset = offsetof(struct settings, port),
            .default_text = "7700",
            .min = 1,
            .max = 65535,
            .help = "where clients connect" },
    { .name = "storage.chunk_bytes",
            .type = CONFIG_BYTES,
            .offset = offsetof(struct settings, chunk_bytes),
            .default_text = "64MiB",
            .min = 1 << 20,
            .max = 1 << 30 },
    { .name = "storage.interval",
            .type = CONFIG_DURATION,
            .offset = offsetof(struct settings, interval_ns),
            .default_text = "30s",
            .min = 1000000,
            .max = 3600000000000 },
    { .name = "storage.verify",
            .type = CONFIG_BOOL,
            .offset = offsetof(struct settings, verify),
            .default_text = "true" },
    { .name = "search.ratio",
            .type = CONFIG_F64,
            .offset = offsetof(struct settings, ratio),
            .default_text = "0.5",
            .max = 1 },
    { .name = "log.format",
            .type = CONFIG_ENUM,
            .offset = offsetof(struct settings, format),
            .default_text = "text",
            .choices = FORMATS },
    { .name = "peers",
            .type = CONFIG_LIST,
            .offset = offsetof(struct settings, peers),
            .default_text = "[]",
            .item_keys = PEER_KEYS,
            .item_bytes = sizeof(struct peer),
            .item_count_max = 3 },
    { .name = NULL },
};
static const struct config_key REQUIRED[] = {
    { .name = "node.id", .type = CONFIG_U64, .offset = offsetof(struct settings, port) },
    { .name = NULL },
};

static struct settings settings;
static struct config *config;
static struct err err;

static enum omen_err load(const char *text)
{
    config_free(config);
    memset(&settings, 0, sizeof settings);
    err_clear(&err);
    return config_load_text("omen.yaml", text, strlen(text), KEYS, NULL, 0, &settings, &config, &err);
}

static void must_load(const char *text) { ck_assert_msg(load(text) == OMEN_OK, "%s", err.message); }

static void teardown(void)
{
    config_free(config);
    config = NULL;
}

START_TEST(defaults_fill_what_nobody_wrote)
{
    static const char *const EMPTY[] = { "", "\n# only a comment\n", "---\n", "{}",
        "node:\n  # name: x\nstorage: {}\n" };
    for (size_t i = 0; i < sizeof EMPTY / sizeof EMPTY[0]; i++) {
        must_load(EMPTY[i]);
        ck_assert_str_eq(settings.name, "omen");
        ck_assert_uint_eq(settings.port, 7700);
        ck_assert_uint_eq(settings.chunk_bytes, 64u << 20);
        ck_assert_uint_eq(settings.interval_ns, 30000000000);
        ck_assert(settings.verify);
        ck_assert_double_eq(settings.ratio, 0.5);
        ck_assert_int_eq(settings.format, 0);
        ck_assert(settings.peers.items == NULL && settings.peers.count == 0);
    }
}
END_TEST

START_TEST(every_type_is_read_nested_or_dotted)
{
    must_load("node: {name: 'a \"b\"', port: 1}\n"
              "storage.chunk_bytes: 2 MiB\n"
              "storage:\n  interval: 5m\n  verify: false\n"
              "search:\n  ratio: 0.25\n"
              "log.format: json\n");
    ck_assert_str_eq(settings.name, "a \"b\"");
    ck_assert_uint_eq(settings.port, 1);
    ck_assert_uint_eq(settings.chunk_bytes, 2u << 20);
    ck_assert_uint_eq(settings.interval_ns, 300000000000);
    ck_assert(!settings.verify);
    ck_assert_double_eq(settings.ratio, 0.25);
    ck_assert_int_eq(settings.format, 1);
    must_load("node.name: \"\"\n"); /* an empty text is a text */
    ck_assert_str_eq(settings.name, "");
}
END_TEST

START_TEST(lists_hold_maps_and_lists_in_them)
{
    must_load("peers:\n"
              "  - address: a:1\n    weight: 3\n    tags: [{name: x}, {name: y}]\n"
              "  - {address: b:2}\n");
    const struct peer *peers = settings.peers.items;
    ck_assert_uint_eq(settings.peers.count, 2);
    ck_assert_str_eq(peers[0].address, "a:1");
    ck_assert_uint_eq(peers[0].weight, 3);
    ck_assert_uint_eq(peers[0].tags.count, 2);
    ck_assert_str_eq(((const struct tag *)peers[0].tags.items)[1].name, "y");
    ck_assert_str_eq(peers[1].address, "b:2");
    ck_assert_uint_eq(peers[1].weight, 7);
    ck_assert_uint_eq(peers[1].tags.count, 0);
}
END_TEST

/* text, field, sentence */
static const char *const MISTAKES[][3] = {
    { "node:\n  port: 0\n", "node.port", "omen.yaml:2: node.port: must be between 1 and 65535, got 0" },
    { "node:\n  port: 77OO\n", "node.port", "omen.yaml:2: node.port: must be a whole number, got \"77OO\"" },
    { "node: {port: -1}", "node.port", "omen.yaml:1: node.port: must be a whole number, got \"-1\"" },
    { "node: {port: 99999999999999999999}", "node.port",
            "omen.yaml:1: node.port: must be a whole number, got \"99999999999999999999\"" },
    { "storage:\n  chunk_bytes: 5 TB\n", "storage.chunk_bytes",
            "omen.yaml:2: storage.chunk_bytes: must be between 1 MiB and 1 GiB, got 5 TB" },
    { "storage.chunk_bytes: big", "storage.chunk_bytes",
            "omen.yaml:1: storage.chunk_bytes: must be a size such as 64MiB or 1 GB, got \"big\"" },
    { "storage.interval: 30", "storage.interval",
            "omen.yaml:1: storage.interval: must be a time such as 30s, 500ms or 2m, got \"30\"" },
    { "storage.interval: 2h", "storage.interval",
            "omen.yaml:1: storage.interval: must be between 1 ms and 1 h, got 2h" },
    { "storage.verify: yes", "storage.verify",
            "omen.yaml:1: storage.verify: must be true or false, got \"yes\"" },
    { "search.ratio: 1.5", "search.ratio", "omen.yaml:1: search.ratio: must be between 0 and 1, got 1.5" },
    { "search.ratio: nan", "search.ratio", "omen.yaml:1: search.ratio: must be a number, got \"nan\"" },
    { "search.ratio: 1e999", "search.ratio", "omen.yaml:1: search.ratio: must be a number, got \"1e999\"" },
    { "log.format: jsn", "log.format",
            "omen.yaml:1: log.format: must be one of text, json, got \"jsn\"; did you mean json?" },
    { "log.format: [text]", "log.format", "omen.yaml:1: log.format: must be one of text, json, got a list" },
    { "node.name: {a: b}", "node.name", "omen.yaml:1: node.name: must be a text, got a map" },
    { "node.name:\n", "node.name",
            "omen.yaml:1: node.name: has no value; it must be a text, or remove the line" },
    { "storage: 5", "storage", "omen.yaml:1: storage: must be a map of keys, such as storage.chunk_bytes" },
    { "storage:\n  chunk_byte: 1MiB\n", "storage.chunk_byte",
            "omen.yaml:2: storage.chunk_byte: is not a known key; did you mean storage.chunk_bytes?" },
    { "chunk_bytes: 1MiB\n", "chunk_bytes",
            "omen.yaml:1: chunk_bytes: is not a known key; did you mean storage.chunk_bytes?" },
    { "storage:\n  prot: 1\n", "storage.prot",
            "omen.yaml:2: storage.prot: is not a known key; did you mean node.port?" },
    { "something: else\n", "something", "omen.yaml:1: something: is not a known key" },
    { "node:\n  port: 1\n  name: x\n  port: 2\n", "node.port",
            "omen.yaml:4: node.port: is given twice, first in line 2" },
    { "node.port: 1\nnode:\n  port: 2\n", "node.port",
            "omen.yaml:3: node.port: is given twice, first in line 1" },
    { "peers:\n- address: a\n- tags: [{name: a, name: b}]\n", "peers[1].tags[0].name",
            "omen.yaml:3: peers[1].tags[0].name: is given twice, first in line 3" },
    { "peers: {a: b}", "peers", "omen.yaml:1: peers: must be a list of maps, got a map" },
    { "peers:\n- a\n", "peers[0]", "omen.yaml:2: peers[0]: must be a map of keys and values" },
    { "peers:\n- {address: a}\n- weight: 1\n", "peers[1].address",
            "omen.yaml:3: peers[1].address: is required" },
    { "peers:\n- address: a\n  weight: 10\n", "peers[0].weight",
            "omen.yaml:3: peers[0].weight: must be between 1 and 9, got 10" },
    { "peers:\n- adress: a\n", "peers[0].adress",
            "omen.yaml:2: peers[0].adress: is not a known key; did you mean address?" },
    { "peers: [{address: a}, {address: a}, {address: a}, {address: a}]", "peers",
            "omen.yaml:1: peers: must have at most 3 items, got 4" },
    { "peers:\n- address: a\n  tags:\n  - name:\n", "peers[0].tags[0].name",
            "omen.yaml:4: peers[0].tags[0].name: has no value; it must be a text, or remove the line" },
    { "[a, b]", "", "omen.yaml:1: must be a map of keys and values" },
    { "node: &x {port: 1}", "", "omen.yaml:1: anchors and aliases (& and *) are not supported" },
    { "node: !!map {port: 1}", "", "omen.yaml:1: tags (!) are not supported" },
    { "node:\n  port: 1\n---\nnode:\n  port: 2\n", "", "omen.yaml:3: more than one document in one file" },
    { "node:\n  port: 1\n name: x\n", "", "omen.yaml:3: did not find expected key" },
    { "node:\n\tport: 1\n", "", "omen.yaml:2: found character that cannot start any token" },
    { "a: 1\nb: \xff\n", "", "omen.yaml:2: invalid leading UTF-8 octet" },
    { "node.name: \"a\\0b\"", "", "omen.yaml:1: NUL character in a value" },
    { "a: [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]", "", "omen.yaml:1: nested too deeply" },
    { "? [a]\n: b\n", "", "omen.yaml:1: a key must be a plain name" },
};

START_TEST(every_mistake_is_answered_with_file_line_and_key)
{
    const char *const *m = MISTAKES[_i];
    ck_assert_int_eq(load(m[0]), OMEN_EINVAL);
    ck_assert_ptr_null(config);
    ck_assert_str_eq(err.message, m[2]);
    ck_assert_str_eq(err.field, m[1]);
    ck_assert_int_eq(config_load_text("omen.yaml", m[0], strlen(m[0]), KEYS, NULL, 0, &settings, &config,
                             NULL),
            OMEN_EINVAL);
}
END_TEST

START_TEST(a_required_key_must_come_from_somewhere)
{
    const char *set = "node.id=5";
    ck_assert_int_eq(config_load(NULL, REQUIRED, NULL, 0, &settings, &config, &err), OMEN_EINVAL);
    ck_assert_str_eq(err.message, "configuration: node.id: is required");
    ck_assert_int_eq(config_load_text("f", "", 0, REQUIRED, NULL, 0, &settings, &config, &err), OMEN_EINVAL);
    ck_assert_str_eq(err.message, "f: node.id: is required");
    ck_assert_int_eq(config_load(NULL, REQUIRED, &set, 1, &settings, &config, &err), OMEN_OK);
    ck_assert_uint_eq(settings.port, 5);
}
END_TEST

START_TEST(environment_overrides_the_file_and_options_override_both)
{
    static const char TEXT[] = "node: {name: file, port: 1}\nstorage.verify: true\n";
    const char *sets[] = { "node.name=option", "peers=[{address: q}]", "node.name=last" };
    setenv("OMENDB_NODE_NAME", "environment", 1);
    setenv("OMENDB_NODE_PORT", "2", 1);
    setenv("OMENDB_PEERS", "[{address: e, weight: 2}]", 1);
    setenv("OMENDB_SERVICE_HOST", "10.0.0.1", 1); /* a cluster manager's, none of ours */
    must_load(TEXT);
    ck_assert_str_eq(settings.name, "environment");
    ck_assert_uint_eq(settings.port, 2);
    ck_assert_str_eq(((const struct peer *)settings.peers.items)[0].address, "e");
    config_free(config);
    ck_assert_int_eq(config_load_text("f", TEXT, strlen(TEXT), KEYS, sets, 3, &settings, &config, &err),
            OMEN_OK);
    ck_assert_str_eq(settings.name, "last");
    ck_assert_uint_eq(settings.port, 2);
    ck_assert_str_eq(((const struct peer *)settings.peers.items)[0].address, "q");

    setenv("OMENDB_NODE_PORT", "x", 1);
    ck_assert_int_eq(load(TEXT), OMEN_EINVAL);
    ck_assert_str_eq(err.message, "OMENDB_NODE_PORT: node.port: must be a whole number, got \"x\"");
}
END_TEST

START_TEST(options_name_their_mistakes)
{
    static const char *const CASES[][2] = {
        { "node.port=0", "--set: node.port: must be between 1 and 65535, got 0" },
        { "node.prt=1", "--set: node.prt: is not a known key; did you mean node.port?" },
        { "node.port", "--set: must be key=value, got \"node.port\"" },
        { "=1", "--set: must be key=value, got \"=1\"" },
        { "peers=", "--set: peers: must be a list of maps, got nothing" },
        { "peers=x", "--set: peers: must be a list of maps, got one value" },
        { "peers=[{weight: 1}]", "--set: peers[0].address: is required" },
        { "peers=[}", "--set:1: did not find expected node content" },
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        ck_assert_int_eq(config_load(NULL, KEYS, &CASES[i][0], 1, &settings, &config, &err), OMEN_EINVAL);
        ck_assert_str_eq(err.message, CASES[i][1]);
    }
}
END_TEST

START_TEST(files_are_read_and_named)
{
    char dir[256], path[300];
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%.200s/omen-XXXXXX", tmp == NULL ? "/tmp" : tmp);
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/omen.yaml", dir);
    ck_assert_int_eq(config_load(path, KEYS, NULL, 0, &settings, &config, &err), OMEN_ENOTFOUND);
    ck_assert_ptr_nonnull(strstr(err.message, path));
    FILE *f = fopen(path, "w");
    fprintf(f, "node:\n  port: 5\n");
    fclose(f);
    ck_assert_int_eq(config_load(path, KEYS, NULL, 0, &settings, &config, &err), OMEN_OK);
    ck_assert_uint_eq(settings.port, 5);
    f = fopen(path, "w");
    for (int i = 0; i < 20000; i++) fprintf(f, "# %060d\n", i);
    fclose(f);
    config_free(config);
    ck_assert_int_eq(config_load(path, KEYS, NULL, 0, &settings, &config, &err), OMEN_ETOOBIG);
    unlink(path);
    rmdir(dir);
}
END_TEST

START_TEST(big_files_end_at_a_limit)
{
    struct buf text;
    buf_init(&text);
    buf_printf(&text, "peers: [");
    for (int i = 0; i < 20000; i++) buf_printf(&text, "x, ");
    buf_printf(&text, "]");
    buf_append(&text, "", 1);
    ck_assert_int_eq(load((const char *)text.data), OMEN_EINVAL);
    ck_assert_str_eq(err.message, "omen.yaml:1: too many values in one file");
    buf_clear(&text);
    for (int i = 0; i < 2000; i++) buf_printf(&text, "k%d: 1\n", i);
    buf_append(&text, "", 1);
    ck_assert_int_eq(load((const char *)text.data), OMEN_EINVAL);
    ck_assert_str_eq(err.message, "omen.yaml:1001: k1000: too many keys in one map");
    buf_fini(&text);
}
END_TEST

START_TEST(sizes_and_times_are_read_exactly_or_refused)
{
    static const struct {
        const char *text;
        uint64_t value;
    } SIZES[] = { { "0", 0 }, { "17", 17 }, { "1 B", 1 }, { "64MiB", 64u << 20 }, { "1 GB", 1000000000 },
        { "5kb", 5000 }, { "2TiB", 2ull << 40 }, { "18446744073709551615", UINT64_MAX } },
      TIMES[] = { { "0", 0 }, { "30s", 30000000000 }, { "500ms", 500000000 }, { "2m", 120000000000 },
          { "1h", 3600000000000 }, { "7d", 604800000000000 }, { "10us", 10000 }, { "3 ns", 3 } };
    static const char *const BAD_SIZES[] = { "", " 1", "1.5GiB", "-1", "MiB", "1 XB", "1  KB",
        "18446744073709551616", "99999999 TiB", "0x10", "1MiB " };
    static const char *const BAD_TIMES[] = { "", "30", "1 S", "1min", "-1s", "1e3s", "99999999999999d", "s" };
    uint64_t v;
    for (size_t i = 0; i < sizeof SIZES / sizeof SIZES[0]; i++) {
        ck_assert_int_eq(config_parse_bytes(SIZES[i].text, &v), OMEN_OK);
        ck_assert_uint_eq(v, SIZES[i].value);
    }
    for (size_t i = 0; i < sizeof TIMES / sizeof TIMES[0]; i++) {
        ck_assert_int_eq(config_parse_duration(TIMES[i].text, &v), OMEN_OK);
        ck_assert_uint_eq(v, TIMES[i].value);
    }
    for (size_t i = 0; i < sizeof BAD_SIZES / sizeof BAD_SIZES[0]; i++)
        ck_assert_msg(config_parse_bytes(BAD_SIZES[i], &v) == OMEN_EINVAL, "\"%s\"", BAD_SIZES[i]);
    for (size_t i = 0; i < sizeof BAD_TIMES / sizeof BAD_TIMES[0]; i++)
        ck_assert_msg(config_parse_duration(BAD_TIMES[i], &v) == OMEN_EINVAL, "\"%s\"", BAD_TIMES[i]);
}
END_TEST

START_TEST(memory_running_out_is_an_error_and_leaks_nothing)
{
    static const char TEXT[] = "node: {name: x}\npeers:\n- {address: a, tags: [{name: b}]}\n";
    for (uint64_t n = 1;; n++) {
        mem_fail_at(n);
        enum omen_err rc = load(TEXT);
        mem_fail_at(0);
        if (rc == OMEN_OK) {
            ck_assert_uint_gt(n, 2);
            break;
        }
        ck_assert_int_eq(rc, OMEN_ENOMEM);
        ck_assert_ptr_null(config);
    }
}
END_TEST

START_TEST(help_lists_every_key)
{
    struct buf out;
    buf_init(&out);
    config_help(KEYS, &out);
    buf_append(&out, "", 1);
    const char *text = (const char *)out.data;
    ck_assert_ptr_nonnull(strstr(text, "node.port: where clients connect (a whole number; default 7700)\n"));
    ck_assert_ptr_nonnull(strstr(text, "peers[].address: host:port (a text; required)\n"));
    ck_assert_ptr_nonnull(strstr(text, "log.format:  (one of text, json; default text)\n"));
    buf_fini(&out);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("config");
    TCase *tc = tcase_create("config");
    tcase_add_checked_fixture(tc, NULL, teardown);
    tcase_add_test(tc, defaults_fill_what_nobody_wrote);
    tcase_add_test(tc, every_type_is_read_nested_or_dotted);
    tcase_add_test(tc, lists_hold_maps_and_lists_in_them);
    tcase_add_loop_test(tc, every_mistake_is_answered_with_file_line_and_key, 0,
            (int)(sizeof MISTAKES / sizeof MISTAKES[0]));
    tcase_add_test(tc, a_required_key_must_come_from_somewhere);
    tcase_add_test(tc, environment_overrides_the_file_and_options_override_both);
    tcase_add_test(tc, options_name_their_mistakes);
    tcase_add_test(tc, files_are_read_and_named);
    tcase_add_test(tc, big_files_end_at_a_limit);
    tcase_add_test(tc, sizes_and_times_are_read_exactly_or_refused);
    tcase_add_test(tc, memory_running_out_is_an_error_and_leaks_nothing);
    tcase_add_test(tc, help_lists_every_key);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

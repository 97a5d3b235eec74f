/* Options of collections: a profile's file and KEY=VALUE to JSON. What the values mean and may be is the server's business
 * (common/placement/options.c): here only durations are made numbers. Threads: main only. */
#include "tools/omenctl/collection_options.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/config.h"
#include "common/json.h"
#include "common/placement/options.h"
#include "tools/omenctl/output.h"

/* A profile's file. Texts, so that a key that is not there can be told. */
struct profile_file {
    const char *write_mode, *index_delay, *quantization, *segments, *time_bucket, *recall_target;
    const char *tenant_path, *time_path, *type_path, *tenant_points, *payload_indexes;
};

#define KEY(key, text)                                                                                       \
    {                                                                                                        \
        .name = #key, .type = CONFIG_STRING, .offset = offsetof(struct profile_file, key),                   \
        .default_text = "", .help = text                                                                     \
    }
static const struct config_key KEYS[] = {
    KEY(write_mode, "async_index, immediate_index or stream_only"),
    KEY(index_delay, "of stream_only: when points are indexed, e.g. 60s"),
    KEY(quantization, "conservative, adaptive or aggressive"),
    KEY(segments, "mixed, payload_aware or time_based"),
    KEY(time_bucket, "width of a time bucket, e.g. 24h"),
    KEY(tenant_path, "payload path of the tenant; without it the shard key"),
    KEY(time_path, "payload path of the time"),
    KEY(type_path, "payload path of the type"),
    KEY(tenant_points, "points from which on a tenant has segments of its own"),
    KEY(payload_indexes, "payload paths to index before others, with commas"),
    KEY(recall_target, "recall that searches shall reach, above 0 to 1"),
    { .name = NULL },
};

/* ---- one option ---- */

static bool is_duration(const char *key)
{
    return strcmp(key, "index_delay") == 0 || strcmp(key, "time_bucket") == 0;
}

/* A number as it stands, or a quoted text. */
static void put_value(const char *text, struct buf *out)
{
    struct doc doc;
    struct doc_builder *builder = doc_builder_new(OPTIONS_DOC_BYTES_MAX);
    if (builder == NULL) panic("out of memory");
    if (json_parse(text, strlen(text), builder, &doc, NULL) == OMEN_OK && doc_is_number(doc))
        json_write(doc, out);
    else
        put_string(out, text);
    doc_builder_free(builder);
}

/* "a,b.c" as an array; a path with a comma in a quoted key cannot be told here. */
static void put_paths(const char *text, struct buf *out)
{
    bool first = true;
    char *copy = mem_must_strdup(text), *rest = copy;
    buf_append(out, "[", 1);
    for (char *path; (path = strsep(&rest, ",")) != NULL;) {
        path += strspn(path, " ");
        if (*path == '\0') continue;
        if (!first) buf_append(out, ",", 1);
        put_string(out, path);
        first = false;
    }
    buf_append(out, "]", 1);
    mem_free(copy);
}

/* Options in the order they came; of a key given twice the last counts. */
struct gathered {
    struct {
        char key[64];
        const char *value; /* borrowed */
    } items[32];
    uint32_t count;
};

static void gather(const struct cli *cli, struct gathered *g, const char *key, size_t key_len,
        const char *value)
{
    uint32_t at = 0;
    if (key_len == 0 || key_len >= sizeof g->items[0].key)
        usage_fail(cli->command, "\"%.*s\" is no option of a collection", (int)key_len, key);
    while (at < g->count &&
            (strlen(g->items[at].key) != key_len || memcmp(g->items[at].key, key, key_len) != 0))
        at++;
    if (at == sizeof g->items / sizeof g->items[0]) usage_fail(cli->command, "too many options");
    memcpy(g->items[at].key, key, key_len);
    g->items[at].key[key_len] = '\0';
    g->items[at].value = value;
    if (at == g->count) g->count++;
}

static void put_gathered(const struct cli *cli, const struct gathered *g, struct buf *out)
{
    for (uint32_t i = 0; i < g->count; i++) {
        const char *key = g->items[i].key, *value = g->items[i].value;
        uint64_t ns;
        buf_append(out, i == 0 ? "{" : ",", 1);
        if (!is_duration(key)) {
            put_string(out, key);
            buf_append(out, ":", 1);
            if (strcmp(key, "payload_indexes") == 0)
                put_paths(value, out);
            else
                put_value(value, out);
            continue;
        }
        if (config_parse_duration(value, &ns) != OMEN_OK)
            usage_fail(cli->command, "%s: \"%s\" is no duration like 30s, 10m or 2h", key, value);
        buf_printf(out, "\"%s_ms\":%llu", key, (unsigned long long)(ns / 1000000));
    }
    if (g->count > 0) buf_append(out, "}", 1);
}

/* ---- profiles ---- */

static bool is_path(const char *profile)
{
    size_t len = strlen(profile);
    return strchr(profile, '/') != NULL || (len > 5 && strcmp(profile + len - 5, ".yaml") == 0);
}

static void gather_file(const struct cli *cli, struct gathered *g, const struct profile_file *file)
{
    for (const struct config_key *key = KEYS; key->name != NULL; key++) {
        const char *value = *(const char *const *)(const void *)((const char *)file + key->offset);
        if (value[0] != '\0') gather(cli, g, key->name, strlen(key->name), value);
    }
}

int collection_options_text(const struct cli *cli, const char *profile, const char *const *items,
        uint32_t count, struct buf *out)
{
    struct gathered g = { .count = 0 };
    struct profile_file file;
    struct config *config = NULL;
    if (profile != NULL && is_path(profile)) {
        struct err err;
        if (config_load(profile, KEYS, NULL, 0, &file, &config, &err) != OMEN_OK)
            return fail_local("%s", err.message);
        gather_file(cli, &g, &file);
    } else if (profile != NULL) {
        gather(cli, &g, "profile", 7, profile);
    }
    for (uint32_t i = 0; i < count; i++) {
        const char *equals = strchr(items[i], '=');
        if (equals == NULL) usage_fail(cli->command, "an option is KEY=VALUE, got \"%s\"", items[i]);
        gather(cli, &g, items[i], (size_t)(equals - items[i]), equals + 1);
    }
    put_gathered(cli, &g, out);
    if (g.count > 0) buf_append_zero(out, 1);
    if (out->failed) panic("out of memory");
    config_free(config);
    return EXIT_OK;
}

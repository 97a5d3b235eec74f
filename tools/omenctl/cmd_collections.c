/* omenctl collections: create, list, describe, drop, and aliases. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/placement/map.h"
#include "tools/omenctl/args.h"
#include "tools/omenctl/collection_options.h"
#include "tools/omenctl/index_info.h"
#include "tools/omenctl/output.h"

/* ---- create ---- */

static struct {
    uint64_t dim, shards, replication;
    double recall_target;
    const char *metric, *shard_key, *profile;
    struct text_list fields, options;
} create = { .shards = 1, .replication = 1 };

static const struct option CREATE_OPTIONS[] = {
    { "--dim", OPTION_U64, &create.dim, "N", "components of the one unnamed vector field, 1 to 4096" },
    { "--metric", OPTION_TEXT, &create.metric, "M", "cosine (default), l2 or ip" },
    { "--field", OPTION_LIST, &create.fields, "NAME:DIM[:M]",
            "a named vector field, up to 8; instead of --dim" },
    { "--shard-key", OPTION_TEXT, &create.shard_key, "PATH", "payload path whose value places a point" },
    { "--shards", OPTION_U64, &create.shards, "N", "shards, 1 to 256 (1)" },
    { "--replication", OPTION_U64, &create.replication, "R",
            "copies of each shard on different nodes, 1 to 7 (1)" },
    { "--recall-target", OPTION_F64, &create.recall_target, "R",
            "recall that searches shall reach, above 0 to 1 (the profile's, else 0.95)" },
    { "--profile", OPTION_TEXT, &create.profile, "P",
            "speed, balanced, quality, or the path of a file like them" },
    { "--option", OPTION_LIST, &create.options, "KEY=VALUE", "over the profile; see collections set" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static omen_vector_field parse_field(const struct cli *cli, const char *text)
{
    char *copy = mem_must_strdup(text); /* the caller frees it by the name */
    char *dim = strchr(copy, ':');
    if (dim == NULL) usage_fail(cli->command, "--field wants NAME:DIM or NAME:DIM:METRIC, got \"%s\"", text);
    *dim++ = '\0';
    char *metric = strchr(dim, ':');
    if (metric != NULL) *metric++ = '\0';
    char *end;
    unsigned long value = strtoul(dim, &end, 10);
    if (*dim < '0' || *dim > '9' || *end != '\0' || value == 0 || value > OMEN_DIM_MAX)
        usage_fail(cli->command, "--field %s: \"%s\" is no dimension from 1 to %d", text, dim, OMEN_DIM_MAX);
    return (omen_vector_field){ copy, (uint32_t)value, metric };
}

static int run_create(struct cli *cli)
{
    omen_vector_field fields[OMEN_VECTOR_FIELDS_MAX];
    if ((create.dim == 0) == (create.fields.count == 0))
        usage_fail(cli->command, "give either --dim or one or more --field");
    if (create.fields.count > OMEN_VECTOR_FIELDS_MAX)
        usage_fail(cli->command, "at most %d vector fields", OMEN_VECTOR_FIELDS_MAX);
    if (create.fields.count > 0 && create.metric != NULL)
        usage_fail(cli->command,
                "--metric goes with --dim; a named field says its own: --field NAME:DIM:METRIC");
    for (uint32_t i = 0; i < create.fields.count; i++) fields[i] = parse_field(cli, create.fields.items[i]);
    omen_collection_options options = {
        .dim = create.dim == 0 ? 0 : args_u32(cli, "--dim", create.dim, 1, OMEN_DIM_MAX),
        .metric = create.metric,
        .fields = fields,
        .field_count = create.fields.count,
        .shard_key = create.shard_key,
        .shards = args_u32(cli, "--shards", create.shards, 1, OMEN_SHARDS_MAX),
        .replication = args_u32(cli, "--replication", create.replication, 1, OMEN_REPLICAS_MAX - 1),
        .recall_target = (float)create.recall_target,
    };
    bool recall_given = create.recall_target != 0;
    if (recall_given && !(create.recall_target > 0 && create.recall_target <= 1))
        usage_fail(cli->command, "--recall-target is above 0 and at most 1");
    struct buf options_text;
    buf_init(&options_text);
    int code = collection_options_text(cli, create.profile, create.options.items, create.options.count,
            &options_text);
    if (code != EXIT_OK) return code;
    if (options_text.len > 0) options.options_json = (const char *)options_text.data;
    const char *name = cli->arguments[0];
    omen_code rc = omen_collection_create(cli->db, name, &options);
    buf_fini(&options_text);
    for (uint32_t i = 0; i < create.fields.count; i++) mem_free((void *)(uintptr_t)fields[i].name);
    if (rc != OMEN_OK) return fail_with(rc);
    struct buf out;
    buf_init(&out);
    buf_printf(&out, cli->json ? "{\"created\":" : "created collection ");
    put_string(&out, name);
    if (cli->json) buf_append(&out, "}", 1);
    put_line(&out);
    buf_fini(&out);
    return EXIT_OK;
}

/* ---- list and describe ---- */

static void field_text(struct doc fields, struct buf *out)
{
    struct doc_iter it = doc_iter(fields);
    struct doc field;
    for (bool first = true; doc_next(&it, NULL, &field); first = false) {
        struct bytes name = doc_get_string(field, "name"), metric = doc_get_string(field, "metric");
        buf_printf(out, "%s%.*s%s%llu %.*s", first ? "" : ", ", (int)name.len,
                name.len == 0 ? "" : (const char *)name.data, name.len == 0 ? "" : ":",
                (unsigned long long)doc_get_u64(field, "dim"), (int)metric.len,
                metric.len == 0 ? "" : (const char *)metric.data);
    }
}

static void bytes_cell(struct table *table, uint64_t bytes)
{
    char text[16];
    format_bytes(bytes, text);
    table_cell(table, text, strlen(text));
}

static void print_list(struct doc list)
{
    struct table *table = table_new();
    static const char *const TITLES[] = { "name", "points", "shards", "stored", "vectors", "shard key",
        "aliases" };
    for (int i = 0; i < 7; i++) table_column(table, TITLES[i], i >= 1 && i <= 3);
    struct doc_iter it = doc_iter(list);
    struct doc item;
    while (doc_next(&it, NULL, &item)) {
        struct buf text;
        buf_init(&text);
        table_doc(table, doc_get(item, "name"));
        table_cellf(table, "%llu", (unsigned long long)doc_get_u64(item, "points"));
        table_cellf(table, "%llu", (unsigned long long)doc_get_u64(item, "shard_count"));
        bytes_cell(table, doc_get_u64(item, "stream_bytes") + doc_get_u64(item, "meta_bytes"));
        field_text(doc_get(item, "fields"), &text);
        table_cell(table, text.len == 0 ? "" : (const char *)text.data, text.len);
        struct bytes key = doc_get_string(item, "shard_key");
        table_cell(table, key.len == 0 ? "" : (const char *)key.data, key.len);
        buf_clear(&text);
        struct doc_iter aliases = doc_iter(doc_get(item, "aliases"));
        struct doc alias;
        while (doc_next(&aliases, NULL, &alias)) {
            struct bytes s = doc_string(alias);
            buf_printf(&text, "%s%.*s", text.len == 0 ? "" : ",", (int)s.len, (const char *)s.data);
        }
        table_cell(table, text.len == 0 ? "" : (const char *)text.data, text.len);
        buf_fini(&text);
    }
    table_print(table, stdout, terminal_width());
    table_free(table);
}

static void print_shards(struct doc shards)
{
    static const char *const MEMBERS[] = { "shard_id", "slot_first", "slot_count", "points", "applied",
        "durable", "unindexed", "stream_bytes", "meta_bytes" };
    struct table *table = table_new();
    table_column(table, "shard", true);
    for (size_t i = 1; i < sizeof MEMBERS / sizeof MEMBERS[0]; i++) table_column(table, MEMBERS[i], true);
    table_column(table, "lag", true);
    table_column(table, "segments", true);
    table_column(table, "being built", false);
    struct doc_iter it = doc_iter(shards);
    struct doc shard;
    while (doc_next(&it, NULL, &shard)) {
        for (size_t i = 0; i < sizeof MEMBERS / sizeof MEMBERS[0]; i++)
            table_cellf(table, "%llu", (unsigned long long)doc_get_u64(shard, MEMBERS[i]));
        index_cells(table, doc_get(shard, "index"));
    }
    table_print(table, stdout, terminal_width());
    table_free(table);
}

/* "0.9731 (0.9612 to 0.9810) over 512 searches", and whether they take more effort than planned. */
static void recall_cell(struct table *table, struct doc recall)
{
    static const char *const SHARES[] = { "measured", "low", "high" };
    double v[3] = { 0 };
    for (int i = 0; i < 3; i++) {
        struct doc share = doc_get(recall, SHARES[i]);
        if (share.data == NULL) continue;
        v[i] = doc_type(share) == DOC_F64 ? doc_f64(share) : (double)doc_get_u64(recall, SHARES[i]);
    }
    uint64_t boost = doc_get_u64(recall, "boost");
    char more[40] = "";
    if (boost > 0) snprintf(more, sizeof more, ", effort +%llu", (unsigned long long)boost);
    table_cellf(table, "%.4f (%.4f to %.4f, 95 %%) over %llu searches%s", v[0], v[1], v[2],
            (unsigned long long)doc_get_u64(recall, "searches"), more);
}

static void print_description(struct doc doc)
{
    struct table *table = table_new();
    table_column(table, NULL, false);
    table_column(table, NULL, false);
    struct doc_iter it = doc_iter(doc);
    struct bytes key;
    struct doc value;
    while (doc_next(&it, &key, &value)) {
        if (key.len == 6 && memcmp(key.data, "shards", 6) == 0) continue;
        if (key.len == 5 && memcmp(key.data, "index", 5) == 0) {
            print_index_rows(table, value);
            continue;
        }
        table_cell(table, (const char *)key.data, key.len);
        if (key.len == 6 && memcmp(key.data, "fields", 6) == 0) {
            struct buf text;
            buf_init(&text);
            field_text(value, &text);
            table_cell(table, text.len == 0 ? "" : (const char *)text.data, text.len);
            buf_fini(&text);
        } else if (key.len == 6 && memcmp(key.data, "recall", 6) == 0) {
            recall_cell(table, value);
        } else if (key.len == 10 && memcmp(key.data, "created_ms", 10) == 0) {
            time_t seconds = (time_t)(doc_get_u64(doc, "created_ms") / 1000);
            struct tm tm;
            char text[64];
            table_cell(table, text,
                    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&seconds, &tm)));
        } else {
            table_doc(table, value);
        }
    }
    table_print(table, stdout, terminal_width());
    table_free(table);
    print_payload_fields(doc_get(doc_get(doc, "index"), "payload"),
            doc_get(doc_get(doc, "options"), "payload_indexes"));
    if (doc_get(doc, "shards").data != NULL) {
        putchar('\n');
        print_shards(doc_get(doc, "shards"));
    }
}

/* Prints a document of the library's, as it is or through `print`; frees it. */
static int show(struct cli *cli, omen_code rc, char *json, void (*print)(struct doc doc))
{
    if (rc != OMEN_OK) return fail_with(rc);
    struct json_text text;
    struct err err;
    int code = EXIT_OK;
    if (cli->json)
        puts(json);
    else if (json_text_init(&text, json, strlen(json), &err) != OMEN_OK)
        code = fail_local("the reply cannot be read: %s", err.message);
    else {
        print(text.doc);
        json_text_fini(&text);
    }
    omen_free(json);
    return code;
}

static int run_list(struct cli *cli)
{
    char *json = NULL;
    omen_code rc = omen_collection_list(cli->db, &json);
    return show(cli, rc, json, print_list);
}

static int run_describe(struct cli *cli)
{
    char *json = NULL;
    omen_code rc = omen_collection_describe(cli->db, cli->arguments[0], &json);
    return show(cli, rc, json, print_description);
}

/* ---- set ---- */

static const char *set_profile;

static const struct option SET_OPTIONS[] = {
    { "--profile", OPTION_TEXT, &set_profile, "P",
            "speed, balanced, quality, or the path of a file like them" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static int done(struct cli *cli, omen_code rc, const char *verb, const char *name);

static int run_set(struct cli *cli)
{
    struct buf text;
    buf_init(&text);
    int code = collection_options_text(cli, set_profile, (const char *const *)(cli->arguments + 1),
            cli->argument_count - 1, &text);
    if (code == EXIT_OK && text.len == 0) usage_fail(cli->command, "give KEY=VALUE or --profile");
    if (code == EXIT_OK)
        code = done(cli, omen_collection_set(cli->db, cli->arguments[0], (const char *)text.data), "set",
                cli->arguments[0]);
    buf_fini(&text);
    return code;
}

/* ---- drop and aliases ---- */

static bool drop_yes;

static const struct option DROP_OPTIONS[] = {
    { "--yes", OPTION_FLAG, &drop_yes, NULL, "do not ask" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static int done(struct cli *cli, omen_code rc, const char *verb, const char *name)
{
    if (rc != OMEN_OK) return fail_with(rc);
    struct buf out;
    buf_init(&out);
    buf_printf(&out, cli->json ? "{\"%s\":" : "%s: ", verb);
    put_string(&out, name);
    if (cli->json) buf_append(&out, "}", 1);
    put_line(&out);
    buf_fini(&out);
    return EXIT_OK;
}

static int run_drop(struct cli *cli)
{
    const char *name = cli->arguments[0];
    if (!drop_yes) {
        char answer[256] = "";
        if (!isatty(STDIN_FILENO))
            usage_fail(cli->command, "dropping a collection without a terminal wants --yes");
        fprintf(stderr, "Drop collection \"%s\" and all its points? Type its name: ", name);
        if (fgets(answer, sizeof answer, stdin) == NULL) answer[0] = '\0';
        answer[strcspn(answer, "\n")] = '\0';
        if (strcmp(answer, name) != 0) return fail_local("nothing was dropped");
    }
    return done(cli, omen_collection_drop(cli->db, name), "dropped", name);
}

static int run_alias_set(struct cli *cli)
{
    return done(cli, omen_alias_set(cli->db, cli->arguments[0], cli->arguments[1]), "alias_set",
            cli->arguments[0]);
}

static int run_alias_drop(struct cli *cli)
{
    return done(cli, omen_alias_drop(cli->db, cli->arguments[0]), "alias_dropped", cli->arguments[0]);
}

#define ALIAS_SET                                                                                            \
    .arguments = "ALIAS NAME", .summary = "Let an alias name a collection, at once for all clients",         \
    .argument_min = 2, .argument_max = 2, .changes = true, .run = run_alias_set,                             \
    .help = "Examples:\n  omenctl collections alias set books books_v2\n"
#define ALIAS_DROP                                                                                           \
    .arguments = "ALIAS", .summary = "Forget an alias; the collection stays", .argument_min = 1,             \
    .argument_max = 1, .changes = true, .run = run_alias_drop,                                               \
    .help = "Examples:\n  omenctl collections alias drop books\n"

const struct command COLLECTION_COMMANDS[] = {
    { .name = "collections create",
            .arguments = "NAME --dim N [--metric M] | NAME --field NAME:DIM[:M] ...",
            .summary = "Create a collection",
            .options = CREATE_OPTIONS,
            .argument_min = 1,
            .argument_max = 1,
            .changes = true,
            .run = run_create,
            .help = "Examples:\n  omenctl collections create books --dim 384\n"
                    "  omenctl collections create shop --field image:512:l2 --field text:384 "
                    "--shard-key tenant --shards 4 --replication 3\n"
                    "  omenctl collections create events --dim 128 --profile speed "
                    "--option index_delay=10s\n" },
    { .name = "collections set",
            .arguments = "NAME KEY=VALUE ... [--profile P]",
            .summary = "Change options of a collection",
            .options = SET_OPTIONS,
            .argument_min = 1,
            .argument_max = 16,
            .changes = true,
            .run = run_set,
            .help = "Options, for what is indexed from now on:\n"
                    "  write_mode=async_index|immediate_index|stream_only   when points are indexed\n"
                    "  index_delay=60s                                      of stream_only: so long after the write\n"
                    "  quantization=conservative|adaptive|aggressive        how short codes may get, and when\n"
                    "  segments=mixed|payload_aware|time_based              how segments are cut\n"
                    "  time_bucket=24h                                      of time_based and time_path\n"
                    "  tenant_path=PATH time_path=PATH type_path=PATH       of payload_aware: what goes together, in\n"
                    "                                                       this order; the tenant is the shard key\n"
                    "                                                       without a path; \"\" takes a rule away\n"
                    "  tenant_points=20000                                  from so many on in segments of its own\n"
                    "  payload_indexes=PATH,PATH:text,PATH:geo              indexed before others where a segment has more\n"
                    "                                                       than 64 paths; :text all words of its texts\n"
                    "  recall_target=0.95                                   what searches shall reach, at once\n"
                    "A profile (deploy/profiles) sets several; what is given beside it counts over it.\n"
                    "Examples:\n"
                    "  omenctl collections set books recall_target=0.99\n"
                    "  omenctl collections set events --profile speed index_delay=10s\n"
                    "  omenctl collections set notes segments=payload_aware tenant_path=user.id\n" },
    { .name = "collections list",
            .arguments = "",
            .summary = "All collections",
            .run = run_list,
            .help = "Examples:\n  omenctl collections list\n" },
    { .name = "collections describe",
            .arguments = "NAME",
            .summary = "Schema, size and shards of a collection",
            .argument_min = 1,
            .argument_max = 1,
            .run = run_describe,
            .help = "Examples:\n"
                    "  omenctl collections describe books\n"
                    "  omenctl --json collections describe books\n" },
    { .name = "collections drop",
            .arguments = "NAME [--yes]",
            .summary = "Remove a collection and all its points",
            .options = DROP_OPTIONS,
            .argument_min = 1,
            .argument_max = 1,
            .changes = true,
            .run = run_drop,
            .help = "Asks for the name on a terminal.\nExamples:\n  omenctl collections drop books --yes\n" },
    { .name = "collections alias set", ALIAS_SET },
    { .name = "collections alias drop", ALIAS_DROP },
    { .name = "alias set", ALIAS_SET, .hidden = true },
    { .name = "alias drop", ALIAS_DROP, .hidden = true },
    { .name = NULL },
};

/* omenctl status: the server's status document. */
#include <stdio.h>
#include <string.h>

#include "tools/omenctl/args.h"
#include "tools/omenctl/cluster.h"
#include "tools/omenctl/output.h"

#define NODES_PATH "cluster.nodes" /* as a router sees them */

/* Members of objects become rows named by their path; everything else is a value. */
static void add_rows(struct table *table, const char *prefix, struct doc doc)
{
    struct doc_iter it = doc_iter(doc);
    struct bytes key;
    struct doc value;
    while (doc_next(&it, &key, &value)) {
        char path[512];
        snprintf(path, sizeof path, "%s%s%.*s", prefix, prefix[0] == '\0' ? "" : ".", (int)key.len,
                key.len == 0 ? "" : (const char *)key.data);
        if (strcmp(path, NODES_PATH) == 0) continue; /* a table of its own */
        if (doc_type(value) == DOC_OBJECT && doc_count(value) > 0) {
            add_rows(table, path, value);
            continue;
        }
        table_cell(table, path, strlen(path));
        table_doc(table, value);
    }
}

static void bytes_cell(struct table *table, uint64_t bytes)
{
    char text[16];
    format_bytes(bytes, text);
    table_cell(table, text, strlen(text));
}

static void count_cell(struct table *table, struct doc node, const char *key)
{
    table_cellf(table, "%llu", (unsigned long long)doc_get_u64(node, key));
}

static void node_row(struct table *table, struct doc node)
{
    struct doc why = doc_get(node, "trouble");
    bool up = doc_get_bool(node, "up");
    if (why.data == NULL) why = doc_get(node, "not_ready");
    const char *state = !up ? "down" : why.data != NULL ? "not ready" : "up";
    count_cell(table, node, "node");
    table_cell(table, state, strlen(state));
    table_doc(table, doc_get(node, "address"));
    count_cell(table, node, "epoch");
    count_cell(table, node, "shards_open");
    count_cell(table, node, "points");
    bytes_cell(table, doc_get_u64(node, "disk_free_bytes"));
    bytes_cell(table, doc_get_u64(doc_get(node, "memory"), "used"));
    count_cell(table, node, "calls_outstanding");
    table_cellf(table, "%.1f ms", (double)doc_get_u64(node, "read_latency_us") / 1000);
    table_doc(table, why);
}

/* The nodes behind a router; all that they say of themselves is in --json. */
static void print_nodes(struct doc nodes)
{
    static const char *const TITLES[] = { "node", "up", "address", "map", "shards", "points", "disk free",
        "memory", "calls", "reads take", "why" };
    static const char RIGHT[] = "rllrrrrrrrl";
    struct table *table = table_new();
    for (size_t i = 0; RIGHT[i] != '\0'; i++) table_column(table, TITLES[i], RIGHT[i] == 'r');
    struct doc_iter it = doc_iter(nodes);
    struct doc node;
    while (doc_next(&it, NULL, &node)) node_row(table, node);
    putchar('\n');
    table_print(table, stdout, terminal_width());
    table_free(table);
}

static int run_status(struct cli *cli)
{
    char *json;
    omen_code rc = omen_status(cli->db, &json);
    if (rc != OMEN_OK) return fail_with(rc);
    struct json_text text;
    struct err err;
    int code = EXIT_OK;
    if (cli->json) {
        puts(json);
    } else if (json_text_init(&text, json, strlen(json), &err) != OMEN_OK) {
        code = fail_local("the status cannot be read: %s", err.message);
    } else {
        struct table *table = table_new();
        table_column(table, NULL, false);
        table_column(table, NULL, false);
        add_rows(table, "", text.doc);
        table_print(table, stdout, terminal_width());
        table_free(table);
        struct doc nodes = doc_get(doc_get(text.doc, "cluster"), "nodes");
        if (nodes.data != NULL && doc_count(nodes) > 0) print_nodes(nodes);
        json_text_fini(&text);
    }
    omen_free(json);
    return code;
}

const struct command STATUS_COMMANDS[] = {
    { .name = "status",
            .arguments = "",
            .summary = "Version, state and load of the server",
            .run = run_status,
            .help = "Examples:\n  omenctl status\n  omenctl --json status\n" },
    { .name = NULL },
};

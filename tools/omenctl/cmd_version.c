/* omenctl cluster version: the level of formats that all nodes read, and holding it before an upgrade. */
#include <stdio.h>

#include "tools/omenctl/cluster.h"

static struct {
    bool hold, release;
} version;

static const struct option VERSION_OPTIONS[] = {
    { "--hold", OPTION_FLAG, &version.hold, NULL, "do not raise it: nodes may go back to their old build" },
    { "--release", OPTION_FLAG, &version.release, NULL, "raise it by itself again" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

/* One line on the version, then the level of each node's build. */
static void print_version(struct doc reply)
{
    uint64_t at = doc_get_u64(reply, "version"), common = UINT64_MAX;
    struct table *table = table_new();
    table_column(table, "node", true);
    table_column(table, "reads up to", true);
    struct doc_iter it = doc_iter(doc_get(reply, "nodes"));
    struct doc node;
    while (doc_next(&it, NULL, &node)) {
        uint64_t level = doc_get_u64(node, "level");
        if (level < common) common = level;
        table_cellf(table, "%llu", (unsigned long long)doc_get_u64(node, "node_id"));
        if (doc_get_bool(node, "up"))
            table_cellf(table, "%llu", (unsigned long long)level);
        else
            table_cell(table, "not heard of", 12);
    }
    bool held = doc_get_bool(reply, "held"), more = common != UINT64_MAX && common > at;
    printf("version %llu%s\n", (unsigned long long)at,
            held && more   ? ", held: every node reads more"
                    : held ? ", held"
                    : more ? ", about to be raised"
                           : "");
    table_print(table, stdout, terminal_width());
    table_free(table);
}

static int run_version(struct cli *cli)
{
    struct answer a;
    if (version.hold && version.release) usage_fail(cli->command, "--hold and --release do not go together");
    answer_begin(&a, "version");
    if (version.hold || version.release) answer_flag(&a, "hold", version.hold);
    int code = answer_ask(cli, &a);
    if (code == EXIT_OK && cli->json)
        puts(a.json);
    else if (code == EXIT_OK)
        print_version(a.doc);
    answer_fini(&a);
    return code;
}

const struct command VERSION_COMMANDS[] = {
    { .name = "cluster version",
            .arguments = "[--hold | --release]",
            .summary = "The version of formats that all nodes read; hold it before an upgrade",
            .options = VERSION_OPTIONS,
            .changes = true,
            .run = run_version,
            .help = "It is raised by itself as soon as every node runs a build that reads more, and never "
                    "lowered: an older build\n"
                    "is refused from then on. Held before an upgrade it stays until --release, and "
                    "until then every node may\n"
                    "go back to its old build.\n"
                    "Examples:\n  omenctl cluster version\n  omenctl cluster version --hold\n"
                    "  omenctl cluster version --release\n" },
    { .name = NULL },
};

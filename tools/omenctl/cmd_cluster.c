/* omenctl cluster and node: making a cluster, its members, and all of it on a page. */
#include <stdio.h>
#include <string.h>

#include "tools/omenctl/cluster.h"

/* ---- tables ---- */

static void bytes_cell(struct table *table, uint64_t bytes)
{
    char text[16];
    format_bytes(bytes, text);
    table_cell(table, text, strlen(text));
}

static void number_cell(struct table *table, struct doc doc, const char *key)
{
    table_cellf(table, "%llu", (unsigned long long)doc_get_u64(doc, key));
}

static void word_cell(struct table *table, bool is, const char *word)
{
    table_cell(table, is ? word : "", is ? strlen(word) : 0);
}

static void columns(struct table *table, const char *const *titles, const char *right)
{
    for (size_t i = 0; right[i] != '\0'; i++) table_column(table, titles[i], right[i] == 'r');
}

static void done_print(struct table *table)
{
    table_print(table, stdout, terminal_width());
    table_free(table);
}

/* "1.2 GB of 8.0 GB", of what is accounted against the budget; the components are in --json. */
static void memory_cell(struct table *table, struct doc memory)
{
    char used[16], budget[16];
    format_bytes(doc_get_u64(memory, "used"), used);
    format_bytes(doc_get_u64(memory, "budget"), budget);
    if (doc_get_u64(memory, "budget") == 0)
        table_cell(table, "", 0);
    else
        table_cellf(table, "%s of %s%s", used, budget, doc_get_bool(memory, "full") ? ", full" : "");
}

/* Ahead of the cluster's median; "" where that is not known. */
static void clock_cell(struct table *table, struct doc clock)
{
    if (!doc_get_bool(clock, "known"))
        table_cell(table, "", 0);
    else
        table_cellf(table, "%+lld ms", (long long)doc_get_i64(clock, "skew_ms"));
}

/* Why a node is not ready, or what else keeps it from its work. */
static void why_cell(struct table *table, struct doc node)
{
    struct bytes why = doc_get_string(node, "why");
    if (why.len > 0 || !doc_get_bool(doc_get(node, "clock"), "off"))
        table_doc(table, doc_get(node, "why"));
    else
        table_cellf(table,
                "leads no shard: its clock is off (set it; more than 500 ms from the median is too much)");
}

static void print_nodes(struct doc nodes)
{
    static const char *const TITLES[] = { "node", "state", "up", "address", "labels", "replicas", "leaders",
        "points", "bytes", "disk free", "memory", "clock", "group", "why" };
    struct table *table = table_new();
    columns(table, TITLES, "rllllrrrrrrrll");
    struct doc_iter it = doc_iter(nodes);
    struct doc node;
    while (doc_next(&it, NULL, &node)) {
        bool up = doc_get_bool(node, "up");
        struct bytes at = doc_get_string(node, "state");
        if (at.len == 7 && memcmp(at.data, "removed", 7) == 0)
            continue; /* its id is all that is left of it */
        number_cell(table, node, "node_id");
        table_doc(table, doc_get(node, "state"));
        const char *state = !up ? "down" : doc_get_bool(node, "ready") ? "up" : "not ready";
        table_cell(table, state, strlen(state));
        table_doc(table, doc_get(node, "address"));
        table_doc(table, doc_get(node, "labels"));
        number_cell(table, node, "replicas");
        number_cell(table, node, "leaders");
        number_cell(table, node, "points");
        bytes_cell(table, doc_get_u64(node, "bytes"));
        uint64_t total = doc_get_u64(node, "disk_total"), left = doc_get_u64(node, "disk_free");
        char text[16];
        format_bytes(left, text);
        if (total == 0)
            table_cell(table, "", 0);
        else
            table_cellf(table, "%s (%.0f %%)", text, 100.0 * (double)left / (double)total);
        memory_cell(table, doc_get(node, "memory"));
        clock_cell(table, doc_get(node, "clock"));
        const char *role = doc_get_bool(node, "voter") ? "voter" : "standby";
        table_cell(table, role, strlen(role));
        why_cell(table, node);
    }
    done_print(table);
}

static void replica_row(struct table *table, struct doc shard, struct doc replica)
{
    uint64_t first = doc_get_u64(shard, "slot_first"), count = doc_get_u64(shard, "slot_count");
    number_cell(table, shard, "shard_id");
    table_doc(table, doc_get(shard, "collection"));
    table_cellf(table, "%llu-%llu", (unsigned long long)first,
            (unsigned long long)(count == 0 ? first : first + count - 1));
    number_cell(table, replica, "node_id");
    word_cell(table, doc_get_bool(replica, "leader"), "leader");
    table_doc(table, doc_get(replica, "role"));
    if (doc_get(replica, "state").data != NULL)
        table_doc(table, doc_get(replica, "state"));
    else
        word_cell(table, doc_get_bool(replica, "ready"), "ready");
    number_cell(table, replica, "term");
    number_cell(table, replica, "applied");
    number_cell(table, replica, "lag");
    number_cell(table, replica, "points");
    bytes_cell(table, doc_get_u64(replica, "bytes"));
    table_cellf(table, "%.1f s", (double)doc_get_u64(replica, "stale_ms") / 1000);
}

static void print_shards(struct doc shards)
{
    static const char *const TITLES[] = { "shard", "collection", "slots", "node", "leads", "role", "state",
        "term", "applied", "lag", "points", "bytes", "heard" };
    struct table *table = table_new();
    columns(table, TITLES, "rllrlllrrrrrr");
    struct doc_iter it = doc_iter(shards);
    struct doc shard, replica;
    while (doc_next(&it, NULL, &shard)) {
        struct doc_iter replicas = doc_iter(doc_get(shard, "replicas"));
        while (doc_next(&replicas, NULL, &replica)) replica_row(table, shard, replica);
    }
    done_print(table);
}

/* Moves and bytes that are done, of those that are known of: begun, and expected in later rounds. */
void print_plans(struct doc plans)
{
    static const char *const TITLES[] = { "plan", "why", "node", "round", "moves done", "of", "copied", "of",
        "", "trouble" };
    struct table *table = table_new();
    columns(table, TITLES, "rlrrrrrrll");
    struct doc_iter it = doc_iter(plans);
    struct doc plan;
    while (doc_next(&it, NULL, &plan)) {
        number_cell(table, plan, "plan_id");
        table_doc(table, doc_get(plan, "why"));
        if (doc_get_u64(plan, "node_id") == 0)
            table_cell(table, "", 0);
        else
            number_cell(table, plan, "node_id");
        number_cell(table, plan, "rounds");
        number_cell(table, plan, "moves_done");
        table_cellf(table, "%llu",
                (unsigned long long)(doc_get_u64(plan, "moves_begun") + doc_get_u64(plan, "moves_ahead")));
        bytes_cell(table, doc_get_u64(plan, "bytes_done"));
        bytes_cell(table, doc_get_u64(plan, "bytes_begun") + doc_get_u64(plan, "bytes_ahead"));
        word_cell(table, doc_get_bool(plan, "canceled"), "canceled");
        table_doc(table, doc_get(plan, "trouble"));
    }
    done_print(table);
}

void print_operations(struct doc operations)
{
    static const char *const TITLES[] = { "operation", "plan", "shard", "collection", "from", "to", "step",
        "why", "copied", "of", "trouble" };
    struct table *table = table_new();
    columns(table, TITLES, "rrrlrrllrrl");
    struct doc_iter it = doc_iter(operations);
    struct doc op;
    while (doc_next(&it, NULL, &op)) {
        number_cell(table, op, "op_id");
        number_cell(table, op, "plan_id");
        number_cell(table, op, "shard_id");
        table_doc(table, doc_get(op, "collection"));
        number_cell(table, op, "from_node");
        number_cell(table, op, "to_node");
        table_doc(table, doc_get(op, "step"));
        table_doc(table, doc_get(op, "why"));
        bytes_cell(table, doc_get_u64(op, "bytes_done"));
        bytes_cell(table, doc_get_u64(op, "bytes_total"));
        table_doc(table, doc_get(op, "trouble"));
    }
    done_print(table);
}

static void print_header(struct doc cluster)
{
    struct bytes id = doc_get_string(cluster, "id"), name = doc_get_string(cluster, "name");
    uint64_t throttle = doc_get_u64(cluster, "throttle_bytes_per_s"),
             leader = doc_get_u64(cluster, "leader_node");
    char text[16];
    format_bytes(throttle, text);
    printf("cluster %.*s%s%.*s%s: ", (int)(name.len == 0 ? id.len : name.len),
            (const char *)(name.len == 0 ? id.data : name.data), name.len == 0 ? "" : " (",
            name.len == 0 ? 0 : (int)id.len, name.len == 0 ? "" : (const char *)id.data,
            name.len == 0 ? "" : ")");
    if (leader == 0)
        printf("its group has no leader: a majority of its voters cannot be reached, nothing can be changed");
    else
        printf("led by node %llu in term %llu", (unsigned long long)leader,
                (unsigned long long)doc_get_u64(cluster, "term"));
    if (doc_get(cluster, "version").data != NULL)
        printf(", version %llu%s", (unsigned long long)doc_get_u64(cluster, "version"),
                doc_get_bool(cluster, "version_held") ? " (held)" : "");
    printf(", map %llu, copies %s%s\n", (unsigned long long)doc_get_u64(cluster, "epoch"),
            throttle == 0 ? "as fast as they go" : text, throttle == 0 ? "" : "/s at most");
}

/* ---- status ---- */

static int run_status(struct cli *cli)
{
    struct answer a;
    answer_begin(&a, "status");
    int code = answer_ask(cli, &a);
    if (code == EXIT_OK && cli->json) {
        puts(a.json);
    } else if (code == EXIT_OK) {
        print_header(doc_get(a.doc, "cluster"));
        putchar('\n');
        print_nodes(doc_get(a.doc, "nodes"));
        struct doc shards = doc_get(a.doc, "shards"), operations = doc_get(a.doc, "operations");
        if (shards.data != NULL && doc_count(shards) > 0) {
            putchar('\n');
            print_shards(shards);
        }
        struct doc plans = doc_get(a.doc, "plans");
        if (plans.data != NULL && doc_count(plans) > 0) {
            putchar('\n');
            print_plans(plans);
        }
        if (operations.data != NULL && doc_count(operations) > 0) {
            putchar('\n');
            print_operations(operations);
        }
    }
    answer_fini(&a);
    return code;
}

static int run_node_list(struct cli *cli)
{
    struct answer a;
    answer_begin(&a, "status");
    int code = answer_ask(cli, &a);
    struct doc nodes = doc_get(a.doc, "nodes");
    if (code == EXIT_OK && cli->json && nodes.data != NULL) {
        struct buf out;
        buf_init(&out);
        json_write(nodes, &out);
        put_line(&out);
        buf_fini(&out);
    } else if (code == EXIT_OK) {
        print_nodes(nodes);
    }
    answer_fini(&a);
    return code;
}

/* ---- changes ---- */

/* Asks; prints the document, or one sentence in which %llu is the number at `member`. */
static int change(struct cli *cli, struct answer *a, const char *before, const char *member, uint64_t number,
        const char *after)
{
    int code = answer_ask(cli, a);
    if (code == EXIT_OK && cli->json)
        puts(a->json);
    else if (code == EXIT_OK)
        printf("%s%llu%s\n", before,
                (unsigned long long)(member == NULL ? number : doc_get_u64(a->doc, member)), after);
    answer_fini(a);
    return code;
}

static const char *init_name;

static const struct option INIT_OPTIONS[] = {
    { "--name", OPTION_TEXT, &init_name, "NAME", "shown by cluster status" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static int run_init(struct cli *cli)
{
    struct answer a;
    answer_begin(&a, "init");
    answer_text(&a, "name", init_name);
    return change(cli, &a, "made a cluster; its first node has id ", "node_id", 0,
            ": others join by cluster.join, or omenctl node add");
}

static int run_throttle(struct cli *cli)
{
    struct answer a;
    uint64_t rate = args_bytes(cli, "RATE", cli->arguments[0]);
    answer_begin(&a, "throttle");
    answer_u64(&a, "bytes_per_s", rate);
    return change(cli, &a,
            rate == 0 ? "copies go as fast as they can; limit " : "each copy between nodes takes at most ",
            NULL, rate, " bytes/s");
}

static const char *add_labels;

static const struct option ADD_OPTIONS[] = {
    { "--labels", OPTION_TEXT, &add_labels, "L", "zone=a,rack=2: replicas are spread over the first" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static int run_node_add(struct cli *cli)
{
    struct answer a;
    answer_begin(&a, "node_add");
    answer_text(&a, "address", cli->arguments[0]);
    answer_text(&a, "labels", add_labels);
    return change(cli, &a, "added as node ", "node_id", 0, "; omenctl rebalance moves shards to it");
}

static int run_node_activate(struct cli *cli)
{
    struct answer a;
    uint32_t node = args_node(cli, cli->arguments[0]);
    answer_begin(&a, "node_activate");
    answer_u64(&a, "node_id", node);
    return change(cli, &a, "node ", NULL, node, " takes replicas again");
}

static int run_node_remove(struct cli *cli)
{
    struct answer a;
    uint32_t node = args_node(cli, cli->arguments[0]);
    answer_begin(&a, "node_remove");
    answer_u64(&a, "node_id", node);
    return change(cli, &a, "node ", NULL, node,
            " is no member any more; its data directory is of no more use");
}

static int run_node_label(struct cli *cli)
{
    struct answer a;
    uint32_t node = args_node(cli, cli->arguments[0]);
    answer_begin(&a, "node_label");
    answer_u64(&a, "node_id", node);
    answer_text(&a, "labels", cli->arguments[1]);
    return change(cli, &a, "labelled node ", NULL, node, "");
}

static struct {
    bool dry_run, wait;
} drain;

static const struct option DRAIN_OPTIONS[] = {
    { "--dry-run", OPTION_FLAG, &drain.dry_run, NULL, "print the moves and begin none" },
    { "--wait", OPTION_FLAG, &drain.wait, NULL, "until the moves have ended" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static int run_node_drain(struct cli *cli)
{
    struct answer a;
    uint32_t node = args_node(cli, cli->arguments[0]);
    answer_begin(&a, "node_drain");
    answer_u64(&a, "node_id", node);
    answer_flag(&a, "dry_run", drain.dry_run);
    int code = answer_ask(cli, &a);
    uint64_t plan_id = doc_get_u64(a.doc, "plan_id");
    if (code == EXIT_OK && cli->json) {
        puts(a.json);
    } else if (code == EXIT_OK) {
        print_moves(doc_get(a.doc, "moves"));
        if (drain.dry_run)
            printf("nothing was begun\n");
        else
            printf("node %u takes no replicas any more; plan %llu\n", node, (unsigned long long)plan_id);
        struct bytes trouble = doc_get_string(a.doc, "trouble");
        if (trouble.len > 0)
            printf("it waits for a place: %.*s\n", (int)trouble.len, (const char *)trouble.data);
    }
    answer_fini(&a);
    return code == EXIT_OK && drain.wait && plan_id != 0 ? wait_for_moves(cli, plan_id, 0) : code;
}

const struct command CLUSTER_COMMANDS[] = {
    { .name = "cluster init",
            .arguments = "[--name NAME]",
            .summary = "Make a cluster of nodes that are in none",
            .options = INIT_OPTIONS,
            .changes = true,
            .run = run_init,
            .help = "The router asks the node with the smallest address of those it was given to be "
                    "the first, and only\n"
                    "while all of them answer: one that does not might have a cluster already.\n"
                    "Examples:\n  omenctl cluster init\n  omenctl cluster init --name books\n" },
    { .name = "cluster status",
            .arguments = "",
            .summary = "Nodes, shards, replicas and operations",
            .run = run_status,
            .help = "A shard has a row for each replica: whether it leads, its role in the Raft "
                    "group, how many entries it\n"
                    "is behind the furthest (lag), and how long ago its node was heard of.\n"
                    "Examples:\n  omenctl cluster status\n  omenctl --json cluster status\n" },
    { .name = "cluster throttle",
            .arguments = "RATE",
            .summary = "Bound the bytes per second that a copy between nodes takes",
            .argument_min = 1,
            .argument_max = 1,
            .changes = true,
            .run = run_throttle,
            .help = "Examples:\n  omenctl cluster throttle 50MB\n  omenctl cluster throttle 0     # "
                    "no limit\n" },
    { .name = "node list",
            .arguments = "",
            .summary = "All nodes",
            .run = run_node_list,
            .help = "Examples:\n  omenctl node list\n" },
    { .name = "node add",
            .arguments = "ADDRESS [--labels L]",
            .summary = "Take a running node that is in no cluster into this one",
            .options = ADD_OPTIONS,
            .argument_min = 1,
            .argument_max = 1,
            .changes = true,
            .run = run_node_add,
            .help = "ADDRESS is its node.listen, as others reach it. Nothing moves by itself: "
                    "omenctl rebalance shows what would.\n"
                    "Examples:\n  omenctl node add tcp://10.0.0.4:7710 --labels zone=b\n" },
    { .name = "node drain",
            .arguments = "ID [--dry-run] [--wait]",
            .summary = "Move all replicas off a node; it takes no new ones",
            .options = DRAIN_OPTIONS,
            .argument_min = 1,
            .argument_max = 1,
            .changes = true,
            .run = run_node_drain,
            .help = "Examples:\n  omenctl node drain 3 --dry-run\n  omenctl node drain 3 --wait && "
                    "omenctl node remove 3\n" },
    { .name = "node activate",
            .arguments = "ID",
            .summary = "Let a drained node take replicas again",
            .argument_min = 1,
            .argument_max = 1,
            .changes = true,
            .run = run_node_activate,
            .help = "Examples:\n  omenctl node activate 3\n" },
    { .name = "node remove",
            .arguments = "ID",
            .summary = "Forget a node that holds no replica",
            .argument_min = 1,
            .argument_max = 1,
            .changes = true,
            .run = run_node_remove,
            .help = "Its id is never used again. A node that is gone for ever is drained first: its "
                    "shards are copied from\n"
                    "their other replicas.\nExamples:\n  omenctl node remove 3\n" },
    { .name = "node label",
            .arguments = "ID LABELS",
            .summary = "Say which failure domain a node is in",
            .argument_min = 2,
            .argument_max = 2,
            .changes = true,
            .run = run_node_label,
            .help = "What stands before the first comma is the domain: the replicas of a shard are "
                    "spread over domains first.\n"
                    "Examples:\n  omenctl node label 3 zone=b,rack=7\n" },
    { .name = NULL },
};

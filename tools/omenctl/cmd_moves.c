/* omenctl replica, leader, rebalance, operations: where replicas lie, and watching them move.
 *
 * Moves are the cluster's: they go on when omenctl ends, and after a change of leader. Waiting is asking for the status
 * again and again. */
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tools/omenctl/cluster.h"

#define LOOK_AGAIN_MS 500u
#define LOOKS_FAILED_MAX 60u /* a cluster without a leader for so many looks is told */

static void sleep_ms(uint32_t ms)
{
    struct timespec left = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000L };
    (void)nanosleep(&left, NULL);
}

static void node_cell(struct table *table, uint64_t node)
{
    if (node == 0)
        table_cell(table, "-", 1);
    else
        table_cellf(table, "%llu", (unsigned long long)node);
}

void print_moves(struct doc moves)
{
    static const char *const TITLES[] = { "shard", "collection", "from", "to", "bytes", "why", "round" };
    struct table *table = table_new();
    struct doc_iter it = doc_iter(moves);
    struct doc move;
    bool rounds = false; /* more than one */
    while (doc_next(&it, NULL, &move)) rounds |= doc_get_u64(move, "round") > 1;
    for (int i = 0; i < 6 + rounds; i++) table_column(table, TITLES[i], i != 1 && i != 5);
    it = doc_iter(moves);
    while (doc_next(&it, NULL, &move)) {
        char text[16];
        table_cellf(table, "%llu", (unsigned long long)doc_get_u64(move, "shard_id"));
        table_doc(table, doc_get(move, "collection"));
        node_cell(table, doc_get_u64(move, "from_node"));
        node_cell(table, doc_get_u64(move, "to_node"));
        format_bytes(doc_get_u64(move, "bytes"), text);
        table_cell(table, text, strlen(text));
        table_doc(table, doc_get(move, "why"));
        if (rounds) table_cellf(table, "%llu", (unsigned long long)doc_get_u64(move, "round"));
    }
    if (moves.data != NULL && doc_count(moves) > 0) table_print(table, stdout, terminal_width());
    table_free(table);
}

/* ---- waiting ---- */

struct look {
    bool plan;     /* it is one that is under way, with all its rounds */
    uint32_t left; /* moves: under way, or expected in later rounds */
    uint64_t bytes_done, bytes_total;
    uint32_t done, canceled, rounds;
    char trouble[200]; /* of the plan, or of one of its moves */
};

static bool is_meant(struct doc op, uint64_t plan_id, uint64_t op_id)
{
    return op_id != 0 ? doc_get_u64(op, "op_id") == op_id : doc_get_u64(op, "plan_id") == plan_id;
}

static void trouble_take(struct doc object, struct look *look)
{
    struct bytes trouble = doc_get_string(object, "trouble");
    if (trouble.len > 0)
        snprintf(look->trouble, sizeof look->trouble, "%.*s", (int)trouble.len, (const char *)trouble.data);
}

/* Of a plan the whole is shown: what ended in this round and the former ones, and what is to come. */
static void look_plan(struct doc plan, uint64_t under_way_bytes, struct look *look)
{
    look->done = (uint32_t)doc_get_u64(plan, "moves_done");
    look->canceled = (uint32_t)doc_get_u64(plan, "moves_canceled");
    look->rounds = (uint32_t)doc_get_u64(plan, "rounds");
    look->bytes_done = doc_get_u64(plan, "bytes_done") + under_way_bytes;
    look->bytes_total = doc_get_u64(plan, "bytes_begun") + doc_get_u64(plan, "bytes_ahead");
    if (look->bytes_done > look->bytes_total) look->bytes_total = look->bytes_done; /* shards grow */
    if (look->plan) look->left += (uint32_t)doc_get_u64(plan, "moves_ahead");
    if (!look->plan && look->canceled == 0)
        look->canceled = doc_get_bool(plan, "canceled"); /* before its first */
    trouble_take(plan, look);
}

static void look_take(struct doc status, uint64_t plan_id, uint64_t op_id, struct look *look)
{
    struct doc_iter it = doc_iter(doc_get(status, "operations"));
    struct doc op;
    *look = (struct look){ .left = 0 };
    while (doc_next(&it, NULL, &op)) {
        if (!is_meant(op, plan_id, op_id)) continue;
        look->left++;
        look->bytes_done += doc_get_u64(op, "bytes_done");
        look->bytes_total += doc_get_u64(op, "bytes_total");
        trouble_take(op, look);
    }
    it = doc_iter(doc_get(status, "history"));
    while (doc_next(&it, NULL, &op)) {
        if (!is_meant(op, plan_id, op_id)) continue;
        struct bytes outcome = doc_get_string(op, "outcome");
        bool done = outcome.len == 4 && memcmp(outcome.data, "done", 4) == 0;
        look->done += done;
        look->canceled += !done;
    }
    static const char *const lists[] = { "plans", "plans_ended" };
    uint64_t under_way_bytes = look->bytes_done;
    for (int i = 0; op_id == 0 && i < 2; i++) {
        it = doc_iter(doc_get(status, lists[i]));
        while (doc_next(&it, NULL, &op)) {
            if (doc_get_u64(op, "plan_id") != plan_id) continue;
            look->plan = i == 0;
            look_plan(op, under_way_bytes, look);
        }
    }
}

/* On a terminal one line that is drawn anew; elsewhere a line when something has changed. */
static void look_show(const struct look *look, char *last, size_t last_bytes)
{
    char done[16], total[16], round[32] = "", line[360];
    format_bytes(look->bytes_done, done);
    format_bytes(look->bytes_total, total);
    if (look->rounds > 1) snprintf(round, sizeof round, " in round %u", look->rounds);
    snprintf(line, sizeof line, "%u moves left, %u done%s%s%s%s%s%s%s", look->left, look->done, round,
            look->bytes_total > 0 ? ", copying " : "", look->bytes_total > 0 ? done : "",
            look->bytes_total > 0 ? " of " : "", look->bytes_total > 0 ? total : "",
            look->trouble[0] == '\0' ? "" : ": ", look->trouble);
    if (strcmp(line, last) == 0) return;
    snprintf(last, last_bytes, "%s", line);
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%s\033[K", line);
    else
        fprintf(stderr, "%s\n", line);
    fflush(stderr);
}

static int look_end(struct cli *cli, const struct look *look)
{
    if (isatty(STDERR_FILENO)) fputc('\n', stderr);
    if (look->canceled > 0)
        return fail_local("%u moves were canceled, %u are done", look->canceled, look->done);
    if (!cli->json) printf("all moves are done\n");
    return EXIT_OK;
}

int wait_for_moves(struct cli *cli, uint64_t plan_id, uint64_t op_id)
{
    char last[360] = "";
    for (uint32_t failed = 0;; sleep_ms(LOOK_AGAIN_MS)) {
        struct answer a;
        struct look look;
        struct err err;
        answer_begin(&a, "status");
        omen_code rc = answer_ask_quietly(cli, &a);
        if (rc == OMEN_OK && json_text_init(&a.text, a.json, strlen(a.json), &err) == OMEN_OK) {
            look_take(a.text.doc, plan_id, op_id, &look);
            /* Who does not lead the cluster's group may be behind: nothing is over before a leader says so. */
            bool led = doc_get_u64(doc_get(a.text.doc, "cluster"), "leader_node") != 0;
            look_show(&look, last, sizeof last);
            answer_fini(&a);
            if (look.left == 0 && !look.plan && led) return look_end(cli, &look);
            failed = led ? 0 : failed + 1;
        } else {
            answer_fini(&a);
            failed++;
        }
        if (failed < LOOKS_FAILED_MAX) continue;
        if (rc != OMEN_OK) return fail_with(rc);
        return fail_local("the cluster has no leader; the moves go on when it has one");
    }
}

/* ---- replica move, leader transfer ---- */

static bool move_wait;

static const struct option MOVE_OPTIONS[] = {
    { "--wait", OPTION_FLAG, &move_wait, NULL, "until the move has ended" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static int run_replica_move(struct cli *cli)
{
    struct answer a;
    answer_begin(&a, "replica_move");
    answer_u64(&a, "shard_id", args_number(cli, "id of a shard", cli->arguments[0]));
    answer_u64(&a, "from_node", args_node_or_none(cli, cli->arguments[1]));
    answer_u64(&a, "to_node", args_node_or_none(cli, cli->arguments[2]));
    int code = answer_ask(cli, &a);
    uint64_t op_id = doc_get_u64(a.doc, "op_id");
    if (code == EXIT_OK && cli->json)
        puts(a.json);
    else if (code == EXIT_OK)
        printf("operation %llu has begun\n", (unsigned long long)op_id);
    answer_fini(&a);
    return code == EXIT_OK && move_wait ? wait_for_moves(cli, 0, op_id) : code;
}

static int run_leader_transfer(struct cli *cli)
{
    struct answer a;
    bool named = cli->argument_count > 1;
    answer_begin(&a, "leader_transfer");
    answer_u64(&a, "shard_id", args_number(cli, "id of a shard", cli->arguments[0]));
    answer_u64(&a, "to_node", named ? args_node(cli, cli->arguments[1]) : 0);
    int code = answer_ask(cli, &a);
    uint64_t node = doc_get_u64(a.doc, "node_id");
    if (code == EXIT_OK && cli->json)
        puts(a.json);
    else if (code == EXIT_OK && node != 0)
        printf("leadership goes to node %llu\n", (unsigned long long)node);
    else if (code == EXIT_OK)
        printf("leadership goes to another node\n");
    answer_fini(&a);
    return code;
}

/* ---- rebalance ---- */

static struct {
    bool apply, wait;
    const char *throttle;
} rebalance;

static const struct option REBALANCE_OPTIONS[] = {
    { "--apply", OPTION_FLAG, &rebalance.apply, NULL, "begin the moves; without it the plan alone" },
    { "--throttle", OPTION_TEXT, &rebalance.throttle, "RATE",
            "bytes per second of each copy, as 50MB; 0 = no limit" },
    { "--wait", OPTION_FLAG, &rebalance.wait, NULL, "until the moves have ended" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static void print_plan(struct doc plan)
{
    struct doc moves = doc_get(plan, "moves");
    uint64_t plan_id = doc_get_u64(plan, "plan_id");
    uint32_t count = moves.data == NULL ? 0 : doc_count(moves);
    char total[16], minimum[16];
    print_moves(moves);
    if (count == 0 && plan_id != 0) {
        printf("nothing to move beside what plan %llu does\n", (unsigned long long)plan_id);
        return;
    }
    if (count == 0) {
        printf("nothing to move: the nodes are as even as they can be\n");
        return;
    }
    format_bytes(doc_get_u64(plan, "bytes_total"), total);
    format_bytes(doc_get_u64(plan, "bytes_minimum"), minimum);
    printf("%u moves%s, %s (to even out wholly takes at least %s)", count,
            doc_get_bool(plan, "more") ? " and more after them" : "", total, minimum);
    if (plan_id != 0)
        printf("; begun as plan %llu\n", (unsigned long long)plan_id);
    else
        printf("; --apply begins them\n");
}

static int run_rebalance(struct cli *cli)
{
    struct answer a;
    if (rebalance.throttle != NULL && cli->op_id != NULL)
        usage_fail(cli->command,
                "--throttle is a change of its own, --op-id is of one: omenctl cluster throttle");
    if (rebalance.throttle != NULL) {
        answer_begin(&a, "throttle");
        answer_u64(&a, "bytes_per_s", args_bytes(cli, "--throttle", rebalance.throttle));
        int code = answer_ask(cli, &a);
        answer_fini(&a);
        if (code != EXIT_OK) return code;
    }
    answer_begin(&a, "rebalance");
    answer_flag(&a, "apply", rebalance.apply);
    int code = answer_ask(cli, &a);
    uint64_t plan_id = doc_get_u64(a.doc, "plan_id");
    if (code == EXIT_OK && cli->json)
        puts(a.json);
    else if (code == EXIT_OK)
        print_plan(a.doc);
    answer_fini(&a);
    fflush(stdout);
    return code == EXIT_OK && rebalance.wait && plan_id != 0 ? wait_for_moves(cli, plan_id, 0) : code;
}

/* ---- operations ---- */

static bool operations_watch;

static const struct option OPERATIONS_OPTIONS[] = {
    { "--watch", OPTION_FLAG, &operations_watch, NULL, "again and again until none is under way" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static void operations_show(struct cli *cli, struct doc operations, struct doc plans)
{
    bool planned = plans.data != NULL && doc_count(plans) > 0;
    if (cli->json) {
        struct buf out;
        buf_init(&out);
        json_write(operations, &out);
        put_line(&out);
        buf_fini(&out);
    } else if (doc_count(operations) == 0 && !planned) {
        printf("no operation is under way\n");
    } else {
        if (planned) print_plans(plans);
        if (doc_count(operations) > 0) print_operations(operations);
    }
    fflush(stdout);
}

static int run_operations(struct cli *cli)
{
    for (;; sleep_ms(LOOK_AGAIN_MS)) {
        struct answer a;
        answer_begin(&a, "status");
        int code = answer_ask(cli, &a);
        struct doc operations = doc_get(a.doc, "operations");
        struct doc plans = doc_get(a.doc, "plans");
        bool more = code == EXIT_OK && operations.data != NULL &&
                (doc_count(operations) > 0 || (plans.data != NULL && doc_count(plans) > 0));
        if (code == EXIT_OK && operations.data != NULL) {
            if (operations_watch && isatty(STDOUT_FILENO)) printf("\033[H\033[2J");
            operations_show(cli, operations, plans);
        }
        answer_fini(&a);
        if (!operations_watch || !more) return code;
    }
}

static struct {
    uint64_t plan;
    bool all;
} cancel;

static const struct option CANCEL_OPTIONS[] = {
    { "--plan", OPTION_U64, &cancel.plan, "ID", "all operations of a plan" },
    { "--all", OPTION_FLAG, &cancel.all, NULL, "all operations" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

static int run_cancel(struct cli *cli)
{
    struct answer a;
    uint32_t ways = (cli->argument_count > 0) + (cancel.plan != 0) + cancel.all;
    if (ways != 1) usage_fail(cli->command, "give the id of an operation, --plan ID or --all");
    answer_begin(&a, "cancel");
    if (cli->argument_count > 0)
        answer_u64(&a, "op_id", args_number(cli, "id of an operation", cli->arguments[0]));
    if (cancel.plan != 0) answer_u64(&a, "plan_id", cancel.plan);
    if (cancel.all) answer_flag(&a, "all", true);
    int code = answer_ask(cli, &a);
    if (code == EXIT_OK && cli->json)
        puts(a.json);
    else if (code == EXIT_OK)
        printf("canceled: %llu\n", (unsigned long long)doc_get_u64(a.doc, "canceled"));
    answer_fini(&a);
    return code;
}

const struct command MOVE_COMMANDS[] = {
    { .name = "replica move",
            .arguments = "SHARD FROM TO [--wait]",
            .summary = "Move a shard's replica from one node to another",
            .options = MOVE_OPTIONS,
            .argument_min = 3,
            .argument_max = 3,
            .changes = true,
            .run = run_replica_move,
            .help = "FROM and TO are ids of nodes; \"-\" for FROM adds a replica, \"-\" for TO "
                    "removes one.\n"
                    "Examples:\n  omenctl replica move 12 1 4 --wait\n  omenctl replica move 12 - 4\n" },
    { .name = "leader transfer",
            .arguments = "SHARD [NODE]",
            .summary = "Let another replica lead a shard",
            .argument_min = 1,
            .argument_max = 2,
            .run = run_leader_transfer,
            .help = "Examples:\n  omenctl leader transfer 12\n  omenctl leader transfer 12 3\n" },
    { .name = "rebalance",
            .arguments = "[--apply] [--throttle RATE] [--wait]",
            .summary = "Even out what the nodes hold: print the plan, or carry it out",
            .options = REBALANCE_OPTIONS,
            .changes = true,
            .run = run_rebalance,
            .help = "The moves are planned again when they have ended, until nothing is left to move. A plan goes on\n"
                    "when omenctl ends; omenctl operations shows it, operations cancel ends it.\n"
                    "Examples:\n  omenctl rebalance\n  omenctl rebalance --apply --throttle 50MB "
                    "--wait\n" },
    { .name = "operations",
            .arguments = "[--watch]",
            .summary = "Moves of replicas that are under way",
            .options = OPERATIONS_OPTIONS,
            .run = run_operations,
            .help = "Examples:\n  omenctl operations --watch\n" },
    { .name = "operations cancel",
            .arguments = "ID | --plan ID | --all",
            .summary = "End moves that have not switched over yet",
            .options = CANCEL_OPTIONS,
            .argument_max = 1,
            .changes = true,
            .run = run_cancel,
            .help = "What was copied is dropped again; a move that the map shows already is finished. The plan of an\n"
                    "operation begins no others any more.\n"
                    "Examples:\n  omenctl operations cancel 41\n  omenctl operations cancel --plan 40\n" },
    { .name = NULL },
};

/* omenctl points: get, delete, scroll, count. Upserts are in cmd_upsert.c, payload changes in cmd_payload.c. */
#include "tools/omenctl/cmd_points.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tools/omenctl/output.h"

#define DELETE_BATCH 1000u
#define SCROLL_PAGE 500u
#define ID_LINE_BYTES_MAX 256

static struct {
    const char *shard_key, *from, *filter, *consistency;
    bool with_vectors, no_payload, all, allow_partial;
    uint64_t limit;
} o = { .limit = 20 };

static const struct option GET_OPTIONS[] = {
    { "--shard-key", OPTION_TEXT, &o.shard_key, "JSON", "shard key value of these points" },
    { "--with-vectors", OPTION_FLAG, &o.with_vectors, NULL, "vectors too (with --json)" },
    { "--consistency", OPTION_TEXT, &o.consistency, "LEVEL", "session (default), eventual, linearizable" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};
static const struct option DELETE_OPTIONS[] = {
    { "--from", OPTION_TEXT, &o.from, "FILE", "ids from a file, one a line; - is standard input" },
    { "--shard-key", OPTION_TEXT, &o.shard_key, "JSON", "shard key value of these points" },
    { "--filter", OPTION_TEXT, &o.filter, "JSON", "all points that match" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};
static const struct option SCROLL_OPTIONS[] = {
    { "--limit", OPTION_U64, &o.limit, "N", "how many points (20)" },
    { "--all", OPTION_FLAG, &o.all, NULL, "all of them" },
    { "--filter", OPTION_TEXT, &o.filter, "JSON", "only points that match" },
    { "--with-vectors", OPTION_FLAG, &o.with_vectors, NULL, "vectors too (with --json)" },
    { "--no-payload", OPTION_FLAG, &o.no_payload, NULL, "ids only" },
    { "--consistency", OPTION_TEXT, &o.consistency, "LEVEL", "session (default), eventual, linearizable" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};
static const struct option COUNT_OPTIONS[] = {
    { "--filter", OPTION_TEXT, &o.filter, "JSON", "only points that match" },
    { "--allow-partial", OPTION_FLAG, &o.allow_partial, NULL, "count without shards that cannot be reached" },
    { "--consistency", OPTION_TEXT, &o.consistency, "LEVEL", "session (default), eventual, linearizable" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

/* ---- shared ---- */

omen_id *ids_of_arguments(const struct cli *cli, uint32_t first, uint32_t count)
{
    omen_id *ids = mem_must_alloc((count + 1) * sizeof *ids);
    for (uint32_t i = 0; i < count; i++) ids[i] = args_id(cli, cli->arguments[first + i]);
    return ids;
}

const char **repeat_text(const char *text, size_t count)
{
    if (text == NULL) return NULL;
    const char **texts = mem_must_alloc((count + 1) * sizeof *texts);
    for (size_t i = 0; i < count; i++) texts[i] = text;
    return texts;
}

int tell_affected(const struct cli *cli, const char *verb, uint64_t affected)
{
    if (cli->json)
        printf("{\"%s\":%llu}\n", verb, (unsigned long long)affected);
    else
        printf("%s %llu point%s\n", verb, (unsigned long long)affected, affected == 1 ? "" : "s");
    return EXIT_OK;
}

/* ---- get ---- */

static struct table *points_table(bool with_key)
{
    struct table *table = table_new();
    table_column(table, "id", true);
    if (with_key) table_column(table, "shard key", false);
    table_column(table, "payload", false);
    return table;
}

static void add_point(struct table *table, const omen_point *point, bool with_key)
{
    table_point_id(table, &point->id);
    if (with_key) {
        const char *key = point->shard_key_json == NULL ? "" : point->shard_key_json;
        table_cell(table, key, strlen(key));
    }
    table_payload(table, point->payload_json, NULL, 0);
}

static void print_points(const struct cli *cli, const omen_results *results)
{
    if (cli->json) {
        struct buf out;
        buf_init(&out);
        for (size_t i = 0; i < results->count; i++) {
            put_point(&out, &results->points[i], false);
            put_line(&out);
        }
        buf_fini(&out);
        return;
    }
    bool with_key = false;
    for (size_t i = 0; i < results->count; i++) with_key |= results->points[i].shard_key_json != NULL;
    struct table *table = points_table(with_key);
    for (size_t i = 0; i < results->count; i++) add_point(table, &results->points[i], with_key);
    if (results->count > 0) table_print(table, stdout, terminal_width());
    table_free(table);
}

static bool same_id(const omen_id *a, const omen_id *b)
{
    if (a->is_uuid != b->is_uuid) return false;
    return a->is_uuid ? memcmp(a->uuid, b->uuid, sizeof a->uuid) == 0 : a->number == b->number;
}

/* Ids asked for that are not among the results: EXIT_NOT_FOUND, told on stderr. */
static int tell_missing(const omen_id *ids, uint32_t count, const omen_results *results)
{
    int code = EXIT_OK;
    for (uint32_t i = 0; i < count; i++) {
        bool found = false;
        for (size_t j = 0; !found && j < results->count; j++)
            found = same_id(&ids[i], &results->points[j].id);
        if (found) continue;
        char text[POINT_ID_TEXT_BYTES], message[96];
        format_id(&ids[i], text);
        snprintf(message, sizeof message, "point %s does not exist", text);
        code = fail_text(OMEN_ENOTFOUND, "", message);
    }
    return code;
}

static int run_get(struct cli *cli)
{
    uint32_t count = cli->argument_count - 1;
    omen_id *ids = ids_of_arguments(cli, 1, count);
    const char **keys = repeat_text(o.shard_key, count);
    omen_select select = { .with_payload = true,
        .with_vectors = o.with_vectors,
        .consistency = o.consistency };
    omen_results *results;
    omen_code rc = omen_get(cli->db, cli->arguments[0], ids, keys, count, &select, &results);
    int code = rc == OMEN_OK ? EXIT_OK : fail_with(rc);
    if (rc == OMEN_OK) {
        print_points(cli, results);
        tell_stale(results->stale);
        code = tell_missing(ids, count, results);
        omen_results_free(results);
    }
    mem_free(ids);
    mem_free(keys);
    return code;
}

/* ---- delete ---- */

static omen_code delete_batch(struct cli *cli, const omen_id *ids, size_t count, uint64_t *affected)
{
    const char **keys = repeat_text(o.shard_key, count);
    omen_write_result result;
    omen_code rc = count == 0 ? OMEN_OK : omen_delete(cli->db, cli->arguments[0], ids, keys, count, &result);
    if (rc == OMEN_OK && count > 0) *affected += result.affected;
    mem_free(keys);
    return rc;
}

static int delete_from(struct cli *cli, FILE *file, uint64_t *affected)
{
    omen_id *ids = mem_must_alloc(DELETE_BATCH * sizeof *ids);
    size_t count = 0;
    uint64_t line_number = 0;
    char line[ID_LINE_BYTES_MAX];
    omen_code rc = OMEN_OK;
    int code = EXIT_OK;
    while (rc == OMEN_OK && code == EXIT_OK && fgets(line, sizeof line, file) != NULL) {
        line_number++;
        size_t start = strspn(line, " \t\""), len = strcspn(line + start, " \t\r\n\",");
        if (len == 0) continue;
        line[start + len] = '\0';
        if (!id_of_text(line + start, len, &ids[count]))
            code = fail_local("line %llu: \"%s\" is no id", (unsigned long long)line_number, line + start);
        else
            count++;
        if (count == DELETE_BATCH) {
            rc = delete_batch(cli, ids, count, affected);
            count = 0;
        }
    }
    if (rc == OMEN_OK && code == EXIT_OK) rc = delete_batch(cli, ids, count, affected);
    mem_free(ids);
    return rc != OMEN_OK ? fail_with(rc) : code;
}

static int run_delete(struct cli *cli)
{
    uint64_t affected = 0;
    int code;
    if ((o.from != NULL) + (o.filter != NULL) + (cli->argument_count > 1) != 1)
        usage_fail(cli->command, "give either ids, --from or --filter");
    if (o.filter != NULL) {
        omen_write_result result;
        omen_code rc = omen_delete_by_filter(cli->db, cli->arguments[0], o.filter, &result);
        return rc == OMEN_OK ? tell_affected(cli, "deleted", result.affected) : fail_with(rc);
    }
    if (o.from != NULL) {
        FILE *file = strcmp(o.from, "-") == 0 ? stdin : fopen(o.from, "re");
        if (file == NULL) return fail_local("cannot open %s: %s", o.from, strerror(errno));
        code = delete_from(cli, file, &affected);
        if (file != stdin) (void)fclose(file);
    } else {
        omen_id *ids = ids_of_arguments(cli, 1, cli->argument_count - 1);
        omen_code rc = delete_batch(cli, ids, cli->argument_count - 1, &affected);
        mem_free(ids);
        code = rc == OMEN_OK ? EXIT_OK : fail_with(rc);
    }
    if (code == EXIT_OK || affected > 0) (void)tell_affected(cli, "deleted", affected);
    return code;
}

/* ---- scroll and count ---- */

static int run_scroll(struct cli *cli)
{
    omen_select select = { .with_payload = !o.no_payload,
        .with_vectors = o.with_vectors,
        .consistency = o.consistency };
    uint64_t left = o.all ? UINT64_MAX : o.limit;
    char *cursor = NULL;
    int code = EXIT_OK;
    bool stale = false;
    while (left > 0) {
        omen_results *page;
        uint32_t limit = left < SCROLL_PAGE ? (uint32_t)left : SCROLL_PAGE;
        omen_code rc = omen_scroll(cli->db, cli->arguments[0], cursor, limit, o.filter, &select, &page);
        if (rc != OMEN_OK) {
            code = fail_with(rc);
            break;
        }
        print_points(cli, page);
        stale |= page->stale;
        left -= page->count < left ? page->count : left;
        mem_free(cursor);
        cursor = page->next_cursor == NULL ? NULL : mem_must_strdup(page->next_cursor);
        omen_results_free(page);
        if (cursor == NULL) break;
        if (ferror(stdout)) break; /* nobody reads on */
    }
    mem_free(cursor);
    tell_stale(stale);
    return code;
}

static int run_count(struct cli *cli)
{
    omen_count_options options = { .allow_partial = o.allow_partial, .consistency = o.consistency };
    omen_count_result count;
    omen_code rc = omen_count_with(cli->db, cli->arguments[0], o.filter, &options, &count);
    if (rc != OMEN_OK) return fail_with(rc);
    bool partial = count.shards_missing_count > 0;
    if (partial)
        fprintf(stderr, "omenctl: the count is partial: %u shards did not answer\n",
                count.shards_missing_count);
    if (cli->json) {
        printf("{\"points\":%llu%s%s}\n", (unsigned long long)count.points,
                partial ? ",\"partial\":true" : "", count.stale ? ",\"stale\":true" : "");
    } else {
        printf("%llu\n", (unsigned long long)count.points);
        tell_stale(count.stale);
    }
    return EXIT_OK;
}

#define FILTER_HELP                                                                                          \
    "  omenctl points scroll books --filter '{\"must\": [{\"key\": \"year\", \"range\": {\"gte\": 1980}}]}'\n"

const struct command POINT_COMMANDS[] = {
    { .name = "points upsert",
            .arguments = "COLLECTION [FILE|-]",
            .summary = "Write points from JSON lines; atomic per batch",
            .options = UPSERT_OPTIONS,
            .argument_min = 1,
            .argument_max = 2,
            .patient = true,
            .run = run_upsert,
            .help = UPSERT_HELP },
    { .name = "points get",
            .arguments = "COLLECTION ID..",
            .summary = "Points by id",
            .options = GET_OPTIONS,
            .argument_min = 2,
            .argument_max = ARGS_LIST_MAX,
            .run = run_get,
            .help = "Prints what is found; exit code 4 when an id is missing.\n"
                    "Examples:\n  omenctl points get books 1 2\n  omenctl --json points get books 1 --with-vectors\n"
                    "  omenctl points get shop 7 --shard-key '\"acme\"'\n" },
    { .name = "points delete",
            .arguments = "COLLECTION ID.. | --from FILE",
            .summary = "Delete points by id",
            .options = DELETE_OPTIONS,
            .argument_min = 1,
            .argument_max = ARGS_LIST_MAX,
            .run = run_delete,
            .help = "Examples:\n"
                    "  omenctl points delete books 1 2\n"
                    "  omenctl points delete books --from ids.txt\n"
                    "  omenctl points delete books --filter '{\"must\": [{\"key\": \"year\", "
                    "\"range\": {\"lt\": 1970}}]}'\n" },
    { .name = "points scroll",
            .arguments = "COLLECTION",
            .summary = "Points in order of id",
            .options = SCROLL_OPTIONS,
            .argument_min = 1,
            .argument_max = 1,
            .run = run_scroll,
            .help = "A table; with --json one JSON document a line.\n"
                    "Examples:\n  omenctl points scroll books --limit 5\n" FILTER_HELP
                    "  omenctl --json points scroll books --all --with-vectors > books.jsonl\n" },
    { .name = "points count",
            .arguments = "COLLECTION",
            .summary = "How many points",
            .options = COUNT_OPTIONS,
            .argument_min = 1,
            .argument_max = 1,
            .run = run_count,
            .help = "Examples:\n  omenctl points count books\n"
                    "  omenctl points count books --filter '{\"must\": [{\"key\": \"tags\", "
                    "\"match\": {\"value\": \"classic\"}}]}'\n" },
    { .name = NULL },
};

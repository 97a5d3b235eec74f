/* omenctl search: one query, from a vector, a file or a stored point; or a whole file of them (measure.c). */
#include "tools/omenctl/cmd_search.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/clock.h"
#include "common/dataset/dataset.h"
#include "common/mem.h"
#include "tools/omenctl/explain.h"
#include "tools/omenctl/output.h"

#define VECTOR_TEXT_BYTES_MAX (1u << 20)
#define SHOW_PATHS_MAX 32u
#define NO_ROW UINT64_MAX

static struct {
    const char *vector, *vector_file, *id, *shard_key, *query_file, *truth, *filter, *field, *show,
            *consistency;
    uint64_t row, k, offset;
    struct text_list threshold; /* given at all? */
    bool all, with_payload, no_payload, with_vectors, allow_partial, exact, explain;
} o = { .row = NO_ROW, .k = 10 };

static const struct option OPTIONS[] = {
    { "--vector", OPTION_TEXT, &o.vector, "JSON", "the query: [0.1, 0.2, ..]" },
    { "--vector-file", OPTION_TEXT, &o.vector_file, "FILE",
            "the query in a file, as --vector; - is standard input" },
    { "--id", OPTION_TEXT, &o.id, "ID", "the query is the vector of this point" },
    { "--shard-key", OPTION_TEXT, &o.shard_key, "JSON", "with --id: shard key value of the point" },
    { "--query-file", OPTION_TEXT, &o.query_file, "FILE", "queries in .fbin, .npy, ..; with --row or --all" },
    { "--row", OPTION_U64, &o.row, "N", "row of the query file, from 0" },
    { "--all", OPTION_FLAG, &o.all, NULL, "all rows, one after the other: measures" },
    { "--truth", OPTION_TEXT, &o.truth, "FILE", "with --all: true neighbours as row numbers = ids (.ibin)" },
    { "--k", OPTION_U64, &o.k, "N", "results (10)" },
    { "--offset", OPTION_U64, &o.offset, "N", "skip the nearest N" },
    { "--filter", OPTION_TEXT, &o.filter, "JSON", "only points that match" },
    { "--score-threshold", OPTION_LIST, &o.threshold, "X", "only results at least that near" },
    { "--exact", OPTION_FLAG, &o.exact, NULL, "look at every point rather than walk indexes" },
    { "--explain", OPTION_FLAG, &o.explain, NULL,
            "tell how it was answered: shards, segments, plans, counts, times" },
    { "--field", OPTION_TEXT, &o.field, "NAME", "vector field" },
    { "--consistency", OPTION_TEXT, &o.consistency, "LEVEL", "session (default), eventual, linearizable" },
    { "--show", OPTION_TEXT, &o.show, "PATH,PATH", "payload paths as columns" },
    { "--with-payload", OPTION_FLAG, &o.with_payload, NULL, "payloads too (default)" },
    { "--no-payload", OPTION_FLAG, &o.no_payload, NULL, "no payloads" },
    { "--with-vectors", OPTION_FLAG, &o.with_vectors, NULL, "vectors too (with --json)" },
    { "--allow-partial", OPTION_FLAG, &o.allow_partial, NULL,
            "answer without shards that cannot be reached" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

/* ---- the query ---- */

/* A JSON array of numbers to `out` [OMEN_DIM_MAX]; NULL, or what is wrong. */
static const char *parse_vector(const char *text, size_t len, float *out, uint32_t *dim_out)
{
    static struct err err;
    struct json_text json;
    if (json_text_init(&json, text, len, &err) != OMEN_OK) return err.message;
    const char *wrong = NULL;
    uint32_t dim = 0;
    if (doc_type(json.doc) != DOC_ARRAY || doc_count(json.doc) == 0 || doc_count(json.doc) > OMEN_DIM_MAX)
        wrong = "a vector is an array of 1 to 4096 numbers";
    struct doc_iter it = doc_iter(json.doc);
    struct doc value;
    while (wrong == NULL && doc_next(&it, NULL, &value)) {
        if (!doc_is_number(value))
            wrong = "a component of the vector is no number";
        else
            out[dim++] = (float)doc_f64(value);
    }
    json_text_fini(&json);
    *dim_out = dim;
    return wrong;
}

static int read_vector_file(float *out, uint32_t *dim_out)
{
    FILE *file = strcmp(o.vector_file, "-") == 0 ? stdin : fopen(o.vector_file, "re");
    if (file == NULL) return fail_local("cannot open %s: %s", o.vector_file, strerror(errno));
    char *text = mem_must_alloc(VECTOR_TEXT_BYTES_MAX);
    size_t len = fread(text, 1, VECTOR_TEXT_BYTES_MAX, file);
    const char *wrong = len == VECTOR_TEXT_BYTES_MAX ? "the file is too long"
                                                     : parse_vector(text, len, out, dim_out);
    if (file != stdin) (void)fclose(file);
    mem_free(text);
    return wrong == NULL ? EXIT_OK : fail_local("%s: %s", o.vector_file, wrong);
}

static int read_row(float *out, uint32_t *dim_out)
{
    struct matrix matrix;
    struct err err;
    if (matrix_open(o.query_file, &matrix, &err) != OMEN_OK) return fail_local("%s", err.message);
    int code = EXIT_OK;
    if (o.row >= matrix.count)
        code = fail_local("%s has %llu rows, there is no row %llu", o.query_file,
                (unsigned long long)matrix.count, (unsigned long long)o.row);
    else if (matrix.dim > OMEN_DIM_MAX)
        code = fail_local("%s: %u dimensions are too many", o.query_file, matrix.dim);
    else
        matrix_row_f32(&matrix, o.row, out);
    *dim_out = matrix.dim;
    matrix_close(&matrix);
    return code;
}

static int read_query(struct cli *cli, float *out, uint32_t *dim_out)
{
    *dim_out = 0;
    if (o.vector_file != NULL) return read_vector_file(out, dim_out);
    if (o.query_file != NULL) return read_row(out, dim_out);
    if (o.vector == NULL) return EXIT_OK;
    const char *wrong = parse_vector(o.vector, strlen(o.vector), out, dim_out);
    if (wrong != NULL) usage_fail(cli->command, "--vector: %s", wrong);
    return EXIT_OK;
}

/* ---- the answer ---- */

/* "a,b" to a NULL-terminated list in one allocation of the process's life. */
static const char **split_paths(const struct cli *cli, const char *text, uint32_t *count_out)
{
    const char **paths = mem_must_calloc(SHOW_PATHS_MAX + 1, sizeof *paths);
    char *copy = mem_must_strdup(text), *rest = copy;
    for (char *path; (path = strsep(&rest, ",")) != NULL;) {
        path += strspn(path, " ");
        if (*path == '\0') continue;
        if (*count_out == SHOW_PATHS_MAX)
            usage_fail(cli->command, "--show takes at most %u paths", SHOW_PATHS_MAX);
        paths[(*count_out)++] = path;
    }
    if (*count_out == 0) usage_fail(cli->command, "--show wants payload paths");
    return paths;
}

static void print_json(const omen_results *results, uint64_t latency_ns)
{
    struct buf out;
    buf_init(&out);
    buf_printf(&out, "{\"results\":[");
    for (size_t i = 0; i < results->count; i++) {
        if (i > 0) buf_append(&out, ",", 1);
        put_point(&out, &results->points[i], true);
    }
    buf_printf(&out,
            "],\"count\":%zu,\"higher_is_nearer\":%s,\"rows_scanned\":%llu,\"shards_asked\":%u,\"shards_total\":%u,"
            "\"latency_us\":%.1f,\"engine_us\":%.1f",
            results->count, results->higher_is_nearer ? "true" : "false",
            (unsigned long long)results->rows_scanned, results->shards_asked, results->shards_total,
            (double)latency_ns / 1e3, (double)results->engine_ns / 1e3);
    for (uint32_t i = 0; i < results->shards_missing_count; i++)
        buf_printf(&out, "%s%llu", i == 0 ? ",\"partial\":true,\"shards_missing\":[" : ",",
                (unsigned long long)results->shards_missing[i]);
    if (results->shards_missing_count > 0) buf_append(&out, "]", 1);
    if (results->stale) buf_printf(&out, ",\"stale\":true");
    if (results->explain_json != NULL) {
        buf_printf(&out, ",\"explain\":");
        buf_append(&out, results->explain_json, strlen(results->explain_json));
    }
    buf_append(&out, "}", 1);
    put_line(&out);
    buf_fini(&out);
}

static void print_table(const omen_results *results, const char *const *paths, uint32_t path_count,
        uint64_t latency_ns)
{
    printf("%zu hits, %llu rows scanned, in %.1f ms (engine %.1f ms); %s score is nearer\n", results->count,
            (unsigned long long)results->rows_scanned, (double)latency_ns / 1e6,
            (double)results->engine_ns / 1e6, results->higher_is_nearer ? "higher" : "lower");
    if (results->shards_missing_count > 0)
        fprintf(stderr, "omenctl: the answer is partial: %u of %u shards asked did not answer\n",
                results->shards_missing_count, results->shards_asked);
    tell_stale(results->stale);
    if (results->count == 0) return;
    struct table *table = table_new();
    table_column(table, "rank", true);
    table_column(table, "id", true);
    table_column(table, "score", true);
    for (uint32_t i = 0; i < path_count; i++) table_column(table, paths[i], false);
    bool payload = path_count == 0 && !o.no_payload;
    if (payload) table_column(table, "payload", false);
    for (size_t i = 0; i < results->count; i++) {
        table_cellf(table, "%llu", (unsigned long long)(o.offset + i + 1));
        table_point_id(table, &results->points[i].id);
        table_cellf(table, "%.4f", (double)results->points[i].score);
        if (path_count > 0 || payload)
            table_payload(table, results->points[i].payload_json, paths, path_count);
    }
    table_print(table, stdout, terminal_width());
    table_free(table);
}

static int search_once(struct cli *cli)
{
    float *query = mem_must_alloc(OMEN_DIM_MAX * sizeof *query), threshold;
    uint32_t dim, path_count = 0;
    int code = read_query(cli, query, &dim);
    omen_id id;
    const char **paths = o.show == NULL ? NULL : split_paths(cli, o.show, &path_count);
    omen_search_options options = { .field = o.field, .filter = o.filter, .consistency = o.consistency };
    options.k = args_u32(cli, "--k", o.k, 1, OMEN_K_MAX);
    options.exact = o.exact;
    options.explain = o.explain;
    options.offset = args_u32(cli, "--offset", o.offset, 0, OMEN_K_MAX);
    options.select = (omen_select){ .with_payload = !o.no_payload,
        .with_vectors = o.with_vectors,
        .payload_include = paths,
        .allow_partial = o.allow_partial };
    if (o.threshold.count > 0) {
        char *end;
        threshold = strtof(o.threshold.items[0], &end);
        if (*end != '\0' || end == o.threshold.items[0])
            usage_fail(cli->command, "--score-threshold wants a number");
        options.score_threshold = &threshold;
    }
    if (o.id != NULL) {
        id = args_id(cli, o.id);
        options.by_id = &id;
        options.by_id_shard_key_json = o.shard_key;
    }
    if (code == EXIT_OK) {
        omen_results *results;
        uint64_t start_ns = clock_monotonic_ns(clock_system());
        omen_code rc = omen_search(cli->db, cli->arguments[0], query, dim, &options, &results);
        uint64_t latency_ns = clock_monotonic_ns(clock_system()) - start_ns;
        if (rc != OMEN_OK)
            code = fail_with(rc);
        else {
            if (cli->json)
                print_json(results, latency_ns);
            else
                print_table(results, paths, path_count, latency_ns);
            if (!cli->json && results->explain_json != NULL) print_explain(results->explain_json);
            omen_results_free(results);
        }
    }
    if (paths != NULL) mem_free((void *)(uintptr_t)paths[0]);
    mem_free(paths);
    mem_free(query);
    return code;
}

static int run_search(struct cli *cli)
{
    int sources = (o.vector != NULL) + (o.vector_file != NULL) + (o.id != NULL) + (o.query_file != NULL);
    if (sources != 1) usage_fail(cli->command, "give one of --vector, --vector-file, --id, --query-file");
    if (o.with_payload && o.no_payload)
        usage_fail(cli->command, "--with-payload and --no-payload exclude each other");
    if (o.show != NULL && o.no_payload)
        usage_fail(cli->command, "--show and --no-payload exclude each other");
    if (o.shard_key != NULL && o.id == NULL) usage_fail(cli->command, "--shard-key goes with --id");
    if (o.query_file != NULL && o.all == (o.row != NO_ROW))
        usage_fail(cli->command, "--query-file wants --row or --all");
    if (o.query_file == NULL && (o.all || o.row != NO_ROW))
        usage_fail(cli->command, "--row and --all go with --query-file");
    if (o.allow_partial && o.all)
        usage_fail(cli->command, "--all measures whole answers, not --allow-partial");
    if (o.explain && o.all) usage_fail(cli->command, "--explain goes with one query, not --all");
    if (o.truth != NULL && !o.all) usage_fail(cli->command, "--truth goes with --query-file --all");
    if (o.truth != NULL && o.filter != NULL) usage_fail(cli->command, "--truth knows nothing of a --filter");
    if (!o.all) return search_once(cli);
    struct measure_args args = { .collection = cli->arguments[0],
        .field = o.field,
        .query_file = o.query_file,
        .truth_file = o.truth,
        .filter = o.filter,
        .k = args_u32(cli, "--k", o.k, 1, OMEN_K_MAX) };
    return measure_searches(cli, &args);
}

const struct command SEARCH_COMMANDS[] = {
    { .name = "search",
            .arguments =
                    "COLLECTION (--vector J | --vector-file F | --id ID | --query-file F --row N | --all)",
            .summary = "The nearest points, or recall and latency over a file of queries",
            .options = OPTIONS,
            .argument_min = 1,
            .argument_max = 1,
            .run = run_search,
            .help = "Examples:\n  omenctl search books --vector '[1, 0, 0, 0]' --k 2 --show title,year\n"
                    "  omenctl search books --id 1 --filter '{\"must\": [{\"key\": \"tags\", "
                    "\"match\": {\"value\": \"classic\"}}]}'\n"
                    "  omenctl search packages --query-file query.fbin --row 0 --explain\n"
                    "  omenctl search packages --query-file query.fbin --all --truth truth.ibin\n"
                    "A result counts as found when its distance is at most the k-th true "
                    "distance times (1 + 1e-5).\n" },
    { .name = NULL },
};

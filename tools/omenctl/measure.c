/* omenctl search --all: recall by the tie rule and latency over a file of queries.
 *
 * A result is a hit when its distance is at most the k-th true distance times (1 + 1e-5). A result among the first k of the
 * truth is one by definition; for the others the stored vectors of the result and of the k-th true neighbour are fetched and
 * compared in doubles, because f32 scores near 1 are coarser than the rule. Fetching is not timed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/dataset/dataset.h"
#include "common/mem.h"
#include "tools/omenctl/cmd_search.h"
#include "tools/omenctl/output.h"

#define TIE_SHARE 1e-5

struct measure {
    struct cli *cli;
    const struct measure_args *args;
    struct matrix queries, truth;
    enum metric metric;
    float *query;           /* [dim] */
    uint32_t *true_rows;    /* [truth.dim] */
    uint64_t *latencies_ns; /* [queries.count] */
    uint64_t hits, wanted, engine_ns, rows_scanned;
};

/* ---- metric ---- */

static int find_metric(struct measure *m)
{
    char *json;
    omen_code rc = omen_collection_describe(m->cli->db, m->args->collection, &json);
    if (rc != OMEN_OK) return fail_with(rc);
    struct json_text text;
    struct err err;
    if (json_text_init(&text, json, strlen(json), &err) != OMEN_OK) {
        omen_free(json);
        return fail_local("the description cannot be read: %s", err.message);
    }
    const char *wanted = m->args->field == NULL ? "" : m->args->field;
    struct doc_iter it = doc_iter(doc_get(text.doc, "fields"));
    struct doc field;
    bool found = false;
    while (!found && doc_next(&it, NULL, &field)) {
        struct bytes name = doc_get_string(field, "name"), metric = doc_get_string(field, "metric");
        bool same = name.len == strlen(wanted) && (name.len == 0 || memcmp(name.data, wanted, name.len) == 0);
        found = same && metric.len > 0 && metric_parse((const char *)metric.data, metric.len, &m->metric);
    }
    json_text_fini(&text);
    omen_free(json);
    if (!found) return fail_local("collection %s has no vector field \"%s\"", m->args->collection, wanted);
    return EXIT_OK;
}

/* Smaller is nearer. Cosine vectors are stored normalised, so only the query's length is divided out. */
static double distance(const struct measure *m, const float *v)
{
    double sum = 0, query_square = 0;
    for (uint32_t i = 0; i < m->queries.dim; i++) {
        double q = m->query[i], x = v[i];
        sum += m->metric == METRIC_L2 ? (q - x) * (q - x) : q * x;
        query_square += q * q;
    }
    if (m->metric == METRIC_L2) return sum;
    if (m->metric == METRIC_IP) return -sum;
    return 1 - (query_square > 0 ? sum / sqrt(query_square) : 0);
}

/* ---- hits ---- */

static bool among(const uint32_t *rows, uint32_t count, const omen_id *id)
{
    for (uint32_t i = 0; !id->is_uuid && i < count; i++)
        if (rows[i] == id->number) return true;
    return false;
}

static const float *vector_of(const omen_results *stored, uint64_t id, const struct measure *m)
{
    const char *field = m->args->field == NULL ? "" : m->args->field;
    for (size_t i = 0; i < stored->count; i++) {
        const omen_point *point = &stored->points[i];
        if (point->id.is_uuid || point->id.number != id) continue;
        for (uint32_t f = 0; f < point->vector_count; f++)
            if (strcmp(point->vectors[f].field, field) == 0 && point->vectors[f].dim == m->queries.dim)
                return point->vectors[f].data;
    }
    return NULL;
}

/* `ids` [count] are results outside the first k of the truth: how many of them are ties. The last of `ids` is the k-th
 * true neighbour itself. */
static int count_ties(struct measure *m, const omen_id *ids, uint32_t count)
{
    omen_results *stored;
    omen_select select = { .with_vectors = true };
    omen_code rc = omen_get(m->cli->db, m->args->collection, ids, NULL, count, &select, &stored);
    if (rc != OMEN_OK) return fail_with(rc);
    const float *last = vector_of(stored, ids[count - 1].number, m);
    if (last == NULL) {
        omen_results_free(stored);
        return fail_local("point %llu of the truth is not in the collection: are the ids row numbers?",
                (unsigned long long)ids[count - 1].number);
    }
    double bound = distance(m, last);
    bound += fabs(bound) * TIE_SHARE;
    for (uint32_t i = 0; i + 1 < count; i++) {
        const float *v = ids[i].is_uuid ? NULL : vector_of(stored, ids[i].number, m);
        if (v != NULL && distance(m, v) <= bound) m->hits++;
    }
    omen_results_free(stored);
    return EXIT_OK;
}

static int count_hits(struct measure *m, uint64_t row, const omen_results *results)
{
    struct err err;
    uint32_t k = m->args->k, other_count = 0;
    if (matrix_row_u32(&m->truth, row, m->true_rows, &err) != OMEN_OK) return fail_local("%s", err.message);
    omen_id *others = mem_must_alloc((results->count + 1) * sizeof *others);
    for (size_t i = 0; i < results->count; i++) {
        if (among(m->true_rows, k, &results->points[i].id))
            m->hits++;
        else
            others[other_count++] = results->points[i].id;
    }
    m->wanted += k;
    int code = EXIT_OK;
    if (other_count > 0) {
        others[other_count++] = (omen_id){ .number = m->true_rows[k - 1] };
        code = count_ties(m, others, other_count);
    }
    mem_free(others);
    return code;
}

/* ---- the run ---- */

static int search_row(struct measure *m, uint64_t row)
{
    omen_search_options options = { .field = m->args->field, .k = m->args->k, .filter = m->args->filter };
    omen_results *results;
    matrix_row_f32(&m->queries, row, m->query);
    uint64_t start_ns = clock_monotonic_ns(clock_system());
    omen_code rc = omen_search(m->cli->db, m->args->collection, m->query, m->queries.dim, &options, &results);
    m->latencies_ns[row] = clock_monotonic_ns(clock_system()) - start_ns;
    if (rc != OMEN_OK) return fail_with(rc);
    m->engine_ns += results->engine_ns;
    m->rows_scanned = results->rows_scanned;
    int code = m->truth.count == 0 ? EXIT_OK : count_hits(m, row, results);
    omen_results_free(results);
    return code;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static double percentile_us(const struct measure *m, double share)
{
    uint64_t last = m->queries.count - 1;
    return (double)m->latencies_ns[(uint64_t)(share * (double)last + 0.5)] / 1e3;
}

static void report(struct measure *m)
{
    uint64_t total_ns = 0, count = m->queries.count;
    for (uint64_t i = 0; i < count; i++) total_ns += m->latencies_ns[i];
    qsort(m->latencies_ns, count, sizeof *m->latencies_ns, compare_u64);
    double recall = m->wanted == 0 ? 0 : (double)m->hits / (double)m->wanted;
    double qps = total_ns == 0 ? 0 : (double)count * 1e9 / (double)total_ns;
    double engine_us = (double)m->engine_ns / 1e3 / (double)count;
    if (m->cli->json) {
        printf("{\"queries\":%llu,\"k\":%u,", (unsigned long long)count, m->args->k);
        if (m->wanted > 0) printf("\"recall\":%.6f,", recall);
        printf("\"p50_us\":%.1f,\"p99_us\":%.1f,\"qps\":%.1f,\"engine_us\":%.1f,\"points\":%llu}\n",
                percentile_us(m, 0.5), percentile_us(m, 0.99), qps, engine_us,
                (unsigned long long)m->rows_scanned);
        return;
    }
    struct table *table = table_new();
    static const char *const TITLES[] = { "queries", "k", "points", "recall", "p50 ms", "p99 ms", "queries/s",
        "engine ms" };
    for (int i = 0; i < 8; i++) table_column(table, TITLES[i], true);
    table_cellf(table, "%llu", (unsigned long long)count);
    table_cellf(table, "%u", m->args->k);
    table_cellf(table, "%llu", (unsigned long long)m->rows_scanned);
    if (m->wanted > 0)
        table_cellf(table, "%.4f", recall);
    else
        table_cellf(table, "-");
    table_cellf(table, "%.3f", percentile_us(m, 0.5) / 1e3);
    table_cellf(table, "%.3f", percentile_us(m, 0.99) / 1e3);
    table_cellf(table, "%.0f", qps);
    table_cellf(table, "%.3f", engine_us / 1e3);
    table_print(table, stdout, terminal_width());
    table_free(table);
}

static int check_files(const struct measure *m)
{
    if (m->queries.count == 0 || m->queries.dim == 0 || m->queries.dim > OMEN_DIM_MAX)
        return fail_local("%s has no queries of 1 to %d dimensions", m->args->query_file, OMEN_DIM_MAX);
    if (m->args->truth_file == NULL) return EXIT_OK;
    if (m->truth.count < m->queries.count)
        return fail_local("%s has %llu rows for %llu queries", m->args->truth_file,
                (unsigned long long)m->truth.count, (unsigned long long)m->queries.count);
    if (m->truth.dim < m->args->k)
        return fail_local("%s knows %u neighbours, k is %u", m->args->truth_file, m->truth.dim, m->args->k);
    return EXIT_OK;
}

static int run_queries(struct measure *m)
{
    int code = check_files(m);
    if (code == EXIT_OK) code = find_metric(m);
    if (code != EXIT_OK) return code;
    m->query = mem_must_alloc(m->queries.dim * sizeof *m->query);
    m->true_rows = mem_must_alloc((m->truth.dim + 1) * sizeof *m->true_rows);
    m->latencies_ns = mem_must_alloc(m->queries.count * sizeof *m->latencies_ns);
    for (uint64_t row = 0; code == EXIT_OK && row < m->queries.count; row++) code = search_row(m, row);
    if (code == EXIT_OK) report(m);
    mem_free(m->query);
    mem_free(m->true_rows);
    mem_free(m->latencies_ns);
    return code;
}

int measure_searches(struct cli *cli, const struct measure_args *args)
{
    struct measure m = { .cli = cli, .args = args };
    struct err err;
    if (matrix_open(args->query_file, &m.queries, &err) != OMEN_OK) return fail_local("%s", err.message);
    int code = EXIT_OK;
    if (args->truth_file != NULL && matrix_open(args->truth_file, &m.truth, &err) != OMEN_OK)
        code = fail_local("%s", err.message);
    if (code == EXIT_OK) {
        code = run_queries(&m);
        if (args->truth_file != NULL) matrix_close(&m.truth);
    }
    matrix_close(&m.queries);
    return code;
}

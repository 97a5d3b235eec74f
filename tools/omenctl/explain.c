/* See explain.h. What the members mean is in PROTOCOL.md, "Explain"; a server may be older or newer than we are. */
#include "tools/omenctl/explain.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/omenctl/output.h"

static double get_f64(struct doc object, const char *key)
{
    struct doc v = doc_get(object, key);
    return v.data != NULL && doc_is_number(v) ? doc_f64(v) : 0;
}

static bool has(struct doc object, const char *key) { return doc_get(object, key).data != NULL; }

static bool is(struct doc object, const char *key, const char *text)
{
    struct bytes v = doc_get_string(object, key);
    return v.len == strlen(text) && v.len > 0 && memcmp(v.data, text, v.len) == 0;
}

/* A member's text with its end; cut, and free of what steers a terminal. "" when there is none. */
struct text {
    char s[160];
};
static struct text text_of(struct doc object, const char *key)
{
    struct bytes v = doc_get_string(object, key);
    struct text t;
    size_t n = v.len < sizeof t.s - 1 ? v.len : sizeof t.s - 1;
    for (size_t i = 0; i < n; i++) t.s[i] = v.data[i] < 0x20 || v.data[i] == 0x7f ? ' ' : (char)v.data[i];
    while (n > 0 && !utf8_valid(t.s, n)) n--;
    t.s[n] = '\0';
    return t;
}

/* ---- the whole ---- */

static void print_recall(struct doc explain)
{
    struct doc recall = doc_get(explain, "recall");
    printf("  recall target %.3g", get_f64(explain, "recall_target"));
    if (recall.data == NULL) {
        printf("; live searches were not measured yet\n");
        return;
    }
    printf("; live searches were measured to get %.4f (%.4f to %.4f, of %" PRIu64 ")",
            get_f64(recall, "measured"), get_f64(recall, "low"), get_f64(recall, "high"),
            doc_get_u64(recall, "searches"));
    if (doc_get_u64(recall, "boost") > 0)
        printf(", effort raised %" PRIu64 " steps", doc_get_u64(recall, "boost"));
    printf("\n");
}

static void print_stages(struct doc explain)
{
    static const char *const stages[] = { "plan", "by_id", "shards", "merge" };
    struct doc us = doc_get(explain, "us");
    printf("  %.0f us in the router:", get_f64(us, "total"));
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++)
        if (has(us, stages[i])) printf("%s %s %.0f", i == 0 ? "" : ",", stages[i], get_f64(us, stages[i]));
    printf("\n");
}

static void print_totals(struct doc explain)
{
    struct doc t = doc_get(explain, "totals");
    printf("  segments: %" PRIu64 " searched, %" PRIu64 " pruned; rows in none: %" PRIu64
           "; distances: %" PRIu64 ", estimates: %" PRIu64 ", rows rescored: %" PRIu64
           ", payloads asked: %" PRIu64 "\n",
            doc_get_u64(t, "segments_searched"), doc_get_u64(t, "segments_pruned"),
            doc_get_u64(t, "tail_rows"), doc_get_u64(t, "distances"), doc_get_u64(t, "estimates"),
            doc_get_u64(t, "rescored"), doc_get_u64(t, "filter_evaluated"));
}

static void print_pruned(struct doc pruned)
{
    if (pruned.data == NULL || doc_count(pruned) == 0) return;
    struct doc_iter it = doc_iter(pruned);
    struct doc shard;
    printf("  not asked, the filter on the shard key leaves them out: shard");
    while (doc_next(&it, NULL, &shard)) printf(" %" PRIu64, doc_get_u64(shard, "shard"));
    printf("\n");
}

/* ---- parts ---- */

static void cell_count(struct table *table, struct doc part, const char *key)
{
    uint64_t v = doc_get_u64(part, key);
    if (v == 0)
        table_cell(table, "", 0);
    else
        table_cellf(table, "%" PRIu64, v);
}

/* Rows that pass the filter: counted, or as estimated. */
static void cell_passing(struct table *table, struct doc part)
{
    if (has(part, "real"))
        table_cellf(table, "%" PRIu64, doc_get_u64(part, "real"));
    else if (has(part, "estimated"))
        table_cellf(table, "~%" PRIu64, doc_get_u64(part, "estimated"));
    else
        table_cell(table, "", 0);
}

static void cell_index(struct table *table, struct doc part)
{
    if (!has(part, "index")) {
        table_cell(table, "", 0);
        return;
    }
    table_cellf(table, "%s %s %s %" PRIu64 " bit, %s", text_of(part, "index").s, text_of(part, "layout").s,
            text_of(part, "quant").s, doc_get_u64(part, "bits"), text_of(part, "memory").s);
}

static void cell_pruned(struct table *table, struct doc part)
{
    struct text path = text_of(part, "pruned_path");
    if (is(part, "pruned_by", "field"))
        table_cellf(table, "no row has a value at %s", path.s);
    else if (is(part, "pruned_by", "values"))
        table_cellf(table, "no row has such a value at %s", path.s);
    else if (is(part, "pruned_by", "range"))
        table_cellf(table, "no value at %s lies within the range", path.s);
    else if (is(part, "pruned_by", "words"))
        table_cellf(table, "no text at %s has all the words", path.s);
    else if (is(part, "pruned_by", "area"))
        table_cellf(table, "no place at %s lies in the area", path.s);
    else if (is(part, "pruned_by", "all_dead"))
        table_cellf(table, "no row of it lives");
    else
        table_cellf(table, "no row passes all conditions");
}

static const char *cheapest(struct doc part)
{
    if (is(part, "plan", "walk")) return "the graph, past rows that fail: cheapest for so many that pass";
    if (is(part, "plan", "gather")) return "so few pass that each is read in full";
    return "short codes of all that pass, the nearest in full: cheapest for so many";
}

static void cell_why(struct table *table, struct doc part)
{
    if (is(part, "why", "pruned"))
        cell_pruned(table, part);
    else if (is(part, "why", "no_filter"))
        table_cellf(table, "the graph, for recall %.3g", get_f64(part, "recall_target"));
    else if (is(part, "why", "cheapest"))
        table_cellf(table, "%s", cheapest(part));
    else if (is(part, "why", "most_pass"))
        table_cellf(table, "most rows pass: the graph through all, what it finds is asked");
    else if (is(part, "why", "gave_up"))
        table_cellf(table, "%s was begun, and given up as the dearer one", text_of(part, "given_up").s);
    else if (is(part, "why", "exact"))
        table_cellf(table, "exact: every row");
    else if (is(part, "why", "older_view"))
        table_cellf(table, "the segment is younger than what is read");
    else if (is(part, "why", "not_sealed"))
        table_cellf(table, "in no segment yet");
    else if (is(part, "why", "sketch"))
        table_cellf(table, "in no segment yet, but a sketch knows them");
    else
        table_cellf(table, "%s", text_of(part, "why").s);
}

static void put_part(struct table *table, struct doc part)
{
    if (has(part, "segment"))
        table_cellf(table, "  segment %" PRIu64, doc_get_u64(part, "segment"));
    else
        table_cellf(table, "  tail");
    table_cellf(table, "%" PRIu64, doc_get_u64(part, "rows"));
    table_cellf(table, "%s", text_of(part, "plan").s);
    if (has(part, "filter_by"))
        table_cellf(table, "%s: %s", text_of(part, "filter").s, text_of(part, "filter_by").s);
    else
        table_cellf(table, "%s", text_of(part, "filter").s);
    cell_passing(table, part);
    cell_count(table, part, "hops");
    cell_count(table, part, "rows_scanned");
    cell_count(table, part, "distances");
    cell_count(table, part, "rescored");
    table_cellf(table, "%.0f", get_f64(part, "us"));
    cell_index(table, part);
    cell_why(table, part);
}

static void print_parts(struct doc shard)
{
    static const struct {
        const char *title;
        bool right;
    } columns[] = { { "  part", false }, { "rows", true }, { "plan", false }, { "filter by", false },
        { "pass", true }, { "hops", true }, { "scanned", true }, { "distances", true }, { "rescored", true },
        { "us", true }, { "index", false }, { "why", false } };
    struct doc parts = doc_get(shard, "parts"), part;
    if (parts.data == NULL || doc_count(parts) == 0) return;
    struct table *table = table_new();
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        table_column(table, columns[i].title, columns[i].right);
    struct doc_iter it = doc_iter(parts);
    while (doc_next(&it, NULL, &part)) {
        bool nothing = !has(part, "segment") && doc_get_u64(part, "rows") == 0;
        if (!nothing || doc_count(parts) == 1) put_part(table, part);
    }
    table_print(table, stdout, terminal_width());
    table_free(table);
    if (has(shard, "parts_left_out"))
        printf("  and %" PRIu64 " more\n", doc_get_u64(shard, "parts_left_out"));
}

/* ---- shards ---- */

static void print_shard(struct doc shard)
{
    printf("shard %" PRIu64, doc_get_u64(shard, "shard"));
    if (has(shard, "error")) {
        printf(": %s (%s)\n", text_of(shard, "message").s, text_of(shard, "error").s);
        return;
    }
    if (has(shard, "node")) printf(" on node %" PRIu64, doc_get_u64(shard, "node"));
    printf(", replica %" PRIu64 ", %s", doc_get_u64(shard, "replica"), text_of(shard, "role").s);
    if (has(shard, "term")) printf(" of term %" PRIu64, doc_get_u64(shard, "term"));
    printf(", at sequence %" PRIu64 "; %" PRIu64 " hits; waited %.0f us, searched %.0f us%s\n",
            doc_get_u64(shard, "sequence"), doc_get_u64(shard, "hits"), get_f64(shard, "waited_us"),
            get_f64(shard, "engine_us"), has(shard, "made_exact") ? "; exact, to reach its recall" : "");
    print_parts(shard);
}

void print_explain(const char *explain_json)
{
    struct json_text json;
    struct err err;
    if (json_text_init(&json, explain_json, strlen(explain_json), &err) != OMEN_OK) {
        fprintf(stderr, "omenctl: what explains the search cannot be read: %s\n", err.message);
        return;
    }
    struct doc explain = json.doc, shards = doc_get(explain, "shards"), shard;
    printf("\n%s, %" PRIu32 " of %" PRIu64 " shards asked, %s, epoch %" PRIu64 "\n",
            text_of(explain, "collection").s, shards.data == NULL ? 0 : doc_count(shards),
            doc_get_u64(explain, "shards_total"), text_of(explain, "consistency").s,
            doc_get_u64(explain, "epoch"));
    print_stages(explain);
    print_recall(explain);
    print_totals(explain);
    print_pruned(doc_get(explain, "shards_pruned"));
    struct doc_iter it = doc_iter(shards);
    while (doc_next(&it, NULL, &shard)) print_shard(shard);
    json_text_fini(&json);
}

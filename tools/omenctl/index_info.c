/* See index_info.h. */
#include "tools/omenctl/index_info.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/query/path_kind.h"

static double get_f64(struct doc object, const char *key)
{
    struct doc v = doc_get(object, key);
    return v.data != NULL && doc_is_number(v) ? doc_f64(v) : 0;
}

/* "42 % of 120000 rows, refine, 3.1 s, 4.3 s left" */
static void work_text(struct doc work, char *out, size_t cap)
{
    struct bytes phase = doc_get_string(work, "phase");
    int n = snprintf(out, cap, "%.0f %% of %" PRIu64 " rows, %.*s, %.1f s", get_f64(work, "percent"),
            doc_get_u64(work, "rows"), (int)(phase.len < 40 ? phase.len : 40),
            phase.len == 0 ? "" : (const char *)phase.data, get_f64(work, "seconds"));
    if (n > 0 && (size_t)n < cap && doc_get(work, "seconds_left").data != NULL)
        snprintf(out + n, cap - (size_t)n, ", %.1f s left", get_f64(work, "seconds_left"));
}

static void row(struct table *table, const char *title, const char *text)
{
    table_cell(table, title, strlen(title));
    table_cell(table, text, strlen(text));
}

static void memory_row(struct table *table, struct doc memory)
{
    static const struct {
        const char *key, *title;
    } parts[] = { { "graphs", "graphs" }, { "mapped_graphs", "mapped graphs" }, { "sketches", "sketches" },
        { "rows", "rows" }, { "deltas", "deltas" } };
    char text[256];
    size_t n = 0;
    text[0] = '\0';
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char bytes[16];
        format_bytes(doc_get_u64(memory, parts[i].key), bytes);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s %s", i == 0 ? "" : ", ", parts[i].title,
                bytes);
    }
    row(table, "index_memory", text);
}

/* Writes by filter that are under way. */
static void by_filter_rows(struct table *table, struct doc list)
{
    struct doc_iter it = doc_iter(list);
    struct doc one;
    while (doc_next(&it, NULL, &one)) {
        char title[40], text[256];
        struct bytes op = doc_get_string(one, "op"), at = doc_get_string(one, "at"),
                     waits = doc_get_string(one, "waits");
        snprintf(title, sizeof title, "by_filter.%" PRIu64, doc_get_u64(one, "shard"));
        snprintf(text, sizeof text, "%.*s: %" PRIu64 " points in %" PRIu64 " steps%s%.*s%s%.*s", (int)op.len,
                op.len == 0 ? "" : (const char *)op.data, doc_get_u64(one, "affected"),
                doc_get_u64(one, "steps"), at.len > 0 ? ", up to id " : "", (int)at.len,
                at.len == 0 ? "" : (const char *)at.data, waits.len > 0 ? ", held up: " : "", (int)waits.len,
                waits.len == 0 ? "" : (const char *)waits.data);
        row(table, title, text);
    }
}

void print_index_rows(struct table *table, struct doc index)
{
    char text[256];
    if (index.data == NULL) return;
    char own[64] = "";
    uint64_t own_segments = doc_get_u64(index, "own_segments");
    if (own_segments > 0) snprintf(own, sizeof own, " (%" PRIu64 " of one group each)", own_segments);
    snprintf(text, sizeof text,
            "%" PRIu64 " rows in %" PRIu64 " segments%s, %" PRIu64 " in none; built %" PRIu64,
            doc_get_u64(index, "rows"), doc_get_u64(index, "segments"), own, doc_get_u64(index, "tail_rows"),
            doc_get_u64(index, "built_rows"));
    row(table, "index", text);
    snprintf(text, sizeof text, "%" PRIu64 " entries, of the shard that is furthest behind",
            doc_get_u64(index, "lag"));
    row(table, "index_lag", text);
    memory_row(table, doc_get(index, "memory"));
    struct doc_iter it = doc_iter(doc_get(index, "work"));
    struct doc work;
    while (doc_next(&it, NULL, &work)) {
        char title[40];
        snprintf(title, sizeof title, "index_work.%" PRIu64, doc_get_u64(work, "shard"));
        work_text(work, text, sizeof text);
        row(table, title, text);
    }
    by_filter_rows(table, doc_get(index, "by_filter"));
}

void index_cells(struct table *table, struct doc index)
{
    struct doc work = doc_get(index, "work");
    char text[160] = "";
    if (work.data != NULL) work_text(work, text, sizeof text);
    table_cellf(table, "%" PRIu64, doc_get_u64(index, "lag"));
    table_cellf(table, "%" PRIu64, doc_get_u64(index, "segments"));
    table_cell(table, text, strlen(text));
}

/* As it was asked for, or with brackets or what for at its end. */
static bool is_asked(struct doc asked, struct bytes path)
{
    struct doc_iter it = doc_iter(asked);
    struct doc one;
    while (doc_next(&it, NULL, &one)) {
        struct bytes text = doc_type(one) == DOC_STRING ? doc_string(one) : (struct bytes){ NULL, 0 };
        enum path_kind kind;
        if (text.data != NULL) text.len = path_kind_split((const char *)text.data, text.len, &kind);
        while (text.len > path.len && text.len >= 2 && memcmp(text.data + text.len - 2, "[]", 2) == 0)
            text.len -= 2;
        if (text.data != NULL && text.len == path.len && memcmp(text.data, path.data, path.len) == 0)
            return true;
    }
    return false;
}

void print_payload_fields(struct doc fields, struct doc asked)
{
    static const char *const members[] = { "segments", "rows", "values", "numbers", "times", "words",
        "places" };
    if (fields.data == NULL || doc_count(fields) == 0) return;
    struct table *table = table_new();
    table_column(table, "payload index", false);
    table_column(table, "made", false);
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) table_column(table, members[i], true);
    struct doc_iter it = doc_iter(fields);
    struct doc field;
    while (doc_next(&it, NULL, &field)) {
        struct bytes path = doc_get_string(field, "path");
        table_doc(table, doc_get(field, "path"));
        table_cellf(table, "%s", path.len > 0 && is_asked(asked, path) ? "asked" : "auto");
        for (size_t i = 0; i < sizeof members / sizeof *members; i++)
            table_cellf(table, "%" PRIu64, doc_get_u64(field, members[i]));
    }
    putchar('\n');
    table_print(table, stdout, terminal_width());
    table_free(table);
}

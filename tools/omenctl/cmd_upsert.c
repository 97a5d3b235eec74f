/* omenctl points upsert: JSON lines to batches. Consecutive lines with the same vector fields share a batch; a batch is
 * written whole or not at all. Threads: main only. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/clock.h"
#include "common/mem.h"
#include "tools/omenctl/cmd_points.h"
#include "tools/omenctl/output.h"

#define LINE_BYTES_MAX (8u << 20)
#define LINE_DOC_BYTES_MAX (4u << 20)
#define BATCH_VECTOR_BYTES_MAX (16u << 20) /* flushed before it grows past this */
#define NO_PAYLOAD SIZE_MAX

static uint64_t batch_max = 500, ttl_s;
static const char *wait_level;

const struct option UPSERT_OPTIONS[] = {
    { "--batch", OPTION_U64, &batch_max, "N", "points per request, 1 to 10000 (500)" },
    { "--wait", OPTION_TEXT, &wait_level, "LEVEL", "accepted, committed (default) or indexed" },
    { "--ttl", OPTION_U64, &ttl_s, "SECONDS", "points are gone so long after they were written" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

const char UPSERT_HELP[] =
        "One point a line, from FILE or standard input:\n"
        "  {\"id\": 1, \"vector\": [0.1, 0.2], \"payload\": {\"title\": \"Dune\"}}\n"
        "  {\"id\": \"6f1c2a1e-8a52-4f0e-9b1a-0c6f5b7d9e11\", \"vectors\": {\"text\": [0.1]}}\n"
        "A point may say when it ends: \"ttl\": 3600 in seconds from now on, or \"expires_ms\": Unix\n"
        "time in ms; else --ttl does, or nothing.\n"
        "Members \"version\", \"score\" and \"shard_key\" are passed over, so that what points scroll\n"
        "--json --with-vectors prints can be read again. Writing a point again replaces it.\n"
        "Examples:\n"
        "  omenctl points upsert books books.jsonl\n"
        "  zcat books.jsonl.gz | omenctl points upsert books -\n";

struct column {
    char field[OMEN_NAME_BYTES_MAX + 1];
    uint32_t dim;
    struct buf data;
};

struct batch {
    uint32_t capacity, count, column_count;
    omen_id *ids;            /* [capacity] */
    uint64_t *lines;         /* [capacity] 1-based line numbers */
    uint64_t *expires_ms;    /* [capacity] 0 = never */
    size_t *payload_offsets; /* [capacity] in `payloads`, or NO_PAYLOAD */
    struct buf payloads;     /* NUL-terminated JSON, one after the other */
    struct column columns[OMEN_VECTOR_FIELDS_MAX];
};

struct upsert {
    struct cli *cli;
    struct doc_builder *builder;
    struct batch batch;
    uint64_t line, written; /* points acknowledged */
    uint64_t batches;
};

/* ---- batch ---- */

static void batch_init(struct batch *batch, uint32_t capacity)
{
    *batch = (struct batch){ .capacity = capacity };
    batch->ids = mem_must_alloc(capacity * sizeof *batch->ids);
    batch->lines = mem_must_alloc(capacity * sizeof *batch->lines);
    batch->expires_ms = mem_must_alloc(capacity * sizeof *batch->expires_ms);
    batch->payload_offsets = mem_must_alloc(capacity * sizeof *batch->payload_offsets);
    buf_init(&batch->payloads);
    for (int i = 0; i < OMEN_VECTOR_FIELDS_MAX; i++) buf_init(&batch->columns[i].data);
}

static void batch_fini(struct batch *batch)
{
    mem_free(batch->ids);
    mem_free(batch->lines);
    mem_free(batch->expires_ms);
    mem_free(batch->payload_offsets);
    buf_fini(&batch->payloads);
    for (int i = 0; i < OMEN_VECTOR_FIELDS_MAX; i++) buf_fini(&batch->columns[i].data);
}

static void batch_clear(struct batch *batch)
{
    batch->count = batch->column_count = 0;
    buf_clear(&batch->payloads);
    for (int i = 0; i < OMEN_VECTOR_FIELDS_MAX; i++) buf_clear(&batch->columns[i].data);
}

/* The server names the row it refuses as "payloads[3]" or "ids[3]"; people count lines. */
static int fail_batch(const struct upsert *u, omen_code rc)
{
    const struct batch *batch = &u->batch;
    const char *field = omen_last_error_field(), *bracket = strchr(field, '[');
    char message[1024];
    unsigned long row = bracket == NULL ? batch->count : strtoul(bracket + 1, NULL, 10);
    if (batch->count == 1) row = 0;
    if (row < batch->count)
        snprintf(message, sizeof message, "line %llu: %s", (unsigned long long)batch->lines[row],
                omen_last_error());
    else
        snprintf(message, sizeof message, "lines %llu to %llu: %s", (unsigned long long)batch->lines[0],
                (unsigned long long)batch->lines[batch->count - 1], omen_last_error());
    return fail_text(rc, field, message);
}

static int batch_flush(struct upsert *u)
{
    struct batch *batch = &u->batch;
    if (batch->count == 0) return EXIT_OK;
    omen_vectors columns[OMEN_VECTOR_FIELDS_MAX];
    for (uint32_t i = 0; i < batch->column_count; i++)
        columns[i] = (omen_vectors){ batch->columns[i].field,
            (const float *)(const void *)batch->columns[i].data.data, batch->columns[i].dim };
    const char **payloads = mem_must_alloc(batch->count * sizeof *payloads);
    for (uint32_t i = 0; i < batch->count; i++)
        payloads[i] = batch->payload_offsets[i] == NO_PAYLOAD
                ? NULL
                : (const char *)batch->payloads.data + batch->payload_offsets[i];
    bool expires = false;
    for (uint32_t i = 0; i < batch->count; i++) expires |= batch->expires_ms[i] != 0;
    const omen_upsert_options options = { .expires_ms = expires ? batch->expires_ms : NULL,
        .wait = wait_level };
    omen_code rc = omen_upsert_with(u->cli->db, u->cli->arguments[0], batch->ids, columns,
            batch->column_count, payloads, batch->count, &options, NULL);
    mem_free(payloads);
    if (rc != OMEN_OK) return fail_batch(u, rc);
    u->written += batch->count;
    u->batches++;
    batch_clear(batch);
    return EXIT_OK;
}

/* ---- lines ---- */

static int fail_line(const struct upsert *u, const char *what)
{
    return fail_local("line %llu: %s", (unsigned long long)u->line, what);
}

/* Vectors of one line: (field, array) pairs in the doc's order, which is sorted by name. */
struct line_vectors {
    struct bytes names[OMEN_VECTOR_FIELDS_MAX];
    struct doc arrays[OMEN_VECTOR_FIELDS_MAX];
    uint32_t count;
};

static const char *find_vectors(struct doc line, struct line_vectors *out)
{
    struct doc vector = doc_get(line, "vector"), vectors = doc_get(line, "vectors");
    out->count = 0;
    if ((vector.data == NULL) == (vectors.data == NULL)) return "give either \"vector\" or \"vectors\"";
    if (vector.data != NULL) {
        out->names[0] = (struct bytes){ NULL, 0 };
        out->arrays[out->count++] = vector;
    } else {
        if (doc_type(vectors) != DOC_OBJECT) return "\"vectors\" is no object of name: [numbers]";
        struct doc_iter it = doc_iter(vectors);
        for (; out->count < OMEN_VECTOR_FIELDS_MAX; out->count++)
            if (!doc_next(&it, &out->names[out->count], &out->arrays[out->count])) break;
        if (it.left > 0) return "too many vector fields";
    }
    if (out->count == 0) return "no vector is given";
    for (uint32_t i = 0; i < out->count; i++) {
        if (doc_type(out->arrays[i]) != DOC_ARRAY) return "a vector is no array of numbers";
        if (doc_count(out->arrays[i]) == 0 || doc_count(out->arrays[i]) > OMEN_DIM_MAX)
            return "a vector has no or too many components";
        if (out->names[i].len > OMEN_NAME_BYTES_MAX) return "the name of a vector field is too long";
    }
    return NULL;
}

static bool batch_takes(const struct batch *batch, const struct line_vectors *vectors)
{
    if (batch->count == 0) return true;
    if (batch->count == batch->capacity || batch->column_count != vectors->count) return false;
    size_t bytes = batch->payloads.len;
    for (uint32_t i = 0; i < vectors->count; i++) {
        const struct column *column = &batch->columns[i];
        bytes += column->data.len;
        if (column->dim != doc_count(vectors->arrays[i]) || strlen(column->field) != vectors->names[i].len ||
                memcmp(column->field,
                        vectors->names[i].data == NULL ? (const void *)"" : vectors->names[i].data,
                        vectors->names[i].len) != 0)
            return false;
    }
    return bytes < BATCH_VECTOR_BYTES_MAX;
}

static void batch_open(struct batch *batch, const struct line_vectors *vectors)
{
    batch->column_count = vectors->count;
    for (uint32_t i = 0; i < vectors->count; i++) {
        struct column *column = &batch->columns[i];
        if (vectors->names[i].len > 0) memcpy(column->field, vectors->names[i].data, vectors->names[i].len);
        column->field[vectors->names[i].len] = '\0';
        column->dim = doc_count(vectors->arrays[i]);
    }
}

static const char *append_vector(struct column *column, struct doc array)
{
    struct doc_iter it = doc_iter(array);
    struct doc value;
    while (doc_next(&it, NULL, &value)) {
        if (!doc_is_number(value)) return "a vector has a component that is no number";
        float v = (float)doc_f64(value);
        buf_append(&column->data, &v, sizeof v);
    }
    return NULL;
}

static const char *parse_id(struct doc line, omen_id *id_out)
{
    struct doc id = doc_get(line, "id");
    if (id.data == NULL) return "no \"id\"";
    return id_of_doc(id, id_out) ? NULL : "\"id\" is neither a number of 0 or more nor a UUID";
}

static const char *check_members(struct doc line)
{
    static const char *const KNOWN[] = { "id", "vector", "vectors", "payload", "version", "score",
        "shard_key", "expires_ms", "ttl" };
    struct doc_iter it = doc_iter(line);
    struct bytes key;
    struct doc value;
    while (doc_next(&it, &key, &value)) {
        bool known = false;
        for (size_t i = 0; i < sizeof KNOWN / sizeof KNOWN[0]; i++)
            known |= strlen(KNOWN[i]) == key.len && memcmp(KNOWN[i], key.data, key.len) == 0;
        if (!known) return "unknown member: a point has \"id\", \"vector\" or \"vectors\", \"payload\"";
    }
    return NULL;
}

static const char *parse_expiry(struct doc line, uint64_t *expires_ms_out)
{
    struct doc ttl = doc_get(line, "ttl"), expires = doc_get(line, "expires_ms");
    uint64_t now_ms = clock_wall_ms(clock_system());
    *expires_ms_out = ttl_s == 0 ? 0 : now_ms + 1000 * ttl_s;
    if (ttl.data != NULL && expires.data != NULL) return "\"ttl\" and \"expires_ms\" exclude each other";
    if (expires.data != NULL) {
        if (doc_type(expires) != DOC_I64 || doc_i64(expires) < 0)
            return "\"expires_ms\" is no Unix time in ms";
        *expires_ms_out = (uint64_t)doc_i64(expires);
    }
    if (ttl.data != NULL) {
        double seconds = doc_is_number(ttl) ? doc_f64(ttl) : -1;
        if (!(seconds > 0 && seconds < 1e12)) return "\"ttl\" is no number of seconds";
        *expires_ms_out = now_ms + (uint64_t)(1000 * seconds);
    }
    return NULL;
}

static const char *append_payload(struct batch *batch, struct doc line)
{
    struct doc payload = doc_get(line, "payload");
    batch->payload_offsets[batch->count] = NO_PAYLOAD;
    if (payload.data == NULL || doc_type(payload) == DOC_NULL) return NULL;
    if (doc_type(payload) != DOC_OBJECT) return "\"payload\" is no object";
    batch->payload_offsets[batch->count] = batch->payloads.len;
    json_write(payload, &batch->payloads);
    buf_append_zero(&batch->payloads, 1);
    return NULL;
}

static int take_line(struct upsert *u, const char *text, size_t len)
{
    struct doc line;
    struct err err;
    doc_builder_reset(u->builder, LINE_DOC_BYTES_MAX);
    if (json_parse(text, len, u->builder, &line, &err) != OMEN_OK) return fail_line(u, err.message);
    if (doc_type(line) != DOC_OBJECT) return fail_line(u, "no JSON object");
    struct line_vectors vectors;
    omen_id id;
    const char *wrong = check_members(line);
    if (wrong == NULL) wrong = parse_id(line, &id);
    if (wrong == NULL) wrong = find_vectors(line, &vectors);
    if (wrong != NULL) return fail_line(u, wrong);
    struct batch *batch = &u->batch;
    if (!batch_takes(batch, &vectors)) {
        int code = batch_flush(u);
        if (code != EXIT_OK) return code;
    }
    if (batch->count == 0) batch_open(batch, &vectors);
    for (uint32_t i = 0; wrong == NULL && i < vectors.count; i++)
        wrong = append_vector(&batch->columns[i], vectors.arrays[i]);
    if (wrong == NULL) wrong = append_payload(batch, line);
    if (wrong == NULL) wrong = parse_expiry(line, &batch->expires_ms[batch->count]);
    if (wrong != NULL) return fail_line(u, wrong);
    for (uint32_t i = 0; i < vectors.count; i++)
        if (batch->columns[i].data.failed || batch->payloads.failed) panic("no memory for a batch");
    batch->ids[batch->count] = id;
    batch->lines[batch->count++] = u->line;
    return EXIT_OK;
}

static int take_file(struct upsert *u, FILE *file)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t len;
    int code = EXIT_OK;
    while (code == EXIT_OK && (len = getline(&line, &capacity, file)) >= 0) {
        u->line++;
        if ((size_t)len > LINE_BYTES_MAX)
            code = fail_line(u, "the line is longer than 8 MiB");
        else if (line[strspn(line, " \t\r\n")] != '\0')
            code = take_line(u, line, (size_t)len);
    }
    if (code == EXIT_OK && ferror(file)) code = fail_local("cannot read: %s", strerror(errno));
    free(line);
    return code == EXIT_OK ? batch_flush(u) : code;
}

int run_upsert(struct cli *cli)
{
    uint32_t capacity = args_u32(cli, "--batch", batch_max, 1, OMEN_BATCH_POINTS_MAX);
    (void)args_u32(cli, "--ttl", ttl_s, 0, UINT32_MAX);
    const char *path = cli->argument_count < 2 ? "-" : cli->arguments[1];
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (file == NULL) return fail_local("cannot open %s: %s", path, strerror(errno));
    struct upsert u = { .cli = cli, .builder = doc_builder_new(LINE_DOC_BYTES_MAX) };
    if (u.builder == NULL) panic("out of memory");
    batch_init(&u.batch, capacity);
    int code = take_file(&u, file);
    if (file != stdin) (void)fclose(file);
    batch_fini(&u.batch);
    doc_builder_free(u.builder);
    if (code != EXIT_OK && u.written > 0)
        fprintf(stderr, "omenctl: %llu points before that are written\n", (unsigned long long)u.written);
    if (cli->json)
        printf("{\"points\":%llu,\"batches\":%llu}\n", (unsigned long long)u.written,
                (unsigned long long)u.batches);
    else if (code == EXIT_OK)
        (void)tell_affected(cli, "wrote", u.written);
    return code;
}

/* omenctl import: a data-set folder (common/dataset) through the client's pipeline. Ids are row numbers or a payload's
 * member, so importing again replaces each point by itself.
 * Threads: main reads and submits; progress is told from the library's thread. */
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/clock.h"
#include "common/dataset/dataset.h"
#include "common/json.h"
#include "common/mem.h"
#include "common/placement/map.h"
#include "common/utf8.h"
#include "tools/omenctl/args.h"
#include "tools/omenctl/output.h"
#include "tools/omenctl/progress.h"

#define BULK_MS 60000u       /* that a load is announced for at a time */
#define BULK_ROWS_MIN 50000u /* fewer are indexed at once anyway */

static struct {
    const char *collection, *shard_key, *id_field;
    bool create, no_bulk;
    uint64_t batch, depth, limit, shards, replication;
} o = { .batch = 500, .depth = 8, .shards = 1, .replication = 1 };

static const struct option OPTIONS[] = {
    { "--collection", OPTION_TEXT, &o.collection, "NAME", "where to (the data set's name)" },
    { "--create", OPTION_FLAG, &o.create, NULL, "create the collection if it is not there" },
    { "--shard-key", OPTION_TEXT, &o.shard_key, "PATH",
            "with --create: payload path whose value places a point" },
    { "--shards", OPTION_U64, &o.shards, "N", "with --create: shards, 1 to 256 (1)" },
    { "--replication", OPTION_U64, &o.replication, "R", "with --create: copies of each shard, 1 to 7 (1)" },
    { "--no-bulk", OPTION_FLAG, &o.no_bulk, NULL,
            "let indexes be built meanwhile, rather than once at the end" },
    { "--batch", OPTION_U64, &o.batch, "N", "points per request, 1 to 10000 (500)" },
    { "--depth", OPTION_U64, &o.depth, "N", "requests in flight, 1 to 256 (8)" },
    { "--limit", OPTION_U64, &o.limit, "N", "only the first N rows" },
    { "--id-field", OPTION_TEXT, &o.id_field, "PATH", "payload member that is the id (the row number)" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

struct import {
    struct cli *cli;
    struct dataset dataset;
    const char *collection;
    omen_pipeline *pipeline;
    struct progress progress;
    uint64_t bulk_renew_ms;         /* when the bulk load is to be announced again; UINT64_MAX: it is not */
    const struct doc_path *id_path; /* NULL = row numbers */
    struct arena arena;
    struct doc_builder *builder;
    omen_id *ids;          /* [batch] */
    float *vectors;        /* [batch][dim] */
    size_t *offsets;       /* [batch] of payloads in `text` */
    const char **payloads; /* [batch] */
    struct buf text;
};

/* ---- collection ---- */

static int create_collection(struct import *im)
{
    const struct dataset *ds = &im->dataset;
    omen_collection_options options = { .dim = ds->base.dim,
        .metric = metric_name(ds->metric),
        .shard_key = o.shard_key,
        .shards = args_u32(im->cli, "--shards", o.shards, 1, OMEN_SHARDS_MAX),
        .replication = args_u32(im->cli, "--replication", o.replication, 1, OMEN_REPLICAS_MAX - 1) };
    omen_code rc = omen_collection_create(im->cli->db, im->collection, &options);
    if (rc == OMEN_EEXISTS) return EXIT_OK; /* writes check that it fits */
    return rc == OMEN_OK ? EXIT_OK : fail_with(rc);
}

/* ---- rows ---- */

/* The id in a payload line; NULL, or what is wrong. */
static const char *id_of_payload(struct import *im, struct bytes line, omen_id *id_out)
{
    struct doc payload;
    doc_builder_reset(im->builder, DOC_BYTES_MAX);
    if (json_parse((const char *)line.data, line.len, im->builder, &payload, NULL) != OMEN_OK)
        return "is no JSON payload";
    if (id_of_doc(doc_path_first(im->id_path, payload), id_out)) return NULL;
    return "has no id (a number of 0 or more, or a UUID) at --id-field";
}

/* The line as a payload's JSON text, with its NUL, at the end of `text`. */
static struct bytes append_payload(struct import *im, struct bytes line)
{
    const char *member = im->dataset.payload_member;
    size_t start = im->text.len;
    if (member[0] == '\0') {
        buf_append(&im->text, line.data, line.len);
    } else {
        buf_append(&im->text, "{", 1);
        put_string(&im->text, member);
        buf_append(&im->text, ":", 1);
        json_write_string(line, &im->text);
        buf_append(&im->text, "}", 1);
    }
    size_t len = im->text.len - start;
    buf_append_zero(&im->text, 1);
    if (im->text.failed) panic("no memory for a batch");
    return (struct bytes){ im->text.data + start, len };
}

static int fill_row(struct import *im, uint64_t row, uint32_t i)
{
    const struct dataset *ds = &im->dataset;
    matrix_row_f32(&ds->base, row, im->vectors + (size_t)i * ds->base.dim);
    im->ids[i] = (omen_id){ .number = row };
    if (ds->payload == NULL) return EXIT_OK;
    struct bytes line = dataset_payload_next(&im->dataset);
    if (line.data == NULL)
        return fail_local("%s: the payload ends before row %llu", ds->dir, (unsigned long long)row);
    im->offsets[i] = im->text.len;
    if (im->dataset.payload_member[0] != '\0' && !utf8_valid(line.data, line.len))
        return fail_local("%s: payload of row %llu is no UTF-8 text", ds->dir, (unsigned long long)row);
    line = append_payload(im, line);
    const char *wrong = im->id_path == NULL ? NULL : id_of_payload(im, line, &im->ids[i]);
    return wrong == NULL ? EXIT_OK
                         : fail_local("%s: payload of row %llu %s", ds->dir, (unsigned long long)row, wrong);
}

static int submit(struct import *im, uint64_t first, uint32_t count)
{
    bool with_payload = im->dataset.payload != NULL;
    for (uint32_t i = 0; with_payload && i < count; i++)
        im->payloads[i] = (const char *)im->text.data + im->offsets[i];
    omen_code rc = omen_pipeline_upsert(im->pipeline, im->ids, im->vectors, im->dataset.base.dim,
            with_payload ? im->payloads : NULL, count);
    if (rc == OMEN_OK) return EXIT_OK;
    char message[1024];
    snprintf(message, sizeof message, "rows %llu to %llu or before: %s", (unsigned long long)first,
            (unsigned long long)(first + count - 1), omen_last_error());
    return fail_text(rc, omen_last_error_field(), message);
}

/* Tell the collection that a bulk load runs for a while longer, so that indexes wait and are built once; 0: it is over. Who
 * may not change collections loads without. */
static void bulk_announce(struct import *im, bool runs)
{
    char text[80];
    uint64_t now_ms = clock_wall_ms(clock_system());
    if (runs ? now_ms < im->bulk_renew_ms : im->bulk_renew_ms == UINT64_MAX) return;
    snprintf(text, sizeof text, "{\"bulk_until_ms\": %llu}",
            runs ? (unsigned long long)(now_ms + BULK_MS) : 0ull);
    bool told = omen_collection_set(im->cli->db, im->collection, text) == OMEN_OK;
    im->bulk_renew_ms = runs && told ? now_ms + BULK_MS / 3 : UINT64_MAX;
}

static int send_rows(struct import *im, uint64_t rows)
{
    for (uint64_t first = 0; first < rows; first += o.batch) {
        bulk_announce(im, true);
        uint32_t count = (uint32_t)(rows - first < o.batch ? rows - first : o.batch);
        buf_clear(&im->text);
        int code = EXIT_OK;
        for (uint32_t i = 0; code == EXIT_OK && i < count; i++) code = fill_row(im, first + i, i);
        if (code == EXIT_OK) code = submit(im, first, count);
        if (code != EXIT_OK) return code;
    }
    return EXIT_OK;
}

static void on_ack(void *arg, size_t count) { progress_add(arg, count); }

static int load(struct import *im, uint64_t rows)
{
    im->bulk_renew_ms = o.no_bulk || rows < BULK_ROWS_MIN ? UINT64_MAX : 0;
    omen_code rc = omen_pipeline_open(im->cli->db, im->collection, (uint32_t)o.depth, &im->pipeline);
    if (rc != OMEN_OK) return fail_with(rc);
    progress_start(&im->progress, "vectors", rows);
    omen_pipeline_on_ack(im->pipeline, on_ack, &im->progress);
    int code = send_rows(im, rows);
    uint64_t acknowledged = 0;
    rc = omen_pipeline_finish(im->pipeline, &acknowledged);
    bulk_announce(im, false);
    double seconds = progress_end(&im->progress);
    if (rc != OMEN_OK && code == EXIT_OK) code = fail_with(rc);
    double rate = seconds > 0 ? (double)acknowledged / seconds : 0;
    if (im->cli->json) {
        printf("{\"points\":%llu,\"seconds\":%.6f,\"vectors_per_second\":%.1f,\"acknowledged\":%llu}\n",
                (unsigned long long)rows, seconds, rate, (unsigned long long)acknowledged);
    } else {
        printf("%llu of %llu points acknowledged in %.2f s: %.0f vectors/s\n",
                (unsigned long long)acknowledged, (unsigned long long)rows, seconds, rate);
    }
    return code;
}

static int import_dataset(struct import *im)
{
    const struct dataset *ds = &im->dataset;
    struct err err;
    uint64_t rows = o.limit != 0 && o.limit < ds->base.count ? o.limit : ds->base.count;
    im->collection = o.collection != NULL ? o.collection : ds->name;
    if (im->collection[0] == '\0')
        usage_fail(im->cli->command, "the data set has no name: give --collection");
    if (o.id_field != NULL) {
        if (ds->payload == NULL) usage_fail(im->cli->command, "--id-field: the data set has no payload");
        if (doc_path_parse(o.id_field, strlen(o.id_field), &im->arena, &im->id_path, &err) != OMEN_OK)
            usage_fail(im->cli->command, "--id-field: %s", err.message);
    }
    im->ids = mem_must_alloc(o.batch * sizeof *im->ids);
    im->vectors = mem_must_alloc(o.batch * ds->base.dim * sizeof *im->vectors);
    im->offsets = mem_must_alloc(o.batch * sizeof *im->offsets);
    im->payloads = mem_must_alloc(o.batch * sizeof *im->payloads);
    int code = o.create ? create_collection(im) : EXIT_OK;
    if (code == EXIT_OK) code = load(im, rows);
    mem_free(im->ids);
    mem_free(im->vectors);
    mem_free(im->offsets);
    mem_free(im->payloads);
    return code;
}

static int run_import(struct cli *cli)
{
    struct import im = { .cli = cli };
    struct err err;
    (void)args_u32(cli, "--batch", o.batch, 1, OMEN_BATCH_POINTS_MAX);
    (void)args_u32(cli, "--depth", o.depth, 1, 256);
    if ((o.shard_key != NULL || o.shards != 1 || o.replication != 1) && !o.create)
        usage_fail(cli->command, "--shard-key, --shards and --replication go with --create");
    if (dataset_open(cli->arguments[0], &im.dataset, &err) != OMEN_OK) return fail_local("%s", err.message);
    arena_init(&im.arena, 1024, 0);
    buf_init(&im.text);
    im.builder = doc_builder_new(DOC_BYTES_MAX);
    if (im.builder == NULL) panic("out of memory");
    int code = import_dataset(&im);
    doc_builder_free(im.builder);
    buf_fini(&im.text);
    arena_fini(&im.arena);
    dataset_close(&im.dataset);
    return code;
}

const struct command IMPORT_COMMANDS[] = {
    { .name = "import",
            .arguments = "DIR",
            .summary = "Load a data-set folder",
            .options = OPTIONS,
            .argument_min = 1,
            .argument_max = 1,
            .patient = true,
            .run = run_import,
            .help = "DIR holds meta.json {name, count, dim, metric, base, query, truth, "
                    "payload}. Vectors: .fbin .f16bin .u8bin\n"
                    "(u32 rows, u32 dims, rows), .fvecs .bvecs .npy; payload: JSON lines, line i for row i,\n"
                    "or NAME.txt: a text a line, the payload's one member NAME.\n"
                    "An import that was broken off is simply run again: points are replaced by themselves.\n"
                    "Examples:\n  omenctl import build/demo/data --collection packages --create\n"
                    "  omenctl --json import sift --create --limit 100000 --depth 16\n" },
    { .name = NULL },
};

/* The payload index of a segment: built from the rows that its slots name, built again when it cannot be read. A segment
 * without one is searched all the same, payload by payload. */
#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "storage/segment/segment_impl.h"

struct rows_of_segment {
    const struct segment *segment;
    const struct index_control *control; /* NULL: nobody stops it */
};

/* Also rows that died since: a view of before may see them. What was compacted away no view sees any more. */
static bool row_at(void *arg, uint32_t row, point_id *id_out, struct doc *payload_out)
{
    const struct segment *s = ((struct rows_of_segment *)arg)->segment;
    const struct block *block = blocks_at(s->blocks, s->slots[row].block);
    struct entry_op op;
    if (block->died == NULL || s->slots[row].op >= block->entry.op_count) return false;
    entry_op_at(&block->entry, s->slots[row].op, &op);
    if (op.kind != POINT_UPSERT || op.rows[s->field] == ENTRY_NO_ROW) return false;
    *id_out = op.key.id;
    *payload_out = op.payload;
    return true;
}

static bool row_stop(void *arg)
{
    const struct index_control *control = ((struct rows_of_segment *)arg)->control;
    return control != NULL && control->stop != NULL && control->stop(control->arg);
}

/* Searches may still look at the file that stands there through their maps: a new one never goes into it. */
static void payload_unlink(const struct segment *s, const char *path)
{
    struct err ignored;
    (void)!vfs_unlink(s->vfs, path, &ignored);
}

enum omen_err segment_payload_build(struct segment *s, const char *first, const struct index_control *control,
        struct err *err)
{
    char path[SEGMENT_PATH_BYTES];
    struct rows_of_segment rows = { s, control };
    const struct payload_source source = { s->count, row_at, row_stop, &rows, first };
    segment_path(s->dir, s->number, SEGMENT_PAYLOAD, path);
    payload_unlink(s, path);
    enum omen_err rc = payload_index_build(&source, s->vfs, path, err);
    if (rc == OMEN_OK) rc = payload_index_open(s->vfs, path, s->count, &s->payload, err);
    if (rc == OMEN_OK) return OMEN_OK;
    payload_unlink(s, path);
    return rc == OMEN_ETOOBIG || rc == OMEN_ENOMEM ? OMEN_OK : rc; /* then without */
}

enum omen_err segment_payload_open(struct segment *s, const char *first, const struct index_control *control,
        struct err *err)
{
    char path[SEGMENT_PATH_BYTES];
    segment_path(s->dir, s->number, SEGMENT_PAYLOAD, path);
    enum omen_err rc = payload_index_open(s->vfs, path, s->count, &s->payload, err);
    if (rc == OMEN_OK) return rc;
    bool rebuild = rc == OMEN_ENOTFOUND || rc == OMEN_ECORRUPT || rc == OMEN_EVERSION;
    if (rebuild) {
        LOG_INFO("segment.payload_rebuild", "number=%llu reason=\"%s\"", (unsigned long long)s->number,
                err->message);
        rc = segment_payload_build(s, first, control, err);
    }
    if (rc == OMEN_ECANCELED) return rc;
    if (rc != OMEN_OK)
        LOG_WARN("segment.payload_missing", "number=%llu reason=\"%s\"", (unsigned long long)s->number,
                err->message);
    return OMEN_OK;
}

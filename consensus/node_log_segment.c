/* Segments of the node log on disk: taken into use, recycled. node_log_spare.c prepares them; see node_log_impl.h for
 * threads and locks.
 *
 *   (no file) --allocate, zero, sync--> spare-N --header, sync, rename, sync dir--> N.log
 *   N.log --rename, sync dir--> spare-N
 * A file named N.log therefore always has a valid header with that number; a crash in between leaves a spare.
 * A recycled file still holds batches of its old life: they carry the old
 * segment number.
 *
 * Zeroed ahead and not merely allocated: the first write into an allocated but unwritten extent changes the
 * file's metadata, so each fdatasync would commit the file system's journal. Synced appends in us, ext4 on a
 * virtual disk of a shared two-core machine; median of 7 interleaved rounds' p50 (lowest..highest round), 100
 * appends a round, 40 at 512 KB:
 *                      512 B            4 KB             64 KB            512 KB
 *   sparse             182 (129..209)   187 (173..213)   212 (186..270)   567 (445..654)
 *   allocated          122 (86..138)    194 (139..211)   222 (179..281)   537 (423..584)
 *   zeroed             133 (103..165)   133 (115..169)   172 (123..199)   406 (345..423)
 *   zeroed, O_DSYNC    144 (101..177)   136 (120..182)   160 (147..195)   404 (341..440)
 *   zeroed, O_DIRECT   120 (101..136)   120 (106..143)   143 (139..176)   289 (257..313)
 * From 4 KB up zeroed beats allocated. O_DSYNC cannot be told from fdatasync. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/node_log_impl.h"

void log_segment_path(const struct node_log *log, uint64_t number, char out[LOG_PATH_BYTES])
{
    int n = snprintf(out, LOG_PATH_BYTES, "%s/%016" PRIx64 ".log", log->dir, number);
    CHECK(n > 0 && n < (int)LOG_PATH_BYTES); /* the directory's length was checked at open */
}

void log_spare_path(const struct node_log *log, uint64_t name, char out[LOG_PATH_BYTES])
{
    int n = snprintf(out, LOG_PATH_BYTES, "%s/spare-%016" PRIx64, log->dir, name);
    CHECK(n > 0 && n < (int)LOG_PATH_BYTES);
}

bool log_hex16_parse(const char *text, uint64_t *number_out)
{
    uint64_t number = 0;
    for (int i = 0; i < 16; i++) {
        char c = text[i];
        if (c >= '0' && c <= '9')
            number = number << 4 | (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            number = number << 4 | (uint64_t)(c - 'a' + 10);
        else
            return false;
    }
    *number_out = number;
    return true;
}

bool log_segment_name_parse(const char *name, uint64_t *number_out)
{
    return log_hex16_parse(name, number_out) && strcmp(name + 16, ".log") == 0;
}

void log_segment_free(struct log_segment *segment)
{
    if (segment == NULL) return;
    mem_free(segment->uses);
    mem_free(segment);
}

struct log_segment *log_segment_add(struct node_log *log, const struct node_log_segment_header *header)
{
    struct log_segment *segment = mem_must_calloc(1, sizeof *segment);
    segment->number = header->number;
    segment->bytes = header->bytes;
    segment->first_batch = header->first_batch;
    segment->end = NODE_LOG_HEADER_BYTES;
    if (log->segment_count == log->segment_cap) {
        log->segment_cap = log->segment_cap == 0 ? 16 : log->segment_cap * 2;
        log->segments = mem_must_realloc(log->segments, log->segment_cap * sizeof *log->segments);
    }
    log->segments[log->segment_count++] = segment;
    log_bytes_changed(log);
    return segment;
}

/* ---- recycling ---- */

static void dir_sync_or_panic(struct node_log *log)
{
    struct err err = { 0 };
    if (vfs_sync_dir(log->options.vfs, log->dir, &err) != OMEN_OK) panic("node log: %s", err.message);
}

/* The old segment leaves the chain; true when it became a spare. Synced before the next one may leave, so
 * that a crash cannot leave a gap. */
static bool segment_retire(struct node_log *log, const struct log_segment *segment, bool keep,
        uint64_t spare_name)
{
    char path[LOG_PATH_BYTES], spare[LOG_PATH_BYTES];
    struct err err = { 0 };
    log_segment_path(log, segment->number, path);
    log_spare_path(log, spare_name, spare);
    enum omen_err rc = keep ? vfs_rename(log->options.vfs, path, spare, &err) : OMEN_EFULL;
    if (rc == OMEN_EFULL) { /* not wanted, or no room for the directory to grow */
        keep = false;
        rc = vfs_unlink(log->options.vfs, path, &err);
    }
    if (rc != OMEN_OK) panic("node log: %s", err.message);
    dir_sync_or_panic(log);
    return keep;
}

void log_helper_recycle(struct node_log *log)
{
    struct log_segment *segment = log->segments[0];
    log->segment_count--;
    memmove(log->segments, log->segments + 1, log->segment_count * sizeof *log->segments);
    log_bytes_changed(log);
    struct log_spare spare = { log->spare_next++, segment->bytes };
    bool keep = log_spare_keeps(log, spare.bytes);
    log->recycling = true;
    pthread_mutex_unlock(&log->mutex);

    keep = segment_retire(log, segment, keep, spare.name);
    LOG_DEBUG("node_log.recycle", "segment=%llu kept=%d", (unsigned long long)segment->number, keep);

    pthread_mutex_lock(&log->mutex);
    log->recycling = false;
    /* Else one was given back meanwhile; the file is looked at again at the next start. */
    if (keep && log->spare_count < LOG_SPARES_MAX) log_spare_add(log, &spare);
    pthread_cond_broadcast(&log->spare);
    /* Groups point at segments by number only, and numbers are never used again. */
    log_segment_free(segment);
}

/* ---- taking a segment into use ---- */

/* The spare gets its header and its name. The old current segment stays current when the directory is
 * full. */
static enum omen_err segment_enter(struct node_log *log, uint64_t name,
        const struct node_log_segment_header *header)
{
    char spare[LOG_PATH_BYTES], path[LOG_PATH_BYTES];
    struct err err = { 0 };
    struct vfs_file *file = NULL;
    uint8_t bytes[NODE_LOG_HEADER_BYTES];
    log_spare_path(log, name, spare);
    log_segment_path(log, header->number, path);
    node_log_header_encode(header, bytes);
    if (vfs_open(log->options.vfs, spare, VFS_READ | VFS_WRITE, &file, &err) != OMEN_OK)
        panic("node log: %s", err.message);
    if (vfs_pwrite(file, bytes, sizeof bytes, 0, &err) != OMEN_OK) panic("node log: %s", err.message);
    if (vfs_datasync(file, &err) != OMEN_OK) panic("node log: %s", err.message);
    enum omen_err rc = vfs_rename(log->options.vfs, spare, path, &err);
    if (rc == OMEN_EFULL) {
        vfs_close(file);
        return rc;
    }
    if (rc != OMEN_OK) panic("node log: %s", err.message);
    dir_sync_or_panic(log);
    vfs_close(log->file);
    log->file = file;
    memcpy(log->path, path, sizeof log->path);
    return OMEN_OK;
}

enum omen_err log_roll(struct node_log *log, enum node_log_claim claim, uint64_t batch_bytes)
{
    struct log_spare spare = { .bytes = NODE_LOG_HEADER_BYTES + batch_bytes };
    enum omen_err rc;
    if (spare.bytes <= log->options.segment_bytes) {
        rc = log_spare_take(log, claim, spare.bytes, &spare);
    } else {
        pthread_mutex_lock(&log->mutex);
        spare.name = log->spare_next++;
        pthread_mutex_unlock(&log->mutex);
        rc = log_spare_prepare(log, &spare, true);
    }
    if (rc != OMEN_OK) return rc;
    struct node_log_segment_header header = {
        .node_id = log->options.node_id,
        .number = log->last_number + 1,
        .first_batch = log->next_batch,
        .previous = log->last_number,
        .previous_end = log->last_end,
        .bytes = spare.bytes,
    };
    rc = segment_enter(log, spare.name, &header);
    if (rc != OMEN_OK) {
        log_spare_give_back(log, &spare);
        return rc;
    }
    pthread_mutex_lock(&log->mutex);
    log->current = log_segment_add(log, &header);
    pthread_mutex_unlock(&log->mutex);
    log->last_number = header.number;
    log->last_end = NODE_LOG_HEADER_BYTES;
    log->carry_due = true;
    return OMEN_OK;
}

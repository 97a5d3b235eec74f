/* Recovery of the node log: every byte up to the end is verified before anybody is served. See node_log.h for
 * C3 and node_log_impl.h for threads. A segment is read whole into memory, one at a time (32 MiB by default,
 * 1 GiB at most).
 *
 * What is read was perhaps never synced (the process died, not the machine): the last segment and the
 * directory are synced before anything of it is handed out as durable. Nothing is written otherwise: a torn
 * tail stays where it is, and the segment begun by the first append says where the one before ended. */
#include "common/err.h"

#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/log.h"
#include "common/mem.h"
#include "consensus/node_log_impl.h"

#define DIRECTORY_NAMES_MAX (1u << 16) /* segments and spares in one directory */

struct names {
    uint64_t *numbers; /* of segments */
    uint32_t count, cap;
    char (*spares)[40];
    uint32_t spare_count, spare_cap;
    bool too_many;
};

static bool name_add(void *arg, const char *name)
{
    struct names *names = arg;
    uint64_t number;
    if (strncmp(name, "spare-", 6) == 0 && strlen(name) < sizeof names->spares[0]) {
        if (names->spare_count == names->spare_cap) {
            names->spare_cap = names->spare_cap == 0 ? 8 : names->spare_cap * 2;
            names->spares = mem_must_realloc(names->spares, names->spare_cap * sizeof names->spares[0]);
        }
        strcpy(names->spares[names->spare_count++], name);
    } else if (strlen(name) == 20 && log_segment_name_parse(name, &number)) {
        if (names->count == names->cap) {
            names->cap = names->cap == 0 ? 16 : names->cap * 2;
            names->numbers = mem_must_realloc(names->numbers, names->cap * sizeof *names->numbers);
        }
        names->numbers[names->count++] = number;
    }
    names->too_many = names->count + names->spare_count > DIRECTORY_NAMES_MAX;
    return !names->too_many;
}

static int number_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* On a disk that is full they are all that the first vote will find. */
static enum omen_err spares_keep(struct node_log *log, const struct names *names, struct err *err)
{
    enum omen_err rc = OMEN_OK;
    pthread_mutex_lock(&log->mutex);
    for (uint32_t i = 0; i < names->spare_count && rc == OMEN_OK; i++)
        rc = log_spare_keep_or_remove(log, names->spares[i], err);
    pthread_mutex_unlock(&log->mutex);
    return rc;
}

static enum omen_err segment_load(struct node_log *log, uint64_t number, uint8_t **image_out,
        uint64_t *bytes_out, struct node_log_segment_header *header_out, struct err *err)
{
    char path[LOG_PATH_BYTES];
    size_t len = 0;
    log_segment_path(log, number, path);
    enum omen_err rc = vfs_read_file(log->options.vfs, path,
            NODE_LOG_SEGMENT_BYTES_MAX + NODE_LOG_RECORD_BYTES_MAX, image_out, &len, err);
    if (rc != OMEN_OK) return rc;
    *bytes_out = len;
    rc = node_log_header_decode(*image_out, len, path, header_out, err);
    if (rc == OMEN_OK && header_out->number != number)
        rc = err_corrupt(err, path, 16, "segment number differs from the file's name");
    if (rc == OMEN_OK && header_out->node_id != log->options.node_id)
        rc = err_set(err, OMEN_EINVAL, NULL, "%s: belongs to node %llu, this is node %llu", path,
                (unsigned long long)header_out->node_id, (unsigned long long)log->options.node_id);
    if (rc != OMEN_OK) {
        mem_free(*image_out);
        *image_out = NULL;
    }
    return rc;
}

struct recovery {
    struct node_log *log;
    struct log_segment *segment;
    node_log_replay replay;
    void *arg;
};

static enum omen_err recover_record(void *arg, const struct node_log_record *record)
{
    struct recovery *r = arg;
    log_account(r->log, r->segment, record);
    return r->replay != NULL ? r->replay(r->arg, record) : OMEN_OK;
}

/* One segment, given its successor's header (NULL for the last). */
static enum omen_err segment_recover(struct recovery *r, const struct node_log_segment_header *header,
        const uint8_t *image, uint64_t bytes, const struct node_log_segment_header *successor,
        struct err *err)
{
    char path[LOG_PATH_BYTES];
    log_segment_path(r->log, header->number, path);
    struct node_log_walk walk = {
        .path = path,
        .number = header->number,
        .next_batch = header->first_batch,
        .recorded_end = successor != NULL ? successor->previous_end : 0,
    };
    if (successor != NULL && successor->previous_end < NODE_LOG_HEADER_BYTES)
        return err_corrupt(err, path, 40, "the next segment records an impossible end");
    r->segment = log_segment_add(r->log, header);
    enum omen_err rc = node_log_walk(&walk, image, bytes, recover_record, r, err);
    if (rc != OMEN_OK) return rc;
    if (successor != NULL && successor->first_batch != walk.next_batch)
        return err_corrupt(err, path, walk.end, "the next segment begins with another batch number");
    r->segment->end = walk.end;
    r->segment->batch_count = walk.batch_count;
    r->log->last_number = header->number;
    r->log->last_end = walk.end;
    r->log->next_batch = walk.next_batch;
    return OMEN_OK;
}

static enum omen_err segment_sync(struct node_log *log, uint64_t number, struct err *err)
{
    char path[LOG_PATH_BYTES];
    struct vfs_file *file = NULL;
    log_segment_path(log, number, path);
    enum omen_err rc = vfs_open(log->options.vfs, path, VFS_READ | VFS_WRITE, &file, err);
    if (rc != OMEN_OK) return rc;
    rc = vfs_datasync(file, err);
    vfs_close(file);
    return rc;
}

static enum omen_err segments_recover(struct node_log *log, const struct names *names, node_log_replay replay,
        void *arg, struct err *err)
{
    struct recovery r = { .log = log, .replay = replay, .arg = arg };
    struct node_log_segment_header header, successor = { 0 };
    uint8_t *image = NULL, *next = NULL;
    uint64_t bytes = 0, next_bytes = 0;
    enum omen_err rc = segment_load(log, names->numbers[0], &image, &bytes, &header, err);
    for (uint32_t i = 0; rc == OMEN_OK && i < names->count; i++) {
        bool last = i + 1 == names->count;
        if (!last && names->numbers[i + 1] != names->numbers[i] + 1) {
            char path[LOG_PATH_BYTES];
            log_segment_path(log, names->numbers[i] + 1, path);
            rc = err_corrupt(err, path, 0, "segment is missing");
            break;
        }
        if (!last) rc = segment_load(log, names->numbers[i + 1], &next, &next_bytes, &successor, err);
        if (rc == OMEN_OK) rc = segment_recover(&r, &header, image, bytes, last ? NULL : &successor, err);
        mem_free(image);
        image = next;
        bytes = next_bytes;
        header = successor;
        next = NULL;
    }
    mem_free(image);
    mem_free(next);
    return rc;
}

/* ---- reading one group back ---- */

struct group_reader {
    uint64_t group;
    node_log_replay replay;
    void *arg;
};

static enum omen_err group_record(void *arg, const struct node_log_record *record)
{
    const struct group_reader *r = arg;
    return record->group == r->group ? r->replay(r->arg, record) : OMEN_OK;
}

/* Nothing is recycled while a reader is at work; what is appended meanwhile is not seen. */
static struct log_segment *segments_hold(struct node_log *log, uint32_t *count_out)
{
    pthread_mutex_lock(&log->mutex);
    log->readers++;
    while (log->recycling) pthread_cond_wait(&log->spare, &log->mutex);
    *count_out = log->segment_count;
    struct log_segment *copy = mem_must_calloc(log->segment_count + 1, sizeof *copy);
    for (uint32_t i = 0; i < log->segment_count; i++)
        copy[i] = *log->segments[i]; /* `uses` is not looked at */
    pthread_mutex_unlock(&log->mutex);
    return copy;
}

static void segments_unhold(struct node_log *log, struct log_segment *copy)
{
    pthread_mutex_lock(&log->mutex);
    log->readers--;
    pthread_cond_signal(&log->chores);
    pthread_mutex_unlock(&log->mutex);
    mem_free(copy);
}

enum omen_err node_log_read_group(struct node_log *log, uint64_t group, node_log_replay replay, void *arg,
        struct err *err)
{
    struct group_reader reader = { .group = group, .replay = replay, .arg = arg };
    uint32_t count;
    struct log_segment *segments = segments_hold(log, &count);
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) {
        char path[LOG_PATH_BYTES];
        struct node_log_segment_header header;
        uint8_t *image = NULL;
        uint64_t bytes;
        log_segment_path(log, segments[i].number, path);
        rc = segment_load(log, segments[i].number, &image, &bytes, &header, err);
        if (rc != OMEN_OK) break;
        struct node_log_walk walk = {
            .path = path,
            .number = segments[i].number,
            .next_batch = segments[i].first_batch,
            .recorded_end = segments[i].end,
        };
        rc = node_log_walk(&walk, image, bytes, group_record, &reader, err);
        mem_free(image);
    }
    segments_unhold(log, segments);
    return rc;
}

/* ---- start ---- */

/* The directory's own name must be durable before the first record is; whether an earlier life came so far is
 * not known. */
static enum omen_err directory_make(struct node_log *log, struct err *err)
{
    char parent[LOG_PATH_BYTES];
    enum omen_err rc = vfs_mkdir(log->options.vfs, log->dir, err);
    if (rc != OMEN_OK) return rc;
    size_t len = strlen(log->dir);
    while (len > 1 && log->dir[len - 1] == '/') len--;
    while (len > 0 && log->dir[len - 1] != '/') len--;
    while (len > 1 && log->dir[len - 1] == '/') len--;
    memcpy(parent, log->dir, len);
    parent[len] = '\0';
    return vfs_sync_dir(log->options.vfs, len > 0 ? parent : ".", err);
}

enum omen_err log_recover(struct node_log *log, node_log_replay replay, void *arg, struct err *err)
{
    struct names names = { 0 };
    enum omen_err rc = directory_make(log, err);
    if (rc == OMEN_OK) rc = vfs_list(log->options.vfs, log->dir, name_add, &names, err);
    if (rc == OMEN_OK && names.too_many)
        rc = err_set(err, OMEN_ETOOBIG, NULL, "%s: more than %u segments", log->dir, DIRECTORY_NAMES_MAX);
    log->next_batch = 1;
    log->last_end = 0;
    if (rc == OMEN_OK && names.count > 0) {
        qsort(names.numbers, names.count, sizeof *names.numbers, number_compare);
        rc = segment_sync(log, names.numbers[names.count - 1], err);
    }
    if (rc == OMEN_OK) rc = spares_keep(log, &names, err);
    if (rc == OMEN_OK) rc = vfs_sync_dir(log->options.vfs, log->dir, err);
    if (rc == OMEN_OK && names.count > 0) rc = segments_recover(log, &names, replay, arg, err);
    mem_free(names.numbers);
    mem_free(names.spares);
    return rc;
}

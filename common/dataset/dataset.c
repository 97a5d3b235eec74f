/* meta.json of a data-set folder and the files it names. See dataset.h. */
#include "common/dataset/dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/check.h"
#include "common/json.h"
#include "common/vfs.h"

#define META_BYTES_MAX (64 * 1024)

static enum omen_err open_member(const struct dataset *ds, struct doc meta, const char *member, bool required,
        struct matrix *matrix_out, struct err *err)
{
    struct doc name = doc_member(meta, (struct bytes){ (const uint8_t *)member, strlen(member) });
    if (name.data == NULL && !required) return OMEN_OK;
    if (name.data == NULL || doc_type(name) != DOC_STRING)
        return err_set(err, OMEN_EINVAL, member, "%s/meta.json: wants a file name", ds->dir);
    struct bytes text = doc_string(name);
    char path[4096];
    snprintf(path, sizeof path, "%s/%.*s", ds->dir, (int)text.len, (const char *)text.data);
    return matrix_open(path, matrix_out, err);
}

static enum omen_err map_payload(struct dataset *ds, struct doc meta, struct err *err)
{
    struct doc name = doc_member(meta, (struct bytes){ (const uint8_t *)"payload", 7 });
    if (name.data == NULL || doc_type(name) != DOC_STRING) return OMEN_OK;
    struct bytes text = doc_string(name);
    char path[4096];
    snprintf(path, sizeof path, "%s/%.*s", ds->dir, (int)text.len, (const char *)text.data);
    if (text.len > 4 && text.len - 4 < sizeof ds->payload_member &&
            memcmp(text.data + text.len - 4, ".txt", 4) == 0)
        memcpy(ds->payload_member, text.data, text.len - 4); /* zeroed: the NUL is there */
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0) return err_os(err, errno, "cannot open", path);
    enum omen_err rc = OMEN_OK;
    if (fstat(fd, &st) != 0)
        rc = err_os(err, errno, "cannot stat", path);
    else if (st.st_size > 0) {
        void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            rc = err_os(err, errno, "cannot map", path);
        else {
            ds->payload = map;
            ds->payload_bytes = (uint64_t)st.st_size;
        }
    }
    close(fd);
    return rc;
}

static enum omen_err read_meta(struct dataset *ds, struct doc meta, struct err *err)
{
    if (doc_type(meta) != DOC_OBJECT)
        return err_set(err, OMEN_EINVAL, NULL, "%s/meta.json: wants an object", ds->dir);
    struct doc name = doc_member(meta, (struct bytes){ (const uint8_t *)"name", 4 });
    if (name.data != NULL && doc_type(name) == DOC_STRING) {
        struct bytes text = doc_string(name);
        snprintf(ds->name, sizeof ds->name, "%.*s", (int)text.len, (const char *)text.data);
    }
    struct doc metric = doc_member(meta, (struct bytes){ (const uint8_t *)"metric", 6 });
    if (metric.data == NULL || doc_type(metric) != DOC_STRING ||
            !metric_parse((const char *)doc_string(metric).data, doc_string(metric).len, &ds->metric))
        return err_set(err, OMEN_EINVAL, "metric", "%s/meta.json: wants l2, ip or cosine", ds->dir);
    enum omen_err rc = open_member(ds, meta, "base", true, &ds->base, err);
    if (rc == OMEN_OK) rc = open_member(ds, meta, "query", false, &ds->query, err);
    if (rc == OMEN_OK) rc = open_member(ds, meta, "truth", false, &ds->truth, err);
    if (rc == OMEN_OK) rc = map_payload(ds, meta, err);
    if (rc == OMEN_OK && ds->query.count > 0 && ds->query.dim != ds->base.dim)
        rc = err_set(err, OMEN_EINVAL, "query", "%s: queries have %u dimensions, rows %u", ds->dir,
                ds->query.dim, ds->base.dim);
    return rc;
}

enum omen_err dataset_open(const char *dir, struct dataset *dataset_out, struct err *err)
{
    struct dataset ds = { .dir = mem_must_strdup(dir) };
    char path[4096];
    snprintf(path, sizeof path, "%s/meta.json", dir);
    uint8_t *text = NULL;
    size_t len = 0;
    enum omen_err rc = vfs_read_file(vfs_posix(), path, META_BYTES_MAX, &text, &len, err);
    if (rc == OMEN_OK) {
        struct doc_builder *builder = doc_builder_new(META_BYTES_MAX);
        struct doc meta;
        rc = json_parse((const char *)text, len, builder, &meta, err);
        if (rc == OMEN_OK) rc = read_meta(&ds, meta, err);
        doc_builder_free(builder);
        mem_free(text);
    }
    if (rc != OMEN_OK) {
        dataset_close(&ds);
        return rc;
    }
    *dataset_out = ds;
    return OMEN_OK;
}

void dataset_close(struct dataset *dataset)
{
    matrix_close(&dataset->base);
    matrix_close(&dataset->query);
    matrix_close(&dataset->truth);
    if (dataset->payload != NULL) munmap((void *)(uintptr_t)dataset->payload, dataset->payload_bytes);
    mem_free(dataset->dir);
    memset(dataset, 0, sizeof *dataset);
}

struct bytes dataset_payload_next(struct dataset *dataset)
{
    if (dataset->payload_next >= dataset->payload_bytes) return (struct bytes){ NULL, 0 };
    const uint8_t *line = dataset->payload + dataset->payload_next;
    uint64_t left = dataset->payload_bytes - dataset->payload_next;
    const uint8_t *newline = memchr(line, '\n', left);
    uint64_t len = newline != NULL ? (uint64_t)(newline - line) : left;
    dataset->payload_next += len + 1;
    return (struct bytes){ line, len };
}

void dataset_payload_rewind(struct dataset *dataset) { dataset->payload_next = 0; }

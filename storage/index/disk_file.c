/* The file of a disk graph; its bytes are a table in FORMAT.md. One header page, eight sections at page boundaries
 * that are read into RAM when it is opened, each with its checksum, and the units, each with its own, read and
 * checked when a search asks for them.
 *
 * Threads: one owner. Nothing read is trusted: sizes before allocation, checksums before content, ids and slots
 * before use. A unit that is bad is found by who reads it (disk_units.c). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/index/disk_impl.h"
#include "storage/index/sealed_impl.h"

#define FILE_VERSION 1
#define PAGE DISK_PAGE
#define HEADER_CRC (PAGE - 4)
#define SECTIONS_AT 128
#define SECTION_BYTES 24
#define PATH_MAX_BYTES 4096
#define CURVE_BYTES (8 + DISK_CURVE_POINTS * 4 * (1 + DISK_CURVE_KS))
#define QUANT_BYTES_MAX (64u << 20) /* trained parameters: codebooks are the largest */
#define SLACK_MILLI_MAX 1000000
#define WRITE_BYTES (16u << 20)

enum section {
    SECTION_MEAN,
    SECTION_CURVE,
    SECTION_QUANT,
    SECTION_LEADER_NODES,
    SECTION_LEADERS,
    SECTION_LEADER_SCALES,
    SECTION_SLOTS,
    SECTION_CODES,
    SECTION_UNITS, /* no checksum of its own */
    SECTION_COUNT
};

struct section_place {
    uint64_t offset, bytes;
};

/* Where everything lies, from the counts alone; the end of the file. */
static uint64_t places(const struct disk *d, uint64_t quant_bytes, struct section_place out[SECTION_COUNT])
{
    uint64_t groups = ((uint64_t)d->leader_count + CODE_GROUP - 1) / CODE_GROUP;
    const uint64_t bytes[SECTION_COUNT] = { (uint64_t)d->padded * 4, CURVE_BYTES, quant_bytes,
        (uint64_t)d->leader_count * 4, groups * (rabitq_codes_bytes(d->padded) + CODE_GROUP * 4), groups * 8,
        (uint64_t)d->count * 4, (uint64_t)d->count * d->code_bytes,
        (uint64_t)disk_unit_count(d) * d->layout.unit_bytes };
    uint64_t at = PAGE;
    for (int i = 0; i < SECTION_COUNT; i++) {
        out[i] = (struct section_place){ at, bytes[i] };
        at = align_up(at + bytes[i], PAGE);
    }
    return at;
}

static void curve_store(const struct disk_curve *curve, uint8_t out[CURVE_BYTES])
{
    store_u32(out, curve->points);
    store_u32(out + 4, curve->queries);
    memcpy(out + 8, curve->slack_milli, sizeof curve->slack_milli);
    memcpy(out + 8 + sizeof curve->slack_milli, curve->recall, sizeof curve->recall);
}

static bool curve_load(const uint8_t in[CURVE_BYTES], struct disk_curve *curve_out)
{
    curve_out->points = load_u32(in);
    curve_out->queries = load_u32(in + 4);
    memcpy(curve_out->slack_milli, in + 8, sizeof curve_out->slack_milli);
    memcpy(curve_out->recall, in + 8 + sizeof curve_out->slack_milli, sizeof curve_out->recall);
    if (curve_out->points > DISK_CURVE_POINTS) return false;
    for (uint32_t i = 0; i < curve_out->points; i++) {
        if (curve_out->slack_milli[i] == 0 || curve_out->slack_milli[i] > SLACK_MILLI_MAX) return false;
        if (i > 0 && curve_out->slack_milli[i] <= curve_out->slack_milli[i - 1]) return false;
        for (uint32_t j = 0; j < DISK_CURVE_KS; j++) {
            float recall = curve_out->recall[j][i];
            if (!(recall >= -1 && recall <= 1) || (i > 0 && recall < curve_out->recall[j][i - 1]))
                return false;
        }
    }
    return true;
}

/* ---- save ---- */

static void header_fill(const struct disk *d, const struct section_place *place, uint64_t file_bytes,
        const uint8_t *const *data, uint8_t header[PAGE])
{
    memset(header, 0, PAGE);
    memcpy(header, "OMIX", 4);
    store_u16(header + 4, FILE_VERSION);
    store_u16(header + 6, INDEX_DISK);
    store_u64(header + 8, file_bytes);
    store_u32(header + 16, d->count);
    store_u32(header + 20, d->dim);
    store_u32(header + 24, (uint32_t)d->base.metric);
    store_u32(header + 28, d->padded);
    store_u32(header + 32, d->layout.record_bytes);
    store_u32(header + 36, d->layout.unit_bytes);
    store_u32(header + 40, d->layout.unit_nodes);
    store_u32(header + 44, d->code_bytes);
    memcpy(header + 48, &d->norm_max, 4);
    memcpy(header + 52, &d->recall_target, 4);
    store_u64(header + 56, d->seed);
    store_u32(header + 64, d->leader_count);
    store_u32(header + 68, SECTION_COUNT);
    for (int i = 0; i < SECTION_COUNT; i++) {
        uint8_t *at = header + SECTIONS_AT + i * SECTION_BYTES;
        store_u64(at, place[i].offset);
        store_u64(at + 8, place[i].bytes);
        store_u32(at + 16, i == SECTION_UNITS ? 0 : crc32c(0, data[i], place[i].bytes));
    }
    store_u32(header + HEADER_CRC, crc32c(0, header, HEADER_CRC));
}

/* Units from memory, or from the file that they are in: so an opened index can be saved too. */
static enum omen_err units_write(const struct disk *d, struct vfs_file *file, uint64_t offset,
        struct err *err)
{
    uint32_t total = disk_unit_count(d), units[DISK_BEAM_MAX];
    struct disk_io io;
    struct index_cost cost = { 0 };
    const uint8_t *data[DISK_BEAM_MAX];
    bool ready = disk_io_init(d, &io);
    enum omen_err rc = ready ? OMEN_OK : err_set(err, OMEN_ENOMEM, NULL, "no memory to copy an index");
    uint64_t bytes = (uint64_t)total * d->layout.unit_bytes;
    for (uint64_t at = 0; rc == OMEN_OK && d->units != NULL && at < bytes; at += WRITE_BYTES)
        rc = vfs_pwrite(file, d->units + at, bytes - at < WRITE_BYTES ? bytes - at : WRITE_BYTES, offset + at,
                err);
    for (uint32_t first = 0; rc == OMEN_OK && d->units == NULL && first < total; first += DISK_BEAM_MAX) {
        uint32_t n = total - first < DISK_BEAM_MAX ? total - first : DISK_BEAM_MAX;
        for (uint32_t i = 0; i < n; i++) units[i] = first + i;
        rc = disk_units_read(d, &io, units, n, data, err, &cost);
        for (uint32_t i = 0; rc == OMEN_OK && i < n; i++)
            rc = vfs_pwrite(file, data[i], d->layout.unit_bytes,
                    offset + (uint64_t)units[i] * d->layout.unit_bytes, err);
    }
    disk_io_fini(&io);
    return rc;
}

static enum omen_err write_file(const struct disk *d, struct vfs_file *file, struct err *err)
{
    struct section_place place[SECTION_COUNT];
    uint8_t header[PAGE], curve[CURVE_BYTES];
    struct buf quant;
    buf_init(&quant);
    if (d->quant != NULL) quant_save(d->quant, &quant);
    uint64_t file_bytes = places(d, quant.len, place);
    curve_store(&d->curve, curve);
    const uint8_t *data[SECTION_COUNT] = { (const uint8_t *)d->mean, curve, quant.data,
        (const uint8_t *)d->leader_nodes, d->leader_groups, (const uint8_t *)d->leader_scales,
        (const uint8_t *)d->slots, d->codes, NULL };
    header_fill(d, place, file_bytes, data, header);
    enum omen_err rc = quant.failed ? err_set(err, OMEN_ENOMEM, NULL, "no memory to save an index") : OMEN_OK;
    if (rc == OMEN_OK) rc = vfs_truncate(file, 0, err);
    if (rc == OMEN_OK) rc = vfs_truncate(file, file_bytes, err);
    for (int i = 0; rc == OMEN_OK && i < SECTION_UNITS; i++)
        if (place[i].bytes > 0) rc = vfs_pwrite(file, data[i], place[i].bytes, place[i].offset, err);
    if (rc == OMEN_OK) rc = units_write(d, file, place[SECTION_UNITS].offset, err);
    if (rc == OMEN_OK) rc = vfs_pwrite(file, header, PAGE, 0, err);
    if (rc == OMEN_OK) rc = vfs_datasync(file, err);
    buf_fini(&quant);
    return rc;
}

enum omen_err disk_save(const struct index *index, struct vfs *vfs, const char *path, struct err *err)
{
    char aside[PATH_MAX_BYTES], directory[PATH_MAX_BYTES];
    int n = snprintf(aside, sizeof aside, "%s.tmp", path);
    if (n < 0 || (size_t)n >= sizeof aside) return err_set(err, OMEN_EINVAL, "path", "the path is too long");
    const char *slash = strrchr(path, '/');
    int parent = slash == NULL || slash == path ? 1 : (int)(slash - path);
    snprintf(directory, sizeof directory, "%.*s", parent, slash == NULL ? "." : path);
    struct vfs_file *file;
    enum omen_err rc = vfs_open(vfs, aside, VFS_WRITE | VFS_CREATE, &file, err);
    if (rc != OMEN_OK) return rc;
    rc = write_file((const struct disk *)index, file, err);
    vfs_close(file);
    if (rc == OMEN_OK) rc = vfs_rename(vfs, aside, path, err);
    if (rc == OMEN_OK) return vfs_sync_dir(vfs, directory, err);
    enum omen_err ignored = vfs_unlink(vfs, aside, NULL); /* best effort: the next save starts it over */
    (void)ignored;
    return rc;
}

/* ---- open ---- */

struct reader {
    struct vfs_file *file; /* not past the page cache: sections have any length */
    const char *path;
    uint64_t file_bytes;
    uint8_t header[PAGE];
    struct section_place place[SECTION_COUNT];
    struct err *err;
};

static enum omen_err header_wrong(struct reader *r, uint64_t offset, const char *what)
{
    return err_corrupt(r->err, r->path, offset, what);
}

static enum omen_err header_check(struct reader *r, struct disk *d)
{
    const uint8_t *h = r->header, *quant = h + SECTIONS_AT + SECTION_QUANT * SECTION_BYTES;
    if (memcmp(h, "OMIX", 4) != 0) return header_wrong(r, 0, "no index file: wrong magic");
    if (load_u32(h + HEADER_CRC) != crc32c(0, h, HEADER_CRC))
        return header_wrong(r, HEADER_CRC, "wrong header checksum");
    if (load_u16(h + 4) != FILE_VERSION)
        return err_set(r->err, OMEN_EVERSION, NULL, "%s: disk graph version %u, this build reads %d", r->path,
                load_u16(h + 4), FILE_VERSION);
    if (load_u16(h + 6) != INDEX_DISK) return header_wrong(r, 6, "unknown kind of index");
    if (load_u64(h + 8) != r->file_bytes) return header_wrong(r, 8, "file is not as long as it says");
    if (load_u32(h + 16) != d->count) return header_wrong(r, 16, "count is not that of the rows");
    if (load_u32(h + 20) != d->dim) return header_wrong(r, 20, "dim is not that of the rows");
    if (load_u32(h + 24) != (uint32_t)d->base.metric)
        return header_wrong(r, 24, "metric is not that of the rows");
    if (load_u32(h + 28) != d->padded) return header_wrong(r, 28, "wrong padded dimension");
    if (load_u32(h + 32) != d->layout.record_bytes || load_u32(h + 36) != d->layout.unit_bytes ||
            load_u32(h + 40) != d->layout.unit_nodes)
        return header_wrong(r, 32, "wrong layout of units");
    d->code_bytes = load_u32(h + 44);
    if (d->code_bytes > d->padded * 4 + 64) return header_wrong(r, 44, "impossible length of a code");
    memcpy(&d->norm_max, h + 48, 4);
    memcpy(&d->recall_target, h + 52, 4);
    if (!isfinite(d->norm_max) || !(d->recall_target > 0 && d->recall_target <= 1))
        return header_wrong(r, 48, "norm or recall target out of range");
    d->seed = load_u64(h + 56);
    d->leader_count = load_u32(h + 64);
    if (d->leader_count > DISK_LEADERS_MAX || d->leader_count > d->count ||
            (d->count > 0 && d->leader_count == 0))
        return header_wrong(r, 64, "impossible number of leaders");
    if (load_u32(h + 68) != SECTION_COUNT) return header_wrong(r, 68, "wrong number of sections");
    if (load_u64(quant + 8) > QUANT_BYTES_MAX) return header_wrong(r, SECTIONS_AT, "impossible quantizer");
    if (places(d, load_u64(quant + 8), r->place) != r->file_bytes)
        return header_wrong(r, 8, "length does not fit the counts");
    for (int i = 0; i < SECTION_COUNT; i++) {
        const uint8_t *at = h + SECTIONS_AT + i * SECTION_BYTES;
        if (load_u64(at) != r->place[i].offset || load_u64(at + 8) != r->place[i].bytes ||
                load_u32(at + 20) != 0)
            return header_wrong(r, (uint64_t)(at - h), "a section is not where it must be");
    }
    return OMEN_OK;
}

static enum omen_err section_read(struct reader *r, enum section section, void *dst)
{
    const uint8_t *at = r->header + SECTIONS_AT + section * SECTION_BYTES;
    const struct section_place *place = &r->place[section];
    enum omen_err rc = OMEN_OK;
    if (place->bytes > 0) rc = vfs_pread(r->file, dst, place->bytes, place->offset, r->err);
    if (rc == OMEN_OK && crc32c(0, dst, place->bytes) != load_u32(at + 16))
        rc = header_wrong(r, place->offset, "wrong section checksum");
    return rc;
}

static enum omen_err quant_open(struct reader *r, struct disk *d)
{
    const struct section_place *place = &r->place[SECTION_QUANT];
    if (d->count == 0) return OMEN_OK;
    uint8_t *bytes = mem_alloc(place->bytes + 1);
    struct err why = { 0 };
    if (bytes == NULL) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory for %s", r->path);
    enum omen_err rc = section_read(r, SECTION_QUANT, bytes);
    if (rc == OMEN_OK) {
        rc = quant_load(bytes, place->bytes, &d->quant, &why);
        if (rc == OMEN_ECORRUPT)
            rc = header_wrong(r, place->offset, why.message);
        else if (rc != OMEN_OK)
            rc = err_set(r->err, rc, NULL, "%s: %s", r->path, why.message);
    }
    mem_free(bytes);
    if (rc == OMEN_OK && (quant_dim(d->quant) != d->padded || quant_code_bytes(d->quant) != d->code_bytes))
        rc = header_wrong(r, place->offset, "a quantizer of other codes");
    return rc;
}

/* Slots are a permutation, leaders are rows, the mean is finite. */
static enum omen_err content_check(struct reader *r, const struct disk *d)
{
    uint64_t *taken = mem_calloc(d->count / 64 + 1, sizeof *taken);
    if (taken == NULL) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory to check %s", r->path);
    enum omen_err rc = OMEN_OK;
    for (uint32_t node = 0; rc == OMEN_OK && node < d->count; node++) {
        uint32_t slot = d->slots[node];
        if (slot >= d->count || index_bit(taken, slot))
            rc = header_wrong(r, r->place[SECTION_SLOTS].offset + node * 4ull, "impossible slot");
        else
            taken[slot / 64] |= UINT64_C(1) << (slot % 64);
    }
    for (uint32_t i = 0; rc == OMEN_OK && i < d->leader_count; i++)
        if (d->leader_nodes[i] >= d->count)
            rc = header_wrong(r, r->place[SECTION_LEADER_NODES].offset + i * 4ull, "impossible leader");
    for (uint32_t i = 0; rc == OMEN_OK && i < d->padded; i++)
        if (!isfinite(d->mean[i]))
            rc = header_wrong(r, r->place[SECTION_MEAN].offset + i * 4ull, "mean is not finite");
    mem_free(taken);
    return rc;
}

static enum omen_err sections_open(struct reader *r, struct disk *d)
{
    uint8_t curve[CURVE_BYTES];
    d->mean = mem_alloc(r->place[SECTION_MEAN].bytes);
    d->leader_nodes = mem_alloc(r->place[SECTION_LEADER_NODES].bytes + 1);
    d->leader_groups = mem_alloc_aligned(64, r->place[SECTION_LEADERS].bytes + 64);
    d->leader_scales = mem_alloc(r->place[SECTION_LEADER_SCALES].bytes + 1);
    d->slots = mem_alloc(r->place[SECTION_SLOTS].bytes + 1);
    d->codes = sealed_pages_new(r->place[SECTION_CODES].bytes, &d->codes_mapped);
    if (d->mean == NULL || d->leader_nodes == NULL || d->leader_groups == NULL || d->leader_scales == NULL ||
            d->slots == NULL || d->codes == NULL)
        return err_set(r->err, OMEN_ENOMEM, NULL, "no memory for %s", r->path);
    enum omen_err rc = section_read(r, SECTION_MEAN, d->mean);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_CURVE, curve);
    if (rc == OMEN_OK && !curve_load(curve, &d->curve))
        rc = header_wrong(r, r->place[SECTION_CURVE].offset, "impossible calibration");
    if (rc == OMEN_OK) rc = quant_open(r, d);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_LEADER_NODES, d->leader_nodes);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_LEADERS, d->leader_groups);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_LEADER_SCALES, d->leader_scales);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_SLOTS, d->slots);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_CODES, d->codes);
    return rc == OMEN_OK ? content_check(r, d) : rc;
}

/* The handle that searches read units with, past the page cache. */
static enum omen_err units_open(struct reader *r, struct disk *d, struct vfs *vfs)
{
    size_t path_bytes = strlen(r->path) + 1;
    d->path = mem_alloc(path_bytes);
    if (d->path == NULL) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory for %s", r->path);
    memcpy(d->path, r->path, path_bytes);
    d->vfs = vfs;
    d->units_offset = r->place[SECTION_UNITS].offset;
    enum omen_err rc = vfs_open(vfs, r->path, VFS_READ | VFS_DIRECT, &d->file, r->err);
    if (rc != OMEN_OK) return rc;
    rc = disk_cache_set(&d->base, r->place[SECTION_UNITS].bytes / DISK_CACHE_SHARE);
    return rc == OMEN_OK ? rc : err_set(r->err, rc, NULL, "no memory for a cache of %s", r->path);
}

/* `pin` makes no difference: what must be in RAM always is, in anonymous memory. */
enum omen_err index_disk_map(struct vfs *vfs, const char *path, const struct index_rows *rows, bool pin,
        struct index **index_out, struct err *err)
{
    struct reader r = { .path = path, .err = err };
    struct disk *d = disk_new(rows);
    (void)pin;
    if (d == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for an index");
    enum omen_err rc = vfs_open(vfs, path, VFS_READ, &r.file, err);
    if (rc == OMEN_OK) rc = vfs_size(r.file, &r.file_bytes, err);
    if (rc == OMEN_OK && r.file_bytes < PAGE)
        rc = header_wrong(&r, r.file_bytes, "file ends inside its header");
    if (rc == OMEN_OK) rc = vfs_pread(r.file, r.header, PAGE, 0, err);
    if (rc == OMEN_OK) rc = header_check(&r, d);
    if (rc == OMEN_OK) rotation_init(&d->rotation, d->inner, d->seed);
    if (rc == OMEN_OK) rc = sections_open(&r, d);
    if (rc == OMEN_OK) rc = units_open(&r, d, vfs);
    vfs_close(r.file);
    if (rc != OMEN_OK) {
        disk_free(&d->base);
        return rc;
    }
    *index_out = &d->base;
    return OMEN_OK;
}

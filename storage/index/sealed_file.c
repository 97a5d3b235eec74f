/* The file of a sealed graph; its bytes are a table in FORMAT.md. One header page, eight sections at page
 * boundaries, each with its own checksum; the layout follows from the counts, so a file has no freedom to lie.
 *
 * Threads: one owner. Nothing read is trusted: sizes before allocation, checksums before content, ids and
 * slots before use. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/index/compact.h"

#define FILE_VERSION 1
#define PAGE 4096
#define HEADER_CRC (PAGE - 4)
#define SECTIONS_AT 64
#define SECTION_BYTES 24
#define PATH_MAX_BYTES 4096
#define CURVE_BYTES (12 + SEALED_CURVE_POINTS * 4 * (2 + 3 * SEALED_CURVE_KS))
#define FLAG_LOSSLESS 1u
#define FLAG_COMPACT 2u

enum section {
    SECTION_MEAN,
    SECTION_COMPONENTS_MEAN,
    SECTION_COMPONENTS,
    SECTION_CURVE,
    SECTION_LEADER_NODES,
    SECTION_LEADERS,
    SECTION_LEADER_SCALES,
    SECTION_MIDDLES,
    SECTION_MIDDLE_SCALES,
    SECTION_FLAT,
    SECTION_FLAT_SCALES,
    SECTION_GRAPH,
    SECTION_QUANTIZER, /* the last three are empty in the fast layout */
    SECTION_SLOTS,
    SECTION_CODES,
    SECTION_COUNT
};
#define SECTIONS_END (SECTIONS_AT + SECTION_COUNT * SECTION_BYTES)

struct section_place {
    uint64_t offset, bytes;
};

/* Where everything lies, from the counts alone; the end of the file. */
static uint64_t places(const struct sealed *s, struct section_place out[SECTION_COUNT])
{
    uint64_t leader_groups = s->leaders.codes.count / CODE_GROUP;
    uint64_t middle_groups = ((uint64_t)s->leaders.middles.count + CODE_GROUP - 1) / CODE_GROUP;
    uint64_t flat_groups = ((uint64_t)s->count + CODE_GROUP - 1) / CODE_GROUP;
    uint64_t group_bytes = rabitq_codes_bytes(s->padded) + CODE_GROUP * 4;
    const struct compact *c = s->compact;
    const uint64_t bytes[SECTION_COUNT] = { (uint64_t)s->padded * 4,
        s->pca.kept != 0 ? (uint64_t)s->rows.dim * 4 : 0, (uint64_t)s->pca.kept * s->rows.dim * 4,
        CURVE_BYTES, (uint64_t)s->leaders.codes.count * 4, leader_groups * group_bytes, leader_groups * 8,
        middle_groups * group_bytes, middle_groups * 8, flat_groups * group_bytes, flat_groups * 8,
        (uint64_t)s->count * s->layout.row_bytes, c == NULL ? 0 : c->saved_bytes,
        c == NULL ? 0 : (uint64_t)s->count * 4, c == NULL ? 0 : (uint64_t)s->count * c->stride };
    uint64_t at = PAGE;
    for (int i = 0; i < SECTION_COUNT; i++) {
        out[i] = (struct section_place){ at, bytes[i] };
        at = align_up(at + bytes[i], PAGE);
    }
    return at;
}

/* The curve's arrays in the order of the file. */
struct curve_part {
    void *data;
    size_t bytes;
};

static void curve_parts(struct sealed_curve *c, struct curve_part out[8])
{
    const struct curve_part parts[8] = { { &c->points, 4 }, { &c->queries, 4 },
        { c->effort, sizeof c->effort }, { c->recall, sizeof c->recall }, { &c->slack_points, 4 },
        { c->slack, sizeof c->slack }, { c->slack_recall, sizeof c->slack_recall },
        { c->slack_below, sizeof c->slack_below } };
    memcpy(out, parts, sizeof parts);
}

static void curve_store(const struct sealed_curve *curve, uint8_t out[CURVE_BYTES])
{
    struct sealed_curve copy = *curve;
    struct curve_part parts[8];
    curve_parts(&copy, parts);
    for (int i = 0; i < 8; out += parts[i++].bytes) memcpy(out, parts[i].data, parts[i].bytes);
}

/* Shares of 0..1 (recall less its error may be below) that do not fall. */
static bool curve_rises(const float *values, uint32_t points, float sign)
{
    for (uint32_t i = 0; i < points; i++)
        if (!(values[i] >= -1 && values[i] <= 1) || (i > 0 && sign * values[i] < sign * values[i - 1]))
            return false;
    return true;
}

static bool curve_load(const uint8_t in[CURVE_BYTES], struct sealed_curve *curve_out)
{
    struct sealed_curve *c = curve_out;
    struct curve_part parts[8];
    curve_parts(c, parts);
    for (int i = 0; i < 8; in += parts[i++].bytes) memcpy(parts[i].data, in, parts[i].bytes);
    bool fine = c->points <= SEALED_CURVE_POINTS && c->slack_points <= SEALED_CURVE_POINTS;
    for (uint32_t i = 0; fine && i < c->points; i++)
        fine = c->effort[i] > (i > 0 ? c->effort[i - 1] : 0) && c->effort[i] <= INDEX_EFFORT_MAX;
    for (uint32_t i = 0; fine && i < c->slack_points; i++)
        fine = isfinite(c->slack[i]) && c->slack[i] > (i > 0 ? c->slack[i - 1] : 0);
    for (uint32_t j = 0; fine && j < SEALED_CURVE_KS; j++)
        fine = curve_rises(c->recall[j], c->points, 1) &&
                curve_rises(c->slack_recall[j], c->slack_points, 1) &&
                curve_rises(c->slack_below[j], c->slack_points, -1);
    return fine;
}

/* ---- save ---- */

static void header_fill(const struct sealed *s, const struct section_place *place, uint64_t file_bytes,
        const uint8_t *const *data, uint8_t header[PAGE])
{
    memset(header, 0, PAGE);
    memcpy(header, "OMIX", 4);
    store_u16(header + 4, FILE_VERSION);
    store_u16(header + 6, INDEX_SEALED);
    store_u64(header + 8, file_bytes);
    store_u32(header + 16, s->count);
    store_u32(header + 20, s->rows.dim);
    store_u32(header + 24, (uint32_t)s->rows.metric);
    store_u32(header + 28, s->padded);
    store_u32(header + 32, s->layout.row_bytes);
    store_u16(header + 36, s->compact != NULL ? FLAG_COMPACT : s->lossless ? FLAG_LOSSLESS : 0);
    store_u16(header + 38, (uint16_t)s->pca.kept);
    memcpy(header + 40, &s->norm_max, 4);
    memcpy(header + 44, &s->recall_target, 4);
    store_u64(header + 48, s->seed);
    store_u32(header + 56, s->leaders.codes.count / CODE_GROUP);
    store_u32(header + 60, s->leaders.middles.count);
    for (int i = 0; i < SECTION_COUNT; i++) {
        uint8_t *at = header + SECTIONS_AT + i * SECTION_BYTES;
        store_u64(at, place[i].offset);
        store_u64(at + 8, place[i].bytes);
        store_u32(at + 16, crc32c(0, data[i], place[i].bytes));
    }
    memcpy(header + SECTIONS_END, &s->curve.decay, 4);
    store_u32(header + HEADER_CRC, crc32c(0, header, HEADER_CRC));
}

static enum omen_err write_sections(const struct sealed *s, const uint8_t *quantizer, struct vfs_file *file,
        struct err *err)
{
    struct section_place place[SECTION_COUNT];
    uint8_t header[PAGE], curve[CURVE_BYTES];
    const struct compact *c = s->compact;
    uint64_t file_bytes = places(s, place);
    curve_store(&s->curve, curve);
    const uint8_t *data[SECTION_COUNT] = { (const uint8_t *)s->mean, (const uint8_t *)s->pca.mean,
        (const uint8_t *)s->pca.basis, curve, (const uint8_t *)s->leaders.nodes, s->leaders.codes.groups,
        (const uint8_t *)s->leaders.codes.scales, s->leaders.middles.groups,
        (const uint8_t *)s->leaders.middles.scales, s->flat.groups, (const uint8_t *)s->flat.scales, s->graph,
        quantizer, c == NULL ? NULL : (const uint8_t *)c->slots, c == NULL ? NULL : c->codes };
    header_fill(s, place, file_bytes, data, header);
    enum omen_err rc = vfs_truncate(file, 0, err);
    if (rc == OMEN_OK) rc = vfs_truncate(file, file_bytes, err);
    for (int i = 0; rc == OMEN_OK && i < SECTION_COUNT; i++)
        if (place[i].bytes > 0) rc = vfs_pwrite(file, data[i], place[i].bytes, place[i].offset, err);
    if (rc == OMEN_OK) rc = vfs_pwrite(file, header, PAGE, 0, err);
    if (rc == OMEN_OK) rc = vfs_datasync(file, err);
    return rc;
}

static enum omen_err write_file(const struct sealed *s, struct vfs_file *file, struct err *err)
{
    struct buf quantizer;
    buf_init(&quantizer);
    if (s->compact != NULL && s->compact->quant != NULL) quant_save(s->compact->quant, &quantizer);
    if (s->compact != NULL) s->compact->saved_bytes = quantizer.len;
    enum omen_err rc = quantizer.failed ? err_set(err, OMEN_ENOMEM, NULL, "no memory to save an index")
                                        : write_sections(s, quantizer.data, file, err);
    buf_fini(&quantizer);
    return rc;
}

enum omen_err sealed_save(const struct index *index, struct vfs *vfs, const char *path, struct err *err)
{
    char aside[PATH_MAX_BYTES], directory[PATH_MAX_BYTES];
    int n = snprintf(aside, sizeof aside, "%s.tmp", path);
    if (n < 0 || (size_t)n >= sizeof aside) return err_set(err, OMEN_EINVAL, "path", "the path is too long");
    const char *slash = strrchr(path, '/');
    snprintf(directory, sizeof directory, "%.*s",
            slash == NULL           ? 1
                    : slash == path ? 1
                                    : (int)(slash - path),
            slash == NULL ? "." : path);
    struct vfs_file *file;
    enum omen_err rc = vfs_open(vfs, aside, VFS_WRITE | VFS_CREATE, &file, err);
    if (rc != OMEN_OK) return rc;
    rc = write_file((const struct sealed *)index, file, err);
    vfs_close(file);
    if (rc == OMEN_OK) rc = vfs_rename(vfs, aside, path, err);
    if (rc == OMEN_OK) return vfs_sync_dir(vfs, directory, err);
    enum omen_err ignored = vfs_unlink(vfs, aside, NULL); /* best effort: the next save starts it over */
    (void)ignored;
    return rc;
}

/* ---- map ---- */

struct reader {
    struct vfs_file *file;
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

/* Lengths of the compact layout's own sections, from their entries: checked against the quantizer later. */
static enum omen_err compact_header(struct reader *r, struct sealed *s)
{
    const uint8_t *quantizer = r->header + SECTIONS_AT + SECTION_QUANTIZER * SECTION_BYTES,
                  *codes = r->header + SECTIONS_AT + SECTION_CODES * SECTION_BYTES;
    s->compact = compact_new();
    if (s->compact == NULL) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory for %s", r->path);
    uint64_t bytes = load_u64(quantizer + 8);
    if (bytes > r->file_bytes)
        return header_wrong(r, (uint64_t)(quantizer - r->header), "impossible quantizer");
    s->compact->saved_bytes = bytes;
    s->compact->stride = s->count == 0 ? 0 : load_u64(codes + 8) / s->count;
    if (s->compact->stride > sizeof(float) * CODE_DIM_MAX)
        return header_wrong(r, (uint64_t)(codes - r->header), "impossible codes");
    return OMEN_OK;
}

/* What can be checked before anything is allocated; fills the sizes in `s`. */
static enum omen_err header_check(struct reader *r, struct sealed *s)
{
    const uint8_t *h = r->header;
    if (memcmp(h, "OMIX", 4) != 0) return header_wrong(r, 0, "no index file: wrong magic");
    if (load_u32(h + HEADER_CRC) != crc32c(0, h, HEADER_CRC))
        return header_wrong(r, HEADER_CRC, "wrong header checksum");
    if (load_u16(h + 4) != FILE_VERSION)
        return err_set(r->err, OMEN_EVERSION, NULL, "%s: index file version %u, this build reads %d", r->path,
                load_u16(h + 4), FILE_VERSION);
    if (load_u16(h + 6) != INDEX_SEALED) return header_wrong(r, 6, "unknown kind of index");
    if (load_u64(h + 8) != r->file_bytes) return header_wrong(r, 8, "file is not as long as it says");
    if (load_u32(h + 16) != s->rows.count) return header_wrong(r, 16, "count is not that of the rows");
    if (load_u32(h + 20) != s->rows.dim) return header_wrong(r, 20, "dim is not that of the rows");
    if (load_u32(h + 24) != (uint32_t)s->rows.metric)
        return header_wrong(r, 24, "metric is not that of the rows");
    uint32_t kept = load_u16(h + 38), flags = load_u16(h + 36);
    if (kept > SEALED_REDUCED_MAX || kept >= s->rows.dim)
        return header_wrong(r, 38, "impossible number of components");
    s->pca.dim = s->rows.dim;
    s->pca.kept = kept;
    enum omen_err rc = flags == FLAG_COMPACT ? compact_header(r, s) : OMEN_OK;
    if (rc != OMEN_OK) return rc;
    sealed_dim_set(s, kept);
    if (load_u32(h + 28) != s->padded) return header_wrong(r, 28, "wrong padded dimension");
    if (load_u32(h + 32) != s->layout.row_bytes) return header_wrong(r, 32, "wrong row size");
    if (flags > FLAG_COMPACT || (flags == FLAG_LOSSLESS && kept != 0))
        return header_wrong(r, 36, "unknown flags");
    s->lossless = flags == FLAG_LOSSLESS;
    memcpy(&s->norm_max, h + 40, 4);
    memcpy(&s->recall_target, h + 44, 4);
    if (!isfinite(s->norm_max) || !(s->recall_target > 0 && s->recall_target <= 1))
        return header_wrong(r, 40, "norm or recall target out of range");
    s->seed = load_u64(h + 48);
    uint32_t groups = load_u32(h + 56);
    s->leaders.middles.count = load_u32(h + 60);
    if (groups > 2 * SEALED_LEADERS_MAX / CODE_GROUP + SEALED_LEADERS_SAMPLED ||
            s->leaders.middles.count > groups || (s->leaders.middles.count == 0) != (s->count == 0))
        return header_wrong(r, 56, "impossible number of leaders");
    s->leaders.codes.count = groups * CODE_GROUP;
    if (places(s, r->place) != r->file_bytes) return header_wrong(r, 8, "length does not fit the counts");
    for (int i = 0; i < SECTION_COUNT; i++) {
        const uint8_t *at = h + SECTIONS_AT + i * SECTION_BYTES;
        if (load_u64(at) != r->place[i].offset || load_u64(at + 8) != r->place[i].bytes ||
                load_u32(at + 20) != 0)
            return header_wrong(r, (uint64_t)(at - h), "a section is not where it must be");
    }
    memcpy(&s->curve.decay, h + SECTIONS_END, 4);
    if (!(s->curve.decay >= 0 && s->curve.decay <= 1))
        return header_wrong(r, SECTIONS_END, "the stop rule's decay is out of range");
    for (uint32_t i = SECTIONS_END + 4; i < HEADER_CRC; i++)
        if (h[i] != 0) return header_wrong(r, i, "header padding is not zero");
    return OMEN_OK;
}

static enum omen_err section_verify(struct reader *r, enum section section, const void *data)
{
    const uint8_t *at = r->header + SECTIONS_AT + section * SECTION_BYTES;
    if (crc32c(0, data, r->place[section].bytes) == load_u32(at + 16)) return OMEN_OK;
    return header_wrong(r, r->place[section].offset, "wrong section checksum");
}

static enum omen_err section_read(struct reader *r, enum section section, void *dst)
{
    enum omen_err rc = OMEN_OK;
    if (r->place[section].bytes > 0)
        rc = vfs_pread(r->file, dst, r->place[section].bytes, r->place[section].offset, r->err);
    return rc == OMEN_OK ? section_verify(r, section, dst) : rc;
}

static bool head_check(const struct sealed *s, const uint8_t *row)
{
    if (s->compact != NULL) return true;
    const struct sealed_head *head = sealed_head(s, row);
    return head->degree <= SEALED_DEGREE && isfinite(head->own_lo) && isfinite(head->own_scale) &&
            isfinite(head->f_scale) && isfinite(head->g_scale) && head->f_scale > 0;
}

static enum omen_err graph_check(struct reader *r, const struct sealed *s)
{
    uint64_t *taken = mem_calloc(s->count / 64 + 1, sizeof *taken);
    if (taken == NULL) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory to check %s", r->path);
    enum omen_err rc = OMEN_OK;
    for (uint32_t node = 0; rc == OMEN_OK && node < s->count; node++) {
        uint8_t *row = sealed_row(s, node);
        const uint32_t *ids = sealed_ids(s, row), slot = sealed_slot(s, node);
        bool fine = slot < s->count && head_check(s, row);
        for (uint32_t i = 0; fine && i < SEALED_DEGREE; i++) fine = ids[i] < s->count;
        if (fine && index_bit(taken, slot)) fine = false;
        if (fine)
            taken[slot / 64] |= UINT64_C(1) << (slot % 64);
        else
            rc = header_wrong(r, r->place[SECTION_GRAPH].offset + (uint64_t)node * s->layout.row_bytes,
                    "impossible row");
    }
    for (uint32_t i = 0; rc == OMEN_OK && i < s->leaders.codes.count; i++)
        if (s->leaders.nodes[i] >= s->count)
            rc = header_wrong(r, r->place[SECTION_LEADER_NODES].offset + i * 4u, "impossible leader");
    for (uint32_t i = 0; rc == OMEN_OK && i < s->padded; i++)
        if (!isfinite(s->mean[i]))
            rc = header_wrong(r, r->place[SECTION_MEAN].offset + i * 4u, "mean is not finite");
    mem_free(taken);
    return rc;
}

static bool sections_alloc(const struct reader *r, struct sealed *s)
{
    s->mean = mem_alloc_aligned(64, r->place[SECTION_MEAN].bytes);
    struct sealed_leaders *l = &s->leaders;
    s->pca.mean = mem_alloc(r->place[SECTION_COMPONENTS_MEAN].bytes + 1);
    s->pca.basis = mem_alloc_aligned(64, r->place[SECTION_COMPONENTS].bytes + 64);
    l->nodes = mem_alloc(r->place[SECTION_LEADER_NODES].bytes + 1);
    l->codes.groups = mem_alloc_aligned(64, r->place[SECTION_LEADERS].bytes + 64);
    l->codes.scales = mem_alloc(r->place[SECTION_LEADER_SCALES].bytes + 1);
    l->middles.groups = mem_alloc_aligned(64, r->place[SECTION_MIDDLES].bytes + 64);
    l->middles.scales = mem_alloc(r->place[SECTION_MIDDLE_SCALES].bytes + 1);
    s->flat.groups = mem_alloc_aligned(64, r->place[SECTION_FLAT].bytes + 64);
    s->flat.scales = mem_alloc(r->place[SECTION_FLAT_SCALES].bytes + 1);
    return s->mean != NULL && s->pca.mean != NULL && s->pca.basis != NULL && l->nodes != NULL &&
            l->codes.groups != NULL && l->codes.scales != NULL && l->middles.groups != NULL &&
            l->middles.scales != NULL && s->flat.groups != NULL && s->flat.scales != NULL;
}

static enum omen_err graph_open(struct reader *r, struct sealed *s, bool pin)
{
    const struct section_place *place = &r->place[SECTION_GRAPH];
    if (pin || place->bytes == 0) {
        s->graph = sealed_pages_new(place->bytes, &s->graph_bytes);
        if (s->graph == NULL) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory for %s", r->path);
        return section_read(r, SECTION_GRAPH, s->graph);
    }
    enum omen_err rc = vfs_map(r->file, r->file_bytes, &s->file_map, r->err);
    if (rc != OMEN_OK) return rc;
    s->file = r->file;
    s->file_bytes = r->file_bytes;
    s->graph = (uint8_t *)(uintptr_t)(s->file_map +
            place->offset); /* read-only: nothing writes a sealed row */
    rc = section_verify(r, SECTION_GRAPH, s->graph);
    vfs_advise(s->file->vfs, s->file_map, s->file_bytes, VFS_ACCESS_RANDOM); /* walks, from here on */
    return rc;
}

/* Quantizer, slots and codes; the file is mapped by now unless it is read. */
static enum omen_err compact_open(struct reader *r, struct sealed *s, bool pin)
{
    struct compact *c = s->compact;
    const struct section_place *codes = &r->place[SECTION_CODES];
    if (s->count == 0) return OMEN_OK;
    uint8_t *quantizer = mem_alloc(c->saved_bytes + 1);
    c->slots = mem_alloc((size_t)s->count * sizeof *c->slots);
    enum omen_err rc = OMEN_OK;
    if (quantizer == NULL || c->slots == NULL)
        rc = err_set(r->err, OMEN_ENOMEM, NULL, "no memory for %s", r->path);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_QUANTIZER, quantizer);
    if (rc == OMEN_OK && quant_load(quantizer, c->saved_bytes, &c->quant, NULL) != OMEN_OK)
        rc = header_wrong(r, r->place[SECTION_QUANTIZER].offset, "impossible quantizer");
    mem_free(quantizer);
    if (rc == OMEN_OK &&
            (quant_dim(c->quant) != s->padded || compact_stride(quant_code_bytes(c->quant)) != c->stride))
        rc = header_wrong(r, r->place[SECTION_QUANTIZER].offset, "the quantizer is of other codes");
    if (rc == OMEN_OK) rc = section_read(r, SECTION_SLOTS, c->slots);
    if (rc != OMEN_OK) return rc;
    if (!pin) {
        c->codes = (uint8_t *)(uintptr_t)(s->file_map + codes->offset); /* read-only, as the graph */
        return section_verify(r, SECTION_CODES, c->codes);
    }
    c->codes = sealed_pages_new(codes->bytes, &c->mapped);
    if (c->codes != NULL) return section_read(r, SECTION_CODES, c->codes);
    c->mapped = 0;
    return err_set(r->err, OMEN_ENOMEM, NULL, "no memory for %s", r->path);
}

static enum omen_err sections_open(struct reader *r, struct sealed *s, bool pin)
{
    uint8_t curve[CURVE_BYTES];
    if (!sections_alloc(r, s)) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory for %s", r->path);
    enum omen_err rc = section_read(r, SECTION_MEAN, s->mean);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_COMPONENTS_MEAN, s->pca.mean);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_COMPONENTS, s->pca.basis);
    if (rc == OMEN_OK && pca_coarsen(&s->pca) != OMEN_OK)
        rc = err_set(r->err, OMEN_ENOMEM, NULL, "no memory for %s", r->path);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_CURVE, curve);
    if (rc == OMEN_OK && !curve_load(curve, &s->curve))
        rc = header_wrong(r, r->place[SECTION_CURVE].offset, "impossible calibration");
    if (rc == OMEN_OK) rc = section_read(r, SECTION_LEADER_NODES, s->leaders.nodes);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_LEADERS, s->leaders.codes.groups);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_LEADER_SCALES, s->leaders.codes.scales);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_MIDDLES, s->leaders.middles.groups);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_MIDDLE_SCALES, s->leaders.middles.scales);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_FLAT, s->flat.groups);
    if (rc == OMEN_OK) rc = section_read(r, SECTION_FLAT_SCALES, s->flat.scales);
    if (rc == OMEN_OK) rc = graph_open(r, s, pin);
    if (rc == OMEN_OK && s->compact != NULL) rc = compact_open(r, s, pin);
    if (rc == OMEN_OK) rc = graph_check(r, s);
    return rc;
}

enum omen_err index_sealed_map(struct vfs *vfs, const char *path, const struct index_rows *rows, bool pin,
        struct index **index_out, struct err *err)
{
    struct reader r = { .path = path, .err = err };
    struct sealed *s = sealed_new(rows);
    if (s == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for an index");
    enum omen_err rc = vfs_open(vfs, path, VFS_READ, &r.file, err);
    if (rc == OMEN_OK) rc = vfs_size(r.file, &r.file_bytes, err);
    if (rc == OMEN_OK && r.file_bytes < PAGE)
        rc = header_wrong(&r, r.file_bytes, "file ends inside its header");
    if (rc == OMEN_OK) rc = vfs_pread(r.file, r.header, PAGE, 0, err);
    if (rc == OMEN_OK) rc = header_check(&r, s);
    if (rc == OMEN_OK) {
        rotation_init(&s->rotation, s->dim, s->seed);
        s->flat.count = s->count;
        s->flat.group_bytes = (uint32_t)rabitq_codes_bytes(s->padded) + CODE_GROUP * 4;
        s->leaders.codes.group_bytes = s->leaders.middles.group_bytes = s->flat.group_bytes;
        rc = sections_open(&r, s, pin);
    }
    if (s->file == NULL) vfs_close(r.file);
    if (rc != OMEN_OK) {
        sealed_free(&s->base);
        return rc;
    }
    *index_out = &s->base;
    return OMEN_OK;
}

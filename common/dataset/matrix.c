/* Matrix files of the data-set folders: mapped, checked once at open, read row by row.
 * Formats as in dataset.h; every announced size is compared with the file's before a row is touched. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/check.h"
#include "common/dataset/dataset.h"

static uint32_t component_bytes(enum matrix_type type)
{
    switch (type) {
    case MATRIX_F32: return 4;
    case MATRIX_F16: return 2;
    case MATRIX_U8: return 1;
    case MATRIX_U32: return 4;
    case MATRIX_I64: return 8;
    }
    return 0;
}

static enum omen_err map_file(const char *path, const uint8_t **map_out, uint64_t *bytes_out, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno == ENOENT) return err_set(err, OMEN_ENOTFOUND, NULL, "no such file: %s", path);
        return err_os(err, errno, "cannot open", path);
    }
    enum omen_err rc = OMEN_OK;
    struct stat st;
    if (fstat(fd, &st) != 0) {
        rc = err_os(err, errno, "cannot stat", path);
    } else if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        rc = err_set(err, OMEN_EINVAL, NULL, "%s: not a file, or empty", path);
    } else {
        void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            rc = err_os(err, errno, "cannot map", path);
        else {
            *map_out = map;
            *bytes_out = (uint64_t)st.st_size;
        }
    }
    close(fd);
    return rc;
}

/* u32 rows, u32 dims, then rows. */
static enum omen_err read_bin(struct matrix *m, enum matrix_type type, const char *path, struct err *err)
{
    if (m->map_bytes < 8) return err_set(err, OMEN_EINVAL, NULL, "%s: shorter than its header", path);
    m->type = type;
    m->count = load_u32(m->map);
    m->dim = load_u32(m->map + 4);
    if (m->dim == 0 || m->dim > (1u << 20))
        return err_set(err, OMEN_EINVAL, NULL, "%s: announces %u dimensions", path, m->dim);
    m->row_stride_bytes = (uint64_t)m->dim * component_bytes(type);
    m->rows = m->map + 8;
    if (m->map_bytes - 8 != m->count * m->row_stride_bytes)
        return err_set(err, OMEN_EINVAL, NULL, "%s: announces %llu x %u rows, the file has %llu bytes", path,
                (unsigned long long)m->count, m->dim, (unsigned long long)m->map_bytes);
    return OMEN_OK;
}

/* Each row: u32 dim, components. */
static enum omen_err read_vecs(struct matrix *m, enum matrix_type type, const char *path, struct err *err)
{
    if (m->map_bytes < 4) return err_set(err, OMEN_EINVAL, NULL, "%s: shorter than its header", path);
    m->type = type;
    m->dim = load_u32(m->map);
    if (m->dim == 0 || m->dim > (1u << 20))
        return err_set(err, OMEN_EINVAL, NULL, "%s: announces %u dimensions", path, m->dim);
    m->row_stride_bytes = 4 + (uint64_t)m->dim * component_bytes(type);
    if (m->map_bytes % m->row_stride_bytes != 0)
        return err_set(err, OMEN_EINVAL, NULL, "%s: %llu bytes are not whole rows of %u dimensions", path,
                (unsigned long long)m->map_bytes, m->dim);
    m->count = m->map_bytes / m->row_stride_bytes;
    m->rows = m->map + 4;
    for (uint64_t i = 0; i < m->count; i++)
        if (load_u32(m->map + i * m->row_stride_bytes) != m->dim)
            return err_set(err, OMEN_EINVAL, NULL, "%s: row %llu has another dimension", path,
                    (unsigned long long)i);
    return OMEN_OK;
}

/* The header is a Python literal: {'descr': '<f4', 'fortran_order': False, 'shape': (60024, 128), } */
static enum omen_err read_npy(struct matrix *m, const char *path, struct err *err)
{
    if (m->map_bytes < 12 || memcmp(m->map, "\x93NUMPY", 6) != 0)
        return err_set(err, OMEN_EINVAL, NULL, "%s: no .npy header", path);
    uint64_t start = m->map[6] == 1 ? 10 : 12;
    uint64_t header_bytes = m->map[6] == 1 ? load_u16(m->map + 8) : load_u32(m->map + 8);
    if (!range_fits(start, header_bytes, m->map_bytes) || header_bytes > 4096)
        return err_set(err, OMEN_EINVAL, NULL, "%s: its .npy header is cut off", path);
    char header[4097];
    memcpy(header, m->map + start, header_bytes);
    header[header_bytes] = '\0';
    static const struct {
        const char *descr;
        enum matrix_type type;
    } kinds[] = {
        { "'<f4'", MATRIX_F32 },
        { "'<f2'", MATRIX_F16 },
        { "'|u1'", MATRIX_U8 },
        { "'<u4'", MATRIX_U32 },
        { "'<i4'", MATRIX_U32 },
        { "'<i8'", MATRIX_I64 },
    };
    bool known = false;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (strstr(header, kinds[i].descr) == NULL) continue;
        m->type = kinds[i].type;
        known = true;
    }
    if (!known || strstr(header, "'fortran_order': False") == NULL)
        return err_set(err, OMEN_EINVAL, NULL, "%s: want C order and one of <f4 <f2 |u1 <u4 <i4 <i8", path);
    const char *shape = strstr(header, "'shape': (");
    unsigned long long rows = 0, dim = 0;
    if (shape == NULL || sscanf(shape, "'shape': (%llu, %llu)", &rows, &dim) != 2 || dim == 0 ||
            dim > (1u << 20))
        return err_set(err, OMEN_EINVAL, NULL, "%s: want a shape of two dimensions", path);
    m->count = rows;
    m->dim = (uint32_t)dim;
    m->row_stride_bytes = dim * component_bytes(m->type);
    m->rows = m->map + start + header_bytes;
    uint64_t body = m->map_bytes - start - header_bytes;
    if (rows > body / m->row_stride_bytes || body != rows * m->row_stride_bytes)
        return err_set(err, OMEN_EINVAL, NULL, "%s: announces %llu x %llu, the file is of another size", path,
                rows, dim);
    return OMEN_OK;
}

enum omen_err matrix_open(const char *path, struct matrix *matrix_out, struct err *err)
{
    static const struct {
        const char *ending;
        enum matrix_type type;
        bool vecs;
    } formats[] = {
        { ".fbin", MATRIX_F32, false },
        { ".f16bin", MATRIX_F16, false },
        { ".u8bin", MATRIX_U8, false },
        { ".ibin", MATRIX_U32, false },
        { ".fvecs", MATRIX_F32, true },
        { ".bvecs", MATRIX_U8, true },
        { ".ivecs", MATRIX_U32, true },
    };
    struct matrix m = { 0 };
    const char *dot = strrchr(path, '.');
    if (dot == NULL) dot = "";
    enum omen_err rc = map_file(path, &m.map, &m.map_bytes, err);
    if (rc != OMEN_OK) return rc;
    rc = err_set(err, OMEN_EINVAL, NULL,
            "%s: unknown format, want .fbin .f16bin .u8bin .ibin .fvecs .bvecs .ivecs .npy", path);
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (strcmp(dot, formats[i].ending) != 0) continue;
        rc = formats[i].vecs ? read_vecs(&m, formats[i].type, path, err)
                             : read_bin(&m, formats[i].type, path, err);
    }
    if (strcmp(dot, ".npy") == 0) rc = read_npy(&m, path, err);
    if (rc != OMEN_OK) {
        matrix_close(&m);
        return rc;
    }
    err_clear(err);
    *matrix_out = m;
    return OMEN_OK;
}

void matrix_close(struct matrix *matrix)
{
    if (matrix->map != NULL) munmap((void *)(uintptr_t)matrix->map, matrix->map_bytes);
    memset(matrix, 0, sizeof *matrix);
}

/* IEEE 754 half to single, exact, subnormals and infinities included. */
static float half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 1023;
    uint32_t bits;
    if (exponent == 31)
        bits = sign | 0x7f800000 | mantissa << 13;
    else if (exponent != 0)
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else if (mantissa == 0)
        bits = sign;
    else {
        uint32_t shift = (uint32_t)__builtin_clz(mantissa) - 21;
        bits = sign | (113 - shift) << 23 | ((mantissa << shift) & 1023) << 13;
    }
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void matrix_row_f32(const struct matrix *matrix, uint64_t row, float *out)
{
    CHECK(row < matrix->count);
    const uint8_t *src = matrix->rows + row * matrix->row_stride_bytes;
    for (uint32_t i = 0; i < matrix->dim; i++) {
        switch (matrix->type) {
        case MATRIX_F32: memcpy(&out[i], src + 4 * (size_t)i, 4); break;
        case MATRIX_F16: out[i] = half_to_float(load_u16(src + 2 * (size_t)i)); break;
        case MATRIX_U8: out[i] = src[i]; break;
        case MATRIX_U32: out[i] = (float)load_u32(src + 4 * (size_t)i); break;
        case MATRIX_I64: out[i] = (float)(int64_t)load_u64(src + 8 * (size_t)i); break;
        }
    }
}

enum omen_err matrix_row_u32(const struct matrix *matrix, uint64_t row, uint32_t *out, struct err *err)
{
    CHECK(row < matrix->count);
    const uint8_t *src = matrix->rows + row * matrix->row_stride_bytes;
    if (matrix->type != MATRIX_U32 && matrix->type != MATRIX_I64)
        return err_set(err, OMEN_EINVAL, NULL, "row numbers must be integers");
    for (uint32_t i = 0; i < matrix->dim; i++) {
        uint64_t value = matrix->type == MATRIX_U32 ? load_u32(src + 4 * (size_t)i)
                                                    : load_u64(src + 8 * (size_t)i);
        if (value > UINT32_MAX)
            return err_set(err, OMEN_EINVAL, NULL, "row number out of range in row %llu",
                    (unsigned long long)row);
        out[i] = (uint32_t)value;
    }
    return OMEN_OK;
}

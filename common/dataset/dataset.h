/* Data-set folders, read by every tool: meta.json {name, count, dim, metric, base, query, truth, payload}.
 *
 * Vectors: .fbin .f16bin .u8bin (u32 rows, u32 dims, rows), truth .ibin in the same shape; the older .fvecs .bvecs .ivecs
 * (each row led by its u32 dim); .npy (version 1-3, C order, <f4 <f2 |u1 <u4 <i4 <i8, two dimensions). All little-endian.
 * Payload: JSON lines, line i = row i; of a file NAME.txt the lines are texts, the values of one member NAME. Files are
 * mapped read-only; sizes are checked against what the headers announce.
 * Truth is read as u32 row numbers. Threads: readers of one data set may read vectors concurrently; payload reading is
 * sequential and belongs to one thread. */
#ifndef OMEN_COMMON_DATASET_DATASET_H
#define OMEN_COMMON_DATASET_DATASET_H

#include "common/bytes.h"
#include "common/err.h"
#include "common/query/point.h"

enum matrix_type { MATRIX_F32, MATRIX_F16, MATRIX_U8, MATRIX_U32, MATRIX_I64 };

/* A mapped matrix file; also readable alone (query files). */
struct matrix {
    const uint8_t *map; /* whole file, owned */
    uint64_t map_bytes;
    const uint8_t *rows; /* first component of row 0 */
    uint64_t row_stride_bytes;
    uint64_t count;
    uint32_t dim;
    enum matrix_type type;
};

/* The format follows from the file name's ending. Errors: OMEN_EINVAL naming file and what is wrong, OMEN_ENOTFOUND. */
OMEN_CHECKED enum omen_err matrix_open(const char *path, struct matrix *matrix_out, struct err *err);
void matrix_close(struct matrix *matrix);
/* Row as f32; `row` < count. out [dim]. */
void matrix_row_f32(const struct matrix *matrix, uint64_t row, float *out);
/* Row of integers (truth); out [dim]. Values above u32 are OMEN_EINVAL. */
OMEN_CHECKED enum omen_err matrix_row_u32(const struct matrix *matrix, uint64_t row, uint32_t *out,
        struct err *err);

struct dataset {
    char name[OMEN_NAME_BYTES_MAX + 1];
    char *dir; /* owned */
    enum metric metric;
    struct matrix base, query, truth;             /* query, truth: count 0 when the folder has none */
    const uint8_t *payload;                       /* mapped JSON lines; NULL without payload */
    uint64_t payload_bytes, payload_next;         /* offset of the next line */
    char payload_member[OMEN_NAME_BYTES_MAX + 1]; /* lines are this member's texts; "" = JSON */
};

OMEN_CHECKED enum omen_err dataset_open(const char *dir, struct dataset *dataset_out, struct err *err);
void dataset_close(struct dataset *dataset);
/* Next payload line without its newline; {NULL,0} at the end. dataset_payload_rewind starts over. */
struct bytes dataset_payload_next(struct dataset *dataset);
void dataset_payload_rewind(struct dataset *dataset);

#endif

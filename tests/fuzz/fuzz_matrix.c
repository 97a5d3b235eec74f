/* Matrix files of data sets on arbitrary bytes, in every format: refused with a sentence, or every row can be read. */
#include "common/err.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/check.h"
#include "common/dataset/dataset.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ROWS_READ_MAX 64 /* from each end */

static void read_rows(const struct matrix *m)
{
    float *row = mem_must_alloc(m->dim * sizeof *row);
    uint32_t *numbers = mem_must_alloc(m->dim * sizeof *numbers);
    struct err err;
    for (uint64_t i = 0; i < m->count; i++) {
        if (i >= ROWS_READ_MAX && i + ROWS_READ_MAX < m->count) continue;
        matrix_row_f32(m, i, row);
        if (matrix_row_u32(m, i, numbers, &err) != OMEN_OK) CHECK(err.message[0] != '\0');
    }
    mem_free(row);
    mem_free(numbers);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const endings[] = { "fbin", "f16bin", "u8bin", "ibin", "fvecs", "bvecs", "ivecs",
        "npy" };
    if (size < 1) return 0;
    const char *dir = getenv("TMPDIR");
    char path[256];
    snprintf(path, sizeof path, "%.200s/omen-fuzz-%d.%s", dir != NULL ? dir : "/tmp", (int)getpid(),
            endings[data[0] % 8]);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, data + 1, size - 1) == (ssize_t)(size - 1));
    close(fd);
    struct matrix m;
    struct err err;
    err_clear(&err);
    if (matrix_open(path, &m, &err) == OMEN_OK) {
        read_rows(&m);
        matrix_close(&m);
    } else {
        CHECK(err.message[0] != '\0');
    }
    unlink(path);
    return 0;
}

/* See golden.h. */
#include "tests/support/golden.h"

#include <check.h>
#include <ctype.h>
#include <stdio.h>

size_t golden_read(const char *path, uint8_t *bytes, size_t cap)
{
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "cannot open %s (run in the root of the repository)", path);
    size_t len = 0;
    for (int c, high = -1; (c = fgetc(f)) != EOF;) {
        if (!isxdigit(c)) continue;
        int v = isdigit(c) ? c - '0' : tolower(c) - 'a' + 10;
        if (high < 0) {
            high = v;
            continue;
        }
        ck_assert_uint_lt(len, cap);
        bytes[len++] = (uint8_t)(high << 4 | v);
        high = -1;
    }
    fclose(f);
    return len;
}

void golden_write(const char *path, struct bytes bytes, const char *between)
{
    FILE *f = fopen(path, "wb");
    ck_assert_msg(f != NULL, "cannot write %s (run in the root of the repository)", path);
    for (size_t i = 0; i < bytes.len; i++)
        fprintf(f, "%02x%s", bytes.data[i], i % 32 == 31 || i + 1 == bytes.len ? "\n" : between);
    fclose(f);
}

/* See table.h. */
#include "tools/omenctl/table.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#include "common/check.h"
#include "common/mem.h"
#include "common/utf8.h"

#define GAP 2u      /* blanks between columns */
#define CUT_MIN 12u /* the last column is not cut below this */

struct cell {
    size_t offset;
    uint32_t len, width;
};

struct table {
    const char *titles[TABLE_COLUMNS_MAX]; /* borrowed */
    bool right[TABLE_COLUMNS_MAX];
    uint32_t column_count;
    struct buf text;  /* of all cells */
    struct buf cells; /* struct cell, row by row */
};

struct table *table_new(void)
{
    struct table *table = mem_must_calloc(1, sizeof *table);
    buf_init(&table->text);
    buf_init(&table->cells);
    return table;
}

void table_free(struct table *table)
{
    buf_fini(&table->text);
    buf_fini(&table->cells);
    mem_free(table);
}

void table_column(struct table *table, const char *title, bool right_aligned)
{
    CHECK(table->column_count < TABLE_COLUMNS_MAX);
    table->titles[table->column_count] = title;
    table->right[table->column_count++] = right_aligned;
}

/* Code point of a well-formed sequence. */
static wchar_t decode(const uint8_t *p, size_t n)
{
    static const uint8_t FIRST_MASK[5] = { 0, 0x7f, 0x1f, 0x0f, 0x07 };
    uint32_t c = p[0] & FIRST_MASK[n];
    for (size_t i = 1; i < n; i++) c = c << 6 | (p[i] & 0x3f);
    return (wchar_t)c;
}

static uint32_t sequence_width(const uint8_t *p, size_t n)
{
    if (n == 0) return 1;
    int width = wcwidth(decode(p, n));
    return width < 0 ? (n == 1 ? 1 : 0) : (uint32_t)width;
}

uint32_t text_width(const char *text, size_t len)
{
    const uint8_t *p = (const uint8_t *)text;
    uint32_t width = 0;
    for (size_t i = 0; i < len;) {
        size_t n = utf8_sequence_bytes(p + i, len - i);
        width += sequence_width(p + i, n);
        i += n == 0 ? 1 : n;
    }
    return width;
}

/* C1 controls and those that turn the direction of text are no better than C0. */
static bool is_control(wchar_t c)
{
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x202a && c <= 0x202e) ||
            (c >= 0x2066 && c <= 0x2069);
}

static void append_printable(struct buf *out, const char *text, size_t len)
{
    const uint8_t *p = (const uint8_t *)text;
    for (size_t i = 0; i < len;) {
        size_t n = utf8_sequence_bytes(p + i, len - i);
        if (n == 0)
            buf_append(out, "?", 1);
        else if (is_control(decode(p + i, n)))
            buf_append(out, " ", 1);
        else
            buf_append(out, p + i, n);
        i += n == 0 ? 1 : n;
    }
}

void table_cell(struct table *table, const char *text, size_t len)
{
    struct cell cell = { .offset = table->text.len };
    append_printable(&table->text, text, len);
    if (table->text.failed) panic("no memory for a table");
    cell.len = (uint32_t)(table->text.len - cell.offset);
    cell.width = text_width((const char *)table->text.data + cell.offset, cell.len);
    buf_append(&table->cells, &cell, sizeof cell);
    if (table->cells.failed) panic("no memory for a table");
}

void table_cellf(struct table *table, const char *fmt, ...)
{
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    table_cell(table, text, strlen(text));
}

static void print_blanks(FILE *out, uint32_t count) { fprintf(out, "%*s", (int)count, ""); }

/* The longest beginning that leaves room for "…". */
static void print_cut(FILE *out, const char *text, size_t len, uint32_t width_max)
{
    const uint8_t *p = (const uint8_t *)text;
    uint32_t width = 0;
    size_t i = 0;
    while (i < len) {
        size_t n = utf8_sequence_bytes(p + i, len - i);
        uint32_t w = sequence_width(p + i, n);
        if (width + w + 1 > width_max) break;
        width += w;
        i += n == 0 ? 1 : n;
    }
    fwrite(text, 1, i, out);
    fputs("…", out);
}

static void print_cell(FILE *out, const char *text, size_t len, uint32_t width, uint32_t column_width,
        bool right, bool last, uint32_t last_max)
{
    if (last && last_max != 0 && width > last_max) {
        print_cut(out, text, len, last_max);
        return;
    }
    uint32_t blanks = column_width > width ? column_width - width : 0;
    if (right) print_blanks(out, blanks);
    fwrite(text, 1, len, out);
    if (!right && !last) print_blanks(out, blanks);
}

void table_print(const struct table *table, FILE *out, uint32_t width_max)
{
    uint32_t columns = table->column_count, widths[TABLE_COLUMNS_MAX] = { 0 }, before_last = 0;
    if (columns == 0) return;
    const struct cell *cells = (const struct cell *)(const void *)table->cells.data;
    size_t count = table->cells.len / sizeof *cells;
    for (uint32_t c = 0; c < columns; c++)
        if (table->titles[c] != NULL) widths[c] = text_width(table->titles[c], strlen(table->titles[c]));
    for (size_t i = 0; i < count; i++)
        if (cells[i].width > widths[i % columns]) widths[i % columns] = cells[i].width;
    for (uint32_t c = 0; c + 1 < columns; c++) before_last += widths[c] + GAP;
    uint32_t last_max = width_max == 0          ? 0
            : width_max > before_last + CUT_MIN ? width_max - before_last
                                                : CUT_MIN;

    for (uint32_t c = 0; table->titles[0] != NULL && c < columns; c++) {
        const char *title = table->titles[c];
        print_cell(out, title, strlen(title), text_width(title, strlen(title)), widths[c], table->right[c],
                c + 1 == columns, last_max);
        if (c + 1 == columns)
            fputc('\n', out);
        else
            print_blanks(out, GAP);
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t c = (uint32_t)(i % columns);
        print_cell(out, (const char *)table->text.data + cells[i].offset, cells[i].len, cells[i].width,
                widths[c], table->right[c], c + 1 == columns, last_max);
        if (c + 1 == columns)
            fputc('\n', out);
        else
            print_blanks(out, GAP);
    }
}

uint32_t terminal_width(void)
{
    const char *columns = getenv("COLUMNS");
    long width = columns == NULL ? 0 : strtol(columns, NULL, 10);
    if (width > 0 && width < 100000) return (uint32_t)width;
    struct winsize size;
    if (isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) return size.ws_col;
    return 0;
}

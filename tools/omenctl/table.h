/* Tables for people: columns aligned by what a terminal shows, not by bytes.
 *
 * Cells are copied; control characters become blanks and bytes that are no UTF-8 '?', so that data cannot steer the
 * terminal. Threads: main only. */
#ifndef OMEN_TOOLS_OMENCTL_TABLE_H
#define OMEN_TOOLS_OMENCTL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define TABLE_COLUMNS_MAX 64

struct table;

struct table *table_new(void);
void table_free(struct table *table);
/* All columns come before the first cell. A title may be NULL in every column: no header is printed. */
void table_column(struct table *table, const char *title, bool right_aligned);
void table_cell(struct table *table, const char *text, size_t len); /* the next cell, row by row */
void table_cellf(struct table *table, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* `width_max` columns of the terminal, 0 = no limit: cells of the last column are cut to it with "…". */
void table_print(const struct table *table, FILE *out, uint32_t width_max);

/* Columns that well-formed or not UTF-8 takes on a terminal. */
uint32_t text_width(const char *text, size_t len);
/* Of standard output: COLUMNS, else the terminal's, else 0. */
uint32_t terminal_width(void);

#endif

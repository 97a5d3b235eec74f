/* Lists of words are the same whether what each row has was noted or the texts were read again, part by part, and hold
 * exactly the rows that have the word. */
#include "common/err.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "storage/payload/payload_words.h"
#include "storage/payload/rowbits.h"
#include "storage/payload/word_lists.h"

#define ROWS 140000u /* three chunks, the last one cut */
#define WORDS 60u
#define SMALL_BYTES 40000u /* what the words take, and half a list */

/* Word n is in every (n + 1)th row and twice in some; the last in one row alone. */
static bool row_has(uint32_t row, uint32_t n)
{
    return n + 1 == WORDS ? row == 70000 : row % (n + 1) == 0 && row % 100 != 99;
}

static struct bytes text_of(uint32_t row, char out[512])
{
    size_t len = 0;
    for (uint32_t n = 0; n < WORDS; n++)
        if (row_has(row, n)) len += (size_t)snprintf(out + len, 512 - len, n % 2 ? "W%u " : "w%u w%u ", n, n);
    return (struct bytes){ (const uint8_t *)out, len };
}

/* All lists, one after the other; *parts_out of how many. */
static struct buf lists_of(uint64_t memory_max, uint32_t *parts_out, bool *noted_out, struct buf *table_out)
{
    struct words_build w;
    struct buf lists;
    char text[512];
    buf_init(&lists);
    buf_init(table_out);
    words_init(&w, true, memory_max);
    for (uint32_t row = 0; row < ROWS; row++) words_add(&w, row, text_of(row, text));
    words_end(&w);
    ck_assert(!w.given_up && !w.failed);
    ck_assert_uint_eq(w.count, WORDS);
    words_put(&w, table_out);
    for (*parts_out = 0; words_part_begin(&w); ++*parts_out) {
        *noted_out = words_fill_noted(&w);
        for (uint32_t row = 0; !*noted_out && row < ROWS; row++) words_fill(&w, row, text_of(row, text));
        buf_append(&lists, w.part, (w.part_end - w.part_first) * sizeof *w.part);
    }
    ck_assert(!w.failed);
    ck_assert_uint_eq(lists.len, 2 * w.units);
    words_fini(&w);
    return lists;
}

START_TEST(lists_are_the_same_however_they_are_filled)
{
    struct buf table, again_table;
    uint32_t parts, again_parts;
    bool noted, again_noted;
    struct buf lists = lists_of(1u << 30, &parts, &noted, &table);
    struct buf again = lists_of(SMALL_BYTES, &again_parts, &again_noted, &again_table);
    ck_assert(noted && parts == 1);
    ck_assert(!again_noted && again_parts > 3);
    ck_assert(lists.len == again.len && memcmp(lists.data, again.data, lists.len) == 0);
    ck_assert(table.len == again_table.len && memcmp(table.data, again_table.data, table.len) == 0);
    buf_fini(&lists);
    buf_fini(&again);
    buf_fini(&table);
    buf_fini(&again_table);
}
END_TEST

START_TEST(a_list_holds_the_rows_that_have_the_word)
{
    struct buf table;
    uint32_t parts;
    bool noted;
    struct buf lists = lists_of(1u << 30, &parts, &noted, &table);
    uint64_t *bits = mem_alloc_aligned(64, rowbits_capacity(ROWS) * sizeof *bits);
    const uint32_t *firsts = (const uint32_t *)(const void *)(table.data + 16 * WORDS);
    for (uint32_t n = 0; n < WORDS; n++) {
        char word[16];
        struct hash128 hash = hash128(word, (size_t)snprintf(word, sizeof word, "w%u", n));
        uint32_t at = 0;
        while (load_u64(table.data + 16 * at) != hash.hi) ck_assert_uint_lt(++at, WORDS);
        const struct word_list list = { (const uint16_t *)(const void *)lists.data + firsts[at],
            firsts[at + 1] - firsts[at] };
        ck_assert_ptr_null(word_list_wrong(list, ROWS));
        ck_assert_ptr_nonnull(word_list_wrong((struct word_list){ list.units, list.count - 1 }, ROWS));
        rowbits_none(bits, ROWS);
        word_list_or(list, bits);
        uint64_t expected = 0;
        for (uint32_t row = 0; row < ROWS; row++) {
            expected += row_has(row, n);
            ck_assert_int_eq(rowbits_has(bits, row), row_has(row, n));
        }
        ck_assert_uint_eq(word_list_rows(list), expected);
        rowbits_all(bits, ROWS);
        word_list_and(list, bits, ROWS);
        ck_assert_uint_eq(rowbits_count(bits, ROWS), expected);
    }
    mem_free(bits);
    buf_fini(&lists);
    buf_fini(&table);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("payload_words");
    TCase *tc = tcase_create("payload_words");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, lists_are_the_same_however_they_are_filled);
    tcase_add_test(tc, a_list_holds_the_rows_that_have_the_word);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

/* Words of a text, as match text compares them: runs of letters and digits, in lower case.
 *
 * A word character is an ASCII letter or digit, or any other character but blanks, punctuation and signs (Latin-1's,
 * General Punctuation to Miscellaneous Symbols, CJK punctuation and the full-width ones). An ideograph and a Hiragana
 * letter are words by themselves, as in UAX #29; text without blanks is found by its characters. Lower case is the
 * simple mapping of Latin, Greek, Cyrillic, Armenian and full-width letters, by a table of our own: no locale, the same
 * answer everywhere, for ever. Nothing is normalised or stemmed: text is expected in composed form (NFC). */
#ifndef OMEN_COMMON_QUERY_WORDS_H
#define OMEN_COMMON_QUERY_WORDS_H

#include "common/bytes.h"

#define WORD_BYTES_MAX 128 /* of a word in lower case; what goes beyond is cut off */

/* The next word of well-formed UTF-8 from *at on; its length, 0 at the end. */
size_t words_next(struct bytes text, size_t *at, uint8_t word_out[WORD_BYTES_MAX]);

#endif

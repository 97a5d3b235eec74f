/* Payload values as short text in tests: JSON with single quotes, so that it needs no escapes in C.
 * Independent of common/json.c, which has tests of its own. */
#ifndef OMEN_TESTS_SUPPORT_DOC_TEXT_H
#define OMEN_TESTS_SUPPORT_DOC_TEXT_H

#include "common/query/doc.h"

/* "{'a': [1, 2.5, 'x', null, true]}" to a doc in `arena`. Text that is none fails an abort() with its place:
 * it is the test that is wrong. Numbers with . e or E are doubles. Strings have no escapes. */
struct doc doc_of(struct arena *arena, const char *text);

/* The same form back, without blanks; NUL-terminated in `arena`. */
const char *doc_show(struct arena *arena, struct doc doc);

#endif

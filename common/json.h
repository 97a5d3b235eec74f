/* JSON text to payload values and back; the only home of jansson.h together with common/config. */
#ifndef OMEN_COMMON_JSON_H
#define OMEN_COMMON_JSON_H

#include "common/query/doc.h"

/* Parse one JSON value into `b`, fresh or reset by the caller, who sets its limit there. Integers outside
 * i64, NaN and duplicates are errors with line and column; what payloads do not allow is an error with the
 * path in `field`. */
OMEN_CHECKED enum omen_err json_parse(const char *text, size_t len, struct doc_builder *b,
        struct doc *doc_out, struct err *err);
/* Compact JSON appended to `out` (not NUL-terminated). */
void json_write(struct doc doc, struct buf *out);
void json_write_string(struct bytes s, struct buf *out); /* quoted and escaped */

#endif

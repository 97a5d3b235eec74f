/* Where in a doc something is wrong, as a person reads it: "must[1].match.any[3]". A place is a chain of
 * links on the walker's stack, so that keeping it costs nothing until an error is told. Keys borrow from the
 * doc. */
#ifndef OMEN_COMMON_QUERY_DOC_PLACE_H
#define OMEN_COMMON_QUERY_DOC_PLACE_H

#include "common/bytes.h"
#include "common/err.h"

struct doc_place {
    const struct doc_place *up; /* NULL at the first link */
    struct bytes key;           /* member of an object; data == NULL: an element of an array */
    uint32_t slot;              /* 0-based element, when key.data is NULL */
};

/* Writes the path, NUL-terminated, cut at the end if it does not fit. `place` NULL gives "". Keys that
 * doc_path_parse could not read bare come in quotes. Bytes of keys are copied as they are: err_set makes what
 * is no text '?'. */
void doc_place_format(const struct doc_place *place, char text_out[ERR_FIELD_BYTES]);

#endif

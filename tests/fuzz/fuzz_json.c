/* json_parse and json_write: any text is refused or becomes a doc that validates, and whose JSON reads
 * back to the very same bytes. */
#include "common/json.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct doc_builder *first, *second;
    struct doc doc, again, checked;
    struct err err;
    if (first == NULL) first = doc_builder_new(DOC_BYTES_MAX), second = doc_builder_new(DOC_BYTES_MAX);
    doc_builder_reset(first, DOC_BYTES_MAX);
    doc_builder_reset(second, DOC_BYTES_MAX);

    struct buf out;
    buf_init(&out);
    json_write_string((struct bytes){ data, size }, &out);
    CHECK(json_parse((const char *)out.data, out.len, second, &again, &err) !=
            OMEN_EINVAL); /* any bytes become JSON */

    if (json_parse((const char *)data, size, first, &doc, &err) == OMEN_OK) {
        CHECK(doc_validate((struct bytes){ doc.data, doc.len }, DOC_BYTES_MAX, &checked, &err) == OMEN_OK);
        buf_clear(&out);
        json_write(doc, &out);
        doc_builder_reset(second, DOC_BYTES_MAX);
        CHECK(json_parse((const char *)out.data, out.len, second, &again, &err) == OMEN_OK);
        CHECK(again.len == doc.len && memcmp(again.data, doc.data, doc.len) == 0);
    } else {
        CHECK(err.message[0] != '\0');
    }
    buf_fini(&out);
    return 0;
}

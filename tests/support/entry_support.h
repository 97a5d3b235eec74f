/* Log entries for tests: schemas, and the way back from a parsed entry to its bytes. */
#ifndef OMEN_TESTS_SUPPORT_ENTRY_SUPPORT_H
#define OMEN_TESTS_SUPPORT_ENTRY_SUPPORT_H

#include "common/err.h"
#include "storage/entry.h"

/* One unnamed field of `dim`; `shard_key` "" for none. */
struct collection_schema test_schema_simple(uint32_t dim, const char *shard_key);
/* Three fields: "" of 4 dims, "text" of 17, "image" of 33; shard key "tenant" when `keyed`. */
struct collection_schema test_schema_three(bool keyed);

/* Build the entry again from what the parser says it holds. The layout is canonical, so the result must have
 * the bytes of the original. Fresh allocation (mem_free); fails the process when the builder refuses. */
uint8_t *test_entry_rebuild(const struct entry *entry, const struct collection_schema *schema,
        uint32_t *len_out);

#endif

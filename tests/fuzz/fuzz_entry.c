/* Any bytes as a log entry. What the parser accepts must be one canonical encoding: building the entry again
 * from the parsed view gives the same bytes. The first input byte chooses the schema and whether length and
 * checksum are put right first, so that the fuzzer gets past them. */
#include "common/err.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "tests/support/entry_support.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) return 0;
    uint8_t mode = data[0];
    struct collection_schema schema = mode & 1 ? test_schema_three(mode & 2)
                                               : test_schema_simple(3, mode & 2 ? "k" : "");
    size_t len = size - 1;
    uint8_t *bytes = mem_alloc_aligned(ENTRY_ALIGN, len > 0 ? len : 1);
    if (len > 0) memcpy(bytes, data + 1, len);
    if ((mode & 4) != 0 && len >= ENTRY_HEADER_BYTES) {
        store_u32(bytes + 8, (uint32_t)len);
        store_u32(bytes + 12, crc32c(0, bytes + 16, len - 16));
    }
    struct entry shallow, deep;
    struct err err = { 0 };
    enum omen_err shallow_rc = entry_parse(bytes, len, &schema, false, &shallow, &err);
    enum omen_err rc = entry_parse(bytes, len, &schema, true, &deep, &err);
    CHECK(rc == OMEN_OK || rc == OMEN_ECORRUPT);
    if (rc == OMEN_OK) {
        CHECK(shallow_rc == OMEN_OK);
        uint32_t again_len;
        uint8_t *again = test_entry_rebuild(&deep, &schema, &again_len);
        CHECK(again_len == len);
        CHECK(memcmp(again, bytes, len) == 0);
        mem_free(again);
    } else {
        CHECK(err.message[0] != '\0');
    }
    mem_free(bytes);
    return 0;
}

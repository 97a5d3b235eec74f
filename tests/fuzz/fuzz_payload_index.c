/* Any bytes as a payload index, with and without repaired checksums: it is refused, or filters over it end and set no bit
 * past its rows. */
#include "common/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/payload/payload_index.h"
#include "storage/payload/rowbits.h"
#include "tests/support/doc_text.h"

#define HEADER_BYTES 64u
#define ENTRY_BYTES 64u
#define ROWS_MAX (1u << 20) /* a segment knows how many it has: the file cannot say more */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Checksums of what the bytes are, lengths of the file as it is. */
static void repair(uint8_t *bytes, size_t len)
{
    if (len < HEADER_BYTES) return;
    uint32_t fields = load_u32(bytes + 12);
    uint64_t head = HEADER_BYTES + (uint64_t)fields * ENTRY_BYTES, at = head;
    if (head > len) return;
    store_u64(bytes + 16, len);
    for (uint32_t f = 0; f < fields; f++) {
        uint8_t *entry = bytes + HEADER_BYTES + (size_t)f * ENTRY_BYTES;
        uint64_t section = load_u64(entry + 8);
        if (section > len - at) break;
        store_u32(entry + 20, crc32c(0, bytes + at, section));
        at += section;
    }
    store_u32(bytes + 24, crc32c(0, bytes + HEADER_BYTES, head - HEADER_BYTES));
    store_u32(bytes + 60, crc32c(0, bytes, 60));
}

static const char *const filters[] = {
    "{'must': [{'key': 'title', 'match': {'text': 'meer'}}]}",
    "{'must_not': [{'key': 'title', 'match': {'text': 'der meer mann'}}]}",
    "{'should': [{'key': 'section', 'match': {'any': ['libs', 'net']}}, "
    "{'key': 'size', 'range': {'lt': 5}}]}",
    "{'must': [{'key': 'place', 'geo_radius': {'center': {'lon': 13, 'lat': 52}, 'radius': 2000000}}]}",
    "{'must': [{'key': 'place', 'geo_bounding_box': {'top_left': {'lon': 170, 'lat': 90}, "
    "'bottom_right': {'lon': 20, 'lat': -90}}}]}",
    "{'must': [{'has_id': [10, 20]}, {'is_empty': {'key': 'ok'}}]}",
};

static void ask(const struct payload_index *index, uint32_t rows)
{
    struct arena arena;
    struct payload_scratch *scratch = payload_scratch_new();
    CHECK(scratch != NULL);
    arena_init(&arena, 1 << 14, 0);
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++) {
        const struct filter *filter;
        struct payload_answer answer;
        struct payload_estimate estimate;
        CHECK(filter_parse(doc_of(&arena, filters[i]), &arena, &filter, NULL) == OMEN_OK);
        payload_index_estimate(index, filter, &estimate);
        CHECK(payload_index_filter(index, filter, scratch, &answer) == OMEN_OK);
        CHECK(answer.count <= rows && answer.count == rowbits_count(answer.rows, rows));
        CHECK(rows % 64 == 0 || answer.rows[rows / 64] >> (rows % 64) == 0);
    }
    arena_fini(&arena);
    payload_scratch_free(scratch);
}

static void open_and_ask(const char *path, const uint8_t *bytes, size_t size)
{
    struct payload_index *index;
    struct err err;
    uint32_t rows = size >= 12 ? load_u32(bytes + 8) : 0;
    FILE *file = fopen(path, "w");
    CHECK(file != NULL && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
    if (rows > ROWS_MAX || payload_index_open(vfs_posix(), path, rows, &index, &err) != OMEN_OK) return;
    ask(index, rows);
    payload_index_free(index);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[] = "/tmp/omen-fuzz-payload-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0 && close(fd) == 0);
    uint8_t *bytes = mem_must_alloc(size + 1);
    if (size > 0) memcpy(bytes, data, size);
    open_and_ask(path, bytes, size);
    repair(bytes, size);
    open_and_ask(path, bytes, size);
    mem_free(bytes);
    unlink(path);
    return 0;
}

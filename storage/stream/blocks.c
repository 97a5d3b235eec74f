/* Table of blocks; contract in blocks.h. */
#include "common/err.h"

#include "storage/stream/blocks.h"

#include <string.h>

#include "common/check.h"
#include "common/mem.h"

struct blocks *blocks_new(void) { return mem_must_calloc(1, sizeof(struct blocks)); }

void blocks_free(struct blocks *blocks)
{
    if (blocks == NULL) return;
    for (uint32_t i = 0; i < blocks_count(blocks); i++)
        mem_free((void *)(uintptr_t)blocks_at(blocks, i)->died);
    for (uint32_t b = 0; b < BLOCKS_BOOKS && blocks->books[b] != NULL; b++) {
        for (uint32_t i = 0; i < BLOCKS_PER_BOOK; i++) mem_free(blocks->books[b]->pages[i]);
        mem_free(blocks->books[b]);
    }
    mem_free(blocks);
}

/* Have the page of block `at`. */
static enum omen_err page_make(struct blocks *blocks, uint32_t at, struct err *err)
{
    struct blocks_place place = blocks_place(at);
    uint32_t b = place.page / BLOCKS_PER_BOOK, p = place.page % BLOCKS_PER_BOOK;
    if (b >= BLOCKS_BOOKS) return err_set(err, OMEN_EFULL, NULL, "too many units in the stream");
    if (blocks->books[b] == NULL) {
        struct blocks_book *book = mem_calloc(1, sizeof *book);
        if (book == NULL) return err_set(err, OMEN_ENOMEM, NULL, "pages of blocks");
        atomic_store_explicit(&blocks->books[b], book, memory_order_release);
    }
    if (blocks->books[b]->pages[p] != NULL) return OMEN_OK;
    struct block *page = mem_calloc(place.count, sizeof *page);
    if (page == NULL) return err_set(err, OMEN_ENOMEM, NULL, "page of blocks");
    atomic_store_explicit(&blocks->books[b]->pages[p], page, memory_order_release);
    return OMEN_OK;
}

enum omen_err blocks_stage(struct blocks *blocks, uint32_t staged, const struct stream_unit *unit,
        const struct entry *entry, struct err *err)
{
    uint32_t at = blocks_count(blocks) + staged;
    enum omen_err rc = page_make(blocks, at, err);
    if (rc != OMEN_OK) return rc;
    struct block *b = blocks_at(blocks, at);
    size_t row_bytes = sizeof *b->died + sizeof *b->digests;
    b->died = unit->body == NULL ? NULL : mem_alloc((entry->op_count + 1) * row_bytes);
    if (b->died == NULL && unit->body != NULL) return err_set(err, OMEN_ENOMEM, NULL, "rows of a block");
    b->digests = b->died == NULL ? NULL : (uint32_t *)(void *)(uintptr_t)(b->died + entry->op_count + 1);
    for (uint32_t i = 0; b->digests != NULL && i < entry->op_count; i++) b->digests[i] = 0;
    atomic_init(&b->live, 0);
    for (uint32_t i = 0; i < entry->op_count; i++) atomic_init(&b->died[i], unit->sequence);
    b->expires_min_ms = UINT64_MAX;
    for (uint32_t i = 0; entry->timed && i < entry->op_count; i++) {
        uint64_t expires_ms = entry_expires_ms(entry, i);
        if (expires_ms != 0 && expires_ms < b->expires_min_ms) b->expires_min_ms = expires_ms;
    }
    const struct block *before = at > 0 ? blocks_at(blocks, at - 1) : NULL;
    b->rows_before = before == NULL ? 0 : before->rows_before + block_rows(before);
    b->sequence = unit->sequence;
    b->entry = *entry;
    b->unit = *unit;
    return OMEN_OK;
}

void blocks_unstage(struct blocks *blocks, uint32_t staged)
{
    for (uint32_t i = 0; i < staged; i++) {
        struct block *b = blocks_at(blocks, blocks_count(blocks) + i);
        mem_free((void *)(uintptr_t)b->died);
        b->died = NULL;
        b->digests = NULL;
    }
}

void blocks_publish(struct blocks *blocks, uint32_t staged)
{
    uint32_t count = blocks_count(blocks);
    uint64_t rows = 0;
    for (uint32_t i = 0; i < staged; i++) rows += blocks_at(blocks, count + i)->entry.op_count;
    atomic_fetch_add_explicit(&blocks->row_count, rows, memory_order_relaxed);
    atomic_store_explicit(&blocks->count, count + staged, memory_order_release);
}

/* One page, copied with the units of its part of the range. */
static void page_replace(struct blocks *blocks, uint32_t from, uint32_t end, const struct stream_unit *units,
        const struct collection_schema *schema, struct blocks_replaced *out)
{
    struct blocks_place at = blocks_place(from);
    struct block *old = blocks_at(blocks, at.first);
    struct block *page = mem_must_calloc(at.count, sizeof *page);
    memcpy(page, old, at.count * sizeof *page);
    for (uint32_t i = from; i < end; i++) {
        struct block *b = &page[i - at.first];
        const struct stream_unit *unit = &units[i - from];
        CHECK(stream_position_pack(b->unit.position) == stream_position_pack(unit->position));
        b->unit = *unit;
        if (unit->body != NULL) {
            uint32_t ops = b->entry.op_count;
            entry_attach(unit->body, schema, &b->entry);
            CHECK(b->entry.op_count == ops);
            continue;
        }
        atomic_fetch_sub_explicit(&blocks->row_count, b->entry.op_count, memory_order_relaxed);
        b->entry = (struct entry){ .log_time_ms = b->entry.log_time_ms };
        out->died[out->died_count++] = b->died;
        b->died = NULL;
        b->digests = NULL;
    }
    out->pages[out->page_count++] = old;
    struct blocks_book *book = blocks->books[at.page / BLOCKS_PER_BOOK];
    atomic_store_explicit(&book->pages[at.page % BLOCKS_PER_BOOK], page, memory_order_release);
}

void blocks_replace(struct blocks *blocks, uint32_t first, uint32_t count, const struct stream_unit *units,
        const struct collection_schema *schema, struct blocks_replaced *replaced_out)
{
    CHECK(first + count <= blocks_count(blocks));
    *replaced_out = (struct blocks_replaced){ .pages = mem_must_calloc(count + 1, sizeof(struct block *)),
        .died = mem_must_calloc(count + 1, sizeof(_Atomic uint64_t *)) };
    for (uint32_t at = first, end; at < first + count; at = end) {
        struct blocks_place place = blocks_place(at);
        end = place.first + place.count < first + count ? place.first + place.count : first + count;
        page_replace(blocks, at, end, units + (at - first), schema, replaced_out);
    }
}

void blocks_replaced_free(struct blocks_replaced *replaced)
{
    for (uint32_t i = 0; i < replaced->page_count; i++) mem_free(replaced->pages[i]);
    for (uint32_t i = 0; i < replaced->died_count; i++) mem_free((void *)(uintptr_t)replaced->died[i]);
    mem_free(replaced->pages);
    mem_free(replaced->died);
    *replaced = (struct blocks_replaced){ 0 };
}

uint32_t blocks_lower_bound(const struct blocks *blocks, struct stream_position position)
{
    uint64_t wanted = stream_position_pack(position);
    uint32_t low = 0, high = blocks_count(blocks);
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (stream_position_pack(blocks_at(blocks, mid)->unit.position) < wanted)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

uint32_t blocks_find(const struct blocks *blocks, struct stream_position position)
{
    uint32_t at = blocks_lower_bound(blocks, position);
    if (at >= blocks_count(blocks)) return UINT32_MAX;
    struct stream_position found = blocks_at(blocks, at)->unit.position;
    return stream_position_pack(found) == stream_position_pack(position) ? at : UINT32_MAX;
}

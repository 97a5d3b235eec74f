/* Table of blocks; contract in blocks.h. */
#include "common/err.h"

#include "storage/stream/blocks.h"

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
    b->died = mem_alloc((entry->op_count + 1) * sizeof *b->died);
    if (b->died == NULL) return err_set(err, OMEN_ENOMEM, NULL, "rows of a block");
    for (uint32_t i = 0; i < entry->op_count; i++) atomic_init(&b->died[i], unit->sequence);
    b->expires_min_ms = UINT64_MAX;
    for (uint32_t i = 0; entry->expires && i < entry->op_count; i++) {
        uint64_t expires_ms = entry_expires_ms(entry, i);
        if (expires_ms != 0 && expires_ms < b->expires_min_ms) b->expires_min_ms = expires_ms;
    }
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

uint32_t blocks_find(const struct blocks *blocks, struct stream_position position)
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
    if (low == blocks_count(blocks)) return UINT32_MAX;
    return stream_position_pack(blocks_at(blocks, low)->unit.position) == wanted ? low : UINT32_MAX;
}

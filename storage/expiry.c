/* The heap of rows that expire; contract in expiry.h. */
#include "common/err.h"

#include "storage/expiry.h"

#include "common/check.h"
#include "common/mem.h"

#define EXPIRY_CAP_MIN 256u
#define EXPIRY_STALE_MIN 1024u /* fewer are not worth a look at all */

void expiry_fini(struct expiry *x)
{
    mem_free(x->items);
    *x = (struct expiry){ 0 };
}

/* Ties by place, so that the order is one whatever came first. */
static bool sooner(const struct expiry_item *a, const struct expiry_item *b)
{
    if (a->expires_ms != b->expires_ms) return a->expires_ms < b->expires_ms;
    return a->row.block != b->row.block ? a->row.block < b->row.block : a->row.op < b->row.op;
}

static void sift_down(struct expiry *x, uint32_t at)
{
    struct expiry_item item = x->items[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= x->count) break;
        if (child + 1 < x->count && sooner(&x->items[child + 1], &x->items[child])) child++;
        if (!sooner(&x->items[child], &item)) break;
        x->items[at] = x->items[child];
        at = child;
    }
    x->items[at] = item;
}

enum omen_err expiry_reserve(struct expiry *x, uint32_t count, struct err *err)
{
    if (x->cap - x->count >= count) return OMEN_OK;
    uint64_t cap = x->cap < EXPIRY_CAP_MIN ? EXPIRY_CAP_MIN : x->cap;
    while (cap < (uint64_t)x->count + count) cap *= 2;
    struct expiry_item *grown = cap > UINT32_MAX ? NULL : mem_realloc(x->items, cap * sizeof *grown);
    if (grown == NULL) return err_set(err, OMEN_ENOMEM, NULL, "rows that expire");
    x->items = grown;
    x->cap = (uint32_t)cap;
    return OMEN_OK;
}

void expiry_put_back(struct expiry *x, struct expiry_item item)
{
    CHECK(x->count < x->cap);
    uint32_t at = x->count++;
    while (at > 0 && sooner(&item, &x->items[(at - 1) / 2])) {
        x->items[at] = x->items[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    x->items[at] = item;
}

void expiry_add(struct expiry *x, uint64_t expires_ms, struct row_ref row)
{
    CHECK(expires_ms != 0);
    x->living++;
    expiry_put_back(x, (struct expiry_item){ expires_ms, row });
}

struct expiry_item expiry_take(struct expiry *x)
{
    CHECK(x->count > 0);
    struct expiry_item first = x->items[0];
    x->items[0] = x->items[--x->count];
    if (x->count > 0) sift_down(x, 0);
    return first;
}

void expiry_died(struct expiry *x, const struct blocks *blocks)
{
    CHECK(x->living > 0);
    x->living--;
    if (x->count < 2 * x->living + EXPIRY_STALE_MIN) return;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < x->count; i++) {
        struct row_ref row = x->items[i].row;
        const struct block *b = blocks_at(blocks, row.block);
        if (block_row_died(b, row.op) == 0) x->items[kept++] = x->items[i];
    }
    x->count = kept;
    for (uint32_t i = kept / 2; i-- > 0;) sift_down(x, i);
}

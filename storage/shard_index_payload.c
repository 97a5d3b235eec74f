/* Which payload paths a store's segments have an index of: shard_index_payload of shard_index.h. */
#include <string.h>

#include "storage/payload/payload_index.h"
#include "storage/shard_index.h"
#include "storage/shard_index_impl.h"

struct fields {
    struct shard_payload_field *items; /* [cap] by path */
    uint32_t count, cap;
};

/* Where the path is or belongs. */
static uint32_t place_of(const struct fields *f, const char *path, bool *there_out)
{
    uint32_t low = 0, high = f->count;
    *there_out = false;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        int order = strcmp(f->items[mid].path, path);
        if (order == 0) *there_out = true;
        if (order >= 0)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

static enum omen_err field_add(struct fields *f, const struct payload_field_info *info, uint32_t rows,
        struct arena *arena)
{
    bool there;
    uint32_t at = place_of(f, info->path, &there);
    struct shard_payload_field *item = &f->items[at];
    if (!there) {
        const char *path = arena_strdup(arena, info->path, strlen(info->path));
        if (path == NULL) return OMEN_ENOMEM;
        memmove(item + 1, item, (f->count++ - at) * sizeof *item);
        *item = (struct shard_payload_field){ .path = path };
    }
    item->segments++;
    item->rows += rows;
    item->values += info->values;
    item->numbers += info->numbers;
    item->times += info->times;
    item->words += info->words;
    item->places += info->places;
    return OMEN_OK;
}

static enum omen_err segment_add(struct fields *f, const struct segment *segment, struct arena *arena)
{
    const struct payload_index *index = segment_payload(segment);
    struct payload_index_stats stats;
    struct segment_info info;
    if (index == NULL) return OMEN_OK;
    payload_index_stats(index, &stats);
    segment_info(segment, &info);
    if (f->count + stats.fields > f->cap) {
        uint32_t cap = 2 * (f->count + stats.fields);
        struct shard_payload_field *grown = arena_calloc(arena, cap, sizeof *grown);
        if (grown == NULL) return OMEN_ENOMEM;
        if (f->count > 0) memcpy(grown, f->items, f->count * sizeof *grown);
        f->items = grown;
        f->cap = cap;
    }
    for (uint32_t i = 0; i < stats.fields; i++) {
        struct payload_field_info field;
        payload_index_field(index, i, &field);
        enum omen_err rc = field_add(f, &field, info.rows, arena);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

enum omen_err shard_index_payload(struct shard_store *store, struct arena *arena,
        struct shard_payload_field **fields_out, uint32_t *count_out)
{
    struct fields f = { NULL, 0, 0 };
    struct segment_set *set = segment_set_acquire(store);
    enum omen_err rc = OMEN_OK;
    for (uint32_t i = 0; set != NULL && rc == OMEN_OK && i < set->count; i++)
        rc = segment_add(&f, set->items[i], arena);
    segment_set_release(set);
    *fields_out = f.items;
    *count_out = rc == OMEN_OK ? f.count : 0;
    return rc;
}

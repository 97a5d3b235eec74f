/* Session tokens: what this client has seen of each shard, so that its next read sees at least as much.
 * Threads: any; one lock, held for a copy of at most CLIENT_TOKENS_MAX tokens. */
#include <string.h>

#include "tools/client/client_impl.h"

void tokens_init(struct token_table *table)
{
    memset(table, 0, sizeof *table);
    pthread_mutex_init(&table->lock, NULL);
}

void tokens_fini(struct token_table *table) { pthread_mutex_destroy(&table->lock); }

/* First position whose shard is not below `shard`. */
static uint32_t position_of(const struct token_table *table, uint64_t shard)
{
    uint32_t low = 0, high = table->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (table->items[middle].shard < shard)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void remove_at(struct token_table *table, uint32_t i)
{
    uint32_t after = table->count - i - 1;
    memmove(&table->items[i], &table->items[i + 1], after * sizeof table->items[0]);
    memmove(&table->heard[i], &table->heard[i + 1], after * sizeof table->heard[0]);
    table->count--;
}

static void remove_oldest(struct token_table *table)
{
    uint32_t oldest = 0;
    for (uint32_t i = 1; i < table->count; i++)
        if (table->heard[i] < table->heard[oldest]) oldest = i;
    remove_at(table, oldest);
}

static void merge_one(struct token_table *table, struct token token)
{
    /* A cluster restored from a backup counts anew: what was seen of the old one says nothing about it. */
    if (table->count > 0 && table->items[0].incarnation != token.incarnation) table->count = 0;
    uint32_t i = position_of(table, token.shard);
    if (i == table->count || table->items[i].shard != token.shard) {
        if (table->count == CLIENT_TOKENS_MAX) {
            remove_oldest(table);
            i = position_of(table, token.shard);
        }
        uint32_t after = table->count - i;
        memmove(&table->items[i + 1], &table->items[i], after * sizeof table->items[0]);
        memmove(&table->heard[i + 1], &table->heard[i], after * sizeof table->heard[0]);
        table->items[i] = token;
        table->count++;
    } else if (table->items[i].sequence < token.sequence) {
        table->items[i].sequence = token.sequence;
    }
    table->heard[i] = ++table->ticks;
}

void tokens_merge(struct token_table *table, const struct token *tokens, uint32_t count)
{
    if (count == 0) return;
    pthread_mutex_lock(&table->lock);
    for (uint32_t i = 0; i < count; i++) merge_one(table, tokens[i]);
    pthread_mutex_unlock(&table->lock);
}

void tokens_forget(struct token_table *table)
{
    pthread_mutex_lock(&table->lock);
    table->count = 0;
    pthread_mutex_unlock(&table->lock);
}

enum omen_err tokens_copy(struct token_table *table, struct arena *arena, const struct token **tokens_out,
        uint32_t *count_out, struct err *err)
{
    pthread_mutex_lock(&table->lock);
    uint32_t count = table->count;
    struct token *copy = count == 0 ? NULL : arena_copy(arena, table->items, count * sizeof *copy);
    pthread_mutex_unlock(&table->lock);
    if (count > 0 && copy == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for session tokens");
    *tokens_out = copy;
    *count_out = count;
    return OMEN_OK;
}

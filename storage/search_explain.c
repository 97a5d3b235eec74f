/* Names and growth of what search_explain.h describes. */
#include "storage/search_explain.h"

#include <stdio.h>
#include <string.h>

#include "common/check.h"

const char *explain_plan_name(enum explain_plan plan)
{
    static const char *const names[EXPLAIN_PLAN_COUNT] = { "pruned", "walk", "gather", "scan", "rows" };
    CHECK(plan < EXPLAIN_PLAN_COUNT);
    return names[plan];
}

const char *explain_prune_name(enum explain_prune prune)
{
    static const char *const names[EXPLAIN_PRUNE_COUNT] = { "", "field", "values", "range", "words", "area",
        "filter", "all_dead" };
    CHECK(prune < EXPLAIN_PRUNE_COUNT);
    return names[prune];
}

const char *explain_filter_name(enum explain_filter filter)
{
    static const char *const names[EXPLAIN_FILTER_COUNT] = { "none", "index", "partly", "payload" };
    CHECK(filter < EXPLAIN_FILTER_COUNT);
    return names[filter];
}

void explain_structures_text(uint32_t structures, char out[EXPLAIN_STRUCTURES_BYTES])
{
    static const char *const names[EXPLAIN_STRUCTURES] = { "values", "numbers", "times", "words", "places",
        "presence", "ids" };
    size_t len = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < EXPLAIN_STRUCTURES; i++)
        if ((structures >> i & 1) != 0)
            len += (size_t)snprintf(out + len, EXPLAIN_STRUCTURES_BYTES - len, "%s%s", len == 0 ? "" : ", ",
                    names[i]);
}

const char *explain_why_name(enum explain_why why)
{
    static const char *const names[EXPLAIN_WHY_COUNT] = { "pruned", "no_filter", "cheapest", "most_pass",
        "gave_up", "exact", "older_view", "not_sealed", "sketch" };
    CHECK(why < EXPLAIN_WHY_COUNT);
    return names[why];
}

struct explain_part *search_explain_add(struct search_explain *explain, struct arena *arena)
{
    if (explain->count == explain->cap) {
        uint32_t cap = explain->cap == 0 ? 8 : 2 * explain->cap;
        struct explain_part *grown = arena_calloc(arena, cap, sizeof *grown);
        if (grown == NULL) return NULL;
        if (explain->count > 0) memcpy(grown, explain->parts, explain->count * sizeof *grown);
        explain->parts = grown;
        explain->cap = cap;
    }
    return &explain->parts[explain->count++];
}

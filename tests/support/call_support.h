/* Shard calls drawn at random, with all that may stand in them: for the codec between routers and nodes. */
#ifndef OMEN_TESTS_SUPPORT_CALL_SUPPORT_H
#define OMEN_TESTS_SUPPORT_CALL_SUPPORT_H

#include "common/wire/shard_message.h"

struct call_source {
    uint64_t state; /* of the random numbers */
    struct arena arena;
    struct collection_schema schema;
};

void call_source_init(struct call_source *s, uint64_t seed);
void call_source_fini(struct call_source *s);
uint32_t call_draw(struct call_source *s, uint32_t bound); /* 0 .. bound - 1 */

/* One to three fields of small dims, with or without shard key. */
void call_draw_schema(struct call_source *s);
void call_draw_inputs(struct call_source *s, enum shard_call_kind kind, struct shard_call *call_out);
/* Outputs that fit the inputs: success, or one time in four an error. */
void call_draw_outputs(struct call_source *s, struct shard_call *call);
/* A map of a few collections and aliases that holds all that map.h promises. map_unref it. */
struct map *call_draw_map(struct call_source *s);

struct doc call_json(struct arena *arena, const char *text);

#endif

/* The sealed graph in the *compact* layout: neighbours' ids and one short code per node; private to
 * storage/index. See compact.c. */
#ifndef OMEN_STORAGE_INDEX_COMPACT_H
#define OMEN_STORAGE_INDEX_COMPACT_H

#include "storage/index/sealed_impl.h"
#include "storage/quant/quant.h"

/* Rows of the graph are the neighbours' ids alone: [SEALED_DEGREE] u32, unused ones name the node itself and
 * come last. */
#define COMPACT_ROW_BYTES (SEALED_DEGREE * 4u)
#define COMPACT_DEGREE_LEAST 8 /* fewer links leave copies out of reach */
#define COMPACT_FULL_DIM                                                                                     \
    8 /* up to here all places are filled: what lies on a line has few honest neighbours */
#define COMPACT_CODE_ALIGN 4 /* codes lie this far apart or a multiple */

struct compact {
    struct quant
            *quant;  /* of internal vectors, rotated and centred (sealed_rotate); owned; NULL while empty */
    uint8_t *codes;  /* [count][stride] by node, huge pages or part of the map */
    size_t stride;   /* quant_code_bytes rounded up to COMPACT_CODE_ALIGN */
    size_t mapped;   /* bytes of the pages; 0 = part of the map, or none yet */
    uint32_t *slots; /* [count] node -> slot, owned */
    size_t saved_bytes; /* of the quantizer in a file, set by who reads or writes one */
};

struct index_scratch;

struct compact *compact_new(void); /* empty; NULL: out of memory */
void compact_free(struct compact *compact);
struct compact_scratch *compact_scratch_new(const struct compact *compact); /* NULL: out of memory */
void compact_scratch_free(struct compact_scratch *scratch);
static inline size_t compact_stride(size_t code_bytes)
{
    return (code_bytes + COMPACT_CODE_ALIGN - 1) / COMPACT_CODE_ALIGN * COMPACT_CODE_ALIGN;
}
uint64_t compact_memory_bytes(const struct sealed *s); /* codes, slots, trained parameters */

/* How many of the `count` nearest by code, ascending, must be rescored so that the k nearest are among them: by
 * the error of the codes. k 0 = all, and all of reduced rows: what the reduction leaves out has no known error. */
uint32_t compact_cut(const struct sealed *s, const struct index_scratch *scratch,
        const struct index_hit *hits, uint32_t count, uint32_t k);

/* As sealed_walk; the answer is cut to what must be rescored for search->k. */
enum omen_err compact_walk(const struct sealed *s, const struct index_search *search, struct sealed_pace pace,
        uint32_t want, struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost);

/* For walks of another order: begin with the query that sealed_query_prepare left in `scratch`; then, for each
 * node that is expanded, the nodes that are met by it: neighbours that none before had, and itself when it was
 * nobody's neighbour (a leader). ids_out and estimates_out [SEALED_DEGREE + 1]; the slots of the ids are on their
 * way. OMEN_ENOMEM. */
void compact_begin(const struct sealed *s, struct index_scratch *scratch);
enum omen_err compact_neighbours(const struct sealed *s, struct index_scratch *scratch, uint32_t node,
        uint32_t *ids_out, float *estimates_out, uint32_t *count_out);

#endif

/* Places in an order in which neighbours lie together, and boxes around groups of them, groups of groups, and so on: which
 * lie in a region, found without a look at most. The order is the file's; the boxes are made of what the places are, so a
 * bad order costs time and no answer.
 *
 * Threads: any number of readers. */
#ifndef OMEN_STORAGE_PAYLOAD_PLACE_TREE_H
#define OMEN_STORAGE_PAYLOAD_PLACE_TREE_H

#include "storage/payload/filter_geo.h"

#define PLACE_GROUP 32u  /* places in a box */
#define PLACE_FANOUT 16u /* boxes in a box */
#define PLACE_LEVELS_MAX 8u

struct place_tree {
    const struct geo_point *places; /* [count] borrowed, valid ones */
    uint32_t count;
    uint32_t levels;                          /* 0 without places */
    uint32_t counts[PLACE_LEVELS_MAX];        /* boxes of each */
    struct geo_rect *boxes[PLACE_LEVELS_MAX]; /* owned; [0] around PLACE_GROUP places each */
};

/* False: no memory. */
bool place_tree_init(struct place_tree *tree, const struct geo_point *places, uint32_t count);
void place_tree_fini(struct place_tree *tree); /* of a zeroed one too */
uint64_t place_tree_bytes(const struct place_tree *tree);

/* Positions of places that lie in the region, in runs [first, end) that do not touch, ascending. */
void place_tree_runs(const struct place_tree *tree, const struct geo_region *region,
        void (*run)(void *arg, uint32_t first, uint32_t end), void *arg);
/* About how many, from large boxes alone: none only where it is proven. */
double place_tree_estimate(const struct place_tree *tree, const struct geo_region *region);

/* Where a place lies on a Hilbert curve through 2^32 x 2^32 cells: the order to write places in. */
uint64_t place_order(struct geo_point place);

#endif

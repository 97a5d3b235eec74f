/* Steps of a build that only the compact layout has; private to storage/index. */
#ifndef OMEN_STORAGE_INDEX_COMPACT_BUILD_H
#define OMEN_STORAGE_INDEX_COMPACT_BUILD_H

#include "storage/index/compact.h"
#include "storage/index/sealed_build.h"

/* Which layout a graph of these parameters gets: what was asked for, or what they need. */
bool compact_wanted(const struct index_params *params, uint32_t padded);
/* OMEN_EINVAL (with the parameter's name) when no code of D components is what `params` ask for. */
enum omen_err compact_check(const struct index_params *params, uint32_t padded, struct err *err);
/* Choose and train the quantizer, and encode all nodes. b->order and the space are known. */
enum omen_err compact_encode(struct build *b);
/* Links of a node as its row. */
void compact_pack(struct build *b, uint32_t node);

#endif

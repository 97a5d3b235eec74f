/* A file of its own, so that tests build an older program by compiling it anew. */
#include "common/feature.h"

#ifndef OMEN_FEATURE_LEVEL
#define OMEN_FEATURE_LEVEL FEATURE_NEWEST
#endif

_Static_assert(OMEN_FEATURE_LEVEL >= FEATURE_NONE && OMEN_FEATURE_LEVEL <= FEATURE_NEWEST,
        "a level of the table");

uint32_t feature_level(void) { return OMEN_FEATURE_LEVEL; }

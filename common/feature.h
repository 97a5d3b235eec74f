/* Feature levels: what a build can read, as one small number that grows by one with every format that builds before it
 * cannot read (CORRECTNESS A2).
 *
 *   level  what it brought
 *   1      entries of the cluster group up to version 4, kinds 1-5 and 16-25; entries of shards of versions 1 and 2;
 *          CATALOG up to version 5
 *   2      the cluster version: kinds 26 and 27 of the cluster group; operations that are given up (a step to
 *          CANCELING); CATALOG version 6
 *   3      writes by filter that the next leader goes on with: entries of shards of version 3, and what data.mdb keeps of
 *          them
 *
 * A cluster has a *version*: the level up to which formats may be proposed. It is raised, by an entry of the cluster
 * group, when every node is of a build of that level, and never lowered; so whoever is given an entry can read it. The
 * same holds for files that one node sends another, for those that the build before should still open as long as the
 * version was not raised, and for what an entry carries: a new key of a collection's options, or a new condition in a
 * filter that is recorded, is a format too, since an older build would refuse what others apply.
 *
 * A new format: a line in the table, a value of enum feature at FEATURE_NEWEST, an encoder that asks feature_may with the
 * version it is told (shard_host_may for a shard's entries, the state's for the cluster group's) and writes the older
 * form, or refuses, when it may not; and a reader that answers OMEN_EVERSION, not OMEN_ECORRUPT, when feature_level() is
 * below it: tests run an older build that differs in this number alone. */
#ifndef OMEN_COMMON_FEATURE_H
#define OMEN_COMMON_FEATURE_H

#include <stdbool.h>
#include <stdint.h>

enum feature { /* the level that brought it */
    FEATURE_NONE = 1,
    FEATURE_CLUSTER_VERSION = 2,
    FEATURE_GIVE_UP = 2,
    FEATURE_INTENTS = 3,
    FEATURE_NEWEST = 3,
};

/* Of this build. */
uint32_t feature_level(void);
/* May what the feature brought be written where all can read up to `level`? */
static inline bool feature_may(uint32_t level, enum feature feature) { return level >= (uint32_t)feature; }

#endif

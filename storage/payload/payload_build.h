/* Which payload paths to index; private to storage/payload. */
#ifndef OMEN_STORAGE_PAYLOAD_PAYLOAD_BUILD_H
#define OMEN_STORAGE_PAYLOAD_PAYLOAD_BUILD_H

#include "storage/payload/payload_index_impl.h"

#define PAYLOAD_PATHS_SEEN_MAX 1024u /* told apart in one segment; what comes later is not indexed */

struct payload_path {
    const struct doc_path *path;
    bool words; /* of its texts are asked for */
};
struct payload_paths {
    struct payload_path *items; /* [count] in the arena, by spelling */
    uint32_t count;
    bool complete; /* no row has a path that is not among them */
};

/* The paths of all rows, at most PAYLOAD_FIELDS_MAX: those asked for, then those met most often. OMEN_ECANCELED,
 * OMEN_ENOMEM. Cost: a walk over all payloads. */
OMEN_CHECKED enum omen_err payload_paths_find(const struct payload_source *source, struct arena *arena,
        struct payload_paths *paths_out, struct err *err);

#endif

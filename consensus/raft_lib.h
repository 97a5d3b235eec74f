/* The one way to raft.h. Only consensus/ includes it.
 *
 * libraft of cowsql/raft, the maintained continuation of canonical/raft; older ones commit entries of former
 * terms by counting copies and lose acknowledged data (README). We use its core, raft_step: no input, output,
 * clock or random number of its own. */
#ifndef OMEN_CONSENSUS_RAFT_LIB_H
#define OMEN_CONSENSUS_RAFT_LIB_H

#include <raft.h>

#ifndef RAFT_VERSION_NUMBER
#error "libraft 0.22.1 or newer is needed (Debian: bookworm-backports); run deploy/install-deps.sh"
#elif RAFT_VERSION_NUMBER < 2201
#error "libraft 0.22.1 or newer is needed (Debian: bookworm-backports); run deploy/install-deps.sh"
#endif

#endif

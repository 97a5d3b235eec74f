/* What raft_world.c (life of nodes, steps, storms) and raft_world_io.c (disk, network, checks) share. */
#ifndef OMEN_TESTS_SUPPORT_RAFT_WORLD_IMPL_H
#define OMEN_TESTS_SUPPORT_RAFT_WORLD_IMPL_H

#include "tests/support/raft_world.h"

#define MESSAGES_MAX 8192u

struct world_message {
    uint64_t at_ms;
    uint32_t from, to;
    bool frame; /* of raft; else the machine's */
    uint8_t *bytes;
    size_t len;
};

void world_messages_deliver(struct world *w);
/* One sync takes what is there; it all comes back, in order. */
void world_disk_step(struct world_node *n);
/* The rest of what was on its way: a part in front is on the disk, all of it comes back. */
void world_disk_crash(struct world_node *n);
/* Appends of one replica come back unwritten: it has ended. */
void world_disk_forget(struct world_node *n, struct world_replica *r);

#endif

/* The thread that has chunks made for shards whose streams run low, so that neither apply nor a caller waits for the disk
 * (CORRECTNESS A1, D1). A shard that found the disk full is looked after again until there is room, so it resumes by itself.
 * Threads: ask and forget from any. */
#ifndef OMEN_NODE_ROOM_KEEPER_H
#define OMEN_NODE_ROOM_KEEPER_H

#include "common/err.h"

#define ROOM_RETRY_MS 200u /* how often a full disk is tried again */

struct shard_host;
struct room_keeper;

/* `make` on the keeper's thread: true = found no room, call again later. */
OMEN_CHECKED enum omen_err room_keeper_start(bool (*make)(struct shard_host *shard),
        struct room_keeper **keeper_out, struct err *err);
void room_keeper_stop(struct room_keeper *keeper); /* every shard forgotten before; NULL is fine */

/* What the keeper knows of a shard; guarded by its mutex, zero at first. */
struct room_ticket {
    struct shard_host *shard;
    struct room_ticket *next;
    bool queued, soon; /* in the list; to be worked on without waiting for the next retry */
};
void room_keeper_ask(struct room_keeper *keeper, struct room_ticket *ticket);
/* Off the list, and not being worked on, when it returns. */
void room_keeper_forget(struct room_keeper *keeper, struct room_ticket *ticket);

#endif

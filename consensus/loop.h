/* An event loop on a thread of its own. What is posted runs there, in order; so does the tick.
 * Threads: loop_post from any; the rest as said. SIGPIPE is blocked on the loop's thread: libuv writes to
 * sockets whose peer is gone. */
#ifndef OMEN_CONSENSUS_LOOP_H
#define OMEN_CONSENSUS_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

#define LOOP_TICK_MS 20u /* how late a timer of raft may be: a fifth of a heartbeat */

struct loop;

/* Embedded in what is posted; free to be posted again once `run` is called. */
struct loop_task {
    struct loop_task *next;
    void (*run)(struct loop_task *task);
};

OMEN_CHECKED enum omen_err loop_new(void (*tick)(void *arg), void *arg, struct loop **loop_out,
        struct err *err);
/* Handles may be added before, on the caller's thread. */
OMEN_CHECKED enum omen_err loop_start(struct loop *loop, struct err *err);
void loop_post(struct loop *loop, struct loop_task *task);
/* Runs `run` on the loop and waits. Not from the loop itself. */
void loop_call(struct loop *loop, void (*run)(void *arg), void *arg);
bool loop_is_current(const struct loop *loop);
bool loop_started(const struct loop *loop);
/* All handles but the loop's own must be closed. Runs what was posted, then ends the thread and frees. */
void loop_stop(struct loop *loop);

/* For the transport alone, which knows libuv. */
void *loop_uv(struct loop *loop);

#endif

/* Progress of a long job on stderr: a line redrawn in place on a terminal, a plain line every few seconds elsewhere.
 * Threads: progress_add from any; the rest from the one that started it. */
#ifndef OMEN_TOOLS_OMENCTL_PROGRESS_H
#define OMEN_TOOLS_OMENCTL_PROGRESS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct progress {
    pthread_mutex_t lock;
    const char *what;     /* "vectors" */
    uint64_t total, done; /* done guarded by lock */
    uint64_t start_ns, drawn_ns;
    bool terminal;
};

void progress_start(struct progress *p, const char *what, uint64_t total);
void progress_add(struct progress *p, uint64_t count);
/* Last drawing; ends the line on a terminal. Returns seconds since the start. */
double progress_end(struct progress *p);

#endif

/* How far the piece of indexing under way is, and how long it will take: from what a build tells (index_control.progress).
 *
 * A build goes through phases whose shares of its time are known about (measured, see the .c file); within a phase it
 * counts. What is left follows from the time it took so far, so a wrong share costs accuracy and nothing else: it only
 * ever goes forward. Nothing under way: running is false.
 * Threads: begin, told and end from the indexing one, read from any. No clock: time comes as an argument. */
#ifndef OMEN_NODE_INDEX_PROGRESS_H
#define OMEN_NODE_INDEX_PROGRESS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct index_progress {
    pthread_mutex_t lock; /* guards what follows */
    bool running;
    uint32_t step;     /* of the phases, in their order */
    const char *phase; /* as told; static */
    double share;      /* done of a segment, 0 .. 1; never falls */
    uint64_t rows;     /* of what is built; 0 = not told yet */
    uint64_t began_ns;
};
void index_progress_init(struct index_progress *progress);
void index_progress_fini(struct index_progress *progress);

void index_progress_begin(struct index_progress *progress, uint64_t now_ns);
/* `phase` static. "rows" begins a segment and says how many there are: a piece of work may be several, one after the other.
 * Cost: a lock and a few comparisons. */
void index_progress_told(struct index_progress *progress, const char *phase, uint64_t done, uint64_t total,
        uint64_t now_ns);
void index_progress_end(struct index_progress *progress);

struct index_work {
    bool running; /* and has told of itself: a look that finds nothing to do is none */
    const char *phase;
    uint64_t rows;
    double percent, seconds; /* of this segment; since it began */
    double seconds_left;     /* below 0: too early to tell */
};
void index_progress_read(struct index_progress *progress, uint64_t now_ns, struct index_work *work_out);

#endif

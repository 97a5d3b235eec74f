/* One record into a node log, waited for. */
#ifndef OMEN_TESTS_SUPPORT_LOG_APPEND_H
#define OMEN_TESTS_SUPPORT_LOG_APPEND_H

#include <pthread.h>

#include "consensus/node_log.h"

/* An append's `arg` when its `done` is log_append_done. */
struct log_append_wait {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool over;
    enum omen_err result;
};
#define LOG_APPEND_WAIT                                                                                      \
    {                                                                                                        \
        .mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER                                 \
    }

void log_append_done(struct node_log_append *append, enum omen_err result);
/* What became of it, once it is over. */
enum omen_err log_append_result(struct log_append_wait *wait);
/* Both, for one record. */
enum omen_err log_append_one(struct node_log *log, enum node_log_claim claim,
        const struct node_log_record *record);

#endif

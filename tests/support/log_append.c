#include "tests/support/log_append.h"

void log_append_done(struct node_log_append *append, enum omen_err result)
{
    struct log_append_wait *w = append->arg;
    pthread_mutex_lock(&w->mutex);
    w->over = true;
    w->result = result;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->mutex);
}

enum omen_err log_append_result(struct log_append_wait *w)
{
    pthread_mutex_lock(&w->mutex);
    while (!w->over) pthread_cond_wait(&w->cond, &w->mutex);
    enum omen_err result = w->result;
    pthread_mutex_unlock(&w->mutex);
    return result;
}

enum omen_err log_append_one(struct node_log *log, enum node_log_claim claim,
        const struct node_log_record *record)
{
    struct log_append_wait w = LOG_APPEND_WAIT;
    struct node_log_append append = { .records = record,
        .count = 1,
        .claim = claim,
        .done = log_append_done,
        .arg = &w };
    node_log_append(log, &append);
    return log_append_result(&w);
}

/* What a node log must hold, kept beside it by a test, and the checker that compares the two after a crash.
 * Bodies are a function of (group, index, salt) and begin with the salt, so any entry found proves itself.
 * Threads: `mutex` is held wherever the model and the log's files must agree; see log_model_photo. */
#ifndef OMEN_TESTS_SUPPORT_LOG_MODEL_H
#define OMEN_TESTS_SUPPORT_LOG_MODEL_H

#include <pthread.h>

#include "consensus/node_log.h"

#define LOG_MODEL_GROUPS 6
#define LOG_MODEL_ENTRIES 2048 /* per group, over a whole test */
#define LOG_MODEL_WHY_BYTES 512

struct log_model_group {
    uint64_t last;  /* last index given to the log */
    uint64_t acked; /* last index acknowledged */
    uint64_t released;
    uint64_t term, acked_term;        /* of the hard state given and acknowledged */
    uint32_t salt[LOG_MODEL_ENTRIES]; /* by index: of the newest attempt */
};

struct log_model {
    pthread_mutex_t mutex;
    struct log_model_group groups[LOG_MODEL_GROUPS]; /* group id is the position + 1 */
};

void log_model_init(struct log_model *model);
/* A copy to check a later state against. Hold the mutex over this and the photograph of the files. */
void log_model_copy(const struct log_model *model, struct log_model *copy_out);

/* Append and wait. OMEN_OK or OMEN_EFULL. */
enum omen_err log_model_entry(struct log_model *model, struct node_log *log, uint64_t group, uint32_t salt);
enum omen_err log_model_hard_state(struct log_model *model, struct node_log *log, uint64_t group);
enum omen_err log_model_truncate(struct log_model *model, struct node_log *log, uint64_t group,
        uint64_t index);
void log_model_release(struct log_model *model, struct node_log *log, uint64_t group, uint64_t index);

/* Opens the log and compares: every acknowledged, unreleased entry is there with its bytes, none twice, in
 * order, and no entry that was not made here; hard states are the acknowledged ones or newer. True: *log_out
 * is open and the model continues from what was found. False: nothing is open, `why` tells. */
bool log_model_open(struct log_model *model, const struct node_log_options *options,
        struct node_log **log_out, char why[LOG_MODEL_WHY_BYTES]);

#endif

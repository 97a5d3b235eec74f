/* Entries of the cluster group: proposed, waited for, told. What waits can be given up: the proposal's memory
 * belongs to both. */
#include "common/err.h"

#include <errno.h>
#include <time.h>

#include "common/check.h"
#include "node/member/member_impl.h"

struct proposal {
    _Atomic uint32_t refs; /* who waits, and the group */
    pthread_mutex_t mutex;
    pthread_cond_t done; /* monotonic */
    bool finished;
    enum omen_err result;
    struct err err;
    struct catalog_outcome outcome; /* written by apply, before `finished` */
};

static void proposal_unref(struct proposal *p)
{
    if (atomic_fetch_sub(&p->refs, 1) > 1) return;
    pthread_cond_destroy(&p->done);
    pthread_mutex_destroy(&p->mutex);
    mem_free(p);
}

static void proposal_done(void *arg, enum omen_err result, uint64_t sequence, const struct err *err)
{
    struct proposal *p = arg;
    pthread_mutex_lock(&p->mutex);
    p->finished = true;
    p->result = result;
    if (result != OMEN_OK && err != NULL) p->err = *err;
    pthread_cond_signal(&p->done);
    pthread_mutex_unlock(&p->mutex);
    proposal_unref(p);
}

static struct proposal *proposal_new(void)
{
    struct proposal *p = mem_must_calloc(1, sizeof *p);
    atomic_init(&p->refs, 2);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->done, &attr);
    pthread_condattr_destroy(&attr);
    return p;
}

/* false: not within MEMBER_CATALOG_MS. */
static bool proposal_wait(struct proposal *p)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += MEMBER_CATALOG_MS / 1000;
    pthread_mutex_lock(&p->mutex);
    int rc = 0;
    while (!p->finished && rc != ETIMEDOUT) rc = pthread_cond_timedwait(&p->done, &p->mutex, &until);
    bool finished = p->finished;
    pthread_mutex_unlock(&p->mutex);
    return finished;
}

uint32_t member_leader(struct member *m)
{
    struct replica_member leader;
    if (!member_is_open(m) || !replica_leader(m->node->catalog_replica, &leader)) return 0;
    return (uint32_t)leader.node_id;
}

bool member_leads(struct member *m)
{
    struct replica_status status;
    if (!member_is_open(m)) return false;
    replica_status(m->node->catalog_replica, &status);
    return status.leader;
}

enum omen_err member_propose(struct member *m, uint8_t *entry, uint32_t len,
        struct catalog_outcome *outcome_out, uint32_t *leader_out, struct err *err)
{
    struct proposal *p = proposal_new();
    replica_propose(m->node->catalog_replica, entry, len, &p->outcome, proposal_done, p);
    enum omen_err rc;
    if (!proposal_wait(p)) {
        rc = err_set(err, OMEN_EUNKNOWN, "",
                "the cluster group has not answered for %u s: the change may still be made",
                MEMBER_CATALOG_MS / 1000);
    } else if (p->result != OMEN_OK) {
        rc = p->result;
        *err = p->err;
        if (err->code != rc) (void)err_set(err, rc, "", "the change could not be recorded: %s", err_name(rc));
    } else {
        rc = p->outcome.code;
        if (rc != OMEN_OK) *err = p->outcome.err;
        if (outcome_out != NULL) *outcome_out = p->outcome;
    }
    proposal_unref(p);
    if (leader_out != NULL) *leader_out = rc == OMEN_ENOTLEADER ? member_leader(m) : 0;
    if (rc == OMEN_OK) member_wake(m);
    return rc;
}

enum omen_err member_change(struct member *m, const struct cluster_change *change,
        struct catalog_outcome *outcome_out, uint32_t *leader_out, struct err *err)
{
    uint8_t *entry;
    uint32_t len;
    enum omen_err rc = cluster_entry_encode(change, clock_wall_ms(m->node->options.clock), &entry, &len);
    if (rc != OMEN_OK) return err_set(err, rc, "", "no memory to record the change");
    return member_propose(m, entry, len, outcome_out, leader_out, err);
}

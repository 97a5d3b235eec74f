/* See log_model.h. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/mem.h"
#include "tests/support/log_model.h"

#define BODY_MAX 8192u

static uint32_t body_make(uint64_t group, uint64_t index, uint32_t salt, uint8_t out[BODY_MAX])
{
    uint64_t x = group * 0x9e3779b97f4a7c15u + index * 0xbf58476d1ce4e5b9u + salt;
    uint32_t len = 4 + (uint32_t)(x >> 13) % (salt % 7 == 0 ? BODY_MAX - 4 : 600);
    for (uint32_t i = 4; i < len; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        out[i] = (uint8_t)(x >> 56);
    }
    store_u32(out, salt);
    return len;
}

void log_model_init(struct log_model *model)
{
    memset(model, 0, sizeof *model);
    pthread_mutex_init(&model->mutex, NULL);
}

void log_model_copy(const struct log_model *model, struct log_model *copy_out)
{
    log_model_init(copy_out);
    memcpy(copy_out->groups, model->groups, sizeof model->groups);
}

/* ---- appends that wait ---- */

struct wait {
    struct log_model *model;
    pthread_cond_t cond;
    bool over;
    enum omen_err result;
    uint64_t *acked;
    uint64_t acked_to;
};

static void waited(struct node_log_append *append, enum omen_err result)
{
    struct wait *w = append->arg;
    pthread_mutex_lock(&w->model->mutex);
    if (result == OMEN_OK) *w->acked = w->acked_to; /* here, so that a crash right after counts */
    w->over = true;
    w->result = result;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->model->mutex);
}

/* Mutex held; given up while waiting. */
static enum omen_err append_wait(struct log_model *model, struct node_log *log,
        const struct node_log_record *record, uint64_t *acked, uint64_t acked_to)
{
    struct wait w = { .model = model,
        .cond = PTHREAD_COND_INITIALIZER,
        .acked = acked,
        .acked_to = acked_to };
    struct node_log_append append = { .records = record, .count = 1, .done = waited, .arg = &w };
    node_log_append(log, &append);
    while (!w.over) pthread_cond_wait(&w.cond, &model->mutex);
    return w.result;
}

enum omen_err log_model_entry(struct log_model *model, struct node_log *log, uint64_t group, uint32_t salt)
{
    struct log_model_group *g = &model->groups[group - 1];
    uint8_t body[BODY_MAX];
    uint64_t index = g->last + 1;
    if (index >= LOG_MODEL_ENTRIES) return OMEN_OK;
    struct node_log_record record = { .group = group,
        .replica = 1,
        .term = 1,
        .index = index,
        .kind = NODE_LOG_ENTRY,
        .body = body,
        .len = body_make(group, index, salt, body) };
    pthread_mutex_lock(&model->mutex);
    g->salt[index] = salt;
    g->last = index;
    enum omen_err rc = append_wait(model, log, &record, &g->acked, index);
    if (rc != OMEN_OK) g->last = index - 1;
    pthread_mutex_unlock(&model->mutex);
    return rc;
}

enum omen_err log_model_hard_state(struct log_model *model, struct node_log *log, uint64_t group)
{
    struct log_model_group *g = &model->groups[group - 1];
    uint64_t vote = (g->term + 1) * 3;
    struct node_log_record record = { .group = group,
        .replica = 1,
        .term = g->term + 1,
        .kind = NODE_LOG_HARD_STATE,
        .body = &vote,
        .len = 8 };
    pthread_mutex_lock(&model->mutex);
    g->term++;
    enum omen_err rc = append_wait(model, log, &record, &g->acked_term, record.term);
    if (rc != OMEN_OK) g->term--;
    pthread_mutex_unlock(&model->mutex);
    return rc;
}

enum omen_err log_model_truncate(struct log_model *model, struct node_log *log, uint64_t group,
        uint64_t index)
{
    struct log_model_group *g = &model->groups[group - 1];
    struct node_log_record record = { .group = group,
        .replica = 1,
        .term = 1,
        .index = index,
        .kind = NODE_LOG_TRUNCATE };
    pthread_mutex_lock(&model->mutex);
    uint64_t acked = g->acked;
    g->acked = index - 1; /* from now on a crash may find the entries or not */
    enum omen_err rc = append_wait(model, log, &record, &g->acked, index - 1);
    if (rc == OMEN_OK)
        g->last = index - 1;
    else
        g->acked = acked;
    pthread_mutex_unlock(&model->mutex);
    return rc;
}

void log_model_release(struct log_model *model, struct node_log *log, uint64_t group, uint64_t index)
{
    struct log_model_group *g = &model->groups[group - 1];
    pthread_mutex_lock(&model->mutex);
    if (index > g->released) g->released = index;
    node_log_release(log, group, 1, index);
    pthread_mutex_unlock(&model->mutex);
}

/* ---- the checker ---- */

struct found_group {
    uint64_t last, term;
    uint32_t salt[LOG_MODEL_ENTRIES];
    bool there[LOG_MODEL_ENTRIES];
};

struct found {
    struct found_group groups[LOG_MODEL_GROUPS];
    char *why;
};

static enum omen_err complain(struct found *f, const struct node_log_record *r, const char *what)
{
    snprintf(f->why, LOG_MODEL_WHY_BYTES, "group %llu index %llu: %s", (unsigned long long)r->group,
            (unsigned long long)r->index, what);
    return OMEN_EINTERNAL;
}

static enum omen_err found_entry(struct found *f, struct found_group *g, const struct node_log_record *r)
{
    uint8_t body[BODY_MAX];
    if (r->index == 0 || r->index >= LOG_MODEL_ENTRIES) return complain(f, r, "never given");
    if (g->last != 0 && r->index != g->last + 1) return complain(f, r, "out of order or twice");
    if (r->len < 4 || body_make(r->group, r->index, load_u32(r->body), body) != r->len ||
            memcmp(body, r->body, r->len) != 0)
        return complain(f, r, "bytes differ");
    g->last = r->index;
    g->salt[r->index] = load_u32(r->body);
    g->there[r->index] = true;
    return OMEN_OK;
}

static enum omen_err found_record(void *arg, const struct node_log_record *r)
{
    struct found *f = arg;
    if (r->group == 0 || r->group > LOG_MODEL_GROUPS || r->replica != 1)
        return complain(f, r, "unknown group");
    struct found_group *g = &f->groups[r->group - 1];
    switch (r->kind) {
    case NODE_LOG_ENTRY: return found_entry(f, g, r);
    case NODE_LOG_TRUNCATE:
        for (uint64_t i = r->index; i <= g->last; i++) g->there[i] = false;
        if (g->last >= r->index) g->last = g->there[r->index - 1] ? r->index - 1 : 0;
        break;
    case NODE_LOG_HARD_STATE:
        if (r->len != 8 || load_u64(r->body) != r->term * 3) return complain(f, r, "vote differs");
        if (r->term < g->term) return complain(f, r, "an older hard state after a newer one");
        g->term = r->term;
        break;
    case NODE_LOG_SNAPSHOT:
    case NODE_LOG_DROP_GROUP: break;
    }
    return OMEN_OK;
}

static bool group_compare(struct log_model_group *m, const struct found_group *f, uint64_t group, char *why)
{
    for (uint64_t i = m->released + 1; i <= m->acked; i++) {
        if (f->there[i] && f->salt[i] == m->salt[i]) continue;
        snprintf(why, LOG_MODEL_WHY_BYTES, "group %llu: acknowledged entry %llu is %s",
                (unsigned long long)group, (unsigned long long)i, f->there[i] ? "an older one" : "missing");
        return false;
    }
    if (f->term < m->acked_term) {
        snprintf(why, LOG_MODEL_WHY_BYTES, "group %llu: acknowledged term %llu is missing, found %llu",
                (unsigned long long)group, (unsigned long long)m->acked_term, (unsigned long long)f->term);
        return false;
    }
    return true;
}

static void group_continue(struct log_model_group *m, const struct found_group *f)
{
    uint64_t last = f->last > m->released ? f->last : m->released;
    for (uint64_t i = m->released + 1; i <= last; i++) m->salt[i] = f->salt[i];
    m->last = m->acked = last;
    m->term = m->acked_term = f->term;
}

bool log_model_open(struct log_model *model, const struct node_log_options *options,
        struct node_log **log_out, char why[LOG_MODEL_WHY_BYTES])
{
    struct found *f = mem_must_calloc(1, sizeof *f);
    struct err err = { 0 };
    f->why = why;
    why[0] = '\0';
    bool ok = node_log_open(options, found_record, f, log_out, &err) == OMEN_OK;
    if (!ok && why[0] == '\0') snprintf(why, LOG_MODEL_WHY_BYTES, "open: %s", err.message);
    pthread_mutex_lock(&model->mutex);
    for (uint64_t g = 0; ok && g < LOG_MODEL_GROUPS; g++)
        ok = group_compare(&model->groups[g], &f->groups[g], g + 1, why);
    for (uint64_t g = 0; ok && g < LOG_MODEL_GROUPS; g++) {
        group_continue(&model->groups[g], &f->groups[g]);
        node_log_release(*log_out, g + 1, 1, model->groups[g].released);
    }
    pthread_mutex_unlock(&model->mutex);
    if (!ok) {
        node_log_close(*log_out);
        *log_out = NULL;
    }
    mem_free(f);
    return ok;
}

/* Mutable HNSW: making one, its table of functions, what it weighs (Malkov & Yashunin 2018; see hnsw_impl.h
 * for how readers, writers and deletes live together).
 * Threads: hnsw_build starts and joins its own. Determinism: levels follow from the seed; links depend on
 * timing when several threads insert. */
#include "storage/index/hnsw_impl.h"

#include <math.h>

#define UPPER_SPARE 1024 /* upper rows beyond the expected number and a quarter */
#define PROGRESS_ROWS 256

/* ---- memory ------------------------------------------------------------------------------------------- */

static void hnsw_free(struct index *index)
{
    struct hnsw *h = hnsw_of(index);
    while (h->writers != NULL) {
        struct index_scratch *w = h->writers;
        h->writers = w->next;
        hnsw_scratch_free(w);
    }
    hnsw_codes_free(h, atomic_load(&h->codes));
    hnsw_repair_fini(h);
    mem_free(h->free_nodes.items);
    mem_free(h->dead_nodes.items);
    for (uint32_t i = 0; i <= HNSW_LEVEL_MAX; i++) mem_free(h->free_towers[i].items);
    size_t nodes = h->node_capacity;
    hnsw_unmap(h->vectors, nodes, h->vector_stride * sizeof *h->vectors);
    hnsw_unmap(h->rows, nodes, h->row_stride * sizeof *h->rows);
    hnsw_unmap(h->uppers, h->upper_capacity, h->upper_stride * sizeof *h->uppers);
    hnsw_unmap(h->towers, nodes, sizeof *h->towers);
    hnsw_unmap(h->levels, nodes, sizeof *h->levels);
    hnsw_unmap(h->states, nodes, sizeof *h->states);
    hnsw_unmap(h->slots, nodes, sizeof *h->slots);
    hnsw_unmap(h->in_degrees, nodes, sizeof *h->in_degrees);
    hnsw_unmap(h->upper_degrees, h->upper_capacity, sizeof *h->upper_degrees);
    hnsw_unmap(h->nodes, h->slot_capacity, sizeof *h->nodes);
    mem_free(h->pins);
    mem_free(h->row_locks);
    pthread_mutex_destroy(&h->entry_lock);
    pthread_mutex_destroy(&h->alloc_lock);
    pthread_mutex_destroy(&h->writers_lock);
    pthread_cond_destroy(&h->writers_free);
    pthread_rwlock_destroy(&h->train_lock);
    pthread_mutex_destroy(&h->repair.lock);
    mem_free(h);
}

static bool map_arrays(struct hnsw *h, size_t expected)
{
    size_t nodes = h->node_capacity;
    h->vectors = hnsw_map(nodes, h->vector_stride * sizeof *h->vectors,
            expected * h->vector_stride * sizeof *h->vectors);
    h->rows = hnsw_map(nodes, h->row_stride * sizeof *h->rows, expected * h->row_stride * sizeof *h->rows);
    h->uppers = hnsw_map(h->upper_capacity, h->upper_stride * sizeof *h->uppers,
            expected / (h->M - 1) * h->upper_stride * sizeof *h->uppers);
    h->towers = hnsw_map(nodes, sizeof *h->towers, 0);
    h->levels = hnsw_map(nodes, sizeof *h->levels, 0);
    h->states = hnsw_map(nodes, sizeof *h->states, expected * 8);
    h->slots = hnsw_map(nodes, sizeof *h->slots, expected * sizeof *h->slots);
    h->in_degrees = hnsw_map(nodes, sizeof *h->in_degrees, expected * sizeof *h->in_degrees);
    h->upper_degrees = hnsw_map(h->upper_capacity, sizeof *h->upper_degrees, 0);
    h->nodes = hnsw_map(h->slot_capacity, sizeof *h->nodes, expected * sizeof *h->nodes);
    h->pins = mem_alloc_aligned(64, HNSW_PINS * sizeof *h->pins);
    h->row_locks = mem_calloc(HNSW_ROW_LOCKS, sizeof *h->row_locks);
    if (h->pins != NULL) memset(h->pins, 0, HNSW_PINS * sizeof *h->pins);
    return h->vectors != NULL && h->rows != NULL && h->uppers != NULL && h->towers != NULL &&
            h->levels != NULL && h->states != NULL && h->slots != NULL && h->in_degrees != NULL &&
            h->upper_degrees != NULL && h->nodes != NULL && h->pins != NULL && h->row_locks != NULL;
}

static size_t row_stride_of(uint32_t links)
{
    return align_up(links * sizeof(uint32_t), 64) / sizeof(uint32_t);
}

double hnsw_bytes_per_node(uint32_t dim, enum metric metric, uint32_t M, bool quantized)
{
    uint32_t code_dim = dim + (metric == METRIC_IP);
    double bytes = (double)(row_stride_of(2 * M) * sizeof(uint32_t));
    bytes += (double)(row_stride_of(M) * sizeof(uint32_t) + 4) /
            (M - 1);                                      /* upper layers: 1/M + 1/M^2 + ... */
    bytes += 4 + 1 + 1 + 4 + 4 + 4;                       /* tower, level, state, slot, node, in-degree */
    bytes += (double)(align_up(dim, 16) * sizeof(float)); /* vector */
    if (metric == METRIC_IP) bytes += sizeof(float);      /* lift */
    if (quantized) bytes += (double)align_up(code_dim, 64);
    return bytes;
}

/* ---- making ------------------------------------------------------------------------------------------- */

static const struct index_ops hnsw_ops;

static void init_locks(struct hnsw *h)
{
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    /* Training must get its turn although inserts never pause. */
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&h->train_lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    pthread_mutex_init(&h->entry_lock, NULL);
    pthread_mutex_init(&h->alloc_lock, NULL);
    pthread_mutex_init(&h->writers_lock, NULL);
    pthread_cond_init(&h->writers_free, NULL);
    pthread_mutex_init(&h->repair.lock, NULL);
}

static void init_sizes(struct hnsw *h, const struct index_rows *rows, const struct index_params *params)
{
    h->M = params->M != 0 ? params->M : HNSW_M_DEFAULT;
    h->ef_construction = params->ef_construction != 0 ? params->ef_construction
                                                      : HNSW_EF_CONSTRUCTION_DEFAULT;
    h->alpha = HNSW_ALPHA_DEFAULT;
    h->quantize = params->quant != INDEX_QUANT_NONE;
    h->seed = params->seed;
    h->recall_target = params->recall_target != 0 ? params->recall_target : 0.95f;
    uint64_t room = params->capacity != 0 ? params->capacity + (uint64_t)params->capacity / 16 + 1024
                                          : HNSW_NODES_DEFAULT;
    if (room < 2 * (uint64_t)rows->count) room = 2 * (uint64_t)rows->count;
    h->node_capacity = room < INDEX_SLOTS_MAX - 1 ? (uint32_t)room : INDEX_SLOTS_MAX - 1;
    h->slot_capacity = INDEX_SLOTS_MAX;
    h->upper_capacity = (uint32_t)((uint64_t)h->node_capacity * 5 / 4 / (h->M - 1)) + UPPER_SPARE;
    h->vector_stride = align_up(rows->dim, 16);
    h->row_stride = row_stride_of(2 * h->M);
    h->upper_stride = row_stride_of(h->M);
    h->level_factor = 1.0f / logf((float)h->M);
    h->kernel = kernel_get();
}

static enum omen_err hnsw_new(const struct index_rows *rows, const struct index_params *params,
        struct hnsw **out, struct err *err)
{
    struct hnsw *h = mem_calloc(1, sizeof *h);
    if (h == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for an index");
    h->index = (struct index){ &hnsw_ops, rows->dim, rows->metric };
    init_locks(h);
    init_sizes(h, rows, params);
    atomic_store(&h->entry, HNSW_NONE);
    atomic_store(&h->epoch, 1);
    size_t expected = params->capacity > rows->count ? params->capacity : rows->count;
    struct hnsw_sample sample = { rows->data, rows->stride_floats, NULL, rows->count };
    if (map_arrays(h, expected)) atomic_store(&h->codes, hnsw_codes_new(h, &sample));
    if (atomic_load(&h->codes) == NULL) {
        uint32_t capacity = h->node_capacity;
        hnsw_free(&h->index);
        return err_set(err, OMEN_ENOMEM, NULL, "no memory for an index of %u points", capacity);
    }
    bool tried = rows->count >= HNSW_TRAIN_ROWS_MIN && h->quantize;
    uint32_t again = atomic_load(&h->codes)->quantized || !h->quantize ? UINT32_MAX : 4 * rows->count;
    atomic_store(&h->train_at, tried || !h->quantize ? again : HNSW_TRAIN_ROWS_MIN);
    *out = h;
    return OMEN_OK;
}

/* What index_build cannot know. */
static enum omen_err check_params(const struct index_rows *rows, const struct index_params *params,
        struct err *err)
{
    if (rows->count > INDEX_SLOTS_MAX / 2)
        return err_set(err, OMEN_EINVAL, "count", "at most %u rows, got %u", INDEX_SLOTS_MAX / 2,
                rows->count);
    if (params->M != 0 && (params->M < HNSW_M_MIN || params->M > HNSW_M_MAX))
        return err_set(err, OMEN_EINVAL, "M", "M must be between %u and %u, got %u", HNSW_M_MIN, HNSW_M_MAX,
                params->M);
    if (params->ef_construction > HNSW_EF_CONSTRUCTION_MAX)
        return err_set(err, OMEN_EINVAL, "ef_construction", "must be at most %u, got %u",
                HNSW_EF_CONSTRUCTION_MAX, params->ef_construction);
    if (params->capacity > INDEX_SLOTS_MAX)
        return err_set(err, OMEN_EINVAL, "capacity", "must be at most %u, got %u", INDEX_SLOTS_MAX,
                params->capacity);
    if (params->quant > INDEX_QUANT_SCALAR)
        return err_set(err, OMEN_EINVAL, "quant", "a mutable HNSW has no %s codes",
                index_quant_name(params->quant));
    return OMEN_OK;
}

/* ---- building ----------------------------------------------------------------------------------------- */

struct build {
    struct hnsw *h;
    const struct index_rows *rows;
    const struct index_control *control;
    _Atomic uint32_t next;
    uint32_t every;     /* held out for calibration; 0 = none */
    bool held_out;      /* these are being inserted, else the others */
    _Atomic int result; /* first enum omen_err other than OMEN_OK */
    pthread_mutex_t callback_lock;
    struct err err;
};

static void build_failed(struct build *b, enum omen_err rc, const struct err *err)
{
    int none = OMEN_OK;
    pthread_mutex_lock(&b->callback_lock);
    if (atomic_compare_exchange_strong(&b->result, &none, (int)rc)) b->err = *err;
    pthread_mutex_unlock(&b->callback_lock);
}

static void build_report(struct build *b, uint32_t done, struct err *err)
{
    const struct index_control *control = b->control;
    pthread_mutex_lock(&b->callback_lock);
    bool stop = control->stop != NULL && control->stop(control->arg);
    if (!stop && control->progress != NULL) control->progress(control->arg, "insert", done, b->rows->count);
    pthread_mutex_unlock(&b->callback_lock);
    if (stop) build_failed(b, err_set(err, OMEN_ECANCELED, NULL, "stopped by the caller"), err);
}

static void *build_run(void *arg)
{
    struct build *b = arg;
    struct err err = { 0 };
    for (;;) {
        uint32_t slot = atomic_fetch_add(&b->next, 1);
        if (b->held_out) slot = (slot + 1) * b->every - 1;
        if (slot < b->rows->count && !b->held_out && b->every != 0 && (slot + 1) % b->every == 0) continue;
        if (slot >= b->rows->count || atomic_load(&b->result) != OMEN_OK) return NULL;
        enum omen_err rc = hnsw_insert(&b->h->index, slot, b->rows->data + slot * b->rows->stride_floats,
                &err);
        if (rc != OMEN_OK) build_failed(b, rc, &err);
        if (slot % PROGRESS_ROWS == 0) build_report(b, slot, &err);
    }
}

static enum omen_err build_all(struct build *b, uint32_t thread_count, struct err *err)
{
    pthread_t threads[INDEX_THREADS_MAX];
    uint32_t started = 0;
    pthread_mutex_init(&b->callback_lock, NULL);
    /* A thread that cannot be started leaves its share to the others. */
    while (started + 1 < thread_count && pthread_create(&threads[started], NULL, build_run, b) == 0)
        started++;
    build_run(b);
    for (uint32_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&b->callback_lock);
    enum omen_err rc = (enum omen_err)atomic_load(&b->result);
    if (rc != OMEN_OK && err != NULL) *err = b->err;
    return rc;
}

enum omen_err hnsw_build(const struct index_rows *rows, const struct index_params *params,
        const struct index_control *control, struct index **index_out, struct err *err)
{
    *index_out = NULL;
    enum omen_err rc = check_params(rows, params, err);
    if (rc != OMEN_OK) return rc;
    struct hnsw *h = NULL;
    rc = hnsw_new(rows, params, &h, err);
    if (rc != OMEN_OK) return rc;
    struct build b = { .h = h, .rows = rows, .control = control, .every = hnsw_held_out_every(rows, params) };
    uint32_t threads = control->threads < 1 ? 1 : control->threads;
    if (threads > INDEX_THREADS_MAX) threads = INDEX_THREADS_MAX;
    rc = build_all(&b, threads, err);
    if (rc == OMEN_OK && b.every != 0) {
        rc = hnsw_calibrate(h, rows, b.every, control);
        if (rc != OMEN_OK) (void)err_set(err, rc, NULL, "calibration: %s", err_name(rc));
        b.held_out = true;
        atomic_store(&b.next, 0);
        if (rc == OMEN_OK) rc = build_all(&b, threads, err);
    }
    if (rc != OMEN_OK) {
        hnsw_free(&h->index);
        return rc;
    }
    hnsw_settle(&h->index);
    *index_out = &h->index;
    return OMEN_OK;
}

/* ---- stats -------------------------------------------------------------------------------------------- */

static void count_links(const struct hnsw *h, struct index_stats *stats)
{
    uint32_t neighbours[2 * HNSW_M_MAX], nodes = atomic_load_explicit(&h->node_count, memory_order_acquire);
    for (uint32_t i = 0; i < nodes; i++) {
        if (hnsw_state(h, i) != HNSW_LIVE) continue;
        for (uint32_t layer = 0; layer <= h->levels[i]; layer++)
            stats->links += hnsw_row_read(h, i, layer, neighbours);
    }
}

static void hnsw_stats(const struct index *index, bool deep, struct index_stats *stats)
{
    struct hnsw *h = hnsw_of(index);
    struct index_scratch *w = hnsw_writer_take(h);
    memset(stats, 0, sizeof *stats);
    stats->unreachable = UINT64_MAX;
    stats->slot_count = atomic_load(&h->slot_end);
    stats->live_count = atomic_load(&h->live_count);
    uint64_t entry = atomic_load(&h->entry);
    stats->layer_count = (uint32_t)entry == HNSW_NONE ? 0 : (uint32_t)(entry >> 32) + 1;
    stats->effort_default = h->curve.points == 0 ? 0 : (float)hnsw_effort_for(h, 10, 0);
    if (w == NULL) return;
    hnsw_pin(h, w->pin);
    bool quantized = atomic_load(&h->codes)->quantized;
    double per_node = hnsw_bytes_per_node(index->dim, index->metric, h->M, quantized);
    /* Where codes are walked, full rows are touched by rescoring alone. */
    if (quantized) per_node -= (double)(h->vector_stride * sizeof(float));
    stats->memory_bytes = (uint64_t)(per_node * atomic_load(&h->node_count));
    stats->rescore_bytes = quantized ? 31 * h->vector_stride * sizeof(float) : 0;
    if (deep) count_links(h, stats);
    hnsw_unpin(w->pin);
    if (deep) stats->unreachable = hnsw_unreachable(h, w);
    hnsw_writer_give(h, w);
}

static const struct index_ops hnsw_ops = {
    .kind = INDEX_HNSW,
    .free = hnsw_free,
    .scratch_new = hnsw_scratch_new,
    .scratch_free = hnsw_scratch_free,
    .search = hnsw_search,
    .insert = hnsw_insert,
    .remove = hnsw_remove,
    .stats = hnsw_stats,
};

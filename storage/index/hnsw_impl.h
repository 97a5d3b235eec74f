/* Between the files of the mutable HNSW; nobody else includes it.
 *
 * Nodes and slots: the caller's slot is where a row lies in its segment; a node is where a point lies in the
 * graph. A slot may be used again at once after a remove, a node only when nobody can see it any more, so
 * they differ.
 *
 *   FREE -insert-> LINKING -linked-> LIVE -remove-> DEAD -batch-> DYING -all links cut, readers left-> FREE
 *
 *   FREE     no link leads to it, nobody reads it.
 *   LINKING  its vector, code and rows are written; others may already walk through it; not returned yet.
 *   LIVE     searches may return it.
 *   DEAD     never returned, still a bridge; nobody links to it any more.
 *   DYING    DEAD, and being cut out: every row but those of DYING nodes loses its links to it.
 *
 * Readers take no lock. Why that is right:
 *  - A row is a fixed array of u32 nodes, ended by HNSW_NONE; every element is read and written atomically, so
 *    a reader that meets a row while it is rewritten sees old or new neighbours, each of them a node. It may
 *    miss or repeat one neighbour: no worse than having come a moment earlier or later.
 *  - A node is written (vector, code, own rows) before the first link to it is stored with release; links are
 *    loaded with acquire.
 *  - A node is reused only after every link to it was cut and every search that was running then has ended
 *    (epochs, hnsw_mem.c). That no new link to a dead node appears: writers link only to nodes they see LIVE
 *    or LINKING; links are cut only after all writers that began before the node was DEAD have ended (the
 *    same epochs).
 * Writers lock one row at a time (striped), never two: no deadlock. Lock order: repair, training, row; alloc
 * and entry are innermost. */
#ifndef OMEN_STORAGE_INDEX_HNSW_IMPL_H
#define OMEN_STORAGE_INDEX_HNSW_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/hnsw.h"
#include "storage/kernel/kernel.h"

#define HNSW_NONE UINT32_MAX
#define HNSW_LEVEL_MAX 12       /* layers above 0 */
#define HNSW_SEEDS 4            /* nodes of layer 1 that a beam on layer 0 starts from */
#define HNSW_ROW_LOCKS 4096     /* power of two */
#define HNSW_ALPHA_DEFAULT 1.0f /* a candidate is covered when alpha * d(c, s) < d(c, q), distances squared */
#define HNSW_TRAIN_ROWS_MIN 1024 /* nodes before codes are trained */
#define HNSW_TRAIN_SAMPLE 4096
#define HNSW_POOL_MAX (1u << 17) /* pool entries, bridges included */
#define HNSW_CURVE_KS 3
#define HNSW_CURVE_POINTS 20
#define HNSW_EFFORT_DEFAULT 96 /* without calibration */
#define HNSW_PINS (HNSW_SCRATCHES_MAX + HNSW_WRITERS_MAX)

enum hnsw_state { HNSW_FREE, HNSW_LINKING, HNSW_LIVE, HNSW_DEAD, HNSW_DYING };

/* One 8-bit distance function per instruction set; see hnsw_codes.c. */
struct hnsw_code_ops {
    /* distances_out[i] = sum over stride of (q[j] - codes[nodes[i] * stride + j])^2 */
    void (*many)(const int16_t *q, const uint8_t *codes, size_t stride, const uint32_t *nodes, uint32_t count,
            uint32_t *distances_out);
    uint32_t (*pair)(const uint8_t *a, const uint8_t *b, size_t stride);
};

/* What the walk computes distances with. A generation is replaced as a whole when its range no longer fits;
 * within one, only codes of new nodes are written. Under ip, points are lifted to one more component
 * sqrt(norm_max^2 - |x|^2), which makes nearest by l2 the same as largest by dot product; queries have 0
 * there. */
struct hnsw_codes {
    const struct hnsw_code_ops *ops;
    bool quantized;      /* else distances are over f32 rows */
    uint32_t code_dim;   /* dim, or dim + 1 under ip */
    size_t stride;       /* bytes per code, multiple of 64 */
    float step;          /* of one code unit, all components alike, so that code distances keep the metric */
    float *offset;       /* [code_dim] value of code 0; owned */
    float query_max;     /* codes of queries lie in -query_max .. 255 + query_max, so that sums fit 31 bits */
    float norm_max_sq;   /* ip */
    uint8_t *codes;      /* [node_capacity][stride], owned mapping; NULL unless quantized */
    float *lift;         /* [node_capacity], ip only, owned mapping */
    uint64_t trained_on; /* nodes at training */
};

/* A point as distances want it. */
struct hnsw_probe {
    int16_t *code;    /* [stride], 64-byte aligned */
    const float *f32; /* [dim] */
    float lift;       /* ip: 0 for queries */
    float scale;      /* of a query: of its length before coding; 1 unless ip */
};

struct hnsw_link {
    float distance;
    uint32_t node;
};

/* An announcement of who reads; one cache line each. */
struct hnsw_pin {
    _Alignas(64) _Atomic uint64_t epoch; /* 0 = reads nothing */
    atomic_bool used;
};

struct hnsw_node_list {
    uint32_t *items; /* owned */
    uint32_t count, capacity;
};

enum hnsw_repair_phase {
    HNSW_REPAIR_IDLE,  /* dead nodes gather in `dead` */
    HNSW_REPAIR_WAIT,  /* a batch is taken; writers older than its deletes are still running */
    HNSW_REPAIR_SWEEP, /* every row is freed from links to dead nodes */
    HNSW_REPAIR_DRAIN, /* readers that may still see the batch are running */
    HNSW_REPAIR_REACH, /* a walk from the entry marks what it reaches */
    HNSW_REPAIR_RELINK /* live nodes without a mark are linked again */
};

struct hnsw_repair {
    pthread_mutex_t lock;        /* of everything here */
    _Atomic uint32_t phase;      /* enum hnsw_repair_phase; written under the lock */
    struct hnsw_node_list batch; /* dead nodes being cut out */
    uint64_t epoch;              /* phase may go on at epoch + 2 */
    uint32_t cursor, end;        /* nodes swept, or looked at for relinking */
    uint64_t *marks;             /* [node_count / 64] reached by the walk; NULL outside REACH and RELINK */
    uint32_t *queue;             /* nodes marked and not yet expanded */
    uint32_t queue_head, queue_tail;
    uint32_t mark_count; /* nodes below it take part */
    uint32_t relinked;   /* in this round; another round follows while it is not 0 */
    uint32_t rounds;
};

struct index_scratch { /* of a reader or a writer */
    struct hnsw *hnsw;
    struct hnsw_pin *pin;
    uint8_t *visited; /* [visited_count] stamps */
    uint32_t visited_count;
    uint8_t stamp;
    uint64_t *pool;  /* [pool_capacity + 8] see hnsw_walk.c */
    uint64_t *spare; /* [pool_capacity + 8] where the next pool is merged; the two change places */
    uint32_t pool_capacity, pool_count, pool_counted;
    int16_t *code; /* of the query or of the point being inserted */
    size_t code_count;
    struct index_hit *hits; /* of rescoring and scanning */
    uint32_t hit_capacity;
    struct hnsw_link *found; /* writers: [HNSW_LEVEL_MAX + 1][2M] chosen neighbours by layer */
    struct hnsw_link
            *links; /* writers: [link_capacity] candidates; the last 2M + 1 are of rows being pruned */
    uint32_t link_capacity;
    struct index_scratch *next; /* idle writers */
};

/* Recall that searches of an effort reached on rows held out, less 1.65 standard errors. */
struct hnsw_curve {
    uint32_t points;                                /* 0 = not calibrated */
    float recall[HNSW_CURVE_KS][HNSW_CURVE_POINTS]; /* k = 1, 10, 100; efforts in hnsw_calibrate.c */
};

struct hnsw {
    struct index index;
    uint32_t M, ef_construction;
    float alpha;
    bool quantize; /* codes are wanted when they are good enough */
    uint64_t seed;
    uint32_t node_capacity; /* address space; physical memory follows use */
    uint32_t slot_capacity;
    uint32_t upper_capacity;
    size_t vector_stride;            /* floats */
    size_t row_stride, upper_stride; /* u32 per row */
    float level_factor;              /* 1 / ln M */
    const struct kernel *kernel;

    float *vectors;                  /* [node_capacity][vector_stride] */
    _Atomic uint32_t *rows;          /* [node_capacity][row_stride] layer 0, 2M of them links */
    _Atomic uint32_t *uppers;        /* [upper_capacity][upper_stride] layers >= 1, M of them links */
    uint32_t *towers;                /* [node_capacity] upper row of layer 1; the others follow it */
    uint8_t *levels;                 /* [node_capacity] */
    _Atomic uint8_t *states;         /* [node_capacity] enum hnsw_state */
    uint32_t *slots;                 /* [node_capacity] slot of the node's point */
    _Atomic uint32_t *nodes;         /* [slot_capacity] node + 1 of a live slot, 0 = none */
    _Atomic uint32_t *in_degrees;    /* [node_capacity] links to it on layer 0 */
    _Atomic uint32_t *upper_degrees; /* [upper_capacity] links to it on the layer of that upper row */
    _Atomic(struct hnsw_codes *) codes;

    _Atomic uint64_t entry;      /* level << 32 | node; HNSW_NONE while empty */
    pthread_mutex_t entry_lock;  /* of its replacement */
    _Atomic uint32_t node_count; /* nodes ever handed out */
    _Atomic uint32_t live_count, dead_count;
    _Atomic uint32_t slot_end;     /* highest slot ever inserted, + 1 */
    _Atomic uint64_t insert_count; /* seeds levels */

    pthread_mutex_t alloc_lock; /* of the lists below */
    struct hnsw_node_list free_nodes, dead_nodes;
    struct hnsw_node_list free_towers[HNSW_LEVEL_MAX + 1]; /* by height */
    uint32_t upper_count;

    _Atomic uint64_t epoch;     /* from 1 */
    struct hnsw_pin *pins;      /* [HNSW_PINS] */
    _Atomic uint8_t *row_locks; /* [HNSW_ROW_LOCKS] */

    pthread_rwlock_t train_lock;    /* writers share it; training takes it alone */
    _Atomic uint32_t clipped_count; /* rows since training that codes could not hold */
    _Atomic uint32_t train_at;      /* node count at which training is tried (again) */

    pthread_mutex_t writers_lock;
    pthread_cond_t writers_free;
    struct index_scratch *writers; /* idle */
    uint32_t writer_count;

    struct hnsw_repair repair;
    float recall_target;     /* of searches that give neither effort nor target */
    struct hnsw_curve curve; /* written by the build only */
};

static inline struct hnsw *hnsw_of(const struct index *index)
{
    return (struct hnsw *)(uintptr_t)index; /* readers announce themselves in a const index */
}

static inline const float *hnsw_vector(const struct hnsw *h, uint32_t node)
{
    return h->vectors + (size_t)node * h->vector_stride;
}

static inline _Atomic uint32_t *hnsw_row(const struct hnsw *h, uint32_t node, uint32_t layer)
{
    if (layer == 0) return h->rows + (size_t)node * h->row_stride;
    return h->uppers + (size_t)(h->towers[node] + layer - 1) * h->upper_stride;
}

static inline _Atomic uint32_t *hnsw_in_degree(const struct hnsw *h, uint32_t node, uint32_t layer)
{
    return layer == 0 ? &h->in_degrees[node] : &h->upper_degrees[h->towers[node] + layer - 1];
}

static inline uint32_t hnsw_row_max(const struct hnsw *h, uint32_t layer)
{
    return layer == 0 ? 2 * h->M : h->M;
}

static inline uint8_t hnsw_state(const struct hnsw *h, uint32_t node)
{
    return atomic_load_explicit(&h->states[node], memory_order_acquire);
}

static inline bool hnsw_linkable(const struct hnsw *h, uint32_t node)
{
    uint8_t state = hnsw_state(h, node);
    return state == HNSW_LIVE || state == HNSW_LINKING;
}

static inline bool hnsw_is_dead(const struct hnsw *h, uint32_t node)
{
    return hnsw_state(h, node) >= HNSW_DEAD;
}

/* ---- hnsw_mem.c: memory, epochs, locks ---------------------------------------------------------------- */

void *hnsw_map(size_t count, size_t bytes, size_t huge_from_bytes); /* zeroed address space; NULL */
void hnsw_unmap(void *p, size_t count, size_t bytes);

void hnsw_pin(struct hnsw *h, struct hnsw_pin *pin);
void hnsw_unpin(struct hnsw_pin *pin);
uint64_t hnsw_epoch_now(struct hnsw *h);                /* orders what was stored before it */
bool hnsw_epoch_passed(struct hnsw *h, uint64_t epoch); /* all pins of `epoch` and before are gone */
void hnsw_epoch_wait(struct hnsw *h);                   /* caller holds no pin */

void hnsw_row_lock(struct hnsw *h, uint32_t node, uint32_t layer);
void hnsw_row_unlock(struct hnsw *h, uint32_t node, uint32_t layer);

OMEN_CHECKED bool hnsw_list_push(struct hnsw_node_list *list, uint32_t node);

/* A node with its tower, state LINKING, rows empty. OMEN_EFULL, OMEN_ENOMEM. */
OMEN_CHECKED enum omen_err hnsw_node_alloc(struct hnsw *h, uint32_t level, uint32_t *node_out);
void hnsw_node_free(struct hnsw *h, uint32_t node);

struct index_scratch *hnsw_scratch_new(const struct index *index);
void hnsw_scratch_free(struct index_scratch *scratch);
struct index_scratch *hnsw_writer_take(struct hnsw *h); /* waits; NULL: out of memory */
void hnsw_writer_give(struct hnsw *h, struct index_scratch *writer);
/* Room for `pool` entries and all nodes of now; a fresh stamp. */
OMEN_CHECKED bool hnsw_scratch_begin(struct index_scratch *scratch, const struct hnsw_codes *codes,
        uint32_t pool);
OMEN_CHECKED bool hnsw_scratch_hits(struct index_scratch *scratch, uint32_t count);

/* ---- hnsw_codes.c ------------------------------------------------------------------------------------- */

/* Best up to `isa` that this CPU has; all give equal sums. */
const struct hnsw_code_ops *hnsw_code_ops_for(enum kernel_isa isa);

/* Rows to train on: `ids` NULL = 0..count-1. */
struct hnsw_sample {
    const float *data;
    size_t stride_floats;
    const uint32_t *ids;
    uint32_t count;
};
/* A generation for these rows; codes of no node are written. NULL: out of memory. */
struct hnsw_codes *hnsw_codes_new(const struct hnsw *h, const struct hnsw_sample *sample);
void hnsw_codes_free(const struct hnsw *h, struct hnsw_codes *codes);
/* Write the node's code from its vector. False when it does not fit the trained range. */
bool hnsw_codes_put(const struct hnsw *h, struct hnsw_codes *codes, uint32_t node);
void hnsw_probe_query(const struct hnsw *h, const struct hnsw_codes *codes, const float *query, int16_t *code,
        struct hnsw_probe *probe_out);
void hnsw_probe_node(const struct hnsw *h, const struct hnsw_codes *codes, uint32_t node, int16_t *code,
        struct hnsw_probe *probe_out);
/* Distances as ordered keys: sums of codes, or the bits of a non-negative float. */
void hnsw_distances(const struct hnsw *h, const struct hnsw_codes *codes, const struct hnsw_probe *probe,
        const uint32_t *nodes, uint32_t count, uint32_t *keys_out);
uint32_t hnsw_distance(const struct hnsw *h, const struct hnsw_codes *codes, uint32_t a, uint32_t b);
static inline float hnsw_key_value(const struct hnsw_codes *codes, uint32_t key)
{
    if (codes->quantized) return (float)key;
    float value;
    memcpy(&value, &key, sizeof value);
    return value;
}
/* Train on the nodes there are and swap; the caller holds no lock and no pin. */
OMEN_CHECKED enum omen_err hnsw_retrain(struct hnsw *h);
bool hnsw_retrain_due(struct hnsw *h);

/* ---- hnsw_walk.c -------------------------------------------------------------------------------------- */

struct hnsw_walk {
    const struct hnsw *h;
    const struct hnsw_codes *codes;
    const struct hnsw_probe *probe;
    struct index_scratch *scratch;
    const uint64_t *filter; /* by slot; NULL = all */
    bool (*stop)(void *arg);
    void *stop_arg;
    bool half;              /* half of `ef` is expanded, all only where distances are alike: hnsw_beam */
    bool ahead;             /* a node is expanded before the one before it is compared */
    uint64_t distances_max; /* budget; UINT64_MAX = none */
    uint64_t distances, hops;
};

enum hnsw_walk_end { HNSW_WALK_DONE, HNSW_WALK_STOPPED, HNSW_WALK_BUDGET };

#define HNSW_POOL_EXPANDED (1u << 31)
#define HNSW_POOL_COUNTED (1u << 30)
static inline uint32_t hnsw_pool_node(uint64_t entry) { return (uint32_t)entry & (HNSW_POOL_COUNTED - 1); }
static inline uint32_t hnsw_pool_key(uint64_t entry) { return (uint32_t)(entry >> 32); }

/* Nearest node on `layer` reached by greedy steps from `node`. */
uint32_t hnsw_descend(struct hnsw_walk *walk, uint32_t node, uint32_t from_layer, uint32_t to_layer);
/* Fill the scratch's pool with the `ef` nearest counted nodes of `layer` and the bridges between them. */
enum hnsw_walk_end hnsw_beam(struct hnsw_walk *walk, const uint32_t *seeds, uint32_t seed_count,
        uint32_t layer, uint32_t ef);
/* Where a beam on `layer` starts: the nearest few of the layer above, or the entry. One start is not enough
 * when points lie in clusters: links between them are made when the graph is small and get fewer as points
 * come and go, so a beam that begins in the wrong cluster may stay there. The number of seeds, >= 1. */
uint32_t hnsw_seeds(struct hnsw_walk *walk, uint64_t entry, uint32_t layer, uint32_t seeds_out[HNSW_SEEDS]);

/* ---- hnsw_link.c, hnsw_insert.c, hnsw_repair.c, hnsw_search.c ----------------------------------------- */

void hnsw_links_sort(struct hnsw_link *links, uint32_t count);
/* Algorithm 4 over `links` sorted by distance: the chosen are moved to the front. */
uint32_t hnsw_select(const struct hnsw *h, const struct hnsw_codes *codes, struct hnsw_link *links,
        uint32_t count, uint32_t max);
/* Replace the row; in-degrees follow. Caller holds the row's lock. */
void hnsw_row_write(struct hnsw *h, uint32_t node, uint32_t layer, const uint32_t *neighbours,
        uint32_t count);
uint32_t hnsw_row_read(const struct hnsw *h, uint32_t node, uint32_t layer, uint32_t *neighbours_out);
/* Add node -> target, pruning a full row. The new link is never dropped when `force` or when it is target's
 * first. */
void hnsw_link_add(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *writer,
        uint32_t node, uint32_t layer, uint32_t target, float distance, bool force);

/* One search for several k, ascending, none above search->effort unless it is the only one: the walk is the same, only
 * the pool is rescored for each. hits_out [k_count][stride]. */
enum omen_err hnsw_search_ks(struct hnsw *h, const struct index_search *search, const uint32_t *ks,
        uint32_t k_count, struct index_scratch *scratch, struct index_hit *hits_out, uint32_t stride,
        uint32_t *counts_out);
enum omen_err hnsw_insert(struct index *index, uint32_t slot, const float *vector, struct err *err);
enum omen_err hnsw_remove(struct index *index, uint32_t slot, struct err *err);
/* Find neighbours of `node` and link it in; `node` may be linked already (repair). False: nothing live to
 * link to. */
bool hnsw_connect(struct hnsw *h, const struct hnsw_codes *codes, struct index_scratch *writer, uint32_t node,
        bool force);

/* A piece of repair, when any is due and nobody else is at it. The writer holds no pin and no lock. */
void hnsw_repair_step(struct hnsw *h, struct index_scratch *writer);
/* All of it. Same conditions. */
void hnsw_repair_all(struct hnsw *h, struct index_scratch *writer);
void hnsw_repair_fini(struct hnsw *h);
/* Live nodes that a walk over layer 0 from the entry does not reach; UINT64_MAX: out of memory. */
uint64_t hnsw_unreachable(struct hnsw *h, struct index_scratch *writer);

/* ---- hnsw_calibrate.c */

/* Slots every - 1, 2 * every - 1, ... are held out; 0 = none. */
uint32_t hnsw_held_out_every(const struct index_rows *rows, const struct index_params *params);
/* All rows but those held out are in the index. OMEN_ENOMEM, OMEN_ECANCELED. */
OMEN_CHECKED enum omen_err hnsw_calibrate(struct hnsw *h, const struct index_rows *rows, uint32_t every,
        const struct index_control *control);
uint32_t hnsw_effort_for(const struct hnsw *h, uint32_t k, float target); /* target 0 = the index's own */

enum omen_err hnsw_search(const struct index *index, const struct index_search *search,
        struct index_scratch *scratch, struct index_hit *hits_out, uint32_t *count_out,
        struct index_cost *cost);

#endif

/* Builds a disk graph: links by the sealed graph's builder, rows put together into units, codes, leaders,
 * calibration.
 *
 * Units are filled greedily: a row that has no place yet takes its links along, nearest first, then their links,
 * until the unit is full; rows come in the sealed graph's order, which keeps clusters together, so what follows a
 * unit in the file lies near it too. All is in memory until index_save. Memory beside rows and the finished index:
 * the sealed graph and its build. Threads: control->threads. Determinism: not between thread counts. */
#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "storage/index/disk_impl.h"
#include "storage/index/parallel.h"
#include "storage/index/sealed_impl.h"
#include "storage/kernel/kernel.h"

#define TRAIN_ROWS 8192
#define BITS_DEFAULT 4 /* per component of a code in RAM */

struct build {
    struct disk *d;
    struct sealed *s; /* links; nodes of it are called old */
    const struct index_rows *rows;
    const struct index_control *control;
    uint32_t *order; /* [count] new node -> old */
    uint32_t *place; /* [count] old node -> new, NODE_NONE = not yet */
};
#define NODE_NONE UINT32_MAX
#define DISK_UNIT_NODES_MAX                                                                                  \
    32 /* rows that are put together by their links; small rows share a unit in runs */

static const float *slot_row(const struct build *b, uint32_t slot)
{
    return b->rows->data + (size_t)slot * b->rows->stride_floats;
}

/* ---- units ---- */

/* Rows without a place that those of a unit link to, with how many do. */
struct wanted {
    uint32_t nodes[DISK_UNIT_NODES_MAX * SEALED_DEGREE], links[DISK_UNIT_NODES_MAX * SEALED_DEGREE], count;
};

static void wanted_add(const struct build *b, struct wanted *wanted, uint32_t member)
{
    uint8_t *row = sealed_row(b->s, member);
    const uint32_t *ids = sealed_ids(b->s, row);
    for (uint32_t j = 0; j < sealed_head(b->s, row)->degree; j++) {
        uint32_t at = 0;
        if (b->place[ids[j]] != NODE_NONE) continue;
        while (at < wanted->count && wanted->nodes[at] != ids[j]) at++;
        if (at == wanted->count) {
            wanted->nodes[wanted->count] = ids[j];
            wanted->links[wanted->count++] = 0;
        }
        wanted->links[at]++;
    }
}

/* Takes out the row that most members link to, of equals the one met first: the nearest of an early member. */
static uint32_t wanted_take(struct wanted *wanted)
{
    uint32_t best = 0;
    for (uint32_t at = 1; at < wanted->count; at++)
        if (wanted->links[at] > wanted->links[best]) best = at;
    uint32_t node = wanted->nodes[best];
    wanted->count--;
    memmove(wanted->nodes + best, wanted->nodes + best + 1, (wanted->count - best) * sizeof *wanted->nodes);
    memmove(wanted->links + best, wanted->links + best + 1, (wanted->count - best) * sizeof *wanted->links);
    return node;
}

static void units_order(struct build *b)
{
    uint32_t per = b->d->layout.unit_nodes, out = 0;
    struct wanted wanted = { .count = 0 };
    if (per > DISK_UNIT_NODES_MAX) per = DISK_UNIT_NODES_MAX; /* what is looked at together */
    memset(b->place, 0xff, (size_t)b->d->count * sizeof *b->place);
    for (uint32_t seed = 0; seed < b->d->count; seed++) {
        if (b->place[seed] != NODE_NONE) continue;
        uint32_t next = seed;
        if (out % per == 0) wanted.count = 0;
        for (;;) {
            b->order[out] = next;
            b->place[next] = out++;
            if (out % per == 0) break;
            wanted_add(b, &wanted, next);
            if (wanted.count == 0) break;
            next = wanted_take(&wanted);
        }
    }
    CHECK(out == b->d->count);
}

static bool units_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct build *b = arg;
    struct disk *d = b->d;
    (void)thread;
    for (uint32_t unit = first; unit < end; unit++) {
        uint8_t *data = d->units + (size_t)unit * d->layout.unit_bytes;
        for (uint32_t i = 0; i < disk_unit_nodes(d, unit); i++) {
            uint32_t node = unit * d->layout.unit_nodes + i;
            uint8_t *row = sealed_row(b->s, b->order[node]);
            uint8_t *record = data + DISK_UNIT_HEAD + (size_t)i * d->layout.record_bytes;
            uint32_t *links = (uint32_t *)(void *)(record + d->dim * sizeof(float));
            const struct sealed_head *head = sealed_head(b->s, row);
            memcpy(record, slot_row(b, head->slot), d->dim * sizeof(float));
            for (uint32_t j = 0; j < head->degree; j++) links[j] = b->place[sealed_ids(b->s, row)[j]];
            links[DISK_DEGREE] = d->slots[node] = head->slot;
            links[DISK_DEGREE + 1] = head->degree;
        }
        disk_unit_seal(d, data, unit);
    }
    return true;
}
static_assert(SEALED_DEGREE <= DISK_DEGREE, "the links of a sealed row fit a record");

/* ---- codes ---- */

/* Mean and largest norm; the sealed builder may have its own, of a smaller space. */
static void space_measure(struct build *b)
{
    struct disk *d = b->d;
    double sums[CODE_DIM_MAX] = { 0 };
    uint32_t samples = d->count < TRAIN_ROWS ? d->count : TRAIN_ROWS;
    for (uint32_t slot = 0; d->base.metric == METRIC_IP && slot < d->count; slot++)
        d->norm_max = fmaxf(d->norm_max, kernel_get()->dot_f32(slot_row(b, slot), slot_row(b, slot), d->dim));
    for (uint32_t i = 0; i < samples; i++) {
        const float *row = slot_row(b, (uint32_t)((uint64_t)i * d->count / samples));
        float left = d->norm_max - kernel_get()->dot_f32(row, row, d->dim);
        for (uint32_t j = 0; j < d->dim; j++) sums[j] += row[j];
        if (d->inner > d->dim) sums[d->dim] += left > 0 ? sqrtf(left) : 0;
    }
    for (uint32_t j = 0; j < d->inner; j++) d->mean[j] = (float)(sums[j] / samples);
}

static enum omen_err quant_learn(struct build *b, enum index_quant quant, uint64_t seed, struct err *err)
{
    struct disk *d = b->d;
    static const struct quant_params kinds[INDEX_QUANT_COUNT] = {
        [INDEX_QUANT_AUTO] = { .kind = QUANT_BINARY, .bits = BITS_DEFAULT, .rotated = true },
        [INDEX_QUANT_NONE] = { .kind = QUANT_NONE },
        [INDEX_QUANT_SCALAR] = { .kind = QUANT_SCALAR, .bits = 8, .rotated = true },
        [INDEX_QUANT_PRODUCT] = { .kind = QUANT_PRODUCT, .bits = 8 },
        [INDEX_QUANT_BINARY] = { .kind = QUANT_BINARY, .bits = 1, .rotated = true },
    };
    struct quant_params params = kinds[quant];
    params.seed = seed;
    uint32_t samples = d->count < TRAIN_ROWS ? d->count : TRAIN_ROWS;
    float *z = mem_alloc_aligned(64, (size_t)samples * d->padded * sizeof(float));
    if (z == NULL) return OMEN_ENOMEM;
    for (uint32_t i = 0; i < samples; i++)
        disk_rotate(d, slot_row(b, (uint32_t)((uint64_t)i * d->count / samples)), true,
                z + (size_t)i * d->padded);
    struct quant_control control = { .stop = b->control->stop, .arg = b->control->arg };
    enum omen_err rc = quant_train(&params, z, d->padded, samples, d->padded, &control, &d->quant, err);
    mem_free(z);
    if (rc != OMEN_OK) return rc;
    d->code_bytes = (uint32_t)quant_code_bytes(d->quant);
    d->codes = sealed_pages_new((size_t)d->count * d->code_bytes, &d->codes_mapped);
    return d->codes == NULL ? OMEN_ENOMEM : OMEN_OK;
}

static bool codes_range(void *arg, uint32_t thread, uint32_t first, uint32_t end)
{
    struct build *b = arg;
    struct disk *d = b->d;
    float z[CODE_DIM_MAX] __attribute__((aligned(64)));
    (void)thread;
    for (uint32_t node = first; node < end; node++) {
        disk_rotate(d, slot_row(b, d->slots[node]), true, z);
        quant_encode(d->quant, z, d->codes + (size_t)node * d->code_bytes);
    }
    return true;
}

/* ---- leaders ---- */

static const uint8_t *node_record(const struct disk *d, uint32_t node)
{
    uint32_t unit = node / d->layout.unit_nodes;
    return disk_record(d, d->units + (size_t)unit * d->layout.unit_bytes, node % d->layout.unit_nodes);
}

/* Marks all that a walk reaches from `start`: the rows of a unit come together. stack [count]. */
static void reach(const struct disk *d, uint32_t start, uint64_t *reached, uint32_t *stack)
{
    uint32_t depth = 0;
    if (index_bit(reached, start)) return;
    reached[start / 64] |= UINT64_C(1) << (start % 64);
    stack[depth++] = start;
    while (depth > 0) {
        const uint8_t *record = node_record(d, stack[--depth]);
        for (uint32_t j = 0; j < disk_degree(d, record); j++) {
            uint32_t next = disk_links(d, record)[j];
            if (index_bit(reached, next)) continue;
            reached[next / 64] |= UINT64_C(1) << (next % 64);
            stack[depth++] = next;
        }
    }
}

static enum omen_err leaders_choose(struct disk *d)
{
    uint32_t n = d->count, count = n / DISK_LEADER_EVERY + 1;
    if (count > DISK_LEADERS_MAX / 2) count = DISK_LEADERS_MAX / 2;
    uint32_t *nodes = mem_alloc(DISK_LEADERS_MAX * sizeof *nodes),
             *stack = mem_alloc((size_t)n * sizeof *stack);
    uint64_t *reached = mem_calloc(n / 64 + 1, sizeof *reached);
    enum omen_err rc = nodes == NULL || stack == NULL || reached == NULL ? OMEN_ENOMEM : OMEN_OK;
    for (uint32_t i = 0; rc == OMEN_OK && i < count; i++) {
        nodes[i] = (uint32_t)((uint64_t)i * n / count);
        reach(d, nodes[i], reached, stack);
    }
    for (uint32_t node = 0; rc == OMEN_OK && node < n && count < DISK_LEADERS_MAX; node++) {
        if (index_bit(reached, node)) continue;
        nodes[count++] = node;
        reach(d, node, reached, stack);
    }
    mem_free(stack);
    mem_free(reached);
    uint32_t *fitted = rc == OMEN_OK ? mem_realloc(nodes, count * sizeof *nodes) : NULL;
    d->leader_nodes = fitted != NULL ? fitted : nodes;
    d->leader_count = rc == OMEN_OK ? count : 0;
    return rc;
}

static enum omen_err leaders_encode(struct build *b)
{
    struct disk *d = b->d;
    uint32_t groups = (d->leader_count + CODE_GROUP - 1) / CODE_GROUP;
    size_t codes_bytes = rabitq_codes_bytes(d->padded);
    d->leader_groups = mem_alloc_aligned(64, groups * (codes_bytes + CODE_GROUP * 4) + 64);
    d->leader_scales = mem_alloc(groups * 2 * sizeof(float) + 1);
    float *z = mem_alloc_aligned(64, (size_t)CODE_GROUP * d->padded * sizeof(float));
    uint8_t *scratch = mem_alloc((size_t)CODE_GROUP * d->padded / 8);
    bool fine = d->leader_groups != NULL && d->leader_scales != NULL && z != NULL && scratch != NULL;
    for (uint32_t g = 0; fine && g < groups; g++) {
        const float *rows[CODE_GROUP];
        uint32_t left = d->leader_count - g * CODE_GROUP, n = left < CODE_GROUP ? left : CODE_GROUP;
        for (uint32_t i = 0; i < n; i++) {
            float *row = z + (size_t)i * d->padded;
            disk_rotate(d, slot_row(b, d->slots[d->leader_nodes[g * CODE_GROUP + i]]), true, row);
            rows[i] = row;
        }
        uint8_t *codes = d->leader_groups + g * (codes_bytes + CODE_GROUP * 4);
        uint16_t *f = (uint16_t *)(void *)(codes + codes_bytes);
        float *scales = d->leader_scales + 2 * (size_t)g;
        rabitq_encode(rows, n, NULL, d->padded, scratch,
                &(struct rabitq_group){ codes, f, f + CODE_GROUP, &scales[0], &scales[1] });
    }
    mem_free(z);
    mem_free(scratch);
    return fine ? OMEN_OK : OMEN_ENOMEM;
}

/* ---- calibration ---- */

#define PASSES_MAX 8
#define QUERIES_WANTED 1000

/* Pass 0 has the rows that the sealed builder linked last, the others as many each, evenly from all. */
static bool pass_fill(const struct build *b, uint32_t number, uint32_t passes, struct disk_pass *pass)
{
    uint32_t total = b->d->count, n = pass->count;
    pass->absent = mem_calloc(total / 64 + 1, sizeof *pass->absent);
    pass->queries = mem_alloc(n * sizeof *pass->queries);
    if (pass->absent == NULL || pass->queries == NULL) return false;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t node = number == 0
                ? b->place[total - n + i]
                : (uint32_t)(((uint64_t)i * passes + number) * total / ((uint64_t)n * passes));
        pass->queries[i] = node;
        pass->absent[node / 64] |= UINT64_C(1) << (node % 64);
    }
    return true;
}

static enum omen_err held_out_calibrate(struct build *b)
{
    uint32_t held_out = b->s->curve.queries;
    struct disk_pass passes[PASSES_MAX] = { { NULL, NULL, 0 } };
    if (held_out == 0) return OMEN_OK;
    uint32_t count = (QUERIES_WANTED + held_out - 1) / held_out;
    if (count > PASSES_MAX) count = PASSES_MAX;
    enum omen_err rc = OMEN_OK;
    for (uint32_t p = 0; rc == OMEN_OK && p < count; p++) {
        passes[p].count = held_out;
        if (!pass_fill(b, p, count, &passes[p])) rc = OMEN_ENOMEM;
    }
    if (rc == OMEN_OK) rc = disk_calibrate(b->d, b->rows, passes, count, b->control);
    for (uint32_t p = 0; p < count; p++) {
        mem_free(passes[p].absent);
        mem_free(passes[p].queries);
    }
    return rc;
}

/* ---- the whole ---- */

static enum omen_err build_run(struct build *b, const struct index_params *params, struct err *err)
{
    struct disk *d = b->d;
    uint32_t units = disk_unit_count(d);
    space_measure(b);
    b->order = mem_alloc((size_t)d->count * sizeof *b->order);
    b->place = mem_alloc((size_t)d->count * sizeof *b->place);
    d->slots = mem_alloc((size_t)d->count * sizeof *d->slots);
    d->units = sealed_pages_new((size_t)units * d->layout.unit_bytes, &d->units_mapped);
    if (b->order == NULL || b->place == NULL || d->slots == NULL || d->units == NULL) return OMEN_ENOMEM;
    units_order(b);
    enum omen_err rc = parallel_for(b->control, "units", units, 256, units_range, b);
    if (rc == OMEN_OK) rc = quant_learn(b, params->quant, params->seed, err);
    if (rc == OMEN_OK) rc = parallel_for(b->control, "codes", d->count, 1024, codes_range, b);
    if (rc == OMEN_OK) rc = leaders_choose(d);
    if (rc == OMEN_OK) rc = leaders_encode(b);
    if (rc == OMEN_OK) rc = held_out_calibrate(b);
    return rc;
}

static enum omen_err graph_build(struct build *b, const struct index_params *params, struct err *err)
{
    struct index_params sealed_params = *params;
    struct index_control control = *b->control;
    struct sealed_layout layout;
    struct index *graph;
    sealed_params.quant = INDEX_QUANT_BINARY;
    sealed_params.layout = INDEX_LAYOUT_FAST;
    sealed_layout_init(&layout, b->d->padded, false);
    uint64_t wanted = (uint64_t)b->d->count * layout.row_bytes;
    if (control.memory_bytes_max != 0) {
        if (wanted >= control.memory_bytes_max)
            return err_set(err, OMEN_ENOMEM, "memory_bytes_max", "the build takes more than %llu bytes",
                    (unsigned long long)wanted);
        control.memory_bytes_max -= wanted;
    }
    enum omen_err rc = index_sealed_build(b->rows, &sealed_params, &control, &graph, err);
    if (rc == OMEN_OK) b->s = (struct sealed *)graph;
    return rc;
}

enum omen_err index_disk_build(const struct index_rows *rows, const struct index_params *params,
        const struct index_control *control, struct index **index_out, struct err *err)
{
    struct disk *d = disk_new(rows);
    if (d == NULL) return err_set(err, OMEN_ENOMEM, NULL, "no memory for an index");
    struct build b = { .d = d, .rows = rows, .control = control };
    struct err own = { 0 };
    d->recall_target = params->recall_target > 0 ? params->recall_target : 0.95f;
    d->seed = params->seed;
    rotation_init(&d->rotation, d->inner, d->seed);
    d->mean = mem_calloc(d->padded, sizeof(float));
    enum omen_err rc = d->mean == NULL ? OMEN_ENOMEM : OMEN_OK;
    if (rc == OMEN_OK && d->count > 0) rc = graph_build(&b, params, &own);
    if (rc == OMEN_OK && d->count > 0) rc = build_run(&b, params, &own);
    if (b.s != NULL) sealed_free(&b.s->base);
    mem_free(b.order);
    mem_free(b.place);
    if (rc != OMEN_OK) {
        disk_free(&d->base);
        if (own.code == rc) return err_set(err, rc, own.field, "%s", own.message);
        return err_set(err, rc, NULL,
                rc == OMEN_ECANCELED ? "the build was cancelled" : "no memory to build the index");
    }
    *index_out = &d->base;
    return OMEN_OK;
}

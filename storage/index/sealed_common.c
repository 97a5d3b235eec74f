/* What the sealed graph's builder, search and file share: layout, internal vectors, huge pages. Threads: no
 * state. */
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "common/bytes.h"
#include "common/mem.h"
#include "storage/index/compact.h"
#include "storage/kernel/kernel.h"

#define HUGE_PAGE (2u << 20)
#define HUGE_LEAST 4u
#define SMALL_PAGE 4096u

void sealed_layout_init(struct sealed_layout *layout, uint32_t padded, bool compact)
{
    if (compact) {
        *layout = (struct sealed_layout){ .row_bytes = COMPACT_ROW_BYTES };
        return;
    }
    layout->ids = padded * 4;
    layout->f = layout->ids + SEALED_DEGREE * 4;
    layout->g = layout->f + SEALED_DEGREE * 2;
    layout->own = layout->g + SEALED_DEGREE * 2;
    layout->head = layout->own + padded;
    layout->row_bytes = layout->head + (uint32_t)sizeof(struct sealed_head);
}

void sealed_internal(const struct sealed *s, const float *vector, bool augment, float *out)
{
    uint32_t kept = s->pca.kept != 0 ? s->pca.kept : s->rows.dim;
    float rest = 0;
    if (s->pca.kept != 0 && augment)
        pca_apply(&s->pca, vector, out, &rest);
    else if (s->pca.kept != 0)
        pca_apply_coarse(&s->pca, vector, out);
    else
        memcpy(out, vector, kept * sizeof(float));
    memset(out + kept, 0, (s->padded - kept) * sizeof(float));
    if (!augment) return;
    if (s->rows.metric == METRIC_IP) rest = s->norm_max - kernel_get()->dot_f32(out, out, kept);
    if (s->dim > kept) out[kept] = rest > 0 ? sqrtf(rest) : 0;
}

void sealed_rotate(const struct sealed *s, float *v)
{
    for (uint32_t i = 0; i < s->padded; i++) v[i] -= s->mean[i];
    rotation_apply(&s->rotation, v);
}

void *sealed_pages_new(size_t bytes, size_t *mapped_out)
{
    bool huge = bytes >= HUGE_LEAST * HUGE_PAGE; /* in fewer, most of the last one would be for nothing */
    size_t mapped = align_up(bytes + 1, huge ? HUGE_PAGE : SMALL_PAGE);
    void *pages = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *mapped_out = mapped;
    if (pages == MAP_FAILED) return NULL;
    if (huge) (void)madvise(pages, mapped, MADV_HUGEPAGE);
    return pages;
}

void sealed_pages_free(void *pages, size_t mapped)
{
    if (pages != NULL) munmap(pages, mapped);
}

void sealed_dim_set(struct sealed *s, uint32_t kept)
{
    s->dim = kept != 0 ? kept + 1 : s->rows.dim + (s->rows.metric == METRIC_IP);
    s->padded = (s->dim + CODE_DIM_ALIGN - 1) / CODE_DIM_ALIGN * CODE_DIM_ALIGN;
    sealed_layout_init(&s->layout, s->padded, s->compact != NULL);
}

struct sealed *sealed_new(const struct index_rows *rows)
{
    struct sealed *s = mem_calloc(1, sizeof *s);
    if (s == NULL) return NULL;
    s->base = (struct index){ &sealed_ops, rows->dim, rows->metric };
    s->rows = *rows;
    s->count = rows->count;
    sealed_dim_set(s, 0);
    return s;
}

uint32_t sealed_slot(const struct sealed *s, uint32_t node)
{
    return s->compact != NULL ? s->compact->slots[node] : sealed_head(s, sealed_row(s, node))->slot;
}

uint32_t sealed_degree(const struct sealed *s, uint32_t node)
{
    if (s->compact == NULL) return sealed_head(s, sealed_row(s, node))->degree;
    const uint32_t *ids = sealed_ids(s, sealed_row(s, node));
    uint32_t degree = 0;
    while (degree < SEALED_DEGREE && ids[degree] != node) degree++;
    return degree;
}

void sealed_free(struct index *index)
{
    struct sealed *s = (struct sealed *)index;
    if (s->file_map != NULL) {
        vfs_unmap(s->file, s->file_map, s->file_bytes);
        vfs_close(s->file);
    } else
        sealed_pages_free(s->graph, s->graph_bytes);
    compact_free(s->compact);
    sealed_leaders_free(&s->leaders);
    mem_free(s->flat.groups);
    mem_free(s->flat.scales);
    mem_free(s->mean);
    pca_free(&s->pca);
    mem_free(s);
}

#define CURVE_SLACK                                                                                          \
    0.005f /* the curve is less 1.65 standard errors: a target this little above its end is met */

static const uint32_t curve_k[SEALED_CURVE_KS] = { 1, 10, 100 };

/* Where the values, ascending, reach `wanted` first: a place between points; points when they never do. */
static float reach_at(const float *values, uint32_t points, float wanted)
{
    for (uint32_t i = 0; i < points; i++) {
        if (values[i] < wanted) continue;
        if (i == 0) return 0;
        return (float)i - (values[i] - wanted) / (values[i] - values[i - 1]);
    }
    return (float)points;
}

static uint32_t curve_row(uint32_t k) /* the curve of the next larger k is the careful choice */
{
    uint32_t row = 0;
    while (row + 1 < SEALED_CURVE_KS && curve_k[row] < k) row++;
    return row;
}

#define BELOW_TARGET 0.95f /* from this target on few queries may be below 0.8 */
#define BELOW_SHARE 0.02f
#define BELOW_PRICE 0.010f /* most recall beyond the target that is spent on that */

/* Slack of the stop rule for one curve; 0 when the target is beyond its end. */
static float slack_at(const struct sealed_curve *curve, uint32_t row, float target)
{
    uint32_t points = curve->slack_points;
    float above[SEALED_CURVE_POINTS], at = reach_at(curve->slack_recall[row], points, target);
    if (at >= (float)points) {
        if (target > curve->slack_recall[row][points - 1] + CURVE_SLACK) return 0;
        at = (float)points - 1;
    }
    if (target >= BELOW_TARGET && row > 0) {
        for (uint32_t i = 0; i < points; i++) above[i] = 1 - curve->slack_below[row][i];
        float few = reach_at(above, points, 1 - BELOW_SHARE);
        at = fmaxf(at, fminf(few, reach_at(curve->slack_recall[row], points, target + BELOW_PRICE)));
        if (at > (float)points - 1) at = (float)points - 1;
    }
    uint32_t i = (uint32_t)at;
    if (i + 1 >= points) return curve->slack[points - 1];
    return curve->slack[i] + (at - (float)i) * (curve->slack[i + 1] - curve->slack[i]);
}

bool sealed_pace_choose(const struct sealed *s, uint32_t k, float recall_target, struct sealed_pace *pace_out)
{
    const struct sealed_curve *curve = &s->curve;
    uint32_t row = curve_row(k);
    *pace_out = (struct sealed_pace){ 0, INFINITY, 0 };
    if (curve->slack_points > 0) {
        float slack = slack_at(curve, row, recall_target);
        if (slack > 0 && curve_k[row] != k && row > 0) { /* between two: the more careful of both */
            float lower = slack_at(curve, row - 1, recall_target);
            slack = lower > 0 ? fmaxf(slack, lower) : 0;
        }
        if (slack > 0) {
            uint32_t width = 2 * k > SEALED_RULE_EFFORT ? 2 * k : SEALED_RULE_EFFORT;
            *pace_out = (struct sealed_pace){ width, slack, curve->decay };
            return true;
        }
    }
    uint32_t effort = sealed_effort(s, k, recall_target);
    if (effort == SEALED_EFFORT_SCAN) return false;
    pace_out->effort = effort;
    return true;
}

uint32_t sealed_effort(const struct sealed *s, uint32_t k, float recall_target)
{
    const struct sealed_curve *curve = &s->curve;
    if (curve->points == 0) return 0;
    const float *recall = curve->recall[curve_row(k)];
    for (uint32_t i = 0; i < curve->points; i++) {
        if (recall[i] < recall_target) continue;
        if (i == 0) return curve->effort[0];
        float part = (recall_target - recall[i - 1]) / (recall[i] - recall[i - 1]);
        return curve->effort[i - 1] +
                (uint32_t)ceilf(part * (float)(curve->effort[i] - curve->effort[i - 1]));
    }
    return recall_target <= recall[curve->points - 1] + CURVE_SLACK ? curve->effort[curve->points - 1]
                                                                    : SEALED_EFFORT_SCAN;
}

#define RESCORE_SLACK 6 /* rows rescored beside k and a quarter of it */
#define REDUCED_SHARE 6 /* reduced rows: one more for so many in the pool */

uint32_t sealed_want(const struct sealed *s, uint32_t k, uint32_t effort)
{
    if (s->lossless && s->rows.metric == METRIC_L2) return k;
    if (s->compact != NULL && s->pca.kept == 0)
        return k + k / 2 + 4 * RESCORE_SLACK; /* compact_cut says how many of them */
    return k + k / 4 + RESCORE_SLACK + (s->pca.kept != 0 ? effort / REDUCED_SHARE : 0);
}

/* Boxes around groups of places; see place_tree.h. */
#include "storage/payload/place_tree.h"

#include <math.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"

#define ESTIMATE_PLACES 8192u /* boxes of no more are not looked into for an estimate */

static struct geo_rect around_places(const struct geo_point *places, uint32_t count)
{
    struct geo_rect r = { places[0], places[0] };
    for (uint32_t i = 1; i < count; i++) {
        r.low.lon = fmin(r.low.lon, places[i].lon);
        r.low.lat = fmin(r.low.lat, places[i].lat);
        r.high.lon = fmax(r.high.lon, places[i].lon);
        r.high.lat = fmax(r.high.lat, places[i].lat);
    }
    return r;
}

static struct geo_rect around_boxes(const struct geo_rect *boxes, uint32_t count)
{
    struct geo_rect r = boxes[0];
    for (uint32_t i = 1; i < count; i++) {
        r.low.lon = fmin(r.low.lon, boxes[i].low.lon);
        r.low.lat = fmin(r.low.lat, boxes[i].low.lat);
        r.high.lon = fmax(r.high.lon, boxes[i].high.lon);
        r.high.lat = fmax(r.high.lat, boxes[i].high.lat);
    }
    return r;
}

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

bool place_tree_init(struct place_tree *tree, const struct geo_point *places, uint32_t count)
{
    *tree = (struct place_tree){ .places = places, .count = count };
    for (uint32_t below = count, group = PLACE_GROUP;
            below > 0 && (tree->levels == 0 || below > PLACE_FANOUT); group = PLACE_FANOUT) {
        uint32_t n = below / group + (below % group != 0), level = tree->levels;
        CHECK(level < PLACE_LEVELS_MAX); /* 32 x 16^7 is above 2^32 */
        struct geo_rect *boxes = mem_alloc((size_t)n * sizeof *boxes);
        if (boxes == NULL) return false;
        tree->boxes[level] = boxes;
        tree->counts[level] = n;
        tree->levels++;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t first = i * group, members = least(group, below - first);
            boxes[i] = level == 0 ? around_places(places + first, members)
                                  : around_boxes(tree->boxes[level - 1] + first, members);
        }
        below = n;
    }
    return true;
}

void place_tree_fini(struct place_tree *tree)
{
    for (uint32_t i = 0; i < tree->levels; i++) mem_free(tree->boxes[i]);
    tree->levels = 0;
}

uint64_t place_tree_bytes(const struct place_tree *tree)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < tree->levels; i++) bytes += tree->counts[i] * sizeof *tree->boxes[i];
    return bytes;
}

/* ---- walks ---- */

struct search {
    const struct place_tree *tree;
    const struct geo_region *region;
    void (*run)(void *arg, uint32_t first, uint32_t end);
    void *arg;
    uint32_t first, end; /* of the run that is not told yet */
};

static void found(struct search *s, uint32_t first, uint32_t end)
{
    if (s->end != first) {
        if (s->end > s->first) s->run(s->arg, s->first, s->end);
        s->first = first;
    }
    s->end = end;
}

/* Places under a box. */
static uint64_t under(uint32_t level)
{
    uint64_t n = PLACE_GROUP;
    for (; level > 0; level--) n *= PLACE_FANOUT;
    return n;
}

static void box_search(struct search *s, uint32_t level, uint32_t i)
{
    const struct place_tree *t = s->tree;
    uint64_t n = under(level), first = i * n, end = first + n < t->count ? first + n : t->count;
    enum geo_side side = geo_region_side(s->region, &t->boxes[level][i]);
    if (side == GEO_OUTSIDE) return;
    if (side == GEO_INSIDE) {
        found(s, (uint32_t)first, (uint32_t)end);
    } else if (level == 0) {
        for (uint32_t p = (uint32_t)first; p < end; p++)
            if (geo_holds(s->region->filter, t->places[p])) found(s, p, p + 1);
    } else {
        uint32_t child = i * PLACE_FANOUT, last = least(child + PLACE_FANOUT, t->counts[level - 1]);
        for (; child < last; child++) box_search(s, level - 1, child);
    }
}

void place_tree_runs(const struct place_tree *tree, const struct geo_region *region,
        void (*run)(void *arg, uint32_t first, uint32_t end), void *arg)
{
    struct search s = { .tree = tree, .region = region, .run = run, .arg = arg };
    if (tree->levels == 0) return;
    for (uint32_t i = 0; i < tree->counts[tree->levels - 1]; i++) box_search(&s, tree->levels - 1, i);
    if (s.end > s.first) run(arg, s.first, s.end);
}

static double box_estimate(const struct place_tree *t, const struct geo_region *region, uint32_t level,
        uint32_t i)
{
    uint64_t n = under(level), first = i * n, end = first + n < t->count ? first + n : t->count;
    enum geo_side side = geo_region_side(region, &t->boxes[level][i]);
    if (side == GEO_OUTSIDE) return 0;
    if (side == GEO_INSIDE) return (double)(end - first);
    if (level == 0 || n <= ESTIMATE_PLACES)
        return fmax((double)(end - first) * geo_region_share(region, &t->boxes[level][i]), 0.5);
    double sum = 0;
    uint32_t child = i * PLACE_FANOUT, last = least(child + PLACE_FANOUT, t->counts[level - 1]);
    for (; child < last; child++) sum += box_estimate(t, region, level - 1, child);
    return sum;
}

double place_tree_estimate(const struct place_tree *tree, const struct geo_region *region)
{
    double sum = 0;
    for (uint32_t i = 0; tree->levels > 0 && i < tree->counts[tree->levels - 1]; i++)
        sum += box_estimate(tree, region, tree->levels - 1, i);
    return sum;
}

/* ---- the order ---- */

static uint32_t cell(double degrees, double range)
{
    double at = (degrees + range) / (2 * range) * 4294967296.0;
    return at >= 4294967295.0 ? UINT32_MAX : at <= 0 ? 0 : (uint32_t)at;
}

uint64_t place_order(struct geo_point place)
{
    uint32_t x = cell(place.lon, 180), y = cell(place.lat, 90);
    uint64_t order = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        uint32_t right = (x & bit) != 0, upper = (y & bit) != 0;
        order = order << 2 | ((3 * right) ^ upper);
        if (upper != 0) continue;
        if (right != 0) { /* turn the quarter as the curve enters it */
            x = ~x;
            y = ~y;
        }
        uint32_t swap = x;
        x = y;
        y = swap;
    }
    return order;
}

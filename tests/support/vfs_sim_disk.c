/* The disk of the simulated file system: inodes with what is in memory and what is durable, names that
 * wait for a sync_dir, and the crash. Called under sim->mutex. Determinism: lists keep the order of
 * making, so a seed decides all. */
#include "tests/support/vfs_sim_impl.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"

#define RESERVED_BYTES_MIN (16u << 20) /* address space, not memory: untouched pages cost nothing */
#define SWEEP_MIN 64

/* splitmix64 (Vigna) */
uint64_t sim_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* ---- inodes ---- */

struct sim_inode *sim_inode_new(struct vfs_sim *sim, bool is_directory)
{
    struct sim_inode *inode = mem_must_calloc(1, sizeof *inode);
    inode->is_directory = is_directory;
    inode->next_of_all = sim->all;
    sim->all = inode;
    sim->inode_count++;
    return inode;
}

static void inode_free(struct sim_inode *inode)
{
    while (inode->entries != NULL) {
        struct sim_entry *e = inode->entries;
        inode->entries = e->next;
        mem_free(e);
    }
    if (inode->data != NULL) {
        munmap(inode->data, inode->reserved);
        munmap(inode->durable, inode->reserved);
    }
    mem_free(inode);
}

static uint8_t *reserve(uint8_t *old, uint64_t old_bytes, uint64_t bytes)
{
    void *p = old == NULL
            ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
            : mremap(old, old_bytes, bytes, MREMAP_MAYMOVE);
    if (p == MAP_FAILED) panic("simulated file: no address space for %llu bytes", (unsigned long long)bytes);
    return p;
}

void sim_inode_reserve(struct sim_inode *inode, uint64_t len)
{
    if (len <= inode->reserved) return;
    if (inode->map_count > 0)
        panic("simulated file: a mapped file grows from %llu to %llu bytes; allocate before mapping",
                (unsigned long long)inode->reserved, (unsigned long long)len);
    uint64_t bytes = max_u64(align_up(len, 4096), max_u64(2 * inode->reserved, RESERVED_BYTES_MIN));
    inode->data = reserve(inode->data, inode->reserved, bytes);
    inode->durable = reserve(inode->durable, inode->reserved, bytes);
    inode->reserved = bytes;
}

static void mark_dirty(struct sim_inode *inode, uint64_t from, uint64_t to)
{
    if (from >= to) return;
    bool clean = inode->dirty_from >= inode->dirty_to;
    inode->dirty_from = clean ? from : min_u64(inode->dirty_from, from);
    inode->dirty_to = clean ? to : max_u64(inode->dirty_to, to);
    inode->written = max_u64(inode->written, to);
}

void sim_inode_write(struct sim_inode *inode, const void *src, uint64_t len, uint64_t offset)
{
    if (len == 0) return;
    CHECK(range_fits(offset, len, inode->reserved));
    memcpy(inode->data + offset, src, len);
    mark_dirty(inode, offset, offset + len);
    inode->len = max_u64(inode->len, offset + len);
}

/* Bytes behind the end stay zero, so that growing again reads zeros. */
void sim_inode_truncate(struct sim_inode *inode, uint64_t len)
{
    uint64_t end = min_u64(inode->len, inode->written);
    if (len < end) {
        memset(inode->data + len, 0, end - len);
        mark_dirty(inode, len, end);
    }
    inode->len = len;
}

static void set_clean(struct sim_inode *inode) { inode->dirty_from = inode->dirty_to = 0; }

void sim_inode_sync(struct sim_inode *inode)
{
    if (inode->dirty_from < inode->dirty_to)
        memcpy(inode->durable + inode->dirty_from, inode->data + inode->dirty_from,
                inode->dirty_to - inode->dirty_from);
    inode->durable_len = inode->len;
    set_clean(inode);
}

/* A length between the durable one and the one in memory: both ends are likely. */
static uint64_t crashed_len(const struct sim_inode *inode, uint64_t *rng)
{
    uint64_t choice = sim_random(rng) % 3;
    if (choice == 0 || inode->len == inode->durable_len) return inode->durable_len;
    if (choice == 1 || inode->len < inode->durable_len) return inode->len;
    return inode->durable_len + sim_random(rng) % (inode->len - inode->durable_len);
}

/* Into `dst` ([reserved], holding the durable bytes): of each dirty sector below `len` the new bytes or
 * not. How many survive differs from file to file, for "all" and "none" are crashes too. */
static void mix_sectors(const struct sim_inode *inode, uint8_t *dst, uint64_t len, uint64_t *rng)
{
    static const uint32_t PERCENT[] = { 0, 10, 50, 90, 100 };
    uint32_t percent = PERCENT[sim_random(rng) % 5];
    uint64_t end = min_u64(inode->dirty_to, min_u64(len, inode->len));
    uint64_t at = inode->dirty_from / VFS_SIM_SECTOR_BYTES * VFS_SIM_SECTOR_BYTES;
    for (; at < end; at += VFS_SIM_SECTOR_BYTES) {
        uint64_t n = min_u64(VFS_SIM_SECTOR_BYTES, end - at);
        if (memcmp(inode->data + at, inode->durable + at, n) == 0) continue;
        if (sim_random(rng) % 100 < percent) memcpy(dst + at, inode->data + at, n);
    }
}

void sim_inode_sync_failed(struct sim_inode *inode, uint64_t *rng)
{
    uint64_t len = crashed_len(inode, rng);
    if (inode->data != NULL) mix_sectors(inode, inode->durable, len, rng);
    inode->durable_len = len;
    set_clean(inode);
}

/* ---- names ---- */

struct sim_entry *sim_entry_find(struct sim_inode *directory, const char *name)
{
    for (struct sim_entry *e = directory->entries; e != NULL; e = e->next)
        if (strcmp(e->name, name) == 0) return e;
    return NULL;
}

struct sim_entry *sim_entry_get(struct sim_inode *directory, const char *name)
{
    struct sim_entry **end = &directory->entries;
    for (; *end != NULL; end = &(*end)->next)
        if (strcmp((*end)->name, name) == 0) return *end;
    size_t name_bytes = strlen(name) + 1;
    struct sim_entry *e = mem_must_calloc(1, sizeof *e + name_bytes);
    memcpy(e->name, name, name_bytes);
    *end = e;
    return e;
}

void sim_change_names(struct vfs_sim *sim, struct sim_inode *directory, struct sim_entry *entry,
        struct sim_inode *after, struct sim_inode *second_directory, struct sim_entry *second,
        struct sim_inode *second_after)
{
    struct sim_change *c = mem_must_calloc(1, sizeof *c);
    c->names[0].directory = directory;
    c->names[0].entry = entry;
    c->names[0].after = after;
    c->names[1].directory = second_directory;
    c->names[1].entry = second;
    c->names[1].after = second_after;
    c->name_count = second == NULL ? 1 : 2;
    entry->now = after;
    if (second != NULL) second->now = second_after;
    *sim->changes_end = c;
    sim->changes_end = &c->next;
}

static bool change_is_in(const struct sim_change *c, const struct sim_inode *directory)
{
    return c->names[0].directory == directory || (c->name_count == 2 && c->names[1].directory == directory);
}

/* Older changes of the same names, in a directory that is not synced, are overtaken by `c`. */
static void forget_overtaken(struct vfs_sim *sim, const struct sim_change *c)
{
    for (struct sim_change *old = sim->changes; old != c; old = old->next)
        for (int i = 0; i < old->name_count; i++)
            for (int k = 0; k < c->name_count; k++)
                if (old->names[i].entry == c->names[k].entry) old->names[i].after = c->names[k].after;
}

void sim_sync_directory(struct vfs_sim *sim, struct sim_inode *directory)
{
    struct sim_change **link = &sim->changes;
    while (*link != NULL) {
        struct sim_change *c = *link;
        if (!change_is_in(c, directory)) {
            link = &c->next;
            continue;
        }
        forget_overtaken(sim, c);
        for (int i = 0; i < c->name_count; i++) c->names[i].entry->durable = c->names[i].after;
        *link = c->next;
        mem_free(c);
    }
    sim->changes_end = link;
}

/* ---- life ---- */

static void mark(struct sim_inode *inode, bool durable_too)
{
    if (inode == NULL || inode->reachable) return;
    inode->reachable = true;
    for (struct sim_entry *e = inode->entries; e != NULL; e = e->next) {
        mark(e->now, durable_too);
        if (durable_too) mark(e->durable, durable_too);
    }
}

uint64_t sim_used_bytes(struct vfs_sim *sim)
{
    uint64_t used = 0;
    mark(sim->root, false);
    for (struct sim_handle *h = sim->handles; h != NULL; h = h->next) mark(h->inode, false);
    for (struct sim_inode *i = sim->all; i != NULL; i = i->next_of_all) {
        if (i->reachable && !i->ghost) used += align_up(i->len, 4096);
        i->reachable = false;
    }
    return used;
}

void sim_sweep(struct vfs_sim *sim)
{
    if (sim->inode_count < 2 * sim->inode_count_live + SWEEP_MIN) return;
    mark(sim->root, true);
    for (struct sim_change *c = sim->changes; c != NULL; c = c->next)
        for (int i = 0; i < c->name_count; i++) {
            mark(c->names[i].directory, true);
            mark(c->names[i].after, true);
        }
    for (struct sim_handle *h = sim->handles; h != NULL; h = h->next) mark(h->inode, true);
    struct sim_inode **link = &sim->all;
    while (*link != NULL) {
        struct sim_inode *inode = *link;
        if (inode->reachable) {
            inode->reachable = false;
            link = &inode->next_of_all;
            continue;
        }
        *link = inode->next_of_all;
        inode_free(inode);
        sim->inode_count--;
    }
    sim->inode_count_live = sim->inode_count;
}

static void drop_changes(struct vfs_sim *sim)
{
    while (sim->changes != NULL) {
        struct sim_change *c = sim->changes;
        sim->changes = c->next;
        mem_free(c);
    }
    sim->changes_end = &sim->changes;
}

void sim_disk_free(struct vfs_sim *sim)
{
    drop_changes(sim);
    while (sim->all != NULL) {
        struct sim_inode *inode = sim->all;
        sim->all = inode->next_of_all;
        inode_free(inode);
    }
}

/* ---- crash ---- */

static struct sim_inode *crashed_copy(struct vfs_sim *into, struct sim_inode *inode, uint64_t *rng);

static void copy_file(struct sim_inode *to, const struct sim_inode *from, uint64_t *rng)
{
    uint64_t len = crashed_len(from, rng), end = min_u64(len, from->written);
    sim_inode_reserve(to, len);
    if (end > 0) {
        memcpy(to->durable, from->durable, end);
        mix_sectors(from, to->durable, len, rng);
        memcpy(to->data, to->durable, end);
    }
    to->written = end;
    to->len = to->durable_len = len;
}

static void copy_directory(struct vfs_sim *into, struct sim_inode *to, struct sim_inode *from, uint64_t *rng)
{
    for (struct sim_entry *e = from->entries; e != NULL; e = e->next) {
        if (e->after_crash == NULL) continue;
        struct sim_entry *copy = sim_entry_get(to, e->name);
        copy->now = copy->durable = crashed_copy(into, e->after_crash, rng);
    }
}

static struct sim_inode *crashed_copy(struct vfs_sim *into, struct sim_inode *inode, uint64_t *rng)
{
    if (inode->copy != NULL) return inode->copy;
    inode->copy = sim_inode_new(into, inode->is_directory);
    if (inode->is_directory)
        copy_directory(into, inode->copy, inode, rng);
    else
        copy_file(inode->copy, inode, rng);
    return inode->copy;
}

struct sim_inode *sim_disk_crash(struct vfs_sim *sim, struct vfs_sim *into, uint64_t seed)
{
    uint64_t rng = seed;
    for (struct sim_inode *i = sim->all; i != NULL; i = i->next_of_all) {
        if (into == sim) i->ghost = true;
        i->copy = NULL;
        for (struct sim_entry *e = i->entries; e != NULL; e = e->next) e->after_crash = e->durable;
    }
    uint32_t percent = (uint32_t)(sim_random(&rng) % 5) * 25;
    for (const struct sim_change *c = sim->changes; c != NULL; c = c->next) {
        bool kept = sim_random(&rng) % 100 < percent;
        for (int i = 0; kept && i < c->name_count; i++) c->names[i].entry->after_crash = c->names[i].after;
    }
    struct sim_inode *root = crashed_copy(into, sim->root, &rng);
    if (into == sim) drop_changes(sim);
    return root;
}

void sim_disk_sync_all(struct vfs_sim *sim)
{
    for (struct sim_inode *i = sim->all; i != NULL; i = i->next_of_all) {
        if (!i->is_directory) sim_inode_sync(i);
        for (struct sim_entry *e = i->entries; e != NULL; e = e->next) e->durable = e->now;
    }
    drop_changes(sim);
}

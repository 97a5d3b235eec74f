/* A node's disk. All files but LMDB's are in a vfs_sim: a power cut keeps of what was not synced what its seed says.
 *
 * LMDB maps real files, so its data.mdb is a real one, on a file system in memory where there is one. What a cut
 * leaves of it:
 *   - what was committed, for every commit is synced before it returns: nothing else is ever written to the file;
 *   - when the cut falls between two changes of the simulated disk with a commit between them, one of: the file after the
 * commit, the file before it, or the file before it with some of the commit's new pages (LMDB writes pages that the
 * old
 *     state does not use, syncs, then writes one of the two meta pages);
 *   - nothing, when the directory that it lies in is gone with the cut.
 * So the product's order of syncs around a commit (MERGING, CHECKSUM) is put to the test, LMDB's own is taken as it
 * is. Real syncs are left out (main.c): no real power fails here. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/check.h"
#include "tests/sim/sim.h"

#define FILE_BYTES_MAX (64u << 20)
#define PAGE_BYTES 4096u
#define META_PAGES 2u

static enum omen_err lost_power(struct err *err) { return err_set(err, OMEN_EIO, NULL, "the power is cut"); }

/* ---- LMDB's file ---- */

static uint8_t *real_file(const char *path, size_t *len_out)
{
    uint8_t *bytes = NULL;
    *len_out = 0;
    (void)!vfs_read_file(vfs_posix(), path, FILE_BYTES_MAX, &bytes, len_out, NULL);
    return bytes;
}

void sim_disk_watch(struct sim_disk *d, const char *store_dir)
{
    if (d->cut_in == 0 || d->is_cut) return;
    snprintf(d->watched, sizeof d->watched, "%s/meta/data.mdb", store_dir);
    d->before = real_file(d->watched, &d->before_len);
    d->commit_at = 0;
}

void sim_disk_unwatch(struct sim_disk *d)
{
    if (!d->undo) {
        mem_free(d->before);
        d->before = NULL;
    }
}

static bool watched_changed(const struct sim_disk *d)
{
    size_t len;
    uint8_t *now = real_file(d->watched, &len);
    bool same = now != NULL && len == d->before_len && memcmp(now, d->before, len) == 0;
    mem_free(now);
    return !same;
}

/* The commit was not whole when the power went. */
static void commit_undo(struct sim_disk *d)
{
    size_t len;
    uint8_t *now = real_file(d->watched, &len);
    struct world *w = d->sim->w;
    if (now == NULL) return; /* its replica has ended meanwhile */
    bool mixed = world_chance(w, 500);
    size_t longest = mixed && len > d->before_len ? len : d->before_len;
    uint8_t *after = mem_must_calloc(1, longest);
    memcpy(after, d->before, d->before_len);
    for (size_t at = META_PAGES * PAGE_BYTES; mixed && at + PAGE_BYTES <= len; at += PAGE_BYTES)
        if (world_chance(w, 500)) memcpy(after + at, now + at, PAGE_BYTES);
    struct vfs_file *f = NULL;
    struct err err = { 0 };
    enum omen_err rc = vfs_open(vfs_posix(), d->watched, VFS_WRITE, &f, &err);
    if (rc == OMEN_OK) rc = vfs_truncate(f, longest, &err);
    if (rc == OMEN_OK) rc = vfs_pwrite(f, after, longest, 0, &err);
    vfs_close(f);
    if (rc != OMEN_OK) world_fail(w, "%s", err.message);
    d->sim->counts.undone++;
    world_note(w, "undone", mixed, d->before_len, len);
    mem_free(after);
    mem_free(now);
}

/* ---- cuts ---- */

void sim_disk_cut(struct sim_disk *d)
{
    if (d->is_cut) return;
    d->is_cut = true;
    d->photo = vfs_sim_after_crash(d->vfs, world_below(d->sim->w, UINT32_MAX));
}

/* ---- no room ---- */

static bool is_full(const struct sim_disk *d)
{
    const struct world_node *n = &d->sim->w->nodes[d->place];
    return n->world->now_ms < n->full_until_ms;
}

/* Growth is refused by the simulated disk itself; what takes a name or a directory's block now and then. What lies in room
 * that is there goes on, and so does a sync: files are allocated before they are written (D1). */
static enum omen_err room_for(struct sim_disk *d, enum vfs_hook_op op, struct err *err)
{
    bool name = op == VFS_HOOK_CREATE || op == VFS_HOOK_RENAME || op == VFS_HOOK_MKDIR;
    if (!name || !is_full(d) || !world_chance(d->sim->w, 300)) return OMEN_OK;
    d->sim->counts.names_refused++;
    return err_set(err, OMEN_EFULL, NULL, "the disk has no room for a name");
}

/* A little is left at first, so that it ends in the middle of something. */
void sim_disk_fill(struct sim_disk *d, bool full)
{
    struct vfs_sim *sim = d->photo != NULL ? d->photo : d->vfs;
    uint64_t free_bytes = 0, total = 0;
    vfs_sim_set_capacity(sim, 0);
    if (!full) return;
    if (vfs_free_space(vfs_sim_vfs(sim), "/", &free_bytes, &total, NULL) != OMEN_OK) panic("no figures");
    vfs_sim_set_capacity(sim, total - free_bytes + 4096 * world_below(d->sim->w, 6) + 1);
}

static struct sim *sim_now;

struct sim_disk *sim_disk_of(const char *path)
{
    for (uint32_t i = 0; sim_now != NULL && i < WORLD_NODES; i++) {
        struct sim_disk *d = &sim_now->nodes[i].disk;
        size_t len = strlen(d->root);
        if (strncmp(path, d->root, len) == 0 && path[len] == '/') return d;
    }
    return NULL;
}

bool sim_disk_refuses(const char *path)
{
    struct sim_disk *d = sim_disk_of(path);
    bool refused = d != NULL && is_full(d) && world_chance(sim_now->w, 600);
    if (refused) sim_now->counts.lmdb_refused++;
    return refused;
}

/* Before each change of the simulated disk. */
static enum omen_err before_change(void *arg, enum vfs_hook_op op, struct err *err)
{
    struct sim_disk *d = arg;
    if (d->is_cut) return lost_power(err);
    enum omen_err room = room_for(d, op, err);
    if (room != OMEN_OK) return room;
    if (d->cut_in == 0) return OMEN_OK;
    if (d->before != NULL && d->commit_at == 0 && watched_changed(d)) d->commit_at = d->cut_in;
    if (--d->cut_in > 0) return OMEN_OK;
    /* This change and the commit are neighbours: the cut may have been in the commit. */
    d->undo = d->before != NULL && d->commit_at == 1 && world_chance(d->sim->w, 700);
    sim_disk_cut(d);
    d->sim->counts.power_cuts++;
    return lost_power(err);
}

/* ---- life ---- */

static void hook_up(struct sim_disk *d)
{
    vfs_hook_init(&d->hook, vfs_sim_vfs(d->vfs), before_change, d);
    d->is_cut = d->undo = false;
    d->cut_in = 0;
}

static void dirs_make(struct vfs *vfs, const char *dir)
{
    char part[SIM_PATH_BYTES];
    for (const char *at = dir; at != NULL;) {
        at = strchr(at + 1, '/');
        snprintf(part, sizeof part, "%.*s", at != NULL ? (int)(at - dir) : (int)strlen(dir), dir);
        if (vfs_mkdir(vfs, part, NULL) != OMEN_OK) panic("cannot make %s", part);
    }
}

void sim_disk_init(struct sim_disk *d, struct sim *sim, uint32_t place, uint64_t seed)
{
    *d = (struct sim_disk){ .sim = sim, .place = place, .vfs = vfs_sim_new(seed) };
    sim_now = sim;
    snprintf(d->root, sizeof d->root, "%.500s/n%u", sim->dir, place + 1);
    dirs_make(vfs_sim_vfs(d->vfs), d->root);
    vfs_sim_sync_all(d->vfs);
    if (vfs_mkdir(vfs_posix(), d->root, NULL) != OMEN_OK) panic("cannot make %s", d->root);
    hook_up(d);
}

void sim_disk_fini(struct sim_disk *d)
{
    vfs_sim_free(d->vfs);
    if (d->photo != NULL) vfs_sim_free(d->photo);
    mem_free(d->before);
}

/* ---- the real directories follow the simulated ones ---- */

struct names {
    struct buf names;
};

static bool name_add(void *arg, const char *name)
{
    buf_append(arg, name, strlen(name) + 1);
    return true;
}

/* Removes below the real `dir` the directories that are not in the simulated one. */
static void real_follows(struct sim_disk *d, const char *dir, uint32_t depth)
{
    struct buf names;
    buf_init(&names);
    (void)!vfs_list(vfs_posix(), dir, name_add, &names, NULL);
    for (size_t at = 0; at < names.len; at += strlen((const char *)names.data + at) + 1) {
        char path[SIM_PATH_BYTES];
        bool there = false;
        snprintf(path, sizeof path, "%.400s/%.100s", dir, (const char *)names.data + at);
        if (vfs_exists(vfs_sim_vfs(d->vfs), path, &there, NULL) != OMEN_OK) panic("cannot look at %s", path);
        if (!there && vfs_remove_tree(vfs_posix(), path, NULL) != OMEN_OK) panic("cannot remove %s", path);
        if (there && depth > 0) real_follows(d, path, depth - 1);
    }
    buf_fini(&names);
}

/* r<id>, g<n>, meta */
#define DEPTH 2u

void sim_disk_restart(struct sim_disk *d)
{
    if (d->undo) commit_undo(d);
    mem_free(d->before);
    d->before = NULL;
    vfs_sim_free(d->vfs);
    d->vfs = d->photo;
    d->photo = NULL;
    hook_up(d);
    real_follows(d, d->root, DEPTH);
}

/* The test's side of the simulated file system: making it, breaking it, and finding what a path leads to.
 * Threads: the mutex is taken here and in vfs_sim_ops.c, never in vfs_sim_disk.c. */
#include "tests/support/vfs_sim.h"

#include <errno.h>
#include <string.h>

#include "common/check.h"
#include "common/mem.h"
#include "tests/support/vfs_sim_impl.h"

/* ---- paths ---- */

/* Copies the next component of *path to `name`, skipping "." and slashes; its length, 0 at the end, < 0 is
 * -errno. */
static int next_component(const char **path, char name[SIM_NAME_BYTES_MAX + 1])
{
    for (;;) {
        while (**path == '/') ++*path;
        size_t len = strcspn(*path, "/");
        if (len > SIM_NAME_BYTES_MAX) return -ENAMETOOLONG;
        memcpy(name, *path, len);
        name[len] = '\0';
        *path += len;
        if (strcmp(name, "..") == 0) return -EINVAL;
        if (strcmp(name, ".") != 0) return (int)len;
    }
}

int sim_find_place(struct vfs_sim *sim, const char *path, struct sim_place *place)
{
    char name[SIM_NAME_BYTES_MAX + 1];
    place->directory = NULL;
    place->inode = sim->root;
    for (;;) {
        int len = next_component(&path, name);
        if (len < 0) return -len;
        if (len == 0) return 0;
        if (place->inode == NULL) return ENOENT;
        if (!place->inode->is_directory) return ENOTDIR;
        place->directory = place->inode;
        memcpy(place->name, name, sizeof name);
        struct sim_entry *entry = sim_entry_find(place->directory, name);
        place->inode = entry == NULL ? NULL : entry->now;
    }
}

/* ---- making and breaking ---- */

static struct vfs_sim *sim_without_root(uint64_t seed)
{
    struct vfs_sim *sim = mem_must_calloc(1, sizeof *sim);
    sim->base.ops = &SIM_OPS;
    pthread_mutex_init(&sim->mutex, NULL);
    sim->rng = seed;
    sim->changes_end = &sim->changes;
    return sim;
}

struct vfs_sim *vfs_sim_new(uint64_t seed)
{
    struct vfs_sim *sim = sim_without_root(seed);
    sim->root = sim_inode_new(sim, true);
    return sim;
}

void vfs_sim_free(struct vfs_sim *sim)
{
    if (sim == NULL) return;
    while (sim->handles != NULL) sim_handle_free(sim, sim->handles);
    sim_disk_free(sim);
    pthread_mutex_destroy(&sim->mutex);
    mem_free(sim);
}

struct vfs *vfs_sim_vfs(struct vfs_sim *sim) { return &sim->base; }

struct vfs_sim *vfs_sim_after_crash(struct vfs_sim *sim, uint64_t seed)
{
    struct vfs_sim *after = sim_without_root(seed);
    pthread_mutex_lock(&sim->mutex);
    after->capacity_bytes = sim->capacity_bytes;
    after->root = sim_disk_crash(sim, after, seed);
    pthread_mutex_unlock(&sim->mutex);
    return after;
}

void vfs_sim_crash(struct vfs_sim *sim, uint64_t seed)
{
    pthread_mutex_lock(&sim->mutex);
    sim->root = sim_disk_crash(sim, sim, seed);
    sim->stopped = false;
    sim->fail_in = sim->stop_in = 0;
    pthread_mutex_unlock(&sim->mutex);
}

void vfs_sim_sync_all(struct vfs_sim *sim)
{
    pthread_mutex_lock(&sim->mutex);
    sim_disk_sync_all(sim);
    pthread_mutex_unlock(&sim->mutex);
}

void vfs_sim_fail_at(struct vfs_sim *sim, uint64_t n, int errno_value)
{
    pthread_mutex_lock(&sim->mutex);
    sim->fail_in = n;
    sim->fail_errno = errno_value;
    pthread_mutex_unlock(&sim->mutex);
}

void vfs_sim_stop_at(struct vfs_sim *sim, uint64_t n)
{
    pthread_mutex_lock(&sim->mutex);
    sim->stop_in = n;
    sim->stopped = false;
    pthread_mutex_unlock(&sim->mutex);
}

void vfs_sim_set_capacity(struct vfs_sim *sim, uint64_t bytes)
{
    pthread_mutex_lock(&sim->mutex);
    sim->capacity_bytes = bytes;
    pthread_mutex_unlock(&sim->mutex);
}

bool vfs_sim_flip_bit(struct vfs_sim *sim, const char *path, uint64_t offset_bytes, unsigned bit)
{
    CHECK(bit < 8);
    pthread_mutex_lock(&sim->mutex);
    struct sim_place place;
    bool found = sim_find_place(sim, path, &place) == 0 && place.inode != NULL &&
            !place.inode->is_directory && offset_bytes < place.inode->len;
    if (found) {
        place.inode->data[offset_bytes] ^= (uint8_t)(1u << bit);
        if (offset_bytes < place.inode->durable_len)
            place.inode->durable[offset_bytes] ^= (uint8_t)(1u << bit);
        if (place.inode->written <= offset_bytes) place.inode->written = offset_bytes + 1;
    }
    pthread_mutex_unlock(&sim->mutex);
    return found;
}

bool vfs_sim_is_durable(struct vfs_sim *sim, const char *path)
{
    pthread_mutex_lock(&sim->mutex);
    struct sim_place place;
    bool found = sim_find_place(sim, path, &place) == 0 && place.inode != NULL && place.directory != NULL;
    const struct sim_entry *entry = found ? sim_entry_find(place.directory, place.name) : NULL;
    bool durable = entry != NULL && entry->durable == place.inode &&
            place.inode->dirty_from >= place.inode->dirty_to && place.inode->durable_len == place.inode->len;
    pthread_mutex_unlock(&sim->mutex);
    return durable;
}

struct vfs_sim_counts vfs_sim_counts(struct vfs_sim *sim)
{
    pthread_mutex_lock(&sim->mutex);
    struct vfs_sim_counts counts = sim->counts;
    pthread_mutex_unlock(&sim->mutex);
    return counts;
}

/* Between the files of the simulated file system: vfs_sim.c (the test's side, paths), vfs_sim_ops.c (the
 * operations) and vfs_sim_disk.c (inodes, what is durable, the crash). All that is declared here runs
 * under sim->mutex. */
#ifndef OMEN_TESTS_SUPPORT_VFS_SIM_IMPL_H
#define OMEN_TESTS_SUPPORT_VFS_SIM_IMPL_H

#include <pthread.h>

#include "tests/support/vfs_sim.h"

#define SIM_FILE_BYTES_MAX (1ull << 40)
#define SIM_NAME_BYTES_MAX 255

/* A name in a directory. Entries stay for good (both pointers NULL when the name is gone): pending changes
 * point here. */
struct sim_entry {
    struct sim_entry *next;
    struct sim_inode *now, *durable;
    struct sim_inode *after_crash; /* scratch of one crash */
    char name[];
};

struct sim_inode {
    struct sim_inode *next_of_all;
    bool is_directory;
    bool ghost;                /* from before a crash in place: only old handles lead here */
    bool reachable;            /* scratch of the sweep */
    struct sim_inode *copy;    /* scratch of one crash */
    struct sim_entry *entries; /* directory: in order of first making */
    /* file: two buffers of `reserved` bytes, zero from `written` on */
    uint8_t *data, *durable;
    uint64_t reserved;
    uint64_t len, durable_len;
    uint64_t written;              /* end of the highest byte ever written */
    uint64_t dirty_from, dirty_to; /* bytes that may differ from durable; empty when from >= to */
    uint32_t map_count, handle_count;
};

/* A change of one or two names (a rename) that no sync_dir has made durable, oldest first. */
struct sim_change {
    struct sim_change *next;
    struct {
        struct sim_inode *directory;
        struct sim_entry *entry;
        struct sim_inode *after; /* NULL = gone */
    } names[2];
    int name_count;
};

struct sim_handle {
    struct vfs_file base; /* first: handles are cast */
    struct sim_handle *next, **link;
    struct sim_inode *inode;
    bool writable;
    char path[];
};

struct vfs_sim {
    struct vfs base; /* first: cast */
    pthread_mutex_t mutex;
    uint64_t rng;
    struct sim_inode *root, *all;
    uint64_t inode_count, inode_count_live; /* now, and after the last sweep */
    struct sim_change *changes, **changes_end;
    struct sim_handle *handles;
    uint64_t capacity_bytes;
    uint64_t fail_in, stop_in; /* changing operations from now; 0 = off */
    int fail_errno;
    bool stopped;
    struct vfs_sim_counts counts;
};

/* What a path leads to. */
struct sim_place {
    struct sim_inode *directory; /* NULL for the root itself */
    struct sim_inode *inode;     /* what is there now, or NULL */
    char name[SIM_NAME_BYTES_MAX + 1];
};

extern const struct vfs_ops SIM_OPS;

/* 0 or an errno; a missing last component is no error. */
int sim_find_place(struct vfs_sim *sim, const char *path, struct sim_place *place);
void sim_handle_free(struct vfs_sim *sim, struct sim_handle *h);

uint64_t sim_random(uint64_t *state);

struct sim_inode *sim_inode_new(struct vfs_sim *sim, bool is_directory);
/* Room for `len` bytes without moving what is mapped. */
void sim_inode_reserve(struct sim_inode *inode, uint64_t len);
void sim_inode_write(struct sim_inode *inode, const void *src, uint64_t len, uint64_t offset);
void sim_inode_truncate(struct sim_inode *inode, uint64_t len);
void sim_inode_sync(struct sim_inode *inode);
/* A sync that failed: some sectors made it, and all count as clean. */
void sim_inode_sync_failed(struct sim_inode *inode, uint64_t *rng);
/* Of files that a name or a handle leads to now, in whole 4 KiB blocks. */
uint64_t sim_used_bytes(struct vfs_sim *sim);

struct sim_entry *sim_entry_find(struct sim_inode *directory, const char *name); /* NULL when never used */
struct sim_entry *sim_entry_get(struct sim_inode *directory, const char *name);  /* makes it */
/* Changes names now and remembers it as not durable. `second` may be NULL (no rename). */
void sim_change_names(struct vfs_sim *sim, struct sim_inode *directory, struct sim_entry *entry,
        struct sim_inode *after, struct sim_inode *second_directory, struct sim_entry *second,
        struct sim_inode *second_after);
void sim_sync_directory(struct vfs_sim *sim, struct sim_inode *directory);

/* Frees inodes that neither names, changes nor handles lead to, when enough may have gathered. */
void sim_sweep(struct vfs_sim *sim);
void sim_disk_free(struct vfs_sim *sim);
/* The root of a copy of the disk after a crash; its inodes are made in `into`, which may be `sim`. */
struct sim_inode *sim_disk_crash(struct vfs_sim *sim, struct vfs_sim *into, uint64_t seed);
void sim_disk_sync_all(struct vfs_sim *sim);

#endif

/* A file system in memory that crashes, fills up and fails on command; for tests of everything that must
 * survive.
 *
 * What a crash keeps, as the harshest disk that POSIX allows and journaling file systems still are:
 *  - Bytes are durable after vfs_datasync of the file. Of the rest every 512-byte sector is kept or lost
 *    on its own, so a record may be torn anywhere, and later bytes may survive where earlier ones did not.
 *    Lost bytes read as what was durable before, or as zeros past the durable end. The length is the old
 *    or the new one or, of a file that grew, something between.
 *  - Names (create, rename, unlink, mkdir, rmdir) are durable after vfs_sync_dir of their directory. Of
 *    the rest every operation is kept or lost on its own; a rename as a whole. Syncing a file does not
 *    make its name durable.
 *  - A length given by vfs_allocate is durable after vfs_datasync like any other.
 *  - After a failed sync the unsynced bytes are a mixture on disk and count as clean: another sync
 *    succeeds and does not write them (as Linux does). Whoever goes on after a failed sync loses data
 *    here.
 *  - A failed write leaves a part of its bytes behind.
 *
 * Mappings show later writes and do not move. A mapped file may grow within what was reserved: 16 MiB, or
 * the largest length it had before the mapping; beyond that the test ends with a panic.
 * Paths: "a/b" is "/a/b"; ".." is refused. "/" exists, all other directories want vfs_mkdir.
 * Threads: all functions from any thread, one mutex. Random choices come from the seeds alone: the same
 * calls in the same order give the same bytes. Nothing here allocates through mem_alloc, so mem_fail_at
 * spares it. */
#ifndef OMEN_TESTS_SUPPORT_VFS_SIM_H
#define OMEN_TESTS_SUPPORT_VFS_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "common/vfs.h"

#define VFS_SIM_SECTOR_BYTES 512

struct vfs_sim;

struct vfs_sim *vfs_sim_new(uint64_t seed);
/* Frees files and whatever handles are still open. */
void vfs_sim_free(struct vfs_sim *sim);
struct vfs *vfs_sim_vfs(struct vfs_sim *sim); /* borrowed */

/* What a machine finds that starts after a crash now, as a file system of its own. `sim` is untouched: the
 * "crashed" code goes on in it, may be closed in peace, and other seeds give other crashes from the same
 * moment. Preferred. */
struct vfs_sim *vfs_sim_after_crash(struct vfs_sim *sim, uint64_t seed);
/* The same in place. Handles and mappings from before stay usable until closed, on files that no name
 * leads to any more: what the crashed code still does to open files changes nothing, but what it does by
 * path hits the new state. */
void vfs_sim_crash(struct vfs_sim *sim, uint64_t seed);
/* All bytes and names durable as they are: the end of a test's preparation. */
void vfs_sim_sync_all(struct vfs_sim *sim);

/* The n-th changing operation from now (1 = the next) fails with `errno_value` (EIO, ENOSPC), once.
 * Changing are: write, datasync, sync_dir, allocate, truncate, a creating open, rename, unlink, mkdir,
 * rmdir. n = 0 cancels. */
void vfs_sim_fail_at(struct vfs_sim *sim, uint64_t n, int errno_value);
/* From the n-th changing operation on all of them fail with EIO, as if the machine had stopped there;
 * reads work. A crash ends it. n = 0 cancels. */
void vfs_sim_stop_at(struct vfs_sim *sim, uint64_t n);
/* OMEN_EFULL past this many bytes (files in use, rounded up to 4 KiB each); 0 = no limit. */
void vfs_sim_set_capacity(struct vfs_sim *sim, uint64_t bytes);

/* Damage: inverts one bit (0..7) of the byte at `offset_bytes`, on disk and in memory. False when there is
 * none such. */
bool vfs_sim_flip_bit(struct vfs_sim *sim, const char *path, uint64_t offset_bytes, unsigned bit);

/* The file's bytes are durable as they are, under this name. */
bool vfs_sim_is_durable(struct vfs_sim *sim, const char *path);

struct vfs_sim_counts {
    uint64_t changing; /* all that vfs_sim_fail_at counts, failed ones included */
    uint64_t writes, bytes_written, datasyncs, dir_syncs, allocates, truncates, creates, renames, unlinks;
    uint64_t open_handles, open_mappings; /* now */
};
struct vfs_sim_counts vfs_sim_counts(struct vfs_sim *sim);

#endif

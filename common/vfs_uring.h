/* Batches of reads for vfs_posix, through io_uring; private to common. */
#ifndef OMEN_COMMON_VFS_URING_H
#define OMEN_COMMON_VFS_URING_H

#include "common/vfs.h"

struct vfs_batch *uring_batch_new(struct vfs *vfs, uint32_t reads_max);
void uring_batch_free(struct vfs_batch *batch);
/* Reads the first n of `reads` at once and says how many that were; 0 when there is no ring or one of these
 * reads came back short or failed: the caller then reads them another way. Nothing is left in flight. */
uint32_t uring_read(struct vfs_batch *batch, int fd, const struct vfs_read *reads, uint32_t count);
/* Is there a ring behind it? For tests and benches: false where the system refuses io_uring. */
bool uring_active(const struct vfs_batch *batch);

#endif

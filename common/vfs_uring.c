/* Several reads in flight by io_uring (liburing). A ring belongs to one batch and so to one thread.
 *
 * Containers often forbid io_uring (seccomp) and old kernels lack it: then a batch has no ring and its reads go
 * one by one. A ring that answers in a way that cannot be understood is given up for good. */
#include "common/vfs_uring.h"

#include <errno.h>
#include <liburing.h>

#include "common/check.h"
#include "common/mem.h"

#define RING_ENTRIES_MAX 256
#define SUBMIT_TRIES 1000 /* while the kernel is short of memory */

struct uring_batch {
    struct vfs_batch base; /* first */
    struct io_uring ring;
    bool active;
};

struct vfs_batch *uring_batch_new(struct vfs *vfs, uint32_t reads_max)
{
    struct uring_batch *batch = mem_calloc(1, sizeof *batch);
    if (batch == NULL) return NULL;
    batch->base = (struct vfs_batch){ vfs, reads_max < RING_ENTRIES_MAX ? reads_max : RING_ENTRIES_MAX };
    batch->active = io_uring_queue_init(batch->base.reads_max, &batch->ring, 0) == 0;
    return &batch->base;
}

static void ring_close(struct uring_batch *batch)
{
    if (batch->active) io_uring_queue_exit(&batch->ring);
    batch->active = false;
}

void uring_batch_free(struct vfs_batch *base)
{
    struct uring_batch *batch = (struct uring_batch *)base;
    ring_close(batch);
    mem_free(batch);
}

bool uring_active(const struct vfs_batch *base) { return ((const struct uring_batch *)base)->active; }

/* Waits for `wanted` completions; false when one of them is not a whole read. The memory of a read belongs to
 * the kernel until its completion, so nothing but all of them lets us go on. */
static bool completions_take(struct uring_batch *batch, const struct vfs_read *reads, uint32_t wanted)
{
    bool whole = true;
    for (uint32_t taken = 0; taken < wanted;) {
        struct io_uring_cqe *cqe;
        int rc = io_uring_wait_cqe(&batch->ring, &cqe);
        if (rc == -EINTR || rc == -EAGAIN) continue;
        CHECK(rc ==
                0); /* reads in flight and no way to learn of their end: their memory could not be freed */
        uint64_t i = io_uring_cqe_get_data64(cqe);
        CHECK(i < wanted);
        if (cqe->res < 0 || (size_t)cqe->res != reads[i].len) whole = false;
        io_uring_cqe_seen(&batch->ring, cqe);
        taken++;
    }
    return whole;
}

uint32_t uring_read(struct vfs_batch *base, int fd, const struct vfs_read *reads, uint32_t count)
{
    struct uring_batch *batch = (struct uring_batch *)base;
    if (!batch->active) return 0;
    uint32_t n = 0, submitted = 0, tries = 0;
    for (; n < count && n < base->reads_max && reads[n].len <= INT32_MAX; n++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&batch->ring);
        if (sqe == NULL) break;
        io_uring_prep_read(sqe, fd, reads[n].dst, (unsigned)reads[n].len, reads[n].offset);
        io_uring_sqe_set_data64(sqe, n);
    }
    if (n == 0) return 0;
    while (submitted < n) {
        int rc = io_uring_submit_and_wait(&batch->ring, submitted == 0 ? n : 0);
        bool again = rc == -EINTR || rc == -EAGAIN || rc == -EBUSY;
        if (again && ++tries < SUBMIT_TRIES) continue;
        if (rc <= 0) break;
        submitted += (uint32_t)rc;
    }
    bool whole = completions_take(batch, reads, submitted);
    if (submitted < n) ring_close(batch); /* some entries were never taken: not to be sent later */
    return whole && submitted == n ? n : 0;
}

/* A file system that calls the test before every changing operation of another one and then passes it on: the
 * place to photograph a crash (vfs_sim_after_crash) or to refuse exactly this operation.
 * Threads: `before` runs on the caller's thread of the operation, several at once if the code under test has
 * them. */
#ifndef OMEN_TESTS_SUPPORT_VFS_HOOK_H
#define OMEN_TESTS_SUPPORT_VFS_HOOK_H

#include "common/vfs.h"

enum vfs_hook_op {
    VFS_HOOK_CREATE,
    VFS_HOOK_WRITE,
    VFS_HOOK_DATASYNC,
    VFS_HOOK_ALLOCATE,
    VFS_HOOK_TRUNCATE,
    VFS_HOOK_RENAME,
    VFS_HOOK_UNLINK,
    VFS_HOOK_MKDIR,
    VFS_HOOK_RMDIR,
    VFS_HOOK_SYNC_DIR,
};

struct vfs_hook {
    struct vfs base;   /* give &hook->base to the code under test */
    struct vfs *inner; /* borrowed */
    /* OMEN_OK: go on; anything else is the operation's result, with the sentence in `err`. */
    enum omen_err (*before)(void *arg, enum vfs_hook_op op, struct err *err);
    void *arg;
};

void vfs_hook_init(struct vfs_hook *hook, struct vfs *inner,
        enum omen_err (*before)(void *arg, enum vfs_hook_op op, struct err *err), void *arg);

#endif

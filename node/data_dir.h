/* The data directory's outer shell: lock and identity. */
#ifndef OMEN_NODE_DATA_DIR_H
#define OMEN_NODE_DATA_DIR_H

#include "common/clock.h"
#include "common/vfs.h"

#define NODE_PATH_BYTES_MAX 4096
#define NODE_FILE_BYTES 64 /* NODE file, see README.md */

struct node_identity {
    uint64_t node_id;
    uint64_t incarnation; /* of the data; part of every token */
    uint64_t created_ms;
};

struct data_dir {
    struct vfs *vfs;
    char path[NODE_PATH_BYTES_MAX];
    int lock_fd;
    struct node_identity identity;
};

/* Create what is missing, lock, read or make the identity. OMEN_EBUSY: locked by another process. OMEN_ECORRUPT: NODE is
 * damaged, or missing beside data. */
OMEN_CHECKED enum omen_err data_dir_open(struct data_dir *dir, struct vfs *vfs, const char *path,
        struct clock *clock, struct err *err);
void data_dir_close(struct data_dir *dir);

/* "<data dir>/<name>" into `out` [NODE_PATH_BYTES_MAX]; paths are bounded at open. */
void data_dir_path(const struct data_dir *dir, const char *name, char *out);
/* "<data dir>/shards/<group>-<replica>". */
void data_dir_shard_path(const struct data_dir *dir, uint64_t group, uint64_t replica_id, char *out);
bool data_dir_parse_shard_name(const char *name, uint64_t *group_out, uint64_t *replica_id_out);

#endif

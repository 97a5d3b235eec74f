/* The data directory's outer shell: lock and identity. */
#ifndef OMEN_NODE_DATA_DIR_H
#define OMEN_NODE_DATA_DIR_H

#include "common/clock.h"
#include "common/query/point.h"
#include "common/vfs.h"

#define NODE_PATH_BYTES_MAX 4096
#define NODE_FILE_BYTES 64 /* NODE file, see data_dir.c */
#define NODE_FOUNDER_FILE_BYTES 160
#define NODE_CLUSTER_NAME_BYTES_MAX 63

/* What a data directory is for; it never changes from one to the other. */
enum data_dir_use {
    DATA_DIR_SINGLE, /* one node by itself: the identity is made at the first open */
    DATA_DIR_MEMBER, /* a member of a cluster: the identity is given by the cluster */
};

struct node_identity {
    uint64_t node_id;     /* 0: not part of a cluster yet */
    uint64_t incarnation; /* of the data; part of every token */
    uint64_t created_ms;
    uint64_t
            birth; /* DATA_DIR_MEMBER: random, of this disk's contents; tells a wiped disk from its predecessor */
    uint64_t cluster_id;         /* 0 = DATA_DIR_SINGLE, or not part of a cluster yet */
    uint32_t catalog_replica_id; /* its replica of the cluster group */
    bool founder;                /* the first node: the cluster may have to be begun still */
    /* While it is: how the cluster is to be called, and who asked for it. */
    char cluster_name[NODE_CLUSTER_NAME_BYTES_MAX + 1];
    struct op_id asked_as;
};

struct data_dir {
    struct vfs *vfs;
    char path[NODE_PATH_BYTES_MAX];
    int lock_fd;
    struct node_identity identity;
};

/* Create what is missing, lock, read or make the identity. OMEN_EBUSY: locked by another process. OMEN_ECORRUPT: NODE is
 * damaged, or missing beside data. OMEN_EINVAL: it is in the other use. */
OMEN_CHECKED enum omen_err data_dir_open(struct data_dir *dir, struct vfs *vfs, const char *path,
        enum data_dir_use use, struct clock *clock, struct err *err);
/* A member's identity, durable when this returns; birth and created_ms stay. */
OMEN_CHECKED enum omen_err data_dir_identify(struct data_dir *dir, const struct node_identity *identity,
        struct err *err);
void data_dir_close(struct data_dir *dir);

/* "<data dir>/<name>" into `out` [NODE_PATH_BYTES_MAX]; paths are bounded at open. */
void data_dir_path(const struct data_dir *dir, const char *name, char *out);
/* "<data dir>/shards/<group>-<replica>". */
void data_dir_shard_path(const struct data_dir *dir, uint64_t group, uint64_t replica_id, char *out);
bool data_dir_parse_shard_name(const char *name, uint64_t *group_out, uint64_t *replica_id_out);

#endif

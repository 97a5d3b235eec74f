/* Lock and identity of a data directory.
 *
 * NODE v2, 64 bytes, little-endian: 0 magic "OMND" | 4 u16 version | 6 u16 flags (1 founder) | 8 u32 crc32c of the rest |
 *   12 u32 replica of the cluster group | 16 u64 node id, 0 = in no cluster yet | 24 u64 incarnation | 32 u64 created_ms |
 *   40 u64 cluster id, 0 = none | 48 u64 birth, 0 = a single node's | 56 zero [8], checked
 * v1 is a single node's: zero where v2 has flags, replica, cluster id and birth.
 * v3, 160 bytes, is a founder's, and no other's: as v2, then 64 op id of who asked for the cluster: u64 client, u64 seq, u64
 *   issue_ms | 88 its name [64], NUL-padded | 152 zero [8], checked */
#include "common/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "node/data_dir.h"

#define NODE_MAGIC 0x444e4d4fu /* "OMND" */
#define NODE_FORMAT_VERSION 3
#define NODE_VERSION_PLAIN 2 /* of one that is no founder, or founded for nobody */
#define NODE_FLAG_FOUNDER 1u
#define PATH_ROOM 128 /* what names inside the directory may add */

void data_dir_path(const struct data_dir *dir, const char *name, char *out)
{
    snprintf(out, NODE_PATH_BYTES_MAX, "%.*s/%s", NODE_PATH_BYTES_MAX - PATH_ROOM, dir->path, name);
}

void data_dir_shard_path(const struct data_dir *dir, uint64_t group, uint64_t replica_id, char *out)
{
    char name[64];
    snprintf(name, sizeof name, "shards/%llu-%llu", (unsigned long long)group,
            (unsigned long long)replica_id);
    data_dir_path(dir, name, out);
}

bool data_dir_parse_shard_name(const char *name, uint64_t *group_out, uint64_t *replica_id_out)
{
    char *end;
    if (name[0] < '0' || name[0] > '9') return false;
    errno = 0;
    *group_out = strtoull(name, &end, 10);
    if (errno != 0 || *end != '-' || end[1] < '0' || end[1] > '9') return false;
    *replica_id_out = strtoull(end + 1, &end, 10);
    return errno == 0 && *end == '\0';
}

static enum omen_err lock_take(struct data_dir *dir, struct err *err)
{
    char path[NODE_PATH_BYTES_MAX];
    data_dir_path(dir, "LOCK", path);
    dir->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (dir->lock_fd < 0) return err_os(err, errno, "open", path);
    if (flock(dir->lock_fd, LOCK_EX | LOCK_NB) == 0) {
        char text[32];
        int len = snprintf(text, sizeof text, "%ld\n", (long)getpid());
        /* Only for people who look into the file: the lock is the flock. */
        if (ftruncate(dir->lock_fd, 0) != 0 || pwrite(dir->lock_fd, text, (size_t)len, 0) != len) errno = 0;
        return OMEN_OK;
    }
    int why = errno;
    char owner[32] = "";
    ssize_t n = pread(dir->lock_fd, owner, sizeof owner - 1, 0);
    if (n > 0) owner[strcspn(owner, "\n")] = '\0';
    close(dir->lock_fd);
    dir->lock_fd = -1;
    if (why != EWOULDBLOCK) return err_os(err, why, "lock", path);
    return err_set(err, OMEN_EBUSY, "data_dir", "%s is in use by another process (%s)", dir->path,
            owner[0] == '\0' ? "unknown" : owner);
}

static bool any_entry(void *arg, const char *name)
{
    *(bool *)arg = true;
    return false;
}

/* A directory that holds data but no identity has lost a file: making a new identity would hide that. */
static enum omen_err refuse_orphaned(struct data_dir *dir, const char *node_path, struct err *err)
{
    static const char *const holders[] = { "log", "shards", "catalog" };
    for (size_t i = 0; i < sizeof holders / sizeof *holders; i++) {
        char path[NODE_PATH_BYTES_MAX];
        data_dir_path(dir, holders[i], path);
        bool there = false, found = false;
        enum omen_err rc = vfs_exists(dir->vfs, path, &there, err);
        if (rc == OMEN_OK && there) rc = vfs_list(dir->vfs, path, any_entry, &found, err);
        if (rc != OMEN_OK) return rc;
        if (found)
            return err_corrupt(err, node_path, 0, "the identity file is missing although there are data");
    }
    return OMEN_OK;
}

static uint64_t random_id(void)
{
    uint64_t v = 0;
    while (v == 0) {
        if (getrandom(&v, sizeof v, 0) != (ssize_t)sizeof v) v = 0;
        v &= INT64_MAX; /* so that it is a positive integer in every client's language */
    }
    return v;
}

static uint32_t identity_crc(const uint8_t *raw, size_t len)
{
    return crc32c(crc32c(0, raw, 8), raw + 12, len - 12);
}

static enum omen_err identity_write(struct data_dir *dir, const char *path, struct err *err)
{
    const struct node_identity *id = &dir->identity;
    uint8_t raw[NODE_FOUNDER_FILE_BYTES] = { 0 };
    bool asked = id->founder && (id->asked_as.client != 0 || id->cluster_name[0] != '\0');
    size_t len = asked ? NODE_FOUNDER_FILE_BYTES : NODE_FILE_BYTES;
    store_u32(raw, NODE_MAGIC);
    store_u16(raw + 4, asked ? NODE_FORMAT_VERSION : NODE_VERSION_PLAIN);
    store_u16(raw + 6, id->founder ? NODE_FLAG_FOUNDER : 0);
    store_u32(raw + 12, id->catalog_replica_id);
    store_u64(raw + 16, id->node_id);
    store_u64(raw + 24, id->incarnation);
    store_u64(raw + 32, id->created_ms);
    store_u64(raw + 40, id->cluster_id);
    store_u64(raw + 48, id->birth);
    if (asked) {
        store_u64(raw + 64, id->asked_as.client);
        store_u64(raw + 72, id->asked_as.seq);
        store_u64(raw + 80, id->asked_as.issue_ms);
        memcpy(raw + 88, id->cluster_name, strlen(id->cluster_name));
    }
    store_u32(raw + 8, identity_crc(raw, len));
    return vfs_replace_file(dir->vfs, path, raw, len, err);
}

static enum omen_err identity_create(struct data_dir *dir, const char *path, enum data_dir_use use,
        struct clock *clock, struct err *err)
{
    enum omen_err rc = refuse_orphaned(dir, path, err);
    if (rc != OMEN_OK) return rc;
    dir->identity = (struct node_identity){ .created_ms = clock_wall_ms(clock) };
    if (use == DATA_DIR_SINGLE) {
        dir->identity.node_id = (random_id() & UINT32_MAX) | 1; /* placements name nodes by u32; never 0 */
        dir->identity.incarnation = random_id();
    } else {
        dir->identity.birth = random_id();
    }
    return identity_write(dir, path, err);
}

enum omen_err data_dir_identify(struct data_dir *dir, const struct node_identity *identity, struct err *err)
{
    char path[NODE_PATH_BYTES_MAX];
    data_dir_path(dir, "NODE", path);
    struct node_identity old = dir->identity;
    dir->identity = *identity;
    dir->identity.birth = old.birth;
    dir->identity.created_ms = old.created_ms;
    enum omen_err rc = identity_write(dir, path, err);
    if (rc != OMEN_OK) dir->identity = old;
    return rc;
}

static enum omen_err identity_check(const struct node_identity *id, const char *path, struct err *err)
{
    bool member = id->birth != 0, joined = id->cluster_id != 0;
    if (id->node_id > UINT32_MAX || (id->node_id == 0 && (!member || joined)))
        return err_corrupt(err, path, 16, "no node id");
    if (joined != (id->catalog_replica_id != 0)) return err_corrupt(err, path, 12, "half a cluster's member");
    if (member && joined != (id->node_id != 0)) return err_corrupt(err, path, 40, "half a cluster's member");
    if (!member && joined) return err_corrupt(err, path, 48, "half a cluster's member");
    return OMEN_OK;
}

/* What a founder's has beside. */
static enum omen_err founder_parse(struct node_identity *id, const char *path, const uint8_t *raw,
        struct err *err)
{
    id->asked_as = (struct op_id){ load_u64(raw + 64), load_u64(raw + 72), load_u64(raw + 80) };
    memcpy(id->cluster_name, raw + 88, sizeof id->cluster_name);
    size_t name = strnlen(id->cluster_name, sizeof id->cluster_name);
    if (!id->founder || name == sizeof id->cluster_name || (name == 0 && id->asked_as.client == 0))
        return err_corrupt(err, path, 88, "no founder's");
    for (size_t i = 88 + name; i < NODE_FOUNDER_FILE_BYTES; i++)
        if (raw[i] != 0) return err_corrupt(err, path, i, "not zero");
    return OMEN_OK;
}

static enum omen_err identity_parse(struct data_dir *dir, const char *path, const uint8_t *raw, size_t len,
        struct err *err)
{
    if (len < NODE_FILE_BYTES) return err_corrupt(err, path, 0, "wrong length");
    if (load_u32(raw) != NODE_MAGIC) return err_corrupt(err, path, 0, "wrong magic");
    uint16_t version = load_u16(raw + 4), flags = load_u16(raw + 6);
    if (version == 0 || version > NODE_FORMAT_VERSION) {
        return err_set(err, OMEN_EVERSION, "", "%s: format version %u, this program knows %d", path, version,
                NODE_FORMAT_VERSION);
    }
    bool asked = version == NODE_FORMAT_VERSION;
    if (len != (asked ? NODE_FOUNDER_FILE_BYTES : NODE_FILE_BYTES))
        return err_corrupt(err, path, 0, "wrong length");
    if (load_u32(raw + 8) != identity_crc(raw, len)) return err_corrupt(err, path, 8, "wrong checksum");
    if (flags & ~NODE_FLAG_FOUNDER) return err_corrupt(err, path, 6, "unknown flags");
    dir->identity = (struct node_identity){
        .node_id = load_u64(raw + 16),
        .incarnation = load_u64(raw + 24),
        .created_ms = load_u64(raw + 32),
        .cluster_id = load_u64(raw + 40),
        .birth = load_u64(raw + 48),
        .catalog_replica_id = load_u32(raw + 12),
        .founder = (flags & NODE_FLAG_FOUNDER) != 0,
    };
    for (size_t i = 56; i < NODE_FILE_BYTES; i++) {
        if (raw[i] != 0) return err_corrupt(err, path, i, "not zero");
    }
    enum omen_err rc = asked ? founder_parse(&dir->identity, path, raw, err) : OMEN_OK;
    return rc == OMEN_OK ? identity_check(&dir->identity, path, err) : rc;
}

static enum omen_err identity_open(struct data_dir *dir, enum data_dir_use use, struct clock *clock,
        struct err *err)
{
    char path[NODE_PATH_BYTES_MAX];
    data_dir_path(dir, "NODE", path);
    bool there;
    enum omen_err rc = vfs_exists(dir->vfs, path, &there, err);
    if (rc != OMEN_OK) return rc;
    if (!there) return identity_create(dir, path, use, clock, err);
    uint8_t *raw;
    size_t len;
    rc = vfs_read_file(dir->vfs, path, 4096, &raw, &len, err);
    if (rc != OMEN_OK) return rc;
    rc = identity_parse(dir, path, raw, len, err);
    mem_free(raw);
    if (rc == OMEN_OK && (dir->identity.birth != 0) != (use == DATA_DIR_MEMBER))
        return err_set(err, OMEN_EINVAL, "data_dir",
                use == DATA_DIR_MEMBER
                        ? "%s holds the data of a single node; a member of a cluster begins empty"
                        : "%s holds the data of a cluster's member: set cluster.listen",
                dir->path);
    return rc;
}

/* The directory that holds the name `path`, synced. One that we may not open was not made by us. */
static enum omen_err parent_sync(const char *path, struct err *err)
{
    char parent[NODE_PATH_BYTES_MAX];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash == NULL) snprintf(parent, sizeof parent, ".");
    if (slash != NULL) slash[slash == parent] = '\0';
    int fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return errno == EACCES || errno == EPERM ? OMEN_OK : err_os(err, errno, "open", parent);
    int rc = fsync(fd) == 0 || errno == EINVAL || errno == EROFS ? 0 : errno;
    close(fd);
    return rc == 0 ? OMEN_OK : err_os(err, rc, "sync directory", parent);
}

/* Like mkdir -p, so that --data may name a directory that is not there yet; the names are durable, those of an interrupted
 * start too. */
static enum omen_err dirs_make(const char *path, struct err *err)
{
    char part[NODE_PATH_BYTES_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (size_t len = strlen(part); len > 1 && part[len - 1] == '/'; len--) part[len - 1] = '\0';
    for (char *s = part + 1;; s++) {
        if (*s != '/' && *s != '\0') continue;
        char end = *s;
        *s = '\0';
        bool made = mkdir(part, end == '\0' ? 0750 : 0755) == 0;
        if (!made && errno != EEXIST) return err_os(err, errno, "create directory", part);
        enum omen_err rc = made || end == '\0' ? parent_sync(part, err) : OMEN_OK;
        if (rc != OMEN_OK || end == '\0') return rc;
        *s = end;
    }
}

enum omen_err data_dir_open(struct data_dir *dir, struct vfs *vfs, const char *path, enum data_dir_use use,
        struct clock *clock, struct err *err)
{
    *dir = (struct data_dir){ .vfs = vfs, .lock_fd = -1 };
    if (path[0] == '\0' || strlen(path) >= NODE_PATH_BYTES_MAX - PATH_ROOM) {
        return err_set(err, OMEN_EINVAL, "data_dir", "must be 1 to %d bytes long",
                NODE_PATH_BYTES_MAX - PATH_ROOM - 1);
    }
    snprintf(dir->path, sizeof dir->path, "%s", path);
    enum omen_err rc = dirs_make(path, err);
    if (rc == OMEN_OK) rc = vfs_mkdir(vfs, path, err);
    if (rc == OMEN_OK) rc = lock_take(dir, err);
    if (rc != OMEN_OK) return rc;
    rc = identity_open(dir, use, clock, err);
    static const char *const parts[] = { "log", "catalog", "shards" };
    for (size_t i = 0; rc == OMEN_OK && i < sizeof parts / sizeof *parts; i++) {
        char part[NODE_PATH_BYTES_MAX];
        data_dir_path(dir, parts[i], part);
        rc = vfs_mkdir(vfs, part, err);
    }
    if (rc == OMEN_OK) rc = vfs_sync_dir(vfs, path, err);
    if (rc != OMEN_OK) data_dir_close(dir);
    return rc;
}

void data_dir_close(struct data_dir *dir)
{
    if (dir->lock_fd >= 0) close(dir->lock_fd); /* drops the flock */
    dir->lock_fd = -1;
}

/* The file CATALOG, replaced as a whole, on a full disk too (CORRECTNESS D2): as long as it cannot be written the log of the
 * cluster group is not let go of, and with it no segment of any shard.
 *
 *   CATALOG        the state, as state_format.c writes it
 *   CATALOG.tmp    the next one, while there is room for a third file
 *   CATALOG.room   allocated, of no content: becomes the next one where there is none
 *
 * After the room was used a new one is made of what the old CATALOG gave back; should others be quicker, there is none
 * until the disk has room, and the state stands on the log as long. A crash in between leaves the old file or the new
 * one, and a room whose bytes do not matter. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/log.h"
#include "node/cluster/state.h"

#define ROOM_BYTES_MIN (64u << 10)
#define ROOM_PATH_BYTES 4200u

static void room_path(const char *path, char out[ROOM_PATH_BYTES])
{
    int n = snprintf(out, ROOM_PATH_BYTES, "%s.room", path);
    CHECK(n > 0 && (size_t)n < ROOM_PATH_BYTES);
}

static void dir_path(const char *path, char out[ROOM_PATH_BYTES])
{
    const char *slash = strrchr(path, '/');
    snprintf(out, ROOM_PATH_BYTES, "%.*s", slash == NULL ? 1 : (int)(slash - path),
            slash == NULL ? "." : path);
}

static enum omen_err room_allocate(struct vfs *vfs, const char *dir, struct vfs_file *f, uint64_t len,
        struct err *err)
{
    uint64_t have = 0, free_bytes = 0, total_bytes = 0, wanted = align_up(2 * len, ROOM_BYTES_MIN);
    if (wanted == 0) wanted = ROOM_BYTES_MIN;
    enum omen_err rc = vfs_size(f, &have, err);
    if (have >= ROOM_BYTES_MIN && have >= len + len / 2)
        wanted = have; /* but an earlier life may have left holes */
    if (rc == OMEN_OK) rc = vfs_free_space(vfs, dir, &free_bytes, &total_bytes, err);
    if (rc == OMEN_OK && have < wanted && free_bytes < wanted - have)
        rc = err_set(err, OMEN_EFULL, NULL, "%llu bytes are free", (unsigned long long)free_bytes);
    if (rc == OMEN_OK) rc = vfs_allocate(f, wanted, err);
    if (rc == OMEN_OK) rc = vfs_datasync(f, err);
    return rc;
}

void catalog_room_keep(struct vfs *vfs, const char *path, size_t len)
{
    char room[ROOM_PATH_BYTES], dir[ROOM_PATH_BYTES];
    struct vfs_file *f = NULL;
    struct err err;
    room_path(path, room);
    dir_path(path, dir);
    enum omen_err rc = vfs_open(vfs, room, VFS_READ | VFS_WRITE | VFS_CREATE, &f, &err);
    if (rc == OMEN_OK) rc = room_allocate(vfs, dir, f, len, &err);
    vfs_close(f);
    if (rc == OMEN_OK) rc = vfs_sync_dir(vfs, dir, &err);
    if (rc != OMEN_OK) LOG_WARN("catalog.room", "file=\"%s\" error=\"%s\"", room, err.message);
}

static enum omen_err room_become(struct vfs *vfs, const char *path, const uint8_t *data, size_t len,
        struct err *full)
{
    char room[ROOM_PATH_BYTES], dir[ROOM_PATH_BYTES];
    struct vfs_file *f = NULL;
    struct err err;
    uint64_t have = 0;
    room_path(path, room);
    dir_path(path, dir);
    enum omen_err rc = vfs_open(vfs, room, VFS_READ | VFS_WRITE, &f, &err);
    if (rc == OMEN_OK) rc = vfs_size(f, &have, &err);
    if (rc != OMEN_OK || have < len) {
        vfs_close(f);
        return OMEN_EFULL; /* `full` says it already */
    }
    rc = vfs_pwrite(f, data, len, 0, &err);
    if (rc == OMEN_OK) rc = vfs_truncate(f, len, &err);
    if (rc == OMEN_OK) rc = vfs_datasync(f, &err);
    vfs_close(f);
    if (rc == OMEN_OK) rc = vfs_rename(vfs, room, path, &err);
    if (rc == OMEN_OK) rc = vfs_sync_dir(vfs, dir, &err);
    if (rc != OMEN_OK && full != NULL) *full = err;
    return rc;
}

enum omen_err catalog_file_replace(struct vfs *vfs, const char *path, const uint8_t *data, size_t len,
        struct err *err)
{
    enum omen_err rc = vfs_replace_file(vfs, path, data, len, err);
    if (rc == OMEN_EFULL) rc = room_become(vfs, path, data, len, err);
    if (rc == OMEN_OK) catalog_room_keep(vfs, path, len);
    return rc;
}

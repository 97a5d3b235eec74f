/* Chunks that came from another replica. Contract in stream.h. */
#include "common/err.h"

#include <stdio.h>

#include "storage/stream/format.h"

void stream_chunk_name(uint32_t number, char out[STREAM_CHUNK_NAME_BYTES])
{
    snprintf(out, STREAM_CHUNK_NAME_BYTES, "%016x.chunk", (unsigned)number);
}

enum omen_err stream_adopt_chunk(struct vfs *vfs, const char *dir, uint64_t shard_id, uint64_t replica_id,
        uint32_t number, uint32_t file_bytes, struct err *err)
{
    char path[4096], name[STREAM_CHUNK_NAME_BYTES];
    uint8_t header[STREAM_CHUNK_HEADER_BYTES];
    const struct chunk_header h = { shard_id, replica_id, number, file_bytes };
    struct vfs_file *file = NULL;
    stream_chunk_name(number, name);
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return err_set(err, OMEN_ETOOBIG, "dir", "path is too long");
    chunk_header_encode(&h, header);
    enum omen_err rc = vfs_open(vfs, path, VFS_READ | VFS_WRITE, &file, err);
    if (rc != OMEN_OK) return rc;
    uint64_t size = 0;
    rc = vfs_size(file, &size, err);
    if (rc == OMEN_OK && size > file_bytes) rc = err_corrupt(err, path, file_bytes, "longer than its chunk");
    if (rc == OMEN_OK) rc = vfs_allocate(file, file_bytes, err);
    if (rc == OMEN_OK) rc = vfs_pwrite(file, header, sizeof header, 0, err);
    if (rc == OMEN_OK) rc = vfs_datasync(file, err);
    vfs_close(file);
    return rc;
}

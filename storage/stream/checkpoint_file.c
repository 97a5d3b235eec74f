/* The two-slot CHECKPOINT file; contract in checkpoint_file.h. */
#include "common/err.h"

#include "storage/stream/checkpoint_file.h"

#include "common/bytes.h"
#include "common/crc32c.h"
#include "common/mem.h"

#define CHECKPOINT_VERSION 1

struct checkpoint_file {
    struct vfs_file *file;
    uint64_t shard_id, replica_id;
};

/* Slot v1, 512 bytes.  0 "OMCP" | 4 u16 version | 6 zero[2] | 8 u64 generation | 16 u64 sequence | 24 u32 chunk |
 * 28 u32 offset | 32 u32 chain | 36 zero[4] | 40 u64 shard_id | 48 u64 replica_id | 56 zero[452] | 508 u32 crc32c */
static void slot_encode(const struct checkpoint *c, uint64_t shard_id, uint64_t replica_id,
        uint8_t out[CHECKPOINT_SLOT_BYTES])
{
    memset(out, 0, CHECKPOINT_SLOT_BYTES);
    memcpy(out, "OMCP", 4);
    store_u16(out + 4, CHECKPOINT_VERSION);
    store_u64(out + 8, c->generation);
    store_u64(out + 16, c->sequence);
    store_u32(out + 24, c->end.position.chunk);
    store_u32(out + 28, c->end.position.offset);
    store_u32(out + 32, c->end.chain);
    store_u64(out + 40, shard_id);
    store_u64(out + 48, replica_id);
    store_u32(out + 508, crc32c(0, out, 508));
}

/* The generation says which slot it belongs to: a slot copied over the other one is no slot. */
static bool slot_decode(const uint8_t in[CHECKPOINT_SLOT_BYTES], uint32_t slot, struct checkpoint *c,
        uint64_t *shard_id_out, uint64_t *replica_id_out)
{
    if (memcmp(in, "OMCP", 4) != 0 || load_u32(in + 508) != crc32c(0, in, 508)) return false;
    if (load_u16(in + 4) != CHECKPOINT_VERSION) return false;
    c->generation = load_u64(in + 8);
    c->sequence = load_u64(in + 16);
    c->end = (struct stream_end){ { load_u32(in + 24), load_u32(in + 28) }, load_u32(in + 32) };
    *shard_id_out = load_u64(in + 40);
    *replica_id_out = load_u64(in + 48);
    return c->generation > 0 && c->generation % 2 == slot;
}

enum omen_err checkpoint_file_create(struct vfs *vfs, const char *path, uint64_t shard_id,
        uint64_t replica_id, uint64_t sequence, struct stream_end end, struct err *err)
{
    uint8_t slots[2 * CHECKPOINT_SLOT_BYTES];
    struct checkpoint c = { .generation = 1, .sequence = sequence, .end = end };
    slot_encode(&c, shard_id, replica_id, slots + CHECKPOINT_SLOT_BYTES);
    c.generation = 2;
    slot_encode(&c, shard_id, replica_id, slots);
    return vfs_replace_file(vfs, path, slots, sizeof slots, err);
}

enum omen_err checkpoint_file_open(struct vfs *vfs, const char *path, uint64_t shard_id, uint64_t replica_id,
        struct checkpoint_file **file_out, struct checkpoint *last_out, struct checkpoint *older_out,
        struct err *err)
{
    uint8_t slots[2 * CHECKPOINT_SLOT_BYTES];
    struct checkpoint_file *f = mem_must_calloc(1, sizeof *f);
    uint64_t size = 0;
    *file_out = NULL;
    enum omen_err rc = vfs_open(vfs, path, VFS_READ | VFS_WRITE, &f->file, err);
    if (rc != OMEN_OK) goto err_file;
    f->shard_id = shard_id;
    f->replica_id = replica_id;
    rc = vfs_size(f->file, &size, err);
    if (rc == OMEN_OK && size != sizeof slots) rc = err_corrupt(err, path, 0, "size of the file");
    if (rc == OMEN_OK) rc = vfs_pread(f->file, slots, sizeof slots, 0, err);
    if (rc != OMEN_OK) goto err_file;
    struct checkpoint c[2];
    bool valid[2];
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t shard = 0, replica = 0;
        valid[i] = slot_decode(slots + i * CHECKPOINT_SLOT_BYTES, i, &c[i], &shard, &replica);
        if (!valid[i] || (shard == shard_id && replica == replica_id)) continue;
        rc = err_corrupt(err, path, i * CHECKPOINT_SLOT_BYTES, "checkpoint of another replica");
        goto err_file;
    }
    if (!valid[0] && !valid[1]) {
        /* LMDB's state would do, were the log known to reach back to it; it may be long past. */
        rc = err_corrupt(err, path, 0,
                "both checkpoints are damaged, so nothing says how far the data are good: bring the shard back "
                "from a backup");
        goto err_file;
    }
    uint32_t last = !valid[0] || (valid[1] && c[1].generation > c[0].generation);
    *last_out = c[last];
    *older_out = valid[!last] ? c[!last] : c[last];
    *file_out = f;
    return OMEN_OK;
err_file:
    checkpoint_file_close(f);
    return rc;
}

enum omen_err checkpoint_file_write(struct checkpoint_file *file, const struct checkpoint *c, struct err *err)
{
    uint8_t slot[CHECKPOINT_SLOT_BYTES];
    slot_encode(c, file->shard_id, file->replica_id, slot);
    enum omen_err rc = vfs_pwrite(file->file, slot, sizeof slot, c->generation % 2 * CHECKPOINT_SLOT_BYTES,
            err);
    return rc == OMEN_OK ? vfs_datasync(file->file, err) : rc;
}

void checkpoint_file_close(struct checkpoint_file *file)
{
    if (file == NULL) return;
    vfs_close(file->file);
    mem_free(file);
}

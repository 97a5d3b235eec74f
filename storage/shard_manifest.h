/* A manifest as its numbers: the checkpoint and the sizes of the files before its end. Private to the room. */
#ifndef OMEN_STORAGE_SHARD_MANIFEST_H
#define OMEN_STORAGE_SHARD_MANIFEST_H

#include "common/mem.h"
#include "storage/meta/meta.h"
#include "storage/shard_lease.h"
#include "storage/stream/stream.h"

/* Manifest v1.  0 "OMSM" | 4 u16 version | 6 zero[2] | 8 u64 shard_id | 16 u64 replica_id | 24 u64 sequence | 32 u32 chunk |
 * 36 u32 offset | 40 u32 chain | 44 zero[4] | 48 u64 bytes of data.mdb | 56 u32 size of each chunk file [chunk] |
 * u32 crc32c of all before */
struct manifest_raw {
    uint64_t shard_id, replica_id, sequence, meta_bytes;
    struct stream_end end;
    uint32_t *
            chunk_bytes; /* [end.position.chunk] owned: sizes of the files; the last one is copied up to the end */
};

void manifest_encode(const struct manifest_raw *m, struct buf *out);
OMEN_CHECKED enum omen_err manifest_decode(struct bytes bytes, struct manifest_raw *m, struct err *err);
void manifest_raw_fini(struct manifest_raw *m);
void manifest_files(const struct manifest_raw *raw, struct store_manifest *out); /* allocates files */

#endif

/* A second door of the room: a store's checkpoint, held still while another replica copies it, and what makes a store of
 * such a copy (CORRECTNESS D4).
 *
 *   source:  shard_store --store_lease_open--> lease {manifest, files} --read ranges--> store_lease_close
 *   copy:    files in a directory of their own --shard_store_adopt--> shard_store_open, which checks every byte that counts
 *
 * What a lease holds: a copy of LMDB of its own, taken before the checkpoint is looked up, so that the checkpoint is never
 * the older of the two; and the chunks up to the checkpoint's end, which nothing changes or removes while the store's
 * directory is there: no chunk is compacted while the store has a lease. The store goes on meanwhile. A lease outlives the
 * store; its reads fail once the directory is gone, or the store was opened again and has compacted a chunk.
 *
 * Threads: a lease is for one thread at a time, reads and sums for any. */
#ifndef OMEN_STORAGE_SHARD_LEASE_H
#define OMEN_STORAGE_SHARD_LEASE_H

#include "common/bytes.h"
#include "storage/shard_store.h"

#define STORE_FILE_NAME_BYTES 40u
#define STORE_MANIFEST_BYTES_MAX (8u << 20)

struct store_lease;

struct store_file {
    char name[STORE_FILE_NAME_BYTES]; /* in the store's directory, with '/' */
    uint64_t bytes;
};

/* What is to be copied. */
struct store_manifest {
    uint64_t shard_id, replica_id; /* whose it is */
    uint64_t sequence;             /* of the checkpoint */
    struct store_file *files;      /* [file_count] */
    uint32_t file_count;
    uint64_t total_bytes;
};

/* Blocks for a copy of LMDB. OMEN_EFULL: no room for that. */
OMEN_CHECKED enum omen_err store_lease_open(struct shard_store *store, struct store_lease **lease_out,
        struct err *err);
void store_lease_close(struct store_lease *lease);
const struct store_manifest *store_lease_manifest(const struct store_lease *lease);
struct bytes store_lease_manifest_bytes(
        const struct store_lease *lease); /* what store_manifest_decode reads */
/* Exactly `len` bytes; a range past the end is OMEN_EINVAL. */
OMEN_CHECKED enum omen_err store_lease_read(const struct store_lease *lease, uint32_t file, uint64_t offset,
        void *dst, size_t len, struct err *err);
/* crc32c of a whole file of the lease. Reads it. */
OMEN_CHECKED enum omen_err store_lease_sum(const struct store_lease *lease, uint32_t file, uint32_t *crc_out,
        struct err *err);

/* Untrusted bytes. OMEN_EPROTO, OMEN_EVERSION. store_manifest_fini after OK. */
OMEN_CHECKED enum omen_err store_manifest_decode(struct bytes bytes, struct store_manifest *manifest_out,
        struct err *err);
void store_manifest_fini(struct store_manifest *manifest);
/* Directories that the files lie in, below `dir`, which is there. */
OMEN_CHECKED enum omen_err store_manifest_dirs(struct vfs *vfs, const char *dir, struct err *err);

/* All files of the manifest lie in options->dir, whole and as their sums say: make them a store of options->replica_id. May
 * be repeated after a crash, and reads none of what it writes. shard_store_open checks the content. OMEN_ECORRUPT,
 * OMEN_EINVAL: they are of another shard or schema. */
OMEN_CHECKED enum omen_err shard_store_adopt(const struct shard_store_options *options, struct bytes manifest,
        struct err *err);

#endif

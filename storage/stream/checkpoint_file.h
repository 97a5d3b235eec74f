/* CHECKPOINT: two slots of 512 bytes written in turn and synced. The higher valid generation is the truth: everything
 * up to its sequence lies durably in the stream before its end. The other slot is the checkpoint before, and stands in
 * should the newer one be damaged; hence the log is needed from there (CORRECTNESS D5).
 *
 * Threads: one checkpointer. Formats: storage/FORMAT.md. */
#ifndef OMEN_STORAGE_CHECKPOINT_FILE_H
#define OMEN_STORAGE_CHECKPOINT_FILE_H

#include "storage/stream/stream.h"

#define CHECKPOINT_SLOT_BYTES 512u

struct checkpoint {
    uint64_t generation; /* 1.. ; slot = generation % 2 */
    uint64_t sequence;
    struct stream_end end;
};

struct checkpoint_file;

/* Atomically create, or replace, the file: both slots at `sequence`, whose stream ends at `end`. */
OMEN_CHECKED enum omen_err checkpoint_file_create(struct vfs *vfs, const char *path, uint64_t shard_id,
        uint64_t replica_id, uint64_t sequence, struct stream_end end, struct err *err);
/* `last_out` the newest valid slot; `older_out` the other one, or `last` again when it is damaged. OMEN_ECORRUPT when
 * no slot is valid or the valid ones belong to another replica. */
OMEN_CHECKED enum omen_err checkpoint_file_open(struct vfs *vfs, const char *path, uint64_t shard_id,
        uint64_t replica_id, struct checkpoint_file **file_out, struct checkpoint *last_out,
        struct checkpoint *older_out, struct err *err);
/* Write the slot of c->generation and sync. After a failure the slot's content is unknown, the other one is intact. */
OMEN_CHECKED enum omen_err checkpoint_file_write(struct checkpoint_file *file, const struct checkpoint *c,
        struct err *err);
void checkpoint_file_close(struct checkpoint_file *file);

#endif

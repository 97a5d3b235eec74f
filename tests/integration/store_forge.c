/* store_forge DIR SHARD REPLICA DIM SEQUENCE: makes a stopped replica hold points that its log never gave it.
 *
 * The store of a replica that was killed opens at its last checkpoint; entries after it, up to SEQUENCE, are forged
 * here (each a point of zeros under an id that nobody uses) and made durable. Every checksum is right: only the other
 * replicas can tell. Prints how many entries were forged. For test_cluster_digests.py. */
#include <stdio.h>
#include <stdlib.h>

#include "common/err.h"
#include "common/mem.h"
#include "storage/shard_store.h"

#define FORGED_ID 1000000u

static void must(enum omen_err rc, const struct err *err)
{
    if (rc == OMEN_OK) return;
    fprintf(stderr, "store_forge: %s\n", err->message);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc != 6) return 2;
    uint32_t dim = (uint32_t)strtoul(argv[4], NULL, 10), len;
    uint64_t until = strtoull(argv[5], NULL, 10), forged = 0;
    struct collection_schema schema = { .field_count = 1 };
    schema.fields[0] = (struct vector_field){ .dim = dim, .metric = METRIC_L2 };
    struct shard_store_options options;
    struct shard_store *store;
    struct err err;
    shard_store_options_default(&options);
    options.vfs = vfs_posix();
    options.dir = argv[1];
    options.shard_id = strtoull(argv[2], NULL, 10);
    options.replica_id = strtoull(argv[3], NULL, 10);
    options.schema = &schema;
    must(shard_store_open(&options, &store, &err), &err);
    struct entry_builder *builder = entry_builder_new(&schema);
    float *zeros = mem_must_calloc(dim, sizeof *zeros);
    uint8_t *bytes;
    for (uint64_t at = shard_store_applied(store) + 1; at <= until; at++, forged++) {
        struct point_op op = { .kind = POINT_UPSERT,
            .id = { 0, FORGED_ID + at, POINT_ID_U64 },
            .vectors = { zeros } };
        entry_builder_reset(builder);
        entry_builder_begin_request(builder, (struct op_id){ 0 });
        must(entry_builder_add(builder, &op), &err);
        must(entry_builder_finish(builder, shard_store_log_time(store), 1, false, &bytes, &len), &err);
        must(shard_store_apply(store, at, bytes, len, NULL, &err), &err);
        mem_free(bytes);
    }
    must(shard_store_checkpoint(store, NULL, &err), &err);
    shard_store_close(store);
    entry_builder_free(builder);
    mem_free(zeros);
    printf("%llu\n", (unsigned long long)forged);
    return 0;
}

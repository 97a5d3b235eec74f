/* Bytes of a manifest. Contract in shard_lease.h, table in FORMAT.md. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>

#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/shard_manifest.h"

#define MANIFEST_VERSION 1
#define HEADER_BYTES 56u
#define META_PAGE_BYTES 512u /* LMDB's pages are multiples of it */

void manifest_encode(const struct manifest_raw *m, struct buf *out)
{
    size_t len = HEADER_BYTES + 4 * (size_t)m->end.position.chunk + 4;
    uint8_t *p = buf_reserve(out, len);
    if (p == NULL) return;
    memset(p, 0, HEADER_BYTES);
    memcpy(p, "OMSM", 4);
    store_u16(p + 4, MANIFEST_VERSION);
    store_u64(p + 8, m->shard_id);
    store_u64(p + 16, m->replica_id);
    store_u64(p + 24, m->sequence);
    store_u32(p + 32, m->end.position.chunk);
    store_u32(p + 36, m->end.position.offset);
    store_u32(p + 40, m->end.chain);
    store_u64(p + 48, m->meta_bytes);
    for (uint32_t i = 0; i < m->end.position.chunk; i++)
        store_u32(p + HEADER_BYTES + 4 * i, m->chunk_bytes[i]);
    store_u32(p + len - 4, crc32c(0, p, len - 4));
    out->len += len;
}

/* NULL when all of it can be. */
static const char *manifest_wrong(const struct manifest_raw *m)
{
    uint32_t chunks = m->end.position.chunk, offset = m->end.position.offset;
    if (m->shard_id == 0 || m->replica_id == 0) return "without an identity";
    if (m->meta_bytes == 0 || m->meta_bytes > META_MAP_BYTES || m->meta_bytes % META_PAGE_BYTES != 0)
        return "impossible size of data.mdb";
    for (uint32_t i = 0; i < chunks; i++)
        if (m->chunk_bytes[i] < STREAM_CHUNK_BYTES_MIN || m->chunk_bytes[i] % 4096 != 0)
            return "impossible size of a chunk";
    if (chunks == 0) return offset != 0 || m->end.chain != 0 ? "an end without chunks" : NULL;
    if (offset < STREAM_CHUNK_HEADER_BYTES || offset > m->chunk_bytes[chunks - 1] || offset % 64 != 0)
        return "impossible end of the stream";
    return NULL;
}

enum omen_err manifest_decode(struct bytes bytes, struct manifest_raw *m, struct err *err)
{
    const uint8_t *p = bytes.data;
    *m = (struct manifest_raw){ 0 };
    if (bytes.len < HEADER_BYTES + 4 || bytes.len > STORE_MANIFEST_BYTES_MAX || memcmp(p, "OMSM", 4) != 0 ||
            load_u32(p + bytes.len - 4) != crc32c(0, p, bytes.len - 4))
        return err_set(err, OMEN_EPROTO, NULL, "no manifest of a store");
    if (load_u16(p + 4) != MANIFEST_VERSION)
        return err_set(err, OMEN_EVERSION, NULL, "version %u of a store's manifest", load_u16(p + 4));
    *m = (struct manifest_raw){ .shard_id = load_u64(p + 8),
        .replica_id = load_u64(p + 16),
        .sequence = load_u64(p + 24),
        .end = { { load_u32(p + 32), load_u32(p + 36) }, load_u32(p + 40) },
        .meta_bytes = load_u64(p + 48) };
    uint32_t chunks = m->end.position.chunk;
    bool zero = load_u16(p + 6) == 0 && load_u32(p + 44) == 0;
    if (!zero || chunks > STREAM_CHUNKS_MAX || bytes.len != HEADER_BYTES + 4 * (size_t)chunks + 4)
        return err_set(err, OMEN_EPROTO, NULL, "malformed manifest of a store");
    m->chunk_bytes = mem_must_calloc(chunks + 1, sizeof *m->chunk_bytes);
    for (uint32_t i = 0; i < chunks; i++) m->chunk_bytes[i] = load_u32(p + HEADER_BYTES + 4 * i);
    const char *wrong = manifest_wrong(m);
    if (wrong == NULL) return OMEN_OK;
    manifest_raw_fini(m);
    return err_set(err, OMEN_EPROTO, NULL, "manifest of a store: %s", wrong);
}

void manifest_raw_fini(struct manifest_raw *m)
{
    mem_free(m->chunk_bytes);
    m->chunk_bytes = NULL;
}

void manifest_files(const struct manifest_raw *raw, struct store_manifest *out)
{
    uint32_t chunks = raw->end.position.chunk;
    *out = (struct store_manifest){ .shard_id = raw->shard_id,
        .replica_id = raw->replica_id,
        .sequence = raw->sequence,
        .file_count = chunks + 1,
        .files = mem_must_calloc(chunks + 1, sizeof *out->files) };
    snprintf(out->files[0].name, STORE_FILE_NAME_BYTES, "meta/data.mdb");
    out->files[0].bytes = out->total_bytes = raw->meta_bytes;
    for (uint32_t n = 1; n <= chunks; n++) {
        char name[STREAM_CHUNK_NAME_BYTES];
        stream_chunk_name(n, name);
        snprintf(out->files[n].name, STORE_FILE_NAME_BYTES, "stream/%s", name);
        out->files[n].bytes = n < chunks ? raw->chunk_bytes[n - 1] : raw->end.position.offset;
        out->total_bytes += out->files[n].bytes;
    }
}

enum omen_err store_manifest_decode(struct bytes bytes, struct store_manifest *manifest_out, struct err *err)
{
    struct manifest_raw raw;
    *manifest_out = (struct store_manifest){ 0 };
    enum omen_err rc = manifest_decode(bytes, &raw, err);
    if (rc != OMEN_OK) return rc;
    manifest_files(&raw, manifest_out);
    manifest_raw_fini(&raw);
    return OMEN_OK;
}

void store_manifest_fini(struct store_manifest *manifest)
{
    mem_free(manifest->files);
    *manifest = (struct store_manifest){ 0 };
}

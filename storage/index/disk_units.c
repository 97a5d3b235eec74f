/* Units of the disk graph: their checksums, the cache of those read lately, reading several at once.
 *
 * The cache is set-associative: a unit has CACHE_WAYS places, the one used longest ago gives way. Units are copied
 * in and out under the lock of their set, which costs a tenth of a microsecond against 25 for the read; so no unit
 * has to be pinned and memory stays what was given. Threads: any number of readers, each with its own disk_io. */
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "common/mem.h"
#include "storage/index/disk_impl.h"
#include "storage/index/sealed_impl.h"

#define CACHE_WAYS 8
#define CACHE_LOCKS 64
#define UNIT_NONE UINT32_MAX

struct disk_cache {
    uint32_t sets, unit_bytes;
    uint32_t *units; /* [sets][CACHE_WAYS] UNIT_NONE = free; the one used last in front */
    uint8_t *ways;   /* [sets][CACHE_WAYS] which place of `data` it has */
    uint8_t *data;   /* [sets][CACHE_WAYS][unit_bytes] */
    size_t mapped;
    pthread_mutex_t locks[CACHE_LOCKS]; /* of sets, by set % CACHE_LOCKS */
};

/* ---- cache ---- */

void disk_cache_free(struct disk_cache *cache)
{
    if (cache == NULL) return;
    for (int i = 0; i < CACHE_LOCKS; i++) pthread_mutex_destroy(&cache->locks[i]);
    sealed_pages_free(cache->data, cache->mapped);
    mem_free(cache->units);
    mem_free(cache->ways);
    mem_free(cache);
}

uint64_t disk_cache_bytes(const struct disk_cache *cache)
{
    return cache == NULL
            ? 0
            : sizeof *cache + (uint64_t)cache->sets * CACHE_WAYS * (cache->unit_bytes + sizeof(uint32_t) + 1);
}

static struct disk_cache *cache_new(uint32_t sets, uint32_t unit_bytes)
{
    struct disk_cache *cache = mem_calloc(1, sizeof *cache);
    if (cache == NULL) return NULL;
    cache->sets = sets;
    cache->unit_bytes = unit_bytes;
    for (int i = 0; i < CACHE_LOCKS; i++) pthread_mutex_init(&cache->locks[i], NULL);
    cache->units = mem_alloc((size_t)sets * CACHE_WAYS * sizeof *cache->units);
    cache->ways = mem_alloc((size_t)sets * CACHE_WAYS);
    cache->data = sealed_pages_new((size_t)sets * CACHE_WAYS * unit_bytes, &cache->mapped);
    if (cache->units == NULL || cache->ways == NULL || cache->data == NULL) {
        disk_cache_free(cache);
        return NULL;
    }
    memset(cache->units, 0xff, (size_t)sets * CACHE_WAYS * sizeof *cache->units);
    for (size_t i = 0; i < (size_t)sets * CACHE_WAYS; i++) cache->ways[i] = (uint8_t)(i % CACHE_WAYS);
    return cache;
}

enum omen_err disk_cache_set(struct index *index, uint64_t bytes)
{
    struct disk *d = (struct disk *)index;
    CHECK(index->ops == &disk_ops);
    disk_cache_free(d->cache);
    d->cache = NULL;
    uint64_t sets = bytes / ((uint64_t)CACHE_WAYS * d->layout.unit_bytes);
    uint64_t useful = disk_unit_count(d) / CACHE_WAYS + 1;
    if (sets == 0 || d->units != NULL) return OMEN_OK;
    d->cache = cache_new((uint32_t)(sets < useful ? sets : useful), d->layout.unit_bytes);
    return d->cache == NULL ? OMEN_ENOMEM : OMEN_OK;
}

static uint32_t cache_set_of(const struct disk_cache *cache, uint32_t unit)
{
    return (uint32_t)(((uint64_t)(unit * 0x9e3779b1u) * cache->sets) >> 32);
}

/* Way `at` of a set comes to the front. */
static uint8_t *cache_touch(struct disk_cache *cache, uint32_t set, uint32_t at, uint32_t unit)
{
    uint32_t *units = cache->units + (size_t)set * CACHE_WAYS;
    uint8_t *ways = cache->ways + (size_t)set * CACHE_WAYS, way = ways[at];
    memmove(units + 1, units, at * sizeof *units);
    memmove(ways + 1, ways, at);
    units[0] = unit;
    ways[0] = way;
    return cache->data + ((size_t)set * CACHE_WAYS + way) * cache->unit_bytes;
}

static bool cache_get(struct disk_cache *cache, uint32_t unit, uint8_t *out)
{
    uint32_t set = cache_set_of(cache, unit), at = 0;
    pthread_mutex_t *lock = &cache->locks[set % CACHE_LOCKS];
    pthread_mutex_lock(lock);
    while (at < CACHE_WAYS && cache->units[(size_t)set * CACHE_WAYS + at] != unit) at++;
    if (at < CACHE_WAYS) memcpy(out, cache_touch(cache, set, at, unit), cache->unit_bytes);
    pthread_mutex_unlock(lock);
    return at < CACHE_WAYS;
}

static void cache_put(struct disk_cache *cache, uint32_t unit, const uint8_t *data)
{
    uint32_t set = cache_set_of(cache, unit), at = 0;
    pthread_mutex_t *lock = &cache->locks[set % CACHE_LOCKS];
    pthread_mutex_lock(lock);
    while (at < CACHE_WAYS - 1 && cache->units[(size_t)set * CACHE_WAYS + at] != unit) at++;
    memcpy(cache_touch(cache, set, at, unit), data, cache->unit_bytes);
    pthread_mutex_unlock(lock);
}

/* ---- units ---- */

void disk_unit_seal(const struct disk *d, uint8_t *unit, uint32_t number)
{
    store_u32(unit + 4, number);
    store_u32(unit + 8, disk_unit_nodes(d, number));
    store_u32(unit + 12, 0);
    store_u32(unit, crc32c(0, unit + 4, d->layout.unit_bytes - 4));
}

const char *disk_unit_fault(const struct disk *d, const uint8_t *unit, uint32_t number)
{
    if (load_u32(unit) != crc32c(0, unit + 4, d->layout.unit_bytes - 4)) return "wrong checksum of a unit";
    if (load_u32(unit + 4) != number) return "another unit's bytes";
    if (load_u32(unit + 8) != disk_unit_nodes(d, number)) return "wrong number of rows in a unit";
    for (uint32_t i = 0; i < disk_unit_nodes(d, number); i++) {
        const uint8_t *record = disk_record(d, unit, i);
        if (disk_slot(d, record) != d->slots[number * d->layout.unit_nodes + i]) return "wrong slot of a row";
        if (disk_degree(d, record) > DISK_DEGREE) return "too many links of a row";
        for (uint32_t j = 0; j < disk_degree(d, record); j++)
            if (disk_links(d, record)[j] >= d->count) return "a link to a row that is not there";
    }
    return NULL;
}

bool disk_io_init(const struct disk *d, struct disk_io *io)
{
    *io = (struct disk_io){ 0 };
    if (d->units != NULL || d->count == 0) return true;
    io->buffers = mem_alloc_aligned(DISK_PAGE, (size_t)DISK_BEAM_MAX * d->layout.unit_bytes);
    io->batch = vfs_batch_new(d->vfs, DISK_BEAM_MAX);
    return io->buffers != NULL && io->batch != NULL;
}

void disk_io_fini(struct disk_io *io)
{
    vfs_batch_free(io->batch);
    mem_free(io->buffers);
}

enum omen_err disk_units_read(const struct disk *d, struct disk_io *io, const uint32_t *units, uint32_t count,
        const uint8_t **out, struct err *err, struct index_cost *cost)
{
    struct vfs_read reads[DISK_BEAM_MAX];
    uint32_t missing[DISK_BEAM_MAX], wanted = 0;
    CHECK(count <= DISK_BEAM_MAX);
    cost->rounds++;
    for (uint32_t i = 0; i < count; i++) {
        CHECK(units[i] < disk_unit_count(d));
        if (d->units != NULL) {
            out[i] = d->units + (size_t)units[i] * d->layout.unit_bytes;
            continue;
        }
        uint8_t *buffer = io->buffers + (size_t)i * d->layout.unit_bytes;
        out[i] = buffer;
        if (d->cache != NULL && cache_get(d->cache, units[i], buffer)) continue;
        reads[wanted] = (struct vfs_read){ buffer, d->layout.unit_bytes,
            d->units_offset + (uint64_t)units[i] * d->layout.unit_bytes };
        missing[wanted++] = units[i];
    }
    uint32_t blocks = d->layout.unit_bytes / DISK_PAGE;
    cost->blocks += (uint64_t)count * blocks;
    cost->blocks_read += (uint64_t)wanted * blocks;
    if (wanted == 0) return OMEN_OK;
    enum omen_err rc = vfs_read_batch(io->batch, d->file, reads, wanted, err);
    for (uint32_t i = 0; rc == OMEN_OK && i < wanted; i++) {
        const char *fault = disk_unit_fault(d, reads[i].dst, missing[i]);
        if (fault != NULL) return err_corrupt(err, d->path, reads[i].offset, fault);
        if (d->cache != NULL) cache_put(d->cache, missing[i], reads[i].dst);
    }
    return rc;
}

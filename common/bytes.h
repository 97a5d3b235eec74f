/* Little-endian loads and stores for bytes on disk and wire (all formats of OmenDB are little-endian),
 * alignment arithmetic, and byte ranges. */
#ifndef OMEN_COMMON_BYTES_H
#define OMEN_COMMON_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "OmenDB maps its files as they lie on disk and so needs a little-endian machine"
#endif

/* A borrowed range of bytes; `data` may be NULL only when len is 0. */
struct bytes {
    const uint8_t *data;
    size_t len;
};

static inline uint16_t load_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint32_t load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint64_t load_u64(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void store_u16(void *p, uint16_t v) { memcpy(p, &v, sizeof v); }
static inline void store_u32(void *p, uint32_t v) { memcpy(p, &v, sizeof v); }
static inline void store_u64(void *p, uint64_t v) { memcpy(p, &v, sizeof v); }

/* Big-endian, only for keys that must sort as bytes (LMDB) and for the frames of the network. */
static inline void store_u64_be(void *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    memcpy(p, &v, sizeof v);
}
static inline uint64_t load_u64_be(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap64(v);
}

static inline void store_u32_be(void *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    memcpy(p, &v, sizeof v);
}
static inline uint32_t load_u32_be(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap32(v);
}

/* `alignment` is a power of two. */
static inline uint64_t align_up(uint64_t v, uint64_t alignment)
{
    return (v + alignment - 1) & ~(alignment - 1);
}

/* a + b <= limit without overflow: the form in which every offset + length from disk or network is
 * checked. */
static inline int range_fits(uint64_t offset, uint64_t len, uint64_t limit)
{
    return offset <= limit && len <= limit - offset;
}

#endif

/* Memory: aligned allocation and a bump arena for request-scoped data.
 *
 * Library code returns OMEN_ENOMEM when an allocation whose size depends on a request fails; small fixed-size
 * allocations use the mem_must_* forms, which panic (a process that cannot get 200 bytes is over). */
#ifndef OMEN_COMMON_MEM_H
#define OMEN_COMMON_MEM_H

#include <stddef.h>
#include <stdint.h>

/* NULL when out of memory. Freed with mem_free. */
void *mem_alloc(size_t bytes);
void *mem_calloc(size_t count, size_t bytes);
void *mem_realloc(void *ptr, size_t bytes);
void *mem_alloc_aligned(size_t alignment, size_t bytes); /* alignment: power of two; freed with mem_free */
void mem_free(void *ptr);

void *mem_must_alloc(size_t bytes);
void *mem_must_calloc(size_t count, size_t bytes);
void *mem_must_realloc(void *ptr, size_t bytes);
char *mem_must_strdup(const char *s);

/* For tests: the n-th allocation from now (mem_alloc, calloc, realloc, aligned; arenas and bufs included;
 * not the mem_must_* forms) returns NULL, once; 0 = off. All threads count together. */
void mem_fail_at(uint64_t n);

/* Bump allocator; everything goes at once. Not thread-safe: one owner at a time. Blocks grow geometrically
 * from `first_block_bytes`; past `limit_bytes` (0 = none) allocation returns NULL, so a hostile message
 * cannot make us allocate more than its handler allows. */
struct arena {
    struct arena_block *head; /* newest block, owned */
    size_t used_bytes;        /* handed out, alignment included */
    size_t reserved_bytes;    /* obtained from malloc */
    size_t limit_bytes;       /* of reserved_bytes; 0 = no limit */
    size_t first_block_bytes;
};

void arena_init(struct arena *arena, size_t first_block_bytes, size_t limit_bytes);
void arena_fini(struct arena *arena);
void arena_reset(struct arena *arena);                /* keeps the largest block for reuse */
void *arena_alloc(struct arena *arena, size_t bytes); /* 16-byte aligned or NULL */
void *arena_alloc_aligned(struct arena *arena, size_t alignment, size_t bytes); /* NULL when over the limit */
void *arena_calloc(struct arena *arena, size_t count, size_t bytes);
void *arena_copy(struct arena *arena, const void *src, size_t bytes);
char *arena_strdup(struct arena *arena, const char *s, size_t len); /* NUL-terminated copy */

/* Growable byte buffer (owned). On allocation failure `failed` sticks and further writes are ignored, so a
 * caller checks once at the end. */
struct buf {
    uint8_t *data;
    size_t len;
    size_t cap;
    _Bool failed;
};

void buf_init(struct buf *buf);
void buf_fini(struct buf *buf);
void buf_clear(struct buf *buf);
void *buf_reserve(struct buf *buf, size_t bytes); /* space at the end, not counted yet; NULL on failure */
void buf_append(struct buf *buf, const void *src, size_t bytes);
void buf_append_zero(struct buf *buf, size_t bytes);
void buf_printf(struct buf *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif

/* Allocation, arena and byte buffer over malloc.
 * Threads: mem_* are as thread-safe as malloc; an arena or a buf has one owner at a time. */
#include "common/mem.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"

/* The unused part of an arena block is poisoned under AddressSanitizer: using memory after a reset, or
 * past what was asked for, is found as with malloc. */
#if defined(__SANITIZE_ADDRESS__)
#define HAVE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAVE_ASAN 1
#endif
#endif
#ifdef HAVE_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

/* ---- allocation ---- */

static _Atomic uint64_t fail_countdown; /* 0 = off */

void mem_fail_at(uint64_t n) { atomic_store(&fail_countdown, n); }

/* One relaxed load in production. */
static int must_fail(void)
{
    uint64_t left = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    while (left != 0)
        if (atomic_compare_exchange_weak(&fail_countdown, &left, left - 1)) return left == 1;
    return 0;
}

void *mem_alloc(size_t bytes) { return must_fail() ? NULL : malloc(bytes == 0 ? 1 : bytes); }

void *mem_calloc(size_t count, size_t bytes)
{
    size_t total;
    if (must_fail() || __builtin_mul_overflow(count, bytes, &total)) return NULL;
    return calloc(1, total == 0 ? 1 : total);
}

void *mem_realloc(void *ptr, size_t bytes)
{
    return must_fail() ? NULL : realloc(ptr, bytes == 0 ? 1 : bytes);
}

void *mem_alloc_aligned(size_t alignment, size_t bytes)
{
    CHECK(alignment != 0 && (alignment & (alignment - 1)) == 0);
    void *ptr = NULL;
    if (must_fail()) return NULL;
    if (alignment < sizeof(void *)) alignment = sizeof(void *);
    return posix_memalign(&ptr, alignment, bytes == 0 ? 1 : bytes) == 0 ? ptr : NULL;
}

void mem_free(void *ptr) { free(ptr); }

void *mem_must_alloc(size_t bytes)
{
    void *ptr = malloc(bytes == 0 ? 1 : bytes);
    if (ptr == NULL) panic("out of memory: %zu bytes", bytes);
    return ptr;
}

void *mem_must_calloc(size_t count, size_t bytes)
{
    void *ptr = count == 0 || bytes == 0 ? calloc(1, 1) : calloc(count, bytes);
    if (ptr == NULL) panic("out of memory: %zu times %zu bytes", count, bytes);
    return ptr;
}

void *mem_must_realloc(void *ptr, size_t bytes)
{
    void *moved = realloc(ptr, bytes == 0 ? 1 : bytes);
    if (moved == NULL) panic("out of memory: %zu bytes", bytes);
    return moved;
}

char *mem_must_strdup(const char *s)
{
    size_t len = strlen(s) + 1;
    return memcpy(mem_must_alloc(len), s, len);
}

/* ---- arena ---- */

#define ARENA_ALIGNMENT 16u
#define ARENA_BLOCK_GROWTH_MAX                                                                               \
    (64u << 20) /* geometric growth ends here; one bigger request gets its own block */

struct arena_block {
    struct arena_block *older;
    size_t bytes; /* of the payload that follows this header */
    size_t used;
    size_t unused; /* keeps the payload 16-byte aligned */
};
_Static_assert(sizeof(struct arena_block) % ARENA_ALIGNMENT == 0, "the payload follows the header");

static uint8_t *block_data(struct arena_block *block) { return (uint8_t *)(block + 1); }

static void block_free(struct arena_block *block)
{
    UNPOISON(block_data(block), block->bytes);
    mem_free(block);
}

void arena_init(struct arena *arena, size_t first_block_bytes, size_t limit_bytes)
{
    *arena = (struct arena){ .limit_bytes = limit_bytes,
        .first_block_bytes = first_block_bytes < 64 ? 64 : align_up(first_block_bytes, ARENA_ALIGNMENT) };
}

static void free_blocks_but(struct arena *arena, const struct arena_block *keep)
{
    struct arena_block *block = arena->head;
    while (block != NULL) {
        struct arena_block *older = block->older;
        if (block != keep) block_free(block);
        block = older;
    }
}

void arena_fini(struct arena *arena)
{
    free_blocks_but(arena, NULL);
    arena->head = NULL;
    arena->used_bytes = arena->reserved_bytes = 0;
}

void arena_reset(struct arena *arena)
{
    struct arena_block *largest = arena->head;
    for (struct arena_block *b = arena->head; b != NULL; b = b->older)
        if (b->bytes > largest->bytes) largest = b;
    free_blocks_but(arena, largest);
    arena->head = largest;
    arena->used_bytes = arena->reserved_bytes = 0;
    if (largest == NULL) return;
    largest->older = NULL;
    largest->used = 0;
    arena->reserved_bytes = sizeof *largest + largest->bytes;
    POISON(block_data(largest), largest->bytes);
}

/* A new head with room for `need` bytes; the growth is given up where the limit leaves room for the
 * request only. */
static struct arena_block *add_block(struct arena *arena, size_t need)
{
    size_t grown = arena->head == NULL ? arena->first_block_bytes : 2 * arena->head->bytes;
    if (grown > ARENA_BLOCK_GROWTH_MAX) grown = ARENA_BLOCK_GROWTH_MAX;
    size_t bytes = grown < need ? need : grown;
    if (arena->limit_bytes != 0) {
        size_t header = sizeof(struct arena_block);
        if (!range_fits(arena->reserved_bytes, header, arena->limit_bytes)) return NULL;
        size_t room = arena->limit_bytes - arena->reserved_bytes - header;
        if (need > room) return NULL;
        if (bytes > room) bytes = room;
    }
    if (bytes > SIZE_MAX - sizeof(struct arena_block)) return NULL;
    struct arena_block *block = mem_alloc(sizeof *block + bytes);
    if (block == NULL) return NULL;
    *block = (struct arena_block){ .older = arena->head, .bytes = bytes };
    POISON(block_data(block), bytes);
    arena->head = block;
    arena->reserved_bytes += sizeof *block + bytes;
    return block;
}

void *arena_alloc_aligned(struct arena *arena, size_t alignment, size_t bytes)
{
    CHECK(alignment != 0 && (alignment & (alignment - 1)) == 0);
    if (alignment < ARENA_ALIGNMENT) alignment = ARENA_ALIGNMENT;
    if (bytes == 0) bytes = 1;
    if (bytes > SIZE_MAX / 2 || alignment > SIZE_MAX / 4) return NULL;
    for (struct arena_block *block = arena->head;; block = NULL) {
        if (block == NULL) block = add_block(arena, bytes + (alignment > ARENA_ALIGNMENT ? alignment : 0));
        if (block == NULL) return NULL;
        uintptr_t base = (uintptr_t)block_data(block);
        size_t start = align_up(base + block->used, alignment) - base;
        if (!range_fits(start, bytes, block->bytes)) continue; /* only the old head: a new block has room */
        size_t end = start + bytes;
        arena->used_bytes += end - block->used;
        block->used = end;
        UNPOISON(block_data(block) + start, bytes);
        return block_data(block) + start;
    }
}

void *arena_alloc(struct arena *arena, size_t bytes)
{
    return arena_alloc_aligned(arena, ARENA_ALIGNMENT, bytes);
}

void *arena_calloc(struct arena *arena, size_t count, size_t bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, bytes, &total)) return NULL;
    void *ptr = arena_alloc(arena, total);
    if (ptr != NULL) memset(ptr, 0, total);
    return ptr;
}

void *arena_copy(struct arena *arena, const void *src, size_t bytes)
{
    void *ptr = arena_alloc(arena, bytes);
    if (ptr != NULL && bytes > 0) memcpy(ptr, src, bytes);
    return ptr;
}

char *arena_strdup(struct arena *arena, const char *s, size_t len)
{
    if (len == SIZE_MAX) return NULL;
    char *copy = arena_alloc(arena, len + 1);
    if (copy == NULL) return NULL;
    if (len > 0) memcpy(copy, s, len);
    copy[len] = '\0';
    return copy;
}

/* ---- buf ---- */

#define BUF_FIRST_BYTES 256u

void buf_init(struct buf *buf) { *buf = (struct buf){ 0 }; }

void buf_fini(struct buf *buf)
{
    mem_free(buf->data);
    buf_init(buf);
}

void buf_clear(struct buf *buf)
{
    buf->len = 0;
    buf->failed = 0;
}

void *buf_reserve(struct buf *buf, size_t bytes)
{
    if (buf->failed) return NULL;
    if (bytes <= buf->cap - buf->len && buf->data != NULL) return buf->data + buf->len;
    size_t need;
    if (__builtin_add_overflow(buf->len, bytes, &need) || need > SIZE_MAX / 4) goto failed;
    size_t cap = buf->cap < BUF_FIRST_BYTES / 2 ? BUF_FIRST_BYTES : 2 * buf->cap;
    if (cap < need) cap = need;
    uint8_t *data = mem_realloc(buf->data, cap);
    if (data == NULL) goto failed;
    buf->data = data;
    buf->cap = cap;
    return buf->data + buf->len;
failed:
    buf->failed = 1;
    return NULL;
}

void buf_append(struct buf *buf, const void *src, size_t bytes)
{
    void *dst = buf_reserve(buf, bytes);
    if (dst == NULL || bytes == 0) return;
    memcpy(dst, src, bytes);
    buf->len += bytes;
}

void buf_append_zero(struct buf *buf, size_t bytes)
{
    void *dst = buf_reserve(buf, bytes);
    if (dst == NULL || bytes == 0) return;
    memset(dst, 0, bytes);
    buf->len += bytes;
}

void buf_printf(struct buf *buf, const char *fmt, ...)
{
    char *dst = buf_reserve(buf, 1);
    if (dst == NULL) return;
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    size_t room = buf->cap - buf->len;
    int len = vsnprintf(dst, room, fmt, args);
    CHECK(len >= 0);
    if ((size_t)len >= room) {
        dst = buf_reserve(buf, (size_t)len + 1);
        if (dst != NULL) vsnprintf(dst, (size_t)len + 1, fmt, again);
    }
    if (dst != NULL) buf->len += (size_t)len;
    va_end(again);
    va_end(args);
}

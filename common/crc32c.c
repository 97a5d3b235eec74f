/* CRC-32C (Castagnoli; reflected polynomial 0x82f63b78), RFC 3720 B.4.
 *
 * The hardware instruction has a latency of three cycles and a throughput of one, so three streams run
 * interleaved and are joined by advancing a CRC over n zero bytes (M. Adler's crc32c.c, zlib-style
 * matrices turned into four tables of 256 entries per distance). Departs from it: two distances only,
 * tables made before main.
 * Threads: all functions are pure once the constructor has run, which is before any other code of ours. */
#include "common/crc32c.h"

#include <string.h>

#include "common/bytes.h"

#define POLYNOMIAL 0x82f63b78u

static uint32_t slice_table[8][256]; /* [k][b]: CRC of byte b followed by k zero bytes */

/* Without the inversions at both ends, so that it composes. */
static uint32_t sliced(uint32_t crc, const uint8_t *p, size_t len)
{
    for (; len >= 8; p += 8, len -= 8) {
        uint64_t v = load_u64(p) ^ crc;
        crc = 0;
        for (int k = 0; k < 8; k++) crc ^= slice_table[7 - k][(v >> (8 * k)) & 0xff];
    }
    for (; len > 0; p++, len--) crc = slice_table[0][(crc ^ *p) & 0xff] ^ (crc >> 8);
    return crc;
}

static void slice_table_init(void)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ ((crc & 1) != 0 ? POLYNOMIAL : 0);
        slice_table[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++) {
            uint32_t crc = slice_table[k - 1][b];
            slice_table[k][b] = slice_table[0][crc & 0xff] ^ (crc >> 8);
        }
}

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t len) { return ~sliced(~crc, data, len); }

#if defined(__x86_64__)

#include <nmmintrin.h>

#define LONG_BYTES 4096 /* per stream: big records, stream chunks */
#define SHORT_BYTES 256 /* per stream: a 128-d vector with its payload is about 768 bytes */

struct shift {
    uint32_t table[4][256]; /* [i][b]: byte i of a CRC, advanced over the distance */
};
static struct shift shift_long, shift_short;
static int have_sse42;

static uint32_t shift_apply(const struct shift *s, uint32_t crc)
{
    return s->table[0][crc & 0xff] ^ s->table[1][(crc >> 8) & 0xff] ^ s->table[2][(crc >> 16) & 0xff] ^
            s->table[3][crc >> 24];
}

/* Advancing is linear, so the 32 single bits give all entries by XOR. */
static void shift_init(struct shift *s, size_t zero_bytes)
{
    uint32_t advanced_bit[32];
    for (int bit = 0; bit < 32; bit++) {
        uint32_t crc = 1u << bit;
        for (size_t i = 0; i < zero_bytes; i++) crc = slice_table[0][crc & 0xff] ^ (crc >> 8);
        advanced_bit[bit] = crc;
    }
    for (int i = 0; i < 4; i++)
        for (int b = 0; b < 256; b++) {
            uint32_t crc = 0;
            for (int bit = 0; bit < 8; bit++)
                if ((b >> bit & 1) != 0) crc ^= advanced_bit[8 * i + bit];
            s->table[i][b] = crc;
        }
}

/* Three streams of `stream_bytes` each, a multiple of 8, as long as the input lasts. */
__attribute__((target("sse4.2"), always_inline)) static inline uint64_t three_streams(uint64_t crc0,
        const uint8_t **data, size_t *len, size_t stream_bytes, const struct shift *shift)
{
    const uint8_t *p = *data;
    size_t left = *len;
    for (; left >= 3 * stream_bytes; p += 3 * stream_bytes, left -= 3 * stream_bytes) {
        uint64_t crc1 = 0, crc2 = 0;
        for (size_t i = 0; i < stream_bytes; i += 8) {
            crc0 = _mm_crc32_u64(crc0, load_u64(p + i));
            crc1 = _mm_crc32_u64(crc1, load_u64(p + stream_bytes + i));
            crc2 = _mm_crc32_u64(crc2, load_u64(p + 2 * stream_bytes + i));
        }
        crc0 = shift_apply(shift, (uint32_t)crc0) ^ crc1;
        crc0 = shift_apply(shift, (uint32_t)crc0) ^ crc2;
    }
    *data = p;
    *len = left;
    return crc0;
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p, size_t len)
{
    uint64_t c = ~crc;
    c = three_streams(c, &p, &len, LONG_BYTES, &shift_long);
    c = three_streams(c, &p, &len, SHORT_BYTES, &shift_short);
    for (; len >= 8; p += 8, len -= 8) c = _mm_crc32_u64(c, load_u64(p));
    uint32_t tail = (uint32_t)c;
    for (; len > 0; p++, len--) tail = _mm_crc32_u8(tail, *p);
    return ~tail;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
    return have_sse42 ? crc32c_sse42(crc, data, len) : crc32c_portable(crc, data, len);
}

static void hardware_init(void)
{
    __builtin_cpu_init();
    have_sse42 = __builtin_cpu_supports("sse4.2") != 0;
    shift_init(&shift_long, LONG_BYTES);
    shift_init(&shift_short, SHORT_BYTES);
}

#else

uint32_t crc32c(uint32_t crc, const void *data, size_t len) { return crc32c_portable(crc, data, len); }

static void hardware_init(void) {}

#endif

/* 101 is the first priority free for programs: constructors of other files may checksum already. */
__attribute__((constructor(101))) static void crc32c_init(void)
{
    slice_table_init();
    hardware_init();
}

/* UTF-8 by the table of RFC 3629 (no surrogates, no overlong forms, nothing above U+10FFFF). */
#ifndef OMEN_COMMON_UTF8_H
#define OMEN_COMMON_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the well-formed sequence at `p` (1..4), or 0 when there is none within `left` bytes. */
static inline size_t utf8_sequence_bytes(const void *data, size_t left)
{
    const uint8_t *p = data;
    if (left == 0) return 0;
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4) return 0;
    size_t len = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (len > left) return 0;
    uint8_t low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;  /* overlong below */
    uint8_t high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf; /* surrogates, too high above */
    if (p[1] < low || p[1] > high) return 0;
    for (size_t i = 2; i < len; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    return len;
}

#endif

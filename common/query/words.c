/* Words of a text; see words.h. Pure functions, no state. */
#include "common/query/words.h"

#include <stdbool.h>

#include "common/utf8.h"

static uint32_t decode(const uint8_t *p, size_t len)
{
    switch (len) {
    case 1: return p[0];
    case 2: return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
    case 3: return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    default: return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
    }
}

static size_t encode(uint32_t c, uint8_t out[4])
{
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    size_t len = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = len - 1; i > 0; i--, c >>= 6) out[i] = (uint8_t)(0x80 | (c & 0x3f));
    out[0] = (uint8_t)(c | (len == 2 ? 0xc0 : len == 3 ? 0xe0 : 0xf0));
    return len;
}

static bool within(uint32_t c, uint32_t low, uint32_t high) { return c >= low && c <= high; }

static bool is_word(uint32_t c)
{
    if (c < 0x80) return within(c, '0', '9') || within(c | 0x20, 'a', 'z');
    if (c < 0xc0) return c == 0xaa || c == 0xb5 || c == 0xba;
    if (c == 0xd7 || c == 0xf7) return false;
    if (within(c, 0x2000, 0x206f) || within(c, 0x20a0, 0x20cf) || within(c, 0x2190, 0x2bff)) return false;
    if (within(c, 0x2e00, 0x2e7f)) return false;
    if (within(c, 0x3000, 0x303f)) return within(c, 0x3005, 0x3007);
    if (within(c, 0xfe10, 0xfe1f) || within(c, 0xfe30, 0xfe6f)) return false;
    if (within(c, 0xff00, 0xff0f) || within(c, 0xff1a, 0xff20) || within(c, 0xff3b, 0xff40)) return false;
    return !within(c, 0xff5b, 0xff65) && !within(c, 0xfff0, 0xffff) && c != 0xfeff && c != 0x1680;
}

/* A word by itself. */
static bool is_lone(uint32_t c)
{
    return within(c, 0x3040, 0x309f) || within(c, 0x3400, 0x4dbf) || within(c, 0x4e00, 0x9fff) ||
            within(c, 0xf900, 0xfaff) || within(c, 0x20000, 0x3ffff);
}

/* Pairs of capital and small letter that lie side by side. */
static uint32_t paired(uint32_t c, uint32_t odd) { return (c & 1) == odd ? c + 1 : c; }

static uint32_t lower_latin(uint32_t c)
{
    if (within(c, 0xc0, 0xde)) return c + 0x20;
    if (c == 0x130) return 'i';
    if (c == 0x178) return 0xff;
    if (within(c, 0x100, 0x137) || within(c, 0x14a, 0x177)) return paired(c, 0);
    if (within(c, 0x139, 0x148) || within(c, 0x179, 0x17e)) return paired(c, 1);
    if (c == 0x1e9e) return 0xdf;
    return within(c, 0x1e00, 0x1e95) || within(c, 0x1ea0, 0x1eff) ? paired(c, 0) : c;
}

static uint32_t lower_greek(uint32_t c)
{
    if (within(c, 0x391, 0x3ab)) return c + 0x20;
    if (c == 0x386) return 0x3ac;
    if (within(c, 0x388, 0x38a)) return c + 0x25;
    if (c == 0x38c) return 0x3cc;
    if (c == 0x38e || c == 0x38f) return c + 0x3f;
    return c == 0x3c2 ? 0x3c3 : c; /* the sigma at the end of a word */
}

static uint32_t lower_cyrillic(uint32_t c)
{
    if (within(c, 0x410, 0x42f)) return c + 0x20;
    if (within(c, 0x400, 0x40f)) return c + 0x50;
    if (within(c, 0x460, 0x481) || within(c, 0x48a, 0x4bf) || within(c, 0x4d0, 0x52f)) return paired(c, 0);
    return within(c, 0x4c1, 0x4ce) ? paired(c, 1) : c;
}

static uint32_t lower(uint32_t c)
{
    if (c < 0x80) return within(c, 'A', 'Z') ? c + 0x20 : c;
    if (c < 0x180 || within(c, 0x1e00, 0x1eff)) return lower_latin(c);
    if (within(c, 0x370, 0x3ff)) return lower_greek(c);
    if (within(c, 0x400, 0x52f)) return lower_cyrillic(c);
    if (within(c, 0x531, 0x556)) return c + 0x30;
    return within(c, 0xff21, 0xff3a) ? c + 0x20 : c;
}

size_t words_next(struct bytes text, size_t *at, uint8_t word_out[WORD_BYTES_MAX])
{
    size_t len = 0;
    bool full = false;
    while (*at < text.len) {
        size_t bytes = utf8_sequence_bytes(text.data + *at, text.len - *at);
        if (bytes == 0) { /* no text; step over it */
            (*at)++;
            continue;
        }
        uint32_t c = decode(text.data + *at, bytes);
        bool word = is_word(c), lone = word && is_lone(c);
        if (len > 0 && (!word || lone)) return len;
        *at += bytes;
        if (!word) continue;
        uint8_t encoded[4];
        size_t n = encode(lower(c), encoded);
        full |= len + n > WORD_BYTES_MAX;
        for (size_t i = 0; i < n && !full; i++) word_out[len++] = encoded[i];
        if (lone) return len;
    }
    return len;
}

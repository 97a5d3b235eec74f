/* See siphash.h. Written from the paper; tests/unit/test_siphash.c holds the reference code's vectors against it. */
#include "common/siphash.h"

#define ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = ROTATE(v[1], 13) ^ v[0];
    v[0] = ROTATE(v[0], 32);
    v[2] += v[3];
    v[3] = ROTATE(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = ROTATE(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = ROTATE(v[1], 17) ^ v[2];
    v[2] = ROTATE(v[2], 32);
}

static inline void sip_word(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    sip_round(v);
    sip_round(v);
    v[0] ^= word;
}

void siphash_begin(struct siphash *h, const struct siphash_key *key)
{
    h->v[0] = key->k0 ^ 0x736f6d6570736575u;
    h->v[1] = key->k1 ^ 0x646f72616e646f6du ^ 0xee; /* 0xee: 128 bits of output */
    h->v[2] = key->k0 ^ 0x6c7967656e657261u;
    h->v[3] = key->k1 ^ 0x7465646279746573u;
    h->len = 0;
}

void siphash_add(struct siphash *h, const void *data, size_t len)
{
    const uint8_t *p = data;
    size_t held = h->len % 8;
    h->len += len;
    if (held > 0) {
        size_t take = 8 - held < len ? 8 - held : len;
        if (take > 0) memcpy(h->tail + held, p, take);
        if (held + take < 8) return;
        sip_word(h->v, load_u64(h->tail));
        p += take;
        len -= take;
    }
    uint64_t v[4] = { h->v[0], h->v[1], h->v[2], h->v[3] }; /* in registers for the long run */
    for (; len >= 8; p += 8, len -= 8) sip_word(v, load_u64(p));
    memcpy(h->v, v, sizeof v);
    if (len > 0) memcpy(h->tail, p, len);
}

void siphash_end(struct siphash *h, uint8_t tag_out[SIPHASH_TAG_BYTES])
{
    uint64_t last = h->len << 56;
    for (size_t i = 0; i < h->len % 8; i++) last |= (uint64_t)h->tail[i] << (8 * i);
    sip_word(h->v, last);
    h->v[2] ^= 0xee;
    for (int i = 0; i < 4; i++) sip_round(h->v);
    store_u64(tag_out, h->v[0] ^ h->v[1] ^ h->v[2] ^ h->v[3]);
    h->v[1] ^= 0xdd;
    for (int i = 0; i < 4; i++) sip_round(h->v);
    store_u64(tag_out + 8, h->v[0] ^ h->v[1] ^ h->v[2] ^ h->v[3]);
}

_Bool siphash_tags_equal(const uint8_t *a, const uint8_t *b)
{
    volatile uint8_t differ = 0;
    for (int i = 0; i < SIPHASH_TAG_BYTES; i++) differ |= (uint8_t)(a[i] ^ b[i]);
    return differ == 0;
}

void siphash_key_from_secret(struct bytes secret, struct siphash_key *key_out)
{
    static const uint8_t ours[16] = "OmenDB cluster 1";
    const struct siphash_key fixed = { load_u64(ours), load_u64(ours + 8) };
    struct siphash h;
    uint8_t tag[SIPHASH_TAG_BYTES];
    siphash_begin(&h, &fixed);
    siphash_add(&h, secret.data, secret.len);
    siphash_end(&h, tag);
    *key_out = (struct siphash_key){ load_u64(tag), load_u64(tag + 8) };
}

/* SipHash-2-4 with 128 bits of output (Aumasson and Bernstein 2012; the 128-bit form is that of the authors' reference
 * code): a keyed hash whose values nobody can guess without the key. Proves that a message between servers comes from a
 * holder of the cluster secret; use hash.h where no key is meant. Values are part of the node protocol: never change
 * them. Threads: any. Cost: about 1.5 cycles per byte.
 *
 * Own code although a library has the function: libsodium's crypto_shorthash_siphashx24 gives the same values, but only of
 * one range of bytes, and a message's tag lies inside of what it proves (shard_message.h), so each message, up to 96 MiB,
 * would be copied around it on both sides, or the protocol changed; and it would be a dependency for these 80 lines alone.
 * The reference vectors are held against them. */
#ifndef OMEN_COMMON_SIPHASH_H
#define OMEN_COMMON_SIPHASH_H

#include "common/bytes.h"

#define SIPHASH_TAG_BYTES 16

struct siphash_key {
    uint64_t k0, k1;
};

/* A hash over pieces, as if they stood in one range. */
struct siphash {
    uint64_t v[4];
    uint8_t tail[8]; /* bytes that do not fill a word yet */
    uint64_t len;    /* of all pieces so far */
};

/* A key from a secret of any length: the hash of the secret under a fixed key of ours. */
void siphash_key_from_secret(struct bytes secret, struct siphash_key *key_out);

void siphash_begin(struct siphash *h, const struct siphash_key *key);
void siphash_add(struct siphash *h, const void *data, size_t len);
void siphash_end(struct siphash *h, uint8_t tag_out[SIPHASH_TAG_BYTES]);

/* Equal, in a time that does not tell where they differ. */
_Bool siphash_tags_equal(const uint8_t *a, const uint8_t *b);

#endif

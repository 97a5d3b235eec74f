/* xxHash (XXH3), the only home of xxhash.h. Values are part of formats (slots, metadata keys): never
 * change them. */
#ifndef OMEN_COMMON_HASH_H
#define OMEN_COMMON_HASH_H

#include <stddef.h>
#include <stdint.h>

struct hash128 {
    uint64_t hi, lo;
};

uint64_t hash64(const void *data, size_t len);        /* XXH3_64bits, seed 0 */
struct hash128 hash128(const void *data, size_t len); /* XXH3_128bits, seed 0 */

#endif

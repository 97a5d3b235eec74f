/* XXH3 from Debian's libxxhash-dev, inlined: the values are frozen since xxHash 0.8.0, older ones differ. */
#include "common/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#if XXH_VERSION_NUMBER < 800
#error "XXH3 changed its values before xxHash 0.8.0; slots and metadata keys depend on them"
#endif

uint64_t hash64(const void *data, size_t len) { return XXH3_64bits(data, len); }

struct hash128 hash128(const void *data, size_t len)
{
    XXH128_hash_t h = XXH3_128bits(data, len);
    return (struct hash128){ .hi = h.high64, .lo = h.low64 };
}

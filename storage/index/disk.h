/* The disk graph beyond index.h: how much RAM it may take for pages that were read.
 *
 * In RAM: a code of each row (storage/quant; 4 bits per component unless asked otherwise), its slot, leaders. On
 * disk, in units of whole 4 KB pages: full vectors and links, several rows to a unit. The rows that an index is
 * opened with need no data (rows.data may be NULL): a search reads its own file. An index that was built and not
 * yet saved and opened again holds its units in memory.
 * Errors of a search beside those of index.h: OMEN_ECORRUPT, OMEN_EIO with file and offset in search.err. */
#ifndef OMEN_STORAGE_INDEX_DISK_H
#define OMEN_STORAGE_INDEX_DISK_H

#include "storage/index/index.h"

#define DISK_CACHE_SHARE                                                                                     \
    64 /* of an opened index's units fit its cache, unless disk_cache_set says otherwise */

/* Bound the cache of units read, in bytes; 0 = none. It is emptied. Not beside searches. OMEN_ENOMEM: there is no
 * cache now. */
OMEN_CHECKED enum omen_err disk_cache_set(struct index *index, uint64_t bytes);

#endif

/* What the files of the payload index share: its bytes on disk and what is kept of them in memory.
 *
 * <number>.payload v2, little-endian, 64-byte header, a directory entry of 64 bytes per field, then the fields' sections.
 *   header: 0 magic "OMPI" | 4 u16 version | 6 u16 flags (1: complete) | 8 u32 rows | 12 u32 fields |
 *     16 u64 file bytes | 24 u32 crc32c of the directory | 28 zero [32] | 60 u32 crc32c of 0..59
 *   field: 0 u32 path bytes (0: ids) | 4 u32 flags (1: scalars, 2: arrays in arrays, 4: words, 8: places) |
 *     8 u64 section bytes | 16 u32 values | 20 u32 crc32c of the section | 24 u32 postings | 28 u32 numbers |
 *     32 u32 numbers of rows with several | 36 u32 times | 40 u32 times of rows with several | 44 u32 words |
 *     48 u64 u16 in the words' lists | 56 u32 places | 60 u32 places of rows with several
 *   section, each part padded to 8 with zeros: path | PAYLOAD_BITS x words of row bits (not for ids) | values x {u64 hi,
 *     u64 lo} ascending | (values + 1) x u32 first posting | postings x u32 row, ascending by value | numbers x i64 key
 *     ascending | numbers x u32 row | the same of rows with several | times likewise | words x {u64 hi, u64 lo} ascending |
 *     (words + 1) x u32 first u16 | u16 of lists (word_lists.h) | places x {f64 lon, f64 lat} | places x u32 row | the same
 *     of rows with several
 * v1 has neither words nor places, and zeros from 44 of a field on; it is read.
 * Ids: numbers are ids that are numbers, times the low halves of UUIDs; both as i64 in order of the bits.
 * Fields are in order of their paths, ids first. */
#ifndef OMEN_STORAGE_PAYLOAD_PAYLOAD_INDEX_IMPL_H
#define OMEN_STORAGE_PAYLOAD_PAYLOAD_INDEX_IMPL_H

#include "common/hash.h"
#include "common/query/doc_path.h"
#include "storage/payload/payload_index.h"
#include "storage/payload/place_tree.h"
#include "storage/payload/rowbits.h"
#include "storage/payload/word_lists.h"

#define PAYLOAD_MAGIC 0x49504d4fu /* "OMPI" */
#define PAYLOAD_VERSION 2
#define PAYLOAD_VERSION_OLDEST 1
#define PAYLOAD_HEADER_BYTES 64u
#define PAYLOAD_FIELD_BYTES 64u
#define PAYLOAD_COMPLETE 1u      /* flag of the header */
#define PAYLOAD_SCALARS 1u       /* of a field: a row has a value there that is no array and not null */
#define PAYLOAD_NESTED_ARRAYS 2u /* an array there holds an array */
#define PAYLOAD_WORDS 4u         /* its words are all that its texts have */
#define PAYLOAD_PLACES 8u        /* its places are all there are */
#define PAYLOAD_FIELD_FLAGS 15u
#define PAYLOAD_FIELD_FLAGS_1 3u   /* of version 1 */
#define PAYLOAD_DENSE 4096u        /* rows of a value from which on it has a bitmap beside its list */
#define PAYLOAD_PREFIX_ROWS 16384u /* of a column between two prefix bitmaps */
#define PAYLOAD_PREFIXES_MAX 64u
#define PAYLOAD_PATH_BYTES (DOC_PATH_BYTES_MAX + 1)

/* "Value" is what doc_path_each gives with arrays closed, "element" with arrays opened. */
enum payload_bits {
    PAYLOAD_BITS_THERE, /* has a value, null included */
    PAYLOAD_BITS_ODD,   /* one of them is null or an array */
    PAYLOAD_BITS_FULL,  /* one of them is neither null nor [] */
    PAYLOAD_BITS_NULL,  /* one of them is null or an array with a null */
    PAYLOAD_BITS_SOME,  /* has an element that is not null */
    PAYLOAD_BITS_MANY,  /* has several */
    PAYLOAD_BITS
};

/* Numbers, times or places in order; rows that have several lie apart, because a prefix tells nothing about them. */
struct payload_column {
    const int64_t *keys, *many_keys; /* ascending; mapped; NULL of places */
    const uint32_t *rows, *many_rows;
    uint32_t count, many_count;
    uint32_t prefix_step, prefix_count; /* prefix i holds rows [0, (i + 1) * step) of `rows` */
    struct roaring_bitmap_s **prefixes; /* owned */
};

struct payload_field {
    const char *path; /* owned */
    uint32_t flags;
    const uint64_t *bits[PAYLOAD_BITS]; /* mapped */
    const struct hash128 *values;       /* [value_count] ascending; mapped */
    const uint32_t *firsts;             /* [value_count + 1] */
    const uint32_t *postings;
    uint32_t value_count;
    struct roaring_bitmap_s **dense; /* [value_count] owned; NULL where there is none */
    struct payload_column numbers, times;
    const struct hash128 *words; /* [word_count] ascending; mapped */
    const uint32_t *word_firsts; /* [word_count + 1] */
    const uint16_t *word_units;
    uint32_t word_count;
    struct payload_column places;      /* rows alone */
    struct place_tree tree, many_tree; /* of the places of its rows, in their order */
};

struct payload_index {
    _Atomic uint32_t more_refs; /* users beside the first one */
    struct vfs_file *file;
    const uint8_t *map;
    uint64_t bytes, memory_bytes;
    uint32_t rows, field_count; /* ids included */
    uint32_t version;
    bool complete;
    struct payload_field *fields; /* [field_count] owned; the first is ids */
};

static inline struct word_list payload_word_list(const struct payload_field *f, uint32_t i)
{
    return (struct word_list){ f->word_units + f->word_firsts[i], f->word_firsts[i + 1] - f->word_firsts[i] };
}

/* The order-preserving i64 of a number; 0.0 and -0.0 are one. */
static inline int64_t payload_number_key(double v)
{
    int64_t bits;
    v += 0.0; /* -0.0 becomes 0.0 */
    __builtin_memcpy(&bits, &v, sizeof bits);
    return bits < 0 ? bits ^ INT64_MAX : bits;
}

static inline int payload_hash_compare(struct hash128 a, struct hash128 b)
{
    if (a.hi != b.hi) return a.hi < b.hi ? -1 : 1;
    return (a.lo > b.lo) - (a.lo < b.lo);
}

/* One spelling per path: keys quoted only where they must be. `whole_out`: it holds no [n]. False: no filter can ask for
 * it, or it is too long. The text is NUL-terminated. */
bool payload_path_spell(const struct doc_step *steps, uint32_t count, char out[PAYLOAD_PATH_BYTES],
        size_t *len_out);

#endif

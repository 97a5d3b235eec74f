/* What a collection's owner asks for beside its schema: when its points are indexed, how they are quantized, how segments
 * are cut. Given as an object of named values at creation, changeable later; a profile is a set of such values.
 *
 * Pure data and functions. An object that was accepted once is accepted alike everywhere: the check is part of the cluster
 * group's state machine. */
#ifndef OMEN_COMMON_PLACEMENT_OPTIONS_H
#define OMEN_COMMON_PLACEMENT_OPTIONS_H

#include "common/query/doc.h"

#define OPTIONS_DOC_BYTES_MAX 4096u
#define OPTIONS_DELAY_MS_MAX (7 * 86400000ull)
#define OPTIONS_DELAY_MS 60000ull
#define OPTIONS_BUCKET_MS 86400000ull
#define OPTIONS_BUCKET_MS_MIN 60000ull
#define OPTIONS_BUCKET_MS_MAX (3660 * 86400000ull)
#define OPTIONS_PATH_BYTES_MAX 255u
#define OPTIONS_INDEXES_MAX 8u
#define OPTIONS_INDEXES_BYTES 512u /* with a NUL after each, and one more */
#define OPTIONS_TENANT_POINTS 20000u
#define OPTIONS_TENANT_POINTS_MIN 1000u
#define OPTIONS_TENANT_POINTS_MAX 100000000u

enum write_mode {
    WRITE_ASYNC_INDEX,     /* indexed in the background when there is enough to be worth it */
    WRITE_IMMEDIATE_INDEX, /* as soon as it is written */
    WRITE_STREAM_ONLY,     /* index_delay after it was written: nothing beside the stream until then */
};
enum quantization { QUANTIZE_ADAPTIVE, QUANTIZE_CONSERVATIVE, QUANTIZE_AGGRESSIVE };
enum segment_grouping {
    SEGMENTS_MIXED,         /* few and large */
    SEGMENTS_PAYLOAD_AWARE, /* by routing rules, in this order: tenant, time bucket, type */
    SEGMENTS_TIME_BASED, /* by time alone: of time_path, or they end with buckets of when points were written */
};
enum options_profile { PROFILE_NONE, PROFILE_SPEED, PROFILE_QUALITY, PROFILE_BALANCED };

struct collection_options {
    enum options_profile profile; /* the one last asked for; values may differ from it */
    enum write_mode write_mode;
    enum quantization quantization;
    enum segment_grouping segments;
    uint64_t index_delay_ms; /* of WRITE_STREAM_ONLY; 0 = OPTIONS_DELAY_MS */
    uint64_t time_bucket_ms; /* width of a time bucket; 0 = OPTIONS_BUCKET_MS */
    /* Routing rules: payload paths without arrays, NUL-terminated and padded with NULs; "" = none, of the tenant: the shard
     * key. They count while `segments` asks for them. */
    char tenant_path[OPTIONS_PATH_BYTES_MAX + 1];
    char time_path[OPTIONS_PATH_BYTES_MAX + 1];
    char type_path[OPTIONS_PATH_BYTES_MAX + 1];
    uint32_t
            tenant_points; /* of one tenant (bucket, type): from so many on it has segments of its own; 0 = the usual */
    /* Payload paths whose index is asked for, with ":text" or ":geo" or neither behind (common/query/path_kind.h): one after
     * the other, each with its NUL, padded with NULs. They come before others where a segment has more paths than are
     * indexed, and the words of a ":text" are indexed however many they are. */
    char payload_indexes[OPTIONS_INDEXES_BYTES];
    uint64_t bulk_until_ms; /* Unix time: until then a bulk load runs and nothing is indexed; 0 = none runs */
};                          /* zeroed: what a collection has that was asked nothing of */

bool collection_options_equal(const struct collection_options *a, const struct collection_options *b);

/* Change what the object `changes` names: "profile" first (it sets all values that it speaks of), then "write_mode",
 * "index_delay_ms", "quantization", "segments", "time_bucket_ms", "tenant_path", "time_path", "type_path",
 * "tenant_points", "payload_indexes", "bulk_until_ms", "recall_target" (to *recall_target). An absent object
 * changes nothing. Errors: OMEN_EINVAL or OMEN_ETOOBIG, the field is the key; nothing is changed then. */
OMEN_CHECKED enum omen_err collection_options_change(struct collection_options *options, float *recall_target,
        struct doc changes, struct err *err);
/* Members of an object that the caller has begun: all values, as collection_options_change takes them (without
 * recall_target), and the profile if there is one. */
void collection_options_put(const struct collection_options *options, struct doc_builder *b);

static inline uint64_t options_index_delay_ms(const struct collection_options *o)
{
    return o->index_delay_ms != 0 ? o->index_delay_ms : OPTIONS_DELAY_MS;
}
static inline uint32_t options_tenant_points(const struct collection_options *o)
{
    return o->tenant_points != 0 ? o->tenant_points : OPTIONS_TENANT_POINTS;
}
static inline uint64_t options_time_bucket_ms(const struct collection_options *o)
{
    return o->time_bucket_ms != 0 ? o->time_bucket_ms : OPTIONS_BUCKET_MS;
}

#endif

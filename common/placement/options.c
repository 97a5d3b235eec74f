/* Options of collections: names and bounds of their values. See options.h. deploy/profiles/ has the profiles as files;
 * tests/unit/test_options.c compares. */
#include "common/placement/options.h"

#include <stdio.h>
#include <string.h>

#include "common/query/path_kind.h"

static const char *const PROFILES[] = { "", "speed", "quality", "balanced" };
static const char *const WRITE_MODES[] = { "async_index", "immediate_index", "stream_only" };
static const char *const QUANTIZATIONS[] = { "adaptive", "conservative", "aggressive" };
static const char *const GROUPINGS[] = { "mixed", "payload_aware", "time_based" };
#define COUNT(names) (sizeof(names) / sizeof((names)[0]))

bool collection_options_equal(const struct collection_options *a, const struct collection_options *b)
{
    return a->profile == b->profile && a->write_mode == b->write_mode && a->quantization == b->quantization &&
            a->segments == b->segments && a->index_delay_ms == b->index_delay_ms &&
            a->time_bucket_ms == b->time_bucket_ms && a->bulk_until_ms == b->bulk_until_ms &&
            strcmp(a->tenant_path, b->tenant_path) == 0 && strcmp(a->time_path, b->time_path) == 0 &&
            strcmp(a->type_path, b->type_path) == 0 && a->tenant_points == b->tenant_points &&
            memcmp(a->payload_indexes, b->payload_indexes, sizeof a->payload_indexes) == 0;
}

/* Where a change goes, before it is known to be right as a whole. */
struct change {
    struct collection_options options;
    float recall_target;
};

static void profile_set(struct change *c, enum options_profile profile)
{
    struct collection_options *o = &c->options;
    o->profile = profile;
    switch (profile) {
    case PROFILE_NONE: return;
    case PROFILE_SPEED:
        o->write_mode = WRITE_STREAM_ONLY;
        o->index_delay_ms = 0; /* OPTIONS_DELAY_MS */
        o->quantization = QUANTIZE_AGGRESSIVE;
        o->segments = SEGMENTS_MIXED;
        c->recall_target = 0.85f;
        return;
    case PROFILE_QUALITY:
        o->write_mode = WRITE_IMMEDIATE_INDEX;
        o->quantization = QUANTIZE_CONSERVATIVE;
        o->segments = SEGMENTS_PAYLOAD_AWARE;
        c->recall_target = 0.95f;
        return;
    case PROFILE_BALANCED:
        o->write_mode = WRITE_ASYNC_INDEX;
        o->quantization = QUANTIZE_ADAPTIVE;
        o->segments = SEGMENTS_TIME_BASED;
        c->recall_target = 0.90f;
        return;
    }
}

/* ---- values ---- */

static enum omen_err name_value(struct doc value, const char *const *names, size_t count, const char *key,
        int *out, struct err *err)
{
    struct bytes text = doc_type(value) == DOC_STRING ? doc_string(value) : (struct bytes){ NULL, 0 };
    char known[200];
    size_t len = 0;
    for (size_t i = 0; i < count; i++) {
        if (names[i][0] == '\0') continue;
        if (text.data != NULL && text.len == strlen(names[i]) && memcmp(text.data, names[i], text.len) == 0) {
            *out = (int)i;
            return OMEN_OK;
        }
        len += (size_t)snprintf(known + len, sizeof known - len, "%s%s", len == 0 ? "" : ", ", names[i]);
    }
    return err_set(err, OMEN_EINVAL, key, "must be one of %s", known);
}

/* The usual value is stored as 0: equal options are equal structs. */
static enum omen_err ms_value(struct doc value, uint64_t min, uint64_t max, uint64_t usual, const char *key,
        uint64_t *out, struct err *err)
{
    bool number = doc_type(value) == DOC_I64;
    if (!number || doc_i64(value) < 0 || (uint64_t)doc_i64(value) < min || (uint64_t)doc_i64(value) > max)
        return err_set(err, OMEN_EINVAL, key, "must be a number of milliseconds, %llu to %llu",
                (unsigned long long)min, (unsigned long long)max);
    *out = (uint64_t)doc_i64(value) == usual ? 0 : (uint64_t)doc_i64(value);
    return OMEN_OK;
}

static enum omen_err recall_value(struct doc value, const char *key, float *out, struct err *err)
{
    float target = doc_is_number(value) ? (float)doc_f64(value) : 0; /* as it is kept: 1e-60 is 0 there */
    if (!(target > 0 && target <= 1)) return err_set(err, OMEN_EINVAL, key, "must be above 0 and at most 1");
    *out = target;
    return OMEN_OK;
}

static enum omen_err index_path_check(struct bytes text, struct err *err)
{
    struct arena arena;
    const struct doc_path *path;
    struct err why;
    err_clear(&why);
    if (text.len == 0 || memchr(text.data, 0, text.len) != NULL)
        return err_set(err, OMEN_EINVAL, "payload_indexes", "holds an empty path, or one with a NUL");
    arena_init(&arena, 1024, 0);
    enum path_kind kind;
    size_t len = path_kind_split((const char *)text.data, text.len, &kind);
    enum omen_err rc = doc_path_parse((const char *)text.data, len, &arena, &path, &why);
    arena_fini(&arena);
    if (rc == OMEN_ENOMEM) return err_set(err, rc, "payload_indexes", "no memory");
    return rc == OMEN_OK ? rc : err_set(err, OMEN_EINVAL, "payload_indexes", "%s", why.message);
}

/* An array of paths, all of them: an empty one asks for none. */
static enum omen_err indexes_value(struct doc value, char out[OPTIONS_INDEXES_BYTES], struct err *err)
{
    char paths[OPTIONS_INDEXES_BYTES] = { 0 };
    size_t len = 0;
    struct doc_iter it = doc_iter(value);
    struct doc path;
    if (doc_type(value) != DOC_ARRAY || doc_count(value) > OPTIONS_INDEXES_MAX)
        return err_set(err, OMEN_EINVAL, "payload_indexes", "must be an array of at most %u payload paths",
                OPTIONS_INDEXES_MAX);
    while (doc_next(&it, NULL, &path)) {
        struct bytes text = doc_type(path) == DOC_STRING ? doc_string(path) : (struct bytes){ NULL, 0 };
        enum omen_err rc = index_path_check(text, err);
        if (rc != OMEN_OK) return rc;
        if (len + text.len + 2 > sizeof paths)
            return err_set(err, OMEN_ETOOBIG, "payload_indexes",
                    "the paths are longer than %u bytes together", OPTIONS_INDEXES_BYTES);
        memcpy(paths + len, text.data, text.len);
        len += text.len + 1;
    }
    memcpy(out, paths, sizeof paths);
    return OMEN_OK;
}

/* "" takes a rule away. Padded with NULs. */
static enum omen_err path_value(struct doc value, const char *key, char out[OPTIONS_PATH_BYTES_MAX + 1],
        struct err *err)
{
    struct bytes text = doc_type(value) == DOC_STRING ? doc_string(value) : (struct bytes){ NULL, 0 };
    struct arena arena;
    struct err why;
    const struct doc_path *path;
    if (text.data == NULL || text.len > OPTIONS_PATH_BYTES_MAX)
        return err_set(err, OMEN_EINVAL, key, "must be a payload path of at most %u bytes",
                OPTIONS_PATH_BYTES_MAX);
    arena_init(&arena, 1024, 0);
    enum omen_err rc = OMEN_OK;
    if (text.len > 0) {
        err_clear(&why);
        rc = doc_path_parse((const char *)text.data, text.len, &arena, &path, &why);
        if (rc == OMEN_ENOMEM)
            rc = err_set(err, rc, key, "no memory");
        else if (rc != OMEN_OK)
            rc = err_set(err, OMEN_EINVAL, key, "%s", why.message);
        else if (doc_path_has_arrays(path))
            rc = err_set(err, OMEN_EINVAL, key, "must not lead into an array: a point has one place");
    }
    if (rc == OMEN_OK) {
        memset(out, 0, OPTIONS_PATH_BYTES_MAX + 1);
        if (text.len > 0) memcpy(out, text.data, text.len);
    }
    arena_fini(&arena);
    return rc;
}

static enum omen_err points_value(struct doc value, const char *key, uint32_t *out, struct err *err)
{
    bool number = doc_type(value) == DOC_I64;
    if (!number || doc_i64(value) < OPTIONS_TENANT_POINTS_MIN || doc_i64(value) > OPTIONS_TENANT_POINTS_MAX)
        return err_set(err, OMEN_EINVAL, key, "must be a number of points, %u to %u",
                OPTIONS_TENANT_POINTS_MIN, OPTIONS_TENANT_POINTS_MAX);
    *out = doc_i64(value) == OPTIONS_TENANT_POINTS ? 0 : (uint32_t)doc_i64(value);
    return OMEN_OK;
}

static bool key_is(struct bytes key, const char *name)
{
    return key.len == strlen(name) && memcmp(key.data, name, key.len) == 0;
}

static enum omen_err change_one(struct change *c, struct bytes key, struct doc value, struct err *err)
{
    struct collection_options *o = &c->options;
    int choice = 0;
    enum omen_err rc;
    if (key_is(key, "profile")) return OMEN_OK; /* was first */
    if (key_is(key, "write_mode")) {
        rc = name_value(value, WRITE_MODES, COUNT(WRITE_MODES), "write_mode", &choice, err);
        if (rc == OMEN_OK) o->write_mode = (enum write_mode)choice;
    } else if (key_is(key, "quantization")) {
        rc = name_value(value, QUANTIZATIONS, COUNT(QUANTIZATIONS), "quantization", &choice, err);
        if (rc == OMEN_OK) o->quantization = (enum quantization)choice;
    } else if (key_is(key, "segments")) {
        rc = name_value(value, GROUPINGS, COUNT(GROUPINGS), "segments", &choice, err);
        if (rc == OMEN_OK) o->segments = (enum segment_grouping)choice;
    } else if (key_is(key, "index_delay_ms")) {
        rc = ms_value(value, 1, OPTIONS_DELAY_MS_MAX, OPTIONS_DELAY_MS, "index_delay_ms", &o->index_delay_ms,
                err);
    } else if (key_is(key, "time_bucket_ms")) {
        rc = ms_value(value, OPTIONS_BUCKET_MS_MIN, OPTIONS_BUCKET_MS_MAX, OPTIONS_BUCKET_MS,
                "time_bucket_ms", &o->time_bucket_ms, err);
    } else if (key_is(key, "tenant_path")) {
        rc = path_value(value, "tenant_path", o->tenant_path, err);
    } else if (key_is(key, "time_path")) {
        rc = path_value(value, "time_path", o->time_path, err);
    } else if (key_is(key, "type_path")) {
        rc = path_value(value, "type_path", o->type_path, err);
    } else if (key_is(key, "tenant_points")) {
        rc = points_value(value, "tenant_points", &o->tenant_points, err);
    } else if (key_is(key, "payload_indexes")) {
        rc = indexes_value(value, o->payload_indexes, err);
    } else if (key_is(key, "bulk_until_ms")) {
        rc = ms_value(value, 0, INT64_MAX, 0, "bulk_until_ms", &o->bulk_until_ms, err);
    } else if (key_is(key, "recall_target")) {
        rc = recall_value(value, "recall_target", &c->recall_target, err);
    } else {
        char name[ERR_FIELD_BYTES];
        snprintf(name, sizeof name, "%.*s", key.len < 60 ? (int)key.len : 60, (const char *)key.data);
        return err_set(err, OMEN_EINVAL, name, "is no option of a collection");
    }
    return rc;
}

enum omen_err collection_options_change(struct collection_options *options, float *recall_target,
        struct doc changes, struct err *err)
{
    if (changes.data == NULL) return OMEN_OK;
    if (doc_type(changes) != DOC_OBJECT) return err_set(err, OMEN_EINVAL, "", "must be an object of options");
    struct change c = { *options, *recall_target };
    struct doc profile = doc_member(changes, (struct bytes){ (const uint8_t *)"profile", 7 });
    enum omen_err rc = OMEN_OK;
    if (profile.data != NULL) {
        int choice = 0;
        rc = name_value(profile, PROFILES, COUNT(PROFILES), "profile", &choice, err);
        if (rc == OMEN_OK) profile_set(&c, (enum options_profile)choice);
    }
    struct doc_iter it = doc_iter(changes);
    struct bytes key;
    struct doc value;
    while (rc == OMEN_OK && doc_next(&it, &key, &value)) rc = change_one(&c, key, value, err);
    if (rc != OMEN_OK) return rc;
    *options = c.options;
    *recall_target = c.recall_target;
    return OMEN_OK;
}

static void put_name(struct doc_builder *b, const char *key, const char *name)
{
    doc_key(b, key, strlen(key));
    doc_put_string(b, name, strlen(name));
}

static void put_number(struct doc_builder *b, const char *key, uint64_t ms)
{
    doc_key(b, key, strlen(key));
    doc_put_i64(b, (int64_t)ms);
}

static void put_indexes(struct doc_builder *b, const char *path)
{
    doc_key(b, "payload_indexes", 15);
    doc_begin_array(b);
    for (; *path != '\0'; path += strlen(path) + 1) doc_put_string(b, path, strlen(path));
    doc_end(b);
}

void collection_options_put(const struct collection_options *options, struct doc_builder *b)
{
    if (options->profile != PROFILE_NONE) put_name(b, "profile", PROFILES[options->profile]);
    put_name(b, "write_mode", WRITE_MODES[options->write_mode]);
    put_number(b, "index_delay_ms", options_index_delay_ms(options));
    put_name(b, "quantization", QUANTIZATIONS[options->quantization]);
    put_name(b, "segments", GROUPINGS[options->segments]);
    put_number(b, "time_bucket_ms", options_time_bucket_ms(options));
    if (options->tenant_path[0] != '\0') put_name(b, "tenant_path", options->tenant_path);
    if (options->time_path[0] != '\0') put_name(b, "time_path", options->time_path);
    if (options->type_path[0] != '\0') put_name(b, "type_path", options->type_path);
    if (options->tenant_points != 0) put_number(b, "tenant_points", options->tenant_points);
    if (options->payload_indexes[0] != '\0') put_indexes(b, options->payload_indexes);
    if (options->bulk_until_ms != 0) put_number(b, "bulk_until_ms", options->bulk_until_ms);
}

/* What the files that parse filters share: limits used up, places, refusals. filter.h is the door. */
#ifndef OMEN_COMMON_QUERY_FILTER_PARSER_H
#define OMEN_COMMON_QUERY_FILTER_PARSER_H

#include "common/query/doc_place.h"
#include "common/query/filter.h"

struct filter_parser {
    struct arena *arena;
    struct err *err;          /* may be NULL */
    uint32_t condition_count; /* nodes made so far, at most FILTER_CONDITIONS_MAX */
    uint32_t value_count;     /* of lists, at most FILTER_VALUES_MAX */
    uint32_t depth;           /* filters around this place */
    uint32_t nested;          /* of them, inside a "nested" */
};

static inline struct doc_place filter_place_key(const struct doc_place *up, const char *key)
{
    return (struct doc_place){ .up = up, .key = { (const uint8_t *)key, strlen(key) } };
}

/* Set the error with the place as its field; returns `code`. */
enum omen_err filter_refuse(const struct filter_parser *p, const struct doc_place *place, enum omen_err code,
        const char *fmt, ...) OMEN_PRINTF(4, 5);
enum omen_err filter_no_memory(const struct filter_parser *p);

/* `value` is an object and all its members are among `names` (NULL-terminated). Otherwise OMEN_EINVAL at the
 * member, with the name that was likely meant. */
OMEN_CHECKED enum omen_err filter_check_members(const struct filter_parser *p, struct doc value,
        const struct doc_place *place, const char *const *names);

/* Member by name; absent also when null, as clients send it for what is not set. */
struct doc filter_member(struct doc object, const char *name);
/* A path given as text in `value`, at `place`. */
OMEN_CHECKED enum omen_err filter_parse_path(const struct filter_parser *p, struct doc value,
        const struct doc_place *place, const struct doc_path **path_out);
/* The list of values counts against FILTER_VALUES_MAX; the array is in the arena, [doc_count(list)] of
 * item_bytes. */
OMEN_CHECKED enum omen_err filter_begin_list(struct filter_parser *p, struct doc list,
        const struct doc_place *place, size_t item_bytes, void **items_out);

/* {"key": ..., "match"|"range"|"datetime_range"|"values_count": ...} into `node`. [filter_field.c] */
OMEN_CHECKED enum omen_err filter_parse_field(struct filter_parser *p, struct doc doc,
        const struct doc_place *place, struct filter *node);
/* One of geo_bounding_box, geo_radius and geo_polygon, by `name`. [filter_geo.c] */
OMEN_CHECKED enum omen_err filter_parse_geo(struct filter_parser *p, struct doc doc, const char *name,
        const struct doc_place *up, struct filter *node);

#endif

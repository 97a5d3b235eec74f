/* Refusals of the filter parser: places, and unknown members with the name that was likely meant.
 * Pure functions over the parser's state; one thread per parser. */
#include "common/query/filter_parser.h"

#include <stdarg.h>
#include <stdio.h>

enum omen_err filter_refuse(const struct filter_parser *p, const struct doc_place *place, enum omen_err code,
        const char *fmt, ...)
{
    if (p->err == NULL) return code;
    char field[ERR_FIELD_BYTES], message[ERR_MESSAGE_BYTES];
    doc_place_format(place, field);
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    return err_set(p->err, code, field, "%s", message);
}

enum omen_err filter_no_memory(const struct filter_parser *p)
{
    return err_set(p->err, OMEN_ENOMEM, "filter", "the filter needs too much memory");
}

#define NAME_BYTES_MAX 24 /* longer than any member's name and a slip or two */

/* Letters to insert, drop, replace or swap with their neighbour (optimal string alignment). */
static size_t edit_distance(struct bytes a, const char *b, size_t b_len)
{
    size_t rows[3][NAME_BYTES_MAX + 1];
    for (size_t j = 0; j <= b_len; j++) rows[0][j] = j;
    for (size_t i = 1; i <= a.len; i++) {
        size_t *row = rows[i % 3], *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            bool same = a.data[i - 1] == (uint8_t)b[j - 1];
            size_t least = above[j - 1] + !same;
            if (above[j] + 1 < least) least = above[j] + 1;
            if (row[j - 1] + 1 < least) least = row[j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a.data[i - 1] == (uint8_t)b[j - 2] &&
                    a.data[i - 2] == (uint8_t)b[j - 1];
            if (swapped && above2[j - 2] + 1 < least) least = above2[j - 2] + 1;
            row[j] = least;
        }
    }
    return rows[a.len % 3][b_len];
}

/* The name within two slips of `key`, or NULL. Short names need most of their letters. */
static const char *likely_meant(struct bytes key, const char *const *names)
{
    const char *best = NULL;
    size_t least = 3;
    if (key.len > NAME_BYTES_MAX) return NULL;
    for (; *names != NULL; names++) {
        size_t len = strlen(*names);
        if (len > NAME_BYTES_MAX) continue;
        size_t slips = edit_distance(key, *names, len);
        if (slips >= least || 2 * slips >= len) continue;
        least = slips;
        best = *names;
    }
    return best;
}

static enum omen_err refuse_member(const struct filter_parser *p, const struct doc_place *place,
        struct bytes key, const char *const *names)
{
    const struct doc_place here = { .up = place, .key = key };
    const char *meant = likely_meant(key, names);
    if (meant != NULL)
        return filter_refuse(p, &here, OMEN_EINVAL, "unknown member, did you mean \"%s\"?", meant);
    char list[200];
    size_t len = 0;
    list[0] = '\0';
    for (uint32_t i = 0; names[i] != NULL && len < sizeof list; i++)
        len += (size_t)snprintf(list + len, sizeof list - len, "%s%s", i == 0 ? "" : ", ", names[i]);
    return filter_refuse(p, &here, OMEN_EINVAL, "unknown member, known here are %s", list);
}

enum omen_err filter_check_members(const struct filter_parser *p, struct doc value,
        const struct doc_place *place, const char *const *names)
{
    if (doc_type(value) != DOC_OBJECT) return filter_refuse(p, place, OMEN_EINVAL, "must be an object");
    struct doc_iter it = doc_iter(value);
    struct bytes key;
    struct doc member;
    while (doc_next(&it, &key, &member)) {
        const char *const *name = names;
        while (*name != NULL && (strlen(*name) != key.len || memcmp(*name, key.data, key.len) != 0)) name++;
        if (*name == NULL) return refuse_member(p, place, key, names);
    }
    return OMEN_OK;
}

struct doc filter_member(struct doc object, const char *name)
{
    struct doc value = doc_member(object, (struct bytes){ (const uint8_t *)name, strlen(name) });
    if (value.data != NULL && doc_type(value) == DOC_NULL) return (struct doc){ NULL, 0 };
    return value;
}

enum omen_err filter_parse_path(const struct filter_parser *p, struct doc value,
        const struct doc_place *place, const struct doc_path **path_out)
{
    if (value.data == NULL) return filter_refuse(p, place, OMEN_EINVAL, "a payload path is missing");
    if (doc_type(value) != DOC_STRING)
        return filter_refuse(p, place, OMEN_EINVAL, "a payload path must be a string");
    struct bytes text = doc_string(value);
    enum omen_err rc = doc_path_parse((const char *)text.data, text.len, p->arena, path_out, p->err);
    if (rc == OMEN_OK) return rc;
    char field[ERR_FIELD_BYTES];
    doc_place_format(place, field);
    err_prefix(p->err, field);
    return rc;
}

enum omen_err filter_begin_list(struct filter_parser *p, struct doc list, const struct doc_place *place,
        size_t item_bytes, void **items_out)
{
    if (list.data == NULL || doc_type(list) != DOC_ARRAY)
        return filter_refuse(p, place, OMEN_EINVAL, "must be a list");
    uint32_t count = doc_count(list);
    if (count > FILTER_VALUES_MAX - p->value_count)
        return filter_refuse(p, place, OMEN_ETOOBIG, "the lists of a filter hold at most %d values together",
                FILTER_VALUES_MAX);
    p->value_count += count;
    *items_out = arena_alloc(p->arena, (count + (count == 0)) * item_bytes);
    return *items_out == NULL ? filter_no_memory(p) : OMEN_OK;
}

/* Texts of the configuration to values: sizes, times, numbers, choices; and how near two names are.
 * Threads: pure functions. The locale is never asked: numbers are those of the C locale. */
#include "common/config_impl.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/check.h"

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit BYTE_UNITS[] = {
    { "B", 1 },
    { "KB", 1000 },
    { "MB", 1000000 },
    { "GB", 1000000000 },
    { "TB", 1000000000000 },
    { "KiB", 1ull << 10 },
    { "MiB", 1ull << 20 },
    { "GiB", 1ull << 30 },
    { "TiB", 1ull << 40 },
    { NULL, 0 },
};
static const struct unit TIME_UNITS[] = {
    { "ns", 1 },
    { "us", 1000 },
    { "ms", 1000000 },
    { "s", 1000000000 },
    { "m", 60000000000 },
    { "h", 3600000000000 },
    { "d", 86400000000000 },
    { NULL, 0 },
};

/* Digits only, whole `text` up to `*end_out`; false when there are none or they pass 2^64 - 1. */
static bool parse_digits(const char *text, uint64_t *value_out, const char **end_out)
{
    uint64_t v = 0;
    const char *p = text;
    for (; isdigit((unsigned char)*p); p++)
        if (__builtin_mul_overflow(v, 10u, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
            return false;
    *value_out = v;
    *end_out = p;
    return p != text;
}

/* "<digits>[ ]<unit>"; a bare number only where `bare_ok`, or when it is 0. */
static enum omen_err parse_with_unit(const char *text, const struct unit *units, bool ignore_case,
        bool bare_ok, uint64_t *value_out)
{
    uint64_t v;
    const char *p;
    if (text == NULL || !parse_digits(text, &v, &p)) return OMEN_EINVAL;
    if (*p == '\0' && (bare_ok || v == 0)) {
        *value_out = v;
        return OMEN_OK;
    }
    if (*p == ' ') p++;
    for (; units->name != NULL; units++) {
        if ((ignore_case ? strcasecmp(p, units->name) : strcmp(p, units->name)) != 0) continue;
        if (__builtin_mul_overflow(v, units->factor, &v)) return OMEN_EINVAL;
        *value_out = v;
        return OMEN_OK;
    }
    return OMEN_EINVAL;
}

enum omen_err config_parse_bytes(const char *text, uint64_t *bytes_out)
{
    return parse_with_unit(text, BYTE_UNITS, true, true, bytes_out);
}

enum omen_err config_parse_duration(const char *text, uint64_t *ns_out)
{
    return parse_with_unit(text, TIME_UNITS, false, false, ns_out);
}

/* A bound as a person would write it: "64 MiB", "30 s", "17". */
static void format_bound(enum config_type type, uint64_t v, char dst[48])
{
    const struct unit *best = NULL;
    if (type == CONFIG_BYTES || type == CONFIG_DURATION)
        for (const struct unit *u = type == CONFIG_BYTES ? BYTE_UNITS : TIME_UNITS; u->name != NULL; u++) {
            bool decimal = type == CONFIG_BYTES && u->factor % 1000 == 0;
            if (v != 0 && v % u->factor == 0 && (!decimal || v % 1024 != 0)) best = u;
        }
    if (best != NULL && best->factor > 1)
        snprintf(dst, 48, "%llu %s", (unsigned long long)(v / best->factor), best->name);
    else
        snprintf(dst, 48, "%llu%s", (unsigned long long)v, type == CONFIG_BYTES ? " bytes" : "");
}

/* `value` in the unit of the field; both bounds 0 = none, only max 0 = no upper bound. */
static enum omen_err check_range(const struct config_key *key, uint64_t value, const char *text, char *why)
{
    char low[48], high[48];
    if (value >= key->min && (value <= key->max || key->max == 0)) return OMEN_OK;
    format_bound(key->type, key->min, low);
    format_bound(key->type, key->max, high);
    if (key->max == 0)
        snprintf(why, CONFIG_WHY_BYTES, "must be at least %s, got %.40s", low, text);
    else
        snprintf(why, CONFIG_WHY_BYTES, "must be between %s and %s, got %.40s", low, high, text);
    return OMEN_EINVAL;
}

void config_value_expected(const struct config_key *key, char *dst, size_t dst_bytes)
{
    switch (key->type) {
    case CONFIG_STRING: snprintf(dst, dst_bytes, "a text"); break;
    case CONFIG_BOOL: snprintf(dst, dst_bytes, "true or false"); break;
    case CONFIG_U64: snprintf(dst, dst_bytes, "a whole number"); break;
    case CONFIG_BYTES: snprintf(dst, dst_bytes, "a size such as 64MiB or 1 GB"); break;
    case CONFIG_DURATION: snprintf(dst, dst_bytes, "a time such as 30s, 500ms or 2m"); break;
    case CONFIG_F64: snprintf(dst, dst_bytes, "a number"); break;
    case CONFIG_LIST: snprintf(dst, dst_bytes, "a list of maps"); break;
    case CONFIG_ENUM: {
        size_t len = (size_t)snprintf(dst, dst_bytes, "one of ");
        for (uint32_t i = 0; key->choices[i] != NULL && len < dst_bytes; i++)
            len += (size_t)snprintf(dst + len, dst_bytes - len, "%s%s", i == 0 ? "" : ", ", key->choices[i]);
        break;
    }
    }
}

static enum omen_err unexpected(const struct config_key *key, const char *text, char *why)
{
    char expected[160];
    config_value_expected(key, expected, sizeof expected);
    snprintf(why, CONFIG_WHY_BYTES, "must be %s, got \"%.40s\"", expected, text);
    return OMEN_EINVAL;
}

static enum omen_err parse_u64(const struct config_key *key, const char *text, uint64_t *field, char *why)
{
    uint64_t v = 0;
    const char *end;
    enum omen_err rc = OMEN_EINVAL;
    if (key->type == CONFIG_BYTES)
        rc = config_parse_bytes(text, &v);
    else if (key->type == CONFIG_DURATION)
        rc = config_parse_duration(text, &v);
    else if (parse_digits(text, &v, &end) && *end == '\0')
        rc = OMEN_OK;
    if (rc != OMEN_OK) return unexpected(key, text, why);
    rc = check_range(key, v, text, why);
    if (rc == OMEN_OK) *field = v;
    return rc;
}

static enum omen_err parse_f64(const struct config_key *key, const char *text, double *field, char *why)
{
    char *end;
    if (text[0] == '\0' || text[strspn(text, "0123456789+-.eE")] != '\0') return unexpected(key, text, why);
    double v = strtod(text, &end);
    if (*end != '\0' || !isfinite(v)) return unexpected(key, text, why);
    bool bounded = key->min != 0 || key->max != 0;
    if (bounded && !(v >= (double)key->min && v <= (double)key->max)) {
        snprintf(why, CONFIG_WHY_BYTES, "must be between %llu and %llu, got %.40s",
                (unsigned long long)key->min, (unsigned long long)key->max, text);
        return OMEN_EINVAL;
    }
    *field = v;
    return OMEN_OK;
}

static enum omen_err parse_enum(const struct config_key *key, const char *text, int *field, char *why)
{
    const char *nearest = NULL;
    for (int i = 0; key->choices[i] != NULL; i++) {
        if (strcmp(key->choices[i], text) == 0) {
            *field = i;
            return OMEN_OK;
        }
        if (config_edit_distance(key->choices[i], text) <= 2) nearest = key->choices[i];
    }
    unexpected(key, text, why);
    size_t len = strlen(why);
    if (nearest != NULL) snprintf(why + len, CONFIG_WHY_BYTES - len, "; did you mean %s?", nearest);
    return OMEN_EINVAL;
}

enum omen_err config_value_parse(const struct config_key *key, const char *text, struct arena *arena,
        void *field, char why[CONFIG_WHY_BYTES])
{
    switch (key->type) {
    case CONFIG_STRING: {
        char *copy = arena_strdup(arena, text, strlen(text));
        if (copy == NULL) {
            snprintf(why, CONFIG_WHY_BYTES, "no memory");
            return OMEN_ENOMEM;
        }
        *(char **)field = copy;
        return OMEN_OK;
    }
    case CONFIG_BOOL:
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0) return unexpected(key, text, why);
        *(bool *)field = text[0] == 't';
        return OMEN_OK;
    case CONFIG_U64:
    case CONFIG_BYTES:
    case CONFIG_DURATION: return parse_u64(key, text, field, why);
    case CONFIG_F64: return parse_f64(key, text, field, why);
    case CONFIG_ENUM: return parse_enum(key, text, field, why);
    case CONFIG_LIST: break;
    }
    CHECK(!"a list is no single value");
    return OMEN_EINTERNAL;
}

/* Damerau-Levenshtein with adjacent swaps (optimal string alignment), three rows. */
uint32_t config_edit_distance(const char *a, const char *b)
{
    size_t a_len = strlen(a), b_len = strlen(b);
    if (a_len >= CONFIG_KEY_BYTES_MAX || b_len >= CONFIG_KEY_BYTES_MAX) return UINT32_MAX;
    uint32_t rows[3][CONFIG_KEY_BYTES_MAX + 1];
    for (uint32_t j = 0; j <= b_len; j++) rows[0][j] = j;
    for (uint32_t i = 1; i <= a_len; i++) {
        uint32_t *now = rows[i % 3], *above = rows[(i + 2) % 3], *two_above = rows[(i + 1) % 3];
        now[0] = i;
        for (uint32_t j = 1; j <= b_len; j++) {
            uint32_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            if (above[j] + 1 < best) best = above[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && two_above[j - 2] + 1 < best) best = two_above[j - 2] + 1;
            now[j] = best;
        }
    }
    return rows[a_len % 3][b_len];
}

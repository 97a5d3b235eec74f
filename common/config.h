/* YAML configuration read against a declared table of keys; the only home of yaml.h.
 *
 * The caller declares every key with type, range and default; unknown keys, wrong types, values out of
 * range and duplicates are errors that name file, line and key: "deploy/omendb.yaml:12:
 * storage.chunk_bytes: must be between 1 MiB and 1 GiB, got 5 TB". Nested maps are written with dots;
 * lists of maps are declared with CONFIG_LIST. After the file, environment variables OMENDB_<KEY WITH _
 * FOR .> and then `--set key=value` override; a list is written there as YAML ("[{name: a}, {name: b}]").
 * Variables that name no key are ignored. */
#ifndef OMEN_COMMON_CONFIG_H
#define OMEN_COMMON_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct buf;

enum config_type {
    CONFIG_STRING,   /* char * (owned by the config) */
    CONFIG_BOOL,     /* bool */
    CONFIG_U64,      /* uint64_t, min..max */
    CONFIG_BYTES,    /* uint64_t; accepts 64MiB, 1 GB, plain bytes */
    CONFIG_DURATION, /* uint64_t nanoseconds; accepts 30s, 500ms, 2m, 1h */
    CONFIG_F64,      /* double, min..max taken as doubles */
    CONFIG_ENUM,     /* int, position in `choices` (NULL-terminated) */
    CONFIG_LIST,     /* struct config_list: every item a map read against `item_keys` */
};

struct config_key {
    const char *name; /* dotted path, e.g. "storage.chunk_bytes" */
    enum config_type type;
    size_t offset;                      /* of the field in the caller's struct */
    const char *default_text;           /* as it would stand in the file; NULL = required */
    uint64_t min, max;                  /* for U64, BYTES, DURATION; both 0 = no bound */
    const char *const *choices;         /* ENUM */
    const struct config_key *item_keys; /* LIST: terminated by name == NULL */
    size_t item_bytes;                  /* LIST: size of one item struct */
    uint32_t item_count_max;            /* LIST */
    const char *help; /* one line, for `omen-node --help-config` and the test that every key is documented */
};

struct config_list {
    void *items; /* [count] of item_bytes, owned by the config */
    uint32_t count;
};

struct config; /* owns the strings and lists put into the caller's struct */

/* Read `path` (NULL = defaults only), environment and `overrides` ("key=value", may be NULL) into
 * `target`. */
OMEN_CHECKED enum omen_err config_load(const char *path, const struct config_key *keys,
        const char *const *overrides, uint32_t override_count, void *target, struct config **config_out,
        struct err *err);
/* The same from text in memory; `name` stands for the path in sentences, `text` NULL = no file. */
OMEN_CHECKED enum omen_err config_load_text(const char *name, const char *text, size_t len,
        const struct config_key *keys, const char *const *overrides, uint32_t override_count, void *target,
        struct config **config_out, struct err *err);
/* One line per key with help, type and default, for `--help-config`. */
void config_help(const struct config_key *keys, struct buf *out);
void config_free(struct config *config); /* strings and lists in the target die with it */

/* "64MiB" -> bytes; "30s" -> ns. OMEN_EINVAL on nonsense or overflow. Also used by omenctl's options. */
OMEN_CHECKED enum omen_err config_parse_bytes(const char *text, uint64_t *bytes_out);
OMEN_CHECKED enum omen_err config_parse_duration(const char *text, uint64_t *ns_out);

#endif

/* Between the files of the configuration reader; nobody else includes it. */
#ifndef OMEN_COMMON_CONFIG_IMPL_H
#define OMEN_COMMON_CONFIG_IMPL_H

#include "common/config.h"
#include "common/mem.h"

#define CONFIG_FILE_BYTES_MAX (1024 * 1024)
#define CONFIG_DEPTH_MAX 16
#define CONFIG_NODES_MAX 10000
#define CONFIG_MAP_KEYS_MAX 1000
#define CONFIG_KEY_BYTES_MAX 128 /* one dotted path */
#define CONFIG_WHY_BYTES 256     /* what is wrong with one value */

/* config_yaml.c: YAML text as a tree of maps, lists and texts, all in one arena. No anchors, aliases or
 * tags: they let a small file become a large tree, and nobody needs them in a file of this size. */
enum config_node_kind { NODE_TEXT, NODE_MAP, NODE_LIST };

struct config_node {
    enum config_node_kind kind;
    bool plain;    /* text without quotes: may mean null */
    uint32_t line; /* 1-based; of the key when there is one */
    uint32_t child_count;
    const char *key;  /* in a map, else NULL */
    const char *text; /* NODE_TEXT, NUL-terminated, holds no other NUL */
    struct config_node *first, *last, *next;
    const struct config_node *parent;
};

/* `*root_out` is NULL for an empty document. `origin` leads the error's sentence ("<origin>:<line>: ..."). */
OMEN_CHECKED enum omen_err config_yaml_parse(const char *origin, const char *text, size_t len,
        struct arena *arena, struct config_node **root_out, struct err *err);

/* config_value.c: one text as the value of `key` into `*field` (strings are copied to `arena`). On failure
 * `why` says what it must be and what it was; OMEN_EINVAL or OMEN_ENOMEM. Not for CONFIG_LIST. */
OMEN_CHECKED enum omen_err config_value_parse(const struct config_key *key, const char *text,
        struct arena *arena, void *field, char why[CONFIG_WHY_BYTES]);

/* "a whole number", "true or false": completes "must be ...". */
void config_value_expected(const struct config_key *key, char *dst, size_t dst_bytes);

/* Number of insertions, deletions, substitutions and swaps of neighbours that turn a into b; both at most
 * CONFIG_KEY_BYTES_MAX long, else a large number. */
uint32_t config_edit_distance(const char *a, const char *b);

#endif

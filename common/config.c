/* Configuration: a declared table of keys filled from file, environment and command line, in this order.
 *
 * A scope is one table with the struct it fills: the whole configuration, or one item of a list. Every
 * source goes through set_text and set_node, so a value is checked alike wherever it comes from; what
 * nobody has set gets its default at the end, or is reported as missing.
 * Threads: none kept. Memory: strings and lists live in the config's arena until config_free. */
#include "common/config_impl.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/vfs.h"

#define ARENA_LIMIT_BYTES (64u << 20) /* of what one configuration may become in memory */
#define ENV_PREFIX "OMENDB_"
#define DISPLAY_BYTES_MAX (2 * CONFIG_KEY_BYTES_MAX)

struct config {
    struct arena arena;
};

struct loader {
    struct config *config;
    struct arena scratch;  /* trees and bookkeeping of this load */
    const char *source;    /* file, variable or option being read; leads every sentence */
    bool source_has_lines; /* a file; a line of a variable is worth nothing to a reader */
    struct err *err;
};

struct scope {
    const struct config_key *keys;
    uint8_t *target;
    uint32_t *set_line;         /* [key count]; 0 = not set; any number when set by no file */
    const char *display_prefix; /* "" or "peers[2]." */
};

/* `line` 0 = none. */
static enum omen_err fail(struct loader *l, uint32_t line, const char *prefix, const char *key,
        const char *why)
{
    char field[DISPLAY_BYTES_MAX], line_text[16] = "";
    snprintf(field, sizeof field, "%s%s", prefix, key);
    if (line != 0 && l->source_has_lines) snprintf(line_text, sizeof line_text, ":%u", line);
    return err_set(l->err, OMEN_EINVAL, field, "%s%s: %s: %s", l->source, line_text, field, why);
}

static enum omen_err out_of_memory(struct loader *l)
{
    return err_set(l->err, OMEN_ENOMEM, NULL, "no memory for the configuration");
}

static uint32_t key_count(const struct config_key *keys)
{
    uint32_t n = 0;
    while (keys[n].name != NULL) n++;
    return n;
}

/* ---- names ---- */

static const char *last_component(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot == NULL ? path : dot + 1;
}

/* The declared name that somebody who wrote `path` most likely meant, or NULL. A key in the wrong map is
 * found by its last component. */
static const char *nearest_name(const struct config_key *keys, const char *path)
{
    const char *best = NULL;
    uint32_t allowed = (uint32_t)strlen(last_component(path)) / 3,
             best_distance = (allowed > 3 ? 3 : allowed) + 1;
    for (; keys->name != NULL; keys++) {
        uint32_t d = config_edit_distance(keys->name, path);
        if (strchr(keys->name, '.') != NULL || strchr(path, '.') != NULL) {
            uint32_t of_last = config_edit_distance(last_component(keys->name), last_component(path));
            if (of_last < d) d = of_last;
        }
        if (d >= best_distance) continue;
        best = keys->name;
        best_distance = d;
    }
    return best;
}

static enum omen_err fail_unknown(struct loader *l, const struct scope *scope, uint32_t line,
        const char *path)
{
    char why[CONFIG_WHY_BYTES] = "is not a known key";
    const char *nearest = nearest_name(scope->keys, path);
    if (nearest != NULL) snprintf(why, sizeof why, "is not a known key; did you mean %s?", nearest);
    return fail(l, line, scope->display_prefix, path, why);
}

static const struct config_key *find_key(const struct config_key *keys, const char *path)
{
    for (; keys->name != NULL; keys++)
        if (strcmp(keys->name, path) == 0) return keys;
    return NULL;
}

/* Some key lies below `path`, e.g. "storage" above "storage.chunk_bytes". */
static const struct config_key *key_below(const struct config_key *keys, const char *path)
{
    size_t len = strlen(path);
    for (; keys->name != NULL; keys++)
        if (strncmp(keys->name, path, len) == 0 && keys->name[len] == '.') return keys;
    return NULL;
}

static void env_name(const char *key, char dst[CONFIG_KEY_BYTES_MAX + sizeof ENV_PREFIX])
{
    size_t n = strlen(ENV_PREFIX);
    memcpy(dst, ENV_PREFIX, n);
    for (; *key != '\0'; key++) dst[n++] = *key == '.' ? '_' : (char)toupper((unsigned char)*key);
    dst[n] = '\0';
}

/* ---- scopes ---- */

static enum omen_err read_map(struct loader *l, struct scope *scope, const struct config_node *map,
        const char *prefix);
static enum omen_err finish(struct loader *l, struct scope *scope, uint32_t line);

static enum omen_err scope_init(struct loader *l, struct scope *scope, const struct config_key *keys,
        void *target, const char *display_prefix)
{
    uint32_t *set_line = arena_calloc(&l->scratch, key_count(keys), sizeof *set_line);
    *scope = (struct scope){ .keys = keys,
        .target = target,
        .set_line = set_line,
        .display_prefix = display_prefix };
    return set_line == NULL ? out_of_memory(l) : OMEN_OK;
}

static bool is_null(const struct config_node *node)
{
    static const char *const NULLS[] = { "", "~", "null", "Null", "NULL" };
    if (node->kind != NODE_TEXT || !node->plain) return false;
    for (size_t i = 0; i < sizeof NULLS / sizeof NULLS[0]; i++)
        if (strcmp(node->text, NULLS[i]) == 0) return true;
    return false;
}

static enum omen_err set_text(struct loader *l, struct scope *scope, const struct config_key *key,
        uint32_t line, const char *text)
{
    char why[CONFIG_WHY_BYTES] = "";
    enum omen_err rc = config_value_parse(key, text, &l->config->arena, scope->target + key->offset, why);
    if (rc == OMEN_ENOMEM) return out_of_memory(l);
    return rc == OMEN_OK ? OMEN_OK : fail(l, line, scope->display_prefix, key->name, why);
}

static enum omen_err set_item(struct loader *l, const struct scope *scope, const struct config_key *key,
        uint32_t i, const struct config_node *node, uint8_t *item)
{
    struct scope inner;
    char display[DISPLAY_BYTES_MAX];
    snprintf(display, sizeof display, "%s%s[%u]", scope->display_prefix, key->name, i);
    if (node->kind != NODE_MAP) return fail(l, node->line, display, "", "must be a map of keys and values");
    snprintf(display, sizeof display, "%s%s[%u].", scope->display_prefix, key->name, i);
    enum omen_err rc = scope_init(l, &inner, key->item_keys, item, display);
    if (rc == OMEN_OK) rc = read_map(l, &inner, node, "");
    if (rc == OMEN_OK) rc = finish(l, &inner, node->line);
    return rc;
}

static enum omen_err set_list(struct loader *l, struct scope *scope, const struct config_key *key,
        const struct config_node *list)
{
    char why[CONFIG_WHY_BYTES];
    if (list->child_count > key->item_count_max) {
        snprintf(why, sizeof why, "must have at most %u items, got %u", key->item_count_max,
                list->child_count);
        return fail(l, list->line, scope->display_prefix, key->name, why);
    }
    uint8_t *items = arena_calloc(&l->config->arena, list->child_count, key->item_bytes);
    if (items == NULL) return out_of_memory(l);
    uint32_t i = 0;
    for (const struct config_node *node = list->first; node != NULL; node = node->next, i++) {
        enum omen_err rc = set_item(l, scope, key, i, node, items + i * key->item_bytes);
        if (rc != OMEN_OK) return rc;
    }
    struct config_list value = { .items = items, .count = list->child_count };
    memcpy(scope->target + key->offset, &value, sizeof value);
    return OMEN_OK;
}

static enum omen_err set_node(struct loader *l, struct scope *scope, const struct config_key *key,
        const struct config_node *node)
{
    static const char *const KIND_NAMES[] = { "one value", "a map", "a list" };
    char why[CONFIG_WHY_BYTES], expected[160];
    config_value_expected(key, expected, sizeof expected);
    if (is_null(node))
        snprintf(why, sizeof why, "has no value; it must be %s, or remove the line", expected);
    else if (node->kind == NODE_LIST && key->type == CONFIG_LIST)
        return set_list(l, scope, key, node);
    else if (node->kind == NODE_TEXT && key->type != CONFIG_LIST)
        return set_text(l, scope, key, node->line, node->text);
    else
        snprintf(why, sizeof why, "must be %s, got %s", expected, KIND_NAMES[node->kind]);
    return fail(l, node->line, scope->display_prefix, key->name, why);
}

/* One entry of a map: a declared key, a map above declared keys, or a mistake. */
static enum omen_err read_entry(struct loader *l, struct scope *scope, const struct config_node *node,
        const char *path)
{
    char why[CONFIG_WHY_BYTES];
    const struct config_key *key = find_key(scope->keys, path);
    if (key != NULL) {
        uint32_t *set_line = &scope->set_line[key - scope->keys];
        if (*set_line != 0) { /* once dotted, once nested */
            snprintf(why, sizeof why, "is given twice, first in line %u", *set_line);
            return fail(l, node->line, scope->display_prefix, path, why);
        }
        *set_line = node->line;
        return set_node(l, scope, key, node);
    }
    const struct config_key *below = key_below(scope->keys, path);
    if (below == NULL) return fail_unknown(l, scope, node->line, path);
    if (is_null(node)) return OMEN_OK; /* all its lines commented out */
    if (node->kind == NODE_MAP) return read_map(l, scope, node, path);
    snprintf(why, sizeof why, "must be a map of keys, such as %s", below->name);
    return fail(l, node->line, scope->display_prefix, path, why);
}

static enum omen_err read_map(struct loader *l, struct scope *scope, const struct config_node *map,
        const char *prefix)
{
    for (const struct config_node *node = map->first; node != NULL; node = node->next) {
        char path[CONFIG_KEY_BYTES_MAX];
        int n = snprintf(path, sizeof path, "%s%s%s", prefix, prefix[0] == '\0' ? "" : ".", node->key);
        if (n < 0 || (size_t)n >= sizeof path)
            return fail(l, node->line, scope->display_prefix, node->key,
                    "is no known key, and too long for one");
        enum omen_err rc = read_entry(l, scope, node, path);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

/* Defaults for what nobody has set. A default is ours: one that does not pass is a bug. */
static enum omen_err finish(struct loader *l, struct scope *scope, uint32_t line)
{
    for (uint32_t i = 0; scope->keys[i].name != NULL; i++) {
        const struct config_key *key = &scope->keys[i];
        if (scope->set_line[i] != 0) continue;
        if (key->default_text == NULL) return fail(l, line, scope->display_prefix, key->name, "is required");
        if (key->type == CONFIG_LIST) {
            CHECK(key->default_text[0] == '\0' || strcmp(key->default_text, "[]") == 0);
            memset(scope->target + key->offset, 0, sizeof(struct config_list));
            continue;
        }
        char why[CONFIG_WHY_BYTES] = "";
        enum omen_err rc = config_value_parse(key, key->default_text, &l->config->arena,
                scope->target + key->offset, why);
        if (rc == OMEN_ENOMEM) return out_of_memory(l);
        if (rc != OMEN_OK) panic("default of %s: %s", key->name, why);
    }
    return OMEN_OK;
}

/* ---- sources ---- */

static enum omen_err read_file_text(struct loader *l, struct scope *scope, const char *text, size_t len)
{
    struct config_node *root;
    enum omen_err rc = config_yaml_parse(l->source, text, len, &l->scratch, &root, l->err);
    if (rc != OMEN_OK || root == NULL || is_null(root)) return rc;
    if (root->kind != NODE_MAP)
        return err_set(l->err, OMEN_EINVAL, NULL, "%s:%u: must be a map of keys and values", l->source,
                root->line);
    return read_map(l, scope, root, "");
}

/* A variable's or an option's text: as it stands for single values, YAML for lists. */
static enum omen_err override(struct loader *l, struct scope *scope, const struct config_key *key,
        const char *text)
{
    scope->set_line[key - scope->keys] = 1;
    if (key->type != CONFIG_LIST) return set_text(l, scope, key, 0, text);
    struct config_node *root;
    enum omen_err rc = config_yaml_parse(l->source, text, strlen(text), &l->scratch, &root, l->err);
    if (rc != OMEN_OK) return rc;
    if (root == NULL) return fail(l, 0, "", key->name, "must be a list of maps, got nothing");
    return set_node(l, scope, key, root);
}

/* Variables that name no key are left alone: a cluster manager injects its own OMENDB_... for a service of
 * that name. */
static enum omen_err read_environment(struct loader *l, struct scope *scope)
{
    for (const struct config_key *key = scope->keys; key->name != NULL; key++) {
        char name[CONFIG_KEY_BYTES_MAX + sizeof ENV_PREFIX];
        env_name(key->name, name);
        const char *text = getenv(name);
        if (text == NULL) continue;
        l->source = name;
        enum omen_err rc = override(l, scope, key, text);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

static enum omen_err read_overrides(struct loader *l, struct scope *scope, const char *const *overrides,
        uint32_t override_count)
{
    l->source = "--set";
    for (uint32_t i = 0; i < override_count; i++) {
        char path[CONFIG_KEY_BYTES_MAX];
        const char *equals = strchr(overrides[i], '=');
        size_t len = equals == NULL ? 0 : (size_t)(equals - overrides[i]);
        if (len == 0 || len >= sizeof path)
            return err_set(l->err, OMEN_EINVAL, NULL, "--set: must be key=value, got \"%.60s\"",
                    overrides[i]);
        memcpy(path, overrides[i], len);
        path[len] = '\0';
        const struct config_key *key = find_key(scope->keys, path);
        if (key == NULL) return fail_unknown(l, scope, 0, path);
        enum omen_err rc = override(l, scope, key, equals + 1);
        if (rc != OMEN_OK) return rc;
    }
    return OMEN_OK;
}

/* What the table itself must promise: names that fit, and no two with the same variable. */
static void check_table(const struct config_key *keys)
{
    for (const struct config_key *a = keys; a->name != NULL; a++) {
        char a_env[CONFIG_KEY_BYTES_MAX + sizeof ENV_PREFIX], b_env[sizeof a_env];
        CHECK(strlen(a->name) < CONFIG_KEY_BYTES_MAX);
        CHECK(a->type != CONFIG_ENUM || a->choices != NULL);
        CHECK(a->type != CONFIG_LIST || (a->item_keys != NULL && a->item_bytes > 0 && a->item_count_max > 0));
        env_name(a->name, a_env);
        for (const struct config_key *b = keys; b < a; b++) {
            env_name(b->name, b_env);
            CHECK(strcmp(a_env, b_env) != 0);
        }
        if (a->type == CONFIG_LIST) check_table(a->item_keys);
    }
}

static enum omen_err load(struct loader *l, const char *text, size_t len, const struct config_key *keys,
        const char *const *overrides, uint32_t override_count, void *target)
{
    struct scope scope;
    const char *name = l->source;
    enum omen_err rc = scope_init(l, &scope, keys, target, "");
    l->source_has_lines = true;
    if (rc == OMEN_OK && text != NULL) rc = read_file_text(l, &scope, text, len);
    l->source_has_lines = false;
    if (rc == OMEN_OK) rc = read_environment(l, &scope);
    if (rc == OMEN_OK) rc = read_overrides(l, &scope, overrides, override_count);
    l->source = name;
    if (rc == OMEN_OK) rc = finish(l, &scope, 0);
    return rc;
}

enum omen_err config_load_text(const char *name, const char *text, size_t len, const struct config_key *keys,
        const char *const *overrides, uint32_t override_count, void *target, struct config **config_out,
        struct err *err)
{
    *config_out = NULL;
    check_table(keys);
    struct loader l = { .config = mem_must_calloc(1, sizeof *l.config), .source = name, .err = err };
    arena_init(&l.config->arena, 4096, ARENA_LIMIT_BYTES);
    arena_init(&l.scratch, 16384, ARENA_LIMIT_BYTES);
    enum omen_err rc = OMEN_OK;
    if (len > CONFIG_FILE_BYTES_MAX)
        rc = err_set(err, OMEN_ETOOBIG, NULL, "%s: more than %d bytes", name, CONFIG_FILE_BYTES_MAX);
    if (rc == OMEN_OK) rc = load(&l, text, len, keys, overrides, override_count, target);
    arena_fini(&l.scratch);
    if (rc == OMEN_OK)
        *config_out = l.config;
    else
        config_free(l.config);
    return rc;
}

enum omen_err config_load(const char *path, const struct config_key *keys, const char *const *overrides,
        uint32_t override_count, void *target, struct config **config_out, struct err *err)
{
    uint8_t *text = NULL;
    size_t len = 0;
    *config_out = NULL;
    if (path != NULL) {
        enum omen_err rc = vfs_read_file(vfs_posix(), path, CONFIG_FILE_BYTES_MAX, &text, &len, err);
        if (rc != OMEN_OK) return rc;
    }
    enum omen_err rc = config_load_text(path == NULL ? "configuration" : path, (const char *)text, len, keys,
            overrides, override_count, target, config_out, err);
    mem_free(text);
    return rc;
}

void config_free(struct config *config)
{
    if (config == NULL) return;
    arena_fini(&config->arena);
    mem_free(config);
}

/* ---- help ---- */

static void help_keys(const struct config_key *keys, const char *prefix, struct buf *out)
{
    for (; keys->name != NULL; keys++) {
        char expected[160], inner[DISPLAY_BYTES_MAX];
        config_value_expected(keys, expected, sizeof expected);
        buf_printf(out, "%s%s: %s (%s", prefix, keys->name, keys->help == NULL ? "" : keys->help, expected);
        if (keys->default_text == NULL)
            buf_printf(out, "; required)\n");
        else
            buf_printf(out, "; default %s)\n", keys->default_text[0] == '\0' ? "empty" : keys->default_text);
        if (keys->type != CONFIG_LIST) continue;
        snprintf(inner, sizeof inner, "%s%s[].", prefix, keys->name);
        help_keys(keys->item_keys, inner, out);
    }
}

void config_help(const struct config_key *keys, struct buf *out) { help_keys(keys, "", out); }

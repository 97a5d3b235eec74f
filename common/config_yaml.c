/* YAML text to a small tree, by libyaml's events. Events rather than libyaml's documents: its documents
 * resolve aliases silently, and depth and node count could be checked only after all was built. Threads:
 * none kept, pure function of its arguments. */
#include "common/config_impl.h"

#include <string.h>
#include <yaml.h>

#include "common/check.h"

struct reader {
    yaml_parser_t parser;
    yaml_event_t event; /* current; deleted before the next */
    const char *origin;
    const char *text;
    size_t len;
    struct arena *arena;
    uint32_t node_count;
    struct err *err;
};

static enum omen_err fail_at(struct reader *r, size_t line, const char *key, const char *why)
{
    return err_set(r->err, OMEN_EINVAL, key, "%s:%zu: %s%s%s", r->origin, line, key == NULL ? "" : key,
            key == NULL ? "" : ": ", why);
}

static size_t event_line(const struct reader *r) { return r->event.start_mark.line + 1; }

/* Reader errors (bytes that are no UTF-8) come with an offset and no line. */
static size_t problem_line(const struct reader *r)
{
    if (r->parser.error != YAML_READER_ERROR) return r->parser.problem_mark.line + 1;
    size_t line = 1;
    for (size_t i = 0; i < r->parser.problem_offset && i < r->len; i++)
        if (r->text[i] == '\n') line++;
    return line;
}

static enum omen_err next_event(struct reader *r)
{
    yaml_event_delete(&r->event);
    if (yaml_parser_parse(&r->parser, &r->event)) return OMEN_OK;
    if (r->parser.error == YAML_MEMORY_ERROR) return err_set(r->err, OMEN_ENOMEM, NULL, "no memory to parse");
    const char *problem = r->parser.problem == NULL ? "not YAML" : r->parser.problem;
    return fail_at(r, problem_line(r), NULL, problem);
}

static enum omen_err out_of_memory(struct reader *r)
{
    return err_set(r->err, OMEN_ENOMEM, NULL, "%s: no memory to parse", r->origin);
}

/* The current event's scalar as a string of the arena. */
static enum omen_err copy_scalar(struct reader *r, const char **text_out)
{
    const char *value = (const char *)r->event.data.scalar.value;
    size_t len = r->event.data.scalar.length;
    if (memchr(value, '\0', len) != NULL) return fail_at(r, event_line(r), NULL, "NUL character in a value");
    *text_out = arena_strdup(r->arena, value, len);
    return *text_out == NULL ? out_of_memory(r) : OMEN_OK;
}

static enum omen_err refuse_decorations(struct reader *r)
{
    const yaml_event_t *e = &r->event;
    const yaml_char_t *anchor = NULL, *tag = NULL;
    if (e->type == YAML_SCALAR_EVENT) anchor = e->data.scalar.anchor, tag = e->data.scalar.tag;
    if (e->type == YAML_MAPPING_START_EVENT)
        anchor = e->data.mapping_start.anchor, tag = e->data.mapping_start.tag;
    if (e->type == YAML_SEQUENCE_START_EVENT)
        anchor = e->data.sequence_start.anchor, tag = e->data.sequence_start.tag;
    if (anchor != NULL || e->type == YAML_ALIAS_EVENT)
        return fail_at(r, event_line(r), NULL, "anchors and aliases (& and *) are not supported");
    if (tag != NULL) return fail_at(r, event_line(r), NULL, "tags (!) are not supported");
    return OMEN_OK;
}

static enum omen_err read_node(struct reader *r, uint32_t depth, const struct config_node *parent,
        const char *key, struct config_node **node_out);

/* "peers[2].tags" into `dst`. A node that is being read is the next child of its parent. */
static size_t node_path(const struct config_node *node, char *dst, size_t dst_bytes)
{
    if (node->parent == NULL) return 0;
    size_t len = node_path(node->parent, dst, dst_bytes);
    const char *dot = len == 0 ? "" : ".";
    int n = node->key == NULL ? snprintf(dst + len, dst_bytes - len, "[%u]", node->parent->child_count)
                              : snprintf(dst + len, dst_bytes - len, "%s%s", dot, node->key);
    return n < 0 || (size_t)n >= dst_bytes - len ? dst_bytes - 1 : len + (size_t)n;
}

static void append(struct config_node *parent, struct config_node *child)
{
    if (parent->last == NULL)
        parent->first = child;
    else
        parent->last->next = child;
    parent->last = child;
    parent->child_count++;
}

/* The current event is a key of `map`. */
static enum omen_err read_key(struct reader *r, const struct config_node *map, const char **key_out)
{
    size_t line = event_line(r);
    enum omen_err rc = refuse_decorations(r);
    if (rc != OMEN_OK) return rc;
    if (r->event.type != YAML_SCALAR_EVENT) return fail_at(r, line, NULL, "a key must be a plain name");
    if (r->event.data.scalar.length >= CONFIG_KEY_BYTES_MAX) return fail_at(r, line, NULL, "key is too long");
    rc = copy_scalar(r, key_out);
    if (rc != OMEN_OK) return rc;
    for (const struct config_node *c = map->first; c != NULL; c = c->next)
        if (strcmp(c->key, *key_out) == 0) {
            char why[64], path[2 * CONFIG_KEY_BYTES_MAX];
            snprintf(why, sizeof why, "is given twice, first in line %u", c->line);
            node_path(c, path, sizeof path);
            return fail_at(r, line, path, why);
        }
    if (map->child_count >= CONFIG_MAP_KEYS_MAX)
        return fail_at(r, line, *key_out, "too many keys in one map");
    return OMEN_OK;
}

static enum omen_err read_children(struct reader *r, uint32_t depth, struct config_node *node)
{
    yaml_event_type_t end = node->kind == NODE_MAP ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT;
    if (depth >= CONFIG_DEPTH_MAX) return fail_at(r, node->line, NULL, "nested too deeply");
    for (;;) {
        enum omen_err rc = next_event(r);
        if (rc != OMEN_OK) return rc;
        if (r->event.type == end) return OMEN_OK;
        const char *key = NULL;
        uint32_t line = (uint32_t)event_line(r);
        if (node->kind == NODE_MAP) {
            rc = read_key(r, node, &key);
            if (rc == OMEN_OK) rc = next_event(r);
            if (rc != OMEN_OK) return rc;
        }
        struct config_node *child;
        rc = read_node(r, depth + 1, node, key, &child);
        if (rc != OMEN_OK) return rc;
        child->line = line;
        append(node, child);
    }
}

/* The current event begins the node; on return it is the node's last event. */
static enum omen_err read_node(struct reader *r, uint32_t depth, const struct config_node *parent,
        const char *key, struct config_node **node_out)
{
    enum omen_err rc = refuse_decorations(r);
    if (rc != OMEN_OK) return rc;
    if (++r->node_count > CONFIG_NODES_MAX)
        return fail_at(r, event_line(r), NULL, "too many values in one file");
    struct config_node *node = arena_calloc(r->arena, 1, sizeof *node);
    if (node == NULL) return out_of_memory(r);
    *node_out = node;
    node->line = (uint32_t)event_line(r);
    node->parent = parent;
    node->key = key;
    switch (r->event.type) {
    case YAML_SCALAR_EVENT:
        node->kind = NODE_TEXT;
        node->plain = r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
        return copy_scalar(r, &node->text);
    case YAML_MAPPING_START_EVENT: node->kind = NODE_MAP; return read_children(r, depth, node);
    case YAML_SEQUENCE_START_EVENT: node->kind = NODE_LIST; return read_children(r, depth, node);
    default: return fail_at(r, event_line(r), NULL, "a value is missing");
    }
}

static enum omen_err read_stream(struct reader *r, struct config_node **root_out)
{
    enum omen_err rc = next_event(r); /* stream start */
    if (rc == OMEN_OK) rc = next_event(r);
    if (rc != OMEN_OK || r->event.type == YAML_STREAM_END_EVENT) return rc;
    rc = next_event(r); /* document start is behind us: the first value */
    if (rc == OMEN_OK) rc = read_node(r, 0, NULL, NULL, root_out);
    if (rc == OMEN_OK) rc = next_event(r); /* document end */
    if (rc == OMEN_OK) rc = next_event(r);
    if (rc == OMEN_OK && r->event.type != YAML_STREAM_END_EVENT)
        rc = fail_at(r, event_line(r), NULL, "more than one document in one file");
    return rc;
}

enum omen_err config_yaml_parse(const char *origin, const char *text, size_t len, struct arena *arena,
        struct config_node **root_out, struct err *err)
{
    struct reader r = { .origin = origin, .text = text, .len = len, .arena = arena, .err = err };
    *root_out = NULL;
    if (!yaml_parser_initialize(&r.parser)) return out_of_memory(&r);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, len);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    enum omen_err rc = read_stream(&r, root_out);
    yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    return rc;
}

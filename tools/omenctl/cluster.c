/* See cluster.h. */
#include "tools/omenctl/cluster.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/config.h"

void answer_begin(struct answer *a, const char *action)
{
    *a = (struct answer){ .json = NULL };
    buf_init(&a->request);
    buf_printf(&a->request, "{\"do\":\"%s\"", action);
}

void answer_text(struct answer *a, const char *key, const char *value)
{
    if (value == NULL) return;
    buf_printf(&a->request, ",\"%s\":", key);
    put_string(&a->request, value);
}

void answer_u64(struct answer *a, const char *key, uint64_t value)
{
    buf_printf(&a->request, ",\"%s\":%llu", key, (unsigned long long)value);
}

void answer_flag(struct answer *a, const char *key, bool value)
{
    buf_printf(&a->request, ",\"%s\":%s", key, value ? "true" : "false");
}

omen_code answer_ask_quietly(struct cli *cli, struct answer *a)
{
    buf_append(&a->request, "}", 2); /* with its NUL */
    return a->request.failed ? OMEN_ENOMEM : omen_cluster(cli->db, (const char *)a->request.data, &a->json);
}

int answer_ask(struct cli *cli, struct answer *a)
{
    struct err err;
    omen_code rc = answer_ask_quietly(cli, a);
    if (rc != OMEN_OK) return fail_with(rc);
    if (json_text_init(&a->text, a->json, strlen(a->json), &err) != OMEN_OK)
        return fail_local("the reply cannot be read: %s", err.message);
    a->doc = a->text.doc;
    return EXIT_OK;
}

void answer_fini(struct answer *a)
{
    if (a->text.builder != NULL) json_text_fini(&a->text);
    omen_free(a->json);
    buf_fini(&a->request);
}

bool doc_get_bool(struct doc object, const char *key)
{
    struct doc value = doc_get(object, key);
    return value.data != NULL && doc_type(value) == DOC_TRUE;
}

uint64_t args_bytes(const struct cli *cli, const char *option, const char *text)
{
    uint64_t bytes = 0;
    if (strcmp(text, "0") != 0 && config_parse_bytes(text, &bytes) != OMEN_OK)
        usage_fail(cli->command, "%s wants bytes per second as 50MB, or 0 for no limit, got \"%s\"", option,
                text);
    return bytes;
}

uint64_t args_number(const struct cli *cli, const char *what, const char *text)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value > INT64_MAX)
        usage_fail(cli->command, "\"%s\" is no %s", text, what);
    return value;
}

uint32_t args_node(const struct cli *cli, const char *text)
{
    uint64_t id = args_number(cli, "id of a node", text);
    if (id == 0 || id > UINT32_MAX) usage_fail(cli->command, "\"%s\" is no id of a node", text);
    return (uint32_t)id;
}

uint32_t args_node_or_none(const struct cli *cli, const char *text)
{
    return strcmp(text, "-") == 0 ? 0 : args_node(cli, text);
}

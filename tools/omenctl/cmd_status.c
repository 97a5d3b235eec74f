/* omenctl status: the server's status document. */
#include <stdio.h>
#include <string.h>

#include "tools/omenctl/args.h"
#include "tools/omenctl/output.h"

/* Members of objects become rows named by their path; everything else is a value. */
static void add_rows(struct table *table, const char *prefix, struct doc doc)
{
    struct doc_iter it = doc_iter(doc);
    struct bytes key;
    struct doc value;
    while (doc_next(&it, &key, &value)) {
        char path[512];
        snprintf(path, sizeof path, "%s%s%.*s", prefix, prefix[0] == '\0' ? "" : ".", (int)key.len,
                key.len == 0 ? "" : (const char *)key.data);
        if (doc_type(value) == DOC_OBJECT && doc_count(value) > 0) {
            add_rows(table, path, value);
            continue;
        }
        table_cell(table, path, strlen(path));
        table_doc(table, value);
    }
}

static int run_status(struct cli *cli)
{
    char *json;
    omen_code rc = omen_status(cli->db, &json);
    if (rc != OMEN_OK) return fail_with(rc);
    struct json_text text;
    struct err err;
    int code = EXIT_OK;
    if (cli->json) {
        puts(json);
    } else if (json_text_init(&text, json, strlen(json), &err) != OMEN_OK) {
        code = fail_local("the status cannot be read: %s", err.message);
    } else {
        struct table *table = table_new();
        table_column(table, NULL, false);
        table_column(table, NULL, false);
        add_rows(table, "", text.doc);
        table_print(table, stdout, terminal_width());
        table_free(table);
        json_text_fini(&text);
    }
    omen_free(json);
    return code;
}

const struct command STATUS_COMMANDS[] = {
    { .name = "status",
            .arguments = "",
            .summary = "Version, state and load of the server",
            .run = run_status,
            .help = "Examples:\n  omenctl status\n  omenctl --json status\n" },
    { .name = NULL },
};

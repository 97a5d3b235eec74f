/* omenctl points set-payload, overwrite-payload, delete-payload. */
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "tools/omenctl/cmd_points.h"
#include "tools/omenctl/output.h"

static const char *shard_key, *filter;
static struct text_list paths;

static const struct option PAYLOAD_OPTIONS[] = {
    { "--shard-key", OPTION_TEXT, &shard_key, "JSON", "shard key value of these points" },
    { "--filter", OPTION_TEXT, &filter, "JSON", "all points that match, instead of ids" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};
static const struct option DELETE_PAYLOAD_OPTIONS[] = {
    { "--path", OPTION_LIST, &paths, "PATH", "member to drop, as a.b; may be given again" },
    { "--shard-key", OPTION_TEXT, &shard_key, "JSON", "shard key value of these points" },
    { "--filter", OPTION_TEXT, &filter, "JSON", "all points that match, instead of ids" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

typedef omen_code (*write_payload)(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, const char *const *payloads_json, size_t count,
        omen_write_result *result_out);

typedef omen_code (*write_payload_by_filter)(omen_client *client, const char *collection, const char *filter,
        const char *payload_json, omen_write_result *result_out);

static int tell_changed(struct cli *cli, omen_code rc, const omen_write_result *result)
{
    return rc == OMEN_OK ? tell_affected(cli, "changed", result->affected) : fail_with(rc);
}

/* COLLECTION ID.. JSON, or COLLECTION --filter F JSON */
static int change_payload(struct cli *cli, write_payload write, write_payload_by_filter write_by_filter)
{
    if ((filter != NULL) != (cli->argument_count == 2) || (filter != NULL && shard_key != NULL))
        usage_fail(cli->command, "give either ids or --filter");
    if (filter != NULL) {
        omen_write_result changed;
        omen_code by = write_by_filter(cli->db, cli->arguments[0], filter, cli->arguments[1], &changed);
        return tell_changed(cli, by, &changed);
    }
    uint32_t count = cli->argument_count - 2;
    omen_id *ids = ids_of_arguments(cli, 1, count);
    const char **keys = repeat_text(shard_key, count);
    const char **payloads = repeat_text(cli->arguments[cli->argument_count - 1], count);
    omen_write_result result;
    omen_code rc = write(cli->db, cli->arguments[0], ids, keys, payloads, count, &result);
    mem_free(ids);
    mem_free(keys);
    mem_free(payloads);
    return tell_changed(cli, rc, &result);
}

static int run_set(struct cli *cli)
{
    return change_payload(cli, omen_set_payload, omen_set_payload_by_filter);
}

static int run_overwrite(struct cli *cli)
{
    return change_payload(cli, omen_overwrite_payload, omen_overwrite_payload_by_filter);
}

static int run_delete(struct cli *cli)
{
    if (paths.count == 0) usage_fail(cli->command, "give one --path or more");
    uint32_t count = cli->argument_count - 1;
    omen_write_result result;
    if ((filter != NULL) == (count > 0) || (filter != NULL && shard_key != NULL))
        usage_fail(cli->command, "give either ids or --filter");
    if (filter != NULL)
        return tell_changed(cli,
                omen_delete_payload_by_filter(cli->db, cli->arguments[0], filter, paths.items, paths.count,
                        &result),
                &result);
    omen_id *ids = ids_of_arguments(cli, 1, count);
    const char **keys = repeat_text(shard_key, count);
    omen_code rc = omen_delete_payload(cli->db, cli->arguments[0], ids, keys, paths.items, paths.count, count,
            &result);
    mem_free(ids);
    mem_free(keys);
    return tell_changed(cli, rc, &result);
}

const struct command PAYLOAD_COMMANDS[] = {
    { .name = "points set-payload",
            .arguments = "COLLECTION ID.. JSON | COLLECTION --filter F JSON",
            .summary = "Replace the given members of payloads",
            .options = PAYLOAD_OPTIONS,
            .argument_min = 2,
            .argument_max = ARGS_LIST_MAX,
            .run = run_set,
            .help = "Examples:\n  omenctl points set-payload books 2 '{\"read\": true}'\n"
                    "  omenctl points set-payload books --filter '{\"must\": [{\"key\": \"year\", "
                    "\"range\": {\"lt\": 1970}}]}' '{\"old\": true}'\n" },
    { .name = "points overwrite-payload",
            .arguments = "COLLECTION ID.. JSON | COLLECTION --filter F JSON",
            .summary = "Replace whole payloads",
            .options = PAYLOAD_OPTIONS,
            .argument_min = 2,
            .argument_max = ARGS_LIST_MAX,
            .run = run_overwrite,
            .help = "Examples:\n  omenctl points overwrite-payload books 2 '{\"title\": \"Hyperion\"}'\n" },
    { .name = "points delete-payload",
            .arguments = "COLLECTION ID.. --path PATH | COLLECTION --filter F --path PATH",
            .summary = "Drop members of payloads",
            .options = DELETE_PAYLOAD_OPTIONS,
            .argument_min = 1,
            .argument_max = ARGS_LIST_MAX,
            .run = run_delete,
            .help = "Examples:\n"
                    "  omenctl points delete-payload books 1 2 --path read --path review.stars\n" },
    { .name = NULL },
};

/* omenctl points set-payload, overwrite-payload, delete-payload. */
#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "tools/omenctl/cmd_points.h"
#include "tools/omenctl/output.h"

static const char *shard_key;
static struct text_list paths;

static const struct option PAYLOAD_OPTIONS[] = {
    { "--shard-key", OPTION_TEXT, &shard_key, "JSON", "shard key value of these points" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};
static const struct option DELETE_PAYLOAD_OPTIONS[] = {
    { "--path", OPTION_LIST, &paths, "PATH", "member to drop, as a.b; may be given again" },
    { "--shard-key", OPTION_TEXT, &shard_key, "JSON", "shard key value of these points" },
    { NULL, OPTION_FLAG, NULL, NULL, NULL },
};

typedef omen_code (*write_payload)(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, const char *const *payloads_json, size_t count,
        omen_write_result *result_out);

/* COLLECTION ID.. JSON */
static int change_payload(struct cli *cli, write_payload write)
{
    uint32_t count = cli->argument_count - 2;
    omen_id *ids = ids_of_arguments(cli, 1, count);
    const char **keys = repeat_text(shard_key, count);
    const char **payloads = repeat_text(cli->arguments[cli->argument_count - 1], count);
    omen_write_result result;
    omen_code rc = write(cli->db, cli->arguments[0], ids, keys, payloads, count, &result);
    mem_free(ids);
    mem_free(keys);
    mem_free(payloads);
    return rc == OMEN_OK ? tell_affected(cli, "changed", result.affected) : fail_with(rc);
}

static int run_set(struct cli *cli) { return change_payload(cli, omen_set_payload); }

static int run_overwrite(struct cli *cli) { return change_payload(cli, omen_overwrite_payload); }

static int run_delete(struct cli *cli)
{
    if (paths.count == 0) usage_fail(cli->command, "give one --path or more");
    uint32_t count = cli->argument_count - 1;
    omen_id *ids = ids_of_arguments(cli, 1, count);
    const char **keys = repeat_text(shard_key, count);
    omen_write_result result;
    omen_code rc = omen_delete_payload(cli->db, cli->arguments[0], ids, keys, paths.items, paths.count, count,
            &result);
    mem_free(ids);
    mem_free(keys);
    return rc == OMEN_OK ? tell_affected(cli, "changed", result.affected) : fail_with(rc);
}

const struct command PAYLOAD_COMMANDS[] = {
    { .name = "points set-payload",
            .arguments = "COLLECTION ID.. JSON",
            .summary = "Replace the given members of payloads",
            .options = PAYLOAD_OPTIONS,
            .argument_min = 3,
            .argument_max = ARGS_LIST_MAX,
            .run = run_set,
            .help = "Examples:\n  omenctl points set-payload books 2 '{\"read\": true}'\n" },
    { .name = "points overwrite-payload",
            .arguments = "COLLECTION ID.. JSON",
            .summary = "Replace whole payloads",
            .options = PAYLOAD_OPTIONS,
            .argument_min = 3,
            .argument_max = ARGS_LIST_MAX,
            .run = run_overwrite,
            .help = "Examples:\n  omenctl points overwrite-payload books 2 '{\"title\": \"Hyperion\"}'\n" },
    { .name = "points delete-payload",
            .arguments = "COLLECTION ID.. --path PATH",
            .summary = "Drop members of payloads",
            .options = DELETE_PAYLOAD_OPTIONS,
            .argument_min = 2,
            .argument_max = ARGS_LIST_MAX,
            .run = run_delete,
            .help = "Examples:\n"
                    "  omenctl points delete-payload books 1 2 --path read --path review.stars\n" },
    { .name = NULL },
};

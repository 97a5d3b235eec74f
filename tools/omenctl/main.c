/* omenctl: administration and data from the command line. Global options, the table of commands, dispatch. */
#include <errno.h>
#include <inttypes.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/vfs.h"
#include "tools/omenctl/args.h"
#include "tools/omenctl/output.h"

#define ENDPOINT_DEFAULT "tcp://127.0.0.1:7700"
#define TIMEOUT_NS_DEFAULT 30000000000u
#define KEY_FILE_BYTES_MAX 4096
#define RETRIES_QUICK 4        /* a person waits about a second for a server that is not there */
#define RETRIES_PATIENT 100000 /* the timeout bounds them */

static const struct command *const GROUPS[] = { STATUS_COMMANDS, COLLECTION_COMMANDS, POINT_COMMANDS,
    PAYLOAD_COMMANDS, IMPORT_COMMANDS, SEARCH_COMMANDS, CLUSTER_COMMANDS, VERSION_COMMANDS, MOVE_COMMANDS,
    NULL };

/* Terminals here show UTF-8; only the widths of characters are taken from the locale. */
static void use_utf8(void)
{
    if (setlocale(LC_CTYPE, "") == NULL || strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        (void)setlocale(LC_CTYPE, "C.UTF-8");
}

/* The file's first line; the caller's to free. */
static char *read_key_file(const struct cli *cli)
{
    uint8_t *text = NULL;
    size_t len = 0;
    struct err err;
    if (vfs_read_file(vfs_posix(), cli->api_key_file, KEY_FILE_BYTES_MAX, &text, &len, &err) != OMEN_OK)
        usage_fail(cli->command, "--api-key-file: %s", err.message);
    size_t end = 0;
    while (end < len && text[end] != '\n' && text[end] != '\r') end++;
    char *key = mem_must_alloc(end + 1);
    memcpy(key, text, end);
    key[end] = '\0';
    explicit_bzero(text, len);
    mem_free(text);
    return key;
}

static omen_code open_client(struct cli *cli)
{
    char *key = cli->api_key_file == NULL ? NULL : read_key_file(cli);
    omen_options options = {
        .api_key = key != NULL ? key : getenv("OMENDB_API_KEY"),
        .timeout_ms = (uint32_t)((cli->timeout_ns + 999999u) / 1000000u),
        .retries = cli->command->patient ? RETRIES_PATIENT : RETRIES_QUICK,
        .client_name = "omenctl",
    };
    omen_code rc = omen_open(cli->endpoint, &options, &cli->db);
    if (key != NULL) explicit_bzero(key, strlen(key));
    mem_free(key);
    return rc;
}

/* "client-seq-issue_ms", as a failure has it. */
static void use_op_id(const struct cli *cli, const char *text)
{
    omen_op_id id = { .client = 0 };
    int end = 0;
    if (!cli->command->changes)
        usage_fail(cli->command, "--op-id is of commands that make one change, which this is not");
    bool plain = strspn(text, "0123456789-") == strlen(text) && text[0] != '-';
    if (!plain ||
            sscanf(text, "%" SCNu64 "-%" SCNu64 "-%" SCNu64 "%n", &id.client, &id.seq, &id.issue_ms, &end) !=
                    3 ||
            text[end] != '\0' || id.client == 0)
        usage_fail(cli->command, "--op-id wants three numbers as 123-4-567, got \"%s\"", text);
    omen_next_change_id(id);
}

int main(int argc, char **argv)
{
    use_utf8();
    (void)signal(SIGPIPE, SIG_IGN); /* the network's broken pipes; those of stdout show when it is flushed */
    const char *from_env = getenv("OMENDB_ENDPOINT");
    struct cli cli = { .endpoint = from_env != NULL && from_env[0] != '\0' ? from_env : ENDPOINT_DEFAULT,
        .timeout_ns = TIMEOUT_NS_DEFAULT };
    const struct option globals[] = {
        { "--endpoint", OPTION_TEXT, &cli.endpoint, "URL[,URL..]",
                "servers, tried in turn (tcp://127.0.0.1:7700)" },
        { "--api-key-file", OPTION_TEXT, &cli.api_key_file, "F", "file whose first line is the API key" },
        { "--json", OPTION_FLAG, &cli.json, NULL, "machine-readable output, nothing else on stdout" },
        { "--timeout", OPTION_DURATION, &cli.timeout_ns, "T", "per request, over all retries (30s)" },
        { "--op-id", OPTION_TEXT, &cli.op_id, "ID",
                "settle a change whose outcome was unknown: the id it told" },
        { "--help", OPTION_FLAG, NULL, NULL, "this text" },
        { NULL, OPTION_FLAG, NULL, NULL, NULL },
    };
    args_parse(&cli, argc, argv, GROUPS, globals);
    if (cli.timeout_ns / 1000000u > 24u * 3600 * 1000) usage_fail(cli.command, "--timeout is at most a day");
    if (cli.op_id != NULL) use_op_id(&cli, cli.op_id);
    omen_code rc = open_client(&cli);
    if (rc != OMEN_OK) {
        (void)fail_with(rc);
        return EXIT_USAGE; /* endpoints or key that can never work */
    }
    int code = cli.command->run(&cli);
    omen_close(cli.db);
    errno = 0;
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == EXIT_OK) {
        if (errno != EPIPE) fprintf(stderr, "omenctl: cannot write the output\n"); /* head has seen enough */
        code = EXIT_FAILED;
    }
    return code;
}

/* The command line: options declared in tables, values put where the table says.
 *
 * `--name value` and `--name=value`; `--` ends options; a lone "-" is an argument. Global options are taken before and
 * after the command. A wrong command line ends the process with EXIT_USAGE and a hint.
 * Threads: main only. */
#ifndef OMEN_TOOLS_OMENCTL_ARGS_H
#define OMEN_TOOLS_OMENCTL_ARGS_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/client/omen.h"

#define EXIT_OK 0
#define EXIT_FAILED 1      /* the operation failed */
#define EXIT_USAGE 2       /* the command line is wrong */
#define EXIT_UNREACHABLE 3 /* no endpoint answers */
#define EXIT_NOT_FOUND 4   /* no such collection, alias or point */

#define ARGS_LIST_MAX 256

enum option_kind {
    OPTION_FLAG,     /* bool */
    OPTION_NO_FLAG,  /* bool, set to false */
    OPTION_TEXT,     /* const char * */
    OPTION_U64,      /* uint64_t */
    OPTION_F64,      /* double */
    OPTION_DURATION, /* uint64_t nanoseconds: 30s, 500ms */
    OPTION_LIST,     /* struct text_list; may be given again */
};

struct text_list {
    const char *items[ARGS_LIST_MAX];
    uint32_t count;
};

struct option {
    const char *name; /* "--dim"; NULL ends a table */
    enum option_kind kind;
    void *value;            /* as the kind says; holds the default before */
    const char *value_name; /* "N"; NULL for flags */
    const char *help;
};

struct cli;

struct command {
    const char *name;      /* "collections create" */
    const char *arguments; /* "NAME --dim N" */
    const char *summary;   /* one line */
    const char *help;      /* further text and examples */
    const struct option *options;
    uint32_t argument_min, argument_max;
    bool patient; /* retries until the timeout: a loader outlives a restart of the server */
    bool changes; /* one thing, under an op id: takes --op-id */
    bool hidden;  /* another name of a command */
    int (*run)(struct cli *cli);
};

/* What a command runs with. */
struct cli {
    omen_client *db;
    bool json;
    const char *endpoint, *api_key_file, *op_id; /* op_id: NULL = a new one */
    uint64_t timeout_ns;
    const struct command *command;
    char **arguments; /* [argument_count] */
    uint32_t argument_count;
};

/* cmd_*.c; each ended by name == NULL. */
extern const struct command COLLECTION_COMMANDS[], POINT_COMMANDS[], PAYLOAD_COMMANDS[], IMPORT_COMMANDS[],
        SEARCH_COMMANDS[], STATUS_COMMANDS[], CLUSTER_COMMANDS[], VERSION_COMMANDS[], MOVE_COMMANDS[];

/* Find the command in argv and take all options. Returns with cli->command set, or ends the process (--help, errors). */
void args_parse(struct cli *cli, int argc, char **argv, const struct command *const *groups,
        const struct option *globals);
_Noreturn void usage_fail(const struct command *command, const char *fmt, ...)
        __attribute__((format(printf, 2, 3)));

/* Values of arguments; wrong ones end the process with EXIT_USAGE. */
omen_id args_id(const struct cli *cli, const char *text);
uint32_t args_u32(const struct cli *cli, const char *option, uint64_t value, uint32_t min, uint32_t max);

#endif

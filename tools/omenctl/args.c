/* Finding the command, taking options, help and did-you-mean. See args.h. */
#include "tools/omenctl/args.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/config.h"
#include "common/version.h"
#include "tools/omenctl/output.h"

#define NAME_WORDS_MAX 3

static const char EXIT_CODES[] = "Exit codes: 0 done, 1 the operation failed, 2 wrong command line,\n"
                                 "            3 no endpoint answers, 4 not found.\n";

_Noreturn void usage_fail(const struct command *command, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fputs("omenctl: ", stderr);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\ntry: omenctl %s%s--help\n", command == NULL ? "" : command->name,
            command == NULL ? "" : " ");
    exit(EXIT_USAGE);
}

/* ---- help ---- */

static void print_options(const struct option *options)
{
    for (; options != NULL && options->name != NULL; options++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", options->name, options->value_name == NULL ? "" : " ",
                options->value_name == NULL ? "" : options->value_name);
        printf("  %-24s %s\n", left, options->help);
    }
}

_Noreturn static void command_help(const struct command *command, const struct option *globals)
{
    printf("omenctl %s %s\n\n%s.\n", command->name, command->arguments, command->summary);
    if (command->options != NULL && command->options->name != NULL) {
        printf("\nOptions:\n");
        print_options(command->options);
    }
    if (command->help != NULL) printf("\n%s", command->help);
    printf("\nGlobal options:\n");
    print_options(globals);
    printf("\n%s", EXIT_CODES);
    exit(EXIT_OK);
}

_Noreturn static void general_help(const struct command *const *groups, const struct option *globals)
{
    printf("omenctl: administration and data of OmenDB from the command line.\n\n"
           "omenctl [options] COMMAND [arguments]        omenctl COMMAND --help\n\nCommands:\n");
    for (; *groups != NULL; groups++)
        for (const struct command *c = *groups; c->name != NULL; c++)
            if (!c->hidden) printf("  %-26s %s\n", c->name, c->summary);
    printf("\nOptions, before or after the command:\n");
    print_options(globals);
    printf("  %-24s %s\n", "--version", "version and commit of this omenctl");
    printf("\nEnvironment: OMENDB_ENDPOINT, OMENDB_API_KEY.\n%s", EXIT_CODES);
    exit(EXIT_OK);
}

/* ---- did you mean ---- */

/* Levenshtein distance of short texts; anything longer than the table is far away. */
static size_t edit_distance(const char *a, const char *b)
{
    enum { LEN_MAX = 63 };
    size_t row[LEN_MAX + 1], a_len = strlen(a), b_len = strlen(b);
    if (a_len > LEN_MAX || b_len > LEN_MAX) return LEN_MAX;
    for (size_t j = 0; j <= b_len; j++) row[j] = j;
    for (size_t i = 1; i <= a_len; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_len; j++) {
            size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            size_t shorter = row[j] < row[j - 1] ? row[j] : row[j - 1];
            row[j] = replaced < shorter + 1 ? replaced : shorter + 1;
        }
    }
    return row[b_len];
}

static void keep_nearer(const char *given, const char *candidate, const char **best, size_t *best_distance)
{
    size_t distance = edit_distance(given, candidate);
    if (distance >= *best_distance) return;
    *best = candidate;
    *best_distance = distance;
}

static const char *nearest_command(const char *given, const struct command *const *groups)
{
    const char *best = NULL;
    size_t best_distance = strlen(given) / 3 + 2;
    for (; *groups != NULL; groups++)
        for (const struct command *c = *groups; c->name != NULL; c++)
            keep_nearer(given, c->name, &best, &best_distance);
    return best;
}

static const char *nearest_option(const char *given, const struct command *command,
        const struct option *globals)
{
    const char *best = NULL;
    size_t best_distance = strlen(given) / 3 + 1;
    const struct option *tables[2] = { command == NULL ? NULL : command->options, globals };
    for (int i = 0; i < 2; i++)
        for (const struct option *o = tables[i]; o != NULL && o->name != NULL; o++)
            keep_nearer(given, o->name, &best, &best_distance);
    return best;
}

/* ---- options ---- */

static const struct option *find_option(const struct option *options, const char *name, size_t len)
{
    for (; options != NULL && options->name != NULL; options++)
        if (strlen(options->name) == len && memcmp(options->name, name, len) == 0) return options;
    return NULL;
}

static void parse_number(const struct command *command, const struct option *option, const char *text)
{
    char *end = NULL;
    errno = 0;
    if (option->kind == OPTION_F64) {
        *(double *)option->value = strtod(text, &end);
    } else {
        bool digits = text[0] >= '0' && text[0] <= '9';
        *(uint64_t *)option->value = strtoull(text, &end, 10);
        if (!digits) end = NULL;
    }
    if (end == NULL || end == text || *end != '\0' || errno != 0)
        usage_fail(command, "%s wants a number, got \"%s\"", option->name, text);
}

static void set_value(const struct command *command, const struct option *option, const char *text)
{
    switch (option->kind) {
    case OPTION_TEXT: *(const char **)option->value = text; return;
    case OPTION_U64:
    case OPTION_F64: parse_number(command, option, text); return;
    case OPTION_DURATION:
        if (config_parse_duration(text, option->value) != OMEN_OK || *(uint64_t *)option->value == 0)
            usage_fail(command, "%s wants a duration as 30s or 500ms, got \"%s\"", option->name, text);
        return;
    case OPTION_LIST: {
        struct text_list *list = option->value;
        if (list->count == ARGS_LIST_MAX) usage_fail(command, "%s: at most %d", option->name, ARGS_LIST_MAX);
        list->items[list->count++] = text;
        return;
    }
    case OPTION_FLAG:
    case OPTION_NO_FLAG: return;
    }
}

/* Takes argv[*i], and its value if it wants one. */
static void take_option(const struct command *command, const struct option *globals, int argc, char **argv,
        int *i)
{
    const char *arg = argv[*i];
    size_t len = strcspn(arg, "=");
    const struct option *option = command == NULL ? NULL : find_option(command->options, arg, len);
    if (option == NULL) option = find_option(globals, arg, len);
    if (option == NULL) {
        const char *near = nearest_option(arg, command, globals);
        usage_fail(command, "unknown option %s%s%s%s", arg, near == NULL ? "" : "; did you mean ",
                near == NULL ? "" : near, near == NULL ? "" : "?");
    }
    bool flag = option->kind == OPTION_FLAG || option->kind == OPTION_NO_FLAG;
    if (flag && arg[len] == '=') usage_fail(command, "%s takes no value", option->name);
    if (flag)
        *(bool *)option->value = option->kind == OPTION_FLAG;
    else if (arg[len] == '=')
        set_value(command, option, arg + len + 1);
    else if (*i + 1 < argc)
        set_value(command, option, argv[++*i]);
    else
        usage_fail(command, "%s wants a value: %s", option->name, option->value_name);
}

/* ---- command ---- */

/* The command with the most words that `words` begins with; *used_out of them. */
static const struct command *find_command(const struct command *const *groups, char **words, int count,
        int *used_out)
{
    for (int used = count < NAME_WORDS_MAX ? count : NAME_WORDS_MAX; used > 0; used--) {
        char name[256] = "";
        for (int i = 0; i < used; i++)
            snprintf(name + strlen(name), sizeof name - strlen(name), "%s%s", i == 0 ? "" : " ", words[i]);
        for (const struct command *const *g = groups; *g != NULL; g++)
            for (const struct command *c = *g; c->name != NULL; c++)
                if (strcmp(c->name, name) == 0) {
                    *used_out = used;
                    return c;
                }
    }
    return NULL;
}

_Noreturn static void unknown_command(const struct command *const *groups, char **words, int count)
{
    char name[256];
    snprintf(name, sizeof name, "%s%s%s", words[0], count > 1 ? " " : "", count > 1 ? words[1] : "");
    const char *near = nearest_command(name, groups);
    if (near == NULL) near = nearest_command(words[0], groups);
    fprintf(stderr, "omenctl: unknown command \"%s\"", name);
    if (near != NULL) fprintf(stderr, "; did you mean \"%s\"?", near);
    size_t len = strlen(words[0]);
    const char *joint = "\ncommands: ";
    for (const struct command *const *g = groups; *g != NULL; g++)
        for (const struct command *c = *g; c->name != NULL; c++)
            if (strncmp(c->name, words[0], len) == 0 && c->name[len] == ' ') {
                fprintf(stderr, "%s%s", joint, c->name);
                joint = ", ";
            }
    fprintf(stderr, "\ntry: omenctl --help\n");
    exit(EXIT_USAGE);
}

static bool asks_help(const char *arg) { return strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0; }

void args_parse(struct cli *cli, int argc, char **argv, const struct command *const *groups,
        const struct option *globals)
{
    int i = 1, used = 0;
    for (; i < argc && argv[i][0] == '-' && argv[i][1] != '\0'; i++) {
        if (asks_help(argv[i])) general_help(groups, globals);
        if (strcmp(argv[i], "--version") == 0) {
            printf("omenctl %s (%s)\n", OMEN_VERSION, version_commit());
            exit(EXIT_OK);
        }
        take_option(NULL, globals, argc, argv, &i);
    }
    if (i >= argc || strcmp(argv[i], "help") == 0) general_help(groups, globals);
    const struct command *command = find_command(groups, argv + i, argc - i, &used);
    if (command == NULL) unknown_command(groups, argv + i, argc - i);
    cli->command = command;
    cli->arguments = argv + i + used; /* arguments are moved together in place */
    bool options_end = false;
    for (i += used; i < argc; i++) {
        if (!options_end && strcmp(argv[i], "--") == 0)
            options_end = true;
        else if (!options_end && asks_help(argv[i]))
            command_help(command, globals);
        else if (!options_end && argv[i][0] == '-' && argv[i][1] != '\0')
            take_option(command, globals, argc, argv, &i);
        else
            cli->arguments[cli->argument_count++] = argv[i];
    }
    if (cli->argument_count < command->argument_min)
        usage_fail(command, "%s: too few arguments: omenctl %s %s", command->name, command->name,
                command->arguments);
    if (cli->argument_count > command->argument_max)
        usage_fail(command, "%s: \"%s\" is one argument too many: omenctl %s %s", command->name,
                cli->arguments[command->argument_max], command->name, command->arguments);
}

/* ---- values ---- */

omen_id args_id(const struct cli *cli, const char *text)
{
    omen_id id;
    if (!id_of_text(text, strlen(text), &id))
        usage_fail(cli->command, "\"%s\" is no id: a number from 0 to 2^64-1 or a UUID", text);
    return id;
}

uint32_t args_u32(const struct cli *cli, const char *option, uint64_t value, uint32_t min, uint32_t max)
{
    if (value < min || value > max)
        usage_fail(cli->command, "%s is between %u and %u, got %llu", option, min, max,
                (unsigned long long)value);
    return (uint32_t)value;
}

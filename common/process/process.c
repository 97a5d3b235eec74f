/* See process.h. */
#include "common/process/process.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/check.h"
#include "common/log.h"
#include "common/version.h"
#include "common/vfs.h"

#define OPTIONS_MAX 16u
#define READY_POLL_NS 5000000

enum { OPT_FIRST = 1000, OPT_CONFIG = 256, OPT_SET, OPT_READY, OPT_HELP_CONFIG, OPT_VERSION, OPT_HELP };

struct command_line {
    const char *config_path, *ready_file;
    char *overrides[PROCESS_OVERRIDES_MAX]; /* owned */
    uint32_t override_count;
};

/* ---- --help-config ---- */

static const char *type_name(enum config_type type)
{
    switch (type) {
    case CONFIG_STRING: return "text";
    case CONFIG_BOOL: return "true/false";
    case CONFIG_U64: return "number";
    case CONFIG_BYTES: return "bytes";
    case CONFIG_DURATION: return "duration";
    case CONFIG_F64: return "number";
    case CONFIG_ENUM: return "choice";
    case CONFIG_LIST: return "list";
    }
    return "";
}

static void print_keys(const struct config_key *keys, const char *prefix)
{
    for (const struct config_key *key = keys; key->name != NULL; key++) {
        char name[96];
        snprintf(name, sizeof name, "%s%s", prefix, key->name);
        const char *value = key->default_text == NULL ? "(required)"
                : key->default_text[0] == '\0'        ? "(none)"
                                                      : key->default_text;
        printf("  %-30s %-10s %-24s %s\n", name, type_name(key->type), value, key->help);
        if (key->item_keys != NULL) {
            snprintf(name, sizeof name, "%s%s[].", prefix, key->name);
            print_keys(key->item_keys, name);
        }
    }
}

static void print_config(const struct config_key *keys)
{
    printf("  %-30s %-10s %-24s %s\n", "KEY", "TYPE", "DEFAULT", "MEANING");
    print_keys(keys, "");
    printf("\nEach key may also be given as an environment variable, OMENDB_ and the key in capitals with _ for . "
           "(OMENDB_LOG_LEVEL=debug),\nand as --set key=value, which wins.\n");
}

/* ---- options ---- */

static bool override_add(const struct process_program *p, struct command_line *line, const char *key,
        const char *value)
{
    if (line->override_count == PROCESS_OVERRIDES_MAX) {
        fprintf(stderr, "%s: more than %u settings on the command line\n", p->name, PROCESS_OVERRIDES_MAX);
        return false;
    }
    size_t bytes = strlen(key) + strlen(value) + 2;
    char *text = mem_must_alloc(bytes);
    snprintf(text, bytes, "%s%s%s", key, key[0] == '\0' ? "" : "=", value);
    line->overrides[line->override_count++] = text;
    return true;
}

static void long_options(const struct process_program *p, struct option *out)
{
    static const struct option common[] = {
        { "config", required_argument, NULL, OPT_CONFIG },
        { "set", required_argument, NULL, OPT_SET },
        { "ready-file", required_argument, NULL, OPT_READY },
        { "help-config", no_argument, NULL, OPT_HELP_CONFIG },
        { "version", no_argument, NULL, OPT_VERSION },
        { "help", no_argument, NULL, OPT_HELP },
        { NULL, 0, NULL, 0 },
    };
    size_t n = 0;
    for (; p->options[n].name != NULL; n++) {
        CHECK(n < OPTIONS_MAX);
        out[n] = (struct option){ p->options[n].name,
            p->options[n].flag != NULL ? no_argument : required_argument, NULL, OPT_FIRST + (int)n };
    }
    memcpy(out + n, common, sizeof common);
}

/* false: stop with *exit_out. */
static bool option_take(const struct process_program *p, int opt, struct command_line *line, int *exit_out)
{
    if (opt >= OPT_FIRST) {
        const struct process_option *option = &p->options[opt - OPT_FIRST];
        if (option->flag == NULL) return override_add(p, line, option->key, optarg);
        *option->flag = true;
        return true;
    }
    switch (opt) {
    case OPT_CONFIG: line->config_path = optarg; return true;
    case OPT_READY: line->ready_file = optarg; return true;
    case OPT_SET: return override_add(p, line, "", optarg);
    case OPT_HELP_CONFIG: print_config(p->keys); break;
    case OPT_VERSION: printf("%s %s (%s)\n", p->name, OMEN_VERSION, version_commit()); break;
    case OPT_HELP: fputs(p->help, stdout); break;
    default: fprintf(stderr, "try %s --help\n", p->name); return false;
    }
    *exit_out = PROCESS_STOPPED;
    return false;
}

static bool options_parse(const struct process_program *p, int argc, char **argv, struct command_line *line,
        int *exit_out)
{
    struct option longs[OPTIONS_MAX + 8];
    long_options(p, longs);
    *exit_out = PROCESS_USAGE;
    int opt;
    while ((opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (!option_take(p, opt, line, exit_out)) return false;
    }
    if (optind == argc) return true;
    fprintf(stderr, "%s: unexpected argument \"%s\"\n", p->name, argv[optind]);
    return false;
}

/* ---- life ---- */

static int exit_code_of(enum omen_err code)
{
    switch (code) {
    case OMEN_EINVAL: return PROCESS_USAGE;
    case OMEN_EBUSY: return PROCESS_IN_USE;
    case OMEN_ECORRUPT:
    case OMEN_EVERSION: return PROCESS_DAMAGED;
    default: return PROCESS_FAILED;
    }
}

static enum omen_err ready_file_write(const struct process_program *p, const char *path, void *running,
        struct err *err)
{
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "{");
    p->describe(running, &b);
    buf_printf(&b, ", \"pid\": %ld}\n", (long)getpid());
    enum omen_err rc = b.failed ? err_set(err, OMEN_ENOMEM, "", "no memory")
                                : vfs_replace_file(vfs_posix(), path, b.data, b.len, err);
    buf_fini(&b);
    return rc;
}

static void signals_block(sigset_t *set)
{
    struct sigaction ignore = { .sa_handler = SIG_IGN };
    sigaction(SIGPIPE, &ignore, NULL);
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    pthread_sigmask(SIG_BLOCK, set, NULL);
}

/* 0 when it has become ready, else the signal that came first. */
static int wait_until_ready(const struct process_program *p, void *running, const sigset_t *signals)
{
    const struct timespec poll = { .tv_nsec = READY_POLL_NS };
    while (p->is_ready != NULL && !p->is_ready(running)) {
        int number = sigtimedwait(signals, NULL, &poll);
        if (number > 0) return number;
    }
    return 0;
}

static int serve(const struct process_program *p, const char *ready_file, const sigset_t *signals)
{
    struct err err;
    err_clear(&err);
    void *running;
    enum omen_err rc = p->start(p->config, &running, &err);
    if (rc != OMEN_OK) {
        p->log_start(err_name(rc), err.message);
        return exit_code_of(rc);
    }
    int number = wait_until_ready(p, running, signals);
    if (number == 0) {
        if (ready_file != NULL && ready_file_write(p, ready_file, running, &err) != OMEN_OK) {
            p->log_start("ready_file", err.message);
            p->stop(running);
            return PROCESS_FAILED;
        }
        p->log_ready(p->config, running);
        while (sigwait(signals, &number) != 0) continue;
    }
    p->log_stop(number == SIGTERM ? "SIGTERM" : "SIGINT");
    p->stop(running);
    if (ready_file != NULL) unlink(ready_file);
    p->log_stop(NULL);
    return PROCESS_STOPPED;
}

static int run(const struct process_program *p, struct command_line *line, const sigset_t *signals)
{
    struct config *config;
    struct err err;
    err_clear(&err);
    enum omen_err rc = config_load(line->config_path, p->keys, (const char *const *)line->overrides,
            line->override_count, p->config, &config, &err);
    if (rc != OMEN_OK) {
        fprintf(stderr, "%s: %s\n", p->name, err.message);
        return PROCESS_USAGE;
    }
    int code = PROCESS_USAGE;
    if (p->check == NULL || p->check(p->config)) {
        log_configure((enum log_level) * p->log_level, (enum log_format) * p->log_format, STDERR_FILENO);
        code = serve(p, line->ready_file, signals);
    }
    config_free(config);
    return code;
}

int process_main(const struct process_program *p, int argc, char **argv)
{
    struct command_line line = { .override_count = 0 };
    int code;
    sigset_t signals;
    signals_block(&signals);
    if (options_parse(p, argc, argv, &line, &code)) code = run(p, &line, &signals);
    for (uint32_t i = 0; i < line.override_count; i++) mem_free(line.overrides[i]);
    return code;
}

/* ---- addresses ---- */

void process_url_with_port(const char *url, uint16_t port, char out[PROCESS_URL_BYTES_MAX])
{
    const char *colon = strrchr(url, ':');
    snprintf(out, PROCESS_URL_BYTES_MAX, "%s", url);
    if (port == 0 || colon == NULL || colon[1] < '0' || colon[1] > '9') return;
    snprintf(out, PROCESS_URL_BYTES_MAX, "%.*s:%u", (int)(colon - url), url, port);
}

bool process_url_is_public(const char *url)
{
    return strncmp(url, "tcp://", 6) == 0 && strncmp(url, "tcp://127.", 10) != 0 &&
            strncmp(url, "tcp://localhost", 15) != 0 && strncmp(url, "tcp://[::1]", 11) != 0;
}

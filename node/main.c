/* omen-node: options, signals, exit codes. The main thread starts everything, then waits for a signal; the signals are
 * blocked in every thread, so none of them runs a handler. */
#include "common/err.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/version.h"
#include "node/standalone.h"

#define OVERRIDES_MAX 256u

enum exit_code {
    EXIT_STOPPED = 0, /* asked to stop, and did */
    EXIT_FAILED = 1,  /* could not start: address in use, I/O error, no memory ... */
    EXIT_USAGE = 2,   /* wrong options or configuration */
    EXIT_IN_USE = 3,  /* the data directory belongs to another process */
    EXIT_DAMAGED = 4, /* data on disk fail their checksums, or are of a version this program does not know */
};

static const char help_text[] =
        "usage: omen-node --standalone [options]\n"
        "\n"
        "  --standalone        router and node in one process over one data directory (required in this version)\n"
        "  --config FILE       read this configuration (see deploy/omendb.yaml)\n"
        "  --data DIR          data directory; same as --set data_dir=DIR\n"
        "  --listen URL        where clients connect, tcp://127.0.0.1:7700; port 0 takes a free one\n"
        "  --http URL          where /metrics, /healthz, /readyz are served, http://127.0.0.1:7701\n"
        "  --set KEY=VALUE     override one configuration key; may be repeated\n"
        "  --ready-file PATH   write {\"listen\", \"http\", \"pid\"} there once requests are served\n"
        "  --help-config       list every configuration key\n"
        "  --version           print the version\n"
        "  --help              print this\n"
        "\n"
        "SIGTERM and SIGINT stop it in order: requests in service are finished, every shard is checkpointed.\n"
        "exit codes: 0 stopped as asked, 1 could not start, 2 wrong options or configuration,\n"
        "            3 the data directory is in use by another process, 4 data on disk are damaged (named)\n";

struct options {
    bool standalone;
    const char *config_path, *ready_file;
    char *overrides[OVERRIDES_MAX]; /* owned */
    uint32_t override_count;
};

static bool override_add(struct options *o, const char *key, const char *value)
{
    if (o->override_count == OVERRIDES_MAX) {
        fprintf(stderr, "omen-node: more than %u settings on the command line\n", OVERRIDES_MAX);
        return false;
    }
    size_t bytes = strlen(key) + strlen(value) + 2;
    char *text = mem_must_alloc(bytes);
    snprintf(text, bytes, "%s%s%s", key, key[0] == '\0' ? "" : "=", value);
    o->overrides[o->override_count++] = text;
    return true;
}

/* false: stop with *exit_out. */
static bool options_parse(int argc, char **argv, struct options *o, int *exit_out)
{
    enum {
        OPT_STANDALONE = 256,
        OPT_CONFIG,
        OPT_DATA,
        OPT_LISTEN,
        OPT_HTTP,
        OPT_SET,
        OPT_READY,
        OPT_HELP_CONFIG,
        OPT_VERSION,
        OPT_HELP
    };
    static const struct option longs[] = {
        { "standalone", no_argument, NULL, OPT_STANDALONE },
        { "config", required_argument, NULL, OPT_CONFIG },
        { "data", required_argument, NULL, OPT_DATA },
        { "listen", required_argument, NULL, OPT_LISTEN },
        { "http", required_argument, NULL, OPT_HTTP },
        { "set", required_argument, NULL, OPT_SET },
        { "ready-file", required_argument, NULL, OPT_READY },
        { "help-config", no_argument, NULL, OPT_HELP_CONFIG },
        { "version", no_argument, NULL, OPT_VERSION },
        { "help", no_argument, NULL, OPT_HELP },
        { NULL, 0, NULL, 0 },
    };
    *exit_out = EXIT_USAGE;
    int opt;
    while ((opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        bool fine = true;
        switch (opt) {
        case OPT_STANDALONE: o->standalone = true; break;
        case OPT_CONFIG: o->config_path = optarg; break;
        case OPT_READY: o->ready_file = optarg; break;
        case OPT_DATA: fine = override_add(o, "data_dir", optarg); break;
        case OPT_LISTEN: fine = override_add(o, "listen", optarg); break;
        case OPT_HTTP: fine = override_add(o, "http_listen", optarg); break;
        case OPT_SET: fine = override_add(o, "", optarg); break;
        case OPT_HELP_CONFIG:
            node_config_print();
            *exit_out = EXIT_STOPPED;
            return false;
        case OPT_VERSION:
            printf("omen-node %s (%s)\n", OMEN_VERSION, version_commit());
            *exit_out = EXIT_STOPPED;
            return false;
        case OPT_HELP:
            fputs(help_text, stdout);
            *exit_out = EXIT_STOPPED;
            return false;
        default: fputs("try omen-node --help\n", stderr); return false;
        }
        if (!fine) return false;
    }
    if (optind < argc) {
        fprintf(stderr, "omen-node: unexpected argument \"%s\"\n", argv[optind]);
        return false;
    }
    if (o->standalone) return true;
    fputs("omen-node: --standalone is required in this version; try omen-node --help\n", stderr);
    return false;
}

static int exit_code_of(enum omen_err code)
{
    switch (code) {
    case OMEN_EINVAL: return EXIT_USAGE;
    case OMEN_EBUSY: return EXIT_IN_USE;
    case OMEN_ECORRUPT:
    case OMEN_EVERSION: return EXIT_DAMAGED;
    default: return EXIT_FAILED;
    }
}

static enum omen_err ready_file_write(const char *path, const struct standalone *s, struct err *err)
{
    struct buf b;
    buf_init(&b);
    buf_printf(&b, "{\"listen\": \"%s\", \"http\": \"%s\", \"pid\": %ld}\n", standalone_url(s),
            standalone_http_url(s), (long)getpid());
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

static int serve(const struct node_config *config, const char *ready_file, const sigset_t *signals)
{
    struct err err;
    err_clear(&err);
    struct standalone *s;
    enum omen_err rc = standalone_start(config, &s, &err);
    if (rc != OMEN_OK) {
        LOG_ERROR("node.start", "error=%s reason=\"%s\"", err_name(rc), err.message);
        return exit_code_of(rc);
    }
    if (ready_file != NULL && ready_file_write(ready_file, s, &err) != OMEN_OK) {
        LOG_ERROR("node.start", "error=ready_file reason=\"%s\"", err.message);
        standalone_stop(s);
        return EXIT_FAILED;
    }
    LOG_INFO("node.ready", "listen=%s http=%s data_dir=%s version=%s commit=%s", standalone_url(s),
            standalone_http_url(s), config->data_dir, OMEN_VERSION, version_commit());
    int signal_number = 0;
    while (sigwait(signals, &signal_number) != 0) continue;
    LOG_INFO("node.stop", "signal=%s", signal_number == SIGTERM ? "SIGTERM" : "SIGINT");
    standalone_stop(s);
    if (ready_file != NULL) unlink(ready_file);
    LOG_INFO("node.stopped", "pid=%ld", (long)getpid());
    return EXIT_STOPPED;
}

int main(int argc, char **argv)
{
    struct options options = { .standalone = false };
    int code = EXIT_USAGE;
    sigset_t signals;
    signals_block(&signals);
    if (options_parse(argc, argv, &options, &code)) {
        struct node_config values;
        memset(&values, 0, sizeof values);
        struct config *config;
        struct err err;
        err_clear(&err);
        enum omen_err rc = config_load(options.config_path, node_config_keys,
                (const char *const *)options.overrides, options.override_count, &values, &config, &err);
        if (rc != OMEN_OK) {
            fprintf(stderr, "omen-node: %s\n", err.message);
            code = EXIT_USAGE;
        } else {
            log_configure((enum log_level)values.log_level, (enum log_format)values.log_format,
                    STDERR_FILENO);
            code = serve(&values, options.ready_file, &signals);
            config_free(config);
        }
    }
    for (uint32_t i = 0; i < options.override_count; i++) mem_free(options.overrides[i]);
    return code;
}

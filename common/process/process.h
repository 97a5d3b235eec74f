/* What all our servers are as processes: options, configuration, signals, exit codes, ready file.
 *
 *   options, configuration --> start --> (not ready yet) --is_ready--> ready file written --SIGTERM, SIGINT--> stop
 *
 * The main thread starts everything, then waits for a signal; the signals are blocked in every thread, so none of them runs
 * a handler. SIGPIPE is ignored. */
#ifndef OMEN_COMMON_PROCESS_PROCESS_H
#define OMEN_COMMON_PROCESS_PROCESS_H

#include "common/config.h"
#include "common/err.h"
#include "common/mem.h"

#define PROCESS_OVERRIDES_MAX 256u
#define PROCESS_URL_BYTES_MAX 256

enum process_exit {
    PROCESS_STOPPED = 0, /* asked to stop, and did */
    PROCESS_FAILED = 1,  /* could not start: address in use, I/O error, no memory ... */
    PROCESS_USAGE = 2,   /* wrong options or configuration */
    PROCESS_IN_USE = 3,  /* the data directory belongs to another process */
    PROCESS_DAMAGED =
            4, /* data on disk fail their checksums, or are of a version this program does not know */
};

/* --name VALUE stands for --set key=VALUE; or, with `flag`, --name alone sets it. Besides those all programs have:
 * --config FILE, --set KEY=VALUE, --ready-file PATH, --help-config, --version, --help. */
struct process_option {
    const char *name, *key;
    bool *flag;
};

struct process_program {
    const char *name; /* "omen-node" */
    const char *help;
    const struct config_key *keys;
    const struct process_option *options; /* ends with name == NULL */
    void *config;                         /* zeroed; filled before start */
    const int *log_level, *log_format;    /* in `config` */
    /* Whether options and configuration make sense together; prints why not. May be NULL. */
    bool (*check)(void *config);
    OMEN_CHECKED enum omen_err (*start)(const void *config, void **running_out, struct err *err);
    /* Whether requests are served already; NULL = as soon as start returned. */
    bool (*is_ready)(void *running);
    void (*log_start)(const char *code, const char *message); /* the start failed */
    void (*log_ready)(const void *config, void *running);
    void (*log_stop)(const char *signal); /* NULL: it has stopped */
    /* Members of the ready file, as JSON text without braces; "pid" follows. */
    void (*describe)(void *running, struct buf *json);
    void (*stop)(void *running);
};

/* The whole life of the process; what main returns. */
int process_main(const struct process_program *program, int argc, char **argv);

/* "tcp://127.0.0.1:0" and 7712 -> "tcp://127.0.0.1:7712". URLs without a port are left alone. */
void process_url_with_port(const char *url, uint16_t port, char out[PROCESS_URL_BYTES_MAX]);
/* A TCP address that others than this machine may reach. */
bool process_url_is_public(const char *url);

#endif

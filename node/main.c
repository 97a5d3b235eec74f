/* omen-node: its options and what it says of itself; everything else is common/process and standalone.c. */
#include "common/err.h"

#include <stdio.h>
#include <unistd.h>

#include "common/log.h"
#include "common/process/process.h"
#include "common/version.h"
#include "node/standalone.h"

static const char help_text[] =
        "usage: omen-node --standalone [options]\n"
        "       omen-node --node-listen URL [options]\n"
        "       omen-node --node-listen URL --cluster-listen HOST:PORT [options]\n"
        "\n"
        "  --standalone        serve clients: router and node in one process over one data directory\n"
        "  --node-listen URL   serve routers (omen-router) there; same as --set node.listen=URL. Needs\n"
        "                      cluster.secret_file; without --standalone there is no port for clients\n"
        "  --cluster-listen A  numeric host:port for other nodes' replicas: makes it a member of a cluster; an empty one\n"
        "                      waits for omenctl cluster init or node add, or joins through --join\n"
        "  --join URLS         node ports of other members, with commas; same as --set cluster.join=URLS\n"
        "  --config FILE       read this configuration (see deploy/omendb.yaml)\n"
        "  --data DIR          data directory; same as --set data_dir=DIR\n"
        "  --listen URL        where clients connect, tcp://127.0.0.1:7700; port 0 takes a free one\n"
        "  --http URL          where /metrics, /healthz, /readyz are served, http://127.0.0.1:7701\n"
        "  --set KEY=VALUE     override one configuration key; may be repeated\n"
        "  --ready-file PATH   write {\"listen\", \"node_listen\", \"http\", \"pid\"} there once requests are served\n"
        "  --help-config       list every configuration key\n"
        "  --version           print the version\n"
        "  --help              print this\n"
        "\n"
        "SIGTERM and SIGINT stop it in order: requests in service are finished, every shard is checkpointed.\n"
        "exit codes: 0 stopped as asked, 1 could not start, 2 wrong options or configuration,\n"
        "            3 the data directory is in use by another process, 4 data on disk are damaged (named)\n";

static struct node_config config;
static bool standalone;

static bool node_check(void *values)
{
    const struct node_config *c = values;
    if (standalone && c->cluster_listen[0] != '\0') {
        fputs("omen-node: --standalone is a node by itself, cluster.listen makes a member: give one\n",
                stderr);
        return false;
    }
    if (standalone || c->node_listen[0] != '\0') return true;
    fputs("omen-node: give --standalone, --node-listen URL or both; try omen-node --help\n", stderr);
    return false;
}

static enum omen_err node_start(const void *values, void **running_out, struct err *err)
{
    struct standalone *s;
    enum omen_err rc = standalone_start(values, standalone, &s, err);
    *running_out = s;
    return rc;
}

static void node_stop(void *running) { standalone_stop(running); }

static void node_log_start(const char *code, const char *message)
{
    LOG_ERROR("node.start", "error=%s reason=\"%s\"", code, message);
}

static void node_log_ready(const void *values, void *running)
{
    LOG_INFO("node.ready", "listen=%s node_listen=%s http=%s data_dir=%s version=%s commit=%s",
            standalone_url(running), standalone_node_url(running), standalone_http_url(running),
            ((const struct node_config *)values)->data_dir, OMEN_VERSION, version_commit());
}

static void node_log_stop(const char *signal)
{
    if (signal != NULL) {
        LOG_INFO("node.stop", "signal=%s", signal);
    } else {
        LOG_INFO("node.stopped", "pid=%ld", (long)getpid());
    }
}

static void node_describe(void *running, struct buf *json)
{
    buf_printf(json, "\"listen\": \"%s\", \"node_listen\": \"%s\", \"http\": \"%s\"", standalone_url(running),
            standalone_node_url(running), standalone_http_url(running));
}

int main(int argc, char **argv)
{
    static const struct process_option options[] = {
        { "standalone", NULL, &standalone },
        { "data", "data_dir", NULL },
        { "listen", "listen", NULL },
        { "http", "http_listen", NULL },
        { "node-listen", "node.listen", NULL },
        { "cluster-listen", "cluster.listen", NULL },
        { "join", "cluster.join", NULL },
        { NULL, NULL, NULL },
    };
    const struct process_program program = {
        .name = "omen-node",
        .help = help_text,
        .keys = node_config_keys,
        .options = options,
        .config = &config,
        .log_level = &config.log_level,
        .log_format = &config.log_format,
        .check = node_check,
        .start = node_start,
        .log_start = node_log_start,
        .log_ready = node_log_ready,
        .log_stop = node_log_stop,
        .describe = node_describe,
        .stop = node_stop,
    };
    return process_main(&program, argc, argv);
}

/* omen-router: a stateless process between clients and nodes. Everything that is not about being a router is
 * common/process.
 *
 * The client port answers from the start; until a node has given a map it says that the collections are not known yet, and
 * /readyz answers 503 with the reason. The ready file is written when the first map has come. */
#include "common/err.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/process/http_pages.h"
#include "common/process/process.h"
#include "common/version.h"
#include "router/config.h"
#include "router/router.h"

static const char help_text[] =
        "usage: omen-router [options]\n"
        "\n"
        "  --config FILE       read this configuration (see deploy/omen-router.yaml)\n"
        "  --nodes URL,URL..   nodes to begin with, tcp://127.0.0.1:7710; they know the others\n"
        "  --secret-file FILE  the cluster's secret; same as --set cluster.secret_file=FILE\n"
        "  --listen URL        where clients connect, tcp://127.0.0.1:7700; port 0 takes a free one\n"
        "  --http URL          where /metrics, /healthz, /readyz are served, http://127.0.0.1:7702\n"
        "  --set KEY=VALUE     override one configuration key; may be repeated\n"
        "  --ready-file PATH   write {\"listen\", \"http\", \"pid\"} there once requests are served\n"
        "  --help-config       list every configuration key\n"
        "  --version           print the version\n"
        "  --help              print this\n"
        "\n"
        "A router keeps no data: start several, give clients all their addresses, end one at any time.\n"
        "SIGTERM and SIGINT stop it in order: requests in service are finished.\n"
        "exit codes: 0 stopped as asked, 1 could not start, 2 wrong options or configuration\n";

struct server {
    struct metrics *metrics;
    struct http_pages *pages;
    struct remote *remote;
    struct router *router;
    _Atomic bool stopping;
    char url[PROCESS_URL_BYTES_MAX], http_url[PROCESS_URL_BYTES_MAX];
};

static struct router_config config;

static const char *server_not_ready(void *arg)
{
    struct server *s = arg;
    if (atomic_load(&s->stopping)) return "stopping";
    const struct shard_service *service = remote_service(s->remote);
    return service->not_ready(service->self);
}

static void server_stop(void *running)
{
    struct server *s = running;
    atomic_store(&s->stopping, true);
    if (s->router != NULL) router_stop(s->router);
    if (s->pages != NULL) http_pages_stop(s->pages); /* before the remote: pages read it */
    if (s->remote != NULL) remote_stop(s->remote);
    metrics_free(s->metrics);
    mem_free(s);
}

static enum omen_err remote_open(struct server *s, const struct router_config *c, struct err *err)
{
    const char *seeds[REMOTE_SEEDS_MAX];
    struct arena arena;
    struct remote_options options;
    arena_init(&arena, 4096, 1u << 20);
    remote_options_default(&options);
    options.metrics = s->metrics;
    options.seeds = seeds;
    options.poll_ns = c->poll_interval_ns;
    options.retry_ns = c->retry_for_ns;
    options.hedge_percent = (uint32_t)c->hedge_percent;
    enum omen_err rc = router_config_seeds(c->nodes, &arena, seeds, &options.seed_count, err);
    if (rc == OMEN_OK)
        rc = cluster_key_read(c->cluster_secret, c->cluster_secret_file, vfs_posix(), &options.key, err);
    if (rc == OMEN_OK) rc = remote_start(&options, &s->remote, err);
    explicit_bzero(&options.key, sizeof options.key);
    arena_fini(&arena);
    return rc;
}

/* Keys are in memory twice for a moment, ours are wiped. */
static enum omen_err router_open(struct server *s, const struct router_config *c, struct err *err)
{
    struct api_key *keys = mem_must_calloc(API_KEYS_MAX, sizeof *keys);
    struct router_options options;
    router_options_default(&options);
    options.listen_url = c->listen;
    options.requests_max = (uint32_t)c->requests_in_service;
    options.default_deadline_ns = c->default_deadline_ns;
    options.max_deadline_ns = c->max_deadline_ns;
    options.service = remote_service(s->remote);
    options.clock = clock_system();
    options.metrics = s->metrics;
    options.api_keys = keys;
    enum omen_err rc = api_keys_read(&c->api_keys, vfs_posix(), keys, &options.api_key_count, err);
    if (rc == OMEN_OK) rc = router_start(&options, &s->router, err);
    if (rc == OMEN_OK && options.api_key_count == 0 && process_url_is_public(c->listen)) {
        LOG_WARN("auth.open",
                "listen=%s reason=\"no auth.keys: whoever reaches this address may do everything\"",
                c->listen);
    }
    explicit_bzero(keys, API_KEYS_MAX * sizeof *keys);
    mem_free(keys);
    return rc;
}

static enum omen_err server_start(const void *values, void **running_out, struct err *err)
{
    const struct router_config *c = values;
    struct server *s = mem_must_calloc(1, sizeof *s);
    *running_out = NULL;
    s->metrics = metrics_new();
    struct http_pages_options pages = {
        .url = c->http_listen,
        .metrics = s->metrics,
        .not_ready = server_not_ready,
        .arg = s,
    };
    enum omen_err rc = remote_open(s, c, err);
    if (rc == OMEN_OK) rc = http_pages_start(&pages, &s->pages, err);
    if (rc == OMEN_OK) rc = router_open(s, c, err);
    if (rc != OMEN_OK) {
        server_stop(s);
        return rc;
    }
    process_url_with_port(c->listen, router_port(s->router), s->url);
    process_url_with_port(c->http_listen, http_pages_port(s->pages), s->http_url);
    *running_out = s;
    return OMEN_OK;
}

static bool server_is_ready(void *running) { return server_not_ready(running) == NULL; }

static void server_log_start(const char *code, const char *message)
{
    LOG_ERROR("router.start", "error=%s reason=\"%s\"", code, message);
}

static void server_log_ready(const void *values, void *running)
{
    const struct server *s = running;
    LOG_INFO("router.ready", "listen=%s http=%s nodes=%s version=%s commit=%s", s->url, s->http_url,
            ((const struct router_config *)values)->nodes, OMEN_VERSION, version_commit());
}

static void server_log_stop(const char *signal)
{
    if (signal != NULL) {
        LOG_INFO("router.stop", "signal=%s", signal);
    } else {
        LOG_INFO("router.stopped", "pid=%ld", (long)getpid());
    }
}

static void server_describe(void *running, struct buf *json)
{
    const struct server *s = running;
    buf_printf(json, "\"listen\": \"%s\", \"http\": \"%s\"", s->url, s->http_url);
}

int main(int argc, char **argv)
{
    static const struct process_option options[] = {
        { "nodes", "nodes", NULL },
        { "secret-file", "cluster.secret_file", NULL },
        { "listen", "listen", NULL },
        { "http", "http_listen", NULL },
        { NULL, NULL, NULL },
    };
    const struct process_program program = {
        .name = "omen-router",
        .help = help_text,
        .keys = router_config_keys,
        .options = options,
        .config = &config,
        .log_level = &config.log_level,
        .log_format = &config.log_format,
        .start = server_start,
        .is_ready = server_is_ready,
        .log_start = server_log_start,
        .log_ready = server_log_ready,
        .log_stop = server_log_stop,
        .describe = server_describe,
        .stop = server_stop,
    };
    return process_main(&program, argc, argv);
}

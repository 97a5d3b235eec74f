/* Puts node, its ports and pages together in one process; with a router of its own when clients are served. The only file
 * of node/ that knows the router. */
#include "common/err.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/log.h"
#include "common/process/http_pages.h"
#include "common/process/process.h"
#include "common/version.h"
#include "node/node_port.h"
#include "node/standalone.h"
#include "router/router.h"

struct standalone {
    struct metrics *metrics;
    struct http_pages *pages;
    struct node *node;
    struct router *router;  /* NULL without a client port */
    struct node_port *port; /* NULL without a port for routers */
    struct arena arena;     /* addresses from the configuration */
    pthread_rwlock_t lock;  /* guards `ready` and `node` against the pages' threads */
    bool ready, stopping;
    char url[PROCESS_URL_BYTES_MAX], http_url[PROCESS_URL_BYTES_MAX], node_url[PROCESS_URL_BYTES_MAX];
};

static const char *standalone_not_ready(void *arg)
{
    struct standalone *s = arg;
    pthread_rwlock_rdlock(&s->lock);
    const char *why = NULL;
    if (s->stopping) {
        why = "stopping";
    } else if (!s->ready) {
        why = "opening";
    } else {
        const struct shard_service *service = node_service(s->node);
        why = service->not_ready(service->self);
    }
    pthread_rwlock_unlock(&s->lock);
    return why;
}

/* Only where binaries are built to be broken on purpose: the fault tests must see that a node which acknowledges too early
 * is caught. */
static void test_mutations(struct node_options *options)
{
#ifdef OMEN_TEST_MUTATIONS
    const char *name = getenv("OMENDB_TEST_MUTATION");
    if (name == NULL || name[0] == '\0') return;
    if (strcmp(name, "ack-before-sync") != 0) panic("OMENDB_TEST_MUTATION=%s is not known", name);
    options->host.log.test_ack_before_sync = true;
    LOG_WARN("test.mutation", "name=%s", name);
#endif
}

static enum omen_err router_open(struct standalone *s, const struct node_config *config, struct err *err)
{
    struct api_key *keys = mem_must_calloc(API_KEYS_MAX, sizeof *keys);
    struct router_options options;
    router_options_default(&options);
    options.listen_url = config->listen;
    options.requests_max = (uint32_t)config->requests_in_service;
    options.default_deadline_ns = config->default_deadline_ns;
    options.max_deadline_ns = config->max_deadline_ns;
    options.service = node_service(s->node);
    options.clock = clock_system();
    options.metrics = s->metrics;
    options.api_keys = keys;
    enum omen_err rc = api_keys_read(&config->api_keys, vfs_posix(), keys, &options.api_key_count, err);
    if (rc == OMEN_OK) rc = router_start(&options, &s->router, err);
    if (rc == OMEN_OK && options.api_key_count == 0 && process_url_is_public(config->listen)) {
        LOG_WARN("auth.open",
                "listen=%s reason=\"no auth.keys: whoever reaches this address may do everything\"",
                config->listen);
    }
    explicit_bzero(keys, API_KEYS_MAX * sizeof *keys);
    mem_free(keys);
    return rc;
}

static uint32_t port_node_number(void *arg) { return node_number(((struct standalone *)arg)->node); }

static uint32_t port_nodes(void *arg, struct map_node *nodes_out)
{
    return node_members(((struct standalone *)arg)->node, nodes_out);
}

static void port_peer(void *arg, struct doc request, struct doc_builder *reply)
{
    node_peer_request(((struct standalone *)arg)->node, request, reply);
}

static enum omen_err port_open(struct standalone *s, const struct node_config *config, struct err *err)
{
    const char *advertise = config->node_advertise;
    if (strlen(advertise) > OMEN_ADDRESS_BYTES_MAX)
        return err_set(err, OMEN_EINVAL, "node.advertise", "node.advertise: at most %d bytes",
                OMEN_ADDRESS_BYTES_MAX);
    bool member = config->cluster_listen[0] != '\0';
    struct node_port_options options = {
        .url = config->node_listen,
        .service = node_service(s->node),
        .clock = clock_system(),
        .metrics = s->metrics,
        .node_id = node_number(s->node),
        .advertise = member && advertise[0] == '\0' ? config->node_listen : advertise,
        .node_number = member ? port_node_number : NULL,
        .nodes = member ? port_nodes : NULL,
        .peer = member ? port_peer : NULL,
        .ship = node_ship(s->node),
        .arg = s,
        .requests_max = (uint32_t)config->node_requests_in_service,
    };
    enum omen_err rc = cluster_key_read(config->cluster_secret, config->cluster_secret_file, vfs_posix(),
            &options.key, err);
    if (rc == OMEN_OK) rc = node_port_start(&options, &s->port, err);
    explicit_bzero(&options.key, sizeof options.key);
    if (rc != OMEN_OK) return rc;
    process_url_with_port(config->node_listen, node_port_number(s->port), s->node_url);
    return OMEN_OK;
}

enum omen_err standalone_start(const struct node_config *config, bool with_router,
        struct standalone **standalone_out, struct err *err)
{
    *standalone_out = NULL;
    struct standalone *s = mem_must_calloc(1, sizeof *s);
    pthread_rwlock_init(&s->lock, NULL);
    arena_init(&s->arena, 4096, 1 << 20);
    s->metrics = metrics_new();
    struct http_pages_options pages = {
        .url = config->http_listen,
        .metrics = s->metrics,
        .not_ready = standalone_not_ready,
        .arg = s,
    };
    struct node_options options;
    node_options_default(&options);
    node_config_node(config, &options);
    options.metrics = s->metrics;
    test_mutations(&options);
    enum omen_err rc = node_config_cluster(config, &s->arena, &options.cluster, err);
    if (rc != OMEN_OK) {
        standalone_stop(s);
        return rc;
    }
    rc = http_pages_start(&pages, &s->pages, err);
    if (rc == OMEN_OK) rc = node_open(&options, &s->node, err);
    if (rc == OMEN_OK && with_router) rc = router_open(s, config, err);
    if (rc == OMEN_OK && config->node_listen[0] != '\0') rc = port_open(s, config, err);
    if (rc != OMEN_OK) {
        standalone_stop(s);
        return rc;
    }
    if (with_router) process_url_with_port(config->listen, router_port(s->router), s->url);
    process_url_with_port(config->http_listen, http_pages_port(s->pages), s->http_url);
    pthread_rwlock_wrlock(&s->lock);
    s->ready = true;
    pthread_rwlock_unlock(&s->lock);
    *standalone_out = s;
    return OMEN_OK;
}

void standalone_stop(struct standalone *s)
{
    pthread_rwlock_wrlock(&s->lock);
    s->stopping = true;
    pthread_rwlock_unlock(&s->lock);
    if (s->router != NULL) router_stop(s->router);
    if (s->port != NULL) node_port_stop(s->port);
    if (s->pages != NULL) http_pages_stop(s->pages); /* before the node: pages read it */
    if (s->node != NULL) node_close(s->node);
    metrics_free(s->metrics);
    arena_fini(&s->arena);
    pthread_rwlock_destroy(&s->lock);
    mem_free(s);
}

const char *standalone_url(const struct standalone *s) { return s->url; }
const char *standalone_node_url(const struct standalone *s) { return s->node_url; }
const char *standalone_http_url(const struct standalone *s) { return s->http_url; }

/* The table of keys. A key added here is documented in deploy/omen-router.yaml: tests/unit/test_router_config.c compares. */
#include "common/err.h"

#include <stddef.h>
#include <string.h>

#include "router/config.h"

#define MS 1000000ull
#define S (1000 * MS)

static const char *const log_levels[] = { "debug", "info", "warn", "error", NULL };
static const char *const log_formats[] = { "text", "json", NULL };

#define AT(field) .offset = offsetof(struct router_config, field)

const struct config_key router_config_keys[] = {
    { .name = "listen",
            .type = CONFIG_STRING,
            AT(listen),
            .default_text = "tcp://127.0.0.1:7700",
            .help = "where clients connect; port 0 takes a free one" },
    { .name = "http_listen",
            .type = CONFIG_STRING,
            AT(http_listen),
            .default_text = "http://127.0.0.1:7702",
            .help = "where /metrics, /healthz and /readyz are served" },
    { .name = "nodes",
            .type = CONFIG_STRING,
            AT(nodes),
            .default_text = "tcp://127.0.0.1:7710",
            .help = "addresses of nodes to begin with, separated by commas; they know the others" },
    { .name = "cluster.secret",
            .type = CONFIG_STRING,
            AT(cluster_secret),
            .default_text = "",
            .help = "what nodes and routers prove to each other, 16 to 256 bytes; or give secret_file" },
    { .name = "cluster.secret_file",
            .type = CONFIG_STRING,
            AT(cluster_secret_file),
            .default_text = "",
            .help = "file whose first line is the secret" },
    { .name = "log.level",
            .type = CONFIG_ENUM,
            AT(log_level),
            .default_text = "info",
            .choices = log_levels,
            .help = "debug, info, warn or error" },
    { .name = "log.format",
            .type = CONFIG_ENUM,
            AT(log_format),
            .default_text = "text",
            .choices = log_formats,
            .help = "text or json, one line per event on stderr" },
    { .name = "auth.keys",
            .type = CONFIG_LIST,
            AT(api_keys),
            .default_text = "",
            .item_keys = api_key_item_keys,
            .item_bytes = sizeof(struct api_key_item),
            .item_count_max = API_KEYS_MAX,
            .help = "API keys; without any, everybody who can connect may do everything" },
    { .name = "limits.requests_in_service",
            .type = CONFIG_U64,
            AT(requests_in_service),
            .default_text = "256",
            .min = 1,
            .max = 3000,
            .help = "requests served at once; above it clients are told to retry" },
    { .name = "limits.default_deadline",
            .type = CONFIG_DURATION,
            AT(default_deadline_ns),
            .default_text = "30s",
            .min = MS,
            .max = 3600 * S,
            .help = "deadline of requests that give none" },
    { .name = "limits.max_deadline",
            .type = CONFIG_DURATION,
            AT(max_deadline_ns),
            .default_text = "300s",
            .min = MS,
            .max = 3600 * S,
            .help = "longer deadlines are cut to this" },
    { .name = "routing.poll_interval",
            .type = CONFIG_DURATION,
            AT(poll_interval_ns),
            .default_text = "1s",
            .min = 10 * MS,
            .max = 60 * S,
            .help = "how often every node is asked how it is and whether the map has changed" },
    { .name = "routing.retry_for",
            .type = CONFIG_DURATION,
            AT(retry_for_ns),
            .default_text = "5s",
            .min = MS,
            .max = 300 * S,
            .help = "how long a call is tried again, within its deadline, before the client is told" },
    { .name = "routing.hedge_percent",
            .type = CONFIG_U64,
            AT(hedge_percent),
            .default_text = "5",
            .min = 0,
            .max = 100,
            .help = "share of reads that may be sent to a second replica when the first is slow; 0 = none" },
    { .name = NULL },
};

enum omen_err router_config_seeds(const char *nodes, struct arena *arena, const char **seeds_out,
        uint32_t *count_out, struct err *err)
{
    static const char between[] = ", \t";
    *count_out = 0;
    for (const char *at = nodes + strspn(nodes, between); *at != '\0'; at += strspn(at, between)) {
        size_t len = strcspn(at, between);
        if (*count_out == REMOTE_SEEDS_MAX)
            return err_set(err, OMEN_EINVAL, "nodes", "nodes: at most %d addresses", REMOTE_SEEDS_MAX);
        seeds_out[*count_out] = arena_strdup(arena, at, len);
        if (seeds_out[*count_out] == NULL) return err_set(err, OMEN_ENOMEM, "nodes", "no memory");
        (*count_out)++;
        at += len;
    }
    if (*count_out > 0) return OMEN_OK;
    return err_set(err, OMEN_EINVAL, "nodes", "nodes: give at least one address, e.g. tcp://127.0.0.1:7710");
}

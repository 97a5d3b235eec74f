/* The configuration of omen-router: one table of keys, documented in deploy/omen-router.yaml. */
#ifndef OMEN_ROUTER_CONFIG_H
#define OMEN_ROUTER_CONFIG_H

#include "common/process/secrets.h"
#include "router/remote.h"

struct router_config {
    char *listen, *http_listen, *nodes, *cluster_secret, *cluster_secret_file;
    int log_level, log_format;
    struct config_list api_keys;
    uint64_t requests_in_service, default_deadline_ns, max_deadline_ns;
    uint64_t poll_interval_ns, retry_for_ns, hedge_percent;
};

extern const struct config_key router_config_keys[]; /* ends with name == NULL */

/* "tcp://a:7710, tcp://b:7710" cut into addresses in `arena`: seeds_out [REMOTE_SEEDS_MAX]. OMEN_EINVAL: none, too many. */
OMEN_CHECKED enum omen_err router_config_seeds(const char *nodes, struct arena *arena, const char **seeds_out,
        uint32_t *count_out, struct err *err);

#endif

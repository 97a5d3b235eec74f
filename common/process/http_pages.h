/* The pages that every server has: /metrics, /healthz, /readyz. */
#ifndef OMEN_COMMON_PROCESS_HTTP_PAGES_H
#define OMEN_COMMON_PROCESS_HTTP_PAGES_H

#include "common/metrics.h"
#include "common/net/net.h"

struct http_pages;

struct http_pages_options {
    const char *url;
    struct metrics *metrics;
    /* NULL when ready, else why not (static string). Any thread. */
    const char *(*not_ready)(void *arg);
    void *arg;
};

OMEN_CHECKED enum omen_err http_pages_start(const struct http_pages_options *options,
        struct http_pages **pages_out, struct err *err);
uint16_t http_pages_port(const struct http_pages *pages);
void http_pages_stop(struct http_pages *pages); /* no page is being made any more when it returns */

#endif

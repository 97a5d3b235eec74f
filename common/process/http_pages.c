/* Pages for machines that watch: plain text, made anew for each request. /healthz says that the process answers, nothing
 * more; /readyz says whether to send it work. */
#include "common/err.h"

#include "common/process/http_pages.h"

struct http_pages {
    struct http_pages_options options;
    struct net_http *http;
};

static int page_metrics(void *arg, struct buf *body, const char **content_type_out)
{
    struct http_pages *pages = arg;
    *content_type_out = "text/plain; version=0.0.4; charset=utf-8";
    metrics_render(pages->options.metrics, body);
    return 200;
}

static int page_healthz(void *arg, struct buf *body, const char **content_type_out)
{
    *content_type_out = "text/plain; charset=utf-8";
    buf_printf(body, "ok\n");
    return 200;
}

static int page_readyz(void *arg, struct buf *body, const char **content_type_out)
{
    struct http_pages *pages = arg;
    *content_type_out = "text/plain; charset=utf-8";
    const char *why = pages->options.not_ready(pages->options.arg);
    buf_printf(body, "%s\n", why == NULL ? "ready" : why);
    return why == NULL ? 200 : 503;
}

enum omen_err http_pages_start(const struct http_pages_options *options, struct http_pages **pages_out,
        struct err *err)
{
    *pages_out = NULL;
    struct http_pages *pages = mem_must_calloc(1, sizeof *pages);
    pages->options = *options;
    const struct net_http_page list[] = {
        { "/metrics", page_metrics, pages },
        { "/healthz", page_healthz, pages },
        { "/readyz", page_readyz, pages },
    };
    enum omen_err rc = net_http_start(options->url, list, sizeof list / sizeof *list, &pages->http, err);
    if (rc != OMEN_OK) {
        mem_free(pages);
        return rc;
    }
    *pages_out = pages;
    return OMEN_OK;
}

uint16_t http_pages_port(const struct http_pages *pages) { return net_http_port(pages->http); }

void http_pages_stop(struct http_pages *pages)
{
    net_http_stop(pages->http);
    mem_free(pages);
}

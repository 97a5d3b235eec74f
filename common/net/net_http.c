/* GET pages (metrics, health) on nng's HTTP server. nng answers unknown paths with 404 and other methods with 405 by
 * itself; HEAD is served as GET without a body.
 *
 * Threads: handlers run on nng's task threads, several at once. nng may still hold a handler after the server was
 * released, so each page's context is counted and the server is freed with the last of them; `stopping` keeps late
 * requests away from the caller's `arg`. */
#include "common/net/net.h"

#include <arpa/inet.h>
#include <pthread.h>

#include <nng/nng.h>
#include <nng/supplemental/http/http.h>

#include "common/check.h"
#include "common/net/net_nng.h"

#define HTTP_PAGES_MAX 32

struct net_http {
    nng_http_server *server;
    uint16_t port;
    pthread_mutex_t lock;
    pthread_cond_t quiet;
    uint32_t serving; /* handlers running now */
    uint32_t refs;    /* pages that nng holds, and the owner */
    bool stopping;
};

struct http_page {
    struct net_http *http;
    struct net_http_page page; /* path owned */
};

static void http_unref(struct net_http *http)
{
    pthread_mutex_lock(&http->lock);
    bool last = --http->refs == 0;
    pthread_mutex_unlock(&http->lock);
    if (!last) return;
    pthread_cond_destroy(&http->quiet);
    pthread_mutex_destroy(&http->lock);
    mem_free(http);
}

static void page_free(void *arg)
{
    struct http_page *page = arg;
    struct net_http *http = page->http;
    mem_free((char *)(uintptr_t)page->page.path);
    mem_free(page);
    http_unref(http);
}

static bool http_enter(struct net_http *http)
{
    pthread_mutex_lock(&http->lock);
    bool enter = !http->stopping;
    if (enter) http->serving++;
    pthread_mutex_unlock(&http->lock);
    return enter;
}

static void http_leave(struct net_http *http)
{
    pthread_mutex_lock(&http->lock);
    http->serving--;
    if (http->serving == 0) pthread_cond_signal(&http->quiet);
    pthread_mutex_unlock(&http->lock);
}

/* Fills `body` from the page; the status. */
static int page_run(struct http_page *page, struct buf *body, const char **content_type_out)
{
    *content_type_out = "text/plain; charset=utf-8";
    if (!http_enter(page->http)) return 503;
    int status = page->page.handle(page->page.arg, body, content_type_out);
    http_leave(page->http);
    return body->failed ? 500 : status;
}

static void page_serve(nng_aio *aio)
{
    nng_http_handler *handler = nng_aio_get_input(aio, 1);
    struct http_page *page = nng_http_handler_get_data(handler);
    struct buf body;
    buf_init(&body);
    const char *content_type = NULL;
    int status = page_run(page, &body, &content_type);
    nng_http_res *res = NULL;
    int rv = nng_http_res_alloc(&res);
    if (rv == 0) rv = nng_http_res_set_status(res, (uint16_t)status);
    if (rv == 0) rv = nng_http_res_set_header(res, "Content-Type", content_type);
    if (rv == 0) rv = nng_http_res_copy_data(res, body.len > 0 ? (const void *)body.data : "", body.len);
    buf_fini(&body);
    if (rv != 0) {
        if (res != NULL) nng_http_res_free(res);
        nng_aio_finish(aio, rv);
        return;
    }
    nng_aio_set_output(aio, 0, res);
    nng_aio_finish(aio, 0);
}

static int http_add_page(struct net_http *http, const struct net_http_page *from)
{
    nng_http_handler *handler = NULL;
    int rv = nng_http_handler_alloc(&handler, from->path, page_serve);
    if (rv != 0) return rv;
    struct http_page *page = mem_must_calloc(1, sizeof *page);
    page->http = http;
    page->page = *from;
    page->page.path = mem_must_strdup(from->path);
    pthread_mutex_lock(&http->lock);
    http->refs++;
    pthread_mutex_unlock(&http->lock);
    rv = nng_http_handler_set_data(handler, page, page_free);
    if (rv != 0) {
        page_free(page);
        nng_http_handler_free(handler);
        return rv;
    }
    rv = nng_http_handler_set_method(handler, "GET");
    if (rv == 0) rv = nng_http_server_add_handler(http->server, handler);
    if (rv != 0) nng_http_handler_free(handler); /* frees the page too */
    return rv;
}

static uint16_t http_bound_port(nng_http_server *server)
{
    nng_sockaddr address;
    if (nng_http_server_get_addr(server, &address) != 0) return 0;
    if (address.s_family == NNG_AF_INET) return ntohs(address.s_in.sa_port);
    if (address.s_family == NNG_AF_INET6) return ntohs(address.s_in6.sa_port);
    return 0;
}

enum omen_err net_http_start(const char *url, const struct net_http_page *pages, uint32_t page_count,
        struct net_http **http_out, struct err *err)
{
    *http_out = NULL;
    CHECK(page_count <= HTTP_PAGES_MAX);
    nng_url *parsed = NULL;
    int rv = nng_url_parse(&parsed, url);
    if (rv != 0) return net_err(err, rv, "listen on", url);
    struct net_http *http = mem_must_calloc(1, sizeof *http);
    http->refs = 1;
    pthread_mutex_init(&http->lock, NULL);
    pthread_cond_init(&http->quiet, NULL);
    rv = nng_http_server_hold(&http->server, parsed);
    nng_url_free(parsed);
    for (uint32_t i = 0; rv == 0 && i < page_count; i++) rv = http_add_page(http, &pages[i]);
    if (rv == 0) rv = nng_http_server_start(http->server);
    if (rv != 0) {
        if (http->server != NULL) nng_http_server_release(http->server);
        http_unref(http);
        return net_err(err, rv, "listen on", url);
    }
    http->port = http_bound_port(http->server);
    *http_out = http;
    return OMEN_OK;
}

uint16_t net_http_port(const struct net_http *http) { return http->port; }

void net_http_stop(struct net_http *http)
{
    nng_http_server_stop(http->server);
    pthread_mutex_lock(&http->lock);
    http->stopping = true;
    while (http->serving > 0) pthread_cond_wait(&http->quiet, &http->lock);
    pthread_mutex_unlock(&http->lock);
    nng_http_server_release(http->server);
    http_unref(http);
}

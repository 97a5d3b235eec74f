/* A TCP proxy that loses bytes: see tcp_proxy.h. */
#include "common/err.h"

#include "tests/support/tcp_proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/check.h"
#include "common/mem.h"

#define PIPES_MAX 64

struct pipe {
    int a, b;  /* dialing side, other side; -1 = free */
    bool lost; /* bytes are missing in it */
};

struct tcp_proxy {
    pthread_t thread;
    int listener;
    uint16_t port, target;
    _Atomic bool stop, lose_forth, lose_back;
    struct pipe pipes[PIPES_MAX];
};

static struct sockaddr_in loopback(uint16_t port)
{
    return (struct sockaddr_in){ .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
}

static void pipe_close(struct pipe *p)
{
    close(p->a);
    close(p->b);
    *p = (struct pipe){ -1, -1, false };
}

static void pipe_accept(struct tcp_proxy *proxy)
{
    int one = 1, a = accept(proxy->listener, NULL, NULL), b = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = loopback(proxy->target);
    struct pipe *free_one = NULL;
    for (int i = 0; i < PIPES_MAX; i++) {
        if (proxy->pipes[i].a < 0) free_one = &proxy->pipes[i];
    }
    if (a < 0 || b < 0 || free_one == NULL || connect(b, (struct sockaddr *)&to, sizeof to) != 0) {
        if (a >= 0) close(a);
        if (b >= 0) close(b);
        return;
    }
    (void)setsockopt(a, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(b, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    *free_one = (struct pipe){ a, b, false };
}

/* False: the connection is over. */
static bool forward(struct pipe *p, int from, int to, bool lose)
{
    static _Thread_local char buffer[64 << 10];
    ssize_t n = recv(from, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) return false;
    if (lose) {
        p->lost = true;
        return true;
    }
    for (ssize_t at = 0; at < n;) {
        ssize_t sent = send(to, buffer + at, (size_t)(n - at), MSG_NOSIGNAL);
        if (sent <= 0) return false;
        at += sent;
    }
    return true;
}

static void *proxy_main(void *arg)
{
    struct tcp_proxy *proxy = arg;
    while (!proxy->stop) {
        struct pollfd fds[1 + 2 * PIPES_MAX] = { { .fd = proxy->listener, .events = POLLIN } };
        for (int i = 0; i < PIPES_MAX; i++) {
            fds[1 + 2 * i] = (struct pollfd){ .fd = proxy->pipes[i].a, .events = POLLIN };
            fds[2 + 2 * i] = (struct pollfd){ .fd = proxy->pipes[i].b, .events = POLLIN };
        }
        if (poll(fds, 1 + 2 * PIPES_MAX, 20) < 0) continue;
        bool forth = proxy->lose_forth, back = proxy->lose_back;
        for (int i = 0; i < PIPES_MAX; i++) {
            struct pipe *p = &proxy->pipes[i];
            if (p->a < 0) continue;
            bool good = !(p->lost && !forth && !back);
            if (good && fds[1 + 2 * i].revents != 0) good = forward(p, p->a, p->b, forth);
            if (good && fds[2 + 2 * i].revents != 0) good = forward(p, p->b, p->a, back);
            if (!good) pipe_close(p);
        }
        if (fds[0].revents != 0) pipe_accept(proxy);
    }
    return NULL;
}

struct tcp_proxy *tcp_proxy_start(uint16_t port)
{
    struct tcp_proxy *proxy = mem_must_calloc(1, sizeof *proxy);
    struct sockaddr_in at = loopback(0);
    socklen_t len = sizeof at;
    proxy->target = port;
    for (int i = 0; i < PIPES_MAX; i++) proxy->pipes[i] = (struct pipe){ -1, -1, false };
    proxy->listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(proxy->listener, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK(listen(proxy->listener, 64) == 0);
    CHECK(getsockname(proxy->listener, (struct sockaddr *)&at, &len) == 0);
    proxy->port = ntohs(at.sin_port);
    CHECK(pthread_create(&proxy->thread, NULL, proxy_main, proxy) == 0);
    return proxy;
}

void tcp_proxy_stop(struct tcp_proxy *proxy)
{
    if (proxy == NULL) return;
    proxy->stop = true;
    pthread_join(proxy->thread, NULL);
    for (int i = 0; i < PIPES_MAX; i++) {
        if (proxy->pipes[i].a >= 0) pipe_close(&proxy->pipes[i]);
    }
    close(proxy->listener);
    mem_free(proxy);
}

uint16_t tcp_proxy_port(const struct tcp_proxy *proxy) { return proxy->port; }

void tcp_proxy_lose(struct tcp_proxy *proxy, bool forth, bool back)
{
    proxy->lose_forth = forth;
    proxy->lose_back = back;
}

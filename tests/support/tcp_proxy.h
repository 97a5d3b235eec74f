/* A TCP proxy on loopback that can be told to lose one direction, or to cut: for partitions, one-way ones
 * too. One thread per proxy. */
#ifndef OMEN_TESTS_SUPPORT_TCP_PROXY_H
#define OMEN_TESTS_SUPPORT_TCP_PROXY_H

#include <stdbool.h>
#include <stdint.h>

struct tcp_proxy;

/* Listens on a free port of 127.0.0.1; connects to `port` there for each connection. */
struct tcp_proxy *tcp_proxy_start(uint16_t port);
void tcp_proxy_stop(struct tcp_proxy *proxy);
uint16_t tcp_proxy_port(const struct tcp_proxy *proxy);
/* Bytes from the dialing side (`forth`) or to it (`back`) are swallowed from now on. Connections that lost any
 * are cut when it ends. */
void tcp_proxy_lose(struct tcp_proxy *proxy, bool forth, bool back);

#endif

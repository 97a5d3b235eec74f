/* Room for the messages of one server that are still coming in, or wait whole for a context: a budget over all its
 * connections, and the line of those that wait for it. Pure bookkeeping under the server's lock.
 *
 * The first NET_ROOM_FREE_BYTES of a message are not asked for, so small messages never wait. What is asked for is
 * the whole room that a message has after growing: twice what has come, not what is announced. When the budget is
 * used up, one connection at a time may go beyond it (`over`): otherwise half-finished messages could fill it and wait
 * for each other for ever. Everybody else waits in line, and is not read meanwhile: back-pressure. A server's messages
 * in the making thus never take more than
 *     NET_ROOM_BYTES_MAX + one message + NET_PEERS_MAX * NET_ROOM_FREE_BYTES.
 * That whoever has room makes use of it is the connection's business (NET_FRAME_PAUSE_MS). */
#ifndef OMEN_COMMON_NET_ROOM_H
#define OMEN_COMMON_NET_ROOM_H

#include <stdbool.h>
#include <stdint.h>

#define NET_ROOM_BYTES_MAX ((uint64_t)256 << 20)
#define NET_ROOM_FREE_BYTES (64u << 10)

struct net_room_peer {
    uint64_t bytes;  /* that it has */
    uint64_t wanted; /* while in line */
    bool waiting;    /* in line */
    struct net_room_peer *prev, *next;
};

struct net_room {
    uint64_t bytes_max;
    uint64_t bytes;             /* that all have */
    struct net_room_peer *over; /* may go beyond bytes_max; the line is not empty without it for long */
    struct net_room_peer *first, *last;
};

/* `bytes` in all for this peer. False: not now, it is in line (once, for the last amount asked for). */
bool net_room_ask(struct net_room *room, struct net_room_peer *peer, uint64_t bytes);
/* Gives back all that it has, and its place in line. */
void net_room_leave(struct net_room *room, struct net_room_peer *peer);
/* The first in line has what it wanted and is no longer in line; NULL when there is none or no room. */
struct net_room_peer *net_room_next(struct net_room *room);
/* Whether net_room_next would find one. */
bool net_room_due(const struct net_room *room);

#endif

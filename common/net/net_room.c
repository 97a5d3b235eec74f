/* Room for messages that are still coming in: see net_room.h. */
#include "common/net/net_room.h"

#include <stddef.h>

#include "common/check.h"

static bool fits(const struct net_room *room, const struct net_room_peer *peer, uint64_t bytes)
{
    if (room->over == NULL || room->over == peer) return true;
    uint64_t others = room->bytes - peer->bytes;
    return others <= room->bytes_max && bytes <= room->bytes_max - others;
}

static void take(struct net_room *room, struct net_room_peer *peer, uint64_t bytes)
{
    room->bytes += bytes - peer->bytes;
    peer->bytes = bytes;
    if (room->bytes > room->bytes_max && room->over == NULL) room->over = peer;
}

static void line_remove(struct net_room *room, struct net_room_peer *peer)
{
    if (!peer->waiting) return;
    peer->waiting = false;
    *(peer->prev != NULL ? &peer->prev->next : &room->first) = peer->next;
    *(peer->next != NULL ? &peer->next->prev : &room->last) = peer->prev;
}

bool net_room_ask(struct net_room *room, struct net_room_peer *peer, uint64_t bytes)
{
    if (bytes <= peer->bytes) return true; /* given while it was in line */
    bool turn = room->first == NULL || room->over == peer;
    if (turn && fits(room, peer, bytes)) {
        take(room, peer, bytes);
        return true;
    }
    peer->wanted = bytes;
    if (peer->waiting) return false;
    peer->waiting = true;
    peer->next = NULL;
    peer->prev = room->last;
    *(room->last != NULL ? &room->last->next : &room->first) = peer;
    room->last = peer;
    return false;
}

void net_room_leave(struct net_room *room, struct net_room_peer *peer)
{
    line_remove(room, peer);
    CHECK(room->bytes >= peer->bytes);
    room->bytes -= peer->bytes;
    peer->bytes = 0;
    if (room->over == peer) room->over = NULL;
}

bool net_room_due(const struct net_room *room)
{
    return room->first != NULL && fits(room, room->first, room->first->wanted);
}

struct net_room_peer *net_room_next(struct net_room *room)
{
    if (!net_room_due(room)) return NULL;
    struct net_room_peer *peer = room->first;
    line_remove(room, peer);
    take(room, peer, peer->wanted);
    return peer;
}

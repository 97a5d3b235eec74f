/* What net_client.c (the connection and its comings and goings) and net_call.c (the calls) share. */
#ifndef OMEN_COMMON_NET_CLIENT_IMPL_H
#define OMEN_COMMON_NET_CLIENT_IMPL_H

#include "common/net/net.h"
#include "common/net/net_conn.h"

enum call_state {
    CALL_FREE,
    CALL_WAITING, /* for a connection: the frame is the call's */
    CALL_GIVEN,   /* to the connection */
    CALL_ENDING,  /* a thread that knows how it ended has it */
    CALL_ENDED    /* a blocking caller may take the result */
};

struct net_call {
    struct net_client *client;
    uint32_t id; /* on the wire: highest bit, use of the slot, slot */
    bool async;
    enum call_state state;   /* all from here under client->lock */
    struct net_frame *frame; /* owned, while CALL_WAITING */
    uint64_t generation;     /* of the connection, while CALL_GIVEN */
    nng_time send_by_ms;     /* when it is given up, while CALL_WAITING */
    nng_time deadline_ms;
    net_done done; /* with `async` */
    void *arg;
    enum omen_err result; /* CALL_ENDED */
    struct net_frame *reply;
    pthread_cond_t ended; /* without `async` */
    struct net_call *prev,
            *next; /* outstanding, oldest first; `next` alone in the pool, and while ending in a list */
};

/* idle -> dialing -> open (greeting, then connected) -> pause -> dialing; back to idle when the client is closed. */
enum link_state { LINK_IDLE, LINK_DIALING, LINK_OPEN, LINK_PAUSE };

struct net_client {
    nng_stream_dialer *dialer;
    nng_aio *dial_aio, *pause_aio, *timer_aio; /* owned */
    char url[NET_URL_BYTES_MAX + 1];
    size_t message_bytes_max;
    struct net_conn_options conn_options;
    struct net_conn conn;

    pthread_mutex_t lock; /* may be held while the connection's is taken, never the other way round */
    pthread_cond_t changed;
    enum link_state link;
    uint32_t pause_ms;
    bool connected;
    uint64_t generation; /* of the connection, while connected */
    nng_time lost_ms;    /* when it was last lost, or the client opened */
    nng_time heard_ms;   /* last reply, or connect; 0 = never connected yet */

    struct net_call **calls; /* [calls_count] owned, by slot; slots are used again and never go away */
    uint32_t calls_count;
    struct net_call *pool;
    struct net_call *first, *last; /* outstanding: WAITING or GIVEN */
    uint32_t busy;                 /* calls not FREE */
    uint32_t ending;               /* timer callbacks that still end some */
    bool timer_busy;
    nng_time timer_ms; /* when it goes off, while busy */
    bool closing;
};

/* The connection is up: calls that waited for it leave. An event of the connection. */
void calls_opened(struct net_client *client, uint64_t generation);
/* It is down: those given to it end. */
void calls_lost(struct net_client *client, uint64_t generation);
/* All that are outstanding end with OMEN_ECANCELED. `closing` is set. */
void calls_cancel(struct net_client *client);
/* Events of the connection. */
bool calls_reply(struct net_client *client, struct net_frame *frame);
void calls_unsent(struct net_client *client, uint32_t id);
/* Callback of timer_aio: deadlines of asynchronous calls, and their end when the client is closed. */
void calls_timer(void *client);

#endif

/* See peer.h. */
#include "node/member/peer.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/random.h>

#include "common/check.h"
#include "common/net/net.h"
#include "common/placement/map.h"
#include "common/wire/shard_message.h"
#include "node/member/fields.h"

struct connection {
    char address[OMEN_ADDRESS_BYTES_MAX + 1];
    struct net_client *client;
    uint32_t users; /* calls under way */
    uint64_t used;  /* when, in calls */
};

struct peers {
    struct siphash_key key;
    uint64_t nonce_first;
    _Atomic uint64_t nonces;
    pthread_mutex_t lock; /* guards what follows */
    struct connection *table[PEER_ADDRESSES_MAX];
    uint32_t count;
    uint64_t calls;
};

struct peers *peers_new(const struct siphash_key *key)
{
    struct peers *p = mem_must_calloc(1, sizeof *p);
    p->key = *key;
    while (getrandom(&p->nonce_first, sizeof p->nonce_first, 0) != (ssize_t)sizeof p->nonce_first) continue;
    pthread_mutex_init(&p->lock, NULL);
    return p;
}

static void connection_free(struct connection *c)
{
    net_client_close(c->client);
    mem_free(c);
}

void peers_free(struct peers *p)
{
    if (p == NULL) return;
    for (uint32_t i = 0; i < p->count; i++) {
        CHECK(p->table[i]->users == 0);
        connection_free(p->table[i]);
    }
    pthread_mutex_destroy(&p->lock);
    explicit_bzero(&p->key, sizeof p->key);
    mem_free(p);
}

/* The idle connection that was not used for longest, taken out; NULL when all are in use. Needs the lock. */
static struct connection *connection_evict(struct peers *p)
{
    uint32_t oldest = UINT32_MAX;
    for (uint32_t i = 0; i < p->count; i++) {
        if (p->table[i]->users > 0) continue;
        if (oldest == UINT32_MAX || p->table[i]->used < p->table[oldest]->used) oldest = i;
    }
    if (oldest == UINT32_MAX) return NULL;
    struct connection *c = p->table[oldest];
    p->table[oldest] = p->table[--p->count];
    return c;
}

static struct connection *connection_find(struct peers *p, const char *address)
{
    for (uint32_t i = 0; i < p->count; i++)
        if (strcmp(p->table[i]->address, address) == 0) return p->table[i];
    return NULL;
}

static enum omen_err connection_hold(struct peers *p, const char *address, struct connection **out,
        struct err *err)
{
    enum omen_err rc = OMEN_OK;
    struct connection *evicted = NULL;
    pthread_mutex_lock(&p->lock);
    struct connection *c = connection_find(p, address);
    if (c == NULL && strlen(address) > OMEN_ADDRESS_BYTES_MAX)
        rc = err_set(err, OMEN_EINVAL, "address", "is longer than %d bytes", OMEN_ADDRESS_BYTES_MAX);
    if (c == NULL && rc == OMEN_OK && p->count == PEER_ADDRESSES_MAX) {
        evicted = connection_evict(p);
        if (evicted == NULL) rc = err_set(err, OMEN_EBUSY, "", "calls to too many nodes are under way");
    }
    if (c == NULL && rc == OMEN_OK) {
        c = mem_must_calloc(1, sizeof *c);
        memcpy(c->address, address, strlen(address) + 1);
        rc = net_client_open(address, SHARD_MESSAGE_BYTES_MAX, &c->client, err);
        if (rc == OMEN_OK) {
            p->table[p->count++] = c;
        } else {
            mem_free(c);
            c = NULL;
        }
    }
    if (c != NULL) {
        c->users++;
        c->used = ++p->calls;
    }
    pthread_mutex_unlock(&p->lock);
    if (evicted != NULL) connection_free(evicted);
    *out = c;
    return rc;
}

static void connection_unhold(struct peers *p, struct connection *c)
{
    pthread_mutex_lock(&p->lock);
    c->users--;
    pthread_mutex_unlock(&p->lock);
}

void peer_reply_fini(struct peer_reply *reply)
{
    buf_fini(&reply->bytes);
    reply->doc = (struct doc){ NULL, 0 };
}

void peer_reply_error(struct doc_builder *b, const struct err *err)
{
    put_u64(b, "code", (uint64_t)err->code);
    put_text(b, "message", utf8_valid(err->message, strlen(err->message)) ? err->message : "");
    put_text(b, "field", err->field);
    if (err->retry_after_ms > 0) put_u64(b, "retry_after_ms", err->retry_after_ms);
}

/* The error that the other node tells. */
static enum omen_err reply_error(struct doc doc, struct err *err)
{
    uint64_t code = field_u64(doc, "code");
    if (code == OMEN_OK) return OMEN_OK;
    if (code >= OMEN_ERR_COUNT) code = OMEN_EPROTO;
    char message[ERR_MESSAGE_BYTES], field[64];
    (void)field_text(doc, "message", message, sizeof message);
    (void)field_text(doc, "field", field, sizeof field);
    enum omen_err rc = err_set(err, (enum omen_err)code, field, "%s",
            message[0] != '\0' ? message : err_name((enum omen_err)code));
    err->retry_after_ms = field_u32(doc, "retry_after_ms");
    return rc;
}

static enum omen_err reply_open(struct peers *p, const char *address, uint64_t nonce,
        struct peer_reply *reply, struct err *err)
{
    struct shard_envelope envelope;
    struct bytes message = { reply->bytes.data, reply->bytes.len };
    enum omen_err rc = shard_message_open(message, SHARD_REPLY, &p->key, &envelope, err);
    if (rc != OMEN_OK) return rc;
    if (envelope.kind != SHARD_KIND_PEER || envelope.nonce != nonce)
        return err_set(err, OMEN_EPROTO, "", "%s: the answer is not to what was asked", address);
    rc = doc_validate(envelope.body, PEER_DOC_BYTES_MAX, &reply->doc, err);
    if (rc == OMEN_OK && doc_type(reply->doc) != DOC_OBJECT)
        rc = err_set(err, OMEN_EPROTO, "", "%s: the answer is no object", address);
    if (rc != OMEN_OK) return rc;
    return reply_error(reply->doc, err);
}

enum omen_err peer_call(struct peers *p, const char *address, struct doc request, uint32_t timeout_ms,
        struct peer_reply *reply_out, struct err *err)
{
    reply_out->doc = (struct doc){ NULL, 0 };
    buf_init(&reply_out->bytes);
    struct connection *c;
    enum omen_err rc = connection_hold(p, address, &c, err);
    if (rc != OMEN_OK) return rc;
    uint64_t nonce = p->nonce_first + atomic_fetch_add(&p->nonces, 1);
    struct buf message;
    buf_init(&message);
    shard_message_begin(&message, SHARD_REQUEST, SHARD_KIND_PEER, nonce);
    buf_append(&message, request.data, request.len);
    if (message.failed) {
        rc = err_set(err, OMEN_ENOMEM, "", "no memory for a call to %s", address);
    } else {
        shard_message_seal(message.data, message.len, &p->key);
        rc = net_call(c->client, (struct bytes){ message.data, message.len }, timeout_ms, &reply_out->bytes,
                err);
    }
    buf_fini(&message);
    connection_unhold(p, c);
    if (rc != OMEN_OK) return rc;
    return reply_open(p, address, nonce, reply_out, err);
}

/* Opening and closing a client: its endpoints, its identity, and the scratch memory that its calls share.
 * Threads: any; see omen.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "common/check.h"
#include "tools/client/client_impl.h"

/* ---- scratch ---- */

static void scratch_free(struct scratch *s)
{
    arena_fini(&s->arena);
    buf_fini(&s->message);
    buf_fini(&s->reply);
    buf_fini(&s->text);
    doc_builder_free(s->builder);
    mem_free(s);
}

static struct scratch *scratch_new(void)
{
    struct scratch *s = mem_calloc(1, sizeof *s);
    if (s == NULL) return NULL;
    s->builder = doc_builder_new(DOC_BYTES_MAX);
    if (s->builder == NULL) {
        mem_free(s);
        return NULL;
    }
    arena_init(&s->arena, 16 * 1024, CLIENT_SCRATCH_BYTES_MAX);
    buf_init(&s->message);
    buf_init(&s->reply);
    buf_init(&s->text);
    return s;
}

struct scratch *scratch_take(struct omen_client *client)
{
    pthread_mutex_lock(&client->scratch_lock);
    struct scratch *s = client->idle;
    if (s != NULL) {
        client->idle = s->next;
        client->idle_count--;
    }
    pthread_mutex_unlock(&client->scratch_lock);
    return s != NULL ? s : scratch_new();
}

static void buf_recycle(struct buf *buf)
{
    if (buf->cap > CLIENT_SCRATCH_BYTES_KEPT || buf->failed) {
        buf_fini(buf);
        buf_init(buf);
    }
    buf_clear(buf);
}

void scratch_give(struct omen_client *client, struct scratch *s)
{
    if (s == NULL) return;
    if (s->arena.reserved_bytes > CLIENT_SCRATCH_BYTES_KEPT) {
        arena_fini(&s->arena);
        arena_init(&s->arena, 16 * 1024, CLIENT_SCRATCH_BYTES_MAX);
    }
    arena_reset(&s->arena);
    buf_recycle(&s->message);
    buf_recycle(&s->reply);
    buf_recycle(&s->text);
    pthread_mutex_lock(&client->scratch_lock);
    bool keep = client->idle_count < CLIENT_SCRATCH_KEPT_MAX;
    if (keep) {
        s->next = client->idle;
        client->idle = s;
        client->idle_count++;
    }
    pthread_mutex_unlock(&client->scratch_lock);
    if (!keep) scratch_free(s);
}

/* ---- endpoints ---- */

static enum omen_err endpoint_add(struct omen_client *client, const char *url, size_t len, struct err *err)
{
    if (client->endpoint_count == CLIENT_ENDPOINTS_MAX)
        return err_set(err, OMEN_ETOOBIG, "endpoints", "more than %d endpoints", CLIENT_ENDPOINTS_MAX);
    if (len > CLIENT_URL_BYTES_MAX)
        return err_set(err, OMEN_ETOOBIG, "endpoints", "an endpoint is longer than %d bytes",
                CLIENT_URL_BYTES_MAX);
    struct endpoint *endpoint = &client->endpoints[client->endpoint_count];
    memcpy(endpoint->url, url, len);
    endpoint->url[len] = '\0';
    if (strstr(endpoint->url, "://") == NULL)
        return err_set(err, OMEN_EINVAL, "endpoints", "\"%s\" is no endpoint: write it as tcp://host:port",
                endpoint->url);
    enum omen_err rc = net_client_open(endpoint->url, WIRE_MESSAGE_BYTES_MAX, &endpoint->net, err);
    if (rc == OMEN_OK) client->endpoint_count++;
    return rc;
}

static enum omen_err endpoints_open(struct omen_client *client, const char *list, struct err *err)
{
    for (const char *p = list;;) {
        p += strspn(p, ", \t");
        if (*p == '\0') break;
        size_t len = strcspn(p, ", \t");
        enum omen_err rc = endpoint_add(client, p, len, err);
        if (rc != OMEN_OK) return rc;
        p += len;
    }
    if (client->endpoint_count == 0) return err_set(err, OMEN_EINVAL, "endpoints", "no endpoint is given");
    return OMEN_OK;
}

/* ---- lifecycle ---- */

static enum omen_err client_configure(struct omen_client *client, const omen_options *options,
        struct err *err)
{
    static const omen_options none;
    if (options == NULL) options = &none;
    const char *key = options->api_key == NULL ? "" : options->api_key;
    const char *name = options->client_name == NULL ? "omen-c" : options->client_name;
    client->timeout_ms = options->timeout_ms == 0 ? CLIENT_TIMEOUT_MS_DEFAULT : options->timeout_ms;
    client->retries = options->retries == 0 ? CLIENT_RETRIES_DEFAULT : options->retries;
    client->api_key = mem_must_strdup(key);
    client->client_name = mem_must_strdup(name);
    if (strlen(key) > WIRE_API_KEY_BYTES_MAX)
        return err_set(err, OMEN_ETOOBIG, "api_key", "API key is longer than %d bytes",
                WIRE_API_KEY_BYTES_MAX);
    if (strlen(name) > OMEN_NAME_BYTES_MAX)
        return err_set(err, OMEN_ETOOBIG, "client_name", "client name is longer than %d bytes",
                OMEN_NAME_BYTES_MAX);
    if (client->timeout_ms > CLIENT_TIMEOUT_MS_MAX)
        return err_set(err, OMEN_ETOOBIG, "timeout_ms", "timeout is longer than a day");
    return OMEN_OK;
}

static uint64_t random_id(void)
{
    uint64_t id = 0;
    while (id == 0) {
        ssize_t n = getrandom(&id, sizeof id, 0);
        if (n < 0 && errno != EINTR) panic("getrandom: %s", strerror(errno));
        if (n != (ssize_t)sizeof id) id = 0;
    }
    return id;
}

omen_code omen_open(const char *endpoints, const omen_options *options, omen_client **client_out)
{
    struct err *err = client_err();
    if (client_out == NULL) return client_fail(OMEN_EINVAL, "client_out", "client_out is NULL");
    *client_out = NULL;
    if (endpoints == NULL) return client_fail(OMEN_EINVAL, "endpoints", "no endpoint is given");
    struct omen_client *client = mem_calloc(1, sizeof *client);
    if (client == NULL) return client_fail(OMEN_ENOMEM, NULL, "no memory for a client");
    tokens_init(&client->tokens);
    pthread_mutex_init(&client->scratch_lock, NULL);
    client->id = random_id();
    enum omen_err rc = client_configure(client, options, err);
    if (rc == OMEN_OK) rc = endpoints_open(client, endpoints, err);
    if (rc != OMEN_OK) {
        omen_close(client);
        return (omen_code)rc;
    }
    *client_out = client;
    return OMEN_OK;
}

void omen_close(omen_client *client)
{
    if (client == NULL) return;
    for (uint32_t i = 0; i < client->endpoint_count; i++) net_client_close(client->endpoints[i].net);
    while (client->idle != NULL) {
        struct scratch *next = client->idle->next;
        scratch_free(client->idle);
        client->idle = next;
    }
    pthread_mutex_destroy(&client->scratch_lock);
    tokens_fini(&client->tokens);
    if (client->api_key != NULL) explicit_bzero(client->api_key, strlen(client->api_key));
    mem_free(client->api_key);
    mem_free(client->client_name);
    mem_free(client);
}

void omen_free(void *ptr) { mem_free(ptr); }

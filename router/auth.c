/* API keys and roles. Every configured key is compared in full whatever matched before, so the time an answer takes
 * tells nothing about a key. */
#include "common/err.h"

#include <string.h>

#include "router/request.h"

static const char *role_name(enum wire_role role)
{
    switch (role) {
    case WIRE_ROLE_NONE: return "none";
    case WIRE_ROLE_READ: return "read-only";
    case WIRE_ROLE_WRITE: return "read-write";
    case WIRE_ROLE_ADMIN: return "admin";
    }
    return "unknown";
}

/* 1 when equal. `given` is zero-padded to the full length. */
static uint32_t key_equal(const uint8_t given[WIRE_API_KEY_BYTES_MAX + 1], size_t given_len,
        const struct api_key *key)
{
    uint32_t difference = (uint32_t)(given_len ^ strnlen(key->key, sizeof key->key));
    for (size_t i = 0; i <= WIRE_API_KEY_BYTES_MAX; i++) difference |= given[i] ^ (uint8_t)key->key[i];
    return difference == 0;
}

enum omen_err auth_check(const struct router *router, const struct wire_request *wire, struct err *err)
{
    /* An operation that is not known asks for a key too: strangers learn nothing by guessing. */
    enum wire_role need = wire->op == 0 ? WIRE_ROLE_READ : wire_request_role(wire);
    if (need == WIRE_ROLE_NONE || router->options.api_key_count == 0) return OMEN_OK;
    if (wire->api_key.len == 0) {
        return err_set(err, OMEN_EAUTH, "key", "this server asks for an API key");
    }
    uint8_t given[WIRE_API_KEY_BYTES_MAX + 1] = { 0 };
    size_t len = wire->api_key.len;
    if (len > WIRE_API_KEY_BYTES_MAX) len = WIRE_API_KEY_BYTES_MAX;
    memcpy(given, wire->api_key.data, len);
    const struct api_key *found = NULL;
    for (uint32_t i = 0; i < router->options.api_key_count; i++) {
        const struct api_key *key = &router->options.api_keys[i];
        if (key_equal(given, wire->api_key.len, key)) found = key;
    }
    if (found == NULL) return err_set(err, OMEN_EAUTH, "key", "unknown API key");
    if (found->role < need) {
        return err_set(err, OMEN_EPERM, "key", "%s needs role %s, key \"%s\" has %s", wire_op_name(wire->op),
                role_name(need), found->name, role_name(found->role));
    }
    return OMEN_OK;
}

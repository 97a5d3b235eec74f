/* Secrets from configuration: API keys and the cluster secret, given inline or as the first line of a file. */
#ifndef OMEN_COMMON_PROCESS_SECRETS_H
#define OMEN_COMMON_PROCESS_SECRETS_H

#include "common/config.h"
#include "common/siphash.h"
#include "common/vfs.h"
#include "common/wire/message.h"

#define API_KEYS_MAX 256
#define CLUSTER_SECRET_BYTES_MIN 16
#define CLUSTER_SECRET_BYTES_MAX 256

struct api_key {
    char name[64]; /* for logs and metrics, never the key itself */
    char key[WIRE_API_KEY_BYTES_MAX + 1];
    enum wire_role role;
};

struct api_key_item { /* one item of auth.keys */
    char *name, *key, *key_file;
    int role;
};
extern const struct config_key api_key_item_keys[]; /* ends with name == NULL */

/* `items`: of struct api_key_item; `keys_out` [API_KEYS_MAX]. Errors name auth.keys[i]. */
OMEN_CHECKED enum omen_err api_keys_read(const struct config_list *items, struct vfs *vfs,
        struct api_key *keys_out, uint32_t *count_out, struct err *err);

/* The key that proves the cluster secret, given as text or in a file, one of them. Errors name cluster.secret_file. */
OMEN_CHECKED enum omen_err cluster_key_read(const char *secret, const char *secret_file, struct vfs *vfs,
        struct siphash_key *key_out, struct err *err);

#endif

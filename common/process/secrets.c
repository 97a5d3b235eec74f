/* See secrets.h. What was read is wiped from memory of ours as soon as it was copied to where it is used. */
#include "common/process/secrets.h"

#include <ctype.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "common/mem.h"

#define SECRET_FILE_BYTES_MAX 4096
#define API_KEY_BYTES_MIN 8

static const char *const roles[] = { "read-only", "read-write", "admin", NULL };
static const enum wire_role role_values[] = { WIRE_ROLE_READ, WIRE_ROLE_WRITE, WIRE_ROLE_ADMIN };

const struct config_key api_key_item_keys[] = {
    { .name = "name",
            .type = CONFIG_STRING,
            .offset = offsetof(struct api_key_item, name),
            .default_text = NULL,
            .help = "what logs and errors call this key" },
    { .name = "key",
            .type = CONFIG_STRING,
            .offset = offsetof(struct api_key_item, key),
            .default_text = "",
            .help = "the key itself, or give key_file" },
    { .name = "key_file",
            .type = CONFIG_STRING,
            .offset = offsetof(struct api_key_item, key_file),
            .default_text = "",
            .help = "file whose first line is the key" },
    { .name = "role",
            .type = CONFIG_ENUM,
            .offset = offsetof(struct api_key_item, role),
            .default_text = "read-only",
            .choices = roles,
            .help = "read-only, read-write or admin" },
    { .name = NULL },
};

/* The secret `text`, or the first line of `file` without blanks at its end, into out[bytes_max + 1]. */
static enum omen_err secret_read(const char *text, const char *file, const char *where, struct vfs *vfs,
        size_t bytes_min, size_t bytes_max, char *out, struct err *err)
{
    size_t len = strlen(text), file_len = 0;
    uint8_t *data = NULL;
    if (file[0] != '\0') {
        enum omen_err rc = vfs_read_file(vfs, file, SECRET_FILE_BYTES_MAX, &data, &file_len, err);
        if (rc != OMEN_OK) return rc;
        text = (const char *)data;
        len = file_len;
        const char *newline = memchr(text, '\n', len);
        if (newline != NULL) len = (size_t)(newline - text);
        while (len > 0 && isspace((unsigned char)text[len - 1])) len--;
    }
    enum omen_err rc = OMEN_OK;
    if (len < bytes_min || len > bytes_max) {
        rc = err_set(err, OMEN_EINVAL, where, "%s: must have %zu to %zu bytes, this one has %zu", where,
                bytes_min, bytes_max, len);
    } else {
        memcpy(out, text, len);
        out[len] = '\0';
    }
    if (data != NULL) explicit_bzero(data, file_len);
    mem_free(data);
    return rc;
}

enum omen_err api_keys_read(const struct config_list *list, struct vfs *vfs, struct api_key *keys_out,
        uint32_t *count_out, struct err *err)
{
    const struct api_key_item *items = list->items;
    *count_out = 0;
    for (uint32_t i = 0; i < list->count; i++) {
        struct api_key *key = &keys_out[i];
        memset(key, 0, sizeof *key);
        snprintf(key->name, sizeof key->name, "%s", items[i].name);
        key->role = role_values[items[i].role];
        char where[64];
        snprintf(where, sizeof where, "auth.keys[%u]", i);
        if ((items[i].key[0] != '\0') == (items[i].key_file[0] != '\0'))
            return err_set(err, OMEN_EINVAL, where, "%s: give key or key_file, one of them", where);
        enum omen_err rc = secret_read(items[i].key, items[i].key_file, where, vfs, API_KEY_BYTES_MIN,
                WIRE_API_KEY_BYTES_MAX, key->key, err);
        if (rc != OMEN_OK) return rc;
        *count_out = i + 1;
    }
    return OMEN_OK;
}

enum omen_err cluster_key_read(const char *secret, const char *secret_file, struct vfs *vfs,
        struct siphash_key *key_out, struct err *err)
{
    const char *where = "cluster.secret_file";
    if ((secret[0] != '\0') == (secret_file[0] != '\0'))
        return err_set(err, OMEN_EINVAL, where,
                "%s: the nodes of a cluster and its routers share a secret: give cluster.secret_file or "
                "cluster.secret, one of them",
                where);
    char text[CLUSTER_SECRET_BYTES_MAX + 1];
    enum omen_err rc = secret_read(secret, secret_file, where, vfs, CLUSTER_SECRET_BYTES_MIN,
            CLUSTER_SECRET_BYTES_MAX, text, err);
    if (rc == OMEN_OK)
        siphash_key_from_secret((struct bytes){ (const uint8_t *)text, strlen(text) }, key_out);
    explicit_bzero(text, sizeof text);
    return rc;
}

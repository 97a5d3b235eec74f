/* Writes of points: each call is one request under one op id, applied once however often it was sent. */
#include "tools/client/client_impl.h"

static omen_code write_points(omen_client *client, const struct write_args *args,
        omen_write_result *result_out)
{
    struct err *err = client_err();
    if (client == NULL) return client_fail(OMEN_EINVAL, "client", "client is NULL");
    struct scratch *s = scratch_take(client);
    if (s == NULL) return client_fail(OMEN_ENOMEM, NULL, "no memory for a request");
    struct wire_request request;
    struct wire_reply reply;
    enum omen_err rc = build_write(client, args, s, &request, err);
    if (rc == OMEN_OK) rc = client_call(client, &request, s, &s->arena, &reply, err);
    if (rc == OMEN_OK && result_out != NULL)
        *result_out = (omen_write_result){ reply.write.affected, reply.write.duplicate };
    scratch_give(client, s);
    return (omen_code)rc;
}

omen_code omen_upsert(omen_client *client, const char *collection, const omen_id *ids, const float *vectors,
        uint32_t dim, const char *const *payloads_json, size_t count, omen_write_result *result_out)
{
    omen_vectors column = { .field = "", .data = vectors, .dim = dim };
    return omen_upsert_fields(client, collection, ids, &column, 1, payloads_json, count, result_out);
}

omen_code omen_upsert_fields(omen_client *client, const char *collection, const omen_id *ids,
        const omen_vectors *columns, uint32_t column_count, const char *const *payloads_json, size_t count,
        omen_write_result *result_out)
{
    return omen_upsert_with(client, collection, ids, columns, column_count, payloads_json, count, NULL,
            result_out);
}

omen_code omen_upsert_with(omen_client *client, const char *collection, const omen_id *ids,
        const omen_vectors *columns, uint32_t column_count, const char *const *payloads_json, size_t count,
        const omen_upsert_options *options, omen_write_result *result_out)
{
    struct write_args args = { .op = WIRE_UPSERT,
        .collection = collection,
        .ids = ids,
        .payloads_json = payloads_json,
        .columns = columns,
        .column_count = column_count,
        .expires_ms = options == NULL ? NULL : options->expires_ms,
        .ttl_ms = options == NULL ? 0 : options->ttl_ms,
        .wait = options == NULL ? NULL : options->wait,
        .count = count };
    return write_points(client, &args, result_out);
}

omen_code omen_delete(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, size_t count, omen_write_result *result_out)
{
    struct write_args args = { .op = WIRE_DELETE,
        .collection = collection,
        .ids = ids,
        .keys_json = shard_keys_json,
        .count = count };
    return write_points(client, &args, result_out);
}

omen_code omen_set_payload(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, const char *const *payloads_json, size_t count,
        omen_write_result *result_out)
{
    struct write_args args = { .op = WIRE_SET_PAYLOAD,
        .collection = collection,
        .ids = ids,
        .keys_json = shard_keys_json,
        .payloads_json = payloads_json,
        .count = count };
    return write_points(client, &args, result_out);
}

omen_code omen_overwrite_payload(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, const char *const *payloads_json, size_t count,
        omen_write_result *result_out)
{
    struct write_args args = { .op = WIRE_OVERWRITE_PAYLOAD,
        .collection = collection,
        .ids = ids,
        .keys_json = shard_keys_json,
        .payloads_json = payloads_json,
        .count = count };
    return write_points(client, &args, result_out);
}

omen_code omen_delete_payload(omen_client *client, const char *collection, const omen_id *ids,
        const char *const *shard_keys_json, const char *const *paths, uint32_t path_count, size_t count,
        omen_write_result *result_out)
{
    struct write_args args = { .op = WIRE_DELETE_PAYLOAD,
        .collection = collection,
        .ids = ids,
        .keys_json = shard_keys_json,
        .paths = paths,
        .path_count = path_count,
        .count = count };
    return write_points(client, &args, result_out);
}

omen_code omen_delete_by_filter(omen_client *client, const char *collection, const char *filter,
        omen_write_result *result_out)
{
    if (filter == NULL) return client_fail(OMEN_EINVAL, "filter", "no filter is given");
    struct write_args args = { .op = WIRE_DELETE, .collection = collection, .filter = filter };
    return write_points(client, &args, result_out);
}

static omen_code payload_by_filter(omen_client *client, enum wire_op op, const char *collection,
        const char *filter, const char *payload_json, omen_write_result *result_out)
{
    if (filter == NULL) return client_fail(OMEN_EINVAL, "filter", "no filter is given");
    if (payload_json == NULL) return client_fail(OMEN_EINVAL, "payload", "no payload is given");
    struct write_args args = { .op = op,
        .collection = collection,
        .filter = filter,
        .payloads_json = &payload_json };
    return write_points(client, &args, result_out);
}

omen_code omen_set_payload_by_filter(omen_client *client, const char *collection, const char *filter,
        const char *payload_json, omen_write_result *result_out)
{
    return payload_by_filter(client, WIRE_SET_PAYLOAD, collection, filter, payload_json, result_out);
}

omen_code omen_overwrite_payload_by_filter(omen_client *client, const char *collection, const char *filter,
        const char *payload_json, omen_write_result *result_out)
{
    return payload_by_filter(client, WIRE_OVERWRITE_PAYLOAD, collection, filter, payload_json, result_out);
}

omen_code omen_delete_payload_by_filter(omen_client *client, const char *collection, const char *filter,
        const char *const *paths, uint32_t path_count, omen_write_result *result_out)
{
    if (filter == NULL) return client_fail(OMEN_EINVAL, "filter", "no filter is given");
    struct write_args args = { .op = WIRE_DELETE_PAYLOAD,
        .collection = collection,
        .filter = filter,
        .paths = paths,
        .path_count = path_count };
    return write_points(client, &args, result_out);
}

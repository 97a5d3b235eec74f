/* The catalogue: every operation with its name, the role it needs and the members it takes. */
#include "common/wire/request.h"

const char *const MEMBER_NAMES[M_COUNT] = {
    [M_V] = "v",
    [M_OP] = "op",
    [M_COLLECTION] = "collection",
    [M_KEY] = "key",
    [M_DEADLINE_MS] = "deadline_ms",
    [M_CONSISTENCY] = "consistency",
    [M_TOKENS] = "tokens",
    [M_VERSIONS] = "versions",
    [M_CLIENT] = "client",
    [M_VECTORS] = "vectors",
    [M_SHARD_KEY] = "shard_key",
    [M_SHARDS] = "shards",
    [M_REPLICATION] = "replication",
    [M_RECALL_TARGET] = "recall_target",
    [M_OPTIONS] = "options",
    [M_ALIAS] = "alias",
    [M_IDS] = "ids",
    [M_PAYLOADS] = "payloads",
    [M_KEYS] = "keys",
    [M_PATHS] = "paths",
    [M_OP_ID] = "op_id",
    [M_EXPIRES_MS] = "expires_ms",
    [M_WAIT] = "wait",
    [M_CURSOR] = "cursor",
    [M_LIMIT] = "limit",
    [M_FILTER] = "filter",
    [M_WITH_PAYLOAD] = "with_payload",
    [M_WITH_VECTORS] = "with_vectors",
    [M_SEARCHES] = "searches",
    [M_ALLOW_PARTIAL] = "allow_partial",
    [M_REQUEST] = "request",
    [M_EXPLAIN] = "explain",
};

const char *const SEARCH_MEMBER_NAMES[S_COUNT] = {
    [S_VECTOR] = "vector",
    [S_FIELD] = "field",
    [S_ID] = "id",
    [S_KEY] = "key",
    [S_K] = "k",
    [S_OFFSET] = "offset",
    [S_SCORE_THRESHOLD] = "score_threshold",
    [S_EXACT] = "exact",
    [S_FILTER] = "filter",
    [S_WITH_PAYLOAD] = "with_payload",
    [S_WITH_VECTORS] = "with_vectors",
};

const char *const CONSISTENCY_NAMES[3] = {
    [CONSISTENCY_SESSION] = "session",
    [CONSISTENCY_EVENTUAL] = "eventual",
    [CONSISTENCY_LINEARIZABLE] = "linearizable",
};

struct op_info {
    const char *name;
    enum wire_role role;
    bool collection; /* names one */
    uint64_t members;
};

#define WRITE_MEMBERS (BIT(M_IDS) | BIT(M_OP_ID) | BIT(M_WAIT))
#define SELECTION_MEMBERS (BIT(M_WITH_PAYLOAD) | BIT(M_WITH_VECTORS))

static const struct op_info OPS[WIRE_OP_COUNT] = {
    [WIRE_HELLO] = { "hello", WIRE_ROLE_NONE, false, BIT(M_VERSIONS) | BIT(M_CLIENT) },
    [WIRE_COLLECTION_CREATE] = { "collection.create", WIRE_ROLE_ADMIN, true,
            BIT(M_VECTORS) | BIT(M_SHARD_KEY) | BIT(M_SHARDS) | BIT(M_REPLICATION) | BIT(M_RECALL_TARGET) |
                    BIT(M_OPTIONS) | BIT(M_OP_ID) },
    [WIRE_COLLECTION_SET] = { "collection.set", WIRE_ROLE_ADMIN, true, BIT(M_OPTIONS) | BIT(M_OP_ID) },
    [WIRE_COLLECTION_LIST] = { "collection.list", WIRE_ROLE_READ, false, 0 },
    [WIRE_COLLECTION_DESCRIBE] = { "collection.describe", WIRE_ROLE_READ, true, 0 },
    [WIRE_COLLECTION_DROP] = { "collection.drop", WIRE_ROLE_ADMIN, true, BIT(M_OP_ID) },
    [WIRE_ALIAS_SET] = { "alias.set", WIRE_ROLE_ADMIN, true, BIT(M_ALIAS) | BIT(M_OP_ID) },
    [WIRE_ALIAS_DROP] = { "alias.drop", WIRE_ROLE_ADMIN, false, BIT(M_ALIAS) | BIT(M_OP_ID) },
    [WIRE_UPSERT] = { "points.upsert", WIRE_ROLE_WRITE, true,
            WRITE_MEMBERS | BIT(M_VECTORS) | BIT(M_PAYLOADS) | BIT(M_EXPIRES_MS) },
    [WIRE_DELETE] = { "points.delete", WIRE_ROLE_WRITE, true, WRITE_MEMBERS | BIT(M_FILTER) | BIT(M_KEYS) },
    [WIRE_SET_PAYLOAD] = { "points.set_payload", WIRE_ROLE_WRITE, true,
            WRITE_MEMBERS | BIT(M_FILTER) | BIT(M_KEYS) | BIT(M_PAYLOADS) },
    [WIRE_OVERWRITE_PAYLOAD] = { "points.overwrite_payload", WIRE_ROLE_WRITE, true,
            WRITE_MEMBERS | BIT(M_FILTER) | BIT(M_KEYS) | BIT(M_PAYLOADS) },
    [WIRE_DELETE_PAYLOAD] = { "points.delete_payload", WIRE_ROLE_WRITE, true,
            WRITE_MEMBERS | BIT(M_FILTER) | BIT(M_KEYS) | BIT(M_PATHS) },
    [WIRE_GET] = { "points.get", WIRE_ROLE_READ, true,
            BIT(M_IDS) | BIT(M_KEYS) | BIT(M_ALLOW_PARTIAL) | SELECTION_MEMBERS },
    [WIRE_SCROLL] = { "points.scroll", WIRE_ROLE_READ, true,
            BIT(M_CURSOR) | BIT(M_LIMIT) | BIT(M_FILTER) | BIT(M_ALLOW_PARTIAL) | SELECTION_MEMBERS },
    [WIRE_COUNT] = { "points.count", WIRE_ROLE_READ, true, BIT(M_FILTER) | BIT(M_ALLOW_PARTIAL) },
    [WIRE_SEARCH] = { "points.search", WIRE_ROLE_READ, true,
            BIT(M_SEARCHES) | BIT(M_ALLOW_PARTIAL) | BIT(M_EXPLAIN) },
    [WIRE_STATUS] = { "status", WIRE_ROLE_READ, false, 0 },
    [WIRE_CLUSTER] = { "cluster", WIRE_ROLE_READ, false, BIT(M_REQUEST) | BIT(M_OP_ID) },
};

static const struct op_info *op_info(enum wire_op op)
{
    static const struct op_info none = { "unknown", WIRE_ROLE_ADMIN, false, 0 };
    return op > 0 && op < WIRE_OP_COUNT ? &OPS[op] : &none;
}

const char *wire_op_name(enum wire_op op) { return op_info(op)->name; }

enum wire_role wire_op_role(enum wire_op op) { return op_info(op)->role; }

static struct doc member_of(struct doc object, const char *name)
{
    return doc_member(object, (struct bytes){ (const uint8_t *)name, strlen(name) });
}

static bool does(struct doc request, const char *action)
{
    struct doc what = member_of(request, "do");
    return what.data != NULL && doc_type(what) == DOC_STRING && bytes_equal(doc_string(what), action);
}

static bool says(struct doc request, const char *name, enum doc_type value)
{
    struct doc member = member_of(request, name);
    return member.data != NULL && doc_type(member) == value;
}

bool wire_cluster_changes(struct doc request)
{
    if (does(request, "status")) return false;
    if (does(request, "rebalance")) return says(request, "apply", DOC_TRUE);
    if (does(request, "version")) return says(request, "hold", DOC_TRUE) || says(request, "hold", DOC_FALSE);
    return !(does(request, "node_drain") && says(request, "dry_run", DOC_TRUE));
}

bool wire_cluster_recorded(struct doc request)
{
    return wire_cluster_changes(request) && !does(request, "leader_transfer");
}

enum wire_role wire_request_role(const struct wire_request *request)
{
    bool decoded = request->op == WIRE_CLUSTER && request->cluster.request.data != NULL;
    if (decoded && !does(request->cluster.request, "status")) return WIRE_ROLE_ADMIN;
    return wire_op_role(request->op);
}

bool op_takes_collection(enum wire_op op) { return op_info(op)->collection; }

uint64_t op_members(enum wire_op op)
{
    uint64_t members = op_info(op)->members | BIT(M_V) | BIT(M_OP) | BIT(M_KEY) | BIT(M_DEADLINE_MS) |
            BIT(M_CONSISTENCY) | BIT(M_TOKENS);
    return op_info(op)->collection ? members | BIT(M_COLLECTION) : members;
}

bool op_parse(struct bytes name, enum wire_op *op_out)
{
    for (enum wire_op op = 1; op < WIRE_OP_COUNT; op++) {
        if (!bytes_equal(name, OPS[op].name)) continue;
        *op_out = op;
        return true;
    }
    return false;
}

/* Requests of other nodes, by what they ask for; and commands to the leaders of groups, which travel as such
 * requests.
 *
 * A command carries the term of the cluster group: a node refuses one of a lower term than it knows, so a leader
 * that was overtaken cannot go on changing shards (CORRECTNESS K2). Commands are idempotent: who has the role
 * already is OK. */
#include "common/err.h"

#include "common/check.h"
#include "common/log.h"
#include "node/member/member_impl.h"

static const char *const command_names[] = { "add", "standby", "voter", "remove", "transfer" };
#define COMMANDS (sizeof command_names / sizeof *command_names)

/* ---- one command, waited for ---- */

static bool done_already(enum member_command command, enum omen_err rc)
{
    return command == COMMAND_REMOVE ? rc == OMEN_ENOTFOUND : rc == OMEN_EEXISTS;
}

enum omen_err replica_command(struct replica *replica, enum member_command command, uint64_t replica_id,
        uint32_t node_id, struct err *err)
{
    struct waiter *w = waiter_new();
    switch (command) {
    case COMMAND_ADD: replica_add(replica, replica_id, node_id, waiter_done, w); break;
    case COMMAND_STANDBY: replica_assign(replica, replica_id, REPLICA_STANDBY, waiter_done, w); break;
    case COMMAND_VOTER: replica_assign(replica, replica_id, REPLICA_VOTER, waiter_done, w); break;
    case COMMAND_REMOVE: replica_remove(replica, replica_id, waiter_done, w); break;
    case COMMAND_TRANSFER: replica_transfer(replica, replica_id, waiter_done, w); break;
    }
    enum omen_err rc;
    bool finished = waiter_wait(w, MEMBER_COMMAND_MS / 2, &rc, err);
    waiter_unref(w);
    if (!finished) return err_set(err, OMEN_EBUSY, "", "the change of members takes longer");
    if (rc == OMEN_OK || done_already(command, rc)) return OMEN_OK;
    if (err->code != rc) (void)err_set(err, rc, "", "%s", err_name(rc));
    return rc;
}

/* ---- to a leader ---- */

static enum omen_err command_here(struct member *m, uint64_t group, enum member_command command,
        uint64_t replica_id, uint32_t node_id, struct err *err)
{
    if (group == CATALOG_GROUP)
        return replica_command(m->node->catalog_replica, command, replica_id, node_id, err);
    struct shard_host *shard = node_shard_hold(m->node, group);
    if (shard == NULL)
        return err_set(err, OMEN_EUNAVAILABLE, "", "shard %llu is not open here", (unsigned long long)group);
    struct replica *replica = shard_host_replica(shard);
    enum omen_err rc = replica != NULL ? replica_command(replica, command, replica_id, node_id, err)
                                       : err_set(err, OMEN_EUNAVAILABLE, "", "the replica here is damaged");
    shard_host_unhold(shard);
    return rc;
}

enum omen_err member_command(struct member *m, uint32_t leader_node, uint64_t group,
        enum member_command command, uint64_t replica_id, uint32_t node_id, struct err *err)
{
    if (leader_node == member_id(m)) return command_here(m, group, command, replica_id, node_id, err);
    char address[OMEN_ADDRESS_BYTES_MAX + 1];
    if (leader_node == 0 || !m->shard_peers.address(m, leader_node, address))
        return err_set(err, OMEN_EUNAVAILABLE, "", "group %llu has no leader that is known",
                (unsigned long long)group);
    struct replica_status status;
    replica_status(m->node->catalog_replica, &status);
    struct doc_builder *b = doc_builder_new(4096);
    struct doc request;
    if (b == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory for a command");
    doc_begin_object(b);
    put_text(b, "do", "command");
    put_text(b, "command", command_names[command]);
    put_u64(b, "cluster_id", m->node->dir.identity.cluster_id);
    put_u64(b, "term", status.term);
    put_u64(b, "group", group);
    put_u64(b, "replica_id", replica_id);
    put_u64(b, "node_id", node_id);
    doc_end(b);
    struct peer_reply reply = { .doc = { NULL, 0 } };
    buf_init(&reply.bytes);
    enum omen_err rc = doc_builder_finish(b, &request, err);
    if (rc == OMEN_OK) rc = peer_call(m->peers, address, request, MEMBER_COMMAND_MS, &reply, err);
    peer_reply_fini(&reply);
    doc_builder_free(b);
    return rc;
}

enum omen_err peer_command(struct member *m, struct doc request, struct err *err)
{
    struct replica_status status;
    if (!member_is_open(m)) return err_set(err, OMEN_EUNAVAILABLE, "", "this node is in no cluster yet");
    if (field_u64(request, "cluster_id") != m->node->dir.identity.cluster_id)
        return err_set(err, OMEN_EINVAL, "cluster_id", "is another cluster's");
    replica_status(m->node->catalog_replica, &status);
    if (field_u64(request, "term") < status.term)
        return err_set(err, OMEN_ENOTLEADER, "", "the command is of term %llu, the cluster group is at %llu",
                (unsigned long long)field_u64(request, "term"), (unsigned long long)status.term);
    for (uint32_t c = 0; c < COMMANDS; c++) {
        if (!field_is(request, "command", command_names[c])) continue;
        return command_here(m, field_u64(request, "group"), (enum member_command)c,
                field_u64(request, "replica_id"), field_u32(request, "node_id"), err);
    }
    return err_set(err, OMEN_EINVAL, "command", "is not known");
}

/* ---- all requests ---- */

void member_peer(struct member *m, struct doc request, struct doc_builder *reply)
{
    struct err err;
    err_clear(&err);
    enum omen_err rc = OMEN_OK;
    if (field_is(request, "do", "hello")) {
        peer_hello(m, request, reply);
    } else if (field_is(request, "do", "join")) {
        rc = peer_join(m, request, reply, &err);
    } else if (field_is(request, "do", "adopt")) {
        rc = peer_adopt(m, request, reply, &err);
    } else if (field_is(request, "do", "report")) {
        rc = field_u64(request, "cluster_id") == m->node->dir.identity.cluster_id
                ? peer_report(m, request, reply, &err)
                : err_set(&err, OMEN_EINVAL, "cluster_id", "is another cluster's");
    } else if (field_is(request, "do", "command")) {
        rc = peer_command(m, request, &err);
    } else {
        rc = err_set(&err, OMEN_EVERSION, "do", "is not known to this version");
    }
    if (rc != OMEN_OK) peer_reply_error(reply, &err);
}

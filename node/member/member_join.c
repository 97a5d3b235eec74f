/* How a node comes to be a member: it founds the cluster, or asks to be taken in, at addresses from its
 * configuration or because somebody in the cluster told it to. And hello: how members find each other again after
 * addresses changed.
 *
 *   joiner -- join {address, raft_address, labels, birth} --> any member --ENOTLEADER + where--> the leader
 *   leader -- hello --> address (can it be reached there?) ; NODE_ADD committed ; ids --> joiner: NODE written,
 *   group opened
 *
 * A crash between NODE_ADD and the joiner's NODE file: it asks again with the same birth and gets the same ids. A
 * wiped disk has another birth and never gets the ids of its predecessor (CORRECTNESS C6). */
#include "common/err.h"

#include <stdio.h>
#include <sys/random.h>

#include "common/check.h"
#include "common/log.h"
#include "node/member/member_impl.h"

#define PEERS_FILE_BYTES_MAX 65536

static const struct node_cluster_options *options_of(const struct member *m)
{
    return &m->node->options.cluster;
}

static uint64_t random_id(void)
{
    uint64_t v = 0;
    while (v == 0) {
        if (getrandom(&v, sizeof v, 0) != (ssize_t)sizeof v) v = 0;
        v &= INT64_MAX;
    }
    return v;
}

/* ---- what is known of the others ---- */

struct node_view *member_view(struct member *m, uint32_t node_id, bool make)
{
    struct node_view *free_view = NULL;
    if (node_id == 0) return NULL;
    for (uint32_t i = 0; i < MEMBER_NODES_MAX; i++) {
        if (m->views[i].node_id == node_id) return &m->views[i];
        if (m->views[i].node_id == 0 && free_view == NULL) free_view = &m->views[i];
    }
    if (!make || free_view == NULL) return NULL;
    *free_view = (struct node_view){ .node_id = node_id };
    return free_view;
}

static void view_addresses(struct member *m, uint32_t node_id, const char *address, const char *raft_address)
{
    pthread_mutex_lock(&m->lock);
    struct node_view *view = member_view(m, node_id, true);
    if (view != NULL && address[0] != '\0') snprintf(view->address, sizeof view->address, "%s", address);
    if (view != NULL && raft_address[0] != '\0')
        snprintf(view->raft_address, sizeof view->raft_address, "%s", raft_address);
    pthread_mutex_unlock(&m->lock);
}

/* Tells raft where a node listens, once per address. */
static void raft_peer_set(struct member *m, uint32_t node_id, const char *recorded)
{
    char address[OMEN_ADDRESS_BYTES_MAX + 1];
    pthread_mutex_lock(&m->lock);
    struct node_view *view = member_view(m, node_id, true);
    const char *newest = view != NULL && view->raft_address[0] != '\0' ? view->raft_address : recorded;
    snprintf(address, sizeof address, "%s", newest);
    bool same = view != NULL && strcmp(view->raft_told, address) == 0;
    if (view != NULL) snprintf(view->raft_told, sizeof view->raft_told, "%s", address);
    pthread_mutex_unlock(&m->lock);
    struct err err;
    if (same || address[0] == '\0') return;
    if (replica_host_set_peer(m->node->replica_host, node_id, address, &err) != OMEN_OK)
        LOG_WARN("member.peer", "node=%u address=%s error=\"%s\"", node_id, address, err.message);
}

void member_peers_refresh(struct member *m, const struct cluster_state *state)
{
    for (uint32_t i = 0; i < state->node_count; i++) {
        const struct cluster_node *n = &state->nodes[i];
        if (n->node_id != member_id(m) && n->state != CLUSTER_NODE_REMOVED)
            raft_peer_set(m, n->node_id, n->raft_address);
    }
}

/* ---- founding ---- */

_Static_assert(NODE_CLUSTER_NAME_BYTES_MAX == CLUSTER_NAME_BYTES_MAX, "NODE keeps it as long");

enum omen_err member_found(struct member *m, const char *name, const struct op_id *asked_as, struct err *err)
{
    pthread_mutex_lock(&m->lock);
    bool ours = m->founding && asked_as->client != 0 && asked_as->client == m->init_asked_as.client &&
            asked_as->seq == m->init_asked_as.seq;
    bool taken = m->founding || atomic_load(&m->phase) != MEMBER_UNJOINED;
    if (!taken) {
        m->founding = true;
        m->init_asked_as = *asked_as;
    }
    pthread_mutex_unlock(&m->lock);
    if (ours) return OMEN_OK; /* asked for once more while it is made */
    if (taken) return err_set(err, OMEN_EEXISTS, "", "this node is in a cluster already");
    struct node_identity identity = {
        .node_id = 1,
        .incarnation = random_id(),
        .cluster_id = random_id(),
        .catalog_replica_id = 1,
        .founder = true,
        .asked_as = *asked_as,
    };
    snprintf(identity.cluster_name, sizeof identity.cluster_name, "%s", name);
    enum omen_err rc = data_dir_identify(&m->node->dir, &identity, err);
    if (rc == OMEN_OK) rc = member_open(m, err);
    if (rc == OMEN_OK) {
        LOG_INFO("cluster.init", "cluster=%llu node=1", (unsigned long long)identity.cluster_id);
        return OMEN_OK;
    }
    pthread_mutex_lock(&m->lock);
    m->founding = false;
    pthread_mutex_unlock(&m->lock);
    return rc;
}

void member_found_turn(struct member *m)
{
    struct node *node = m->node;
    struct err err;
    if (!node->dir.identity.founder || !member_leads(m)) return;
    struct cluster_state *state = member_state(m);
    bool begun = state->cluster_id != 0;
    cluster_state_unref(state);
    if (!begun) {
        const struct node_cluster_options *o = options_of(m);
        struct cluster_change change = { .kind = CLUSTER_CHANGE_INIT,
            .cluster_id = node->dir.identity.cluster_id,
            .incarnation = node->dir.identity.incarnation,
            .birth = node->dir.identity.birth,
            .level = feature_level() };
        change.asked_as = node->dir.identity.asked_as;
        snprintf(change.name, sizeof change.name, "%s", node->dir.identity.cluster_name);
        snprintf(change.address, sizeof change.address, "%s", o->address);
        snprintf(change.raft_address, sizeof change.raft_address, "%s", o->raft_address);
        snprintf(change.labels, sizeof change.labels, "%s", o->labels);
        enum omen_err rc = member_change(m, &change, NULL, NULL, &err);
        if (rc ==
                OMEN_EOPEXPIRED) { /* it was down for long: nobody can ask again any more, who could be told */
            change.asked_as = (struct op_id){ .client = 0 };
            rc = member_change(m, &change, NULL, NULL, &err);
        }
        if (rc != OMEN_OK) {
            LOG_WARN("cluster.init", "error=\"%s\"", err.message);
            return;
        }
    }
    /* Only when the first entry is in a checkpoint may the log be lost without a second beginning. */
    if (replica_checkpoint(node->catalog_replica, &err) != OMEN_OK) return;
    struct node_identity identity = node->dir.identity;
    identity.founder = false; /* and with it what NODE keeps for the first entry */
    identity.cluster_name[0] = '\0';
    identity.asked_as = (struct op_id){ .client = 0 };
    if (data_dir_identify(&node->dir, &identity, &err) != OMEN_OK)
        LOG_WARN("cluster.init", "error=\"%s\"", err.message);
}

/* ---- joining ---- */

static enum omen_err joined(struct member *m, struct doc reply, struct err *err)
{
    struct node_identity identity = {
        .node_id = field_u32(reply, "node_id"),
        .incarnation = field_u64(reply, "incarnation"),
        .cluster_id = field_u64(reply, "cluster_id"),
        .catalog_replica_id = field_u32(reply, "catalog_replica_id"),
    };
    bool whole = identity.node_id != 0 && identity.incarnation != 0 && identity.cluster_id != 0 &&
            identity.catalog_replica_id != 0;
    if (!whole) return err_set(err, OMEN_EPROTO, "", "the cluster's answer to a join is not whole");
    struct buf text;
    buf_init(&text);
    struct doc_iter it = doc_iter(field_doc(reply, "nodes"));
    struct doc item;
    while (doc_next(&it, NULL, &item)) {
        char address[OMEN_ADDRESS_BYTES_MAX + 1], raft_address[OMEN_ADDRESS_BYTES_MAX + 1];
        (void)field_text(item, "address", address, sizeof address);
        (void)field_text(item, "raft_address", raft_address, sizeof raft_address);
        view_addresses(m, field_u32(item, "node_id"), address, raft_address);
        if (address[0] != '\0') buf_printf(&text, "%s\n", address);
    }
    /* Where to look for the others after a restart, before the state names them. */
    char path[NODE_PATH_BYTES_MAX];
    data_dir_path(&m->node->dir, "PEERS", path);
    enum omen_err rc = text.failed ? err_set(err, OMEN_ENOMEM, "", "no memory to join")
                                   : vfs_replace_file(m->node->options.vfs, path, text.data, text.len, err);
    buf_fini(&text);
    if (rc == OMEN_OK) rc = data_dir_identify(&m->node->dir, &identity, err);
    if (rc == OMEN_OK) rc = member_open(m, err);
    if (rc == OMEN_OK)
        LOG_INFO("cluster.join", "cluster=%llu node=%llu", (unsigned long long)identity.cluster_id,
                (unsigned long long)identity.node_id);
    return rc;
}

static enum omen_err join_ask(struct member *m, const char *address, char *leader_out, struct err *err)
{
    const struct node_cluster_options *o = options_of(m);
    struct doc_builder *b = doc_builder_new(PEER_DOC_BYTES_MAX);
    struct doc request;
    leader_out[0] = '\0';
    if (b == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory to join");
    doc_begin_object(b);
    put_text(b, "do", "join");
    put_text(b, "address", o->address);
    put_text(b, "raft_address", o->raft_address);
    put_text(b, "labels", o->labels);
    put_u64(b, "birth", m->node->dir.identity.birth);
    put_u64(b, "level", feature_level());
    doc_end(b);
    struct peer_reply reply = { .doc = { NULL, 0 } };
    buf_init(&reply.bytes);
    enum omen_err rc = doc_builder_finish(b, &request, err);
    if (rc == OMEN_OK) rc = peer_call(m->peers, address, request, MEMBER_CATALOG_MS, &reply, err);
    if (rc == OMEN_OK)
        rc = joined(m, reply.doc, err);
    else if (rc == OMEN_ENOTLEADER)
        (void)field_text(reply.doc, "leader_address", leader_out, OMEN_ADDRESS_BYTES_MAX + 1);
    peer_reply_fini(&reply);
    doc_builder_free(b);
    return rc;
}

void member_join_turn(struct member *m)
{
    for (uint32_t i = 0;; i++) {
        char address[OMEN_ADDRESS_BYTES_MAX + 1], leader[OMEN_ADDRESS_BYTES_MAX + 1];
        pthread_mutex_lock(&m->lock);
        bool there = i < m->seed_count;
        if (there) memcpy(address, m->seeds[i], sizeof address);
        pthread_mutex_unlock(&m->lock);
        if (!there || atomic_load(&m->stopping)) return;
        if (strcmp(address, options_of(m)->address) == 0) continue;
        struct err err;
        enum omen_err rc = join_ask(m, address, leader, &err);
        if (rc == OMEN_ENOTLEADER && leader[0] != '\0') rc = join_ask(m, leader, leader, &err);
        if (rc == OMEN_OK) {
            member_trouble(m, NULL);
            return;
        }
        /* That a seed is itself in no cluster yet is how all begin. */
        if (rc != OMEN_EUNAVAILABLE && rc != OMEN_ENOTLEADER) {
            pthread_mutex_lock(&m->lock);
            bool told = strncmp(m->trouble, err.message, sizeof m->trouble - 1) == 0;
            pthread_mutex_unlock(&m->lock);
            if (!told) LOG_WARN("cluster.join", "seed=%s error=\"%s\"", address, err.message);
            member_trouble(m, &err);
        }
        LOG_DEBUG("cluster.join", "seed=%s error=\"%s\"", address, err.message);
    }
}

/* ---- taking in ---- */

/* Whether a node at `address` answers with that birth: an address by which nobody can reach it helps nobody. */
static enum omen_err joiner_reached(struct member *m, const char *address, uint64_t birth, struct err *err)
{
    struct doc_builder *b = doc_builder_new(4096);
    struct doc request;
    if (b == NULL) return err_set(err, OMEN_ENOMEM, "", "no memory");
    doc_begin_object(b);
    put_text(b, "do", "hello");
    doc_end(b);
    struct peer_reply reply = { .doc = { NULL, 0 } };
    buf_init(&reply.bytes);
    struct err why;
    enum omen_err rc = doc_builder_finish(b, &request, err);
    if (rc == OMEN_OK) rc = peer_call(m->peers, address, request, MEMBER_PEER_MS, &reply, &why);
    if (rc != OMEN_OK) {
        rc = err_set(err, OMEN_EUNAVAILABLE, "address", "the cluster cannot reach a node at %s: %.150s",
                address, why.message);
    } else if (field_u64(reply.doc, "birth") != birth) {
        rc = err_set(err, OMEN_EINVAL, "address", "another node answers at %s", address);
    }
    peer_reply_fini(&reply);
    doc_builder_free(b);
    return rc;
}

static void nodes_put(struct member *m, struct doc_builder *reply)
{
    struct cluster_state *state = member_state(m);
    begin_array(reply, "nodes");
    for (uint32_t i = 0; i < state->node_count; i++) {
        const struct cluster_node *n = &state->nodes[i];
        if (n->state == CLUSTER_NODE_REMOVED) continue;
        doc_begin_object(reply);
        put_u64(reply, "node_id", n->node_id);
        put_text(reply, "address", n->address);
        put_text(reply, "raft_address", n->raft_address);
        doc_end(reply);
    }
    doc_end(reply);
    cluster_state_unref(state);
}

enum omen_err peer_join(struct member *m, struct doc request, struct doc_builder *reply, struct err *err)
{
    struct cluster_change change = { .kind = CLUSTER_CHANGE_NODE_ADD,
        .birth = field_u64(request, "birth"),
        .level = field_u32(request, "level") };
    bool whole = field_text(request, "address", change.address, sizeof change.address) &&
            field_text(request, "raft_address", change.raft_address, sizeof change.raft_address) &&
            field_text(request, "labels", change.labels, sizeof change.labels);
    if (!whole || change.birth == 0)
        return err_set(err, OMEN_EINVAL, "address", "a join names address, raft_address, labels and birth");
    if (!member_is_open(m)) return err_set(err, OMEN_EUNAVAILABLE, "", "this node is in no cluster itself");
    if (!member_leads(m)) {
        char address[OMEN_ADDRESS_BYTES_MAX + 1] = "";
        uint32_t leader = member_leader(m);
        if (leader != 0 && leader != member_id(m)) (void)m->shard_peers.address(m, leader, address);
        put_text(reply, "leader_address", address);
        return err_set(err, OMEN_ENOTLEADER, "", "this node does not lead the cluster group");
    }
    enum omen_err rc = joiner_reached(m, change.address, change.birth, err);
    struct catalog_outcome outcome;
    if (rc == OMEN_OK) rc = member_change(m, &change, &outcome, NULL, err);
    if (rc != OMEN_OK) return rc;
    put_u64(reply, "node_id", outcome.node_id);
    put_u64(reply, "catalog_replica_id", outcome.catalog_replica_id);
    put_u64(reply, "cluster_id", m->node->dir.identity.cluster_id);
    put_u64(reply, "incarnation", m->node->dir.identity.incarnation);
    nodes_put(m, reply);
    return OMEN_OK;
}

enum omen_err peer_adopt(struct member *m, struct doc request, struct doc_builder *reply, struct err *err)
{
    char seed[OMEN_ADDRESS_BYTES_MAX + 1];
    put_text(reply, "address", options_of(m)->address);
    put_u64(reply, "cluster_id", m->node->dir.identity.cluster_id);
    if (!field_text(request, "seed", seed, sizeof seed) || seed[0] == '\0')
        return err_set(err, OMEN_EINVAL, "seed", "names nobody to ask");
    if (atomic_load(&m->phase) != MEMBER_UNJOINED)
        return err_set(err, OMEN_EEXISTS, "address", "the node is in a cluster already, as node %u",
                member_id(m));
    member_seed_add(m, seed);
    member_wake(m);
    return OMEN_OK;
}

void member_seed_add(struct member *m, const char *address)
{
    pthread_mutex_lock(&m->lock);
    bool known = m->seed_count >= MEMBER_SEEDS_MAX || strlen(address) > OMEN_ADDRESS_BYTES_MAX;
    for (uint32_t i = 0; i < m->seed_count; i++) known |= strcmp(m->seeds[i], address) == 0;
    if (!known) snprintf(m->seeds[m->seed_count++], sizeof m->seeds[0], "%s", address);
    pthread_mutex_unlock(&m->lock);
}

void member_seeds_read(struct member *m)
{
    char path[NODE_PATH_BYTES_MAX];
    data_dir_path(&m->node->dir, "PEERS", path);
    bool there = false;
    uint8_t *data = NULL;
    size_t len = 0;
    struct err err;
    if (vfs_exists(m->node->options.vfs, path, &there, &err) != OMEN_OK || !there) return;
    if (vfs_read_file(m->node->options.vfs, path, PEERS_FILE_BYTES_MAX, &data, &len, &err) != OMEN_OK) return;
    for (size_t at = 0; at < len;) { /* hints only: a line that is no address finds nobody */
        size_t end = at;
        while (end < len && data[end] != '\n') end++;
        char line[OMEN_ADDRESS_BYTES_MAX + 1];
        if (end > at && end - at < sizeof line) {
            memcpy(line, data + at, end - at);
            line[end - at] = '\0';
            member_seed_add(m, line);
        }
        at = end + 1;
    }
    mem_free(data);
}

/* ---- hello ---- */

static void hello_put(struct member *m, struct doc_builder *b)
{
    const struct node_cluster_options *o = options_of(m);
    put_u64(b, "node_id", member_id(m));
    put_u64(b, "cluster_id", m->node->dir.identity.cluster_id);
    put_u64(b, "birth", m->node->dir.identity.birth);
    put_text(b, "address", o->address);
    put_text(b, "raft_address", o->raft_address);
}

/* Somebody said hello, or answered one. true: the state says that it was removed. */
static bool hello_take(struct member *m, struct doc doc)
{
    uint32_t node_id = field_u32(doc, "node_id");
    if (!member_is_open(m) || node_id == 0 || node_id == member_id(m) ||
            field_u64(doc, "cluster_id") != m->node->dir.identity.cluster_id)
        return false;
    struct cluster_state *state = member_state(m);
    const struct cluster_node *n = cluster_state_node(state, node_id);
    bool removed = n != NULL && n->state == CLUSTER_NODE_REMOVED;
    bool known = n != NULL && !removed && n->birth == field_u64(doc, "birth");
    char address[OMEN_ADDRESS_BYTES_MAX + 1], raft_address[OMEN_ADDRESS_BYTES_MAX + 1];
    (void)field_text(doc, "address", address, sizeof address);
    (void)field_text(doc, "raft_address", raft_address, sizeof raft_address);
    if (known || (n == NULL && state->cluster_id == 0)) { /* a state that is empty still knows nobody */
        view_addresses(m, node_id, address, raft_address);
        raft_peer_set(m, node_id, raft_address);
    }
    cluster_state_unref(state);
    return removed;
}

void peer_hello(struct member *m, struct doc request, struct doc_builder *reply)
{
    bool removed = hello_take(m, request);
    hello_put(m, reply);
    put_bool(reply, "removed", removed);
}

static void hello_say(struct member *m, const char *address, struct doc request)
{
    struct peer_reply reply;
    struct err err;
    enum omen_err rc = peer_call(m->peers, address, request, MEMBER_PEER_MS, &reply, &err);
    if (rc == OMEN_OK) {
        (void)hello_take(m, reply.doc);
        pthread_mutex_lock(&m->lock);
        struct node_view *view = member_view(m, field_u32(reply.doc, "node_id"), false);
        if (view != NULL) view->hello_ns = member_now_ns(m);
        pthread_mutex_unlock(&m->lock);
        if (field_bool(reply.doc, "removed") &&
                field_u64(reply.doc, "cluster_id") == m->node->dir.identity.cluster_id &&
                atomic_exchange(&m->phase, MEMBER_REMOVED) != MEMBER_REMOVED)
            LOG_WARN("cluster.removed", "node=%u by=%s", member_id(m), address);
    }
    peer_reply_fini(&reply);
}

void member_hello_round(struct member *m)
{
    struct doc_builder *b = doc_builder_new(4096);
    struct doc request;
    if (b == NULL) return;
    doc_begin_object(b);
    put_text(b, "do", "hello");
    hello_put(m, b);
    doc_end(b);
    if (doc_builder_finish(b, &request, NULL) != OMEN_OK) {
        doc_builder_free(b);
        return;
    }
    struct cluster_state *state = member_state(m);
    char address[OMEN_ADDRESS_BYTES_MAX + 1];
    for (uint32_t i = 0; i < state->node_count && !atomic_load(&m->stopping); i++) {
        const struct cluster_node *n = &state->nodes[i];
        if (n->node_id == member_id(m) || n->state == CLUSTER_NODE_REMOVED) continue;
        if (m->shard_peers.address(m, n->node_id, address)) hello_say(m, address, request);
    }
    bool alone = state->node_count <= 1;
    cluster_state_unref(state);
    uint32_t seeds = m->seed_count; /* grows only while unjoined */
    for (uint32_t i = 0; i < seeds && (alone || member_leader(m) == 0) && !atomic_load(&m->stopping); i++)
        if (strcmp(m->seeds[i], options_of(m)->address) != 0) hello_say(m, m->seeds[i], request);
    doc_builder_free(b);
}

/* ---- at the leader ---- */

/* A node that says another address than the recorded one is recorded anew: routers learn it from the state. */
void member_addresses_turn(struct member *m, const struct cluster_state *state)
{
    const struct node_cluster_options *o = options_of(m);
    for (uint32_t i = 0; i < state->node_count; i++) {
        const struct cluster_node *n = &state->nodes[i];
        if (n->state == CLUSTER_NODE_REMOVED) continue;
        struct cluster_change change = { .kind = CLUSTER_CHANGE_NODE_UPDATE, .node_id = n->node_id };
        memcpy(change.address, n->address, sizeof change.address);
        memcpy(change.raft_address, n->raft_address, sizeof change.raft_address);
        memcpy(change.labels, n->labels, sizeof change.labels);
        pthread_mutex_lock(&m->lock);
        const struct node_view *view = member_view(m, n->node_id, false);
        const char *address = n->node_id == member_id(m) ? o->address : view != NULL ? view->address : "";
        const char *raft = n->node_id == member_id(m) ? o->raft_address
                : view != NULL                        ? view->raft_address
                                                      : "";
        bool same = (address[0] == '\0' || strcmp(address, n->address) == 0) &&
                (raft[0] == '\0' || strcmp(raft, n->raft_address) == 0);
        if (address[0] != '\0') snprintf(change.address, sizeof change.address, "%s", address);
        if (raft[0] != '\0') snprintf(change.raft_address, sizeof change.raft_address, "%s", raft);
        pthread_mutex_unlock(&m->lock);
        struct err err;
        if (!same && member_change(m, &change, NULL, NULL, &err) != OMEN_OK)
            LOG_WARN("member.address", "node=%u error=\"%s\"", n->node_id, err.message);
    }
}

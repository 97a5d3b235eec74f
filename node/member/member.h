/* A node as a member of a cluster: how it comes to be one, what it holds because of it, what it tells the others,
 * and, where it leads the cluster group, how it carries out what was recorded.
 *
 *   UNJOINED --init, or taken in--> OPENING --cluster group open--> MEMBER --removed by the cluster--> REMOVED
 *      ^ an empty directory: waits, or asks those in cluster.join
 *
 * Every node hosts a replica of the cluster group (a few vote, the others follow), so each knows the whole cluster
 * from its own memory. What is wanted of this node follows from that state alone (member_reconcile.c); what must be
 * done about an operation is done by the group's leader (member_drive.c), a committed step at a time, and by whoever
 * leads after it. README.md.
 *
 * Threads: an agent (joins, opens and drops replicas), a talker (hello, reports), a driver (does something only at
 * the leader), and a few for requests of operators. The functions here: any thread. */
#ifndef OMEN_NODE_MEMBER_MEMBER_H
#define OMEN_NODE_MEMBER_MEMBER_H

#include "common/placement/shard_call.h"
#include "node/node.h"

struct member;

/* Makes what node_open needs of it; opens nothing yet. Options were checked. */
struct member *member_new(struct node *node);
/* Opens what the identity allows and starts the threads. */
OMEN_CHECKED enum omen_err member_start(struct member *member, struct err *err);
/* Ends the threads; shards and the cluster group stay open. */
void member_stop(struct member *member);
/* Before the cluster group is closed, and once more after: nobody copies its state any more. */
void member_base_stop(struct member *member);
void member_free(struct member *member); /* NULL is fine */

/* NULL, or why this node should get no calls. */
const char *member_not_ready(struct member *member);
/* Members of an object begun by the caller. */
void member_status(struct member *member, struct doc_builder *b);
/* The cluster's version as known here; 0: in no cluster yet. */
uint32_t member_version(struct member *member);
/* Where every node is reached: nodes_out [OMEN_NODES_MAX]. */
uint32_t member_nodes(struct member *member, struct map_node *nodes_out);
/* A request of another node: node_port_options.peer. May block. */
void member_peer(struct member *member, struct doc request, struct doc_builder *reply);
/* A request of an operator; ends with call->done, after which it must be released. */
void member_cluster_call(struct member *member, struct shard_call *call);
void member_cluster_release(struct shard_call *call);
/* A change of collections or aliases: the leader makes it, others answer OMEN_ENOTLEADER with who does. On the
 * catalog's thread; ends with call->done. */
void member_catalog_call(struct member *member, struct shard_call *call);

#endif

/* The members of a group and their bytes, which are raft's: checked here before its decoder, which trusts
 * them, sees any that came from a disk or a network.
 *
 * A configuration.  0 u8 version 1 | 1 u64 count | per member: u64 replica id, address, NUL, u8 role
 *   (0 standby, 1 voter, 2 spare) | zeros up to a multiple of 8
 * An address is "<node>:<replica>" in decimal: what connects is the node's affair, so a node may move without
 * a change of configuration, and a replica may be replaced by another one on the same node.
 *
 * Threads: pure functions. Determinism: yes. */
#ifndef OMEN_CONSENSUS_MEMBERS_H
#define OMEN_CONSENSUS_MEMBERS_H

#include "common/err.h"
#include "consensus/replica.h"

#define MEMBER_ADDRESS_BYTES 44u /* two numbers, colon, NUL */

void member_address(uint64_t node_id, uint64_t replica_id, char out[MEMBER_ADDRESS_BYTES]);
bool member_address_parse(const char *text, uint64_t *node_id_out, uint64_t *replica_id_out);

/* members_out: [GROUP_MEMBERS_MAX] or NULL for a check alone. OMEN_ECORRUPT without a sentence. */
OMEN_CHECKED enum omen_err members_decode(const uint8_t *data, uint32_t len,
        struct replica_member *members_out, uint32_t *count_out);

/* A fresh buffer (mem_free), a multiple of 8. The members must be valid: see members_check. */
uint8_t *members_encode(const struct replica_member *members, uint32_t count, uint32_t *len_out);

/* Ids not 0 and given once, roles known, at most GROUP_MEMBERS_MAX, a voter among them. */
OMEN_CHECKED enum omen_err members_check(const struct replica_member *members, uint32_t count,
        struct err *err);

/* Where the member is; NULL = none. */
const struct replica_member *members_find(const struct replica_member *members, uint32_t count,
        uint64_t replica_id);

#endif

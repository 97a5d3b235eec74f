/* Members of a group: see members.h. */
#include "common/err.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/mem.h"
#include "consensus/members.h"

#define CONFIGURATION_VERSION 1

void member_address(uint64_t node_id, uint64_t replica_id, char out[MEMBER_ADDRESS_BYTES])
{
    int n = snprintf(out, MEMBER_ADDRESS_BYTES, "%" PRIu64 ":%" PRIu64, node_id, replica_id);
    CHECK(n > 0 && n < (int)MEMBER_ADDRESS_BYTES);
}

/* Digits up to `end`; no sign, no leading zero, no overflow: one number has one text. */
static bool number_parse(const char **text, char end, uint64_t *out)
{
    const char *p = *text;
    uint64_t v = 0;
    if (*p == '0') return false;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
            return false;
    }
    if (p == *text || *p != end) return false;
    *text = p + 1;
    *out = v;
    return true;
}

bool member_address_parse(const char *text, uint64_t *node_id, uint64_t *replica_id)
{
    return number_parse(&text, ':', node_id) && number_parse(&text, '\0', replica_id);
}

static bool all_zero(const uint8_t *p, const uint8_t *end)
{
    while (p < end) {
        if (*p++ != 0) return false;
    }
    return true;
}

enum omen_err members_decode(const uint8_t *data, uint32_t len, struct replica_member *members_out,
        uint32_t *count_out)
{
    struct replica_member members[GROUP_MEMBERS_MAX];
    if (len < 16 || len % 8 != 0 || data[0] != CONFIGURATION_VERSION) return OMEN_ECORRUPT;
    uint64_t count = load_u64(data + 1);
    if (count == 0 || count > GROUP_MEMBERS_MAX) return OMEN_ECORRUPT;
    const uint8_t *p = data + 9, *end = data + len;
    for (uint64_t i = 0; i < count; i++) {
        if (end - p < 8) return OMEN_ECORRUPT;
        uint64_t id = load_u64(p), address_id;
        p += 8;
        const uint8_t *nul = memchr(p, 0, (size_t)(end - p));
        if (nul == NULL || end - nul < 2 || nul - p >= (long)MEMBER_ADDRESS_BYTES) return OMEN_ECORRUPT;
        if (!member_address_parse((const char *)p, &members[i].node_id, &address_id) || address_id != id)
            return OMEN_ECORRUPT;
        if (nul[1] > REPLICA_SPARE) return OMEN_ECORRUPT;
        members[i].replica_id = id;
        members[i].role = (enum replica_member_role)nul[1];
        if (members_find(members, (uint32_t)i, id) != NULL) return OMEN_ECORRUPT;
        p = nul + 2;
    }
    if (end - p >= 8 || !all_zero(p, end)) return OMEN_ECORRUPT;
    if (members_out != NULL) memcpy(members_out, members, count * sizeof members[0]);
    *count_out = (uint32_t)count;
    return OMEN_OK;
}

uint8_t *members_encode(const struct replica_member *members, uint32_t count, uint32_t *len_out)
{
    CHECK(count > 0 && count <= GROUP_MEMBERS_MAX);
    size_t cap = align_up(9 + (size_t)count * (8 + MEMBER_ADDRESS_BYTES + 1), 8);
    uint8_t *data = mem_must_calloc(1, cap);
    data[0] = CONFIGURATION_VERSION;
    store_u64(data + 1, count);
    uint8_t *p = data + 9;
    for (uint32_t i = 0; i < count; i++) {
        char address[MEMBER_ADDRESS_BYTES];
        member_address(members[i].node_id, members[i].replica_id, address);
        store_u64(p, members[i].replica_id);
        size_t len = strlen(address) + 1;
        memcpy(p + 8, address, len);
        p[8 + len] = (uint8_t)members[i].role;
        p += 8 + len + 1;
    }
    *len_out = (uint32_t)align_up((uint64_t)(p - data), 8);
    CHECK(*len_out <= cap);
    return data;
}

enum omen_err members_check(const struct replica_member *members, uint32_t count, struct err *err)
{
    if (count == 0 || count > GROUP_MEMBERS_MAX)
        return err_set(err, OMEN_EINVAL, "members", "must be between 1 and %u", GROUP_MEMBERS_MAX);
    uint32_t voters = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct replica_member *m = &members[i];
        if (m->replica_id == 0 || m->node_id == 0)
            return err_set(err, OMEN_EINVAL, "members", "replica and node ids must not be 0");
        if (members_find(members, i, m->replica_id) != NULL)
            return err_set(err, OMEN_EINVAL, "members", "replica %" PRIu64 " is given twice", m->replica_id);
        if ((unsigned)m->role > REPLICA_SPARE)
            return err_set(err, OMEN_EINVAL, "members", "replica %" PRIu64 " has no known role",
                    m->replica_id);
        voters += m->role == REPLICA_VOTER;
    }
    if (voters == 0) return err_set(err, OMEN_EINVAL, "members", "there must be a voter");
    return OMEN_OK;
}

const struct replica_member *members_find(const struct replica_member *members, uint32_t count,
        uint64_t replica_id)
{
    for (uint32_t i = 0; i < count; i++) {
        if (members[i].replica_id == replica_id) return &members[i];
    }
    return NULL;
}

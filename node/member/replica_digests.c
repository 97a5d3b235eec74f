/* See replica_digests.h. */
#include "node/member/replica_digests.h"

enum digests_relation digests_relation(const struct replica_digests *a, const struct replica_digests *b,
        uint64_t *sequence_out)
{
    enum digests_relation relation = DIGESTS_UNKNOWN;
    uint64_t last = 0;
    if (a == NULL || b == NULL || a->version == 0 || a->version != b->version) return DIGESTS_UNKNOWN;
    for (uint32_t i = 0; i < a->count; i++)
        for (uint32_t k = 0; k < b->count; k++) {
            const struct store_digest *x = &a->items[i], *y = &b->items[k];
            if (x->sequence != y->sequence || (relation == DIGESTS_DIFFER && x->sum == y->sum)) continue;
            if (x->sum != y->sum && relation != DIGESTS_DIFFER) last = 0;
            relation = x->sum == y->sum ? DIGESTS_AGREE : DIGESTS_DIFFER;
            if (x->sequence > last) last = x->sequence;
        }
    if (sequence_out != NULL) *sequence_out = last;
    return relation;
}

uint32_t digests_odd(const struct replica_digests *const *replicas, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t against[OMEN_REPLICAS_MAX], n = 0, agreeing = 0;
        for (uint32_t k = 0; k < count && n < OMEN_REPLICAS_MAX; k++)
            if (k != i && digests_relation(replicas[i], replicas[k], NULL) == DIGESTS_DIFFER)
                against[n++] = k;
        for (uint32_t x = 0; x < n; x++)
            for (uint32_t y = x + 1; y < n; y++)
                agreeing += digests_relation(replicas[against[x]], replicas[against[y]], NULL) ==
                        DIGESTS_AGREE;
        if (n > count / 2 && agreeing == n * (n - 1) / 2) return i;
    }
    return DIGESTS_NONE;
}

bool digests_contradicted(const struct replica_digests *const *replicas, uint32_t count, uint32_t i)
{
    for (uint32_t k = 0; k < count; k++)
        if (k != i && digests_relation(replicas[i], replicas[k], NULL) == DIGESTS_DIFFER) return true;
    return false;
}

/* One router over a fake service, asked in process: requests go through the real codec both ways. */
#ifndef OMEN_TESTS_SUPPORT_ROUTER_SUPPORT_H
#define OMEN_TESTS_SUPPORT_ROUTER_SUPPORT_H

#include "router/request.h"
#include "tests/support/fake_service.h"

struct router_rig {
    struct fake_service *fake;
    struct router *router;
    struct metrics *metrics;
    struct arena arena;      /* of replies, and for tests' own values */
    struct wire_reply reply; /* the last one */
    enum omen_err code;      /* its code, or of decoding it */
    uint32_t replies;        /* answered so far */
};

void rig_start(struct router_rig *rig, const struct collection_schema *schema, uint32_t shards,
        const struct api_key *keys, uint32_t key_count, uint32_t requests_max);
void rig_stop(struct router_rig *rig); /* fails when a call was not given back */

/* A request of `op` on collection "c". */
struct wire_request rig_request(enum wire_op op);
/* Ask; the answer is in rig->reply unless the service holds its calls. */
enum omen_err rig_ask(struct router_rig *rig, const struct wire_request *request);
/* A JSON text as a doc that lives as long as the rig. */
struct doc rig_json(struct router_rig *rig, const char *text);

/* Upsert `count` points with ids first.. and one-component-significant vectors x = id; payloads may be NULL. */
enum omen_err rig_upsert(struct router_rig *rig, uint64_t first, uint32_t count, const struct doc *payloads);

#endif

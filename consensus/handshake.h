/* How two nodes prove to each other that they belong to one cluster. FORMAT.md has the tables.
 *
 *   dialer   HELLO {cluster, from, to, nonce}  -->
 *            <-- CHALLENGE {code, node, nonce}                     acceptor
 *            PROOF {mac}                       -->   verified: now the dialer is believed
 *            <-- ACCEPT {code, mac}                  verified: now the acceptor is
 *
 * mac = HMAC-SHA-256(secret, label | cluster | dialer | acceptor | dialer's nonce | acceptor's nonce), with a
 * label for each direction, so neither can be answered with its own message. The dialer proves first: whoever
 * merely connects gets nothing to guess the secret with.
 *
 * HMAC comes from mbed TLS because libnng loads it already: no library more in the process. Frames after the
 * handshake are neither signed nor encrypted: the network between nodes is a private one.
 *
 * Threads: pure functions, but for the nonce. */
#ifndef OMEN_CONSENSUS_HANDSHAKE_H
#define OMEN_CONSENSUS_HANDSHAKE_H

#include "common/err.h"

#define HANDSHAKE_NONCE_BYTES 32u
#define HANDSHAKE_MAC_BYTES 32u
#define HANDSHAKE_HELLO_BYTES 96u
#define HANDSHAKE_REPLY_BYTES 64u /* challenge, proof, accept */
#define HANDSHAKE_SECRET_BYTES_MIN 16u
#define HANDSHAKE_SECRET_BYTES_MAX 1024u

enum handshake_code {
    HANDSHAKE_OK = 0,
    HANDSHAKE_WRONG_CLUSTER = 1,
    HANDSHAKE_WRONG_NODE = 2, /* somebody else's address */
    HANDSHAKE_WRONG_SECRET = 3,
    HANDSHAKE_WRONG_VERSION = 4,
    HANDSHAKE_CODES
};

struct handshake {
    uint64_t cluster, dialer, acceptor;
    uint8_t dialer_nonce[HANDSHAKE_NONCE_BYTES];
    uint8_t acceptor_nonce[HANDSHAKE_NONCE_BYTES];
};

void handshake_nonce(uint8_t out[HANDSHAKE_NONCE_BYTES]); /* from the kernel */

void handshake_hello_encode(const struct handshake *h, uint8_t out[HANDSHAKE_HELLO_BYTES]);
/* OMEN_EPROTO, or OMEN_EVERSION for another version. */
OMEN_CHECKED enum omen_err handshake_hello_decode(const uint8_t in[HANDSHAKE_HELLO_BYTES],
        struct handshake *h);

enum handshake_kind { HANDSHAKE_CHALLENGE, HANDSHAKE_PROOF, HANDSHAKE_ACCEPT };
struct handshake_reply {
    enum handshake_kind kind;
    enum handshake_code code;
    uint64_t node;                      /* the sender */
    uint8_t value[HANDSHAKE_MAC_BYTES]; /* nonce or mac */
};
void handshake_reply_encode(const struct handshake_reply *reply, uint8_t out[HANDSHAKE_REPLY_BYTES]);
OMEN_CHECKED enum omen_err handshake_reply_decode(const uint8_t in[HANDSHAKE_REPLY_BYTES],
        enum handshake_kind kind, struct handshake_reply *reply_out);

void handshake_mac(const struct handshake *h, bool of_dialer, const uint8_t *secret, uint32_t secret_len,
        uint8_t out[HANDSHAKE_MAC_BYTES]);
/* In time that does not depend on the bytes. */
bool handshake_mac_equal(const uint8_t a[HANDSHAKE_MAC_BYTES], const uint8_t b[HANDSHAKE_MAC_BYTES]);

const char *handshake_code_text(enum handshake_code code);

#endif

/* The handshake's bytes and proofs: see handshake.h. */
#include "common/err.h"

#include <mbedtls/md.h>
#include <string.h>
#include <sys/random.h>

#include "common/bytes.h"
#include "common/check.h"
#include "common/crc32c.h"
#include "consensus/handshake.h"

#define HELLO_MAGIC 0x48524d4fu /* "OMRH" */
#define VERSION 1u
#define LABEL_BYTES 16u

static const uint32_t reply_magic[] = { 0x43524d4fu, 0x50524d4fu, 0x41524d4fu }; /* OMRC OMRP OMRA */

void handshake_nonce(uint8_t out[HANDSHAKE_NONCE_BYTES])
{
    size_t at = 0;
    while (at < HANDSHAKE_NONCE_BYTES) {
        ssize_t n = getrandom(out + at, HANDSHAKE_NONCE_BYTES - at, 0);
        if (n > 0) at += (size_t)n;
    }
}

/* HELLO, 96 bytes.  0 magic | 4 u16 version | 6 zero [2] | 8 u64 cluster | 16 u64 from | 24 u64 to |
 * 32 nonce [32] | 64 zero [28] | 92 u32 crc32c of 0..91 */
void handshake_hello_encode(const struct handshake *h, uint8_t out[HANDSHAKE_HELLO_BYTES])
{
    memset(out, 0, HANDSHAKE_HELLO_BYTES);
    store_u32(out, HELLO_MAGIC);
    store_u16(out + 4, VERSION);
    store_u64(out + 8, h->cluster);
    store_u64(out + 16, h->dialer);
    store_u64(out + 24, h->acceptor);
    memcpy(out + 32, h->dialer_nonce, HANDSHAKE_NONCE_BYTES);
    store_u32(out + 92, crc32c(0, out, 92));
}

static bool all_zero(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (p[i] != 0) return false;
    }
    return true;
}

enum omen_err handshake_hello_decode(const uint8_t in[HANDSHAKE_HELLO_BYTES], struct handshake *h)
{
    if (load_u32(in) != HELLO_MAGIC || load_u32(in + 92) != crc32c(0, in, 92)) return OMEN_EPROTO;
    if (load_u16(in + 4) != VERSION) return OMEN_EVERSION;
    if (load_u16(in + 6) != 0 || !all_zero(in + 64, 28)) return OMEN_EPROTO;
    h->cluster = load_u64(in + 8);
    h->dialer = load_u64(in + 16);
    h->acceptor = load_u64(in + 24);
    memcpy(h->dialer_nonce, in + 32, HANDSHAKE_NONCE_BYTES);
    return h->dialer == 0 ? OMEN_EPROTO : OMEN_OK;
}

/* Replies, 64 bytes.  0 magic of the kind | 4 u16 version | 6 u16 code | 8 u64 node | 16 value [32] |
 * 48 zero [12] | 60 u32 crc32c of 0..59 */
void handshake_reply_encode(const struct handshake_reply *reply, uint8_t out[HANDSHAKE_REPLY_BYTES])
{
    memset(out, 0, HANDSHAKE_REPLY_BYTES);
    store_u32(out, reply_magic[reply->kind]);
    store_u16(out + 4, VERSION);
    store_u16(out + 6, (uint16_t)reply->code);
    store_u64(out + 8, reply->node);
    memcpy(out + 16, reply->value, HANDSHAKE_MAC_BYTES);
    store_u32(out + 60, crc32c(0, out, 60));
}

enum omen_err handshake_reply_decode(const uint8_t in[HANDSHAKE_REPLY_BYTES], enum handshake_kind kind,
        struct handshake_reply *reply_out)
{
    if (load_u32(in) != reply_magic[kind] || load_u32(in + 60) != crc32c(0, in, 60)) return OMEN_EPROTO;
    if (load_u16(in + 4) != VERSION) return OMEN_EVERSION;
    if (load_u16(in + 6) >= HANDSHAKE_CODES || !all_zero(in + 48, 12)) return OMEN_EPROTO;
    reply_out->kind = kind;
    reply_out->code = (enum handshake_code)load_u16(in + 6);
    reply_out->node = load_u64(in + 8);
    memcpy(reply_out->value, in + 16, HANDSHAKE_MAC_BYTES);
    return OMEN_OK;
}

void handshake_mac(const struct handshake *h, bool of_dialer, const uint8_t *secret, uint32_t secret_len,
        uint8_t out[HANDSHAKE_MAC_BYTES])
{
    uint8_t text[LABEL_BYTES + 24 + 2 * HANDSHAKE_NONCE_BYTES] = { 0 };
    memcpy(text, of_dialer ? "omendb dialer 1" : "omendb accept 1", LABEL_BYTES);
    store_u64(text + 16, h->cluster);
    store_u64(text + 24, h->dialer);
    store_u64(text + 32, h->acceptor);
    memcpy(text + 40, h->dialer_nonce, HANDSHAKE_NONCE_BYTES);
    memcpy(text + 72, h->acceptor_nonce, HANDSHAKE_NONCE_BYTES);
    const mbedtls_md_info_t *sha256 = mbedtls_md_info_from_type(MBEDTLS_MD_SHA256);
    CHECK(sha256 != NULL);
    CHECK(mbedtls_md_hmac(sha256, secret, secret_len, text, sizeof text, out) == 0);
}

bool handshake_mac_equal(const uint8_t a[HANDSHAKE_MAC_BYTES], const uint8_t b[HANDSHAKE_MAC_BYTES])
{
    volatile uint8_t difference = 0;
    for (uint32_t i = 0; i < HANDSHAKE_MAC_BYTES; i++) difference = (uint8_t)(difference | (a[i] ^ b[i]));
    return difference == 0;
}

const char *handshake_code_text(enum handshake_code code)
{
    switch (code) {
    case HANDSHAKE_OK: return "ok";
    case HANDSHAKE_WRONG_CLUSTER: return "another cluster";
    case HANDSHAKE_WRONG_NODE: return "another node answers at this address";
    case HANDSHAKE_WRONG_SECRET: return "wrong secret";
    case HANDSHAKE_WRONG_VERSION: return "another version of the protocol";
    case HANDSHAKE_CODES: break;
    }
    return "unknown";
}

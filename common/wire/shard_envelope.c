/* The header around every message between servers: magic, version, nonce, and the tag that proves the cluster secret.
 *
 * Each message is proven by itself, not the connection: nng gives requests of many connections to one handler and takes
 * replies from whoever listens, so a proof per message is the one that cannot be confused. The secret never travels. What it
 * does not do: hide content, or keep somebody who can read the traffic from sending a recorded request again (a write with
 * an op id is not applied twice by that). Who can read the traffic reads API keys as well; see NODE_PROTOCOL.md. */
#include "common/wire/shard_bytes.h"

#include "common/check.h"

static const uint8_t magic[4] = { 'O', 'M', 'R', 'C' };

#define TAG_OFFSET 16
#define REFUSAL_BYTES (SHARD_MESSAGE_HEADER_BYTES + 4)

void shard_message_begin(struct buf *out, enum shard_message_type type, uint8_t kind, uint64_t nonce)
{
    CHECK(out->len == 0);
    buf_append(out, magic, sizeof magic);
    put_u16(out, SHARD_MESSAGE_VERSION);
    put_u8(out, (uint8_t)type);
    put_u8(out, kind);
    put_u64(out, nonce);
    buf_append_zero(out, SIPHASH_TAG_BYTES);
}

static void tag_of(const uint8_t *message, size_t len, const struct siphash_key *key, uint8_t *tag_out)
{
    struct siphash h;
    siphash_begin(&h, key);
    siphash_add(&h, message, TAG_OFFSET);
    siphash_add(&h, message + SHARD_MESSAGE_HEADER_BYTES, len - SHARD_MESSAGE_HEADER_BYTES);
    siphash_end(&h, tag_out);
}

void shard_message_seal(uint8_t *message, size_t len, const struct siphash_key *key)
{
    CHECK(len >= SHARD_MESSAGE_HEADER_BYTES);
    tag_of(message, len, key, message + TAG_OFFSET);
}

void shard_message_refuse(struct buf *out, uint64_t nonce, enum omen_err code)
{
    shard_message_begin(out, SHARD_REFUSAL, 0, nonce);
    put_u32(out, (uint32_t)code);
}

static enum omen_err refused(struct bytes message, struct err *err)
{
    if (message.len != REFUSAL_BYTES)
        return err_set(err, OMEN_EPROTO, "", "a refusal has %d bytes, not %zu", REFUSAL_BYTES, message.len);
    uint32_t code = load_u32(message.data + SHARD_MESSAGE_HEADER_BYTES);
    return err_set(err, OMEN_EAUTH, "", "the peer refused the message: %s%s", err_name((enum omen_err)code),
            code == OMEN_EAUTH ? " (has it another cluster secret?)" : "");
}

enum omen_err shard_message_open(struct bytes message, enum shard_message_type type,
        const struct siphash_key *key, struct shard_envelope *envelope_out, struct err *err)
{
    *envelope_out = (struct shard_envelope){ .nonce = 0 };
    if (message.len < SHARD_MESSAGE_HEADER_BYTES || memcmp(message.data, magic, sizeof magic) != 0)
        return err_set(err, OMEN_EPROTO, "", "no message of the node protocol");
    const uint8_t *p = message.data;
    envelope_out->nonce = load_u64(p + 8);
    uint16_t version = load_u16(p + 4);
    if (version != SHARD_MESSAGE_VERSION)
        return err_set(err, OMEN_EVERSION, "", "version %u of the node protocol is not spoken here, only %d",
                version, SHARD_MESSAGE_VERSION);
    if (p[6] == SHARD_REFUSAL && type == SHARD_REPLY) return refused(message, err);
    if (p[6] != (uint8_t)type)
        return err_set(err, OMEN_EPROTO, "", "a message of type %u is not expected", p[6]);
    uint8_t tag[SIPHASH_TAG_BYTES];
    tag_of(p, message.len, key, tag);
    if (!siphash_tags_equal(tag, p + TAG_OFFSET))
        return err_set(err, OMEN_EAUTH, "", "the message does not prove our cluster secret");
    envelope_out->type = type;
    envelope_out->kind = p[7];
    envelope_out->body = (struct bytes){ p + SHARD_MESSAGE_HEADER_BYTES,
        message.len - SHARD_MESSAGE_HEADER_BYTES };
    return OMEN_OK;
}

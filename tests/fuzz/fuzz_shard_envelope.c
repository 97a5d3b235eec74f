/* The header of messages between servers: whatever arrives, nothing passes that was not sealed with the key; sealed anew it
 * does, and says what it says. */
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/wire/shard_message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct siphash_key key = { 0x1122334455667788, 0x99aabbccddeeff00 };
    struct shard_envelope e;
    struct err err = { 0 };
    struct bytes message = { data, size };
    for (enum shard_message_type type = SHARD_REQUEST; type <= SHARD_REPLY; type++) {
        CHECK(shard_message_open(message, type, &key, &e, &err) != OMEN_OK);
        CHECK(err.message[0] != '\0');
    }
    if (size < SHARD_MESSAGE_HEADER_BYTES) return 0;
    struct buf b;
    buf_init(&b);
    buf_append(&b, data, size);
    shard_message_seal(b.data, b.len, &key);
    message = (struct bytes){ b.data, b.len };
    if (shard_message_open(message, SHARD_REQUEST, &key, &e, &err) == OMEN_OK)
        CHECK(e.body.len == size - SHARD_MESSAGE_HEADER_BYTES);
    buf_fini(&b);
    return 0;
}

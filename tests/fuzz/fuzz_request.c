/* Requests from the network: whatever arrives, decoding ends with a valid request or an error that has a sentence, within
 * the arena's limit; what was accepted can be encoded, and decodes to the same bytes again. */
#include <stddef.h>
#include <stdint.h>

#include "common/check.h"
#include "common/wire/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena;
    struct wire_request request, again;
    struct buf first, second;
    struct err err = { 0 };
    arena_init(&arena, 4096, 64u << 20);
    buf_init(&first);
    buf_init(&second);
    enum omen_err rc = message_decode_request((struct bytes){ data, size }, &arena, &request, &err);
    if (rc == OMEN_OK) {
        CHECK(message_encode_request(&request, &first, &err) == OMEN_OK);
        CHECK(message_decode_request((struct bytes){ first.data, first.len }, &arena, &again, &err) ==
                OMEN_OK);
        CHECK(message_encode_request(&again, &second, &err) == OMEN_OK);
        CHECK(first.len == second.len);
        CHECK(memcmp(first.data, second.data, first.len) == 0);
    } else {
        CHECK(err.code == rc);
        CHECK(err.message[0] != '\0');
    }
    buf_fini(&second);
    buf_fini(&first);
    arena_fini(&arena);
    return 0;
}

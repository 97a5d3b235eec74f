/* SipHash against the vectors of its authors' reference code, and in pieces. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "common/siphash.h"

static struct siphash_key reference_key(void)
{
    uint8_t k[16];
    for (int i = 0; i < 16; i++) k[i] = (uint8_t)i;
    return (struct siphash_key){ load_u64(k), load_u64(k + 8) };
}

static void hash_whole(const struct siphash_key *key, const void *data, size_t len, uint8_t *tag)
{
    struct siphash h;
    siphash_begin(&h, key);
    siphash_add(&h, data, len);
    siphash_end(&h, tag);
}

/* vectors_sip128 of github.com/veorq/SipHash: message = 00 01 .. of that length, key = 00 .. 0f. */
START_TEST(reference_vectors)
{
    static const struct {
        size_t len;
        uint8_t tag[16];
    } vectors[] = {
        { 0,
                { 0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02,
                        0x93 } },
        { 1,
                { 0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc,
                        0x45 } },
        { 15,
                { 0x54, 0x93, 0xe9, 0x99, 0x33, 0xb0, 0xa8, 0x11, 0x7e, 0x08, 0xec, 0x0f, 0x97, 0xcf, 0xc3,
                        0xd9 } },
    };
    struct siphash_key key = reference_key();
    uint8_t message[64], tag[16];
    for (int i = 0; i < 64; i++) message[i] = (uint8_t)i;
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        hash_whole(&key, message, vectors[i].len, tag);
        ck_assert_mem_eq(tag, vectors[i].tag, 16);
    }
}
END_TEST

START_TEST(pieces_hash_like_the_whole)
{
    struct siphash_key key = reference_key();
    uint8_t message[300], whole[16], pieces[16];
    for (size_t i = 0; i < sizeof message; i++) message[i] = (uint8_t)(i * 7);
    for (size_t len = 0; len <= 40; len++) {
        hash_whole(&key, message, len, whole);
        for (size_t a = 0; a <= len; a++) {
            for (size_t b = a; b <= len; b++) {
                struct siphash h;
                siphash_begin(&h, &key);
                siphash_add(&h, message, a);
                siphash_add(&h, message + a, b - a);
                siphash_add(&h, message + b, len - b);
                siphash_end(&h, pieces);
                ck_assert_mem_eq(pieces, whole, 16);
            }
        }
    }
}
END_TEST

START_TEST(every_bit_of_key_and_message_counts)
{
    struct siphash_key key = reference_key(), other;
    uint8_t message[24] = { 0 }, tag[16], changed[16];
    hash_whole(&key, message, sizeof message, tag);
    for (int bit = 0; bit < 192; bit++) {
        message[bit / 8] ^= (uint8_t)(1 << bit % 8);
        hash_whole(&key, message, sizeof message, changed);
        message[bit / 8] ^= (uint8_t)(1 << bit % 8);
        ck_assert(!siphash_tags_equal(tag, changed));
    }
    for (int bit = 0; bit < 64; bit++) {
        other = key;
        other.k0 ^= 1ull << bit;
        hash_whole(&other, message, sizeof message, changed);
        ck_assert(!siphash_tags_equal(tag, changed));
        other = key;
        other.k1 ^= 1ull << bit;
        hash_whole(&other, message, sizeof message, changed);
        ck_assert(!siphash_tags_equal(tag, changed));
    }
    ck_assert(siphash_tags_equal(tag, tag));
}
END_TEST

START_TEST(secrets_give_keys)
{
    struct siphash_key a, b;
    siphash_key_from_secret((struct bytes){ (const uint8_t *)"a secret", 8 }, &a);
    siphash_key_from_secret((struct bytes){ (const uint8_t *)"a secres", 8 }, &b);
    ck_assert(a.k0 != b.k0 && a.k1 != b.k1);
    siphash_key_from_secret((struct bytes){ (const uint8_t *)"a secret", 8 }, &b);
    ck_assert(a.k0 == b.k0 && a.k1 == b.k1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("siphash");
    TCase *tcase = tcase_create("siphash");
    tcase_add_test(tcase, reference_vectors);
    tcase_add_test(tcase, pieces_hash_like_the_whole);
    tcase_add_test(tcase, every_bit_of_key_and_message_counts);
    tcase_add_test(tcase, secrets_give_keys);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

/* Which replica is the odd one, by digests of sequences that they have in common. */
#include <check.h>
#include <stdlib.h>

#include "node/member/replica_digests.h"

static struct replica_digests of(uint64_t sequence, uint64_t sum)
{
    return (struct replica_digests){ 1, 1, { { sequence, sum } } };
}

START_TEST(what_is_not_of_one_sequence_says_nothing)
{
    struct replica_digests a = of(5, 1), b = of(6, 2), none = { .version = 1 }, newer = of(5, 2);
    newer.version = 2;
    ck_assert_int_eq(digests_relation(&a, &b, NULL), DIGESTS_UNKNOWN);
    ck_assert_int_eq(digests_relation(&a, &none, NULL), DIGESTS_UNKNOWN);
    ck_assert_int_eq(digests_relation(&a, NULL, NULL), DIGESTS_UNKNOWN);
    ck_assert_int_eq(digests_relation(&a, &newer, NULL), DIGESTS_UNKNOWN);
    ck_assert_int_eq(digests_relation(&a, &a, NULL), DIGESTS_AGREE);
}
END_TEST

START_TEST(one_difference_counts_however_many_agree)
{
    struct replica_digests a = { 1, 3, { { 9, 7 }, { 8, 3 }, { 16, 4 } } },
                           b = { 1, 3, { { 16, 4 }, { 8, 2 }, { 10, 7 } } };
    uint64_t sequence;
    ck_assert_int_eq(digests_relation(&a, &b, &sequence), DIGESTS_DIFFER);
    ck_assert_uint_eq(sequence, 8);
    ck_assert_int_eq(digests_relation(&b, &a, &sequence), DIGESTS_DIFFER);
    ck_assert_uint_eq(sequence, 8);
    b.items[1].sum = 3;
    ck_assert_int_eq(digests_relation(&a, &b, &sequence), DIGESTS_AGREE);
    ck_assert_uint_eq(sequence, 16);
}
END_TEST

START_TEST(the_odd_one_is_whom_more_than_half_contradict_with_one_voice)
{
    struct replica_digests right = of(5, 1), wrong = of(5, 2), other = of(5, 3), elsewhere = of(6, 1);
    const struct replica_digests *all[5] = { &right, &wrong, &right, &right, &right };
    ck_assert_uint_eq(digests_odd(all, 5), 1);
    ck_assert_uint_eq(digests_odd(all, 3), 1);
    ck_assert(digests_contradicted(all, 3, 0));           /* by the odd one */
    ck_assert_uint_eq(digests_odd(all, 2), DIGESTS_NONE); /* nobody knows who is right */
    ck_assert(digests_contradicted(all, 2, 0) && digests_contradicted(all, 2, 1));
    all[2] = &other;
    ck_assert_uint_eq(digests_odd(all, 3), DIGESTS_NONE); /* three opinions */
    all[2] = &elsewhere;
    ck_assert_uint_eq(digests_odd(all, 3), DIGESTS_NONE); /* no majority has spoken yet */
    all[2] = NULL;
    ck_assert_uint_eq(digests_odd(all, 3), DIGESTS_NONE);
    all[2] = &wrong;
    ck_assert_uint_eq(digests_odd(all, 5), 1); /* two of five: one after the other */
    all[1] = NULL;
    ck_assert_uint_eq(digests_odd(all, 5), 2);
    all[1] = all[2] = &right;
    ck_assert_uint_eq(digests_odd(all, 5), DIGESTS_NONE);
    ck_assert(!digests_contradicted(all, 5, 1));
}
END_TEST

START_TEST(a_majority_need_not_know_the_same_sequence_of_the_odd_one)
{
    struct replica_digests a = { 1, 2, { { 9, 1 }, { 8, 2 } } }, b = { 1, 2, { { 9, 1 }, { 16, 5 } } },
                           odd = { 1, 2, { { 8, 3 }, { 16, 6 } } };
    const struct replica_digests *all[3] = { &a, &odd, &b };
    ck_assert_uint_eq(digests_odd(all, 3), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("replica_digests");
    TCase *tc = tcase_create("replica_digests");
    tcase_add_test(tc, what_is_not_of_one_sequence_says_nothing);
    tcase_add_test(tc, one_difference_counts_however_many_agree);
    tcase_add_test(tc, the_odd_one_is_whom_more_than_half_contradict_with_one_voice);
    tcase_add_test(tc, a_majority_need_not_know_the_same_sequence_of_the_odd_one);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

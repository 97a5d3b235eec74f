/* The scrub thread: reads every shard's stream again and again, slowly, and compares it with its checksums
 * (CORRECTNESS D1), so that what a disk lost is found before the last good copy is gone. One shard's round is
 * finished before the next shard's begins, and after all of them it rests. While searches wait for threads, most
 * turns are left out.
 *
 * What is found stops the shard (storage/shard_store.h, DAMAGED); the others go on, and so does the scrubber. */
#include "common/err.h"

#include <time.h>

#include "common/log.h"
#include "node/node_impl.h"

#define SCRUB_BYTES_PER_SECOND (8u << 20)
#define SCRUB_TURN_MS 125u
#define SCRUB_BUSY_TURNS 8u  /* one turn of so many while searches wait */
#define SCRUB_REST_TURNS 40u /* left out after all shards: 5 s, or little data would be read without end */

/* The first shard whose id is above `after`, held; NULL when there is none. */
static struct shard_host *shard_after(struct node *node, uint64_t after)
{
    struct shard_host *shard = NULL;
    pthread_rwlock_rdlock(&node->table_lock);
    for (uint32_t i = 0; i < node->slot_count && shard == NULL; i++)
        if (node->slots[i].shard_id > after) shard = node->slots[i].shard;
    if (shard != NULL) shard_host_hold(shard);
    pthread_rwlock_unlock(&node->table_lock);
    return shard;
}

/* About `bytes` of the shards that are next; true after the last one. */
static bool scrub_turn(struct node *node, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes;) {
        struct shard_host *shard = shard_after(node, node->scrub_after);
        if (shard == NULL) {
            node->scrub_after = 0;
            return true;
        }
        struct scrub_result result;
        if (shard_host_scrub(shard, bytes - done, &result)) node->scrub_after = shard_host_id(shard);
        done += result.bytes;
        shard_host_unhold(shard);
        if (node->gauges.scrubbed != NULL) metric_add(node->gauges.scrubbed, result.bytes);
    }
    return false;
}

static void *scrub_main(void *arg)
{
    struct node *node = arg;
    uint32_t left_out = 0, rest = 0;
    pthread_setname_np(pthread_self(), "omen-scrub");
    pthread_mutex_lock(&node->scrub_lock);
    while (!node->scrub_stop) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += SCRUB_TURN_MS * 1000000L;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&node->scrub_wake, &node->scrub_lock, &until);
        if (node->scrub_stop) break;
        if (rest > 0) {
            rest--;
            continue;
        }
        bool busy = search_pool_depth(node->env.pool) > 0;
        if (busy && ++left_out < SCRUB_BUSY_TURNS) continue;
        left_out = 0;
        pthread_mutex_unlock(&node->scrub_lock);
        bool around = scrub_turn(node, (uint64_t)SCRUB_BYTES_PER_SECOND * SCRUB_TURN_MS / 1000);
        pthread_mutex_lock(&node->scrub_lock);
        rest = around ? SCRUB_REST_TURNS : 0;
    }
    pthread_mutex_unlock(&node->scrub_lock);
    return NULL;
}

enum omen_err node_scrub_start(struct node *node, struct err *err)
{
    int rc = pthread_create(&node->scrub_thread, NULL, scrub_main, node);
    if (rc != 0) return err_os(err, rc, "start a thread for", "the scrubber");
    node->scrub_started = true;
    return OMEN_OK;
}

void node_scrub_stop(struct node *node)
{
    if (!node->scrub_started) return;
    pthread_mutex_lock(&node->scrub_lock);
    node->scrub_stop = true;
    pthread_cond_signal(&node->scrub_wake);
    pthread_mutex_unlock(&node->scrub_lock);
    pthread_join(node->scrub_thread, NULL);
    node->scrub_started = false;
}

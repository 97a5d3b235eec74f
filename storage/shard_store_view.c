/* Views, and looking up points in the version a view holds.
 *
 * A view at sequence S = {active delta, frozen delta or none, LMDB transaction}. Acquire takes all of them in one short
 * critical section, and so do the two moments at which a merge changes the version: freezing (under the apply lock, at
 * an entry's end) and dropping the frozen delta (after LMDB committed). So an acquired version is one of
 *   no frozen delta, LMDB at M:      active holds (M, S]
 *   frozen delta (M, M2], LMDB at M:  the frozen delta speaks before LMDB
 *   frozen delta (M, M2], LMDB at M2: committed but not dropped yet. S >= M2, because the freeze came before; for a key
 *                                     of the frozen delta both say the same.
 * and each answers exactly for S: newest state <= S in active, else frozen, else LMDB. A view keeps its transaction and
 * its deltas alive, so a merge that comes later changes nothing for it (CORRECTNESS D6). */
#include "common/err.h"

#include "storage/shard_store_impl.h"

#include "common/check.h"
#include "common/mem.h"

#define VIEW_RETRY_MS 20u /* when to ask again for a view */

void view_pin_take(struct shard_store *s, struct view_pin *pin)
{
    struct err ignored; /* lookups answer the code; the sentence is made there */
    pin->meta_rc = meta_txn_begin(pin->txn, &ignored);
    pin->active = delta_ref(s->active);
    pin->frozen = delta_ref(s->frozen);
    pin->points = s->points;
    pin->log_time_ms = s->view_log_time_ms;
    pin->expires_next_ms = s->expires_next_ms;
}

void view_pin_drop(struct view_pin *pin)
{
    meta_txn_end(pin->txn);
    delta_unref(pin->active);
    delta_unref(pin->frozen);
    pin->active = pin->frozen = NULL;
}

/* version_mutex held, and there is a view to be had. */
static void view_take(struct shard_store *store, struct store_view *view_out)
{
    CHECK(store->view_count < STORE_VIEWS_MAX);
    store->view_count++;
    struct view_pin *pin = store->free_pins;
    if (pin != NULL) {
        store->free_pins = pin->next;
    } else {
        struct err err;
        pin = mem_must_calloc(1, sizeof *pin);
        enum omen_err rc = meta_txn_new(store->meta, &pin->txn, &err);
        CHECK(rc == OMEN_OK); /* STORE_VIEWS_MAX is below the limit of transactions */
    }
    view_pin_take(store, pin);
    pin->era = store->era;
    store->era_holds[pin->era]++;
    *view_out = (struct store_view){ store, atomic_load_explicit(&store->applied, memory_order_relaxed),
        pin->log_time_ms, pin, 0, 0, NULL };
}

void store_view_acquire(struct shard_store *store, struct store_view *view_out)
{
    pthread_mutex_lock(&store->version_mutex);
    while (store->view_count >= STORE_VIEWS_MAX)
        pthread_cond_wait(&store->view_released, &store->version_mutex);
    view_take(store, view_out);
    pthread_mutex_unlock(&store->version_mutex);
}

enum omen_err store_view_try_acquire(struct shard_store *store, struct store_view *view_out, struct err *err)
{
    pthread_mutex_lock(&store->version_mutex);
    bool taken = store->view_count < STORE_VIEWS_MAX;
    if (taken) view_take(store, view_out);
    pthread_mutex_unlock(&store->version_mutex);
    if (taken) return OMEN_OK;
    enum omen_err rc = err_set(err, OMEN_EBUSY, NULL, "%u reads of this shard hold their results already",
            STORE_VIEWS_MAX);
    if (err != NULL) err->retry_after_ms = VIEW_RETRY_MS;
    return rc;
}

void store_view_release(struct store_view *view)
{
    struct shard_store *s = view->store;
    view_pin_drop(view->pin);
    pthread_mutex_lock(&s->version_mutex);
    view->pin->next = s->free_pins;
    s->free_pins = view->pin;
    s->view_count--;
    s->era_holds[view->pin->era]--;
    pthread_cond_broadcast(&s->view_released);
    pthread_mutex_unlock(&s->version_mutex);
    *view = (struct store_view){ 0 };
}

uint32_t store_hold(struct shard_store *s)
{
    pthread_mutex_lock(&s->version_mutex);
    uint32_t era = s->era;
    s->era_holds[era]++;
    pthread_mutex_unlock(&s->version_mutex);
    return era;
}

void store_unhold(struct shard_store *s, uint32_t era)
{
    pthread_mutex_lock(&s->version_mutex);
    CHECK(s->era_holds[era] > 0);
    s->era_holds[era]--;
    pthread_mutex_unlock(&s->version_mutex);
}

bool store_era_turn(struct shard_store *s)
{
    pthread_mutex_lock(&s->version_mutex);
    bool turned = s->era_holds[1 - s->era] == 0;
    if (turned) s->era = 1 - s->era;
    pthread_mutex_unlock(&s->version_mutex);
    return turned;
}

bool store_era_over(struct shard_store *s)
{
    pthread_mutex_lock(&s->version_mutex);
    bool over = s->era_holds[1 - s->era] == 0;
    pthread_mutex_unlock(&s->version_mutex);
    return over;
}

/* ---- lookups ---- */

enum omen_err row_of_location(const struct shard_store *s, const struct point_key *key,
        const struct meta_location *location, struct row_ref *row_out, struct err *err)
{
    uint32_t block = blocks_find(s->blocks, location->position);
    const char *wrong = NULL;
    if (block == UINT32_MAX)
        wrong = "a point is said to be in a unit that is not there";
    else if (location->op >= blocks_at(s->blocks, block)->entry.op_count)
        wrong = "a point is said to be past its unit";
    else if (location->version != blocks_at(s->blocks, block)->sequence)
        wrong = "a point is said to have another version";
    if (wrong == NULL) {
        struct entry_op op;
        *row_out = (struct row_ref){ block, location->op };
        row_op(s, *row_out, &op);
        if (op.kind != POINT_UPSERT || point_key_compare(&op.key, key) != 0)
            wrong = "another point lies at its place";
    }
    return wrong == NULL ? OMEN_OK : stream_corrupt(s->stream, location->position, wrong, err);
}

enum omen_err view_find(const struct shard_store *s, const struct view_pin *pin, uint64_t sequence,
        const struct point_key *key, struct row_ref *row_out, struct err *err)
{
    if (delta_get(pin->active, key, sequence, row_out)) return OMEN_OK;
    return view_find_older(s, pin, sequence, key, row_out, err);
}

enum omen_err view_find_older(const struct shard_store *s, const struct view_pin *pin, uint64_t sequence,
        const struct point_key *key, struct row_ref *row_out, struct err *err)
{
    if (pin->frozen != NULL && delta_get(pin->frozen, key, sequence, row_out)) return OMEN_OK;
    *row_out = ROW_NONE;
    if (pin->meta_rc != OMEN_OK) return err_set(err, pin->meta_rc, NULL, "%s/meta cannot be read", s->dir);
    struct meta_location location;
    bool found = false;
    enum omen_err rc = meta_get(pin->txn, key, &location, &found, err);
    return rc == OMEN_OK && found ? row_of_location(s, key, &location, row_out, err) : rc;
}

static enum omen_err iter_meta_next(struct view_iter *it, struct err *err)
{
    return meta_cursor_next(it->cursor, &it->meta_key, &it->meta_location, &it->meta_valid, err);
}

enum omen_err view_iter_open(const struct shard_store *s, const struct view_pin *pin, uint64_t sequence,
        const struct point_key *from, struct view_iter *it_out, struct err *err)
{
    *it_out = (struct view_iter){ .store = s, .has_frozen = pin->frozen != NULL };
    if (pin->meta_rc != OMEN_OK) return err_set(err, pin->meta_rc, NULL, "%s/meta cannot be read", s->dir);
    delta_iter_seek(pin->active, from, sequence, &it_out->active);
    if (it_out->has_frozen) delta_iter_seek(pin->frozen, from, sequence, &it_out->frozen);
    enum omen_err rc = meta_cursor_open(pin->txn, from, &it_out->cursor, err);
    if (rc == OMEN_OK) rc = iter_meta_next(it_out, err);
    if (rc != OMEN_OK) view_iter_close(it_out);
    return rc;
}

/* The smallest key of the three sources; where they agree, the newer source speaks and the others step over it. */
static enum omen_err iter_step(struct view_iter *it, struct point_key *key_out, struct row_ref *row_out,
        bool *found_out, struct err *err)
{
    bool active = delta_iter_valid(&it->active), frozen = it->has_frozen && delta_iter_valid(&it->frozen);
    *found_out = active || frozen || it->meta_valid;
    if (!*found_out) return OMEN_OK;
    const struct point_key *least = active ? &it->active.key : frozen ? &it->frozen.key : &it->meta_key;
    if (frozen && point_key_compare(&it->frozen.key, least) < 0) least = &it->frozen.key;
    if (it->meta_valid && point_key_compare(&it->meta_key, least) < 0) least = &it->meta_key;
    *key_out = *least;
    bool in_active = active && point_key_compare(&it->active.key, key_out) == 0;
    bool in_frozen = frozen && point_key_compare(&it->frozen.key, key_out) == 0;
    bool in_meta = it->meta_valid && point_key_compare(&it->meta_key, key_out) == 0;
    enum omen_err rc = OMEN_OK;
    if (in_active)
        *row_out = it->active.row;
    else if (in_frozen)
        *row_out = it->frozen.row;
    else
        rc = row_of_location(it->store, key_out, &it->meta_location, row_out, err);
    if (in_active) delta_iter_next(&it->active);
    if (in_frozen) delta_iter_next(&it->frozen);
    if (rc == OMEN_OK && in_meta) rc = iter_meta_next(it, err);
    return rc;
}

enum omen_err view_iter_next(struct view_iter *it, struct point_key *key_out, struct row_ref *row_out,
        bool *found_out, struct err *err)
{
    enum omen_err rc;
    do {
        rc = iter_step(it, key_out, row_out, found_out, err);
    } while (rc == OMEN_OK && *found_out && row_is_none(*row_out)); /* tombstones */
    return rc;
}

void view_iter_close(struct view_iter *it)
{
    meta_cursor_close(it->cursor);
    it->cursor = NULL;
}

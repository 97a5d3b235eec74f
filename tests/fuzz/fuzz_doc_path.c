/* A path and a doc: [u8 length][path text][doc]. The path is parsed and walked; what remove and select make
 * of the doc must be valid, hold nothing more at the path, or nothing besides. */
#include "common/check.h"
#include "common/query/doc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool count_value(void *arg, struct doc value)
{
    CHECK(value.data != NULL);
    ++*(uint32_t *)arg;
    return true;
}

static uint32_t count_at(const struct doc_path *path, struct doc root)
{
    uint32_t count = 0;
    CHECK(doc_path_each(path, root, false, count_value, &count));
    return count;
}

static struct doc validated(const struct buf *out)
{
    struct doc doc;
    CHECK(doc_validate((struct bytes){ out->data, out->len }, DOC_BYTES_MAX, &doc, NULL) == OMEN_OK);
    return doc;
}

static void edit(const struct doc_path *path, struct doc root)
{
    struct buf removed, included, merged;
    buf_init(&removed);
    buf_init(&included);
    buf_init(&merged);
    uint32_t count = count_at(path, root);
    enum omen_err rc = doc_remove(root, &path, 1, &removed, NULL);
    CHECK((rc == OMEN_OK) == (doc_type(root) == DOC_OBJECT));
    if (rc == OMEN_OK) {
        CHECK(doc_select(root, &path, 1, true, &included, NULL) == OMEN_OK);
        CHECK(doc_merge(validated(&removed), root, &merged, NULL) == OMEN_OK);
        CHECK(validated(&merged).len == root.len && memcmp(merged.data, root.data, root.len) == 0);
        /* Removing [n] moves up the next element, selecting it makes it the first. */
        bool by_slot = false;
        struct bytes text = doc_path_text(path);
        for (size_t i = 1; i < text.len; i++) by_slot |= text.data[i - 1] == '[' && text.data[i] != ']';
        if (!by_slot) {
            CHECK(count_at(path, validated(&removed)) == 0);
            CHECK(count_at(path, validated(&included)) == count);
        }
        if (count == 0) CHECK(removed.len == root.len && memcmp(removed.data, root.data, root.len) == 0);
    }
    buf_fini(&removed);
    buf_fini(&included);
    buf_fini(&merged);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || data[0] > size - 1) return 0;
    struct arena arena;
    arena_init(&arena, 1024, 1 << 16);
    const struct doc_path *path;
    struct err err;
    enum omen_err rc = doc_path_parse((const char *)data + 1, data[0], &arena, &path, &err);
    CHECK(rc == OMEN_OK || (err.code == rc && path == NULL));
    struct doc root;
    struct bytes rest = { data + 1 + data[0], size - 1 - data[0] };
    if (rc == OMEN_OK && doc_validate(rest, DOC_BYTES_MAX, &root, NULL) == OMEN_OK) edit(path, root);
    arena_fini(&arena);
    return 0;
}

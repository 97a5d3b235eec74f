/* See file_message.h. */
#include "common/wire/file_message.h"

#include "common/check.h"
#include "common/crc32c.h"
#include "common/wire/shard_bytes.h"

#define ENTRY_BYTES_MIN 11u /* length of a name, size, flag */

static void put_bytes32(struct buf *out, struct bytes bytes)
{
    put_u32(out, (uint32_t)bytes.len);
    buf_append(out, bytes.data, bytes.len);
}

static struct bytes in_bytes32(struct wire_in *in, uint32_t max, const char *field)
{
    uint32_t len = in_count(in, max, 1, field);
    const uint8_t *data = in_take(in, len, field);
    return (struct bytes){ data, data == NULL ? 0 : len };
}

/* ---- requests ---- */

void file_request_encode(const struct file_request *r, struct buf *out)
{
    put_u8(out, (uint8_t)r->op);
    if (r->op == FILE_LEASE) {
        put_u64(out, r->group);
        put_u64(out, r->sequence);
        return;
    }
    put_u64(out, r->lease);
    if (r->op != FILE_READ) return;
    put_u32(out, r->file);
    put_u64(out, r->offset);
    put_u32(out, r->len);
}

enum omen_err file_request_decode(struct bytes body, struct file_request *r, struct err *err)
{
    struct err local;
    struct wire_in in = wire_in(body, NULL, err != NULL ? err : &local);
    *r = (struct file_request){ .op = (enum file_op)in_u8(&in, "op") };
    if (in_ok(&in) && (r->op < FILE_LEASE || r->op > FILE_RELEASE))
        in_fail(&in, OMEN_EPROTO, "op", "is not known");
    if (r->op == FILE_LEASE) {
        r->group = in_u64(&in, "group");
        r->sequence = in_u64(&in, "sequence");
    } else {
        r->lease = in_u64(&in, "lease");
    }
    if (r->op == FILE_READ) {
        r->file = in_u32(&in, "file");
        r->offset = in_u64(&in, "offset");
        r->len = in_u32(&in, "len");
        if (in_ok(&in) && (r->len == 0 || r->len > FILE_RANGE_BYTES_MAX))
            in_fail(&in, OMEN_ETOOBIG, "len", "is outside 1 to 4 MiB");
    }
    return in_end(&in);
}

/* ---- replies ---- */

static void put_lease(const struct file_reply *r, struct buf *out)
{
    put_u64(out, r->lease);
    put_u32(out, r->lease_ms);
    put_u64(out, r->replica_id);
    put_u64(out, r->sequence);
    put_u64(out, r->base_sequence);
    put_bytes32(out, r->description);
    put_bytes32(out, r->manifest);
    put_u32(out, r->file_count);
    for (uint32_t i = 0; i < r->file_count; i++) {
        put_text(out, r->files[i].name, FILE_NAME_BYTES_MAX);
        put_u64(out, r->files[i].bytes);
        put_u8(out, r->files[i].grows);
    }
}

void file_reply_encode(enum file_op op, const struct file_reply *r, struct buf *out)
{
    put_u32(out, (uint32_t)r->code);
    if (r->code != OMEN_OK) {
        put_u32(out, r->err.retry_after_ms);
        put_text(out, r->err.message, ERR_MESSAGE_BYTES - 1);
        return;
    }
    if (op == FILE_LEASE) put_lease(r, out);
    if (op != FILE_READ) return;
    put_u32(out, r->data_crc);
    put_u8(out, r->has_file_crc);
    put_u32(out, r->file_crc);
    put_bytes32(out, r->data);
}

/* Nothing that could lead out of the directory it is put in. */
static bool name_is_good(const char *name)
{
    bool part_begins = true;
    if (name[0] == '\0') return false;
    for (const char *c = name; *c != '\0'; c++) {
        bool letter = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9');
        if (*c == '/' && (part_begins || c[1] == '\0')) return false;
        if (*c != '/' && !letter && *c != '.' && *c != '-' && *c != '_') return false;
        if (part_begins && !letter) return false;
        part_begins = *c == '/';
    }
    return true;
}

static void in_lease(struct wire_in *in, struct file_reply *r)
{
    r->lease = in_u64(in, "lease");
    r->lease_ms = in_u32(in, "lease_ms");
    r->replica_id = in_u64(in, "replica_id");
    r->sequence = in_u64(in, "sequence");
    r->base_sequence = in_u64(in, "base_sequence");
    r->description = in_bytes32(in, FILE_DESCRIPTION_BYTES_MAX, "description");
    r->manifest = in_bytes32(in, FILE_MANIFEST_BYTES_MAX, "manifest");
    r->file_count = in_count(in, FILE_COUNT_MAX, ENTRY_BYTES_MIN, "files");
    struct file_entry *files = in_alloc(in, r->file_count, sizeof *files);
    r->files = files;
    for (uint32_t i = 0; in_ok(in) && i < r->file_count; i++) {
        in_text(in, files[i].name, FILE_NAME_BYTES_MAX, "name");
        files[i].bytes = in_u64(in, "bytes");
        files[i].grows = in_bool(in, "grows");
        if (in_ok(in) && !name_is_good(files[i].name))
            in_fail(in, OMEN_EPROTO, "name", "is no name of a file");
        if (in_ok(in) && files[i].bytes > INT64_MAX)
            in_fail(in, OMEN_EPROTO, "bytes", "is no size of a file");
    }
}

static void in_range(struct wire_in *in, struct file_reply *r)
{
    r->data_crc = in_u32(in, "crc");
    r->has_file_crc = in_bool(in, "has_file_crc");
    r->file_crc = in_u32(in, "file_crc");
    r->data = in_bytes32(in, FILE_RANGE_BYTES_MAX, "data");
    if (in_ok(in) && !r->has_file_crc && r->file_crc != 0)
        in_fail(in, OMEN_EPROTO, "file_crc", "means nothing");
    if (in_ok(in) && crc32c(0, r->data.data, r->data.len) != r->data_crc)
        in_fail(in, OMEN_EPROTO, "data", "differs from its checksum");
}

enum omen_err file_reply_decode(enum file_op op, struct bytes body, struct arena *arena, struct file_reply *r,
        struct err *err)
{
    struct err local;
    struct wire_in in = wire_in(body, arena, err != NULL ? err : &local);
    *r = (struct file_reply){ .code = (enum omen_err)in_u32(&in, "code") };
    if (r->code != OMEN_OK) {
        char text[ERR_MESSAGE_BYTES];
        uint32_t retry_after_ms = in_u32(&in, "retry_after_ms");
        in_text(&in, text, ERR_MESSAGE_BYTES - 1, "message");
        if (in_ok(&in) && (uint32_t)r->code >= OMEN_ERR_COUNT)
            in_fail(&in, OMEN_EPROTO, "code", "is not known");
        err_set(&r->err, r->code, "", "%s", in_ok(&in) ? text : "");
        r->err.retry_after_ms = retry_after_ms;
    } else if (op == FILE_LEASE) {
        in_lease(&in, r);
    } else if (op == FILE_READ) {
        in_range(&in, r);
    }
    return in_end(&in);
}

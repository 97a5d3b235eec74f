/* Errors: names of the codes and the sentences for people.
 * Threads: pure functions of their arguments. Nothing here allocates: an error must be reportable when
 * memory is out. */
#include "common/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/utf8.h"

static const char *const NAMES[OMEN_ERR_COUNT] = {
    [OMEN_OK] = "ok",
    [OMEN_EINVAL] = "invalid",
    [OMEN_ENOTFOUND] = "not_found",
    [OMEN_EEXISTS] = "exists",
    [OMEN_ETOOBIG] = "too_big",
    [OMEN_EPROTO] = "protocol",
    [OMEN_EVERSION] = "version",
    [OMEN_EAUTH] = "unauthenticated",
    [OMEN_EPERM] = "forbidden",
    [OMEN_EBUSY] = "busy",
    [OMEN_EDEADLINE] = "deadline_exceeded",
    [OMEN_EUNKNOWN] = "outcome_unknown",
    [OMEN_EOPEXPIRED] = "op_expired",
    [OMEN_EFULL] = "full",
    [OMEN_ECORRUPT] = "corrupt",
    [OMEN_EIO] = "io",
    [OMEN_ENOMEM] = "out_of_memory",
    [OMEN_EWRONGEPOCH] = "wrong_epoch",
    [OMEN_ENOTLEADER] = "not_leader",
    [OMEN_EUNAVAILABLE] = "unavailable",
    [OMEN_ECANCELED] = "canceled",
    [OMEN_EINTERNAL] = "internal",
};

/* Sentences quote names that came from a network or a disk, and travel on the wire as UTF-8 text: what is
 * no UTF-8 (or was cut in the middle of a character) and control characters become '?', so every reader
 * can decode them. */
static void make_printable(char *s)
{
    size_t len = strlen(s);
    for (size_t i = 0; i < len;) {
        size_t n = utf8_sequence_bytes(s + i, len - i);
        if (n == 0 || (n == 1 && ((unsigned char)s[i] < 0x20 || s[i] == 0x7f))) {
            s[i] = '?';
            n = 1;
        }
        i += n;
    }
}

static void copy_text(char *dst, size_t dst_bytes, const char *src)
{
    size_t len = strnlen(src, dst_bytes - 1);
    memmove(dst, src, len);
    dst[len] = '\0';
    make_printable(dst);
}

enum omen_err err_set(struct err *err, enum omen_err code, const char *field, const char *fmt, ...)
{
    if (err == NULL) return code;
    /* Formatted aside: an argument may be the old sentence of this same `err`. */
    char message[ERR_MESSAGE_BYTES], field_copy[ERR_FIELD_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    copy_text(field_copy, sizeof field_copy, field == NULL ? "" : field);
    memset(err, 0, sizeof *err);
    err->code = code;
    memcpy(err->field, field_copy, strlen(field_copy) + 1);
    copy_text(err->message, sizeof err->message, message);
    return code;
}

enum omen_err err_corrupt(struct err *err, const char *path, uint64_t offset_bytes, const char *what)
{
    return err_set(err, OMEN_ECORRUPT, NULL, "%s: %s at offset %llu", path, what,
            (unsigned long long)offset_bytes);
}

enum omen_err err_os(struct err *err, int errno_value, const char *what, const char *path)
{
    enum omen_err code = OMEN_EIO;
    if (errno_value == ENOSPC || errno_value == EDQUOT) code = OMEN_EFULL;
    if (errno_value == ENOMEM) code = OMEN_ENOMEM;
    char buffer[128];
    const char *reason = strerror_r(errno_value, buffer, sizeof buffer); /* the GNU form: returns the text */
    return err_set(err, code, NULL, "%s %s: %s", what, path, reason);
}

void err_prefix(struct err *err, const char *prefix)
{
    if (err == NULL) return;
    char joined[2 * ERR_FIELD_BYTES + 2];
    const char *joint = err->field[0] == '\0' || err->field[0] == '[' || prefix[0] == '\0' ? "" : ".";
    snprintf(joined, sizeof joined, "%.*s%s%s", ERR_FIELD_BYTES, prefix, joint, err->field);
    copy_text(err->field, sizeof err->field, joined);
}

void err_clear(struct err *err)
{
    if (err != NULL) memset(err, 0, sizeof *err);
}

const char *err_name(enum omen_err code)
{
    return (unsigned)code < OMEN_ERR_COUNT ? NAMES[code] : "unknown_code";
}

/* Not among them: OMEN_EDEADLINE (the same request has the same deadline), OMEN_EFULL and OMEN_ENOMEM
 * (somebody has to make room first). */
bool err_retryable(enum omen_err code)
{
    return code == OMEN_EBUSY || code == OMEN_EUNKNOWN || code == OMEN_EWRONGEPOCH ||
            code == OMEN_ENOTLEADER || code == OMEN_EUNAVAILABLE;
}

/* Errors: one list of codes for every room and for the wire, and an optional sentence for people.
 *
 * A function that can fail returns `enum omen_err` and is marked OMEN_CHECKED. Where a person will read
 * the reason it also takes a `struct err *` (may be NULL) as its last input; the sentence names the field,
 * file or limit at fault. Codes travel on the wire (common/wire/PROTOCOL.md lists them): never renumber,
 * only append. */
#ifndef OMEN_COMMON_ERR_H
#define OMEN_COMMON_ERR_H

#include <stdbool.h>
#include <stdint.h>

#define OMEN_CHECKED __attribute__((warn_unused_result))
#define OMEN_PRINTF(fmt_arg, first_arg) __attribute__((format(printf, fmt_arg, first_arg)))

enum omen_err {
    OMEN_OK = 0,
    OMEN_EINVAL = 1,        /* the request is wrong; `field` names where */
    OMEN_ENOTFOUND = 2,     /* no such collection, alias, point or field */
    OMEN_EEXISTS = 3,       /* name is taken */
    OMEN_ETOOBIG = 4,       /* a documented limit is exceeded */
    OMEN_EPROTO = 5,        /* bytes from network that are no message of ours */
    OMEN_EVERSION = 6,      /* no common protocol or format version */
    OMEN_EAUTH = 7,         /* no or unknown API key */
    OMEN_EPERM = 8,         /* key is known, its role does not allow this */
    OMEN_EBUSY = 9,         /* over an admission limit now; retry after `retry_after_ms` */
    OMEN_EDEADLINE = 10,    /* the caller's deadline passed before the work was begun or finished */
    OMEN_EUNKNOWN = 11,     /* a write whose outcome cannot be known; retry with the same op id */
    OMEN_EOPEXPIRED = 12,   /* op id older than the table of applied ops; never applied now */
    OMEN_EFULL = 13,        /* disk (or budget) full: writes refused, reads go on */
    OMEN_ECORRUPT = 14,     /* bytes on disk fail their checksum; file and offset are named */
    OMEN_EIO = 15,          /* the operating system refused; errno is in the sentence */
    OMEN_ENOMEM = 16,       /* allocation failed or the memory budget is used up */
    OMEN_EWRONGEPOCH = 17,  /* request was routed with an old map */
    OMEN_ENOTLEADER = 18,   /* write reached a replica that does not lead */
    OMEN_EUNAVAILABLE = 19, /* nobody answers: connection refused, node stopping, no leader */
    OMEN_ECANCELED = 20,    /* stopped by the caller or by shutdown */
    OMEN_EINTERNAL = 21,    /* a bug of ours that could be contained */
    OMEN_ERR_COUNT
};

#define ERR_FIELD_BYTES 96
#define ERR_MESSAGE_BYTES 400

/* A failure as a person reads it. Plain data, copied by value, owns nothing. */
struct err {
    enum omen_err code;
    uint32_t retry_after_ms;         /* only with OMEN_EBUSY, else 0 */
    char field[ERR_FIELD_BYTES];     /* path of the field at fault, "" when none */
    char message[ERR_MESSAGE_BYTES]; /* one sentence, no final period, UTF-8 */
};

/* Fill `*err` (may be NULL) and return `code`, so that callers write `return err_set(...)`.
 * `field` may be NULL. Truncates silently; never allocates. */
enum omen_err err_set(struct err *err, enum omen_err code, const char *field, const char *fmt, ...)
        OMEN_PRINTF(4, 5);

/* OMEN_ECORRUPT with "<path>: <what> at offset <offset_bytes>". */
enum omen_err err_corrupt(struct err *err, const char *path, uint64_t offset_bytes, const char *what);

/* OMEN_EFULL for ENOSPC and EDQUOT, OMEN_ENOMEM for ENOMEM, else OMEN_EIO; the sentence is
 * "<what> <path>: <strerror(errno_value)>". */
enum omen_err err_os(struct err *err, int errno_value, const char *what, const char *path);

/* Prefix `field` of an error already set: "filter" + "must[2].key" -> "filter.must[2].key". */
void err_prefix(struct err *err, const char *prefix);

void err_clear(struct err *err);

/* Stable lower-case name, e.g. "not_found"; used in JSON, metrics and the Python client's exception names.
 * "unknown_code" for anything out of range. */
const char *err_name(enum omen_err code);

/* True when a retry of the very same request may succeed without anybody changing anything. */
bool err_retryable(enum omen_err code);

#endif

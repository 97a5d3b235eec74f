/* What omenctl writes: failures on stderr, JSON and values on stdout. Threads: main only. */
#ifndef OMEN_TOOLS_OMENCTL_OUTPUT_H
#define OMEN_TOOLS_OMENCTL_OUTPUT_H

#include "common/json.h"
#include "common/mem.h"
#include "common/query/point.h"
#include "tools/client/omen.h"
#include "tools/omenctl/table.h"

/* Tell the library's last failure and return the exit code for it. */
int fail_with(omen_code code);
/* "omenctl: <sentence> (<name of code>, <field>)"; the exit code for `code`. */
int fail_text(omen_code code, const char *field, const char *message);
/* Also for failures of our own: files, input. Returns EXIT_FAILED. */
int fail_local(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* A number in digits or a UUID; a payload value: number of 0 or more, or such a text. False when it is none. */
bool id_of_text(const char *text, size_t len, omen_id *id_out);
bool id_of_doc(struct doc value, omen_id *id_out);

void put_id(struct buf *out, const omen_id *id); /* as JSON: a number or "uuid" */
void format_id(const omen_id *id, char text_out[POINT_ID_TEXT_BYTES]);
void put_float(struct buf *out, float v);        /* fewest digits that read back the same */
void put_string(struct buf *out, const char *s); /* quoted JSON */
/* {"id", "score", "version", "shard_key", "payload", "vector" or "vectors"}: what the point has. */
void put_point(struct buf *out, const omen_point *point, bool with_score);
void put_line(struct buf *out); /* write to stdout with a newline, then clear */

/* A JSON document parsed for reading; ended by json_text_fini. Panics when out of memory. */
struct json_text {
    struct doc_builder *builder;
    struct doc doc;
};
OMEN_CHECKED enum omen_err json_text_init(struct json_text *t, const char *text, size_t len, struct err *err);
void json_text_fini(struct json_text *t);

struct doc doc_get(struct doc object, const char *key);          /* absent when there is none */
uint64_t doc_get_u64(struct doc object, const char *key);        /* 0 when absent or no number */
int64_t doc_get_i64(struct doc object, const char *key);         /* the same */
struct bytes doc_get_string(struct doc object, const char *key); /* empty when absent or no string */
/* The value in a cell: strings bare, absent as blank, the rest as JSON. */
void table_doc(struct table *table, struct doc value);
void table_point_id(struct table *table, const omen_id *id);
/* Rows of points: id, optional shard key and payload (or the payload's values at `paths`). */
void table_payload(struct table *table, const char *payload_json, const char *const *paths,
        uint32_t path_count);

/* On stderr, when an answer is one. */
void tell_stale(bool stale);

/* "1.2 GB" in powers of 1000. */
void format_bytes(uint64_t bytes, char out[16]);

#endif

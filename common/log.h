/* Structured logs: one line per event on stderr (or a file), logfmt by default, JSON on request:
 *   2026-11-22T08:04:30.123Z info node.start listen=tcp://127.0.0.1:7700 data_dir=/var/lib/omendb
 * Event names are stable (grep for them), dotted, lower case. Keys and values are given as printf pieces:
 *   LOG_INFO("shard.open", "shard=%llu points=%llu", ...);
 *
 * The writer quotes and escapes what a conversion prints where it needs it (blanks, quotes, control
 * characters), so "name=%s" is safe with any value; quotes in the format (name=\"%s\") make a value a text
 * for sure. What has no "key=" is collected under msg. Thread-safe; a line is written by one write(2), at
 * most 4 KiB; long values are cut. */
#ifndef OMEN_COMMON_LOG_H
#define OMEN_COMMON_LOG_H

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

void log_configure(enum log_level level, enum log_format format, int fd);
_Bool log_enabled(enum log_level level);
void log_event(enum log_level level, const char *event, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

/* What goes wrong again and again until somebody makes room is told the first time, then at twice as many, up to every
 * 8,192nd: a disk that stays full does not fill the log. Zero it to begin; its owner guards it.
 *   if (log_repeat_tells(&s->merge_fails)) LOG_WARN("store.merge_waits", "times=%u ..", s->merge_fails.times, ..);
 *   if (log_repeat_ends(&s->merge_fails)) LOG_INFO("store.merge_goes_on", ..); */
#define LOG_REPEAT_MAX 8192u
struct log_repeat {
    unsigned times; /* since it last went well */
};
static inline _Bool log_repeat_tells(struct log_repeat *r)
{
    r->times++;
    return (r->times & (r->times - 1)) == 0 || r->times % LOG_REPEAT_MAX == 0;
}
/* It went well: true when something was told of before. */
static inline _Bool log_repeat_ends(struct log_repeat *r)
{
    _Bool failed = r->times != 0;
    r->times = 0;
    return failed;
}

#define LOG_AT(level, event, ...)                                                                            \
    do {                                                                                                     \
        if (log_enabled(level)) log_event(level, event, __VA_ARGS__);                                        \
    } while (0)
#define LOG_DEBUG(event, ...) LOG_AT(LOG_LEVEL_DEBUG, event, __VA_ARGS__)
#define LOG_INFO(event, ...) LOG_AT(LOG_LEVEL_INFO, event, __VA_ARGS__)
#define LOG_WARN(event, ...) LOG_AT(LOG_LEVEL_WARN, event, __VA_ARGS__)
#define LOG_ERROR(event, ...) LOG_AT(LOG_LEVEL_ERROR, event, __VA_ARGS__)

#endif

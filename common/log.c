/* Structured logs: logfmt or JSON, one write(2) per line.
 *
 * The format string is walked here, conversion by conversion, so that the text of the program (keys,
 * quotes, blanks) is told from what it prints: an argument with blanks, quotes or line ends is quoted and
 * escaped and can neither forge a second field nor a second line, whether or not the caller wrote quotes
 * around it. What has no "key=" is collected under msg.
 * Threads: any; no lock, lines of one write do not mix. Allocates nothing; errno is kept. */
#include "common/log.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/utf8.h"

#define LINE_BYTES_MAX 4096  /* PIPE_BUF: a line into a pipe is not torn */
#define VALUE_BYTES_MAX 2048 /* before escaping; longer values end in "..." */
#define LINE_END_BYTES 8     /* kept free for closing quotes, braces and the line end */
#define SPEC_BYTES_MAX 32    /* one conversion, e.g. "%-10.3llu" */

static _Atomic int configured_level = LOG_LEVEL_INFO;
static _Atomic int configured_format = LOG_FORMAT_TEXT;
static _Atomic int configured_fd = STDERR_FILENO;

static const char *const LEVEL_NAMES[] = { "debug", "info", "warn", "error" };

void log_configure(enum log_level level, enum log_format format, int fd)
{
    atomic_store(&configured_level, (int)level);
    atomic_store(&configured_format, (int)format);
    atomic_store(&configured_fd, fd);
}

_Bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&configured_level, memory_order_relaxed);
}

/* ---- the line ---- */

struct line {
    enum log_format format;
    size_t len;
    bool full; /* something did not fit: nothing more goes in but the end */
    char data[LINE_BYTES_MAX];
};

/* All of it or nothing, so that no escape or character is cut in the middle. */
static void put(struct line *line, const char *text, size_t len)
{
    if (line->full || len > LINE_BYTES_MAX - LINE_END_BYTES - line->len) {
        line->full = true;
        return;
    }
    memcpy(line->data + line->len, text, len);
    line->len += len;
}

static void put_text(struct line *line, const char *text) { put(line, text, strlen(text)); }

static void put_end(struct line *line, const char *text)
{
    size_t len = strlen(text);
    memcpy(line->data + line->len, text, len);
    line->len += len;
}

static void put_escaped_byte(struct line *line, unsigned char c, bool is_character)
{
    static const char SHORT[] = "\"\"\\\\\nn\rr\tt"; /* pairs: byte, letter */
    char text[8];
    for (size_t i = 0; i + 1 < sizeof SHORT; i += 2)
        if ((unsigned char)SHORT[i] == c) {
            text[0] = '\\';
            text[1] = SHORT[i + 1];
            put(line, text, 2);
            return;
        }
    if (line->format == LOG_FORMAT_JSON)
        snprintf(text, sizeof text, "\\u%04x", is_character ? c : 0xfffdu);
    else
        snprintf(text, sizeof text, "\\x%02x", c);
    put_text(line, text);
}

/* False when not even the opening quote fits; a value that is cut is still closed. */
static bool put_quoted(struct line *line, const char *value, size_t len)
{
    put(line, "\"", 1);
    if (line->full) return false;
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)value[i];
        size_t n = utf8_sequence_bytes(value + i, len - i);
        if (n == 0 || c < 0x20 || c == 0x7f || c == '"' || c == '\\') {
            put_escaped_byte(line, c, n != 0);
            n = 1;
        } else {
            put(line, value + i, n);
        }
        i += n;
    }
    put_end(line, "\"");
    return true;
}

static bool needs_quotes(const char *value, size_t len)
{
    if (len == 0) return true;
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)value[i];
        size_t n = utf8_sequence_bytes(value + i, len - i);
        if (n == 0 || c <= 0x20 || c == 0x7f || c == '"' || c == '\\' || c == '=') return true;
        i += n;
    }
    return false;
}

static size_t digits(const char *s, size_t len)
{
    size_t n = 0;
    while (n < len && isdigit((unsigned char)s[n])) n++;
    return n;
}

/* A number as JSON writes it, or true or false. Long runs of digits stay strings: readers round
 * them. */
static bool is_json_literal(const char *s, size_t len)
{
    if ((len == 4 && memcmp(s, "true", 4) == 0) || (len == 5 && memcmp(s, "false", 5) == 0)) return true;
    if (len == 0 || len > 20) return false;
    size_t i = s[0] == '-' ? 1 : 0;
    size_t n = digits(s + i, len - i);
    if (n == 0 || (n > 1 && s[i] == '0')) return false;
    i += n;
    if (i < len && s[i] == '.') {
        n = digits(s + i + 1, len - i - 1);
        if (n == 0) return false;
        i += 1 + n;
    }
    if (i < len && (s[i] == 'e' || s[i] == 'E')) {
        i++;
        if (i < len && (s[i] == '+' || s[i] == '-')) i++;
        n = digits(s + i, len - i);
        if (n == 0) return false;
        i += n;
    }
    return i == len;
}

static bool put_plain(struct line *line, const char *value, size_t len)
{
    put(line, value, len);
    return !line->full;
}

/* A key whose value does not fit is taken back. */
static void put_pair(struct line *line, const char *key, size_t key_len, const char *value, size_t len,
        bool quoted)
{
    bool json = line->format == LOG_FORMAT_JSON;
    size_t len_before = line->len;
    put_text(line, json ? ",\"" : " ");
    put(line, key, key_len);
    put_text(line, json ? "\":" : "=");
    bool plain = !quoted && (json ? is_json_literal(value, len) : !needs_quotes(value, len));
    if (line->full || !(plain ? put_plain(line, value, len) : put_quoted(line, value, len)))
        line->len = len_before;
}

/* ---- one value, formatted piece by piece ---- */

struct value {
    size_t len;
    bool cut;
    char data[VALUE_BYTES_MAX];
};

struct arguments {
    va_list list;
};

static void value_add(struct value *value, const char *text, size_t len)
{
    size_t room = sizeof value->data - value->len;
    if (len > room) value->cut = true;
    if (len > room) len = room;
    memcpy(value->data + value->len, text, len);
    value->len += len;
}

/* Long values end in dots, at a character's end. */
static void value_finish(struct value *value)
{
    if (!value->cut) return;
    value->len = sizeof value->data - 3;
    while (value->len > 0 && ((unsigned char)value->data[value->len] & 0xc0) == 0x80) value->len--;
    memcpy(value->data + value->len, "...", 3);
    value->len += 3;
}

/* Copies one conversion from `fmt` (at '%') into `spec`, resolving '*'. Returns its length in `fmt`, 0 if
 * malformed. `length_out` becomes the length modifier: 0, 'l', 'q' (ll), 'j', 'z', 't', 'L', 'h'. */
static size_t read_spec(const char *fmt, struct arguments *args, char spec[SPEC_BYTES_MAX], char *length_out)
{
    size_t i = 1, n = 0;
    spec[n++] = '%';
    *length_out = 0;
    for (; fmt[i] != '\0' && strchr("-+ #0'123456789.*", fmt[i]) != NULL; i++) {
        if (n > SPEC_BYTES_MAX - 16) return 0;
        if (fmt[i] == '*')
            n += (size_t)snprintf(spec + n, 12, "%d", va_arg(args->list, int));
        else
            spec[n++] = fmt[i];
    }
    for (; fmt[i] != '\0' && strchr("hljztL", fmt[i]) != NULL; i++) {
        if (n > SPEC_BYTES_MAX - 3) return 0;
        *length_out = fmt[i] == 'l' && *length_out == 'l' ? 'q' : fmt[i];
        spec[n++] = fmt[i];
    }
    if (fmt[i] == '\0') return 0;
    spec[n++] = fmt[i];
    spec[n] = '\0';
    return i + 1;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored                                                                               \
        "-Wformat-nonliteral" /* the compiler has checked the whole string at the call */

static int format_integer(char *dst, size_t room, const char *spec, char length, struct arguments *args)
{
    switch (length) {
    case 'l': return snprintf(dst, room, spec, va_arg(args->list, long));
    case 'q': return snprintf(dst, room, spec, va_arg(args->list, long long));
    case 'j': return snprintf(dst, room, spec, va_arg(args->list, intmax_t));
    case 'z': return snprintf(dst, room, spec, va_arg(args->list, size_t));
    case 't': return snprintf(dst, room, spec, va_arg(args->list, ptrdiff_t));
    default: return snprintf(dst, room, spec, va_arg(args->list, int));
    }
}

/* Appends the conversion at `fmt` to `value`; returns its length in `fmt`. A conversion unknown here
 * stands as it is written, and its argument is not taken: the compiler has warned of none such. */
static size_t format_one(const char *fmt, struct arguments *args, struct value *value)
{
    char spec[SPEC_BYTES_MAX], length, text[VALUE_BYTES_MAX + 1];
    size_t spec_len = read_spec(fmt, args, spec, &length);
    int n = -1;
    switch (spec_len == 0 ? '\0' : fmt[spec_len - 1]) {
    case '%': n = snprintf(text, sizeof text, "%%"); break;
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
    case 'o':
    case 'c': n = format_integer(text, sizeof text, spec, length, args); break;
    case 'f':
    case 'F':
    case 'e':
    case 'E':
    case 'g':
    case 'G':
    case 'a':
    case 'A':
        if (length == 'L')
            n = snprintf(text, sizeof text, spec, va_arg(args->list, long double));
        else
            n = snprintf(text, sizeof text, spec, va_arg(args->list, double));
        break;
    case 's': {
        const char *s = va_arg(args->list, const char *);
        n = snprintf(text, sizeof text, spec, s == NULL ? "(null)" : s);
        break;
    }
    case 'p': n = snprintf(text, sizeof text, spec, va_arg(args->list, void *)); break;
    default: break;
    }
    if (n < 0) {
        value_add(value, fmt, 1);
        return 1;
    }
    if ((size_t)n >= sizeof text) value->cut = true;
    value_add(value, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
    return spec_len;
}

#pragma GCC diagnostic pop

/* ---- fields ---- */

/* Length of "key" in "key=...", 0 when the text does not begin so. */
static size_t key_length(const char *fmt)
{
    size_t n = 0;
    while (isalnum((unsigned char)fmt[n]) || fmt[n] == '_' || fmt[n] == '.' || fmt[n] == '-') n++;
    return fmt[n] == '=' ? n : 0;
}

/* Reads one value up to the blank or closing quote in the format that ends it. */
static const char *read_value(const char *fmt, struct arguments *args, bool *quoted_out, struct value *value)
{
    value->len = 0;
    value->cut = false;
    *quoted_out = *fmt == '"';
    char end = *quoted_out ? '"' : ' ';
    if (*quoted_out) fmt++;
    while (*fmt != '\0' && *fmt != end) {
        if (*fmt == '%') {
            fmt += format_one(fmt, args, value);
        } else {
            value_add(value, fmt, 1);
            fmt++;
        }
    }
    if (*quoted_out && *fmt == '"') fmt++;
    value_finish(value);
    return fmt;
}

static void put_fields(struct line *line, const char *fmt, struct arguments *args)
{
    struct value value, message = { 0 };
    while (*fmt != '\0') {
        if (*fmt == ' ') {
            fmt++;
            continue;
        }
        size_t key_len = key_length(fmt);
        const char *key = fmt;
        bool quoted;
        fmt = read_value(key_len == 0 ? fmt : fmt + key_len + 1, args, &quoted, &value);
        if (key_len != 0) {
            put_pair(line, key, key_len, value.data, value.len, quoted);
        } else {
            if (message.len > 0) value_add(&message, " ", 1);
            value_add(&message, value.data, value.len);
        }
    }
    value_finish(&message);
    if (message.len > 0) put_pair(line, "msg", 3, message.data, message.len, true);
}

static void put_head(struct line *line, enum log_level level, const char *event)
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    char head[96], seconds[32];
    int ms = (int)(now.tv_nsec / 1000000);
    strftime(seconds, sizeof seconds, "%Y-%m-%dT%H:%M:%S", &utc);
    if (line->format == LOG_FORMAT_JSON)
        snprintf(head, sizeof head, "{\"time\":\"%s.%03dZ\",\"level\":\"%s\",\"event\":", seconds, ms,
                LEVEL_NAMES[level]);
    else
        snprintf(head, sizeof head, "%s.%03dZ %s ", seconds, ms, LEVEL_NAMES[level]);
    put_text(line, head);
    if (line->format == LOG_FORMAT_JSON)
        put_quoted(line, event, strlen(event));
    else
        put_text(line, event);
}

static void write_line(const struct line *line)
{
    int fd = atomic_load_explicit(&configured_fd, memory_order_relaxed);
    for (size_t done = 0; done < line->len;) {
        ssize_t n = write(fd, line->data + done, line->len - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return; /* a full pipe or disk loses lines, it stops nobody */
        done += (size_t)n;
    }
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    int errno_before = errno;
    struct line line;
    line.format = (enum log_format)atomic_load_explicit(&configured_format, memory_order_relaxed);
    line.len = 0;
    line.full = false;
    struct arguments args;
    va_start(args.list, fmt);
    put_head(&line, level, event);
    put_fields(&line, fmt, &args);
    va_end(args.list);
    if (line.format == LOG_FORMAT_JSON) put_end(&line, "}");
    put_end(&line, "\n");
    write_line(&line);
    errno = errno_before;
}

/* RFC 3339 dates and date-times as UTC microseconds (proleptic Gregorian calendar, years 0001..9999).
 * Wider than the RFC where Qdrant is: the date alone, no seconds, a blank for the T, no offset (then UTC).
 * A leap second is accepted where one can be, at 23:59:60 UTC, and counts as 23:59:59.999999: it keeps its
 * place before the next midnight, and times stay comparable with clocks that know no leap seconds.
 * No libc time functions: they know locales and zones. Part of filters, so deterministic. Any thread. */
#include "common/query/filter.h"

#define US_PER_SECOND INT64_C(1000000)
#define SECONDS_PER_DAY INT64_C(86400)

struct reader {
    const char *at, *end;
};

static bool read_digits(struct reader *r, int count, int *value_out)
{
    if (r->end - r->at < count) return false;
    int v = 0;
    for (int i = 0; i < count; i++) {
        char c = r->at[i];
        if (c < '0' || c > '9') return false;
        v = v * 10 + (c - '0');
    }
    r->at += count;
    *value_out = v;
    return true;
}

static bool accept(struct reader *r, char c)
{
    if (r->at == r->end || *r->at != c) return false;
    r->at++;
    return true;
}

static bool is_leap(int year) { return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0; }

/* Days since 1970-01-01. Counts in 400-year eras of 146097 days, with years that begin in March. */
static int64_t days_of_date(int year, int month, int day)
{
    int y = month <= 2 ? year - 1 : year; /* >= 0 */
    int era = y / 400, year_of_era = y % 400;
    int day_of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
    int day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    return (int64_t)era * 146097 + day_of_era - 719468;
}

static bool read_date(struct reader *r, int64_t *days_out)
{
    static const int month_days[] = { 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
    int year, month, day;
    if (!read_digits(r, 4, &year) || !accept(r, '-') || !read_digits(r, 2, &month) || !accept(r, '-') ||
            !read_digits(r, 2, &day))
        return false;
    if (year < 1 || month < 1 || month > 12) return false;
    int last = month_days[month - 1] + (month == 2 && is_leap(year));
    if (day < 1 || day > last) return false;
    *days_out = days_of_date(year, month, day);
    return true;
}

/* After the '.': at least one digit; those past the sixth are cut off. */
static bool read_fraction(struct reader *r, int64_t *us_out)
{
    const char *start = r->at;
    int64_t us = 0, unit = US_PER_SECOND / 10;
    for (; r->at < r->end && *r->at >= '0' && *r->at <= '9'; r->at++, unit /= 10) us += (*r->at - '0') * unit;
    *us_out = us;
    return r->at > start;
}

/* What follows the time of day, up to the end. */
static bool read_offset(struct reader *r, int64_t *seconds_out)
{
    *seconds_out = 0;
    if (r->at == r->end) return true;
    if (accept(r, 'Z') || accept(r, 'z')) return r->at == r->end;
    int sign = accept(r, '+') ? 1 : accept(r, '-') ? -1 : 0, hours, minutes;
    if (sign == 0 || !read_digits(r, 2, &hours) || !accept(r, ':') || !read_digits(r, 2, &minutes))
        return false;
    *seconds_out = sign * (hours * 3600 + minutes * 60);
    return hours <= 23 && minutes <= 59 && r->at == r->end;
}

bool datetime_parse(const char *text, size_t len, int64_t *us_out)
{
    struct reader r = { text, text + len };
    int64_t days, fraction_us = 0, offset_seconds;
    if (!read_date(&r, &days)) return false;
    if (r.at == r.end) {
        *us_out = days * SECONDS_PER_DAY * US_PER_SECOND;
        return true;
    }
    int hour, minute, second = 0;
    if (!accept(&r, 'T') && !accept(&r, 't') && !accept(&r, ' ')) return false;
    if (!read_digits(&r, 2, &hour) || !accept(&r, ':') || !read_digits(&r, 2, &minute)) return false;
    if (accept(&r, ':')) {
        if (!read_digits(&r, 2, &second)) return false;
        if (accept(&r, '.') && !read_fraction(&r, &fraction_us)) return false;
    }
    if (!read_offset(&r, &offset_seconds)) return false;
    if (hour > 23 || minute > 59 || second > 60) return false;

    int64_t seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - offset_seconds;
    if (second == 60) {
        if (seconds % SECONDS_PER_DAY != 0) return false; /* the instant after it is midnight UTC */
        seconds -= 1;
        fraction_us = US_PER_SECOND - 1;
    }
    *us_out = seconds * US_PER_SECOND + fraction_us;
    return true;
}

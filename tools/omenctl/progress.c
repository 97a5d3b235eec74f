/* See progress.h. */
#include "tools/omenctl/progress.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"

#define REDRAW_NS 100000000u
#define PLAIN_LINE_NS 3000000000u
#define BAR_CELLS 24u

static uint64_t now_ns(void) { return clock_monotonic_ns(clock_system()); }

static void format_left(double seconds, char out[32])
{
    if (seconds < 100)
        snprintf(out, 32, "%.0f s", seconds);
    else if (seconds < 6000)
        snprintf(out, 32, "%.0f min", seconds / 60);
    else
        snprintf(out, 32, "%.1f h", seconds / 3600);
}

/* With the lock held. */
static void draw(struct progress *p, uint64_t now)
{
    double seconds = (double)(now - p->start_ns) / 1e9;
    double rate = seconds > 0 ? (double)p->done / seconds : 0;
    double share = p->total == 0 ? 1 : (double)p->done / (double)p->total;
    char left[32] = "";
    if (rate > 0 && p->done < p->total) format_left((double)(p->total - p->done) / rate, left);
    char line[256];
    snprintf(line, sizeof line, "%3.0f%%  %llu of %llu %s  %.0f/s%s%s%s", share * 100,
            (unsigned long long)p->done, (unsigned long long)p->total, p->what, rate,
            left[0] == '\0' ? "" : "  ", left, left[0] == '\0' ? "" : " left");
    if (p->terminal) {
        char bar[BAR_CELLS + 1];
        uint32_t full = (uint32_t)(share * BAR_CELLS);
        memset(bar, '-', BAR_CELLS);
        memset(bar, '#', full > BAR_CELLS ? BAR_CELLS : full);
        bar[BAR_CELLS] = '\0';
        fprintf(stderr, "\r[%s] %s\033[K", bar, line);
    } else {
        fprintf(stderr, "%s\n", line);
    }
    fflush(stderr);
    p->drawn_ns = now;
}

void progress_start(struct progress *p, const char *what, uint64_t total)
{
    *p = (struct progress){ .what = what, .total = total, .terminal = isatty(STDERR_FILENO) != 0 };
    pthread_mutex_init(&p->lock, NULL);
    p->start_ns = p->drawn_ns = now_ns();
}

void progress_add(struct progress *p, uint64_t count)
{
    pthread_mutex_lock(&p->lock);
    p->done += count;
    uint64_t now = now_ns();
    if (now - p->drawn_ns >= (p->terminal ? REDRAW_NS : PLAIN_LINE_NS)) draw(p, now);
    pthread_mutex_unlock(&p->lock);
}

double progress_end(struct progress *p)
{
    uint64_t now = now_ns();
    pthread_mutex_lock(&p->lock);
    bool plain_drawn = p->drawn_ns != p->start_ns;
    if (p->terminal || plain_drawn) draw(p, now);
    if (p->terminal) fputc('\n', stderr);
    pthread_mutex_unlock(&p->lock);
    pthread_mutex_destroy(&p->lock);
    return (double)(now - p->start_ns) / 1e9;
}

/* What the benchmarks share: options, JSON lines, clocks, the machine's own floors.
 * A benchmark prints one JSON object per line on stdout and progress on stderr. */
#ifndef OMEN_BENCH_BENCH_H
#define OMEN_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/query/filter.h"

int bench_stream(int argc,
        char **argv); /* append stream: throughput to the last durable checkpoint, kill, reopen, check */
int bench_scan(int argc, char **argv);     /* exact scan against streaming read bandwidth */
int bench_index(int argc, char **argv);    /* vector indexes: build rate, recall, speed, beside hnswlib */
int bench_churn(int argc, char **argv);    /* a mutable index under change, against a fresh build */
int bench_disk(int argc, char **argv);     /* a disk graph, searched with little memory */
int bench_sketch(int argc, char **argv);   /* the tail sketch: insert rate, recall, beside an exact scan */
int bench_filter(int argc, char **argv);   /* payload index: build, size, filters as sets of rows */
int bench_tenants(int argc, char **argv);  /* one of many tenants against that tenant alone; sizes */
int bench_generate(int argc, char **argv); /* data sets with their truth, from a kind and a seed */
int bench_wire(int argc, char **argv);     /* a server over the wire: upserts, group commit, small searches */
int bench_cluster(int argc,
        char **argv); /* a cluster behind a router: replicated upserts, commit latency, searches, failover */

uint64_t bench_now_ns(void);
/* CPU time of this process so far. */
uint64_t bench_cpu_ns(void);
uint64_t bench_thread_cpu_ns(void);

/* "--name value"; NULL when absent. `i` steps over what was taken. Exits with 2 and usage on an unknown option. */
struct bench_option {
    const char *name; /* "--dim" */
    const char *help;
    uint64_t *number; /* one of the three, or a flag with a text that may follow it */
    const char **text;
    bool *flag;
};
void bench_parse(int argc, char **argv, const char *usage, const struct bench_option *options,
        size_t option_count);

/* A filter of JSON that is known to be right, in the arena. */
const struct filter *bench_filter_read(const char *json, struct arena *arena);

/* One JSON object, printed and flushed by json_line_end. Numbers are printed so that they parse. */
void json_line_begin(const char *bench);
void json_line_text(const char *key, const char *value);
void json_line_u64(const char *key, uint64_t value);
void json_line_f64(const char *key, double value);
void json_line_end(void); /* adds isa, commit */

/* Sequential write rate of the file system under `dir`, one file, 4 MiB writes, fdatasync at the end; bytes per second. */
double bench_disk_write_rate(const char *dir, uint64_t bytes);
/* Median time of a 4 KiB append + fdatasync in `dir`, one at a time: what a write costs without group commit; ns. */
uint64_t bench_disk_sync_ns(const char *dir, uint32_t count);
/* Read bandwidth over `bytes` of memory at `data`, one thread, best of `passes`; bytes per second. */
double bench_memory_read_rate(const void *data, uint64_t bytes, uint32_t passes);

/* Deterministic numbers for rows: row i's component j, in [-1, 1). */
static inline uint64_t bench_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}
void bench_row(uint64_t row, uint32_t dim, float *out);

int bench_compare_u64(const void *a, const void *b); /* for qsort */

#endif

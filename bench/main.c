/* omen-bench: one program, one subcommand per benchmark. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "bench/bench.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} benches[] = {
    { "stream", bench_stream,
            "append stream: vectors/s to the last durable checkpoint, then kill -9, reopen, check" },
    { "scan", bench_scan, "exact scan of data larger than the caches, against streaming read bandwidth" },
    { "index", bench_index,
            "a vector index over a data set: build rate, memory, recall, speed, beside hnswlib" },
    { "churn", bench_churn,
            "a mutable index whose points are replaced several times, against a fresh build" },
    { "disk", bench_disk, "a disk graph in a process that holds nothing else: rounds, blocks, latency" },
    { "sketch", bench_sketch, "the sketch of an unindexed tail: insert rate, recall, beside an exact scan" },
    { "filter", bench_filter, "the payload index of a segment: build, size, time of filters" },
    { "tenants", bench_tenants, "one of many tenants in a store against that tenant alone; memory and disk" },
    { "generate", bench_generate,
            "makes a data set with its truth: clustered, ip, ood; the same from the same seed" },
    { "wire", bench_wire, "a running server: durable upserts, group commit of many clients, small searches" },
    { "cluster", bench_cluster,
            "a cluster behind a router: replicated upserts, commit latency, searches with recall, failover" },
};

static int usage(FILE *out)
{
    fprintf(out,
            "usage: omen-bench BENCH [options]\n\n"
            "Prints one JSON object per line. BENCH --help lists its options.\n\n");
    for (size_t i = 0; i < sizeof benches / sizeof benches[0]; i++)
        fprintf(out, "  %-8s %s\n", benches[i].name, benches[i].help);
    return out == stdout ? 0 : 2;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) return usage(stderr);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) return usage(stdout);
    for (size_t i = 0; i < sizeof benches / sizeof benches[0]; i++)
        if (strcmp(argv[1], benches[i].name) == 0) return benches[i].run(argc - 1, argv + 1);
    fprintf(stderr, "omen-bench: unknown benchmark '%s'\n", argv[1]);
    return usage(stderr);
}

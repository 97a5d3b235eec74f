#!/bin/sh
# What `make bench` runs: the benchmark set, JSON lines under build/bench/ and on stdout.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
build=${OMEN_BUILD:-$top/build/release}
case $build in /*) ;; *) build=$top/$build ;; esac
out=$top/build/bench
mkdir -p "$out"
scratch=$(mktemp -d "$out/scratch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
for bench in stream scan wire; do
    echo "omen-bench $bench" >&2
    "$build/omen-bench" "$bench" --dir "$scratch/$bench" | tee "$out/$bench.jsonl"
done
echo "omen-bench cluster" >&2
mkdir "$scratch/data"
cp "$top"/deploy/demo/data/*.json "$top"/deploy/demo/data/*bin "$scratch/data/"
gzip -dc "$top/deploy/demo/data/payload.jsonl.gz" > "$scratch/data/payload.jsonl"
"$build/omen-bench" cluster --spawn --data "$scratch/data" --dir "$scratch/cluster" | tee "$out/cluster.jsonl"

# Indexes over made sets, and over those that OMEN_BENCH_DATA names (folders, by spaces), at most 400,000 rows of each.
echo "omen-bench index" >&2
: > "$out/index.jsonl"
rivals=
[ -e /usr/include/hnswlib/hnswlib.h ] && rivals=--rivals
index() {
    "$build/omen-bench" index --limit 400000 --rounds 5 "$@" | tee -a "$out/index.jsonl"
}
for kind in clustered ip ood; do
    "$build/omen-bench" generate $kind --count 200000 --out "$scratch/$kind"
done
for data in "$scratch/clustered" "$scratch/ip" "$scratch/ood" ${OMEN_BENCH_DATA:-}; do
    for kind in sealed hnsw; do
        index --data "$data" --index $kind $rivals --rival-cache "$scratch/rivals"
    done
done
"$build/omen-bench" tenants --data "$scratch/clustered" --tenants 200 --queries 100 --dir "$scratch/tenants" | tee "$out/tenants.jsonl"
"$build/omen-bench" tenants --data "$scratch/clustered" --tenants 10000 --size --dir "$scratch/tenants" | tee -a "$out/tenants.jsonl"
for filter in random:0.5 random:0.1 random:0.01 random:0.001 correlated:0.1 correlated:0.01 anti:0.1 anti:0.01; do
    index --data "$scratch/clustered" --index-file "$scratch/sealed" --queries 200 --filter $filter --plans
done

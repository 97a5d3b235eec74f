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

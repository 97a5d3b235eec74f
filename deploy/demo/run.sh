#!/bin/sh
# What `make demo` runs once everything is built: unpacks the data set and hands over to demo.py.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
build=${OMEN_BUILD:-$top/build/release}
case $build in /*) ;; *) build=$top/$build ;; esac
work=$top/build/demo
mkdir -p "$work/data"
cp "$here"/data/meta.json "$here"/data/*.f16bin "$here"/data/*.fbin "$here"/data/*.ibin "$work/data/"
gzip -dc "$here/data/payload.jsonl.gz" > "$work/data/payload.jsonl"
PYTHONPATH="$top/tools/python" exec /usr/bin/python3 "$here/demo.py" --build "$build" --work "$work" "$@"

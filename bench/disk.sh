#!/bin/sh
# A disk graph searched under a memory cgroup of a quarter of its file, the file's pages dropped before, reads past the
# page cache: bench/disk.sh FILE [options of omen-bench disk]. FILE is what `omen-bench disk --build --file FILE` wrote.
# Says why and ends with 0 where cgroups cannot be made.
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
build=${OMEN_BUILD:-$top/build/release}
[ $# -ge 1 ] || { echo "usage: disk.sh FILE [options of omen-bench disk]" >&2; exit 2; }
file=$1
shift
limit=$(($(stat -c %s "$file") / 4))
if [ -w /sys/fs/cgroup/memory/memory.limit_in_bytes ] || [ -e /sys/fs/cgroup/memory/memory.limit_in_bytes ]; then
    group=/sys/fs/cgroup/memory/omen-disk.$$ bound=memory.limit_in_bytes peak=memory.max_usage_in_bytes
elif grep -qw memory /sys/fs/cgroup/cgroup.subtree_control 2>/dev/null; then
    group=/sys/fs/cgroup/omen-disk.$$ bound=memory.max peak=memory.peak
else
    echo "disk.sh: skipped: no memory controller of cgroups here" >&2
    exit 0
fi
mkdir "$group" 2>/dev/null || { echo "disk.sh: skipped: no cgroup can be made here" >&2; exit 0; }
trap 'rmdir "$group"' EXIT
echo "$limit" > "$group/$bound"
dd if="$file" iflag=nocache count=0 2>/dev/null
status=0
sh -c 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"' sh "$group" "$build/omen-bench" disk --file "$file" "$@" || status=$?
echo "disk.sh: limit $limit bytes, at most $(cat "$group/$peak" 2>/dev/null || echo unknown) in use" >&2
exit $status

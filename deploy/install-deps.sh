#!/bin/sh
# Installs what OmenDB needs from Debian 12's own packages, and only what is missing.
#
#   deploy/install-deps.sh        to build, run and test
#   deploy/install-deps.sh dev    also clang and clang-format, for `make fuzz` and `make fmt`
#   deploy/install-deps.sh bench  also a C++ compiler and hnswlib's headers, for `omen-bench index --rivals`
#
# A no-op when all is there. As root it installs; as anybody else it prints the one command to run and fails.
# The mirror is whatever apt is configured with.
set -eu

packages='make gcc libc6-dev libnng-dev liblmdb-dev libmsgpack-dev libuv1-dev libyaml-dev libjansson-dev libxxhash-dev
    check python3 python3-numpy python3-msgpack'
case ${1-} in
    '') ;;
    dev) packages="$packages clang libclang-rt-14-dev clang-format" ;;
    bench) packages="$packages g++ libhnswlib-dev" ;;
    *) echo "usage: install-deps.sh [dev|bench]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "install-deps: not a Debian system; the build needs what these packages hold:" $packages >&2
    exit 0
fi

installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $packages 2>/dev/null || true)
missing=
for p in $packages; do
    case "
$installed
" in
        *"
$p installed
"*) ;;
        *) missing="$missing $p" ;;
    esac
done
missing=${missing# }
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    {
        echo "install-deps: packages are missing; run this once:"
        echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends $missing"
    } >&2
    exit 1
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
apt() {
    apt-get -q -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@" >>"$log" 2>&1 </dev/null
}
install() {
    apt install --no-install-recommends $missing
}

echo "install-deps: installing $missing"
# Package lists are fetched when there are none or when they proved too old; then one more try for a passing fault.
if apt-get -qq -s install --no-install-recommends $missing >/dev/null 2>&1 && install; then
    :
elif apt update && install; then
    :
elif sleep 5 && apt update && install; then
    :
else
    cat "$log" >&2
    echo "install-deps: apt-get could not install: $missing" >&2
    exit 1
fi
echo "install-deps: done"

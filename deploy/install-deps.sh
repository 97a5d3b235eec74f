#!/bin/sh
# Installs what OmenDB needs from Debian 12's own packages, and only what is missing.
#
#   deploy/install-deps.sh        to build, run and test
#   deploy/install-deps.sh dev    also clang and clang-format, for `make fuzz` and `make fmt`
#   deploy/install-deps.sh bench  also a C++ compiler, hnswlib and faiss, for `omen-bench index --rivals`
#
# A no-op when all is there. As root it installs; as anybody else it prints the commands to run and fails.
# The mirror is whatever apt is configured with. libraft comes from Debian's backports, because the one in
# bookworm can lose acknowledged writes (consensus/README.md); the suite is added, on the same mirror, when
# apt does not know it yet. Nothing else is taken from there.
set -eu

raft_version=0.22.1
suite=bookworm-backports
source_file=/etc/apt/sources.list.d/omendb-backports.sources
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

packages='make gcc libc6-dev libnng-dev libmbedtls-dev liblmdb-dev libmsgpack-dev libuv1-dev libyaml-dev libjansson-dev
    liburing-dev libxxhash-dev libroaring-dev check python3 python3-numpy python3-msgpack python3-yaml'
case ${1-} in
    '') ;;
    dev) packages="$packages clang libclang-rt-14-dev clang-format gcc-aarch64-linux-gnu qemu-user" ;;
    bench) packages="$packages g++ libhnswlib-dev libfaiss-dev" ;;
    *) echo "usage: install-deps.sh [dev|bench]" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "install-deps: not a Debian system; the build needs what these packages hold:" $packages \
        "and libraft-dev $raft_version or newer" >&2
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

# The older one may be installed already, so its being there says nothing.
raft_there() {
    pkg-config --atleast-version=$raft_version raft 2>/dev/null && return
    v=$(dpkg-query -W -f '${Version}' libraft-dev 2>/dev/null) && dpkg --compare-versions "$v" ge $raft_version
}
raft=
raft_there || raft=libraft-dev
[ -n "$missing$raft" ] || exit 0

# Where bookworm itself comes from; the security archive has no backports.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Codename: bookworm' 2>/dev/null |
        awk '$2 != "bookworm-updates" { print $1; exit }'
}
suite_known() {
    apt-get indextargets --format '$(RELEASE)' 2>/dev/null | grep -qx $suite
}
suite_stanza() {
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$1" $suite $keyring
}

if [ "$(id -u)" -ne 0 ]; then
    {
        echo "install-deps: packages are missing; run this once:"
        echo "    sudo sh deploy/install-deps.sh ${1-}"
        [ -z "$missing" ] || echo "which installs: $missing"
        [ -z "$raft" ] || echo "and $raft from $suite"
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
    [ -z "$missing" ] || apt install --no-install-recommends $missing
}
fail() {
    cat "$log" >&2
    echo "install-deps: $1" >&2
    exit 1
}

if [ -n "$missing" ]; then
    echo "install-deps: installing $missing"
    # Package lists are fetched when there are none or when they proved too old; then one more try for a passing fault.
    if apt-get -qq -s install --no-install-recommends $missing >/dev/null 2>&1 && install; then
        :
    elif apt update && install; then
        :
    elif sleep 5 && apt update && install; then
        :
    else
        fail "apt-get could not install: $missing"
    fi
fi

# The suite is named for the one package only: backports has a low priority, and keeps it.
install_raft() {
    if suite_known; then apt install --no-install-recommends -t $suite $raft
    else apt install --no-install-recommends $raft; fi
    raft_there
}
add_suite() {
    suite_known && return
    uri=$(mirror)
    [ -n "$uri" ] || return
    suite_stanza "$uri" >$source_file
    chmod 644 $source_file
}
if [ -n "$raft" ]; then
    echo "install-deps: installing $raft from $suite"
    # On a later Debian the ordinary suite has it.
    if suite_known && install_raft; then
        :
    elif apt update && add_suite && apt update && install_raft; then
        :
    elif sleep 5 && apt update && install_raft; then
        :
    else
        fail "apt-get could not install $raft $raft_version or newer"
    fi
fi
echo "install-deps: done"

#!/usr/bin/python3
"""Arrows between rooms: who may include whom, by which door, and where each library's header may enter.

A new arrow is a decision about the design: change it here together with its reason in the README of the room.
"""

import fnmatch
import os
import re

from _tree import c_files, complain, finish, read

ROOMS = {"common", "storage", "consensus", "router", "node", "tools", "tests", "bench"}

# room -> rooms it may include besides itself
ARROWS = {
    "common": set(),
    "storage": {"common"},
    "consensus": {"common", "storage"},
    "node": {"common", "storage", "consensus"},
    "router": {"common"},
    "tools": {"common"},
    "tests": ROOMS,
    "bench": ROOMS,
}

# What a room shows to the others; a room not named here shows everything.
DOORS = {
    "storage": {"storage/shard_store.h", "storage/shard_index.h", "storage/shard_lease.h", "storage/entry.h", "storage/kernel/kernel.h"},
    "consensus": {"consensus/replica.h", "consensus/node_log.h"},
    "router": {"router/router.h"},
}
SEE_EVERYTHING = {"tests", "bench"}

# Exceptions by name: (file, header) patterns.
EXCEPTIONS = [
    ("node/standalone.c", "router/router.h"),
    ("node/main.c", "router/router.h"),
    ("tools/inspect/*", "storage/*"),
]

# header pattern -> files that may include it
HOMES = {
    "lmdb.h": ["storage/meta/*"],
    "msgpack.h": ["common/wire/*"],
    "msgpack/*": ["common/wire/*"],
    "nng/*": ["common/net/*"],
    "raft.h": ["consensus/*"],
    "raft/*": ["consensus/*"],
    "uv.h": ["consensus/*"],
    "yaml.h": ["common/config*", "common/json*"],
    "jansson.h": ["common/config*", "common/json*"],
    "xxhash.h": ["common/hash.*"],
    "roaring/*": ["storage/payload/*"],
    "check.h": ["tests/*"],
}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"\n]+)[>"]', re.M)


def excepted(path, header):
    return any(fnmatch.fnmatch(path, p) and fnmatch.fnmatch(header, h) for p, h in EXCEPTIONS)


def check_ours(path, line, header):
    room, target = path.split("/")[0], header.split("/")[0]
    if target not in ROOMS or "/" not in header:
        complain(path, line, '"%s": write our headers from the top of the tree' % header)
    elif not os.path.exists(header):
        complain(path, line, '"%s" does not exist' % header)
    elif path == "tools/client/omen.h":
        complain(path, line, '"%s": omen.h is installed alone and may include system headers only' % header)
    elif room == target or excepted(path, header):
        pass
    elif target not in ARROWS[room]:
        complain(path, line, '"%s": %s/ may not include %s/' % (header, room, target))
    elif room not in SEE_EVERYTHING and header not in DOORS.get(target, {header}):
        complain(path, line, '"%s" is inside %s/; its doors are %s' % (header, target, " ".join(sorted(DOORS[target]))))


def check_library(path, line, header):
    for pattern, homes in HOMES.items():
        if fnmatch.fnmatch(header, pattern) and not any(fnmatch.fnmatch(path, home) for home in homes):
            complain(path, line, "<%s> enters only by %s" % (header, " ".join(homes)))


for path in c_files():
    text = read(path) or ""
    for match in INCLUDE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        quote, header = match.groups()
        if quote == '"' and header != "check.h":
            check_ours(path, line, header)
        else:
            check_library(path, line, header)
            if header.split("/")[0] in ROOMS and "/" in header:
                complain(path, line, '<%s>: our headers are included with "..."' % header)
finish()

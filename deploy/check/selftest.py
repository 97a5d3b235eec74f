#!/usr/bin/python3
"""The checks themselves: each finds what it is there to find, and is content with a clean tree."""

import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))

CLEAN = {
    "common/a.h": "#ifndef A_H\n#define A_H\n#include <stdint.h>\nuint32_t a(uint32_t x);\n#endif\n",
    "storage/shard_store.h": '#ifndef S_H\n#define S_H\n#include "common/a.h"\n#endif\n',
    "storage/segment/segment.h": "#ifndef G_H\n#define G_H\nint segment(void);\n#endif\n",
    "storage/meta/meta.c": '#include <lmdb.h>\n#include "storage/segment/segment.h"\n/* time() and rand( in words */\n',
    "router/router.h": "#ifndef R_H\n#define R_H\n#endif\n",
    "node/main.c": '#include "router/router.h"\n#include "storage/shard_store.h"\n',
    "tests/unit/test_a.c": '#include <check.h>\n#include "storage/segment/segment.h"\n',
    "deploy/a.sh": "#!/bin/sh\nset -eu\necho a\n",
    "deploy/omendb.yaml": "node:\n  listen: ''\n",
    "deploy/compose.yaml": "services:\n  a: {image: a, command: omen-node, environment: {OMENDB_NODE_LISTEN: x}}\n",
    "deploy/kubernetes/a.yaml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  selector: {matchLabels: {app: a}}\n"
                                "  template:\n    metadata: {labels: {app: a}}\n    spec: {containers: [{name: a}]}\n",
    "tests/a.py": "print(1)\n",
}

# script, file, text, what the complaint must name
WRONG = [
    ("rooms", "common/b.c", '#include "storage/shard_store.h"\n', "common/ may not include storage/"),
    ("rooms", "router/b.c", '#include "storage/shard_store.h"\n', "router/ may not include storage/"),
    ("rooms", "storage/b.c", '#include "node/n.h"\n', "does not exist"),
    ("rooms", "node/b.c", '#include "storage/segment/segment.h"\n', "is inside storage/"),
    ("rooms", "node/b.c", '#include "router/router.h"\n', "node/ may not include router/"),
    ("rooms", "storage/segment/b.c", '#include "segment.h"\n', "from the top"),
    ("rooms", "storage/b.c", "#include <lmdb.h>\n", "enters only by storage/meta/*"),
    ("rooms", "node/b.c", "  #  include <nng/nng.h>\n", "enters only by common/net/*"),
    ("rooms", "tools/client/omen.h", '#include "common/a.h"\n', "installed alone"),
    ("headers", "common/b.h", "#ifndef B_H\n#define B_H\nuint32_t b(void);\n#endif\n", "common/b.h:1"),
    ("headers", "common/b.h", "struct b { int v; };\n", "redefinition"),
    ("format", "common/b.c", "int\tb;\n", "a tab"),
    ("format", "common/b.c", "int b; \n", "blanks at the end"),
    ("format", "common/b.c", "int b;", "no newline"),
    ("format", "common/b.c", "/* %s */\n" % ("b" * 120), "126 columns"),
    ("format", "common/b.c", "int %s;\n" % ("b" * 106), "111 columns of code"),
    ("tree", "common/b.c", "int b;\n" * 1001, "1001 lines"),
    ("tree", "node/b.c", "/* TO" "DO: all of it */\n", "finish it"),
    ("tree", "deploy/b.sh", "cd /wo" "rk/main\n", "names one machine"),
    ("tree", "deploy/b.md", "deb http://de" "b.debian.org/debian\n", "names one machine"),
    ("tree", "bench/big.bin", "0" * ((8 << 20) + 1), "bytes, at most"),
    ("pure", "storage/index/b.c", "long b(void) { return time(0); }\n", "a clock"),
    ("pure", "storage/b.c", "int b = rand ();\n", "a random number"),
    ("pure", "storage/b.c", "int b = socket(1, 2, 3);\n", "a socket"),
    ("manifests", "deploy/b.yaml", "a: [1,\n", "deploy/b.yaml:2"),
    ("manifests", "deploy/b.yaml", "services:\n  a: {image: a, depends_on: [b]}\n", "which is no service"),
    ("manifests", "deploy/b.yaml", "services:\n  a: {image: a, command: omen-node, environment: {OMENDB_NODE_LISTN: x}}\n",
     "OMENDB_NODE_LISTN is no key"),
    ("manifests", "deploy/kubernetes/b.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {selector: {app: b}}\n",
     "selects no pod"),
    ("manifests", "deploy/b.service", "[Unit]\n[Service]\n[Install]\n", "no ExecStart"),
    ("scripts", "deploy/b.sh", "#!/bin/sh\nif true; then\n", "deploy/b.sh:1"),
    ("scripts", "tests/b.py", "def b(:\n", "tests/b.py:1"),
]


def write(root, path, text):
    path = os.path.join(root, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, 0o755)


def run(script, root):
    command = [sys.executable, "-B", os.path.join(HERE, script + ".py")]
    result = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return result.returncode, result.stdout


failures = 0
with tempfile.TemporaryDirectory() as root:
    for path, text in CLEAN.items():
        write(root, path, text)
    style = os.path.join(HERE, "..", "..", ".clang-format")
    shutil.copy(style, root)
    for script in sorted({script for script, _, _, _ in WRONG}):
        code, output = run(script, root)
        if code != 0:
            failures += 1
            print("%s.py complains about a clean tree:\n%s" % (script, output))
    for script, path, text, complaint in WRONG:
        write(root, path, text)
        code, output = run(script, root)
        if code != 1 or complaint not in output:
            failures += 1
            print("%s.py: %s: expected '%s', got exit code %d:\n%s" % (script, path, complaint, code, output))
        os.unlink(os.path.join(root, path))
sys.exit(1 if failures else 0)

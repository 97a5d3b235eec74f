#!/usr/bin/python3
"""Every header compiles alone and twice: it includes what it needs and is guarded."""

import concurrent.futures
import os
import subprocess

from _tree import c_files, complain, finish

FLAGS = "-std=gnu11 -fsyntax-only -D_GNU_SOURCE -I. -Wall -Wextra -Wno-unused-parameter -Werror -x c -".split()


def compile_alone(path):
    source = '#include "%s"\n#include "%s"\n' % (path, path)
    command = [os.environ.get("CC", "gcc")] + FLAGS
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    return path, result.returncode, result.stderr


headers = [path for path in c_files() if path.endswith(".h")]
with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
    for path, code, stderr in pool.map(compile_alone, headers):
        if code != 0 and os.path.exists(path):
            complain(path, 1, "does not compile alone\n" + stderr.rstrip())
finish()

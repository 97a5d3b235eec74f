#!/usr/bin/python3
"""The look of the sources: blanks, line length, and .clang-format where clang-format is installed.

clang-format does not touch comments and literals (ReflowComments, BreakStringLiterals: false), so code is held to its
limit with those blanked out, and prose has a wider limit of its own: the verdict is the same with and without it.
"""

import concurrent.futures
import shutil
import subprocess

from _tree import c_files, code_only, complain, files, finish, read

CODE_COLUMNS_MAX = 110
PROSE_COLUMNS_MAX = 125
TEXT = (".c", ".h", ".py", ".sh", ".yaml", ".yml", ".json", "Makefile", ".gitignore", ".clang-format", ".ci/run")

for path in files(*TEXT):
    text = read(path)
    if not text:
        continue
    if not text.endswith("\n"):
        complain(path, text.count("\n") + 1, "no newline at the end")
    if "\r" in text:
        complain(path, 1, "carriage returns")
    is_c = path.endswith((".c", ".h"))
    lines = text.split("\n")
    code = code_only(text).split("\n") if is_c else lines
    for number, line in enumerate(lines, 1):
        if line != line.rstrip():
            complain(path, number, "blanks at the end of the line")
        if is_c and "\t" in line:
            complain(path, number, "a tab; indent with 4 spaces")
        if is_c and len(code[number - 1].rstrip()) > CODE_COLUMNS_MAX:
            complain(path, number, "%d columns of code, at most %d" % (len(line), CODE_COLUMNS_MAX))
        elif is_c and len(line) > PROSE_COLUMNS_MAX:
            complain(path, number, "%d columns, at most %d" % (len(line), PROSE_COLUMNS_MAX))

if shutil.which("clang-format") is None:
    print("note: clang-format is not installed (deploy/install-deps.sh dev); only blanks and lengths were checked")
else:

    def dry_run(batch):
        command = ["clang-format", "--dry-run", "-Werror", "--ferror-limit=3"] + batch
        result = subprocess.run(command, capture_output=True, text=True)
        return batch, result.returncode, result.stderr

    sources = c_files()
    batches = [sources[i : i + 16] for i in range(0, len(sources), 16)]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        for batch, code, stderr in pool.map(dry_run, batches):
            found = [line.split(": error: ")[0].rsplit(":", 2) for line in stderr.splitlines() if ": error: " in line]
            for path, line in dict((where[0], where[1]) for where in reversed(found)).items():
                complain(path, int(line), "not as clang-format has it: make fmt FILES=%s" % path)
            if code != 0 and not found:
                complain(batch[0], 1, stderr.strip())
finish()

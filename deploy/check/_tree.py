"""What the scripts of `make check` share: the files of the working tree, C without comments, and the verdict.

A script checks the tree in its working directory, prints `path:line: complaint` and exits with 1 if there was one.
"""

import os
import re
import subprocess
import sys

SKIPPED_FOLDERS = {".git", "build", "__pycache__"}
C_ROOMS = ("common", "storage", "consensus", "router", "node", "tools", "tests", "bench")


def files(*suffixes):
    """Paths of tracked and new files, not of ignored ones; all, or those with one of the suffixes."""
    listing = None
    if os.path.exists(".git"):
        git = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        try:
            listing = subprocess.run(git, capture_output=True, check=True).stdout.decode().split("\0")
        except (OSError, subprocess.CalledProcessError):
            pass  # no git, or not ours to ask: look for ourselves
    if listing is None:
        listing = []
        for folder, folders, names in os.walk("."):
            folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS]
            listing += [os.path.relpath(os.path.join(folder, name)) for name in names]
    found = {path for path in listing if path and os.path.isfile(path) and not os.path.islink(path)}
    return sorted(path for path in found if not suffixes or path.endswith(suffixes))


def c_files():
    return [path for path in files(".c", ".h") if path.split("/")[0] in C_ROOMS]


def read(path):
    """Text of a file, or None when it is not text (or gone since it was listed)."""
    try:
        with open(path, "rb") as f:
            data = f.read()
    except FileNotFoundError:
        return None
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


COMMENT_OR_STRING = re.compile(r"""/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.S)


def code_only(text):
    """C text with comments and literals blanked out, lines kept."""
    return COMMENT_OR_STRING.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


complaints = []


def complain(path, line, text):
    complaints.append("%s:%d: %s" % (path, line, text))


def finish():
    for line in complaints:
        print(line)
    sys.exit(1 if complaints else 0)

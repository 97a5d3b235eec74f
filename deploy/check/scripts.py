#!/usr/bin/python3
"""Shell scripts parse and Python files compile; scripts are executable and say by what."""

import os
import subprocess

from _tree import complain, files, finish, read

for path in files():
    text = read(path)
    if text is None:
        continue
    first = text.split("\n", 1)[0]
    if path.endswith(".py"):
        try:
            compile(text, path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as e:
            complain(path, getattr(e, "lineno", None) or 1, "%s" % e)
    elif path.endswith(".sh") or (first.startswith("#!") and first.endswith(("sh", "sh -e", "sh -eu"))):
        shell = "bash" if "bash" in first else "sh"
        result = subprocess.run([shell, "-n", path], capture_output=True, text=True)
        if result.returncode != 0:
            complain(path, 1, result.stderr.strip())
        if not first.startswith("#!"):
            complain(path, 1, "no #! line")
    if first.startswith("#!") and path.endswith(".sh") and not os.access(path, os.X_OK):
        complain(path, 1, "has a #! line but is not executable")
finish()

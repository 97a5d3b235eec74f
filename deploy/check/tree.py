#!/usr/bin/python3
"""What may lie in the tree: sizes, marks of unfinished work, paths and hosts of one machine."""

import os
import re

from _tree import complain, files, finish, read

FILE_BYTES_MAX = 8 << 20
SOURCE_LINES_MAX = 1000

# Spelled so that this file does not match itself.
MARKS = re.compile(r"\b(?:T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")
MACHINE = re.compile(
    r"(?<![\w.~$}/-])/(?:[w]ork|[r]oot|[U]sers|[h]ome)/[\w.]"
    r"|\b(?:[d]eb|[f]tp|[s]ecurity|[a]rchive)\.(?:debian|ubuntu)\.(?:org|com)\b"
)

for path in files():
    size = os.path.getsize(path)
    if size > FILE_BYTES_MAX:
        complain(path, 1, "%d bytes, at most %d" % (size, FILE_BYTES_MAX))
        continue
    text = read(path)
    if text is None:
        continue
    lines = text.split("\n")
    if path.endswith((".c", ".h")) and len(lines) - 1 > SOURCE_LINES_MAX:
        complain(path, SOURCE_LINES_MAX + 1, "%d lines, at most %d" % (len(lines) - 1, SOURCE_LINES_MAX))
    if path.endswith((".jsonl", ".json", ".csv", ".txt")) or path == "LICENSE":
        continue  # data: other people's words
    for number, line in enumerate(lines, 1):
        mark = MARKS.search(line)
        if mark:
            complain(path, number, "%s: finish it, or open an issue" % mark.group())
        machine = MACHINE.search(line)
        if machine:
            complain(path, number, "%s names one machine" % machine.group())
finish()

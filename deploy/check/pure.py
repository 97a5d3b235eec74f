#!/usr/bin/python3
"""storage/ never reads a clock, draws a random number or opens a socket: time, rng and files come in as arguments.

That is what lets the simulator replay a seed.
"""

import re

from _tree import code_only, complain, files, finish, read

FORBIDDEN = {
    "a clock": "time clock clock_gettime clock_getres gettimeofday ftime timespec_get clock_system __rdtsc _rdtsc",
    "a random number": "rand srand rand_r random srandom random_r drand48 lrand48 mrand48 srand48 arc4random"
    " arc4random_buf getrandom getentropy _rdrand32_step _rdrand64_step",
    "a socket": "socket socketpair connect bind listen accept accept4 getaddrinfo",
}
WHAT = {name: what for what, names in FORBIDDEN.items() for name in names.split()}
CALL = re.compile(r"(?<![\w.>])(%s)\s*\(" % "|".join(sorted(WHAT)))
DEVICE = re.compile(r'"/dev/u?random"')

for path in files(".c", ".h"):
    if not path.startswith("storage/"):
        continue
    text = read(path) or ""
    code = code_only(text)
    for match in CALL.finditer(code):
        name = match.group(1)
        complain(path, code.count("\n", 0, match.start()) + 1, "%s(): storage/ takes %s as an argument" % (name, WHAT[name]))
    for match in DEVICE.finditer(text):
        complain(path, text.count("\n", 0, match.start()) + 1, "storage/ takes a random number as an argument")
finish()

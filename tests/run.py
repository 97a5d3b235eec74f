#!/usr/bin/python3
"""Runs the tests and counts them: Check executables, Python unittests, fuzz corpora and the scripts of `make check`.

Suites are found, never listed: KIND is a folder under tests/ whose test_*.c became an executable in the build
directory and whose test_*.py are unittests; `check` is deploy/check/*.py. One line per suite, the output of those
that failed, and at the very end `N passed, N failed` (`, N skipped`).

A suite fails as a whole, counted as one failed test, when it crashes, hangs, runs no test at all or leaves a
process behind. Every suite gets its own TMPDIR, removed afterwards (OMEN_KEEP_TMP=1 keeps it), and its own session,
so that whatever it started can be found and ended.
"""

import argparse
import concurrent.futures
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHON = "/usr/bin/python3"
KINDS = ["check", "unit", "property", "golden", "recall", "sim", "fuzz", "integration", "fault"]
SERIAL_KINDS = {"integration", "fault"}  # they start servers or fill disks
OUTPUT_LINES_MAX = 200
LEFT_BEHIND_GRACE_S = 3.0

CHECK_SUMMARY = re.compile(r"^\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)", re.M)
UNITTEST_RAN = re.compile(r"^Ran (\d+) tests? in ", re.M)
UNITTEST_RESULT = re.compile(r"^(OK|FAILED)(?: \((.*)\))?$", re.M)
SKIPPED_EXIT_CODE = 77


class Suite:
    def __init__(self, kind, name, form, argv, env=None):
        self.kind = kind
        self.name = name
        self.form = form  # check_exe, unittest, or single: one test, passed when it exits with 0
        self.argv = argv
        self.env = env or {}


class Result:
    def __init__(self):
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.notes = []
        self.output = ""
        self.seconds = 0.0

    def fail(self, note):
        self.failed += 1
        self.notes.append(note)


def find_suites(kinds, build):
    suites = []
    for kind in kinds:
        if kind == "check":
            for path in sorted(glob.glob("deploy/check/[a-z]*.py")):
                suites.append(Suite(kind, "check/" + stem(path), "single", [PYTHON, path]))
            continue
        pattern = "fuzz_*.c" if kind == "fuzz" else "test_*.c"
        for source in sorted(glob.glob(os.path.join("tests", kind, pattern))):
            exe = os.path.join(build, source[:-2])
            form = "single" if kind == "fuzz" else "check_exe"
            suites.append(Suite(kind, "%s/%s" % (kind, stem(source)), form, [exe]))
        for path in sorted(glob.glob(os.path.join("tests", kind, "test_*.py"))):
            folder = os.path.dirname(path)
            env = {"PYTHONPATH": os.pathsep.join(["tools/python", folder])}
            argv = [PYTHON, "-m", "unittest", "-v", stem(path)]
            suites.append(Suite(kind, "%s/%s.py" % (kind, stem(path)), "unittest", argv, env))
    return suites


def stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def session_pids(session):
    """Processes of a session. Check puts each test into a process group of its own, so groups do not do."""
    pids = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % entry, "rb") as f:
                fields = f.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
            pids.append(int(entry))
    return pids


def kill_session(session):
    """Ends what is left of a session; returns the command names of what had to be killed."""
    names = []
    for _ in range(20):  # a process may fork while we look
        pids = session_pids(session)
        if not pids:
            break
        for pid in pids:
            try:
                with open("/proc/%d/comm" % pid) as f:
                    names.append(f.read().strip())
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.05)
    return names


def wait_for_session(session, seconds):
    deadline = time.monotonic() + seconds
    while session_pids(session) and time.monotonic() < deadline:
        time.sleep(0.05)


def environment(suite, options, tmp):
    env = dict(os.environ)
    for name in [name for name in env if name.startswith("OMENDB_")]:
        del env[name]  # the caller's configuration is not the test's
    slow = 5 if options.flavour in ("asan", "tsan") else 1
    env.update(
        OMEN_BUILD=options.build,
        OMEN_FLAVOUR=options.flavour,
        TMPDIR=tmp,
        CK_VERBOSITY="normal",
        PYTHONDONTWRITEBYTECODE="1",
        LC_ALL="C.UTF-8",
    )
    env.setdefault("CK_DEFAULT_TIMEOUT", str(60 * slow))
    # Settings of the caller come last and win.
    defaults = {
        "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1:detect_leaks=1",
        "LSAN_OPTIONS": "print_suppressions=0" + suppressions("lsan"),
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1" + suppressions("tsan"),
    }
    for name, value in defaults.items():
        env[name] = value + (":" + env[name] if env.get(name) else "")
    env.update(suite.env)
    return env


def fixed_addresses():
    """TSan of gcc 12 gives up where the kernel spreads mappings widely; without randomisation it always runs."""
    command = ["setarch", "-R"]
    try:
        works = subprocess.run(command + ["true"], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        works = False
    return command if works else []


def suppressions(sanitizer):
    path = os.path.join(ROOT, "deploy", "check", sanitizer + ".supp")
    return ":suppressions=" + path if os.path.exists(path) else ""


def count(suite, code, text, result):
    """Reads the suite's own summary into `result`."""
    before = result.failed
    if code == SKIPPED_EXIT_CODE and suite.form != "unittest":
        result.skipped += 1
        return
    if suite.form == "single":
        if code == 0:
            result.passed += 1
    elif suite.form == "check_exe":
        checks = 0
        for total, failures, errors in CHECK_SUMMARY.findall(text):
            bad = int(failures) + int(errors)
            checks += int(total)
            result.passed += int(total) - bad
            result.failed += bad
        if checks == 0 and code == 0:
            result.fail("ran no test")
    else:
        ran = sum(int(n) for n in UNITTEST_RAN.findall(text))
        bad = skipped = 0
        for _, details in UNITTEST_RESULT.findall(text)[-1:]:
            for what, n in re.findall(r"([a-z ]+)=(\d+)", details or ""):
                what = what.strip()
                if what in ("failures", "errors", "unexpected successes"):
                    bad += int(n)
                elif what == "skipped":
                    skipped += int(n)
        result.failed += bad
        result.skipped += skipped
        result.passed += max(0, ran - bad - skipped)
        if ran == 0 and skipped == 0 and code == 0:
            result.fail("ran no test")
    if code != 0 and result.failed == before:
        result.fail("killed by " + signal.Signals(-code).name if code < 0 else "exit code %d" % code)


running = set()
running_lock = threading.Lock()
stopping = False


def run(suite, options):
    result = Result()
    if not os.path.exists(suite.argv[0]):
        result.fail("not built: " + suite.argv[0])
        return result
    started = time.monotonic()
    tmp = tempfile.mkdtemp(prefix="omen-")
    try:
        with tempfile.TemporaryFile() as out:
            with running_lock:
                if stopping:
                    result.fail("not run")
                    return result
                process = subprocess.Popen(
                    options.prefix + suite.argv,
                    cwd=ROOT,
                    env=environment(suite, options, tmp),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                running.add(process.pid)
            try:
                code = process.wait(timeout=options.timeout)
            except subprocess.TimeoutExpired:
                code = None
            if code is None:
                # Politely first: unittest and Check then still print how far they came.
                for sig in (signal.SIGINT, signal.SIGTERM):
                    process.send_signal(sig)
                    try:
                        process.wait(timeout=5)
                        break
                    except subprocess.TimeoutExpired:
                        pass
                kill_session(process.pid)
                process.wait()
                result.fail("no end after %d s" % options.timeout)
            else:
                wait_for_session(process.pid, LEFT_BEHIND_GRACE_S)
                left = kill_session(process.pid)
                if left:
                    result.fail("left behind: " + " ".join(sorted(set(left))))
            with running_lock:
                running.discard(process.pid)
            out.seek(0)
            result.output = out.read().decode("utf-8", "replace")
        if code is not None:
            count(suite, code, result.output, result)
    finally:
        if os.environ.get("OMEN_KEEP_TMP") != "1":
            shutil.rmtree(tmp, ignore_errors=True)
    result.seconds = time.monotonic() - started
    return result


print_lock = threading.Lock()


def report(suite, result):
    parts = ["%d passed" % result.passed]
    if result.failed:
        parts.append("%d failed" % result.failed)
    if result.skipped:
        parts.append("%d skipped" % result.skipped)
    word = "FAIL" if result.failed else "ok"
    notes = " (" + "; ".join(result.notes) + ")" if result.notes else ""
    with print_lock:
        print("%-4s %-44s %7.2f s  %s%s" % (word, suite.name, result.seconds, ", ".join(parts), notes))
        if result.failed:
            lines = result.output.splitlines()
            if len(lines) > OUTPUT_LINES_MAX:
                print("     | ... %d lines left out" % (len(lines) - OUTPUT_LINES_MAX))
            for line in lines[-OUTPUT_LINES_MAX:]:
                print("     | " + line)
        sys.stdout.flush()


def stop(signum, frame):
    global stopping
    stopping = True
    for pid in list(running):
        kill_session(pid)
    os._exit(128 + signum)


def main():
    parser = argparse.ArgumentParser(description="run the tests and count them")
    parser.add_argument("--build", default=os.environ.get("OMEN_BUILD", "build/release"), help="build directory")
    parser.add_argument("--flavour", default=os.environ.get("OMEN_FLAVOUR", "release"))
    parser.add_argument("--kinds", default="check,unit,property,golden,recall,sim,fuzz,integration", help=",".join(KINDS))
    parser.add_argument("--only", default="", help="regular expression on the suite's name, e.g. unit/test_hnsw")
    parser.add_argument("--timeout", type=int, help="seconds for one suite (300, under a sanitizer 900)")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.timeout is None:
        options.timeout = 900 if options.flavour in ("asan", "tsan") else 300
    kinds = [kind for kind in options.kinds.split(",") if kind]
    for kind in kinds:
        if kind not in KINDS:
            parser.error("unknown kind %s, known are %s" % (kind, " ".join(KINDS)))

    os.chdir(ROOT)
    options.build = os.path.abspath(options.build)
    options.prefix = fixed_addresses() if options.flavour == "tsan" else []
    suites = [s for s in find_suites(kinds, options.build) if re.search(options.only, s.name)]
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, stop)

    results = []

    def run_and_report(suite):
        result = run(suite, options)
        report(suite, result)
        results.append(result)

    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, options.jobs)) as pool:
        for future in [pool.submit(run_and_report, s) for s in suites if s.kind not in SERIAL_KINDS]:
            future.result()
    for suite in suites:
        if suite.kind in SERIAL_KINDS:
            run_and_report(suite)

    passed, failed, skipped = (sum(getattr(r, f) for r in results) for f in ("passed", "failed", "skipped"))
    if not suites:
        print("no suite matches")
        failed = 1
    sys.stdout.flush()
    print("%d passed, %d failed%s" % (passed, failed, ", %d skipped" % skipped if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

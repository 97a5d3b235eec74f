#!/usr/bin/python3
"""`make demo`: a real server, real data, real searches, and kill -9 in the middle of writing.

Starts omen-node --standalone on a free loopback port, loads 20,000 Debian packages with omenctl, shows searches with and
without filters, measures recall against exact truth, then kills the server with -9 while a separate client process
writes, and proves that every acknowledged write is there, once. Ends everything it started.
Writes report.json into the working directory; exit code 0 only when all of it held.
"""
import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import omendb
from writer import make_point

K = 10
TIE = 1 + 1e-5  # a hit counts when its distance is at most the k-th true distance times this
ACKS_BEFORE, ACKS_AFTER = 1_000, 1_000
IN_FLIGHT = 128
WRITER_DIM = 128


class Server:
    """omen-node as a child process."""

    def __init__(self, build: Path, work: Path):
        self.binary, self.work = build / "omen-node", work
        self.data, self.ready_file = work / "node", work / "ready.json"
        self.process = None
        self.listen, self.http = "tcp://127.0.0.1:0", "http://127.0.0.1:0"

    def start(self) -> float:
        """Start and wait until it serves; the seconds that took."""
        self.ready_file.unlink(missing_ok=True)
        begin = time.monotonic()
        log = open(self.work / "node.log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "--standalone", "--data", self.data, "--listen", self.listen, "--http", self.http,
             "--ready-file", self.ready_file], stdout=log, stderr=log)
        log.close()
        while not self.ready_file.exists():
            if self.process.poll() is not None or time.monotonic() - begin > 60:
                raise SystemExit(f"omen-node did not start; its log is {self.work / 'node.log'}")
            time.sleep(0.005)
        ready = json.loads(self.ready_file.read_text())
        self.listen, self.http = ready["listen"], ready["http"]  # keep the port over restarts
        return time.monotonic() - begin

    def kill9(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def say(text=""):
    print(text, flush=True)


def headline(text):
    say(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}")


def omenctl(build, server, *args, show=True, capture=False):
    """Run omenctl as a person would, showing the command line."""
    if show:
        say("$ omenctl " + " ".join(a if a.isalnum() or a.startswith("-") else f"'{a}'" if " " in a or "{" in a else a
                                    for a in map(str, args)))
    done = subprocess.run([build / "omenctl", "--endpoint", server.listen, *map(str, args)],
                          stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode != 0:
        raise SystemExit(f"omenctl failed with exit code {done.returncode}")
    return done.stdout


def load_vectors(work):
    base = np.fromfile(work / "data/base.f16bin", dtype="<f2", offset=8).reshape(-1, 128).astype(np.float64)
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    queries = np.fromfile(work / "data/query.fbin", dtype="<f4", offset=8).reshape(-1, 128)
    payload = [json.loads(line) for line in open(work / "data/payload.jsonl", encoding="utf-8")]
    return base, queries, payload


def recall(collection, queries, distances, filter=None):
    """Recall@10 by distance with ties, and each search's time. `distances` [query][row] are exact, inf = filtered out."""
    hits = wanted = 0
    seconds = []
    for query, row in zip(queries, distances):
        begin = time.perf_counter()
        found = collection.search(query, k=K, filter=filter, with_payload=False)
        seconds.append(time.perf_counter() - begin)
        k = min(K, int(np.isfinite(row).sum()))
        if k == 0:
            continue
        limit = np.partition(row, k - 1)[k - 1] * TIE + 1e-9
        hits += sum(row[int(i)] <= limit for i in found.ids[:k])
        wanted += k
    return hits / wanted, np.array(seconds)


def measure_searches(collection, base, queries, payload, report):
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    distances = 1 - unit.astype(np.float64) @ base.T
    collection.search(queries[0], k=K)  # connect and warm
    report["recall_at_10"], seconds = recall(collection, queries, distances)
    report["search_p50_ms"] = round(float(np.percentile(seconds, 50)) * 1e3, 3)
    report["search_p99_ms"] = round(float(np.percentile(seconds, 99)) * 1e3, 3)

    sections = np.array([p["section"] for p in payload])
    recalls = []
    for section in ("httpd", "python", "libs"):
        masked = np.where(sections == section, distances, np.inf)
        condition = {"must": [{"key": "section", "match": {"value": section}}]}
        recalls.append(recall(collection, queries[:60], masked[:60], condition)[0])
    report["filtered_recall_at_10"] = min(recalls)
    say(f"  recall@10            {report['recall_at_10']:.4f}   (exact search, {len(queries)} queries, ties by distance)")
    say(f"  recall@10, filtered  {report['filtered_recall_at_10']:.4f}   (lowest of three sections)")
    say(f"  search time          p50 {report['search_p50_ms']} ms, p99 {report['search_p99_ms']} ms"
        "   (Python client, one at a time)")


def read_acks(path):
    """The acknowledgement log: id -> sequence. Only whole lines count: the last may be cut."""
    acks, doubled = {}, 0
    if not path.exists():
        return acks, doubled
    for line in path.read_text().split("\n")[:-1]:
        point_id, sequence, _ = map(int, line.split())
        doubled += point_id in acks
        acks[point_id] = sequence
    return acks, doubled


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_acks(path, count, writer):
    deadline = time.monotonic() + 60
    while count_lines(path) < count:
        if writer.poll() is not None:
            raise SystemExit("the writer ended early")
        if time.monotonic() > deadline:
            raise SystemExit("the writer gets no acknowledgements")
        time.sleep(0.01)


def check_acks(collection, acks, seed):
    """Read every acknowledged point back: (lost or different, applied more than once)."""
    lost = duplicated = 0
    ids = sorted(acks)
    for first in range(0, len(ids), 1000):
        part = ids[first:first + 1000]
        found = {p.id: p for p in collection.get(part, with_vectors=True)}
        for i in part:
            vector, payload = make_point(seed, i, WRITER_DIM)
            point = found.get(i)
            if point is None or point.payload != payload or not np.array_equal(point.vector, vector):
                lost += 1
            elif point.version != acks[i]:
                duplicated += 1  # a later entry wrote it again
    return lost, duplicated


def kill_while_writing(server, db, args, report):
    name = "survivors"
    db.create_collection(name, dim=WRITER_DIM, metric="l2", exist_ok=True)
    collection = db.collection(name)
    report.update(kills=0, acknowledged_writes=0, lost_acknowledged_writes=0, duplicated_writes=0)
    restarts = []
    first_id = 0
    for kill in range(args.kills):
        log = args.work / f"acks-{kill}.log"
        log.unlink(missing_ok=True)
        writer = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("writer.py"), "--endpoint", server.listen, "--collection", name,
             "--log", log, "--dim", str(WRITER_DIM), "--seed", str(args.seed + kill), "--first-id", str(first_id),
             "--in-flight", str(IN_FLIGHT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            wait_for_acks(log, ACKS_BEFORE, writer)
            server.kill9()
            before = count_lines(log)
            restarts.append(server.start())
            wait_for_acks(log, before + ACKS_AFTER, writer)
            summary = json.loads(writer.communicate("stop\n", timeout=90)[0])
        finally:
            if writer.poll() is None:
                writer.kill()
                writer.wait()
        acks, doubled_acks = read_acks(log)
        lost, duplicated = check_acks(collection, acks, args.seed + kill)
        present = collection.count({"must": [{"key": "writer", "match": {"value": args.seed + kill}}]})
        duplicated += doubled_acks + max(0, present - summary["submitted"])
        if summary["logged"] != len(acks):
            lost += summary["logged"] - len(acks)
        report["kills"] += 1
        report["acknowledged_writes"] += len(acks)
        report["lost_acknowledged_writes"] += lost
        report["duplicated_writes"] += duplicated
        say(f"  kill -9 number {kill + 1}: {before:,} writes acknowledged before, {len(acks) - before:,} after, {IN_FLIGHT} in "
            f"flight; back in {restarts[-1]:.2f} s; lost {lost}, doubled {duplicated}")
        first_id += summary["submitted"]
    report["restart_seconds"] = round(max(restarts), 3)


def show_searches(args, server, payload):
    nginx = next(i for i, p in enumerate(payload) if p["package"] == "nginx")
    headline("Packages like nginx")
    omenctl(args.build, server, "search", "packages", "--id", nginx, "--k", 6, "--show", "package,section,title")
    headline("The same, within section httpd")
    omenctl(args.build, server, "search", "packages", "--id", nginx, "--k", 6, "--show", "package,section,title",
            "--filter", '{"must": [{"key": "section", "match": {"value": "httpd"}}]}')
    headline("Small ones only: installed size below 200 KB and tagged as a web server")
    omenctl(args.build, server, "search", "packages", "--id", nginx, "--k", 4,
            "--show", "package,installed_kb,title", "--filter",
            '{"must": [{"key": "installed_kb", "range": {"lt": 200}}, {"key": "tags", "match": {"value": "web::server"}}]}')


def run(args, server, report):
    headline("A server")
    seconds = server.start()
    say(f"  omen-node --standalone serves {server.listen} after {seconds:.2f} s; metrics at {server.http}/metrics")

    headline("Real data: descriptions of 20,000 Debian packages, 128 dimensions, with payloads")
    imported = json.loads(omenctl(args.build, server, "--json", "import", args.work / "data", "--collection", "packages",
                                  "--create", capture=True).strip().split("\n")[-1])
    base, queries, payload = load_vectors(args.work)
    report.update(points=imported["points"], dim=128,
                  ingest_vectors_per_second=round(imported["vectors_per_second"]))
    say(f"  {imported['points']:,} points durable and searchable in {imported['seconds']:.2f} s: "
        f"{report['ingest_vectors_per_second']:,} vectors/s")
    show_searches(args, server, payload)

    with omendb.connect(server.listen, timeout=60) as db:
        headline("How good, how fast")
        packages = db.collection("packages")
        measure_searches(packages, base, queries, payload, report)
        headline(f"kill -9 while a client writes with {IN_FLIGHT} requests in flight")
        kill_while_writing(server, db, args, report)
        if packages.count() != imported["points"]:
            raise SystemExit("packages are missing after the kills")


def good(report):
    return (report["recall_at_10"] == 1.0 and report["filtered_recall_at_10"] == 1.0 and report["kills"] > 0 and
            report["lost_acknowledged_writes"] == 0 and report["duplicated_writes"] == 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=Path, required=True, help="directory of omen-node and omenctl")
    parser.add_argument("--work", type=Path, required=True, help="working directory, with data/ unpacked")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    shutil.rmtree(args.work / "node", ignore_errors=True)
    (args.work / "node.log").unlink(missing_ok=True)
    server, report = Server(args.build, args.work), {}
    try:
        run(args, server, report)
    finally:
        server.stop()
    report["seed"] = args.seed
    (args.work / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    headline("Report")
    for key, value in report.items():
        say(f"  {key:28} {value}")
    say(f"\n{'All of it held.' if good(report) else 'SOMETHING DID NOT HOLD.'} Report: {args.work / 'report.json'}")
    return 0 if good(report) else 1


if __name__ == "__main__":
    sys.exit(main())

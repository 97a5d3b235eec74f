#!/usr/bin/python3
"""`make demo`: a real cluster, real data, real searches, and kill -9 of a leader in the middle of writing.

Starts three omen-node and two omen-router processes on free loopback ports, makes a cluster of them, loads 20,000 Debian
packages with omenctl into four shards of three copies each, shows searches with and without filters, measures recall against
exact truth, then kills the leader of a shard with -9 while a separate client process writes through the routers, and proves
that every acknowledged write is there, once. Ends everything it started.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "local"))

import omendb
from local_cluster import ClusterError, LocalCluster
from writer import make_point

NODES, ROUTERS, SHARDS, REPLICATION = 3, 2, 4, 3
K = 10
TIE = 1 + 1e-5  # a hit counts when its distance is at most the k-th true distance times this
ACKS_BEFORE, ACKS_AFTER = 1_000, 1_000
IN_FLIGHT = 128
WRITER_DIM = 128


def say(text=""):
    print(text, flush=True)


def headline(text):
    say(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}")


def omenctl(args, cluster, *words, show=True, capture=False):
    """Run omenctl as a person would, showing the command line."""
    if show:
        say("$ omenctl " + " ".join(w if w.isalnum() or w.startswith("-") else f"'{w}'" if " " in w or "{" in w else w
                                    for w in map(str, words)))
    done = subprocess.run([args.build / "omenctl", "--endpoint", cluster.endpoints, *map(str, words)],
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
    """Recall@10 by distance with ties, each search's time, and the most shards one asked. `distances` [query][row] are exact,
    inf = filtered out."""
    hits = wanted = asked = 0
    seconds = []
    for query, row in zip(queries, distances):
        begin = time.perf_counter()
        found = collection.search(query, k=K, filter=filter, with_payload=False)
        seconds.append(time.perf_counter() - begin)
        asked = max(asked, found.shards_asked)
        k = min(K, int(np.isfinite(row).sum()))
        if k == 0:
            continue
        limit = np.partition(row, k - 1)[k - 1] * TIE + 1e-9
        hits += sum(row[int(i)] <= limit for i in found.ids[:k])
        wanted += k
    return hits / wanted, np.array(seconds), asked


def measure_searches(collection, base, queries, payload, report):
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    distances = 1 - unit.astype(np.float64) @ base.T
    collection.search(queries[0], k=K)  # connect and warm
    report["recall_at_10"], seconds, asked = recall(collection, queries, distances)
    report["search_p50_ms"] = round(float(np.percentile(seconds, 50)) * 1e3, 3)
    report["search_p99_ms"] = round(float(np.percentile(seconds, 99)) * 1e3, 3)

    sections = np.array([p["section"] for p in payload])
    recalls, report["shards_asked_filtered"] = [], 0
    for section in ("httpd", "python", "libs"):
        masked = np.where(sections == section, distances, np.inf)
        condition = {"must": [{"key": "section", "match": {"value": section}}]}
        found, _, filtered = recall(collection, queries[:60], masked[:60], condition)
        recalls.append(found)
        report["shards_asked_filtered"] = max(report["shards_asked_filtered"], filtered)
    report["filtered_recall_at_10"] = min(recalls)
    say(f"  recall@10            {report['recall_at_10']:.4f}   ({len(queries)} queries, {asked} shards asked, ties by distance)")
    say(f"  recall@10, filtered  {report['filtered_recall_at_10']:.4f}   (lowest of three sections; the section is the shard key: "
        f"{report['shards_asked_filtered']} of {SHARDS} shards asked)")
    say(f"  search time          p50 {report['search_p50_ms']} ms, p99 {report['search_p99_ms']} ms"
        "   (Python client, one at a time)")


def read_acks(path):
    """The acknowledgement log: id -> sequence, and when each came. Only whole lines count: the last may be cut."""
    acks, times, doubled = {}, [], 0
    if not path.exists():
        return acks, np.array([]), doubled
    for line in path.read_text().split("\n")[:-1]:
        point_id, sequence, _, us = map(int, line.split())
        doubled += point_id in acks
        acks[point_id] = sequence
        times.append(us)
    return acks, np.sort(np.array(times)) / 1e6, doubled


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


def outage_seconds(times, killed):
    """The longest time without an acknowledgement that ended after the kill. What was acknowledged just before it arrives just
    after it, so the silence does not begin at the kill itself."""
    after = np.concatenate([times[times <= killed][-1:], times[times > killed]])
    return float(np.diff(np.maximum(after, killed)).max())


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


def write_and_kill(args, cluster, name, kill, first_id):
    """One writer, one dead leader: (its log, its summary, acknowledged before, when it was killed, who, seconds until the
    node was ready again)."""
    log = args.work / f"acks-{kill}.log"
    log.unlink(missing_ok=True)
    shard = cluster.shards_of(name)[0]["shard_id"]
    writer = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("writer.py"), "--endpoint", cluster.endpoints, "--collection", name,
         "--log", log, "--dim", str(WRITER_DIM), "--seed", str(args.seed + kill), "--first-id", str(first_id),
         "--in-flight", str(IN_FLIGHT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        wait_for_acks(log, ACKS_BEFORE, writer)
        leader = cluster.leader_of(shard, name)
        killed = time.monotonic()
        leader.kill9()
        before = count_lines(log)
        wait_for_acks(log, before + ACKS_AFTER, writer)
        restarted = time.monotonic()
        leader.start()
        leader.wait_ready()
        cluster.wait_replicas(name)
        back = time.monotonic() - restarted
        summary = json.loads(writer.communicate("stop\n", timeout=90)[0])
    finally:
        if writer.poll() is None:
            writer.kill()
            writer.wait()
    return log, summary, before, killed, leader, back


def kill_while_writing(args, cluster, db, report):
    name = "survivors"
    omenctl(args, cluster, "collections", "create", name, "--dim", WRITER_DIM, "--metric", "l2", "--replication", REPLICATION)
    collection = db.collection(name)
    report.update(kills=0, acknowledged_writes=0, lost_acknowledged_writes=0, duplicated_writes=0)
    restarts, outages = [], []
    first_id = 0
    for kill in range(args.kills):
        log, summary, before, killed, leader, back = write_and_kill(args, cluster, name, kill, first_id)
        acks, times, doubled_acks = read_acks(log)
        lost, duplicated = check_acks(collection, acks, args.seed + kill)
        present = collection.count({"must": [{"key": "writer", "match": {"value": args.seed + kill}}]})
        duplicated += doubled_acks + max(0, present - summary["submitted"])
        if summary["logged"] != len(acks):
            lost += summary["logged"] - len(acks)
        restarts.append(back)
        outages.append(outage_seconds(times, killed))
        report["kills"] += 1
        report["acknowledged_writes"] += len(acks)
        report["lost_acknowledged_writes"] += lost
        report["duplicated_writes"] += duplicated
        say(f"  kill -9 of {leader.name}, which led: {before:,} writes acknowledged before; the next after {outages[-1] * 1e3:,.0f} ms "
            f"by another node; {IN_FLIGHT} in flight; back and level in {back:.2f} s; lost {lost}, doubled {duplicated}")
        first_id += summary["submitted"]
    report["failover_ms"] = round(max(outages) * 1e3)
    report["restart_seconds"] = round(max(restarts), 3)


def show_searches(args, cluster, payload):
    nginx = next(i for i, p in enumerate(payload) if p["package"] == "nginx")
    headline("Packages like nginx")
    omenctl(args, cluster, "search", "packages", "--id", nginx, "--k", 6, "--show", "package,section,title")
    headline("The same, within section httpd")
    omenctl(args, cluster, "search", "packages", "--id", nginx, "--k", 6, "--show", "package,section,title",
            "--filter", '{"must": [{"key": "section", "match": {"value": "httpd"}}]}')
    headline("Small ones only: installed size below 200 KB and tagged as a web server")
    omenctl(args, cluster, "search", "packages", "--id", nginx, "--k", 4,
            "--show", "package,installed_kb,title", "--filter",
            '{"must": [{"key": "installed_kb", "range": {"lt": 200}}, {"key": "tags", "match": {"value": "web::server"}}]}')


def run(args, cluster, report):
    headline(f"A cluster: {NODES} nodes, {ROUTERS} routers")
    begin = time.monotonic()
    cluster.start()
    say(f"  {NODES} omen-node and {ROUTERS} omen-router are one cluster after {time.monotonic() - begin:.2f} s; clients connect to "
        f"{cluster.endpoints}")

    headline(f"Real data: descriptions of 20,000 Debian packages, 128 dimensions, {SHARDS} shards by section, {REPLICATION} copies")
    imported = json.loads(omenctl(args, cluster, "--json", "import", args.work / "data", "--collection", "packages", "--create",
                                  "--shard-key", "section", "--shards", SHARDS, "--replication", REPLICATION,
                                  capture=True).strip().split("\n")[-1])
    base, queries, payload = load_vectors(args.work)
    report.update(points=imported["points"], dim=128, nodes=NODES, routers=ROUTERS, shards_total=SHARDS, replication=REPLICATION,
                  ingest_vectors_per_second=round(imported["vectors_per_second"]))
    say(f"  {imported['points']:,} points durable on a majority and searchable in {imported['seconds']:.2f} s: "
        f"{report['ingest_vectors_per_second']:,} vectors/s")
    cluster.wait_replicas("packages")
    omenctl(args, cluster, "cluster", "status")
    show_searches(args, cluster, payload)

    with omendb.connect(cluster.endpoints, timeout=60) as db:
        headline("How good, how fast")
        packages = db.collection("packages")
        measure_searches(packages, base, queries, payload, report)
        headline(f"kill -9 of a leader while a client writes with {IN_FLIGHT} requests in flight")
        kill_while_writing(args, cluster, db, report)
        if packages.count() != imported["points"]:
            raise SystemExit("packages are missing after the kills")


RECALL_TARGET = 0.95  # the collection's, by default: graphs and sketches answer as soon as there are enough points


def good(report):
    return (report["recall_at_10"] >= RECALL_TARGET and report["filtered_recall_at_10"] >= RECALL_TARGET and report["kills"] > 0 and
            report["shards_asked_filtered"] == 1 and report["lost_acknowledged_writes"] == 0 and
            report["duplicated_writes"] == 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", type=Path, required=True, help="directory of omen-node, omen-router and omenctl")
    parser.add_argument("--work", type=Path, required=True, help="working directory, with data/ unpacked")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    report = {}
    try:
        former = LocalCluster(args.build, args.work / "cluster", NODES, ROUTERS)
        former.stop()  # of a demo that was killed; those that it started and nobody else
        shutil.rmtree(former.work, ignore_errors=True)
        with LocalCluster(args.build, args.work / "cluster", NODES, ROUTERS) as cluster:
            run(args, cluster, report)
    except ClusterError as e:
        raise SystemExit(f"demo: {e}") from None
    report["seed"] = args.seed
    (args.work / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    headline("Report")
    for key, value in report.items():
        say(f"  {key:28} {value}")
    say(f"\n{'All of it held.' if good(report) else 'SOMETHING DID NOT HOLD.'} Report: {args.work / 'report.json'}")
    return 0 if good(report) else 1


if __name__ == "__main__":
    sys.exit(main())

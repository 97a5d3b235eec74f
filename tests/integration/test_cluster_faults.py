"""A cluster of real processes that loses nodes, connections, files and its way, while clients write and read: what was
acknowledged is there, once, and linearizable reads never go back."""
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy as np

import omendb
from history import Op, linearizable
from omen_server import BUILD, TOP

sys.path.insert(0, str(TOP / "deploy" / "local"))

from local_cluster import ClusterError, LocalCluster

DIM = 16
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
PATIENCE = 120


def setUpModule():
    print(f"seed {SEED}")


def row(i):
    return np.random.default_rng((SEED, i)).standard_normal(DIM, dtype=np.float32)


class Writer(threading.Thread):
    """Upserts new points until stopped; keeps the sequence of each that was acknowledged. Retries are the client's, under the
    same op id, so a write is applied once however often it was sent."""

    def __init__(self, endpoints, batch=1, payload=None):
        super().__init__()
        self.endpoints, self.batch, self.payload = endpoints, batch, payload
        self.acked, self.next, self.error = {}, 0, None
        self.stopping = threading.Event()
        self.start()

    def run(self):
        try:
            with omendb.connect(self.endpoints, timeout=PATIENCE) as db:
                docs = db.collection("docs")
                while not self.stopping.is_set():
                    ids = list(range(self.next, self.next + self.batch))
                    self.next += self.batch
                    done = docs.upsert(ids, np.stack([row(i) for i in ids]), [{"n": i, "text": self.payload} for i in ids])
                    for i in ids:
                        self.acked[i] = done.sequence
        except omendb.OmenError as e:
            self.error = e

    def stop(self):
        self.stopping.set()
        self.join()


class ClusterFaults(unittest.TestCase):
    def start(self, shards=1, **options):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = LocalCluster(BUILD, self.work, **options)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        self.cluster.omenctl("collections", "create", "docs", "--dim", DIM, "--metric", "l2", "--shards", shards, "--replication", 3)
        self.shard = self.cluster.shards_of("docs")[0]["shard_id"]

    def check(self, writer):
        """Every acknowledged point is there, as it was written, at the sequence that was acknowledged; none beside them but
        those whose outcome nobody was told."""
        self.assertIsNone(writer.error)
        with omendb.connect(self.cluster.endpoints, timeout=PATIENCE, consistency="linearizable") as db:
            docs = db.collection("docs")
            self.assertTrue(len(writer.acked) <= docs.count() <= writer.next)
            ids = sorted(writer.acked)
            for first in range(0, len(ids), 1000):
                part = ids[first:first + 1000]
                found = {p.id: p for p in docs.get(part, with_vectors=True)}
                self.assertEqual(sorted(found), part, "acknowledged points are lost")
                for i in part:
                    self.assertEqual(found[i].payload["n"], i)
                    if writer.batch == 1:
                        self.assertEqual(found[i].version, writer.acked[i], f"point {i} was applied more than once")

    def wait_ready(self):
        try:
            self.cluster.wait_replicas("docs", PATIENCE)
        except ClusterError as e:
            self.fail(f"{e}: {json.dumps(self.cluster.status())}")

    def wait(self, what, why):
        deadline = time.monotonic() + PATIENCE
        while not what():
            self.assertLess(time.monotonic(), deadline, why)
            time.sleep(0.1)

    def replicas(self):
        return self.cluster.shards_of("docs")[0]["replicas"]

    def log_says(self, node, pattern, since=0):
        return re.search(pattern, node.log_path.read_text(errors="replace")[since:])

    # ---- processes ----

    def test_all_nodes_killed_at_once_come_back_with_everything(self):
        self.start(shards=4)
        writer = Writer(self.cluster.endpoints)
        try:
            for _ in range(2):
                time.sleep(1)
                for node in self.cluster.nodes:
                    node.signal(signal.SIGKILL)
                for node in self.cluster.nodes:
                    node.wait_end(60)
                acked = len(writer.acked)
                for node in self.cluster.nodes:
                    node.start()
                self.cluster.wait_whole()
                self.wait(lambda: len(writer.acked) > acked + 10 or writer.error, "writes do not go on")
        finally:
            writer.stop()
        self.check(writer)

    def test_a_stopped_follower_costs_the_leader_no_memory_and_catches_up(self):
        self.start()
        leader = self.cluster.leader_of(self.shard, "docs")
        follower = next(n for n in self.cluster.nodes if n is not leader)
        status = lambda: int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{leader.pid}/status").read_text())[1]) * 1024
        writer = Writer(self.cluster.endpoints, batch=100, payload="x" * 2000)
        try:
            self.wait(lambda: len(writer.acked) > 2000 or writer.error, "nothing is written")
            follower.signal(signal.SIGSTOP)
            before, acked = status(), len(writer.acked)
            self.wait(lambda: len(writer.acked) > acked + 20000 or writer.error, "writes stop with one of three replicas")
            grown = status() - before  # 40 MB and more went by; what is mapped of the stream counts here as well
            self.assertLess(grown, 300 << 20)
        finally:
            follower.signal(signal.SIGCONT)
            writer.stop()
        self.wait_ready()
        self.check(writer)

    def test_a_node_that_was_away_for_long_copies_a_checkpoint_though_it_is_killed_meanwhile(self):
        self.start(node_args=["--set", "checkpoint.log_bytes=4MiB", "--set", "wal.bytes_max=32MiB", "--set", "wal.segment_bytes=4MiB"])
        leader = self.cluster.leader_of(self.shard, "docs")
        away = next(n for n in self.cluster.nodes if n is not leader)
        away.kill9()
        writer = Writer(self.cluster.endpoints, batch=100, payload="x" * 2000)
        try:
            self.wait(lambda: len(writer.acked) > 30000 or writer.error, "writes stop with one of three nodes away")
        finally:
            writer.stop()
        self.assertIsNone(writer.error)
        mark = away.log_path.stat().st_size
        away.start()
        self.wait(lambda: self.log_says(away, rf"raft.fetch group={self.shard}", mark), "it asks for no checkpoint")
        away.kill9()  # in the middle of it, or just after
        away.start()
        self.cluster.wait_whole()
        self.wait_ready()
        for other in self.cluster.nodes:
            if other is not away:
                other.kill9()  # what the one that was away holds must do, with one of the others
                break
        self.check(writer)
        other.start()

    def test_a_flipped_bit_is_found_and_the_replica_replaced(self):
        self.start()
        writer = Writer(self.cluster.endpoints, batch=50)
        self.wait(lambda: len(writer.acked) > 3000 or writer.error, "nothing is written")
        writer.stop()
        self.wait_ready()
        leader = self.cluster.leader_of(self.shard, "docs")
        victim = next(n for n in self.cluster.nodes if n is not leader)
        old = next(r["replica_id"] for r in self.replicas() if r["node_id"] == victim.node_id)
        victim.stop()  # with a checkpoint: what is in the stream is what it opens with
        (chunk, *_) = sorted((victim.dir / "data" / "shards").glob(f"{self.shard}-*/g1/stream/*.chunk"))
        with open(chunk, "r+b") as f:
            f.seek(100_000)
            byte = f.read(1)
            f.seek(100_000)
            f.write(bytes([byte[0] ^ 4]))
        victim.start()

        def replaced():
            here = [r for r in self.replicas() if r["node_id"] == victim.node_id]
            return len(here) == 1 and here[0]["replica_id"] != old and here[0]["ready"]

        self.wait(replaced, "the damaged replica is not replaced")
        self.check(writer)
        self.assertTrue(self.log_says(victim, "damaged|corrupt"))

    def test_an_operation_goes_on_under_the_next_leader_of_the_cluster(self):
        self.start(shards=4, nodes=4)
        writer = Writer(self.cluster.endpoints)
        try:
            for turn in range(2):
                leader_id = self.cluster.status()["cluster"]["leader_node"]
                drained = next(n for n in self.cluster.nodes if n.node_id not in (0, leader_id))
                self.cluster.omenctl("node", "drain", drained.node_id)
                driver = self.cluster.node_of_id(leader_id)
                driver.kill9()  # in the middle: the step that was committed last is where the next one goes on
                driver.start()
                self.cluster.wait_whole()
                self.wait(lambda: (s := self.cluster.status()) is not None and not s["operations"] + s["plans"], "the drain does not end")
                held = [r["node_id"] for s in self.cluster.shards_of("docs") for r in s["replicas"]]
                self.assertNotIn(drained.node_id, held)
                self.assertEqual(len(held), 12)
                self.cluster.omenctl("node", "activate", drained.node_id)
        finally:
            writer.stop()
        self.check(writer)

    # ---- what readers see ----

    def test_linearizable_reads_never_go_back_while_leaders_stop_and_go(self):
        self.start()
        keys, histories, stop = range(4), {k: [] for k in range(4)}, threading.Event()
        lock, errors = threading.Lock(), []

        def client(number):
            rng = random.Random(SEED * 31 + number)
            with omendb.connect(self.cluster.endpoints, timeout=20, consistency="linearizable") as db:
                docs = db.collection("docs")
                for n in range(100000):
                    if stop.is_set():
                        return
                    key, write, begin = rng.choice(keys), rng.random() < 0.5, time.monotonic()
                    value, end = (number, n), None
                    try:
                        if write:
                            docs.upsert([key], row(key)[None, :], [{"v": [number, n]}])
                        else:
                            found = docs.get([key])
                            value = tuple(found[0].payload["v"]) if found else None
                        end = time.monotonic()
                    except (omendb.OutcomeUnknown, omendb.Unavailable, omendb.DeadlineExceeded):
                        pass  # a write may have been carried out; a read says nothing
                    except omendb.OmenError as e:
                        errors.append(e)
                        return
                    with lock:
                        histories[key].append(Op(begin, end, "write" if write else "read", value))
                    time.sleep(0.02)

        clients = [threading.Thread(target=client, args=(n,)) for n in range(4)]
        for c in clients:
            c.start()
        for turn in range(3):
            time.sleep(1.5)
            leader = self.cluster.leader_of(self.shard, "docs")
            if turn % 2 == 0:  # it does not know that it was replaced, until it goes on
                leader.signal(signal.SIGSTOP)
                time.sleep(4)
                leader.signal(signal.SIGCONT)
            else:
                leader.kill9()
                time.sleep(2)
                leader.start()
        time.sleep(2)
        stop.set()
        for c in clients:
            c.join()
        self.assertEqual(errors, [])
        self.assertGreater(sum(map(len, histories.values())), 100)
        for key, history in histories.items():
            self.assertIsNone(linearizable(history), f"key {key}, {len(history)} operations")


if __name__ == "__main__":
    unittest.main()

"""What operators do to a cluster of real processes, while a client writes: labels, a fourth node, rebalance, moves by hand,
transfers of leadership, drain and removal. No write is refused, none is lost, none applied twice."""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy as np

import omendb
from omen_server import BUILD, TOP

sys.path.insert(0, str(TOP / "deploy" / "local"))

from local_cluster import LocalCluster

DIM = 16
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
MOVES_SECONDS = 240


def setUpModule():
    print(f"seed {SEED}")


def row(i):
    return np.random.default_rng((SEED, i)).standard_normal(DIM, dtype=np.float32)


class Writer(threading.Thread):
    """Upserts new points one by one until stopped; a write that fails for whatever reason ends it."""

    def __init__(self, endpoints):
        super().__init__()
        self.endpoints, self.acked, self.error = endpoints, {}, None
        self.stopping = threading.Event()
        self.start()

    def run(self):
        try:
            with omendb.connect(self.endpoints, timeout=60) as db:
                docs = db.collection("docs")
                while not self.stopping.is_set():
                    i = len(self.acked)
                    self.acked[i] = docs.upsert([i], row(i)[None, :], [{"n": i}]).sequence
        except omendb.OmenError as e:
            self.error = e

    def stop(self):
        self.stopping.set()
        self.join()


class ClusterAdmin(unittest.TestCase):
    def setUp(self):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = LocalCluster(BUILD, self.work)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()

    def omenctl(self, *args, code=0):
        done = self.cluster.omenctl(*args, check=False)
        self.assertEqual(done.returncode, code, f"{args}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def json(self, *args):
        return json.loads(self.cluster.omenctl("--json", *args).stdout)

    def holders(self):
        """By shard: the nodes that hold a replica."""
        return {s["shard_id"]: sorted(r["node_id"] for r in s["replicas"]) for s in self.cluster.shards_of("docs")}

    def wait_ended(self):
        """omenctl's --wait ends with the operations; files of replicas that left are dropped a moment later."""
        deadline = time.monotonic() + MOVES_SECONDS
        while (s := self.json("cluster", "status"))["operations"] or s["plans"]:
            self.assertLess(time.monotonic(), deadline, "operations do not end")
            time.sleep(0.1)

    def check(self, writer):
        self.assertIsNone(writer.error)
        with omendb.connect(self.cluster.endpoints, timeout=60, consistency="linearizable") as db:
            docs = db.collection("docs")
            self.assertEqual(docs.count(), len(writer.acked))
            for first in range(0, len(writer.acked), 1000):
                ids = list(range(first, min(first + 1000, len(writer.acked))))
                for i, point in zip(ids, docs.get(ids, with_vectors=True)):
                    self.assertEqual((point.id, point.payload["n"]), (i, i))
                    self.assertEqual(point.version, writer.acked[i], f"point {i} was applied more than once")

    def test_a_cluster_grows_and_shrinks_under_writes(self):
        self.omenctl("collections", "create", "docs", "--dim", DIM, "--metric", "l2", "--shards", 8, "--replication", 3)
        self.assertIn("local", self.omenctl("cluster", "status"))
        self.omenctl("cluster", "init", code=1)  # there is one
        writer = Writer(self.cluster.endpoints)
        try:
            self.grow()
            self.move_by_hand()
            self.shrink()
        finally:
            writer.stop()
        self.check(writer)

    def grow(self):
        fourth = self.cluster.new_node()
        fourth.start()
        deadline = time.monotonic() + 60
        while (done := self.cluster.omenctl("--json", "node", "add", fourth.address, "--labels", "zone=b", check=False)).returncode:
            self.assertLess(time.monotonic(), deadline, done.stderr)
            time.sleep(0.1)
        self.assertEqual(json.loads(done.stdout), {"node_id": 4})
        self.assertEqual(self.json("node", "add", fourth.address, "--labels", "zone=b"), {"node_id": 4})  # asked again
        self.cluster.wait_whole()
        self.assertEqual([n["labels"] for n in self.json("node", "list")], ["", "", "", "zone=b"])
        self.omenctl("node", "label", 4, "zone=c,rack=1")
        self.assertEqual(self.json("node", "list")[3]["labels"], "zone=c,rack=1")

        plan = self.json("rebalance")
        self.assertEqual(plan["plan_id"], 0)
        self.assertEqual({m["to_node"] for m in plan["moves"]}, {4})
        self.assertNotIn(4, sum(self.holders().values(), []))  # a plan alone moves nothing
        self.assertIn("all moves are done", self.omenctl("rebalance", "--apply", "--throttle", "200MB", "--wait"))
        self.wait_ended()
        counts = [sum(n in nodes for nodes in self.holders().values()) for n in (1, 2, 3, 4)]
        self.assertEqual(sum(counts), 24)
        self.assertGreaterEqual(min(counts), 4, counts)
        self.assertTrue(all(len(set(nodes)) == 3 for nodes in self.holders().values()))
        self.omenctl("cluster", "throttle", 0)

    def move_by_hand(self):
        shard, nodes = next(iter(self.holders().items()))
        other = ({1, 2, 3, 4} - set(nodes)).pop()
        self.omenctl("replica", "move", shard, nodes[0], nodes[1], code=1)  # holds one already
        self.omenctl("replica", "move", shard, other, nodes[0], code=4)  # holds none
        self.omenctl("replica", "move", shard, nodes[0], other, "--wait")
        self.assertEqual(self.holders()[shard], sorted(set(nodes) - {nodes[0]} | {other}))
        leader = self.cluster.leader_of(shard, "docs").node_id
        heir = next(n for n in self.holders()[shard] if n != leader)
        self.assertIn(f"goes to node {heir}", self.omenctl("leader", "transfer", shard, heir))
        deadline = time.monotonic() + 60
        while self.cluster.leader_of(shard, "docs").node_id != heir:
            self.assertLess(time.monotonic(), deadline, "leadership was not handed over")
        self.omenctl("leader", "transfer", 99999, code=4)

    def shrink(self):
        plan = self.json("node", "drain", 2, "--dry-run")
        self.assertTrue(plan["moves"] and all(m["from_node"] == 2 for m in plan["moves"]))
        self.omenctl("node", "remove", 2, code=1)  # holds replicas
        self.assertIn("all moves are done", self.omenctl("node", "drain", 2, "--wait"))
        self.wait_ended()
        self.assertNotIn(2, sum(self.holders().values(), []))
        deadline = time.monotonic() + 60
        while self.cluster.omenctl("node", "remove", 2, check=False).returncode != 0:  # it may lead the cluster's group
            self.assertLess(time.monotonic(), deadline, self.omenctl("node", "remove", 2, code=1))
            time.sleep(0.2)
        self.assertNotIn(self.cluster.node_of_id(2).address, self.omenctl("node", "list"))  # ids go by who came first

    def test_session_reads_go_on_while_a_shard_has_no_leader(self):
        self.omenctl("collections", "create", "docs", "--dim", DIM, "--metric", "l2", "--replication", 3)
        with omendb.connect(self.cluster.endpoints, timeout=60) as db, omendb.connect(self.cluster.endpoints, timeout=60) as other:
            docs, shard = db.collection("docs"), self.cluster.shards_of("docs")[0]["shard_id"]
            for turn in range(3):
                sequence = docs.upsert([turn], row(turn)[None, :], [{"turn": turn}]).sequence
                self.cluster.wait_replicas("docs")
                leader = self.cluster.leader_of(shard, "docs")
                leader.kill9()
                write = threading.Thread(target=other.collection("docs").upsert,
                                         args=([100 + turn], row(100 + turn)[None, :], [{"turn": turn}]))
                write.start()  # ends when there is a leader again
                reads = 0
                while write.is_alive():  # what was written is seen, by whoever holds the token
                    (point,) = docs.get([turn])
                    self.assertEqual((point.payload, point.version), ({"turn": turn}, sequence))
                    self.assertEqual(docs.search(row(turn), k=1)[0].id, turn)
                    reads += 1
                write.join()
                self.assertGreater(reads, 0)
                leader.start()
                self.cluster.wait_whole()

    def test_a_plan_can_be_canceled(self):
        self.omenctl("collections", "create", "docs", "--dim", DIM, "--metric", "l2", "--shards", 4, "--replication", 3)
        with omendb.connect(self.cluster.endpoints, timeout=60) as db:
            docs = db.collection("docs")
            docs.upsert(range(4000), np.stack([row(i) for i in range(4000)]), [{"t": "x" * 500} for _ in range(4000)])
            self.cluster.wait_replicas("docs")
            before = self.holders()
            fourth = self.cluster.new_node()
            fourth.start()
            deadline = time.monotonic() + 60
            while self.cluster.omenctl("node", "add", fourth.address, check=False).returncode:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.1)
            self.cluster.wait_whole()
            plan = self.json("rebalance", "--apply", "--throttle", "1kB")  # will take for ever
            self.assertGreater(plan["plan_id"], 0)
            self.assertTrue(self.json("operations"))
            self.json("operations", "cancel", "--plan", plan["plan_id"])
            self.wait_ended()
            self.assertEqual(self.holders(), before)
            self.assertEqual(docs.count(), 4000)
            ended = self.cluster.status()["history"]
            self.assertTrue(ended and all(o["outcome"] == "canceled" for o in ended), ended)
            (over,) = self.cluster.status()["plans_ended"]
            self.assertTrue(over["canceled"] and over["moves_canceled"] == over["moves_begun"] == len(ended), over)


if __name__ == "__main__":
    unittest.main()

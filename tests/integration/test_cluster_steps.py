"""kill -9 at every step of what operators do to a cluster: of a move, a drain, a join; and of routers. A client writes all the
while. Each operation goes on where it was when the process that was killed is back, or without it, ends as it would have, and
nothing acknowledged is lost or doubled. `make fault` kills every process that has a part in it at every step
(tests/fault/test_cluster_steps.py); here each step sees one, and each one a step."""
import json
import os
import random
import re
import shutil
import tempfile
import time
import unittest
from pathlib import Path

from omen_server import BUILD
from partition import LocalCluster
from test_cluster_faults import DIM, Writer

import omendb

SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
PATIENCE = 120
STEPS = ("add", "catch_up", "switch", "end")
WHO = ("driver", "source", "target", "leader")  # of the cluster's group; of the replica that moves; of the shard


def setUpModule():
    print(f"seed {SEED}")


class Killing(unittest.TestCase):
    """A cluster of four nodes, a collection on three of them, a writer."""

    def setUp(self):
        self.rng = random.Random(SEED)
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = LocalCluster(BUILD, self.work, nodes=self.NODES)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        self.cluster.omenctl("collections", "create", "docs", "--dim", DIM, "--metric", "l2", "--shards", self.SHARDS, "--replication",
                             3)
        self.cluster.wait_replicas("docs", PATIENCE)
        self.writer = Writer(self.cluster.endpoints)
        self.addCleanup(self.writer.stop)
        self.wait(lambda: len(self.writer.acked) > 100, "nothing is written")

    NODES, SHARDS = 4, 1

    def wait(self, what, why, poll=0.02):
        deadline = time.monotonic() + PATIENCE
        while not (result := what()):
            self.assertIsNone(self.writer.error)
            self.assertLess(time.monotonic(), deadline, f"{why}: {json.dumps(self.cluster.status())}")
            time.sleep(poll)
        return result

    def must(self, *args):
        """omenctl until it is done: who leads the cluster's group may just have been killed."""
        def tried():
            done = self.cluster.omenctl("--json", *args, check=False)
            return done if done.returncode == 0 else None
        return json.loads(self.wait(tried, f"omenctl {args}").stdout or "null")

    def marks(self):
        return {n.name: n.log_path.stat().st_size for n in self.cluster.nodes}

    def wait_step(self, op_id, step, marks):
        """Until somebody has recorded that step of the operation."""
        pattern = re.compile(rf"operation.step op={op_id} .*step={step}\b".encode())

        def recorded():
            for node in self.cluster.nodes:
                with open(node.log_path, "rb") as log:
                    log.seek(marks.get(node.name, 0))
                    if pattern.search(log.read()):
                        return True
            return False

        self.wait(recorded, f"operation {op_id} does not get to {step}", poll=0.001)

    def wait_ended(self):
        self.wait(lambda: (s := self.cluster.status()) is not None and s["cluster"]["leader_node"] != 0 and not s["operations"] + s["plans"],
                  "operations do not end", poll=0.1)

    def holders(self):
        return {s["shard_id"]: sorted(r["node_id"] for r in s["replicas"]) for s in self.cluster.shards_of("docs")}

    def kill_and_start(self, node):
        node.kill9()
        node.start()

    def check_files(self):
        """No node keeps a replica that the map does not name, and each that it names is there once."""
        def clean():
            named = {(s["shard_id"], r["replica_id"]): r["node_id"] for s in self.cluster.shards_of("docs") for r in s["replicas"]}
            found = [(tuple(map(int, d.name.split("-"))), n.node_id) for n in self.cluster.nodes
                     for d in (n.data / "shards").glob("[0-9]*") if d.is_dir()]
            return sorted(found) == sorted(named.items())
        self.wait(clean, "files of replicas that left stay", poll=0.1)

    def check(self):
        self.cluster.wait_whole(PATIENCE)
        self.cluster.wait_replicas("docs", PATIENCE)
        acked = len(self.writer.acked)
        self.wait(lambda: len(self.writer.acked) > acked, "writes do not go on")
        self.writer.stop()
        self.assertIsNone(self.writer.error)
        with omendb.connect(self.cluster.endpoints, timeout=PATIENCE, consistency="linearizable") as db:
            docs, ids = db.collection("docs"), sorted(self.writer.acked)
            self.assertTrue(len(ids) <= docs.count() <= self.writer.next)
            for first in range(0, len(ids), 1000):
                part = ids[first:first + 1000]
                found = {p.id: p for p in docs.get(part)}
                self.assertEqual(sorted(found), part, "acknowledged points are lost")
                for i in part:
                    self.assertEqual(found[i].version, self.writer.acked[i], f"point {i} was applied more than once")
        self.check_files()


class Move(Killing):
    def one_move(self, step, who):
        ((shard, nodes),) = self.holders().items()
        source = self.rng.choice(nodes)
        (target,) = {1, 2, 3, 4} - set(nodes)
        marks = self.marks()
        op_id = self.must("replica", "move", shard, source, target)["op_id"]
        if step != "add":  # that is where it begins
            self.wait_step(op_id, step, marks)
        victim = {"source": lambda: source, "target": lambda: target,
                  "driver": lambda: self.cluster.status()["cluster"]["leader_node"],
                  "leader": lambda: self.cluster.leader_of(shard, "docs").node_id}[who]()
        self.kill_and_start(self.cluster.node_of_id(victim or target))
        self.wait_ended()
        self.assertEqual(self.holders()[shard], sorted(set(nodes) - {source} | {target}), f"{who} killed at {step}")
        self.cluster.wait_whole(PATIENCE)
        self.cluster.wait_replicas("docs", PATIENCE)

    def run_pairs(self, pairs):
        for step, who in pairs:
            with self.subTest(step=step, killed=who):
                self.one_move(step, who)
        self.check()

    def test_a_move_ends_whoever_is_killed_at_whatever_step(self):
        turn = self.rng.randrange(4)
        self.run_pairs([(step, WHO[(i + turn) % 4]) for i, step in enumerate(STEPS)])


class Drain(Killing):
    SHARDS = 4

    def one_drain(self, step, who):
        drained = self.rng.choice([n for n in self.cluster.nodes if any(n.node_id in nodes for nodes in self.holders().values())])
        marks = self.marks()
        plan = self.must("node", "drain", drained.node_id)
        ops = self.wait(lambda: (s := self.cluster.status()) and ([o["op_id"] for o in s["operations"]] or s["history"] and [0]),
                        "the drain begins nothing", poll=0.001)
        if step != "add" and ops[0]:
            self.wait_step(self.rng.choice(ops), step, marks)
        leader = (self.cluster.status() or {"cluster": {"leader_node": 0}})["cluster"]["leader_node"]
        self.kill_and_start(drained if who == "source" or leader == 0 else self.cluster.node_of_id(leader))
        self.wait_ended()
        held = [n for nodes in self.holders().values() for n in nodes]
        self.assertNotIn(drained.node_id, held, f"{who} killed at {step}; {plan}")
        self.assertEqual(len(held), 3 * self.SHARDS)
        self.must("node", "activate", drained.node_id)
        self.cluster.wait_whole(PATIENCE)
        self.cluster.wait_replicas("docs", PATIENCE)

    def run_pairs(self, pairs):
        for step, who in pairs:
            with self.subTest(step=step, killed=who):
                self.one_drain(step, who)
        self.check()

    def test_a_drain_ends_though_the_node_or_the_driver_is_killed(self):
        self.run_pairs([(self.rng.choice(STEPS), "source"), (self.rng.choice(STEPS), "driver")])


class Add(Killing):
    NODES = 3

    def one_join(self, kills, of_driver):
        """A node that is killed again and again while it joins, or whose sponsor is, is one member in the end."""
        node = self.cluster.new_node()
        node.joins = True
        node.start()
        for _ in range(kills):
            time.sleep(self.rng.random() * 0.4)
            if of_driver:
                leader = (self.cluster.status() or {"cluster": {"leader_node": 0}})["cluster"]["leader_node"]
                if leader in [n.node_id for n in self.cluster.nodes if n is not node]:
                    self.kill_and_start(self.cluster.node_of_id(leader))
            else:
                self.kill_and_start(node)
        status = self.cluster.wait_whole(PATIENCE)
        self.assertEqual([n["node_id"] for n in status["nodes"]], list(range(1, len(self.cluster.nodes) + 1)))

    def run_joins(self, kills):
        self.one_join(kills, of_driver=False)
        self.one_join(kills // 3 + 1, of_driver=True)
        self.must("rebalance", "--apply")
        self.wait_ended()
        self.check()

    def test_a_node_that_is_killed_while_it_joins_is_one_member_in_the_end(self):
        self.run_joins(4)


class Routers(Killing):
    NODES, SHARDS = 3, 4

    def test_routers_killed_in_turn_lose_and_double_nothing(self):
        for turn in range(6):
            acked = len(self.writer.acked)
            self.wait(lambda: len(self.writer.acked) > acked + 50, "writes do not go on")
            self.kill_and_start(self.cluster.routers[turn % 2])
        for router in self.cluster.routers:
            router.wait_ready()
        self.check()


if __name__ == "__main__":
    unittest.main()

"""Plans are carried on until nothing is left to move, with real processes: a rebalance after several nodes came at once, which
takes more rounds than one, though the node that drives it is killed; a drain of a node to which an older operation still brings
a replica, or whose target goes down; and a plan that is canceled begins nothing more. A client writes all the while."""
import json
import os
import random
import shutil
import subprocess
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


def setUpModule():
    print(f"seed {SEED}")


class Plans(unittest.TestCase):
    def start(self, nodes, shards, node_args=()):
        self.rng = random.Random(SEED)
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = LocalCluster(BUILD, self.work, nodes=nodes, node_args=node_args)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        self.cluster.omenctl("collections", "create", "docs", "--dim", DIM, "--metric", "l2", "--shards", shards, "--replication", 3)
        self.cluster.wait_replicas("docs", PATIENCE)
        self.writer = Writer(self.cluster.endpoints)
        self.addCleanup(self.writer.stop)
        self.wait(lambda: len(self.writer.acked) > 100, "nothing is written")

    def wait(self, what, why, poll=0.05):
        deadline = time.monotonic() + PATIENCE
        while not (result := what()):
            self.assertIsNone(self.writer.error)
            self.assertLess(time.monotonic(), deadline, f"{why}: {json.dumps(self.cluster.status())}")
            time.sleep(poll)
        return result

    def status(self):
        return self.wait(lambda: (s := self.cluster.status()) is not None and s["cluster"]["leader_node"] != 0 and s,
                         "the cluster has no leader")

    def must(self, *args):
        return json.loads(self.wait(lambda: (done := self.cluster.omenctl("--json", *args, check=False)).returncode == 0 and done,
                                    f"omenctl {args}").stdout)

    def ended(self, plan_id):
        return next((p for p in self.status()["plans_ended"] if p["plan_id"] == plan_id), None)

    def held(self):
        counts = {n["node_id"]: 0 for n in self.status()["nodes"] if n["state"] != "removed"}
        for shard in self.cluster.shards_of("docs"):
            nodes = [r["node_id"] for r in shard["replicas"]]
            self.assertEqual(len(set(nodes)), 3)
            for node in nodes:
                counts[node] += 1
        return counts

    def check(self):
        self.cluster.wait_whole(PATIENCE)
        self.cluster.wait_replicas("docs", PATIENCE)
        self.writer.stop()
        self.assertIsNone(self.writer.error)
        with omendb.connect(self.cluster.endpoints, timeout=PATIENCE, consistency="linearizable") as db:
            docs, ids = db.collection("docs"), sorted(self.writer.acked)
            for first in range(0, len(ids), 1000):
                part = ids[first:first + 1000]
                found = {p.id: p.version for p in docs.get(part)}
                self.assertEqual(found, {i: self.writer.acked[i] for i in part}, "acknowledged points are lost or doubled")

    def test_one_rebalance_is_enough_for_nodes_that_came_at_once_though_its_driver_is_killed(self):
        self.start(nodes=3, shards=8)
        joined = [self.cluster.new_node() for _ in range(3)]
        for node in joined:
            node.start()
            self.must("node", "add", node.address)
        self.cluster.wait_whole(PATIENCE)
        forecast = self.must("rebalance")
        self.assertEqual({m["round"] for m in forecast["moves"]}, {1, 2})
        self.assertEqual(len(forecast["moves"]), 12)
        plan = self.must("rebalance", "--apply")["plan_id"]
        for _ in range(2):  # whoever drives it, in whatever round
            time.sleep(self.rng.random())
            driver = self.cluster.node_of_id(self.status()["cluster"]["leader_node"])
            driver.kill9()
            driver.start()
            self.cluster.wait_whole(PATIENCE)
        done = subprocess.run([BUILD / "omenctl", "--endpoint", self.cluster.endpoints, "rebalance", "--apply", "--wait"], text=True,
                              capture_output=True, timeout=PATIENCE)  # joins it, if it is not over
        self.assertEqual(done.returncode, 0, done.stderr)
        plan = self.wait(lambda: self.ended(plan), "the plan does not end")
        self.assertGreaterEqual(plan["rounds"], 2)
        self.assertEqual((plan["moves_done"], plan["moves_canceled"], plan["moves_ahead"]), (plan["moves_begun"], 0, 0))
        self.assertLessEqual(plan["moves_done"], 13)  # 12 by number; written meanwhile, one more at most
        held = self.held()
        self.assertTrue(all(3 <= n <= 5 for n in held.values()), held)
        self.assertIn("nothing to move", self.cluster.omenctl("rebalance").stdout)
        self.check()

    def slow_copies(self):
        """Of the one collection, which holds more then than the log alone brings."""
        self.must("cluster", "throttle", "1kB")
        with omendb.connect(self.cluster.endpoints, timeout=PATIENCE) as db:
            rows = self.rng
            for first in range(10000, 14000, 1000):
                db.collection("docs").upsert(range(first, first + 1000), [[rows.random() for _ in range(DIM)] for _ in range(1000)],
                                             [{"t": "x" * 300}] * 1000)

    def test_a_move_to_a_node_that_went_down_is_given_up_and_its_drain_finds_another(self):
        self.start(nodes=5, shards=1, node_args=["--set", "cluster.move_grace=1s"])
        self.slow_copies()
        source = self.rng.choice([r["node_id"] for r in self.cluster.shards_of("docs")[0]["replicas"]])
        plan = self.must("node", "drain", source)
        target = plan["moves"][0]["to_node"]
        down = self.cluster.node_of_id(target)
        down.kill9()
        given_up = self.wait(lambda: next((o for o in self.status()["history"] if o["to_node"] == target), None), "it is not given up")
        self.assertEqual(given_up["outcome"], "canceled")
        self.assertIn("down for too long", given_up["reason"])
        self.must("cluster", "throttle", "0")
        over = self.wait(lambda: self.ended(plan["plan_id"]), "the drain does not end")
        self.assertEqual((over["canceled"], over["moves_done"]), (False, 1))
        self.assertGreaterEqual(over["moves_canceled"], 1)  # a busy machine makes others look down for so short a grace
        held = self.held()
        self.assertEqual((held[source], held[target]), (0, 0))
        down.start()
        self.check()

    def test_a_drain_sees_what_an_older_operation_brings(self):
        self.start(nodes=4, shards=2)
        shard = self.cluster.shards_of("docs")[0]
        nodes = [r["node_id"] for r in shard["replicas"]]
        (target,) = {1, 2, 3, 4} - set(nodes)
        self.slow_copies()
        op = self.must("replica", "move", shard["shard_id"], nodes[0], target)["op_id"]
        plan = self.must("node", "drain", target)
        self.assertNotIn(shard["shard_id"], [m["shard_id"] for m in plan["moves"]])
        self.must("cluster", "throttle", "0")
        over = self.wait(lambda: self.ended(plan["plan_id"]), "the drain does not end")
        self.assertFalse(over["canceled"])
        self.assertTrue(any(o["op_id"] == op and o["outcome"] == "done" for o in self.status()["history"]))
        self.assertEqual(self.held()[target], 0)
        self.must("node", "activate", target)
        self.check()

    def test_a_drain_moves_what_it_can_and_waits_for_a_place_for_the_rest(self):
        self.start(nodes=3, shards=2)
        node = self.rng.choice([1, 2, 3])
        self.wait(lambda: (refused := self.cluster.omenctl("node", "drain", node, check=False)).returncode != 0 and
                  "nowhere to go" in refused.stderr, "it is not refused")  # every other node holds one of each
        self.assertEqual({n["state"] for n in self.status()["nodes"]}, {"active"})
        self.cluster.omenctl("collections", "create", "pair", "--dim", 4, "--shards", 3, "--replication", 2)
        self.cluster.wait_replicas("pair", PATIENCE)
        pair = lambda: [r["node_id"] for s in self.cluster.shards_of("pair") for r in s["replicas"]]
        node = self.rng.choice(pair())
        plan = self.must("node", "drain", node)
        self.assertEqual({m["collection"] for m in plan["moves"]}, {"pair"})
        self.assertIn("nowhere to go", plan["trouble"])
        self.wait(lambda: node not in pair(), "what has a place does not move")
        self.wait(lambda: any("nowhere to go" in p["trouble"] for p in self.status()["plans"]), "what waits is not told")
        self.assertEqual(self.must("node", "drain", node)["plan_id"], plan["plan_id"])
        place = self.cluster.new_node()
        place.start()
        self.must("node", "add", place.address)
        over = self.wait(lambda: self.ended(plan["plan_id"]), "the drain does not end")
        self.assertFalse(over["canceled"])
        self.assertEqual(self.held()[node], 0)
        self.check()

    def test_a_plan_that_is_canceled_begins_nothing_more(self):
        self.start(nodes=4, shards=4)
        node = self.rng.choice([1, 2, 3, 4])
        plan = self.must("node", "drain", node)
        self.must("operations", "cancel", "--plan", plan["plan_id"])
        over = self.wait(lambda: self.ended(plan["plan_id"]), "the plan does not end")
        self.assertTrue(over["canceled"])
        self.assertEqual(over["moves_done"] + over["moves_canceled"], over["moves_begun"])
        self.assertEqual(self.status()["operations"], [])
        again = self.must("node", "drain", node)  # it drains still, for a new plan
        self.assertNotEqual(again["plan_id"], plan["plan_id"])
        self.must("node", "activate", node)  # that ends as well, when what was begun has ended
        self.wait(lambda: self.ended(again["plan_id"]), "the plan does not end")
        self.assertTrue(self.ended(again["plan_id"])["canceled"])
        self.check()


if __name__ == "__main__":
    unittest.main()

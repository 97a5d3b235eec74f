"""A cluster of two releases, with real processes: `omen-node-older` is a node whose feature level is one less. While one of it is
left nothing is written that it cannot read, and everything works; when the last one was replaced the version is raised by itself,
what is new can be used, and the old build is refused."""
import json
import os
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from omen_server import BUILD
from partition import LocalCluster, Node

import omendb

PATIENCE = 180
OLDER = Path(BUILD).resolve() / "tests" / "omen-node-older"


class AnyNode(Node):
    binary = OLDER

    def command(self):
        return [self.binary, *super().command()[1:]]

    def metric(self, name):
        import urllib.request
        with urllib.request.urlopen(self.http + "/metrics", timeout=30) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith(name + " "):
                    return int(float(line.rpartition(" ")[2]))


class MixedCluster(LocalCluster):
    node_class = AnyNode


class Versions(unittest.TestCase):
    def setUp(self):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = MixedCluster(BUILD, self.work, nodes=3, routers=1)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        self.old = self.cluster.nodes[0].metric("omendb_node_feature_level")
        self.new = self.old + 1

    def wait(self, condition, what):
        deadline = time.monotonic() + PATIENCE
        while not (got := condition()):
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.05)
        return got

    def version(self):
        """None: nobody leads at the moment."""
        done = self.cluster.omenctl("--json", "cluster", "version", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def levels(self):
        told = self.version()
        return told and [n["level"] for n in sorted(told["nodes"], key=lambda n: n["node_id"])]

    def write(self, first, count):
        self.docs.upsert(list(range(first, first + count)), [[float(i), 1.0] for i in range(first, first + count)], [{"t": 1}] * count)
        self.points += count
        self.assertEqual(self.docs.count(), self.points)
        # More than one entry takes, in each shard: level 3 records such a write as what it is, before it there are only its pages.
        done = self.docs.set_payload(None, {"at": first, "pad": "x"}, filter={"must": [{"key": "t", "match": {"value": 1}}]})
        self.assertEqual(done.affected, self.points)
        self.assertEqual(self.docs.count({"must": [{"key": "at", "match": {"value": first}}]}), self.points)

    def upgrade(self, node):
        node.stop()
        node.binary = Path(BUILD).resolve() / "omen-node"
        node.start()
        node.wait_ready(PATIENCE)
        self.cluster.wait_replicas("docs", PATIENCE)

    def test_a_rolling_upgrade_and_no_way_back(self):
        nodes, self.points = self.cluster.nodes, 0
        self.assertEqual(self.wait(self.version, "the version is not told")["version"], self.old)
        self.db = omendb.connect([self.cluster.routers[0].listen], timeout=PATIENCE)
        self.addCleanup(self.db.close)
        self.docs = self.db.create_collection("docs", 2, metric="l2", shards=2, replication=3)
        self.cluster.wait_replicas("docs", PATIENCE)
        self.write(0, 5000)

        for done, node in enumerate(nodes[:2], 1):  # one of the older build stays: whoever leads, nothing is raised
            self.upgrade(node)
            self.wait(lambda: (self.levels() or []).count(self.new) == done, "the level of an upgraded node is not told")
            self.write(10000 * done, 50)
        self.cluster.omenctl("leader", "transfer", self.cluster.shards_of("docs")[0]["shard_id"], check=False)
        self.db.create_collection("more", 2, metric="l2")
        told = self.wait(self.version, "the version is not told")
        self.assertEqual((told["version"], told["held"]), (self.old, False))
        if self.old == 1:  # holding is what level 2 brought: it would stop the older node
            refused = self.cluster.omenctl("cluster", "version", "--hold", check=False)
            self.assertNotEqual(refused.returncode, 0)
            self.assertIn(f"the cluster is at version {self.old}", refused.stderr)
        else:
            self.cluster.omenctl("cluster", "version", "--hold")
            self.cluster.omenctl("cluster", "version", "--release")
        self.cluster.wait_replicas("docs", PATIENCE)  # the older one still follows
        nodes[2].wait_ready(PATIENCE)

        self.upgrade(nodes[2])
        self.wait(lambda: (told := self.version()) and told["version"] == self.new, "the version is not raised")
        self.assertTrue(json.loads(self.cluster.omenctl("--json", "cluster", "version", "--hold").stdout)["held"])
        self.assertEqual(self.wait(self.cluster.status, "no status")["cluster"]["version"], self.new)
        self.wait(lambda: all(n.metric("omendb_cluster_version") == self.new for n in nodes), "a node has not heard of it")
        self.write(50000, 50)

        nodes[2].stop()
        nodes[2].binary = OLDER
        nodes[2].start()
        self.assertTrue(nodes[2].wait_end(PATIENCE), "the older build serves a cluster of a version that it does not read")
        self.assertIn(f"is at version {self.new}, this build reads up to version {self.old}", nodes[2].log_path.read_text())
        stranger = self.cluster.new_node()
        stranger.joins = True
        stranger.start()
        self.wait(lambda: f"is at version {self.new}, the build of the node at {stranger.address} reads up to version {self.old}"
                  in stranger.log_path.read_text(), "a node of the older build is not told why it may not join")
        self.upgrade(nodes[2])
        self.write(60000, 50)


if __name__ == "__main__":
    unittest.main()

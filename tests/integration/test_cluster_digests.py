"""A replica whose points are not what the log made of them, with every checksum right, is found by what the others hold, serves
nothing any more and is replaced."""
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np

import omendb
from omen_server import BUILD
from partition import LocalCluster

DIM = 8
PATIENCE = 120
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))


def setUpModule():
    print(f"seed {SEED}")


class Digests(unittest.TestCase):
    def setUp(self):
        self.rng = random.Random(SEED)
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = LocalCluster(BUILD, self.work, routers=1)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        self.db = omendb.connect(self.cluster.endpoints, timeout=PATIENCE)
        self.addCleanup(self.db.close)
        self.docs = self.db.create_collection("docs", DIM, metric="l2", replication=3)
        self.cluster.wait_replicas("docs", PATIENCE)
        self.shard = self.cluster.shards_of("docs")[0]["shard_id"]
        self.next = 0

    def wait(self, what, why):
        deadline = time.monotonic() + PATIENCE
        while not (result := what()):
            self.assertLess(time.monotonic(), deadline, why)
            time.sleep(0.05)
        return result

    def replicas(self):
        return self.cluster.shards_of("docs")[0]["replicas"]

    def write(self, count):
        """One entry for each point; everybody has applied them then, but has had no checkpoint since: few points, just written."""
        for _ in range(count):
            sequence = self.docs.upsert([self.next], np.full((1, DIM), self.next, dtype=np.float32)).sequence
            self.next += 1
        self.wait(lambda: all(r["applied"] >= sequence for r in self.replicas()), "a replica does not follow")

    def forge(self, victim, replica_id):
        """Points for the last entries that a replica has of its own; false: it has made a checkpoint after them."""
        applied = next(r["applied"] for r in self.replicas() if r["replica_id"] == replica_id)
        victim.kill9()
        (store,) = (victim.dir / "data" / "shards").glob(f"{self.shard}-{replica_id}/g*")
        forged = subprocess.run([BUILD / "tests" / "store-forge", store, str(self.shard), str(replica_id), str(DIM), str(applied)],
                                check=True, capture_output=True, text=True).stdout
        victim.start()
        return int(forged) > 0

    def test_a_replica_with_other_points_than_its_peers_is_replaced(self):
        self.write(20)
        victim = self.rng.choice(self.cluster.nodes)
        old = next(r["replica_id"] for r in self.replicas() if r["node_id"] == victim.node_id)

        def forged():
            self.write(5)
            return self.forge(victim, old)

        self.wait(forged, "there is no moment without a checkpoint")

        def replaced():
            here = [r for r in self.replicas() if r["node_id"] == victim.node_id]
            return len(here) == 1 and here[0]["replica_id"] != old and here[0]["ready"]

        self.wait(replaced, "the replica that differs is not replaced")
        self.assertTrue(re.search(f"shard.distrusted shard={self.shard} replica={old}", victim.log_path.read_text()))
        self.cluster.wait_replicas("docs", PATIENCE)
        self.write(1)
        for node in self.cluster.nodes:  # whoever leads, the same points
            if self.cluster.leader_of(self.shard, "docs") is not node:
                self.db.cluster("leader_transfer", shard_id=self.shard, to_node=node.node_id)
                self.wait(lambda: self.cluster.leader_of(self.shard, "docs") is node, "leadership does not go over")
            self.assertEqual([p.id for p in self.docs.scroll(limit=1000)], list(range(self.next)), node.name)
        self.assertTrue(all(r["state"] == "ready" for r in self.replicas()), self.replicas())


if __name__ == "__main__":
    unittest.main()

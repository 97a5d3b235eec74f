"""Options, expiry, wait levels and writes by filter in a cluster of real processes: every node takes a change up, and what was
promised holds when leaders are killed."""
import os
import random
import shutil
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

DIM = 8
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))


def setUpModule():
    print(f"seed {SEED}")


class ClusterOptions(unittest.TestCase):
    def setUp(self):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = LocalCluster(BUILD, self.work)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()

    def rows(self, count):
        return np.random.default_rng(SEED).standard_normal((count, DIM), dtype=np.float32)

    def leader(self, name):
        return self.cluster.leader_of(self.cluster.shards_of(name)[0]["shard_id"], name)

    def test_options_reach_every_replica_and_outlive_its_leader(self):
        with omendb.connect(self.cluster.endpoints, timeout=60) as db:
            docs = db.create_collection("docs", dim=DIM, replication=3, options={"write_mode": "stream_only",
                                                                                "index_delay_ms": 3_600_000})
            db.set_options("docs", write_mode="immediate_index", recall_target=0.93)
            docs.upsert(range(2000), self.rows(2000), batch_points=2000, wait="indexed")
            self.cluster.wait_replicas("docs")
            told = docs.search(self.rows(1)[0], explain=True).explain["shards"][0]
            self.assertIn(told["role"], ("leader", "follower"))  # whoever was asked, says who it is
            self.assertEqual(told["role"] == "leader", "term" in told)
            self.assertIn(told["node"], (1, 2, 3))
            for node in db.cluster_status()["nodes"]:
                self.assertGreater(node["memory"]["budget"], node["memory"]["used"])
                self.assertGreater(node["memory"]["used"], 0)
            leader = self.leader("docs")
            leader.kill9()
            docs.upsert([2000], self.rows(1))  # another leads now
            leader.start()
            self.cluster.wait_whole()
            docs.upsert(range(3000, 5000), self.rows(2000), batch_points=2000, wait="indexed")  # and indexes as told
            described = docs.describe()
            self.assertEqual(described["options"]["write_mode"], "immediate_index")
            self.assertEqual(described["options"]["index_delay_ms"], 3_600_000)
            self.assertAlmostEqual(described["recall_target"], 0.93, places=6)

    def test_points_end_at_their_time_whoever_leads(self):
        with omendb.connect(self.cluster.endpoints, timeout=60) as db:
            docs = db.create_collection("docs", dim=DIM, replication=3)
            soon = int(time.time() * 1000) + 4000
            docs.upsert(range(3000), self.rows(3000), expires_ms=[soon if i % 3 else None for i in range(3000)])
            self.cluster.wait_replicas("docs")
            self.leader("docs").kill9()
            while time.time() * 1000 < soon:
                time.sleep(0.05)
            self.assertEqual(docs.count(), 1000)  # nobody has written since
            self.assertEqual([p.id % 3 for p in docs.scroll()], [0] * 1000)
            deadline = time.monotonic() + 60
            while docs.describe()["points"] != 1000:  # and they leave, though nobody writes
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.1)

    def test_a_write_by_filter_is_finished_though_its_leader_is_killed(self):
        rng = random.Random(SEED)
        # What another client deleted, a session of this one may not see yet.
        with omendb.connect(self.cluster.endpoints, timeout=120, consistency="linearizable") as db, \
                omendb.connect(self.cluster.endpoints, timeout=120) as other:
            docs = db.create_collection("docs", dim=DIM, replication=3)
            for turn in range(3):
                docs.upsert(range(20000), self.rows(20000), [{"n": i} for i in range(20000)])
                self.cluster.wait_replicas("docs")
                leader, failed = self.leader("docs"), []

                def delete():
                    try:
                        other.collection("docs").delete(filter={"must": [{"key": "n", "range": {"gte": 5000}}]})
                    except Exception as e:
                        failed.append(e)
                thread = threading.Thread(target=delete)
                thread.start()
                time.sleep(rng.random() * 0.2)
                leader.kill9()
                thread.join()
                self.assertEqual(failed, [])
                self.assertEqual(docs.count(), 5000)
                leader.start()
                self.cluster.wait_whole()


if __name__ == "__main__":
    unittest.main()

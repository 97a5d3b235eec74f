"""Live recall, end to end: what real searches got is measured against exact answers and shown; when it falls below the
target, because queries come from elsewhere and the points were written anew, it is brought back."""
import json
import time
import unittest
import urllib.request

import numpy as np

import omendb
from omen_server import Server

DIM, ROWS, CLUSTERS = 64, 20000, 40
WAIT_S = 60


class LiveRecall(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(args=["--set", "recall.cpu_percent=100", "--set", "index.rows_min=2000"]).start()
        cls.db = omendb.connect(cls.server.address)
        cls.rng = np.random.default_rng(11)
        cls.centres = cls.rng.standard_normal((CLUSTERS, DIM), dtype=np.float32) * 4

    @classmethod
    def tearDownClass(cls):
        cls.db.close()
        cls.server.close()

    def clustered(self, n):
        noise = self.rng.standard_normal((n, DIM), dtype=np.float32) * 0.4
        return self.centres[self.rng.integers(0, CLUSTERS, n)] + noise

    def write(self, collection, rows):
        for at in range(0, len(rows), 5000):
            part = rows[at:at + 5000]
            collection.upsert(np.arange(at, at + len(part)), part, wait="indexed" if at + 5000 >= len(rows) else "committed")

    def describe(self, name):
        return json.loads(self.server.omenctl("--json", "collections", "describe", name).stdout)

    def search_until(self, collection, name, queries, done):
        """Search on until `done(measured recall)`, or fail."""
        deadline, seen = time.monotonic() + WAIT_S, None
        while time.monotonic() < deadline:
            for q in queries():
                collection.search(q, k=10)
            seen = self.describe(name).get("recall")
            if seen is not None and done(seen):
                return seen
        self.fail(f"recall stays {seen}")

    def test_recall_is_measured_shown_and_brought_back(self):
        items = self.db.create_collection("items", dim=DIM, recall_target=0.95)
        self.assertNotIn("recall", self.describe("items"))  # nobody has searched
        self.write(items, self.clustered(ROWS))
        seen = self.search_until(items, "items", lambda: self.clustered(200), lambda r: r["searches"] >= 256)
        self.assertLessEqual(seen["low"], seen["measured"])
        self.assertLessEqual(seen["measured"], seen["high"])
        self.assertGreaterEqual(seen["high"], 0.95)
        text = self.server.omenctl("collections", "describe", "items").stdout
        self.assertRegex(text, r"recall +[01]\.\d{4} \([01]\.\d{4} to [01]\.\d{4}, 95 %\) over \d+ searches")
        metrics = urllib.request.urlopen(self.server.http + "/metrics").read().decode()
        self.assertRegex(metrics, r'omendb_node_recall_ppm\{collection="items",shard="\d+"\} [1-9]')
        self.assertRegex(metrics, r"omendb_node_recall_cpu_milliseconds_total [1-9]")

        # Queries from between the clusters, as no held-out row is, over points written anew.
        self.write(items, self.clustered(ROWS))
        between = lambda: self.rng.standard_normal((200, DIM), dtype=np.float32)
        probe = between()[:100]
        exact = [items.search(q, k=10, exact=True).ids for q in probe]
        deadline, found = time.monotonic() + WAIT_S, 0
        while found < 900 and time.monotonic() < deadline:  # counts of the time before the shift fade out meanwhile
            for q in between():
                items.search(q, k=10)
            found = sum(len(set(items.search(q, k=10).ids) & set(ids)) for q, ids in zip(probe, exact))
        self.assertGreaterEqual(found / 1000, 0.90)
        seen = self.search_until(items, "items", between, lambda r: r["searches"] >= 256 and r["high"] >= 0.95)
        print("recall after the shift", seen)


if __name__ == "__main__":
    unittest.main()

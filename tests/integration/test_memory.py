"""A node in a memory cgroup of a quarter of what its data would like: answers are right, it goes on indexing, is not killed
and starts again. Nothing is configured: it finds the limit by itself.

Needs the right to make a cgroup; says so and skips where there is none.
"""
import os
import random
import sys
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests" / "integration"), str(TOP / "tools" / "python")]

import omendb
from omen_server import BUILD, Server

ROWS, DIM, QUERIES, K, BATCH = 100_000, 256, 10, 10, 500
WISH = 4.4  # times its vectors: peak of resident bytes of a node without a limit (515 MB of 117 MB, 120,000 rows of 256)
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 31)))
SECONDS = 120  # until some of it is indexed, whatever else the machine does
PATIENCE = 30  # for the rest: a loaded machine has little time for the index
LEFT = 10_000  # rows that are not worth a graph


class Cgroup:
    """A memory cgroup of either version; None from make() where none can be made."""

    def __init__(self, path, limit, v1):
        self.path = path
        (path / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit))

    @classmethod
    def make(cls, limit):
        v1 = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
        path = Path("/sys/fs/cgroup/memory" if v1 else "/sys/fs/cgroup") / f"omen-memory.{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            return None
        try:
            return cls(path, limit, v1)
        except OSError:
            path.rmdir()
            return None

    def runner(self, directory):
        """A program that is omen-node inside the cgroup."""
        path = Path(directory) / "omen-node-in-cgroup"
        path.write_text(f'#!/bin/sh\necho $$ > {self.path}/cgroup.procs\nexec {BUILD}/omen-node "$@"\n')
        path.chmod(0o755)
        return path

    def remove(self):
        for _ in range(100):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.05)


def metrics(server, *names):
    lines = server.http_get("/metrics")[1].splitlines()
    return [line for line in lines if line.startswith(names)]


def unindexed(server):
    return sum(float(line.rpartition(" ")[2]) for line in metrics(server, "omendb_node_unindexed_points{"))


class Memory(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED}")
        rng = np.random.default_rng(SEED)
        centres = rng.normal(size=(200, DIM)).astype(np.float32) * 3
        cls.rows = (centres[rng.integers(0, 200, ROWS)] + rng.normal(size=(ROWS, DIM))).astype(np.float32)
        cls.queries = (centres[rng.integers(0, 200, QUERIES)] + rng.normal(size=(QUERIES, DIM))).astype(np.float32)
        norms = (cls.rows ** 2).sum(axis=1)
        cls.truth = [np.sort(norms - 2 * cls.rows @ q + (q ** 2).sum())[K - 1] for q in cls.queries]
        cls.cgroup = Cgroup.make(int(WISH * cls.rows.nbytes / 4))
        if cls.cgroup is None:
            raise unittest.SkipTest("no memory cgroup can be made here")

    @classmethod
    def tearDownClass(cls):
        cls.cgroup.remove()

    def check(self, docs, exact):
        """Every answer has k points, each at its own distance; the nearest of them nearly always, exact ones all."""
        found, begin = 0, time.monotonic()
        for q, bound in zip(self.queries, self.truth):
            hits = docs.search(q, k=K, exact=exact)
            self.assertEqual(len(hits), K)
            self.assertEqual(len({h.id for h in hits}), K)
            found += sum(float(((self.rows[h.id] - q) ** 2).sum()) <= bound * 1.0001 for h in hits)
        seconds = (time.monotonic() - begin) / QUERIES
        print(f"exact {exact}: recall {found / (QUERIES * K):.3f}, {seconds * 1000:.1f} ms")
        self.assertGreaterEqual(found, QUERIES * K * (1 if exact else 0.8))

    def test_a_quarter_of_the_memory_gives_right_answers(self):
        with tempfile.TemporaryDirectory(prefix="omen-") as work, Server(binary=self.cgroup.runner(work)) as server:
            docs = omendb.connect(server.listen, timeout=120).create_collection("docs", dim=DIM, metric="l2", shards=1)
            for first in range(0, ROWS, BATCH):
                docs.upsert(range(first, first + BATCH), self.rows[first:first + BATCH])
            self.check(docs, False)
            self.check(docs, True)
            begin = time.monotonic()
            while (left := unindexed(server)) > LEFT:
                seconds = time.monotonic() - begin
                if seconds > PATIENCE and left < ROWS:
                    break
                self.assertLess(seconds, SECONDS, metrics(server, "omendb_node_memory", "omendb_node_un"))
                time.sleep(0.2)
            print(f"{left:.0f} not indexed after {time.monotonic() - begin:.1f} s")
            print(*metrics(server, "omendb_node_memory"), sep="\n")
            self.check(docs, False)
            self.check(docs, True)
            server.restart()
            docs = omendb.connect(server.listen, timeout=120).collection("docs")
            self.check(docs, False)
            self.assertEqual(docs.count(), ROWS)


if __name__ == "__main__":
    unittest.main()

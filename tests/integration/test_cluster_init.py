"""A node that was asked to begin a cluster and ended before the cluster's first entry: at its next start it makes that cluster, by
the name that was asked for, and who repeats the request is told so. What such a node leaves behind is its NODE file alone."""
import shutil
import struct
import tempfile
import time
import unittest
from pathlib import Path

from omen_server import BUILD
from partition import LocalCluster

import omendb

PATIENCE = 120


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def founder_file(birth, cluster_id, op_id, name):
    """NODE v3, as node/data_dir.c has it."""
    head = struct.pack("<4sHH", b"OMND", 3, 1)
    rest = struct.pack("<I6Q3Q64s8x", 1, 1, 4711, 1, cluster_id, birth, 0, *op_id, name)
    return head + struct.pack("<I", crc32c(head + rest)) + rest


class Init(unittest.TestCase):
    def start(self, issued_ms_ago):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = LocalCluster(BUILD, self.work, nodes=1, routers=1)
        self.addCleanup(self.cluster.stop)
        self.op_id = [7, 1, int(time.time() * 1000) - issued_ms_ago]
        node = self.cluster.nodes[0]
        node.data.mkdir(parents=True)
        (node.data / "NODE").write_bytes(founder_file(99, 123456, self.op_id, b"ours"))
        self.cluster.start_processes()
        node.wait_ready(PATIENCE)
        self.cluster.routers[0].wait_ready(PATIENCE)
        self.db = omendb.connect([self.cluster.routers[0].listen], timeout=PATIENCE)
        self.addCleanup(self.db.close)
        deadline = time.monotonic() + PATIENCE
        while (status := self.cluster.status()) is None:
            self.assertLess(time.monotonic(), deadline, "nobody answers")
        self.assertEqual(status["cluster"]["name"], "ours")

    def init(self, op_id):
        return self.db._call({"op": "cluster", "request": {"do": "init", "name": "ours"}, "op_id": op_id})["reply"]["cluster_id"]

    def test_who_repeats_init_is_told_of_the_cluster_that_a_later_life_of_the_node_made(self):
        self.start(issued_ms_ago=1000)
        self.assertEqual(self.init(self.op_id), "123456")
        with self.assertRaises(omendb.AlreadyExists):
            self.init([8, 1, self.op_id[2]])

    def test_a_cluster_is_made_though_who_asked_for_it_could_not_be_told_any_more(self):
        self.start(issued_ms_ago=3_600_000)
        with self.assertRaises(omendb.OmenError):
            self.init(self.op_id)


if __name__ == "__main__":
    unittest.main()

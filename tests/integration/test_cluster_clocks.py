"""A node whose clock is off the others' does not lead (CORRECTNESS A3), with real processes whose wall clocks are shifted: it hands
over its shards and the cluster group, writes go on, people are told why, and it leads again when its clock was set. And on a machine
that is too busy nobody is called off."""
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request
from pathlib import Path

from omen_server import BUILD
from partition import LocalCluster, Node

import omendb

SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
PATIENCE = 180
SHARDS = 6
SECOND = 1_000_000_000


def setUpModule():
    print(f"seed {SEED}")


class ShiftedNode(Node):
    """omen-node whose wall clock can be set."""

    @property
    def shift_file(self):
        return self.cluster.work / f"shift-{self.name}"

    def shift(self, ns):
        with open(self.shift_file, "r+b") as f:
            f.write(struct.pack("=q", ns))

    def command(self):
        self.shift_file.parent.mkdir(parents=True, exist_ok=True)
        if not self.shift_file.exists():
            self.shift_file.write_bytes(bytes(8))
        return ["env", f"LD_PRELOAD={self.cluster.shim}", f"OMEN_TEST_WALL_SHIFT={self.shift_file}",
                "ASAN_OPTIONS=" + ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "verify_asan_link_order=0"])),
                *super().command()]


class ShiftedCluster(LocalCluster):
    node_class = ShiftedNode

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.shim = self.work / "wall_clock_shift.so"
        source = Path(__file__).with_name("wall_clock_shift.c")
        self.work.mkdir(parents=True, exist_ok=True)
        subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", self.shim, source], check=True)

    def wait(self, what, is_so):
        """The first status that is so."""
        deadline, status = time.monotonic() + PATIENCE, None
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and is_so(status):
                return status
            time.sleep(0.1)
        raise AssertionError(f"{what}: not so after {PATIENCE} s, status {status}")


def node_in(status, node):
    return next(n for n in status["nodes"] if n["node_id"] == node.node_id)


class Writer(threading.Thread):
    """Writes points one after the other until told to end; all of them must be taken."""

    def __init__(self, endpoints):
        super().__init__(daemon=True)
        self.endpoints, self.ending, self.written, self.failure = endpoints, threading.Event(), 0, None
        self.longest = 0.0  # seconds that one write took

    def run(self):
        try:
            with omendb.connect(self.endpoints, timeout=60) as client:
                collection = client.collection("c")
                while not self.ending.is_set():
                    began = time.monotonic()
                    collection.upsert([self.written], [[1, 2, 3, 4]])
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.written += 1
                    time.sleep(0.01)
        except Exception as e:  # told by the test's thread
            self.failure = e

    def end(self):
        self.ending.set()
        self.join()
        if self.failure is not None:
            raise AssertionError(f"write {self.written} failed") from self.failure


class Clocks(unittest.TestCase):
    def setUp(self):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = ShiftedCluster(BUILD, self.work, nodes=3, routers=1)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        with omendb.connect(self.cluster.endpoints, timeout=60) as client:
            client.create_collection("c", 4, metric="l2", shards=SHARDS, replication=3)
        self.cluster.wait_replicas("c")
        self.cluster.wait("all clocks are known", lambda s: all(n["clock"]["known"] for n in s["nodes"]))

    def logs(self):
        return "".join(n.log_path.read_text(errors="replace") for n in self.cluster.nodes)

    def metric(self, node, name):
        with urllib.request.urlopen(node.http + "/metrics", timeout=30) as reply:
            return float(re.search(rf"^{name} (\S+)$", reply.read().decode(), re.M).group(1))

    def lead(self, node):
        """Until the node leads a shard."""
        shard = self.cluster.shards_of("c")[0]["shard_id"]

        def leads(status):
            if node_in(status, node)["leaders"] > 0:
                return True
            self.cluster.omenctl("leader", "transfer", shard, node.node_id, check=False)  # refused while another is under way
            return False
        self.cluster.wait("it leads a shard", leads)

    def wait_shown(self, pattern):
        """Until `omenctl cluster status` has such a line: for a moment nothing may be known of a node that is slow."""
        deadline, text = time.monotonic() + PATIENCE, ""
        while time.monotonic() < deadline:
            text = self.cluster.omenctl("cluster", "status", check=False).stdout
            if re.search(pattern, text):
                return
            time.sleep(0.1)
        self.fail(f"{pattern} is not shown after {PATIENCE} s: {text}")

    def off_and_back(self, node, ns):
        """Shifts a node that is right, sees it out of office, sets it right."""
        node.shift(ns)
        began = time.monotonic()
        status = self.cluster.wait("it leads nothing", lambda s: node_in(s, node)["clock"]["off"] and
                                   s["cluster"]["leader_node"] not in (0, node.node_id) and
                                   sum(n["leaders"] for n in s["nodes"]) == SHARDS and node_in(s, node)["leaders"] == 0 and
                                   node_in(s, node)["clock"]["known"])
        print(f"{ns / 1e9:+.0f} s: out of office after {time.monotonic() - began:.1f} s")
        seen = node_in(status, node)["clock"]
        # What one clock is against the median of three on one machine; half a round trip is told beside it.
        self.assertLessEqual(abs(seen["skew_ms"] - ns / 1e6), seen["error_ms"] + 100, seen)
        self.assertEqual([n["clock"]["off"] for n in status["nodes"]].count(True), 1)
        self.wait_shown(rf"{'[+]' if ns > 0 else '-'}\d{{4,}} ms .*its clock is off")
        self.assertEqual(self.metric(node, "omendb_node_clock_off"), 1)
        self.assertGreater(abs(self.metric(node, "omendb_node_clock_skew_milliseconds")), 500)
        node.shift(0)
        self.cluster.wait("it is right again", lambda s: not node_in(s, node)["clock"]["off"])
        self.assertEqual(self.metric(node, "omendb_node_clock_off"), 0)
        self.assertNotIn("its clock is off", self.cluster.omenctl("cluster", "status").stdout)

    def test_a_node_whose_clock_is_off_leads_nothing_until_it_is_set(self):
        writer = Writer(self.cluster.endpoints)
        writer.start()
        status = self.cluster.wait("somebody leads shards", lambda s: sum(n["leaders"] for n in s["nodes"]) == SHARDS)
        leader = self.cluster.node_of_id(status["cluster"]["leader_node"])
        other = next(n for n in self.cluster.nodes if n is not leader)
        self.lead(other)
        self.off_and_back(other, 2 * SECOND)
        self.lead(other)  # again, and it is let be
        self.off_and_back(leader, -5 * SECOND)  # the one whose answers tell the others
        before = writer.written
        deadline = time.monotonic() + PATIENCE
        while writer.written < before + 10 and time.monotonic() < deadline:
            time.sleep(0.05)
        writer.end()
        self.assertGreaterEqual(writer.written, before + 10)
        print(f"the longest of {writer.written} writes took {writer.longest:.1f} s")
        with omendb.connect(self.cluster.endpoints, timeout=60, consistency="linearizable") as client:
            self.assertEqual(client.collection("c").count(), writer.written)

    def test_a_busy_machine_makes_no_clock_wrong(self):
        burn = [sys.executable, "-c", "while True: pass"]
        burners = [subprocess.Popen(burn) for _ in range(4 * (os.cpu_count() or 2))]
        try:
            writer = Writer(self.cluster.endpoints)
            writer.start()
            time.sleep(float(os.environ.get("OMEN_TEST_BUSY_SECONDS", 10)))
            writer.end()
        finally:
            for b in burners:
                b.kill()
                b.wait()
        self.assertNotIn("member.clock_off", self.logs())
        self.assertGreater(writer.written, 0)


if __name__ == "__main__":
    unittest.main()

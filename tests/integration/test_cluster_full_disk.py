"""Full disks in a cluster of real processes, each node on a loop-mounted file system of its own: writes are refused and say why,
reads and deletes go on, also where not one byte is left on any node and all of them were killed, and with room everything resumes by
itself. Nothing acknowledged is lost, nothing refused was begun."""
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy as np

import omendb
from omen_server import BUILD
from partition import LocalCluster, Node

DIM = 16
DISK_BYTES = 192 << 20
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
LEAVE = 12 << 20  # less than the tenth below which writes are refused; enough for deletes
PATIENCE = 120
SMALL = ["--set", "storage.chunk_bytes=1MiB", "--set", "storage.delta_bytes_max=256KiB", "--set", "wal.segment_bytes=1MiB",
         "--set", "checkpoint.log_bytes=2MiB"]


def setUpModule():
    print(f"seed {SEED}")


def row(i):
    return np.random.default_rng((SEED, i)).standard_normal(DIM, dtype=np.float32)


class DiskNode(Node):
    """omen-node with its data on a file system of its own, which others may fill."""

    @property
    def disk(self):
        return self.cluster.work / f"disk-{self.name}"

    @property
    def data(self):
        return self.disk / "data"

    def mount(self, test):
        image = self.cluster.work / f"image-{self.name}"
        self.disk.mkdir(parents=True)
        with open(image, "wb") as f:
            f.truncate(DISK_BYTES)
        subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
        if subprocess.run(["mount", "-o", "loop", image, self.disk], stderr=subprocess.DEVNULL).returncode != 0:
            test.skipTest("cannot mount a loop device here")
        test.addCleanup(subprocess.run, ["umount", "--lazy", self.disk])

    def others_take(self, leave=0):
        """All but so many bytes."""
        with open(self.disk / "others", "ab", buffering=0) as f:
            try:
                for size in (1 << 20, 4096):
                    while os.statvfs(self.disk).f_bavail * 4096 > leave:
                        f.write(b"\1" * size)
            except OSError:
                pass

    def others_leave(self):
        (self.disk / "others").unlink()


class DiskCluster(LocalCluster):
    node_class = DiskNode


class Writer(threading.Thread):
    """Upserts new points in batches. A batch that is refused for want of disk was not begun; of one that was on its way when the
    disks became full nobody may know. The next one has new points."""

    BATCH = 20

    def __init__(self, endpoints):
        super().__init__()
        self.endpoints, self.acked, self.refused, self.unknown, self.why, self.errors = endpoints, {}, [], [], "", []
        self.last_acked = time.monotonic()
        self.stopping = threading.Event()
        self.start()

    def run(self):
        first = 0
        try:
            with omendb.connect(self.endpoints, timeout=5) as db:
                docs = db.collection("docs")
                while not self.stopping.is_set():
                    ids = list(range(first, first + self.BATCH))
                    first += self.BATCH
                    try:
                        done = docs.upsert(ids, np.stack([row(i) for i in ids]), [{"n": i, "pad": "x" * 1000} for i in ids])
                        self.acked.update((i, done.sequence) for i in ids)
                        self.last_acked = time.monotonic()
                    except omendb.DiskFull as e:
                        self.refused.extend(ids)
                        self.why = e.message
                        time.sleep(0.05)
                    except (omendb.OutcomeUnknown, omendb.DeadlineExceeded):
                        self.unknown.extend(ids)
        except omendb.OmenError as e:
            self.errors.append(e)

    def stop(self):
        self.stopping.set()
        self.join()


@unittest.skipUnless(os.geteuid() == 0 and os.path.exists("/dev/loop-control"), "needs root and loop devices")
class ClusterFullDisk(unittest.TestCase):
    def start(self, percent=10):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = DiskCluster(BUILD, self.work, node_args=SMALL + ["--set", f"disk.min_free_percent={percent}"])
        for node in self.cluster.nodes:
            node.mount(self)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        self.cluster.omenctl("collections", "create", "docs", "--dim", DIM, "--metric", "l2", "--replication", 3)
        self.shard = self.cluster.shards_of("docs")[0]["shard_id"]
        self.cluster.wait_replicas("docs", PATIENCE)
        self.gone = []
        self.writer = Writer(self.cluster.endpoints)
        self.addCleanup(self.writer.stop)
        self.wait(lambda: len(self.writer.acked) > 500, "nothing is written")

    def wait(self, what, why):
        deadline = time.monotonic() + PATIENCE
        while not what():
            self.assertEqual(self.writer.errors, [])
            self.assertEqual([p.name for p in self.cluster.processes if not p.alive()], [])
            self.assertLess(time.monotonic(), deadline, f"{why}: {self.cluster.status()}")
            time.sleep(0.05)

    def wait_writes(self, why):
        since = time.monotonic()
        self.wait(lambda: self.writer.last_acked > since, why)
        return time.monotonic() - since

    def wait_refused(self):
        before = len(self.writer.refused)
        self.wait(lambda: len(self.writer.refused) > before, "writes are not refused")
        self.assertIn("disk", self.writer.why)

    def insist(self, what):
        """What goes on with a full disk. A leader that is full, or that has no room for what it should apply, gives way first,
        and the log may wait for a checkpoint to give it a segment."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return what()
            except (omendb.DiskFull, omendb.OutcomeUnknown, omendb.DeadlineExceeded) as e:
                self.assertLess(time.monotonic(), deadline, f"{e.message}: {self.cluster.status()}")
                time.sleep(0.1)

    def read_and_delete(self, ids):
        """The points of `ids` are gone afterwards."""
        with omendb.connect(self.cluster.endpoints, timeout=10, consistency="linearizable") as db:
            docs = db.collection("docs")
            kept = max(self.writer.acked)
            self.assertEqual(self.insist(lambda: docs.search(row(kept), k=1))[0].id, kept)
            self.assertEqual([p.id for p in self.insist(lambda: docs.get([kept]))], [kept])
            self.insist(lambda: docs.delete(ids))
            self.assertEqual(self.insist(lambda: docs.get(ids)), [])
        for i in ids:
            del self.writer.acked[i]
        self.gone += ids

    def check(self):
        self.writer.stop()
        self.assertEqual(self.writer.errors, [])
        print(f"{len(self.writer.acked)} acknowledged, {len(self.writer.refused)} refused, {len(self.writer.unknown)} unknown")
        with omendb.connect(self.cluster.endpoints, timeout=PATIENCE, consistency="linearizable") as db:
            docs, ids = db.collection("docs"), sorted(self.writer.acked)
            perhaps = sum(len(docs.get(self.writer.unknown[i:i + 1000])) for i in range(0, len(self.writer.unknown), 1000))
            self.assertEqual(docs.count(), len(ids) + perhaps)
            for first in range(0, len(ids), 1000):
                part = ids[first:first + 1000]
                found = {p.id: p for p in docs.get(part)}
                self.assertEqual(sorted(found), part, "acknowledged points are lost")
                for i in part:
                    self.assertEqual((found[i].payload["n"], found[i].version), (i, self.writer.acked[i]))
            for ids in (self.gone, self.writer.refused):
                for first in range(0, len(ids), 1000):
                    self.assertEqual(docs.get(ids[first:first + 1000]), [])

    def one_node(self, victim, leave):
        victim.others_take(leave)
        self.wait_refused()
        self.read_and_delete(sorted(self.writer.acked)[:10])
        self.wait_writes("writes do not go on although a majority has room")  # after the grace that one of three is given
        self.wait(lambda: self.cluster.leader_of(self.shard, "docs") is not victim, "a full disk leads")  # reports are late
        self.read_and_delete(sorted(self.writer.acked)[:10])
        victim.kill9()
        victim.start()  # full, and it comes back
        self.wait_writes("writes stop when a node with a full disk comes back")
        victim.others_leave()
        self.cluster.wait_whole(PATIENCE)
        self.cluster.wait_replicas("docs", PATIENCE)
        next(n for n in self.cluster.nodes if n is not victim).kill9()  # what it missed it has now
        self.check()

    def test_a_follower_with_a_full_disk_is_waited_for_a_while_and_catches_up(self):
        self.start()
        leader = self.cluster.leader_of(self.shard, "docs")
        self.one_node(next(n for n in self.cluster.nodes if n is not leader), leave=0)

    def test_a_leader_with_a_full_disk_gives_way(self):
        self.start()
        self.one_node(self.cluster.leader_of(self.shard, "docs"), leave=LEAVE)

    def all_nodes(self, percent, leave):
        self.start(percent)
        for node in self.cluster.nodes:
            node.others_take(leave)
        for life in range(4):
            self.wait_refused()  # by a leader: there is one
            self.read_and_delete(sorted(self.writer.acked)[:10])
            if life == 3:
                break
            for node in self.cluster.nodes:
                node.signal(signal.SIGKILL)
            for node in self.cluster.nodes:
                node.wait_end(60)
            for node in self.cluster.nodes:
                node.others_take(leave)  # what it gave back when it ended
                node.start()
        for node in self.cluster.nodes:
            node.others_leave()
        self.wait_writes("writes do not resume though there is room")
        self.cluster.wait_whole(PATIENCE)
        self.cluster.wait_replicas("docs", PATIENCE)
        self.check()

    def test_full_disks_everywhere_refuse_writes_early_and_resume(self):
        self.all_nodes(10, LEAVE)

    def test_disks_without_a_byte_left_are_led_read_and_deleted_from(self):
        self.all_nodes(0, 0)


if __name__ == "__main__":
    unittest.main()

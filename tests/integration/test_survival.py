"""What survives: kill -9, a stopped process, a full disk, a torn log tail; and damage that is found, named, never served."""
import glob
import os
import random
import resource
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy as np

import omendb
from omen_server import Server

DIM = 16
# Small files, so that chunks, segments and merges turn over within a test.
SMALL = ["--set", "storage.chunk_bytes=1MiB", "--set", "storage.delta_bytes_max=256KiB", "--set", "wal.segment_bytes=1MiB",
         "--set", "checkpoint.log_bytes=2MiB"]
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))


def setUpModule():
    print(f"seed {SEED}")


def vector(i, version=0):
    return np.random.default_rng((SEED, i, version)).standard_normal(DIM, dtype=np.float32)


def payload(i, version=0):
    return {"n": i, "v": version, "pad": "x" * 100}


def upsert(docs, ids, version=0):
    return docs.upsert(ids, np.stack([vector(i, version) for i in ids]), [payload(i, version) for i in ids])


class Writer(threading.Thread):
    """Writes new points one per request with many in flight, until stopped; knows what was acknowledged."""

    def __init__(self, address, in_flight=128, pad=100):
        super().__init__()
        self.address, self.in_flight, self.pad, self.acked, self.error = address, in_flight, pad, {}, None
        self._stopping = threading.Event()
        self.start()

    def run(self):
        try:
            with omendb.connect(self.address, timeout=60) as db:
                with db.collection("docs").pipeline(in_flight=self.in_flight, on_ack=self._on_ack) as pipeline:
                    i = 0
                    while not self._stopping.is_set():
                        pipeline.upsert([i], vector(i)[None, :], [{**payload(i), "pad": "x" * self.pad}])
                        i += 1
                    self.submitted = i
        except omendb.OmenError as e:
            self.error = e

    def _on_ack(self, ids, result):
        self.acked[ids[0]] = result.sequence

    def wait(self, count):
        deadline = time.monotonic() + 60
        while len(self.acked) < count:
            if time.monotonic() > deadline or not self.is_alive():
                raise AssertionError(f"{len(self.acked)} acknowledgements, {self.error}")
            time.sleep(0.005)

    def stop(self):
        self._stopping.set()
        self.join()
        if self.error is not None:
            raise self.error


class Base(unittest.TestCase):
    def check_all(self, docs, ids, version=0, sequences=None):
        """Every id is there, whole, with the right vector and payload, and was written by the entry that was acknowledged."""
        ids = sorted(ids)
        found = {p.id: p for first in range(0, len(ids), 1000) for p in docs.get(ids[first:first + 1000], with_vectors=True)}
        self.assertEqual(sorted(found), ids)
        for i in ids:
            self.assertEqual(found[i].payload, payload(i, version))
            np.testing.assert_array_equal(found[i].vector, vector(i, version))
            if sequences is not None:
                self.assertEqual(found[i].version, sequences[i], f"point {i} was applied more than once")


class Crashes(Base):
    def test_kill9_while_writing_loses_and_doubles_nothing(self):
        with Server(args=SMALL) as server:
            with omendb.connect(server.address, timeout=60) as db:
                docs = db.create_collection("docs", dim=DIM, metric="l2")
                writer = Writer(server.address)
                for kill in range(3):
                    writer.wait(len(writer.acked) + 1500)
                    server.kill9()
                    server.start()
                writer.wait(len(writer.acked) + 1000)
                writer.stop()
                self.check_all(docs, writer.acked, sequences=writer.acked)
                self.assertEqual(docs.count(), writer.submitted)
                self.assertEqual(len({p.id for p in docs.scroll(page=997)}), writer.submitted)

    def test_orderly_stop_finishes_and_reopens_everything(self):
        with Server(args=SMALL) as server:
            with omendb.connect(server.address, timeout=60) as db:
                docs = db.create_collection("docs", dim=DIM, metric="l2", shards=3)
                upsert(docs, range(3000))
                upsert(docs, range(500), version=1)
                docs.delete(range(2500, 3000))
                for _ in range(2):
                    self.assertEqual(server.stop(), 0)
                    server.start()
                    self.check_all(docs, range(500), version=1)
                    self.check_all(docs, range(500, 2500))
                    self.assertEqual(docs.count(), 2500)
                    self.assertEqual(docs.get(range(2500, 3000)), [])

    def test_retry_with_the_same_op_id_is_applied_once_over_kills(self):
        with Server(args=SMALL) as server:
            with omendb.connect(server.address, timeout=60) as db:
                docs = db.create_collection("docs", dim=DIM, metric="l2")

                def request(version):
                    return {"op": "points.upsert", "collection": "docs", "ids": [1], "payloads": [payload(1, version)],
                            "vectors": vector(1, version).tobytes(), "op_id": db.new_op_id()}
                first, second = request(0), request(1)
                db._call(dict(first))
                db._call(dict(second))
                for restart in (lambda: None, lambda: (server.kill9(), server.start()), server.restart,
                                lambda: (upsert(docs, range(100, 6000)), server.kill9(), server.start())):
                    restart()
                    reply = db._call(dict(first))
                    self.assertTrue(reply["duplicate"])
                    self.check_all(docs, [1], version=1)
                expired = request(2)
                expired["op_id"][2] -= 10 * 60 * 1000
                with self.assertRaises(omendb.OperationExpired):
                    db._call(expired)
                self.check_all(docs, [1], version=1)

    def test_collections_survive_and_dropped_ones_stay_away(self):
        with Server(args=SMALL) as server:
            with omendb.connect(server.address, timeout=60) as db:
                for i in range(6):
                    db.create_collection(f"c{i}", dim=3, metric="ip", shards=2).upsert([i], np.ones((1, 3)))
                db.set_alias("nick", "c1")
                db.drop_collection("c4")
                server.kill9()
                server.start()
                self.assertEqual(sorted(c["name"] for c in db.collections()), ["c0", "c1", "c2", "c3", "c5"])
                self.assertEqual(db.collection("nick").get([1])[0].id, 1)
                db.create_collection("c4", dim=3, metric="ip")
                self.assertEqual(db.collection("c4").count(), 0)
                server.restart()
                self.assertEqual(db.collection("c4").count(), 0)
                self.assertEqual(len(glob.glob(str(server.data / "shards" / "*"))), 5 * 2 + 1)

    def test_stopped_server_is_a_timeout_and_writes_stay_single(self):
        with Server(args=SMALL) as server:
            with omendb.connect(server.address, timeout=60) as db:
                docs = db.create_collection("docs", dim=DIM, metric="l2")
                upsert(docs, range(10))
                server.pause()
                begin = time.monotonic()
                with self.assertRaises((omendb.DeadlineExceeded, omendb.OutcomeUnknown)):
                    db._call({"op": "points.count", "collection": "docs"}, timeout=1)
                self.assertLess(time.monotonic() - begin, 20)
                request = {"op": "points.upsert", "collection": "docs", "ids": [99], "payloads": [payload(99)],
                           "vectors": vector(99).tobytes(), "op_id": db.new_op_id()}
                with self.assertRaises(omendb.OutcomeUnknown):
                    db._call(dict(request), timeout=1)
                server.resume()
                reply = db._call(dict(request))
                self.check_all(docs, [99], sequences={99: reply["tokens"][0][2]})
                self.assertEqual(docs.count(), 11)


class Damage(Base):
    def prepare(self, server, checkpointed):
        with omendb.connect(server.address, timeout=60) as db:
            docs = db.create_collection("docs", dim=DIM, metric="l2")
            for first in range(0, 3000, 100):
                upsert(docs, range(first, first + 100))
        if checkpointed:
            server.stop()
        else:
            server.kill9()

    @staticmethod
    def flip(path, offset):
        with open(path, "r+b") as f:
            f.seek(offset)
            byte = f.read(1)
            f.seek(offset)
            f.write(bytes([byte[0] ^ 0x10]))

    @staticmethod
    def used_bytes(path):
        """Length up to the last byte that is not zero."""
        return len(Path(path).read_bytes().rstrip(b"\0"))

    def refuses(self, server, path):
        code, log = server.start_fails()
        self.assertNotEqual(code, 0)
        self.assertIn(os.path.basename(path), log)
        return log

    def test_torn_log_tail_is_cut_and_nothing_acknowledged_is_lost(self):
        for seed in range(3):
            with Server() as server:
                self.prepare(server, checkpointed=False)
                newest = max(glob.glob(str(server.data / "log" / "*.log")), key=self.used_bytes)
                end = self.used_bytes(newest)
                rng = random.Random(SEED + seed)
                with open(newest, "r+b") as f:  # half a batch that never got its sync
                    f.seek(-(-end // 4096) * 4096)
                    f.write(rng.randbytes(700))
                server.start()
                with omendb.connect(server.address, timeout=60) as db:
                    docs = db.collection("docs")
                    self.check_all(docs, range(3000))
                    upsert(docs, range(3000, 3100))
                server.kill9()
                server.start()
                with omendb.connect(server.address, timeout=60) as db:
                    self.check_all(db.collection("docs"), range(3100))

    def test_flipped_bit_in_the_log_is_named_and_refused(self):
        with Server() as server:
            self.prepare(server, checkpointed=False)
            newest = max(glob.glob(str(server.data / "log" / "*.log")), key=self.used_bytes)
            self.flip(newest, 4096 + self.used_bytes(newest) // 3)
            self.assertIn("offset", self.refuses(server, newest))

    def test_flipped_bit_in_the_stream_is_named_and_refused(self):
        with Server() as server:
            self.prepare(server, checkpointed=True)
            chunk = max(glob.glob(str(server.data / "shards" / "*" / "stream" / "*.chunk")), key=self.used_bytes)
            used = self.used_bytes(chunk)
            rng = random.Random(SEED)
            for _ in range(4):
                offset = 4096 + rng.randrange(used - 4096)
                self.flip(chunk, offset)
                self.assertIn("offset", self.refuses(server, chunk))
                self.flip(chunk, offset)
            server.start()
            with omendb.connect(server.address, timeout=60) as db:
                self.check_all(db.collection("docs"), range(3000))

    def test_collections_leave_files_to_those_there_are(self):
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Server() as server:
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (160, 160))
            with omendb.connect(server.address, timeout=60) as db:
                with self.assertRaisesRegex(omendb.OmenError, "ulimit"):
                    for i in range(100):
                        db.create_collection(f"c{i}", dim=DIM, metric="l2")
                for c in range(i):
                    upsert(db.collection(f"c{c}"), range(20))
            self.assertGreater(i, 5)
            self.assertEqual(server.http_get("/readyz")[0], 200)
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), before)

    def test_flipped_bit_in_one_checkpoint_slot_loses_nothing(self):
        # SMALL merges into the metadata often: also past the older slot, which is then all that is left.
        for slot in (0, 1):
            for orderly in (False, True):
                with self.subTest(slot=slot, orderly=orderly), Server(args=SMALL) as server:
                    with omendb.connect(server.address, timeout=60) as db:
                        docs = db.create_collection("docs", dim=DIM, metric="l2")
                        for first in range(0, 6000, 250):
                            upsert(docs, range(first, first + 250))
                    (server.stop if orderly else server.kill9)()
                    path = glob.glob(str(server.data / "shards" / "*" / "CHECKPOINT"))[0]
                    self.flip(path, 512 * slot + 17)
                    server.start()
                    with omendb.connect(server.address, timeout=60) as db:
                        self.check_all(db.collection("docs"), range(6000))
                        upsert(db.collection("docs"), range(6000, 6100))
                    server.restart()
                    with omendb.connect(server.address, timeout=60) as db:
                        self.check_all(db.collection("docs"), range(6100))

    def test_flipped_bit_in_both_checkpoint_slots_is_named_with_the_remedy(self):
        with Server() as server:
            self.prepare(server, checkpointed=True)
            path = glob.glob(str(server.data / "shards" / "*" / "CHECKPOINT"))[0]
            self.flip(path, 17)
            self.flip(path, 512 + 17)
            self.assertIn("backup", self.refuses(server, path))

    def test_flipped_bit_under_a_running_server_is_found_named_and_never_served(self):
        with Server() as server:
            with omendb.connect(server.address, timeout=60) as db:
                for name in ("docs", "other"):
                    upsert(db.create_collection(name, dim=DIM, metric="l2"), range(500))
                docs, other = db.collection("docs"), db.collection("other")
                chunk = next(p for p in sorted(glob.glob(str(server.data / "shards" / "*" / "stream" / "*.chunk"))))
                self.flip(chunk, 4096 + random.Random(SEED).randrange(self.used_bytes(chunk) - 4096))
                deadline = time.monotonic() + 60
                while "damaged" not in server.http_get("/readyz")[1]:
                    self.assertLess(time.monotonic(), deadline, server.log())
                    time.sleep(0.05)
                self.assertEqual(server.http_get("/readyz")[0], 503)
                self.assertIn("omendb_node_shards_damaged 1", server.http_get("/metrics")[1])
                failed = 0
                for collection in (docs, other):
                    calls = [lambda: collection.get([1]), lambda: collection.count(), lambda: upsert(collection, [1]),
                             lambda: collection.search(vector(1), k=3)]
                    errors = []
                    for call in calls:
                        try:
                            call()
                        except omendb.OmenError as e:
                            errors.append(str(e))
                    self.assertIn(len(errors), (0, len(calls)), errors)
                    failed += len(errors) > 0
                    for text in errors:
                        self.assertIn("offset", text)
                        self.assertIn(os.path.basename(chunk), text)
                self.assertEqual(failed, 1, "one collection is damaged, the other one is served")
            self.assertIn("shard.damaged", server.log())

    def test_flipped_bit_in_the_metadata_is_named_and_never_served(self):
        with Server(args=SMALL) as server:
            self.prepare(server, checkpointed=True)
            candidates = glob.glob(str(server.data / "shards" / "*" / "meta" / "data.mdb"))
            path = max(candidates, key=os.path.getsize)
            size, rng = os.path.getsize(path), random.Random(SEED)
            for _ in range(6):
                offset = rng.randrange(size)
                self.flip(path, offset)
                self.refuses(server, path)
                self.flip(path, offset)
            server.start()
            with omendb.connect(server.address, timeout=60) as db:
                self.check_all(db.collection("docs"), range(3000))


@unittest.skipUnless(os.geteuid() == 0 and os.path.exists("/dev/loop-control"), "needs root and loop devices")
class FullDisk(Base):
    """A loop-mounted file system of its own: really full, unlike a quota or tmpfs."""

    def mount_disk(self, mkfs="mkfs.ext4"):
        self.dir = Path(tempfile.mkdtemp(prefix="omen-full-"))
        self.addCleanup(subprocess.run, ["rm", "-rf", self.dir])
        image = self.dir / "image"
        with open(image, "wb") as f:
            f.truncate(160 << 20)
        subprocess.run([f"/sbin/{mkfs}", "-q", "-F", "-m", "0", image], check=True)
        self.mount = self.dir / "mnt"
        self.mount.mkdir()
        if subprocess.run(["mount", "-o", "loop", image, self.mount], stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("cannot mount a loop device here")
        self.addCleanup(subprocess.run, ["umount", self.mount])
        self.others = self.mount / "others"  # what other programs keep on the disk

    def others_take(self, mib=None):
        """Other programs take so much, or all there is."""
        with open(self.others, "ab", buffering=0) as f:
            try:
                while mib is None or mib > 0:
                    f.write(b"\1" * (1 << 20))
                    mib = None if mib is None else mib - 1
            except OSError:
                pass

    def free_percent(self):
        st = os.statvfs(self.mount)
        return 100 * st.f_bavail / st.f_blocks

    @staticmethod
    def write(docs, ids, version=0):
        docs.upsert(ids, np.stack([vector(j, version) for j in ids]),
                    [{**payload(j, version), "pad": "x" * 1000} for j in ids])

    def fill(self, docs, first):
        """Write until the disk is full: ids acknowledged, those of the refused batch, and the refusal. A write that was
        begun and has no answer (OutcomeUnknown, DeadlineExceeded) is a failure: admission comes before the log."""
        acked, i = [], first
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            ids = range(i, i + 500)
            try:
                self.write(docs, ids)
            except omendb.DiskFull as e:
                return acked, ids, e
            acked.extend(ids)
            i += 500
        self.fail("the disk does not get full")

    def until_room(self, act, seconds=60):
        deadline = time.monotonic() + seconds
        while True:
            try:
                return act()
            except omendb.DiskFull as e:
                if time.monotonic() > deadline:
                    self.fail(f"does not resume: {e}")
                time.sleep(0.2)

    def check_ids(self, docs, present, absent=()):
        present = sorted(present)
        for first in range(0, len(present), 1000):
            part = present[first:first + 1000]
            found = {p.id: p for p in docs.get(part)}
            self.assertEqual(sorted(found), part)
            for i in part:
                self.assertEqual(found[i].payload["n"], i)
        self.assertEqual(docs.get(list(absent)), [])

    def run_full(self, args, shards=1, mkfs="mkfs.ext4", early=False):
        self.mount_disk(mkfs)
        self.others_take(60)
        with Server(data=self.mount / "data", args=SMALL + args) as server:
            with omendb.connect(server.address, timeout=10) as db:
                docs = db.create_collection("docs", dim=DIM, metric="l2", shards=shards)
                acked, refused, error = self.fill(docs, 0)
                self.assertGreater(len(acked), 0)
                self.assertIn("disk", error.message)
                if early:
                    self.assertGreater(self.free_percent(), 2)
                    self.assertEqual(server.http_get("/readyz")[0], 503)
                self.assertEqual(len(docs.search(vector(5), k=10)), 10)  # reads go on
                self.assertEqual(docs.search(vector(5), k=1)[0].id, 5)
                gone, live = acked[:200], acked[200:]
                for first in range(0, len(gone), 10):  # and so do deletes
                    ids = gone[first:first + 10]
                    if early:
                        docs.delete(ids)
                    else:  # the log may wait for a checkpoint to give it a segment
                        self.until_room(lambda: docs.delete(ids), seconds=20)
                server.kill9()  # full, killed, and it comes back with everything
                server.start()
                self.check_ids(docs, live, gone)
                self.assertEqual(server.stop(), 0)  # and the same in order
                server.start()
                self.check_ids(docs, live, gone)
                self.others.unlink()  # room: writes are taken again without a restart
                self.until_room(lambda: self.write(docs, refused))
                more = range(refused[-1] + 1, refused[-1] + 2001)
                for first in range(0, len(more), 500):
                    self.until_room(lambda: self.write(docs, more[first:first + 500]))
                deadline = time.monotonic() + 10
                while server.http_get("/readyz")[0] != 200:
                    self.assertLess(time.monotonic(), deadline)
                    time.sleep(0.1)
                for _ in range(2):
                    everything = live + list(refused) + list(more)
                    self.assertEqual(docs.count(), len(everything))  # nothing lost, nothing doubled
                    self.check_ids(docs, everything, gone)
                    server.kill9()
                    server.start()

    def test_writes_are_refused_early_and_resume(self):
        self.run_full(["--set", "disk.min_free_percent=10"], early=True)

    def test_a_really_full_disk_loses_nothing_and_resumes(self):
        self.run_full(["--set", "disk.min_free_percent=0"])

    def test_several_shards_whose_streams_have_no_room(self):
        """The log has all it needs from the beginning: the stream meets the full disk first."""
        self.run_full(["--set", "disk.min_free_percent=0", "--set", "wal.segment_bytes=16MiB"], shards=4)

    def test_a_file_system_that_cannot_allocate_ahead(self):
        self.run_full(["--set", "disk.min_free_percent=0"], mkfs="mkfs.ext2")

    def test_a_fast_writer_does_not_overtake_the_limit(self):
        self.mount_disk()
        self.others_take(60)
        with Server(data=self.mount / "data", args=SMALL + ["--set", "disk.min_free_percent=10"]) as server:
            with omendb.connect(server.address, timeout=30) as db:
                docs = db.create_collection("docs", dim=DIM, metric="l2", shards=2)
                writer = Writer(server.address, in_flight=64, pad=20000)
                writer.join(120)
                self.assertIsInstance(writer.error, omendb.DiskFull, writer.error)
                self.assertGreater(len(writer.acked), 100)
                self.assertGreater(self.free_percent(), 4)
                ids = sorted(writer.acked)
                self.assertEqual([p.id for first in range(0, len(ids), 500) for p in docs.get(ids[first:first + 500])], ids)
                docs.delete(ids[:100])
                self.assertEqual(docs.get(ids[:100]), [])

    def test_others_fill_the_disk_while_the_node_is_down(self):
        """The log holds what the stream has no room for: the node starts, says so, and goes on when there is room."""
        self.mount_disk()
        args = ["--set", "storage.chunk_bytes=1MiB", "--set", "wal.segment_bytes=1MiB", "--set", "disk.min_free_percent=0"]
        with Server(data=self.mount / "data", args=args) as server:
            with omendb.connect(server.address, timeout=10) as db:
                docs = db.create_collection("docs", dim=DIM, metric="l2")
                self.write(docs, range(500))
                server.stop()  # these are checkpointed
                server.start()
                for first in range(500, 5000, 500):
                    self.write(docs, range(first, first + 500))
                server.kill9()
                for chunk in sorted(glob.glob(str(server.data / "shards" / "*" / "stream" / "*.chunk")))[1:]:
                    os.unlink(chunk)  # room that the node had, and others have now
                self.others_take()
                server.start()
                status, why = server.http_get("/readyz")
                self.assertEqual((status, "room" in why), (503, True), why)
                with omendb.connect(server.address, timeout=3) as fresh:  # holds no token: what is applied is served
                    other = fresh.collection("docs")
                    self.assertEqual([p.id for p in other.get(range(100))], list(range(100)))
                    with self.assertRaises(omendb.DiskFull) as caught:
                        other.upsert([9999], vector(9999)[None, :])
                    self.assertIn("full", caught.exception.message)
                begin = time.monotonic()
                with self.assertRaises((omendb.DiskFull, omendb.DeadlineExceeded)) as caught:
                    db._call({"op": "points.count", "collection": "docs", "consistency": "linearizable"}, timeout=2)
                self.assertGreater(time.monotonic() - begin, 1)
                self.assertIn("full", caught.exception.message)
                server.kill9()
                server.start()
                self.others.unlink()
                self.until_room(lambda: docs.upsert([9999], vector(9999)[None, :], [payload(9999)]))
                self.check_ids(docs, list(range(5000)) + [9999])
                self.assertEqual(docs.count(), 5001)


if __name__ == "__main__":
    unittest.main()

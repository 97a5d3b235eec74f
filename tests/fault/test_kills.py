"""kill -9 under load, over and over, on a disk that forgets what was not synced; and a mutation that must turn it red.

A client process of its own (deploy/demo/writer.py) keeps an fsynced record of every acknowledgement, with 128 writes in flight.
OMEN_FAULT_REPEATS says how many kills (20).
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests" / "integration"), str(TOP / "deploy" / "demo"), str(TOP / "tools" / "python")]

import omendb
from omen_server import BUILD, Server
from writer import make_point

DIM = 128
ACKS_BEFORE, ACKS_AFTER, IN_FLIGHT = 1_000, 1_000, 128
REPEATS = int(os.environ.get("OMEN_FAULT_REPEATS", 20))
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 31)))


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(path, count, writer):
    deadline = time.monotonic() + 90
    while count_lines(path) < count:
        if writer.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the writer ended or stalls at {count_lines(path)} acknowledgements")
        time.sleep(0.002)


class Kills(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print(f"seed {SEED}")
        cls.dir = tempfile.TemporaryDirectory(prefix="omen-kills-")
        cls.library = Path(cls.dir.name) / "volatile_disk.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", cls.library, Path(__file__).with_name("volatile_disk.c"),
                        "-ldl"], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.dir.cleanup()

    def one_kill(self, server, docs, log, seed, first_id):
        """One writer, one kill: what was acknowledged, lost and doubled, and the next free id."""
        writer = subprocess.Popen(
            [sys.executable, TOP / "deploy/demo/writer.py", "--endpoint", server.listen, "--collection", docs.name, "--log", log,
             "--dim", str(DIM), "--seed", str(seed), "--first-id", str(first_id), "--in-flight", str(IN_FLIGHT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TOP / "tools/python")})
        try:
            wait_for(log, ACKS_BEFORE + random.Random(seed).randrange(200), writer)
            server.kill9()
            before = count_lines(log)
            server.start()
            wait_for(log, before + ACKS_AFTER, writer)
            summary = json.loads(writer.communicate("stop\n", timeout=120)[0])
        finally:
            if writer.poll() is None:
                writer.kill()
                writer.wait()
        acks = {}
        doubled = lost = 0
        for line in log.read_text().split("\n")[:-1]:
            point_id, sequence, _, _ = map(int, line.split())
            doubled += point_id in acks
            acks[point_id] = sequence
        ids = sorted(acks)
        for first in range(0, len(ids), 1000):
            part = ids[first:first + 1000]
            found = {p.id: p for p in docs.get(part, with_vectors=True)}
            for i in part:
                vector, payload = make_point(seed, i, DIM)
                point = found.get(i)
                if point is None or point.payload != payload or not np.array_equal(point.vector, vector):
                    lost += 1
                elif point.version != acks[i]:
                    doubled += 1
        return len(acks), lost, doubled, first_id + summary["submitted"]

    def run_kills(self, repeats, binary=None, env=None, until_lost=False):
        env = {"LD_PRELOAD": str(self.library), "VOLATILE_SYNC_MS": "5", **(env or {})}
        totals = np.zeros(3, dtype=int)
        with Server(binary=binary, env=env) as server:
            with omendb.connect(server.address, timeout=60) as db:
                docs = db.create_collection("docs", dim=DIM, metric="l2")
                first_id = 0
                for i in range(repeats):
                    log = Path(self.dir.name) / f"acks-{os.urandom(4).hex()}.log"
                    acknowledged, lost, doubled, first_id = self.one_kill(server, docs, log, SEED + i, first_id)
                    totals += acknowledged, lost, doubled
                    if until_lost and lost:
                        break
        print(f"{i + 1} kills: {totals[0]} acknowledged, {totals[1]} lost, {totals[2]} doubled")
        return totals

    def test_acknowledged_writes_survive_every_kill(self):
        acknowledged, lost, doubled = self.run_kills(REPEATS)
        self.assertGreaterEqual(acknowledged, REPEATS * (ACKS_BEFORE + ACKS_AFTER))
        self.assertEqual((lost, doubled), (0, 0))

    def test_acknowledging_before_the_sync_is_caught(self):
        """The same harness against a server that was mutated to acknowledge too early must see losses."""
        mutant = BUILD.parent / "mutant" / "omen-node"
        self.assertTrue(mutant.exists(), "make fault builds it")
        _, lost, doubled = self.run_kills(10, binary=mutant, env={"OMENDB_TEST_MUTATION": "ack-before-sync"}, until_lost=True)
        self.assertGreater(lost + doubled, 0, "the harness is blind")


if __name__ == "__main__":
    unittest.main()

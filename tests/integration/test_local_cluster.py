"""`make up` and `make down`: real processes that stay, found again by a later run, and strangers left alone."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from omen_server import BUILD, TOP

sys.path.insert(0, str(TOP / "deploy" / "local"))

from local_cluster import LocalCluster, free_base_port, start_time


class LocalClusterTest(unittest.TestCase):
    def setUp(self):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.port = free_base_port("127.0.0.1", 3)
        self.addCleanup(self.make, "down")

    def make(self, what, code=0):
        """What `make up` and `make down` run."""
        done = subprocess.run([sys.executable, str(TOP / "deploy/local/up.py"), "--build", str(BUILD), "--work", str(self.work),
                               "--port", str(self.port), what], capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def omenctl(self, *args):
        endpoints = f"tcp://127.0.0.1:{self.port},tcp://127.0.0.1:{self.port + 1}"
        done = subprocess.run([str(BUILD / "omenctl"), "--endpoint", endpoints, *map(str, args)], capture_output=True, text=True,
                              timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def pids(self):
        known = json.loads((self.work / "cluster.json").read_text())["processes"]
        return {name: entry.get("pid") for name, entry in known.items()}

    def status_is_a_table(self):
        """What a router says of its nodes, one line for each."""
        text = self.omenctl("status")
        lines = text.splitlines()
        self.assertTrue(any(line.startswith("version ") for line in lines), text)
        for i in range(3):
            (line,) = [line for line in lines if f"tcp://127.0.0.1:{self.port + 10 + i} " in line]
            self.assertRegex(line, r"^ *[0-3]  (up|not ready) ")  # as its last look found it
        self.assertNotIn("{", text)
        self.assertEqual(len(json.loads(self.omenctl("--json", "status"))["cluster"]["nodes"]), 3)

    def test_it_stays_is_mended_and_keeps_its_data(self):
        shown = self.make("up")
        self.assertIn(f"tcp://127.0.0.1:{self.port},tcp://127.0.0.1:{self.port + 1}", shown)
        first = self.pids()
        self.assertEqual(sorted(first), ["node-1", "node-2", "node-3", "router-1", "router-2"])
        self.status_is_a_table()
        self.omenctl("collections", "create", "books", "--dim", 2, "--shards", 2, "--replication", 3)
        point = self.work / "point.json"
        point.write_text('{"id": 1, "vector": [1, 0]}\n')
        self.omenctl("points", "upsert", "books", point)

        os.kill(first["node-2"], signal.SIGKILL)
        os.kill(first["router-1"], signal.SIGKILL)
        self.make("up")
        second = self.pids()
        changed = {name for name in first if first[name] != second[name]}
        self.assertEqual(changed, {"node-2", "router-1"})  # the others were left running

        self.assertIn("ended node-1, node-2, node-3, router-1, router-2", self.make("down"))
        for pid in second.values():
            self.assertIsNone(start_time(pid))
        self.assertIn("nothing was running", self.make("down"))
        self.make("up")
        self.assertEqual(self.omenctl("points", "count", "books"), "1\n")

    def test_a_stale_file_never_ends_a_stranger(self):
        stranger = subprocess.Popen(["sleep", "600"])
        self.addCleanup(stranger.wait)
        self.addCleanup(stranger.kill)
        cluster = LocalCluster(BUILD, self.work, base_port=self.port)
        cluster.work.mkdir(exist_ok=True)
        cluster.nodes[0].pid, cluster.nodes[0].started = stranger.pid, start_time(stranger.pid)
        cluster.save()
        text = (self.work / "cluster.json").read_text()
        started = f'"started": {start_time(stranger.pid)}'
        self.assertIn(started, text)
        (self.work / "cluster.json").write_text(text.replace(started, '"started": 1'))  # the pid was given to somebody else
        self.assertIn("nothing was running", self.make("down"))
        self.assertIsNone(stranger.poll())
        for garbage in ("", "{", "[]", '{"boot": 1}', '{"boot": "x", "processes": {"node-1": 3}}'):
            (self.work / "cluster.json").write_text(garbage)
            self.assertIn("nothing was running", self.make("down"))
        self.assertIsNone(stranger.poll())

    def test_a_port_that_is_taken_is_named(self):
        import socket
        with socket.create_server(("127.0.0.1", self.port + 10)):
            self.assertIn(f"port {self.port + 10} of 127.0.0.1 is taken", self.make("up", code=1))


if __name__ == "__main__":
    unittest.main()

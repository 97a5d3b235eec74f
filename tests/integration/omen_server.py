"""A real omen-node as a child process, for the integration and fault tests.

    with Server() as server:            # free ports, fresh data directory, removed afterwards
        server.omenctl("status")
        server.kill9(); server.start()  # same ports, same data
"""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("OMEN_BUILD", TOP / "build" / "release"))
if not BUILD.is_absolute():
    BUILD = TOP / BUILD
# Sanitizers and a shared machine are slow; a server that needs longer than this is stuck.
START_SECONDS = 120


class Server:
    """omen-node --standalone.

    Args:
        data: data directory to use (kept afterwards); a fresh one is made and removed when None.
        args: further command line arguments, e.g. ``["--set", "disk.min_free_percent=0"]``.
        config: text of a configuration file, or None.
        binary: another omen-node.
        env: further environment variables.
    """

    def __init__(self, data=None, args=(), config=None, binary=None, env=None):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.data = Path(data) if data is not None else self.work / "data"
        self.args, self.binary = list(args), Path(binary or BUILD / "omen-node")
        self.env = {**os.environ, **(env or {})}
        self.listen, self.http = "tcp://127.0.0.1:0", "http://127.0.0.1:0"
        self.process = None
        self.log_path = self.work / "node.log"
        if config is not None:
            path = self.work / "omendb.yaml"
            path.write_text(config)
            self.args = ["--config", str(path)] + self.args

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        self.close()

    @property
    def pid(self):
        return self.process.pid

    @property
    def address(self):
        """host:port, as the Python client takes it."""
        return self.listen[len("tcp://"):]

    def command(self):
        return [str(self.binary), "--standalone", *self.args, "--data", str(self.data), "--listen", self.listen,
                "--http", self.http, "--ready-file", str(self.work / "ready.json")]

    def spawn(self):
        """Start the process without waiting for it to serve."""
        (self.work / "ready.json").unlink(missing_ok=True)
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=self.env)

    def start(self):
        self.spawn()
        ready, deadline = self.work / "ready.json", time.monotonic() + START_SECONDS
        while not ready.exists():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.binary.name} ended with {self.process.returncode}:\n{self.log()}")
            if time.monotonic() > deadline:
                self.kill9()
                raise AssertionError(f"{self.binary.name} does not get ready:\n{self.log()}")
            time.sleep(0.005)
        self.take_ready(json.loads(ready.read_text()))
        return self

    def take_ready(self, info):
        self.listen, self.http = info["listen"], info["http"]  # the same ports after a restart

    def start_fails(self, seconds=START_SECONDS):
        """Start a server that must refuse to: its exit code and log."""
        self.spawn()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise AssertionError(f"omen-node was expected to refuse to start:\n{self.log()}") from None
        return code, self.log()

    def kill9(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """Orderly: SIGTERM, then wait. Returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_SECONDS)

    def restart(self):
        self.stop()
        return self.start()

    def pause(self):
        """SIGSTOP, and wait until every thread has stopped: the signal takes effect a little later."""
        self.process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 30
        while any(task.read_text().rpartition(")")[2].split()[0] != "T"
                  for task in Path(f"/proc/{self.pid}/task").glob("*/stat")):
            if time.monotonic() > deadline:
                raise AssertionError("the server does not stop")
            time.sleep(0.005)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def http_get(self, path):
        """(status, text) of a page of the HTTP port."""
        try:
            with urllib.request.urlopen(self.http + path, timeout=30) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def omenctl(self, *args, stdin=None, check=True):
        """Run omenctl against this server; the finished process with text output."""
        done = subprocess.run([str(BUILD / "omenctl"), "--endpoint", self.listen, *map(str, args)], input=stdin, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=START_SECONDS)
        if check and done.returncode != 0:
            raise AssertionError(f"omenctl {args} ended with {done.returncode}: {done.stderr}\n{self.log()}")
        return done

    def rss_bytes(self):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def close(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill9()
        shutil.rmtree(self.work, ignore_errors=True)

    def metric(self, name):
        """A value of /metrics by name and labels; 0 when it is not there."""
        for line in self.http_get("/metrics")[1].splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0


class Node(Server):
    """omen-node without a client port: it serves routers, who prove the same secret.

    Args:
        secret: of the cluster; None = as in the options.
    """

    def __init__(self, secret="the secret of these tests", **options):
        super().__init__(**options)
        self.node_listen = "tcp://127.0.0.1:0"
        self.secret_file = self.work / "secret"
        self.secret_file.write_text(secret + "\n")

    def command(self):
        return [str(self.binary), "--node-listen", self.node_listen, *self.args, "--data", str(self.data), "--http",
                self.http, "--set", f"cluster.secret_file={self.secret_file}", "--ready-file", str(self.work / "ready.json")]

    def take_ready(self, info):
        self.node_listen, self.http = info["node_listen"], info["http"]


class Router(Server):
    """omen-router before nodes.

    Args:
        nodes: addresses to begin with, as ``Node.node_listen``.
        secret_file: path.
    """

    def __init__(self, nodes, secret_file, **options):
        super().__init__(binary=options.pop("binary", BUILD / "omen-router"), **options)
        self.nodes, self.secret_file = nodes, secret_file

    def command(self):
        return [str(self.binary), "--nodes", ",".join(self.nodes), "--secret-file", str(self.secret_file), *self.args,
                "--listen", self.listen, "--http", self.http, "--ready-file", str(self.work / "ready.json")]

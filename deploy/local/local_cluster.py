"""A cluster of processes on this machine: for `make up`, for the demo and for tests.

    with LocalCluster(build, work) as cluster:        # 3 nodes, 2 routers; what lay in `work` before goes on
        cluster.start()                               # and `cluster init`, when there is none
        cluster.nodes[0].kill9(); cluster.nodes[0].start()

Each process has a directory under `work` with its log; data lies in `work/node-N/data`. Who a process is stands in
`work/cluster.json` by pid and start time, so that a later run finds those that live and never takes a stranger for one.
"""
import json
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

START_SECONDS = 60
STOP_SECONDS = 60
PORT_SECONDS = 10


class ClusterError(Exception):
    """What could not be done, as a sentence for a person."""


def start_time(pid):
    """When the process began, in ticks since boot: with the pid it names one process for ever. None: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def boot_id():
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def port_is_free(host, port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
    return True


class Process:
    """One server: its command line and, while it lives, its pid."""

    def __init__(self, cluster, name, ports):
        self.cluster, self.name, self.ports = cluster, name, ports
        self.dir = cluster.work / name
        self.pid = self.started = self._child = None

    @property
    def host(self):
        return self.cluster.host

    @property
    def http(self):
        return f"http://{self.host}:{self.ports['http']}"

    @property
    def log_path(self):
        return self.dir / "log"

    def alive(self):
        if self._child is not None:
            self._child.poll()  # buries it
        return self.pid is not None and start_time(self.pid) == self.started

    def taken_ports(self):
        return [p for p in self.ports.values() if not port_is_free(self.host, p)]

    def start(self):
        """Start the process when it does not live; says nothing of whether it serves."""
        if self.alive():
            return
        # One that was killed may hold its ports for a moment after it has ended: its other threads end later.
        deadline = time.monotonic() + PORT_SECONDS
        while taken := self.taken_ports():
            if self._child is not None and time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            raise ClusterError(f"{self.name} cannot start: port {taken[0]} of {self.host} is taken by another "
                               "process (another base port: PORT=N)")
        self.dir.mkdir(parents=True, exist_ok=True)
        with open(self.log_path, "ab") as log:
            self._child = subprocess.Popen([str(a) for a in self.command()], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                           start_new_session=True)
        self.pid = self._child.pid
        self.started = start_time(self.pid)
        self.cluster.save()

    def signal(self, number):
        """Only ever to the process that we started."""
        if self.alive():
            os.kill(self.pid, number)

    def wait_end(self, seconds):
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def kill9(self):
        self.signal(signal.SIGKILL)
        self.wait_end(STOP_SECONDS)

    def ask_to_end(self):
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)

    def stop(self, asked=False):
        if not asked:
            self.ask_to_end()
        if not self.wait_end(STOP_SECONDS):
            self.kill9()

    def not_ready(self):
        """None when it is ready, else why not."""
        if not self.alive():
            return f"the process has ended; its log is {self.log_path}"
        try:
            with urllib.request.urlopen(self.http + "/readyz", timeout=5):
                return None
        except urllib.error.HTTPError as e:
            return e.read().decode(errors="replace").strip()
        except OSError as e:
            return str(e)

    def wait_ready(self, seconds=START_SECONDS):
        deadline = time.monotonic() + seconds
        while (why := self.not_ready()) is not None:
            if not self.alive() or time.monotonic() > deadline:
                raise ClusterError(f"{self.name} is not ready: {why}")
            time.sleep(0.02)


class Node(Process):
    """omen-node as a member of the cluster. `node_id` once the cluster has told it."""

    node_id = 0
    joins = True  # by itself; else it waits for `omenctl node add`

    @property
    def data(self):
        return self.dir / "data"

    @property
    def address(self):
        return f"tcp://{self.host}:{self.ports['node']}"

    def command(self):
        others = ",".join(n.address for n in self.cluster.nodes if n is not self) if self.joins else ""
        return [self.cluster.build / "omen-node", "--node-listen", f"tcp://{self.host}:{self.ports['node']}",
                "--cluster-listen", f"{self.host}:{self.ports['raft']}", "--data", self.data, "--http", self.http, "--set",
                f"cluster.join={others}", "--set", f"cluster.secret_file={self.cluster.secret_file}", *self.cluster.node_args]


class Router(Process):
    """omen-router, knowing all nodes."""

    @property
    def listen(self):
        return f"tcp://{self.host}:{self.ports['listen']}"

    def command(self):
        return [self.cluster.build / "omen-router", "--nodes", ",".join(n.address for n in self.cluster.nodes),
                "--secret-file", self.cluster.secret_file, "--listen", self.listen, "--http", self.http,
                *self.cluster.router_args]


def free_base_port(host, count):
    """The first of 50 ports of which those that `count` processes take are free now. Below those that the system gives to
    connections going out (32768 up): one of them would hold the port of a process that is down for a moment."""
    for _ in range(200):
        base = 10000 + secrets.randbelow(220) * 100
        if all(port_is_free(host, base + group + i) for group in (0, 10, 20, 30, 40) for i in range(count)):
            return base
    raise ClusterError(f"no free ports on {host}")


class LocalCluster:
    """`nodes` and `routers` processes under `work`.

    Args:
        build: directory of omen-node, omen-router, omenctl.
        work: made when missing. What a former run left there goes on.
        base_port: routers listen at base_port + i, nodes at + 10 + i, Raft at + 20 + i, HTTP pages at + 30 + i (nodes) and
            + 40 + i (routers). None: free ones.
        node_args, router_args: further command line arguments.
    """

    node_class, router_class = Node, Router  # a test's nodes may be known by other addresses

    def __init__(self, build, work, nodes=3, routers=2, host="127.0.0.1", base_port=None, node_args=(), router_args=()):
        if not (1 <= nodes <= 10 and 1 <= routers <= 10):
            raise ClusterError("1 to 10 nodes and routers")
        self.build, self.work, self.host = Path(build).resolve(), Path(work).resolve(), host
        self.node_args, self.router_args = list(node_args), list(router_args)
        self.secret_file = self.work / "secret"
        base = free_base_port(host, max(nodes, routers)) if base_port is None else base_port
        self.nodes, self.routers = [], []
        for i in range(nodes):
            ports = {"node": base + 10 + i, "raft": base + 20 + i, "http": base + 30 + i}
            self.nodes.append(self.node_class(self, f"node-{i + 1}", ports))
        for i in range(routers):
            self.routers.append(self.router_class(self, f"router-{i + 1}", {"listen": base + i, "http": base + 40 + i}))
        self.load()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()

    @property
    def processes(self):
        return self.nodes + self.routers

    @property
    def endpoints(self):
        return ",".join(r.listen for r in self.routers)

    # ---- who lives ----

    def load(self):
        """Ports and processes of a former run; data remembers addresses, so ports stay. What cannot be read is as if it were not
        there, and a process of another boot is nobody."""
        try:
            known = json.loads((self.work / "cluster.json").read_text())
            same_boot = known["boot"] == boot_id()
            entries = {p: known["processes"].get(p.name, {"ports": p.ports}) for p in self.processes}
            ports = {p: {name: int(e["ports"][name]) for name in p.ports} for p, e in entries.items()}
            pids = {p: (int(e["pid"]), int(e["started"])) for p, e in entries.items() if same_boot and e.get("pid")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        for p in self.processes:
            p.ports = ports[p]
            p.pid, p.started = pids.get(p, (None, None))

    def save(self):
        text = json.dumps({"boot": boot_id(), "endpoints": self.endpoints, "processes": {
            p.name: {"ports": p.ports, **({"pid": p.pid, "started": p.started} if p.alive() else {})}
            for p in self.processes}}, indent=1)
        part = self.work / "cluster.json.part"
        part.write_text(text + "\n")
        part.replace(self.work / "cluster.json")

    # ---- life ----

    def new_node(self):
        """One more node on free ports, of which the others know nothing; not started. `stop` ends it too."""
        base = free_base_port(self.host, 1)
        node = self.node_class(self, f"node-{len(self.nodes) + 1}", {"node": base + 10, "raft": base + 20, "http": base + 30})
        node.joins = False
        self.nodes.append(node)
        return node

    def make_secret(self):
        self.work.mkdir(parents=True, exist_ok=True)
        if not self.secret_file.exists():
            part = self.work / "secret.part"
            part.touch(mode=0o600)
            part.write_text(secrets.token_urlsafe(32) + "\n")
            part.replace(self.secret_file)

    def start_processes(self):
        self.make_secret()
        for p in self.processes:
            p.start()

    def start(self):
        """Start what does not live, make a cluster when there is none, wait until every node and router is ready."""
        self.start_processes()
        self.init()
        self.wait_whole()
        for p in self.processes:
            p.wait_ready()

    def stop(self):
        for p in self.routers + self.nodes:
            p.ask_to_end()
        for p in self.routers + self.nodes:
            p.stop(asked=True)
        if self.work.exists():
            self.save()

    def omenctl(self, *args, check=True):
        done = subprocess.run([self.build / "omenctl", "--endpoint", self.endpoints, *map(str, args)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if check and done.returncode != 0:
            raise ClusterError(f"omenctl {' '.join(map(str, args))}: {done.stderr.strip()}")
        return done

    def status(self):
        """What `omenctl --json cluster status` says, or None when nobody answers."""
        done = self.omenctl("--json", "--timeout", "10s", "cluster", "status", check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def init(self):
        """Make a cluster unless there is one: then it says so as soon as its nodes have found each other."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            done = self.omenctl("cluster", "init", "--name", "local", check=False)
            if done.returncode == 0 or "(exists" in done.stderr:
                return
            for p in self.processes:
                if not p.alive():
                    raise ClusterError(f"{p.name} has ended; its log is {p.log_path}")
            if time.monotonic() > deadline:
                raise ClusterError(f"no cluster could be made: {done.stderr.strip()}")
            time.sleep(0.1)

    def wait_whole(self, seconds=START_SECONDS):
        """Until every node is a member that is heard of and ready; gives the nodes their ids."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status()
            by_address = {n["address"]: n for n in status["nodes"] if n["state"] != "removed"} if status else {}
            missing = [n.name for n in self.nodes if not (by_address.get(n.address) or {}).get("ready")]
            for n in self.nodes:
                n.node_id = by_address.get(n.address, {}).get("node_id", n.node_id)
            if not missing:
                return status
            if time.monotonic() > deadline:
                raise ClusterError(f"{missing[0]} is no ready member of the cluster; its log is {self.work / missing[0] / 'log'}")
            time.sleep(0.05)

    def node_of_id(self, node_id):
        return next(n for n in self.nodes if n.node_id == node_id)

    def shards_of(self, collection):
        """The collection's shards in the status; waits for an answer."""
        deadline = time.monotonic() + START_SECONDS
        while (status := self.status()) is None:
            if time.monotonic() > deadline:
                raise ClusterError("nobody answers")
        return [s for s in status["shards"] if s["collection"] == collection]

    def leader_of(self, shard_id, collection):
        """The node that leads the shard; waits until one does."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for shard in self.shards_of(collection):
                leaders = [r["node_id"] for r in shard["replicas"] if r["leader"]]
                if shard["shard_id"] == shard_id and len(leaders) == 1:
                    return self.node_of_id(leaders[0])
        raise ClusterError(f"shard {shard_id} has no leader")

    def wait_replicas(self, collection, seconds=START_SECONDS):
        """Until every replica of the collection is ready."""
        deadline = time.monotonic() + seconds
        while not all(r["ready"] for s in self.shards_of(collection) for r in s["replicas"]):
            if time.monotonic() > deadline:
                raise ClusterError(f"the replicas of {collection} do not get ready")
            time.sleep(0.05)

"""Clusters whose network can be told to lose what one process says to another: partitions two-way and one-way.

    cluster = ProxyCluster(BUILD, work)          # every node advertises proxies on loopback; no privileges needed
    cluster = NamespaceCluster(BUILD, work)      # every process in a network namespace of its own; needs root
    cluster.lose("node-1", "node-2")             # from now on nothing that node-1 says reaches node-2
    cluster.heal()

A proxy acknowledges what it swallows, so only what the processes send each other tells them; in a namespace packets
are dropped and the kernel's TCP notices too. Both are what networks do.
"""
import os
import shutil
import socket
import subprocess
import sys
import threading

from omen_server import TOP

sys.path.insert(0, str(TOP / "deploy" / "local"))

from local_cluster import LocalCluster, Node, Process, Router


class Link:
    """One connection through a proxy. `spoilt` once bytes of it were lost: it cannot be gone on with."""

    def __init__(self, dialer, owner, near):
        self.dialer, self.owner, self.near, self.far = dialer, owner, near, None
        self.spoilt = False

    def cut(self):
        for s in (self.near, self.far):
            if s is not None:
                try:
                    s.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


class Proxy:
    """Listens on a free port for `owner`, a process, and passes on to its `port`."""

    def __init__(self, cluster, owner, port):
        self.cluster, self.owner, self.target = cluster, owner, (owner.host, port)
        self.links, self.lock, self.stopping = set(), threading.Lock(), False
        self.listener = socket.create_server((owner.host, 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, peer = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(near, peer), daemon=True).start()

    def serve(self, near, peer):
        link = Link(self.cluster.who_holds(peer, self.port), self.owner.name, near)
        with self.lock:
            self.links.add(link)
        try:
            if self.cluster.loses(link.dialer, link.owner) or self.cluster.loses(link.owner, link.dialer):
                link.spoilt = True  # no connection comes about when one of the two does not hear the other
                while near.recv(65536):
                    pass
                return
            link.far = socket.create_connection(self.target, 10)
            link.far.settimeout(None)
            back = threading.Thread(target=self.pump, args=(link, link.far, near, link.owner, link.dialer), daemon=True)
            back.start()
            self.pump(link, near, link.far, link.dialer, link.owner)
            back.join()
        except OSError:
            pass
        finally:
            with self.lock:
                self.links.discard(link)
            for s in (near, link.far):
                if s is not None:
                    s.close()

    def pump(self, link, source, sink, sender, receiver):
        gap = False
        try:
            while data := source.recv(65536):
                if gap or self.cluster.loses(sender, receiver):
                    gap = link.spoilt = True
                else:
                    sink.sendall(data)
            if gap or self.cluster.loses(sender, receiver):
                link.spoilt = True  # neither does the other side hear of the end
                return
        except OSError:
            pass
        link.cut()

    def cut_spoilt(self):
        with self.lock:
            for link in self.links:
                if link.spoilt:
                    link.cut()

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with self.lock:
            for link in self.links:
                link.cut()


class ProxyNode(Node):
    """omen-node that others know by its proxies."""

    def __init__(self, cluster, name, ports):
        super().__init__(cluster, name, ports)
        self.proxies = {what: Proxy(cluster, self, ports[what]) for what in ("node", "raft")}

    @property
    def address(self):
        return f"tcp://{self.host}:{self.proxies['node'].port}"

    def command(self):
        return super().command() + ["--set", f"node.advertise={self.address}", "--set",
                                    f"cluster.advertise={self.host}:{self.proxies['raft'].port}"]


class Losses:
    """Which process does not hear which; shared by both kinds of clusters."""

    def pairs(self, senders, receivers):
        names = lambda x: [x] if isinstance(x, str) else list(x)
        return {(s, r) for s in names(senders) for r in names(receivers)}

    def part(self, some, others):
        """Neither hears the other."""
        self.lose(some, others)
        self.lose(others, some)


class ProxyCluster(Losses, LocalCluster):
    node_class = ProxyNode

    def __init__(self, *args, **options):
        self.lost = frozenset()
        super().__init__(*args, **options)

    @staticmethod
    def why_not():
        return None

    def loses(self, sender, receiver):
        return (sender, receiver) in self.lost

    def lose(self, senders, receivers):
        self.lost |= self.pairs(senders, receivers)

    def heal(self):
        self.lost = frozenset()
        for node in self.nodes:
            for proxy in node.proxies.values():
                proxy.cut_spoilt()

    def who_holds(self, peer, port):
        """Name of the process that dialed from `peer`, an address; None: none of ours, which is never cut off."""
        wanted = [f"{int.from_bytes(socket.inet_aton(peer[0]), sys.byteorder):08X}:{peer[1]:04X}", f":{port:04X}"]
        with open("/proc/net/tcp") as table:
            inodes = [f[9] for f in map(str.split, table) if f[1] == wanted[0] and f[2].endswith(wanted[1])]
        names = {f"socket:[{i}]" for i in inodes}
        for process in self.processes:
            fds = f"/proc/{process.pid}/fd"
            try:
                if any(os.readlink(f"{fds}/{fd}") in names for fd in os.listdir(fds)):
                    return process.name
            except OSError:
                continue  # it ended, or an fd did
        return None

    def stop(self):
        super().stop()
        for node in self.nodes:
            for proxy in node.proxies.values():
                proxy.close()


def run(*command):
    return subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def must(*command):
    done = run(*command)
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, command))}: {done.stdout.strip()}")


class Namespace:
    """A network namespace that lives as long as a process that does nothing: nothing is left of it, however a test ends."""

    def __init__(self):
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 3600"], stdout=subprocess.PIPE)
        self.holder.stdout.readline()  # it is in there now

    def enter(self, *command):
        return ["nsenter", "-t", self.holder.pid, "-n", *command]

    def close(self):
        self.holder.kill()
        self.holder.wait()
        self.holder.stdout.close()


class InNamespace(Process):
    @property
    def namespace(self):
        return self.cluster.namespace_of(self)

    @property
    def host(self):
        return self.cluster.host_of(self)

    def taken_ports(self):
        return []

    def command(self):
        return self.namespace.enter(*super().command())


class NamespaceNode(InNamespace, Node):
    pass


class NamespaceRouter(InNamespace, Router):
    pass


class NamespaceCluster(Losses, LocalCluster):
    """Processes at 198.18.N.i (addresses for measurements, routed nowhere), joined by a bridge; the caller reaches all of them."""

    node_class, router_class = NamespaceNode, NamespaceRouter

    def __init__(self, *args, **options):
        self.net, self.namespaces = os.getpid() % 250, {}
        self.bridge = Namespace()
        must(*self.bridge.enter("ip", "link", "add", "switch", "type", "bridge"))
        must(*self.bridge.enter("ip", "link", "set", "switch", "up"))
        self.here = f"omen{os.getpid() % 1000000}"
        must("ip", "link", "add", self.here, "type", "veth", "peer", "name", "caller", "netns", self.bridge.holder.pid)
        must("ip", "addr", "add", f"198.18.{self.net}.254/24", "dev", self.here)
        must("ip", "link", "set", self.here, "up")
        self.plug("caller")
        self.dropped = set()
        super().__init__(*args, base_port=20000, **options)

    @staticmethod
    def why_not():
        """None where this works, else why it does not."""
        if os.geteuid() != 0:
            return "needs root"
        if any(shutil.which(tool) is None for tool in ("ip", "unshare", "nsenter")):
            return "needs ip, unshare and nsenter"
        if run("unshare", "--net", "ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1").returncode != 0:
            return "no network namespaces here"
        if run("unshare", "--net", "ip", "link", "add", "switch", "type", "bridge").returncode != 0:
            return "no bridges here"
        if run("unshare", "--net", "ip", "rule", "add", "pref", "5", "from", "192.0.2.1", "blackhole").returncode != 0:
            return "no rules of routing here"
        return None

    def plug(self, name):
        must(*self.bridge.enter("ip", "link", "set", name, "master", "switch", "up"))

    def host_of(self, process):
        kind, number = process.name.split("-")
        return f"198.18.{self.net}.{int(number) + (100 if kind == 'router' else 0)}"

    def namespace_of(self, process):
        if process.name not in self.namespaces:
            self.namespaces[process.name] = ns = Namespace()
            cable = process.name.replace("router", "r").replace("node", "n")
            must(*ns.enter("ip", "link", "add", "eth0", "type", "veth", "peer", "name", cable, "netns", self.bridge.holder.pid))
            self.plug(cable)
            for command in (["link", "set", "lo", "up"], ["addr", "add", f"{process.host}/24", "dev", "eth0"],
                            ["link", "set", "eth0", "up"],
                            # Rules of ours must be asked before the table of local addresses takes a packet in.
                            ["rule", "add", "pref", "100", "table", "local"], ["rule", "del", "pref", "0"]):
                must(*ns.enter("ip", *command))
        return self.namespaces[process.name]

    def lose(self, senders, receivers):
        by_name = {p.name: p for p in self.processes}
        for sender, receiver in self.pairs(senders, receivers) - self.dropped:
            must(*by_name[receiver].namespace.enter("ip", "rule", "add", "pref", "5", "from", by_name[sender].host, "blackhole"))
            self.dropped.add((sender, receiver))

    def heal(self):
        by_name = {p.name: p for p in self.processes}
        for sender, receiver in self.dropped:
            must(*by_name[receiver].namespace.enter("ip", "rule", "del", "pref", "5", "from", by_name[sender].host))
        self.dropped.clear()

    def stop(self):
        super().stop()
        for ns in [*self.namespaces.values(), self.bridge]:
            ns.close()
        run("ip", "link", "del", self.here)

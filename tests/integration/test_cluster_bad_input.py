"""Bad input on the ports that nodes keep for each other and for routers, of real processes in a running cluster: refused and
counted, nothing allocated for what is only announced, nobody held up, and a client goes on writing all the while."""
import hashlib
import hmac
import os
import random
import re
import shutil
import socket
import struct
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

import numpy as np

import omendb
from omen_server import BUILD
from partition import LocalCluster
from test_cluster_faults import Writer

DIM = 16
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
GROWTH_BYTES = 48 << 20  # of anonymous memory, under a client that writes, over all that is announced here
ASKED_BYTES = 256 << 20  # likewise, of memory asked for and not touched: the stacks of new threads, say
STRANGERS = 200          # connections at once that never say who they are; 64 are listened to
SECONDS_UNTIL_CUT = 30   # of one that is silent (2 s) or sent something wrong (at once), on a loaded machine

CRC_TABLE = []
for i in range(256):
    for _ in range(8):
        i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
    CRC_TABLE.append(i)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def sealed(data):
    return data + struct.pack("<I", crc32c(data))


def siphash128(key, data):
    """SipHash-2-4 with 128 bits: what the key of a cluster is made of its secret with."""
    mask = 2**64 - 1
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    turn = lambda x, n: (x << n | x >> 64 - n) & mask

    def rounds(n):
        for _ in range(n):
            v[0] = (v[0] + v[1]) & mask
            v[1] = turn(v[1], 13) ^ v[0]
            v[0] = turn(v[0], 32)
            v[2] = (v[2] + v[3]) & mask
            v[3] = turn(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & mask
            v[3] = turn(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & mask
            v[1] = turn(v[1], 17) ^ v[2]
            v[2] = turn(v[2], 32)

    data += b"\0" * (7 - len(data) % 8) + bytes([len(data) & 255])
    for (word,) in struct.iter_unpack("<Q", data):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xEE
    rounds(4)
    first = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    rounds(4)
    return struct.pack("<QQ", first, v[0] ^ v[1] ^ v[2] ^ v[3])


def hello(cluster, to, dialer=77, version=1, nonce=b"n" * 32):
    return sealed(struct.pack("<4sHHQQQ32s28x", b"OMRH", version, 0, cluster, dialer, to, nonce))


def proof(mac, dialer=77):
    return sealed(struct.pack("<4sHHQ32s12x", b"OMRP", 1, 0, dialer, mac))


def frame_header(body_bytes, kind=2, meta_bytes=64):
    return sealed(struct.pack("<4sHHQQQIIQI8x", b"OMRF", kind, 0, 2, 4, 5, meta_bytes, 1, body_bytes, 0))


def setUpModule():
    print(f"seed {SEED}")


class ClusterBadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = Path(tempfile.mkdtemp(prefix="omen-"))
        cls.addClassCleanup(shutil.rmtree, cls.work, ignore_errors=True)
        cls.cluster = LocalCluster(BUILD, cls.work)
        cls.addClassCleanup(cls.cluster.stop)
        cls.cluster.start()
        cls.cluster.omenctl("collections", "create", "docs", "--dim", DIM, "--metric", "l2", "--replication", 3)
        cls.cluster.wait_replicas("docs")
        cls.cluster_id = int(cls.cluster.status()["cluster"]["id"])
        cls.key = siphash128(b"OmenDB cluster 1", cls.cluster.secret_file.read_text().strip().encode())

    def setUp(self):
        self.node = self.cluster.nodes[0]
        self.raft = (self.node.host, self.node.ports["raft"])
        self.port = (self.node.host, self.node.ports["node"])
        self.pid = self.node.pid
        self.writer = Writer(self.cluster.endpoints)
        self.addCleanup(self.writer.stop)
        self.wait(lambda: len(self.writer.acked) > 100)
        self.memory = self.memory_bytes()

    def tearDown(self):
        """The node is the same process, has kept its memory, its connections and its place, and serves."""
        acked = len(self.writer.acked)
        self.wait(lambda: len(self.writer.acked) > acked + 100)
        self.writer.stop()
        self.assertIsNone(self.writer.error)
        self.assertTrue(self.node.alive() and self.node.pid == self.pid, self.node.log_path.read_text()[-3000:])
        self.assert_little_memory()
        self.wait(lambda: self.metric("omendb_raft_connections") == 2)
        self.cluster.wait_whole()

    def wait(self, what):
        deadline = time.monotonic() + 60
        while not what():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def memory_bytes(self):
        """Anonymous memory that was touched, and private memory that was asked for, touched or not."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return [int(re.search(name + r":\s+(\d+)", text)[1]) << 10 for name in ("RssAnon", "VmData")]

    def assert_little_memory(self):
        touched, asked = (now - then for now, then in zip(self.memory_bytes(), self.memory))
        self.assertLess(touched, GROWTH_BYTES)
        self.assertLess(asked, ASKED_BYTES)

    def metric(self, name):
        with urllib.request.urlopen(self.node.http + "/metrics", timeout=30) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.rpartition(" ")[2])
        self.fail(f"no metric {name}")

    def counted(self, name, what, least=1):
        """`what` raises the counter."""
        before = self.metric(name)
        what()
        self.wait(lambda: self.metric(name) >= before + least)

    def dial(self, address):
        s = socket.create_connection(address, 10)
        self.addCleanup(s.close)
        s.settimeout(SECONDS_UNTIL_CUT)
        return s

    def cut(self, s):
        """What comes until the other side closes; it does."""
        got = b""
        try:
            while data := s.recv(65536):
                got += data
        except ConnectionResetError:
            pass
        except socket.timeout:
            self.fail("the connection is not cut")
        s.close()
        return got

    def sent(self, address, data):
        s = self.dial(address)
        try:
            s.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            pass
        return self.cut(s)

    # ---- the port of the cluster ----

    def refused(self, reason):
        return f'omendb_raft_refused_total{{reason="{reason}"}}'

    def test_the_raft_port_refuses_and_counts_who_does_not_belong(self):
        rng = random.Random(SEED)
        node = self.node.node_id
        for data in (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, rng.randbytes(5000), b"\0" * 96, hello(self.cluster_id, node)[:-1] + b"?",
                     hello(self.cluster_id, node, version=9), hello(self.cluster_id, node + 1), hello(self.cluster_id, node, node)):
            self.counted(self.refused("garbage"), lambda: self.sent(self.raft, data))
        self.counted(self.refused("cluster"), lambda: self.sent(self.raft, hello(self.cluster_id ^ 1, node)))
        reply = self.sent(self.raft, hello(self.cluster_id ^ 1, node))
        self.assertEqual((reply[:4], reply[6]), (b"OMRC", 1))  # it is told which: another cluster
        self.counted(self.refused("secret"), lambda: self.sent(self.raft, hello(self.cluster_id, node) + proof(b"m" * 32)))

    def belong(self, dialer=77):
        """A connection that has proven the secret."""
        s, node = self.dial(self.raft), self.node.node_id
        s.sendall(hello(self.cluster_id, node, dialer))
        challenge = s.recv(64, socket.MSG_WAITALL)
        text = struct.pack("<16sQQQ", b"omendb dialer 1", self.cluster_id, dialer, node) + b"n" * 32 + challenge[16:48]
        s.sendall(proof(hmac.new(self.key, text, hashlib.sha256).digest(), dialer))
        self.assertEqual(s.recv(64, socket.MSG_WAITALL)[6], 0)
        return s

    def test_gigabytes_that_a_member_announces_are_not_made_room_for(self):
        for header in (frame_header(8 << 30), frame_header(2**63), frame_header((66 << 20) + 16), frame_header(64, meta_bytes=1 << 31),
                       frame_header(64, kind=99), os.urandom(64)):
            s = self.belong()
            self.counted(self.refused("frame"), lambda: s.sendall(header))
            self.cut(s)
        members = [self.belong(100 + i) for i in range(16)]
        for s in members:  # as much as may be, announced and hardly begun, by all at once: memory is taken when it comes
            s.sendall(frame_header(64 << 20) + bytes(10000))
        for _ in range(20):
            self.assert_little_memory()
            time.sleep(0.05)
        for s in members:
            s.close()

    def test_silent_slow_and_half_closed_strangers_leave_and_hold_up_nobody(self):
        def many():
            strangers = [self.dial(self.raft) for _ in range(STRANGERS)]
            for s in strangers[:100]:
                try:
                    s.sendall(b"O")  # a byte of a handshake
                except OSError:
                    pass
            for s in strangers[100:150]:
                try:
                    s.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
            for s in strangers:
                self.cut(s)

        self.counted(self.refused("strangers"), many)
        for beginning in (b"", hello(self.cluster_id, self.node.node_id), hello(self.cluster_id, self.node.node_id)[:50]):
            s = self.dial(self.raft)
            s.sendall(beginning)
            s.shutdown(socket.SHUT_WR)
            self.cut(s)
        slow, data = self.dial(self.raft), hello(self.cluster_id, self.node.node_id)
        with self.assertRaises(OSError):  # a byte now and then buys no time
            for byte in data * 10:
                slow.sendall(bytes([byte]))
                time.sleep(0.2)

    # ---- the port of nodes and routers ----

    SP = b"\0SP\0\0\x30\0\0"

    @staticmethod
    def message(body):
        return struct.pack(">QI", len(body) + 4, 0x80000001) + body

    def test_the_node_port_refuses_and_counts_who_does_not_know_the_secret(self):
        port = lambda reason: f'omendb_node_port_refused_total{{reason="{reason}"}}'
        envelope = lambda version, kind, body: b"OMRC" + struct.pack("<HBB8s16x", version, 1, kind, b"12345678") + body

        def ask(data, code):
            s = self.dial(self.port)
            s.sendall(self.SP + self.message(data))
            s.recv(8, socket.MSG_WAITALL)
            (length,) = struct.unpack(">Q", s.recv(8, socket.MSG_WAITALL))
            reply = s.recv(length, socket.MSG_WAITALL)[4:]
            self.assertEqual((reply[:4], reply[6]), (b"OMRC", 3))
            self.assertEqual(struct.unpack_from("<I", reply, 32), (code,))

        for kind in (0, 1, 6, 7, 64, 65, 66, 200):  # of routers, of members, of files, of nobody
            self.counted(port("secret"), lambda: ask(envelope(1, kind, os.urandom(100)), 7))
        self.counted(port("version"), lambda: ask(envelope(9, 65, b""), 6))
        self.counted(port("garbage"), lambda: ask(os.urandom(1000), 5))

    def test_gigabytes_garbage_and_silence_on_the_node_port(self):
        for length in ((97 << 20), 8 << 30, 2**63):
            self.sent(self.port, self.SP + struct.pack(">QI", length, 0x80000001) + b"x" * 100)
        self.sent(self.port, b"GET / HTTP/1.1\r\n\r\n")
        self.sent(self.port, os.urandom(5000))
        slow = []
        for _ in range(50):  # announced as much as may be, a little sent: they may stay, for next to nothing
            s = self.dial(self.port)
            s.sendall(self.SP + struct.pack(">QI", 90 << 20, 0x80000001) + b"x" * 100)
            slow.append(s)
        for _ in range(50):
            s = self.dial(self.port)
            s.sendall(self.SP)
            s.shutdown(socket.SHUT_WR)
            slow.append(s)
        acked = len(self.writer.acked)
        self.wait(lambda: len(self.writer.acked) > acked + 100)
        self.assert_little_memory()
        for s in slow:
            s.close()


if __name__ == "__main__":
    unittest.main()

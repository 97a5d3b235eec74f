"""Routers before a node, each a process: the same answers as in one process, and what happens when one of them dies."""
import json
import os
import random
import socket
import struct
import threading
import time
import unittest

import numpy as np

import omendb
from omen_server import Node, Router, Server

DIM = 8
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
TENANTS = ["acme", "globex", "initech", "umbrella", "hooli"]


def setUpModule():
    print(f"seed {SEED}")


def rows(n, seed=1):
    return np.random.default_rng((SEED, seed)).standard_normal((n, DIM), dtype=np.float32)


def payloads(n):
    return [{"tenant": TENANTS[i % 5], "n": i, "tags": ["even"] if i % 2 == 0 else []} for i in range(n)]


def match(key, value):
    return {"must": [{"key": key, "match": {"value": value}}]}


class Turns:
    """Clients asked in turns, as one: what one router was told, the next must know."""

    def __init__(self, *clients):
        self.clients, self.turn = clients, 0

    def next(self):
        self.turn += 1
        return self.clients[self.turn % len(self.clients)]


def plain(value):
    """Something that can be compared: points as tuples, arrays as lists."""
    if isinstance(value, omendb.Point):
        vectors = {f: v.tolist() for f, v in (value.vectors or {}).items()}
        return (str(value.id), value.payload, vectors, value.shard_key, None if value.score is None else round(value.score, 6))
    if isinstance(value, omendb.Hits):
        return [plain(p) for p in value], value.higher_is_nearer
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in ("created_ms", "stream_bytes", "meta_bytes", "durable")}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def story(db):
    """Every operation once or more; yields what came back, errors too."""

    def tell(do):
        try:
            return plain(do())
        except omendb.OmenError as e:
            return (type(e).__name__, e.field, e.message)

    def docs():
        return db.next().collection("docs")

    yield tell(lambda: db.next().collections())
    yield tell(lambda: docs().count())
    yield tell(lambda: db.next().create_collection("docs", dim=DIM, metric="cosine", shard_key="tenant", shards=6).name)
    yield tell(lambda: db.next().create_collection("docs", dim=DIM))
    yield tell(lambda: db.next().create_collection("two", fields={"a": omendb.VectorField(3, "l2"),
                                                                  "b": omendb.VectorField(DIM, "ip")}, shards=3).name)
    x = rows(300)
    yield tell(lambda: docs().upsert(range(300), x, payloads(300)).affected)
    yield tell(lambda: docs().count())
    yield tell(lambda: docs().count(match("tenant", "acme")))
    yield tell(lambda: docs().count(match("tags", "even")))
    for i, q in enumerate(rows(6, seed=2)):
        yield tell(lambda: docs().search(q, k=10))
        yield tell(lambda: docs().search(q, k=5, offset=3, filter=match("tenant", TENANTS[i % 5]), with_vectors=True))
        yield tell(lambda: docs().search(q, k=300, filter=match("tags", "even"), with_payload=["n"]))
        yield tell(lambda: docs().search(q, k=20, score_threshold=0.3, with_payload={"exclude": ["n"]}))
        yield tell(lambda: docs().search(id=i, shard_key=TENANTS[i % 5], k=4))
        yield tell(lambda: docs().search(id=i, k=4))
    yield tell(lambda: docs().search_batch(rows(20, seed=3), k=7, filter=match("tenant", "hooli")))
    yield tell(lambda: docs().get([5, 7, 1000, 5], with_vectors=True))
    yield tell(lambda: docs().get([5, 6], shard_keys=["acme", "acme"]))
    yield tell(lambda: list(docs().scroll(page=37)))
    yield tell(lambda: list(docs().scroll(filter=match("tags", "even"), page=10, limit=55, with_vectors=True)))
    yield tell(lambda: docs().set_payload([1, 2], {"seen": True}).affected)
    yield tell(lambda: docs().set_payload([1], {"tenant": "other"}).affected)
    yield tell(lambda: docs().overwrite_payload([3], [{"tenant": "umbrella", "new": 1}]).affected)
    yield tell(lambda: docs().delete_payload([2], ["seen", "tags"]).affected)
    yield tell(lambda: docs().get([1, 2, 3]))
    yield tell(lambda: docs().delete([10, 11], shard_keys=["acme", "globex"]).affected)
    yield tell(lambda: docs().delete([12, 9999]).affected)
    yield tell(lambda: docs().count())
    two = "two"
    yield tell(lambda: db.next().collection(two).upsert([1, "00000000-0000-0000-0000-0000000000ff"],
                                                       {"a": rows(2)[:, :3], "b": rows(2)}).affected)
    yield tell(lambda: db.next().collection(two).search(rows(1)[0], field="b", k=2, with_vectors=True))
    yield tell(lambda: db.next().collection(two).search(rows(1)[0], field="c", k=2))
    yield tell(lambda: db.next().collection(two).search(rows(1)[0][:5], field="a", k=2))
    yield tell(lambda: db.next().set_alias("current", "two"))
    yield tell(lambda: db.next().collection("current").count())
    yield tell(lambda: db.next().set_alias("current", "docs"))  # the other router's map is old now
    yield tell(lambda: db.next().collection("current").count())
    yield tell(lambda: db.next().describe("current"))
    yield tell(lambda: db.next().collections())
    yield tell(lambda: db.next().drop_alias("current"))
    yield tell(lambda: db.next().collection("current").count())
    yield tell(lambda: db.next().drop_collection("two"))
    yield tell(lambda: db.next().collection(two).count())
    yield tell(lambda: db.next().create_collection("two", dim=2, metric="l2").name)  # the same name, another thing
    yield tell(lambda: db.next().collection(two).upsert([1], [[1.0, 2.0]]).affected)
    yield tell(lambda: db.next().collection(two).count())
    yield tell(lambda: db.next().drop_collection("docs"))
    yield tell(lambda: docs().search(rows(1)[0]))
    yield tell(lambda: db.next().collections())


class SameAnswers(unittest.TestCase):
    def test_every_operation_through_either_router_is_as_in_one_process(self):
        with Server() as alone, Node() as node, Router([node.node_listen], node.secret_file) as first, \
                Router([node.node_listen], node.secret_file) as second:
            with omendb.connect(alone.address) as a, omendb.connect(first.address) as b, \
                    omendb.connect(second.address) as c:
                # One client's tokens are not the other's: what is compared must be seen without them.
                want, got = list(story(Turns(a))), list(story(Turns(b, c)))
            for step, (w, g) in enumerate(zip(want, got)):
                self.assertEqual(g, w, f"step {step}")
            self.assertEqual(len(got), len(want))
            self.assertGreater(first.metric("omendb_router_wrong_epoch_total")
                               + second.metric("omendb_router_wrong_epoch_total"), 0)  # old maps were met on the way
            self.assertEqual(second.stop(), 0)
            self.assertEqual(first.stop(), 0)
            self.assertEqual(node.stop(), 0)

    def test_a_node_may_have_both_ports(self):
        with Node(args=["--standalone", "--listen", "tcp://127.0.0.1:0"]) as node:
            with Router([node.node_listen], node.secret_file) as router, omendb.connect(router.address) as db:
                db.create_collection("docs", dim=DIM).upsert([1], rows(1))
                listen = json.loads((node.work / "ready.json").read_text())["listen"]
                with omendb.connect(listen) as direct:
                    self.assertEqual(direct.collection("docs").count(), 1)
                    direct.drop_collection("docs")
                with self.assertRaises(omendb.NotFound):
                    db.collection("docs").count()


class Cluster(unittest.TestCase):
    """One node and two routers for each test."""

    def setUp(self):
        self.node = Node().start()
        self.addCleanup(self.node.close)
        self.routers = [Router([self.node.node_listen], self.node.secret_file).start() for _ in range(2)]
        for router in self.routers:
            self.addCleanup(router.close)
        self.both = ",".join(r.address for r in self.routers)

    def connect(self, endpoints=None, **options):
        db = omendb.connect(endpoints or self.both, **options)
        self.addCleanup(db.close)
        return db


class Routing(Cluster):
    def test_a_filter_on_the_shard_key_asks_one_shard(self):
        db = self.connect()
        docs = db.create_collection("docs", dim=DIM, shard_key="tenant", shards=16)
        docs.upsert(range(100), rows(100), payloads(100))
        before = self.node.metric('omendb_node_port_calls_total{kind="search",code="ok"}')
        for i, tenant in enumerate(TENANTS):
            reply = db._call({"op": "points.search", "collection": "docs", "searches": [
                {"vector": rows(1)[0].tobytes(), "k": 100, "filter": match("tenant", tenant)}]})
            self.assertEqual((reply["shards_asked"], reply["shards_total"]), (1, 16))
            self.assertEqual(len(reply["results"][0]["ids"]) // 8, 20)
            asked = self.node.metric('omendb_node_port_calls_total{kind="search",code="ok"}') - before
            self.assertEqual(asked, i + 1)

    def test_a_router_started_before_its_node_waits_for_it(self):
        node = Node()
        self.addCleanup(node.close)
        node.start()
        node.stop()
        router = Router([node.node_listen], node.secret_file)
        self.addCleanup(router.close)
        router.http = f"http://127.0.0.1:{free_port()}"
        router.spawn()
        self.assertEqual(until_answer(router, "/readyz")[0], 503)
        self.assertEqual(router.http_get("/healthz")[0], 200)
        node.start()
        wait_until(lambda: router.http_get("/readyz")[0] == 200)
        wait_until(lambda: (router.work / "ready.json").exists())

    def test_a_database_that_was_replaced_is_noticed(self):
        db = self.connect(self.routers[0].address)
        db.create_collection("docs", dim=DIM, shards=4).upsert(range(10), rows(10))
        self.node.stop()
        other = Node()  # another data directory behind the same address
        self.addCleanup(other.close)
        other.node_listen, other.secret_file = self.node.node_listen, self.node.secret_file
        other.start()
        with omendb.connect(self.routers[0].address) as fresh:
            wait_until(lambda: fresh.collections() == [])
            fresh.create_collection("docs", dim=2)
            fresh.collection("docs").upsert([1], [[1.0, 0.0]])
            self.assertEqual(fresh.collection("docs").count(), 1)

    def test_a_silent_node_ends_reads_at_their_deadline(self):
        db = self.connect()
        docs = db.create_collection("docs", dim=DIM)
        docs.upsert([1], rows(1))
        self.node.pause()
        try:
            with self.assertRaises((omendb.DeadlineExceeded, omendb.Unavailable)):
                db._call({"op": "points.count", "collection": "docs"}, timeout=1)
        finally:
            self.node.resume()
        wait_until(lambda: docs.count() == 1)


class Writer(threading.Thread):
    """Upserts new points one per request, many in flight, until stopped; knows what was acknowledged, and as what."""

    def __init__(self, endpoints, timeout=60):
        super().__init__()
        self.timeout = timeout
        self.endpoints, self.acked, self.error, self.submitted = endpoints, {}, None, 0
        self._stopping = threading.Event()
        self.start()

    def run(self):
        try:
            with omendb.connect(self.endpoints, timeout=self.timeout) as db:
                with db.collection("docs").pipeline(in_flight=64, on_ack=self._on_ack) as pipeline:
                    while not self._stopping.is_set():
                        i = self.submitted
                        pipeline.upsert([i], rows(1, seed=i), [{"n": i}])
                        self.submitted += 1
        except omendb.OmenError as e:
            self.error = e

    def _on_ack(self, ids, result):
        self.acked[ids[0]] = result.sequence

    def wait_for(self, count):
        wait_until(lambda: len(self.acked) >= count or not self.is_alive())
        if not self.is_alive():
            raise AssertionError(f"the writer ended: {self.error}")

    def stop(self):
        self._stopping.set()
        self.join()
        if self.error is not None:
            raise self.error


class Deaths(Cluster):
    def check(self, db, writer):
        """Everything acknowledged is there, as it was acknowledged: applied again it would have a later version."""
        docs = db.collection("docs")
        self.assertEqual(docs.count(), writer.submitted)  # the pipeline waited for all
        for first in range(0, writer.submitted, 1000):
            ids = list(range(first, min(first + 1000, writer.submitted)))
            for i, point in zip(ids, docs.get(ids, with_vectors=True)):
                self.assertEqual((point.id, point.payload), (i, {"n": i}))
                self.assertEqual(point.version, writer.acked[i], f"point {i} was applied more than once")
                want = rows(1, seed=i)[0]
                np.testing.assert_allclose(point.vector, want / np.linalg.norm(want), rtol=1e-4)

    def test_clients_go_on_when_a_router_is_killed(self):
        db = self.connect()
        db.create_collection("docs", dim=DIM, shards=4)
        writer = Writer(self.both)
        try:
            writer.wait_for(300)
            for router in (self.routers[0], self.routers[1], self.routers[0]):
                router.kill9()
                writer.wait_for(len(writer.acked) + 300)
                router.start()
                writer.wait_for(len(writer.acked) + 100)
        finally:
            writer.stop()
        self.check(db, writer)

    def test_clients_go_on_when_a_router_stops_without_a_word(self):
        db = self.connect()
        db.create_collection("docs", dim=DIM, shards=4)
        writer = Writer(self.both, timeout=20)
        try:
            writer.wait_for(300)
            self.routers[0].pause()  # all that the writer has outstanding is there
            writer.wait_for(len(writer.acked) + 300)
            with omendb.connect(self.both, timeout=30) as other:
                self.assertGreater(other.collection("docs").count(), 0)
            self.routers[0].resume()
        finally:
            self.routers[0].resume()
            writer.stop()
        self.check(db, writer)

    def test_nothing_is_lost_or_doubled_when_the_node_is_killed_under_load(self):
        db = self.connect()
        db.create_collection("docs", dim=DIM, shards=4)
        writer = Writer(self.both)
        try:
            for _ in range(3):
                writer.wait_for(len(writer.acked) + 300)
                self.node.kill9()
                time.sleep(0.3)
                self.node.start()
                writer.wait_for(len(writer.acked) + 100)
        finally:
            writer.stop()
        self.check(db, writer)

    def test_writes_during_a_longer_outage_end_as_unavailable_or_unknown(self):
        db = self.connect(timeout=1.0)
        docs = db.create_collection("docs", dim=DIM)
        self.node.kill9()
        with self.assertRaises((omendb.Unavailable, omendb.OutcomeUnknown, omendb.DeadlineExceeded)):
            docs.upsert([1], rows(1))
        self.node.start()
        wait_until(lambda: docs.count() in (0, 1))
        docs.upsert([2], rows(1))
        self.assertEqual([p.id for p in docs.get([2])], [2])


class Strangers(Cluster):
    def raw(self, data):
        """Send bytes to the node port; what comes back: nng's opening, and an answer if there is one soon."""
        host, port = self.node.node_listen[len("tcp://"):].rsplit(":", 1)
        got = b""
        with socket.create_connection((host, int(port)), timeout=10) as s:
            s.settimeout(0.5)
            try:
                s.sendall(data)
                while len(got) <= 8:  # the opening comes first and alone, or not at all
                    part = s.recv(65536)
                    if not part:
                        break
                    got += part
            except OSError:
                pass
        return got

    def sp(self, body):
        """A request as nng sends it."""
        return b"\0SP\0\0\x30\0\0" + struct.pack(">QI", len(body) + 4, 0x80000001) + body

    def tearDown(self):
        self.assertIsNone(self.node.process.poll(), "the node died")
        with omendb.connect(self.routers[0].address) as db:
            self.assertEqual(db.create_collection("after", dim=2, exist_ok=True).count(), 0)

    def test_a_wrong_secret_is_refused(self):
        wrong = self.node.work / "wrong"
        wrong.write_text("another secret, just as long\n")
        router = Router([self.node.node_listen], wrong)
        self.addCleanup(router.close)
        router.http = f"http://127.0.0.1:{free_port()}"
        router.spawn()
        wait_until(lambda: self.node.metric('omendb_node_port_refused_total{reason="secret"}') > 0)
        status, why = until_answer(router, "/readyz")
        self.assertEqual(status, 503)
        self.assertIn("no node has answered", why)
        wait_until(lambda: "secret" in router.log())
        self.assertFalse((router.work / "ready.json").exists())
        self.assertIn("node_port.refused", self.node.log())

    def test_no_secret_is_no_start(self):
        node = Node(secret="short")
        self.addCleanup(node.close)
        code, log = node.start_fails()
        self.assertEqual(code, 2)
        self.assertIn("cluster.secret_file", log)
        router = Router([self.node.node_listen], "/nonexistent")
        self.addCleanup(router.close)
        code, log = router.start_fails()
        self.assertIn(code, (1, 2))
        self.assertIn("/nonexistent", log)

    def test_garbage_is_harmless(self):
        random_bytes = np.random.default_rng(SEED).bytes
        before = self.node.rss_bytes()
        self.raw(b"GET / HTTP/1.1\r\n\r\n")
        self.raw(random_bytes(5000))
        self.raw(b"\0SP\0\0\x30\0\0" + struct.pack(">Q", 1 << 40) + b"x" * 1000)  # a terabyte, announced
        for size in (0, 1, 31, 32, 33, 1000, 100000):
            self.raw(self.sp(random_bytes(size)))
            self.raw(self.sp((b"OMRC\1\0\1" + random_bytes(size))[:max(size, 7)]))
        for kind in range(80):
            self.raw(self.sp(b"OMRC\1\0\1" + bytes([kind]) + random_bytes(200)))
        for _ in range(5):
            self.raw(self.sp(random_bytes(50))[:30])  # cut off in the middle
        refused = sum(self.node.metric('omendb_node_port_refused_total{reason="%s"}' % r)
                      for r in ("garbage", "version", "secret", "body"))
        self.assertGreaterEqual(refused, 80)
        self.assertEqual(self.node.metric('omendb_node_port_refused_total{reason="body"}'), 0)  # nobody got that far
        self.assertLess(self.node.rss_bytes() - before, 200 << 20)

    def test_a_refusal_says_nothing_but_its_code(self):
        reply = self.raw(self.sp(b"OMRC\1\0\1\x40" + b"12345678" + b"\0" * 16 + b"poll"))
        self.assertIn(b"OMRC\1\0\3\0" + b"12345678" + b"\0" * 16 + struct.pack("<I", 7), reply)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
            failure = None
        except (OSError, omendb.OmenError) as e:
            failure = e
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen in {seconds} s; last: {failure}")
        time.sleep(0.01)


def until_answer(server, path):
    answer = []
    wait_until(lambda: answer.append(server.http_get(path)) or True)
    return answer[-1]


if __name__ == "__main__":
    unittest.main()

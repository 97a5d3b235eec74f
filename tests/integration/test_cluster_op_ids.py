"""A change of the cluster is made once and told once, with real processes: its answer is lost on the way, then the router that
carried it, or the node that made it, is killed with -9, and the client's own retry at another router gets the first outcome."""
import os
import random
import shutil
import socket
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from unittest import mock
from pathlib import Path

from omen_server import BUILD, Server
from partition import LocalCluster

import omendb

SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
PATIENCE = 120


def setUpModule():
    print(f"seed {SEED}")


class Road:
    """Between a client and a router. After `lose` the next request with these bytes goes through; of answers nothing does."""

    def __init__(self, port):
        self.target, self.words, self.passed, self.peers = port, None, threading.Event(), []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near = self.listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                if self.listener.fileno() < 0:
                    return
                near.close()  # the router is dead
                continue
            self.peers += [near, far]
            threading.Thread(target=self.carry, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self.carry, args=(far, near, False), daemon=True).start()

    def carry(self, source, sink, asks):
        try:
            while data := source.recv(65536):
                if asks and self.words is not None and self.words in data:
                    self.passed.set()
                if asks or not self.passed.is_set():
                    sink.sendall(data)
        except OSError:
            pass
        self.end((source, sink))  # closing the sink would not wake the thread that reads from it: it does that itself
        source.close()

    @staticmethod
    def end(peers):
        for s in peers:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def lose(self, words):
        self.words = words
        self.passed.clear()

    def cut(self):
        self.words = None
        peers, self.peers = self.peers, []
        self.end(peers)
        self.passed.clear()

    def close(self):
        self.listener.close()
        self.cut()


class OpIds(unittest.TestCase):
    def setUp(self):
        self.rng = random.Random(SEED)
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = LocalCluster(BUILD, self.work, nodes=4)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        self.cluster.wait_whole(PATIENCE)
        self.road = Road(self.cluster.routers[0].ports["listen"])
        self.addCleanup(self.road.close)
        self.db = omendb.connect([self.road.endpoint, self.cluster.routers[1].listen], timeout=PATIENCE)
        self.addCleanup(self.db.close)
        self.other = omendb.connect([self.cluster.routers[1].listen], timeout=PATIENCE)
        self.addCleanup(self.other.close)

    def wait(self, what, why):
        deadline = time.monotonic() + PATIENCE
        while not (result := what()):
            self.assertLess(time.monotonic(), deadline, why)
            time.sleep(0.02)
        return result

    def wait_made(self, made, client, told):
        try:
            self.wait(made, "the change is not made")
        except AssertionError:
            self.road.cut()
            client.join(PATIENCE)
            self.fail(f"the change is not made, its client is told {told}")

    def status(self):
        return self.wait(lambda: (s := self.other.cluster_status())["cluster"]["leader_node"] and s, "the cluster has no leader")

    def operations(self):
        s = self.status()
        return s["operations"] + s["history"]

    def one_to_drain(self):
        """A node that holds replicas, and they have somewhere to go; after the moves one may hold none."""
        def would_move(node):
            try:
                return self.other.cluster("node_drain", node_id=node, dry_run=True)["moves"]
            except omendb.Unavailable:
                return False  # a node that was killed has not reported yet

        nodes = self.rng.sample((1, 2, 3, 4), 4)
        return self.wait(lambda: next((n for n in nodes if would_move(n)), None), "no node can be drained")

    def twice(self, change, words, made, who):
        """The change with its answer lost: once it is `made`, `who` dies, and the client asks again by itself. What it is told."""
        told = []
        if self.db._connection is not None:
            self.db._connection.close()  # the next one is by the road again
        self.db._endpoint = 0

        def ask():
            try:
                told.append(change(self.db))
            except omendb.OmenError as e:
                told.append(e)

        self.road.lose(words)
        client = threading.Thread(target=ask)
        client.start()
        try:
            self.assertTrue(self.road.passed.wait(PATIENCE), "the change is not asked for by the road")
            self.wait_made(made, client, told)
            victim = self.cluster.routers[0] if who == "router" else \
                self.cluster.node_of_id(self.status()["cluster"]["leader_node"])
            victim.kill9()
        finally:
            self.road.cut()
        client.join(PATIENCE)
        self.assertFalse(client.is_alive(), "the client is not answered")
        victim.start()
        self.wait(lambda: victim.not_ready() is None, f"{victim.name} is not ready again")
        return told[0]

    def test_a_change_whose_answer_is_lost_is_made_once_and_told_as_the_first_time(self):
        create = lambda db: db.create_collection("docs", 4, metric="l2", shards=2, replication=3).name
        exists = lambda: any(c["name"] == "docs" for c in self.other.collections())
        self.assertEqual(self.twice(create, b"collection.create", exists, self.rng.choice(("router", "leader"))), "docs")
        self.assertEqual(len(self.other.collections()), 1)
        self.cluster.wait_replicas("docs", PATIENCE)

        shards = {s["shard_id"]: {r["node_id"] for r in s["replicas"]} for s in self.cluster.shards_of("docs")}
        for (shard, nodes), who in zip(shards.items(), ("router", "leader")):
            source, target = self.rng.choice(sorted(nodes)), ({1, 2, 3, 4} - nodes).pop()
            # Of one that has ended the repetition finds no replica where it is to move one from.
            made = (lambda: any(o["shard_id"] == shard for o in self.status()["history"])) if who == "router" else \
                (lambda: any(o["shard_id"] == shard for o in self.operations()))
            told = self.twice(lambda db: db.cluster("replica_move", shard_id=shard, from_node=source, to_node=target),
                              b"replica_move", made, who)
            (op,) = [o for o in self.operations() if o["shard_id"] == shard]
            self.assertEqual(told, {"op_id": op["op_id"]}, f"{who} was killed")
            self.assertEqual((op["from_node"], op["to_node"]), (source, target))
        self.wait(lambda: not (s := self.status())["operations"] + s["plans"], "operations do not end")
        self.cluster.wait_replicas("docs", PATIENCE)

        before = {o["op_id"] for o in self.operations()}
        node = self.one_to_drain()
        moves = lambda: [o for o in self.operations() if o["op_id"] not in before]
        told = self.twice(lambda db: db.cluster("node_drain", node_id=node), b"node_drain", moves, self.rng.choice(("router", "leader")))
        self.assertEqual({o["plan_id"] for o in moves()}, {told["plan_id"]})
        self.assertEqual(len({o["shard_id"] for o in moves()}), len(moves()), "a shard was moved twice")
        self.wait(lambda: not (s := self.status())["operations"] + s["plans"], "operations do not end")

        self.assertIsNone(self.twice(lambda db: db.drop_collection("docs"), b"collection.drop", lambda: not exists(), "router"))
        removed = lambda: next(n["state"] for n in self.status()["nodes"] if n["node_id"] == node) == "removed"
        if self.status()["cluster"]["leader_node"] != node:
            told = self.twice(lambda db: db.cluster("node_remove", node_id=node), b"node_remove", removed, "router")
            self.assertEqual(told, {})


class SingleNode(unittest.TestCase):
    def test_a_change_asked_for_twice_is_made_once(self):
        with Server() as server, omendb.connect(server.address) as db:
            create = {"op": "collection.create", "collection": "docs", "vectors": {"": {"dim": 2}}, "op_id": db.new_op_id()}
            first = db._call(create)["collection_id"]
            self.assertEqual(db._call(create)["collection_id"], first)
            with self.assertRaises(omendb.AlreadyExists):
                db._call({**create, "op_id": db.new_op_id()})
            db.collection("docs").upsert([1], [[1.0, 2.0]])
            self.assertEqual(db._call(create)["collection_id"], first)
            self.assertEqual(db.collection("docs").count(), 1)
            drop = {"op": "collection.drop", "collection": "docs", "op_id": db.new_op_id()}
            db._call(drop)
            db._call(drop)
            with self.assertRaises(omendb.NotFound):
                db._call(create)  # it was made, and is gone
            db.create_collection("docs", 2)
            db._call(drop)  # of the first, long done
            self.assertEqual(db.collection("docs").count(), 0)
            with self.assertRaises(omendb.OperationExpired):
                db._call({**drop, "op_id": [7, 1, 1000]})

    def test_a_client_whose_clock_is_ahead_spoils_nobody_elses_op_ids(self):
        with Server() as server, omendb.connect(server.address) as db:
            db.create_collection("docs", 2)
            ahead = int(time.time() * 1000) + 60_000
            alias = {"op": "alias.set", "alias": "a", "collection": "docs"}
            with self.assertRaises(omendb.InvalidRequest) as refused:
                db._call({**alias, "op_id": [7, 1, ahead]})
            self.assertEqual(refused.exception.field, "op_id[2]")
            self.assertIn("set the client's clock", str(refused.exception))
            # A client goes by the server's clock when its own is refused, and for good.
            real = time.time
            with mock.patch("omendb.client.time.time", lambda: real() + 60), omendb.connect(server.address) as other:
                with ThreadPoolExecutor(8) as threads:  # all of them are refused at once, at first
                    list(threads.map(lambda name: other.set_alias(name, "docs"), "cdefghij"))
                for _ in range(1100):  # more than are kept: what is let go of refuses what was issued before
                    other.set_alias("a", "docs")
                self.assertLess(other.new_op_id()[2], int(real() * 1000) + 30_000)
            db.set_alias("b", "docs")
            # Points are refused when their id is further ahead than outcomes are remembered; in a pipeline too.
            with mock.patch("omendb.client.time.time", lambda: real() + 600), omendb.connect(server.address) as other:
                with other.collection("docs").pipeline(in_flight=8) as load:
                    load.upsert(list(range(100)), [[1.0, 2.0]] * 100, batch_points=5)
                self.assertEqual(other.collection("docs").count(), 100)



class Init(unittest.TestCase):
    def setUp(self):
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = LocalCluster(BUILD, self.work, nodes=1, routers=1)
        self.addCleanup(self.cluster.stop)
        self.cluster.start_processes()
        self.endpoint = self.cluster.routers[0].listen

    def all_at_once(self, op_ids):
        """What each client that asks for a cluster is told: its id, or the error's name."""
        told, clients = [None] * len(op_ids), [self.client() for _ in op_ids]

        def ask(i):
            try:
                request = {"op": "cluster", "request": {"do": "init", "name": "ours"}, "op_id": op_ids[i]}
                told[i] = clients[i]._call(request)["reply"]["cluster_id"]
            except omendb.OmenError as e:
                told[i] = e.name

        threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(op_ids))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)
        return told

    def client(self):
        deadline = time.monotonic() + PATIENCE
        while True:  # the router may not listen yet
            try:
                db = omendb.connect([self.endpoint], timeout=PATIENCE)
                self.addCleanup(db.close)
                return db
            except omendb.Unavailable:
                self.assertLess(time.monotonic(), deadline, "the router does not listen")
                time.sleep(0.05)

    def test_one_cluster_is_made_whoever_asks_and_however_often(self):
        now = int(time.time() * 1000)
        told = self.all_at_once([[7, 1, now]] * 4 + [[8, 1, now]] * 4)
        made = {t for t in told if t != "exists"}
        self.assertEqual(len(made), 1, told)
        self.assertIn(sorted(t == "exists" for t in (told[0], told[4])), [[False, True]], told)
        self.assertEqual([len(set(told[:4])), len(set(told[4:]))], [1, 1], told)
        node = self.cluster.nodes[0]
        node.kill9()
        node.start()  # asked before the entry that tells it is applied again
        self.assertEqual(self.all_at_once([[7, 1, now], [8, 1, now]]), [told[0], told[4]])


if __name__ == "__main__":
    unittest.main()

"""A cluster of real processes whose network is cut, two-way and one-way: the side with a majority goes on, the other one answers
nothing that it cannot know, and when the cut heals nothing is lost, doubled or stale."""
import collections
import json
import os
import random
import shutil
import tempfile
import threading
import time
import unittest
from pathlib import Path

import numpy as np

import omendb
from history import Op, linearizable
from omen_server import BUILD
from partition import NamespaceCluster, ProxyCluster

DIM = 16
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
PATIENCE = 120
NO_ANSWER = (omendb.OutcomeUnknown, omendb.Unavailable, omendb.DeadlineExceeded)


def setUpModule():
    print(f"seed {SEED}")


def row(i):
    return np.random.default_rng((SEED, i)).standard_normal(DIM, dtype=np.float32)


class Clients:
    """Threads that read and write a few registers, linearizably, and each one of its own in a session; what happened is kept.
    With `chapter` raised they go over to other registers: a history is judged in time that grows fast with its length.

    Args:
        routers: one endpoint per thread.
        timeout: of each operation, seconds, by thread.
    """

    KEYS = 4

    def __init__(self, routers, timeouts):
        self.histories, self.chapter = collections.defaultdict(list), 0
        self.errors, self.acked, self.lock, self.stopping = [], [], threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(n, *pair)) for n, pair in enumerate(zip(routers, timeouts))]
        for t in self.threads:
            t.start()

    def run(self, number, endpoint, timeout):
        try:
            with omendb.connect(endpoint, timeout=timeout, consistency="linearizable") as db, \
                    omendb.connect(endpoint, timeout=timeout, consistency="session") as session:
                self.work(number, db.collection("docs"), session.collection("docs"))
        except Exception as e:  # a test that goes on without one of its clients would prove less than it says
            self.errors.append(f"client {number}: {e!r}")

    def work(self, number, docs, session):
        rng, known, maybe = random.Random(SEED * 31 + number), None, set()
        n = 0
        while not self.stopping.is_set():
            n += 1
            key = rng.randrange(self.KEYS) + 10000 * self.chapter
            write, begin, end = rng.random() < 0.5, time.monotonic(), None
            value = (number, n)
            try:
                if write:
                    docs.upsert([key], row(key)[None, :], [{"v": [number, n]}])
                else:
                    found = docs.get([key])
                    value = tuple(found[0].payload["v"]) if found else None
                end = time.monotonic()
            except NO_ANSWER:
                pass  # a write may have been carried out; a read says nothing
            with self.lock:
                self.histories[key].append(Op(begin, end, "write" if write else "read", value))
                if write and end is not None:
                    self.acked.append((number, begin, end))
            known, maybe = self.own(session, 1000 + number, n, known, maybe)
            time.sleep(0.02)

    def own(self, session, key, n, known, maybe):
        """A register that nobody else writes: a session sees what it wrote and never goes back."""
        try:
            session.upsert([key], row(key)[None, :], [{"v": n}])
            known, maybe = n, set()
        except NO_ANSWER:
            maybe = maybe | {n}
        try:
            found = session.get([key])
            seen = found[0].payload["v"] if found else None
            if seen != known and seen not in maybe:
                raise AssertionError(f"a session that wrote {known} (perhaps {maybe}) sees {seen}")
            if seen in maybe:
                known, maybe = seen, {m for m in maybe if m > seen}
        except NO_ANSWER:
            pass
        return known, maybe

    def wait_acked(self, *numbers, seconds=PATIENCE):
        """Until a write of one of these clients begun after now was acknowledged: seconds that took."""
        begin = time.monotonic()
        while not self.errors:
            with self.lock:
                ends = [end for who, began, end in self.acked if who in numbers and began > begin]
            if ends:
                return min(ends) - begin
            if time.monotonic() > begin + seconds:
                raise AssertionError(f"clients {numbers} can write nothing")
            time.sleep(0.01)
        raise AssertionError(self.errors)

    def stop(self):
        self.stopping.set()
        for t in self.threads:
            t.join()


class Partitions:
    def setUp(self):
        why_not = self.cluster_class.why_not()
        if why_not is not None:
            self.skipTest(why_not)
        self.work = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.cluster = self.cluster_class(BUILD, self.work)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        self.cluster.omenctl("collections", "create", "docs", "--dim", DIM, "--metric", "l2", "--replication", 3)
        self.shard = self.cluster.shards_of("docs")[0]["shard_id"]
        self.cluster.wait_replicas("docs", PATIENCE)
        here, there = (r.listen for r in self.cluster.routers)
        # The last one asks through the router that is on the side of whom is cut off.
        self.clients = Clients([here, here, there], [PATIENCE, PATIENCE, 2])
        self.addCleanup(self.clients.stop)
        self.clients.wait_acked(0)

    def leader(self):
        return self.cluster.leader_of(self.shard, "docs")

    def others(self, node):
        return [n.name for n in self.cluster.nodes if n is not node]

    def heal(self):
        self.cluster.heal()
        self.cluster.wait_whole(PATIENCE)
        self.cluster.wait_replicas("docs", PATIENCE)

    def check(self, least=10):
        self.clients.stop()
        self.assertEqual(self.clients.errors, [])
        for key, history in self.clients.histories.items():
            self.assertGreater(sum(op.end is not None for op in history), least)
            self.assertIsNone(linearizable(history), f"key {key}, {len(history)} operations")

    def cut_off_leader(self, way):
        """Cut the leader and the second router from the others; seconds until the first router wrote again, as a client saw it."""
        leader, there = self.leader(), self.cluster.routers[1].name
        others = self.others(leader)
        self.cluster.part(there, others)
        if way != "it is heard":
            self.cluster.lose(leader.name, others)
        if way != "it hears":
            self.cluster.lose(others, leader.name)
        took = self.clients.wait_acked(0, 1)
        with omendb.connect(self.cluster.routers[0].listen, timeout=PATIENCE) as db:
            for n in range(20):
                db.collection("docs").upsert([500], row(500)[None, :], [{"v": n}])
        with omendb.connect(self.cluster.routers[1].listen, timeout=1, consistency="linearizable") as db:
            with self.assertRaises(NO_ANSWER):
                db.collection("docs").get([500])
        if way != "it hears":  # who hears nobody answers eventual reads only, and says that they are stale
            with omendb.connect(self.cluster.routers[1].listen, timeout=PATIENCE, consistency="eventual") as db:
                deadline = time.monotonic() + PATIENCE
                while not (found := db.collection("docs").get([0, 1, 2, 3])).stale:
                    self.assertLess(time.monotonic(), deadline, "stale answers are not marked")
                    time.sleep(0.05)
                self.assertTrue(db.collection("docs").count().stale and db.collection("docs").search(row(0), k=1).stale)
                scroll = db.collection("docs").scroll(limit=2)
                self.assertTrue(len(list(scroll)) == 2 and scroll.stale)
                self.assertGreater(len(found), 0)
            done = self.cluster.omenctl("--endpoint", self.cluster.routers[1].listen, "--json", "search", "docs", "--consistency",
                                        "eventual", "--vector", json.dumps(row(0).tolist()))
            self.assertIs(json.loads(done.stdout)["stale"], True)
            for args in (["get", "docs", 0, 1], ["scroll", "docs", "--limit", 2], ["count", "docs"]):
                done = self.cluster.omenctl("--endpoint", self.cluster.routers[1].listen, "points", *args, "--consistency",
                                            "eventual", check=False)  # some may not be there yet
                self.assertIn("stale", done.stderr)
        return took

    def test_a_leader_cut_off_from_its_followers_is_replaced_and_answers_nothing_it_cannot_know(self):
        took = {}
        for way in ("neither", "it is heard", "it hears"):  # who is not heard loses its followers, who does not hear its majority
            took[way] = round(self.cut_off_leader(way), 2)
            self.heal()
        print(f"seconds until a write was acknowledged again: {took}")
        self.check()

    def test_a_follower_that_is_cut_off_costs_nobody_a_leader(self):
        leader = self.leader()
        follower = next(n for n in self.cluster.nodes if n is not leader)
        third = next(n for n in self.cluster.nodes if n not in (leader, follower))
        term = self.term()
        everyone = self.others(follower)
        for senders, receivers in ((follower.name, everyone), (everyone, follower.name), (follower.name, leader.name),
                                   (leader.name, follower.name)):
            self.cluster.lose(senders, receivers)
            if third.name not in (senders, receivers) and senders in (leader.name, follower.name):
                self.cluster.part(leader.name, follower.name)  # the third one hears both
            for _ in range(3):  # longer than two elections would take
                time.sleep(1)
                self.clients.wait_acked(0)
            self.heal()
            self.assertEqual(self.term(), term, f"{senders} not heard by {receivers} cost an election")
        self.check()

    def term(self):
        (shard,) = self.cluster.shards_of("docs")
        return next(r["term"] for r in shard["replicas"] if r["leader"])


class ThroughProxies(Partitions, unittest.TestCase):
    cluster_class = ProxyCluster


class InNamespaces(Partitions, unittest.TestCase):
    cluster_class = NamespaceCluster


if __name__ == "__main__":
    unittest.main()

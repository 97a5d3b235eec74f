"""A cluster to which everything happens: nodes and routers are cut off in every direction, killed and stopped, alone and at
once, OMEN_FAULT_REPEATS times, while clients read and write. After each time the cluster serves again; at the end no history has
a lost, doubled or stale result."""
import os
import random
import signal
import sys
import time
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests" / "integration"), str(TOP / "tools" / "python")]

import test_cluster_partitions as partitions

REPEATS = int(os.environ.get("OMEN_FAULT_REPEATS", 20))


def setUpModule():
    print(f"seed {partitions.SEED}")


class Nemesis(partitions.Partitions):
    test_a_leader_cut_off_from_its_followers_is_replaced_and_answers_nothing_it_cannot_know = None
    test_a_follower_that_is_cut_off_costs_nobody_a_leader = None

    def cut(self, rng):
        nodes = [n.name for n in self.cluster.nodes]
        some = rng.sample(nodes, 1)
        others = [n for n in nodes if n not in some]
        if rng.random() < 0.3:
            others = rng.sample(others, 1)  # only one of the two
        if rng.random() < 0.5:
            others.append(self.cluster.routers[1].name)
        way = rng.choice(("both", "forth", "back"))
        if way != "back":
            self.cluster.lose(some, others)
        if way != "forth":
            self.cluster.lose(others, some)
        return f"cut {some} {way} {others}"

    def kill(self, rng):
        victims = rng.sample(self.cluster.nodes, rng.choice((1, 1, 1, 2, 3)))
        for node in victims:
            node.signal(signal.SIGKILL)
        for node in victims:
            node.wait_end(60)
        time.sleep(rng.random() * 2)
        for node in victims:
            node.start()
        return f"kill {[n.name for n in victims]}"

    def pause(self, rng):
        node = rng.choice(self.cluster.nodes)
        node.signal(signal.SIGSTOP)
        time.sleep(rng.random() * 4)
        node.signal(signal.SIGCONT)
        return f"stop {node.name}"

    def kill_router(self, rng):
        router = self.cluster.routers[1]
        router.kill9()
        router.start()
        return f"kill {router.name}"

    def test_histories_are_linearizable_whatever_happens(self):
        rng = random.Random(partitions.SEED)
        for turn in range(REPEATS):
            done = []
            for _ in range(rng.choice((1, 1, 2, 3))):
                done.append(rng.choice((self.cut, self.cut, self.cut, self.kill, self.pause, self.kill_router))(rng))
                time.sleep(rng.random() * 2)
            time.sleep(rng.random() * 3)
            print(f"{turn}: {', '.join(done)}", flush=True)
            self.heal()
            self.clients.wait_acked(0)
            self.clients.wait_acked(2)
            self.clients.chapter += 1
        self.check(least=0)


class ThroughProxies(Nemesis, unittest.TestCase):
    cluster_class = partitions.ProxyCluster


class InNamespaces(Nemesis, unittest.TestCase):
    cluster_class = partitions.NamespaceCluster


if __name__ == "__main__":
    unittest.main()

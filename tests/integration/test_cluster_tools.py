"""What omenctl and the Python client make of a cluster's answers: tables, waiting for moves, exit codes, and that a change whose
outcome is unknown is asked for again under the same op id. A fake router answers; that the real ones do is tested with real nodes."""
import json
import re
import subprocess
import unittest

import omendb
from fake_router import FakeRouter, Refused
from omen_server import BUILD, Server

NODES = [{"node_id": 1, "address": "tcp://127.0.0.1:7710", "raft_address": "127.0.0.1:7720", "labels": "zone=a",
          "state": "active", "up": True, "ready": True, "why": "", "report_age_ms": 10, "disk_free": 50_000_000_000,
          "disk_total": 100_000_000_000, "memory": {"budget": 8_000_000_000, "used": 1_200_000_000, "full": True},
          "replicas": 2, "leaders": 1, "bytes": 1_200_000, "points": 500, "voter": True},
         {"node_id": 2, "address": "tcp://127.0.0.1:7711", "raft_address": "127.0.0.1:7721", "labels": "",
          "state": "draining", "up": False, "ready": False, "why": "not heard of", "report_age_ms": 0, "disk_free": 0,
          "disk_total": 0, "replicas": 0, "leaders": 0, "bytes": 0, "points": 0, "voter": False}]
SHARDS = [{"shard_id": 12, "collection": "books", "slot_first": 0, "slot_count": 2048, "replicas": [
    {"replica_id": 3, "node_id": 1, "role": "voter", "state": "ready", "leader": True, "ready": True, "term": 7,
     "applied": 900, "lag": 0, "bytes": 1000, "points": 500, "stale_ms": 20},
    {"replica_id": 4, "node_id": 2, "role": "voter", "state": "down", "leader": False, "ready": False, "term": 0,
     "applied": 0, "lag": 900, "bytes": 0, "points": 0, "stale_ms": 0}]}]
OPERATION = {"op_id": 41, "plan_id": 40, "shard_id": 12, "collection": "books", "from_node": 2, "to_node": 3,
             "step": "catch_up", "why": "drain", "bytes_done": 500_000, "bytes_total": 2_000_000, "started_ms": 1,
             "trouble": "the target node is not heard of"}
MOVES = [{"shard_id": 12, "collection": "books", "from_node": 2, "to_node": 3, "bytes": 2_000_000, "why": "node 2 is drained"}]


def status(operations=(), history=(), leader=1):
    return {"cluster": {"id": "7788", "name": "books", "leader_node": leader, "term": 5, "epoch": 9, "version": 2, "version_held": True,
                        "throttle_bytes_per_s": 50_000_000},
            "nodes": NODES, "shards": SHARDS, "operations": list(operations), "history": list(history)}


class ClusterTools(unittest.TestCase):
    def omenctl(self, router, *args, code=0):
        done = subprocess.run([str(BUILD / "omenctl"), "--endpoint", router.listen, "--timeout", "20s", *map(str, args)],
                              text=True, capture_output=True, timeout=120)
        self.assertEqual(done.returncode, code, f"{args}: {done.stdout}{done.stderr}")
        self.stderr = done.stderr
        return done.stdout

    def test_the_status_shows_nodes_replicas_and_operations(self):
        with FakeRouter({"status": lambda r: status([OPERATION])}) as router:
            text = self.omenctl(router, "cluster", "status")
            for part in ("cluster books (7788): led by node 1 in term 5, version 2 (held), map 9, copies 50.0 MB/s at most",
                         "tcp://127.0.0.1:7710", "zone=a", "50.0 GB (50 %)", "1.2 GB of 8.0 GB, full", "not heard of", "draining", "0-2047", "leader",
                         "catch_up", "500.0 kB", "2.0 MB", "the target node is not heard of"):
                self.assertIn(part, text)
            self.assertEqual(json.loads(self.omenctl(router, "--json", "cluster", "status")), status([OPERATION]))
            self.assertIn("tcp://127.0.0.1:7711", self.omenctl(router, "node", "list"))
            self.assertEqual(json.loads(self.omenctl(router, "--json", "node", "list")), NODES)
            self.assertIn("drain", self.omenctl(router, "operations"))
        with FakeRouter({"status": lambda r: status(leader=0)}) as router:
            self.assertIn("has no leader", self.omenctl(router, "cluster", "status"))
            self.assertIn("no operation", self.omenctl(router, "operations", "--watch"))

    def test_each_command_asks_what_it_says(self):
        say = lambda reply: lambda request: reply
        cases = [
            (["cluster", "init", "--name", "b\"ooks"], {"do": "init", "name": "b\"ooks"}, {"node_id": 1, "cluster_id": "7"}, "id 1"),
            (["cluster", "throttle", "50MB"], {"do": "throttle", "bytes_per_s": 50_000_000}, {}, "50000000"),
            (["cluster", "throttle", "0"], {"do": "throttle", "bytes_per_s": 0}, {}, "as fast"),
            (["cluster", "version"], {"do": "version"},
             {"version": 2, "held": True, "nodes": [{"node_id": 1, "up": True, "level": 3}]}, "version 2, held: every node reads more"),
            (["cluster", "version", "--hold"], {"do": "version", "hold": True},
             {"version": 2, "held": True, "nodes": [{"node_id": 1, "up": False, "level": 0}]}, "not heard of"),
            (["cluster", "version", "--release"], {"do": "version", "hold": False},
             {"version": 2, "held": False, "nodes": [{"node_id": 1, "up": True, "level": 3}]}, "about to be raised"),
            (["node", "add", "tcp://h:1", "--labels", "zone=b"], {"do": "node_add", "address": "tcp://h:1", "labels": "zone=b"},
             {"node_id": 4}, "node 4"),
            (["node", "activate", 3], {"do": "node_activate", "node_id": 3}, {}, "node 3"),
            (["node", "remove", 3], {"do": "node_remove", "node_id": 3}, {}, "node 3"),
            (["node", "label", 3, "zone=c"], {"do": "node_label", "node_id": 3, "labels": "zone=c"}, {}, "node 3"),
            (["node", "drain", 2, "--dry-run"], {"do": "node_drain", "node_id": 2, "dry_run": True},
             {"plan_id": 0, "moves": MOVES}, "nothing was begun"),
            (["node", "drain", 2], {"do": "node_drain", "node_id": 2, "dry_run": False}, {"plan_id": 40, "moves": MOVES},
             "plan 40"),
            (["replica", "move", 12, 2, 3], {"do": "replica_move", "shard_id": 12, "from_node": 2, "to_node": 3},
             {"op_id": 41}, "operation 41"),
            (["replica", "move", 12, "-", 3], {"do": "replica_move", "shard_id": 12, "from_node": 0, "to_node": 3},
             {"op_id": 41}, "operation 41"),
            (["leader", "transfer", 12], {"do": "leader_transfer", "shard_id": 12, "to_node": 0}, {"node_id": 0}, "another"),
            (["leader", "transfer", 12, 3], {"do": "leader_transfer", "shard_id": 12, "to_node": 3}, {"node_id": 3}, "node 3"),
            (["rebalance"], {"do": "rebalance", "apply": False},
             {"plan_id": 0, "moves": MOVES, "bytes_total": 2_000_000, "bytes_minimum": 1_900_000},
             "1 moves, 2.0 MB (to even out wholly takes at least 1.9 MB); --apply begins them"),
            (["rebalance"], {"do": "rebalance", "apply": False}, {"plan_id": 0, "moves": [], "bytes_total": 0, "bytes_minimum": 0},
             "nothing to move"),
            (["operations", "cancel", 41], {"do": "cancel", "op_id": 41}, {"canceled": 1}, "canceled: 1"),
            (["operations", "cancel", "--plan", 40], {"do": "cancel", "plan_id": 40}, {"canceled": 3}, "canceled: 3"),
            (["operations", "cancel", "--all"], {"do": "cancel", "all": True}, {"canceled": 0}, "canceled: 0"),
        ]
        for args, asked, reply, shown in cases:
            with FakeRouter({asked["do"]: say(reply)}) as router:
                self.assertIn(shown, self.omenctl(router, *args), args)
                self.assertEqual(json.loads(self.omenctl(router, "--json", *args)), reply)
                self.assertEqual(router.asked, [asked, asked])

    def test_wrong_arguments_are_told_and_nothing_is_asked(self):
        with FakeRouter({}) as router:
            for args in (["node", "drain"], ["node", "drain", "x"], ["node", "drain", "0"], ["replica", "move", "12", "1"],
                         ["replica", "move", "a", "1", "2"], ["operations", "cancel"], ["operations", "cancel", "1", "--all"],
                         ["cluster", "throttle", "fast"], ["leader", "transfer"],
                         ["cluster", "version", "--hold", "--release"]):
                self.omenctl(router, *args, code=2)
            self.assertEqual(router.asked, [])
            self.omenctl(router, "node", "activate", 1, code=1)
            self.assertIn("(invalid", self.stderr)

    def test_waiting_ends_with_the_last_move_and_tells_of_canceled_ones(self):
        for outcome, code in (("done", 0), ("canceled", 1)):
            looks = iter([status([OPERATION]), status([OPERATION], leader=0), status(leader=0),
                          status([], [{**OPERATION, "outcome": outcome}])])
            with FakeRouter({"status": lambda r: next(looks), "rebalance": lambda r: {"plan_id": 40, "moves": MOVES,
                                                                                    "bytes_total": 1, "bytes_minimum": 1},
                             "throttle": lambda r: {}}) as router:
                text = self.omenctl(router, "rebalance", "--apply", "--throttle", "10MB", "--wait", code=code)
                self.assertEqual([r["do"] for r in router.asked], ["throttle", "rebalance"] + ["status"] * 4)
                self.assertEqual("all moves are done" in text, code == 0)
                self.assertIn("copying 500.0 kB of 2.0 MB: the target node is not heard of", self.stderr)
                self.assertEqual("were canceled" in self.stderr, code != 0)

    def test_waiting_for_a_plan_shows_all_its_rounds_and_ends_with_it(self):
        plan = {"plan_id": 40, "why": "rebalance", "node_id": 0, "started_ms": 1, "rounds": 1, "moves_begun": 3, "moves_done": 2,
                "moves_canceled": 0, "moves_ahead": 4, "bytes_begun": 6_000_000, "bytes_done": 4_000_000, "bytes_ahead": 3_000_000,
                "canceled": False, "trouble": ""}
        between = {**plan, "rounds": 1, "moves_done": 3, "bytes_done": 6_000_000, "trouble": "not every node has reported"}
        second = {**plan, "rounds": 2, "moves_begun": 7, "moves_done": 6, "moves_ahead": 0, "bytes_begun": 9_000_000,
                  "bytes_done": 8_000_000, "bytes_ahead": 0}
        for canceled, code in ((False, 0), (True, 1)):
            over = {**second, "moves_done": 7 - canceled, "moves_canceled": int(canceled), "canceled": canceled, "ended_ms": 9}
            looks = iter([{**status([OPERATION]), "plans": [plan], "plans_ended": []},
                          {**status(), "plans": [between], "plans_ended": []},  # no move is under way, and it is not over
                          {**status([OPERATION]), "plans": [second], "plans_ended": []},
                          {**status(), "plans": [], "plans_ended": [over]}])
            moves = [{**MOVES[0], "round": 1}, {**MOVES[0], "shard_id": 13, "round": 2}]
            with FakeRouter({"status": lambda r: next(looks), "rebalance": lambda r: {
                    "plan_id": 40, "moves": moves, "bytes_total": 9_000_000, "bytes_minimum": 8_500_000}}) as router:
                text = self.omenctl(router, "rebalance", "--apply", "--wait", code=code)
                self.assertIn("round", text.splitlines()[0])
                self.assertEqual("all moves are done" in text, code == 0)
                for line in ("5 moves left, 2 done, copying 4.5 MB of 9.0 MB", "4 moves left, 3 done, copying 6.0 MB of 9.0 MB: not",
                             "1 moves left, 6 done in round 2, copying 8.5 MB of 9.0 MB"):
                    self.assertIn(line, self.stderr)
                self.assertEqual("were canceled" in self.stderr, code != 0)
        with FakeRouter({"status": lambda r: {**status([OPERATION]), "plans": [plan], "plans_ended": []}}) as router:
            for args in (["cluster", "status"], ["operations"]):
                text = self.omenctl(router, *args)
                for part in ("moves done", "rebalance", "4.0 MB", "9.0 MB"):
                    self.assertIn(part, text)

    def test_a_change_whose_outcome_is_unknown_is_sent_again_under_the_same_op_id(self):
        def unknown_twice(request):
            if len(router.asked) % 3:
                raise Refused(11, "outcome_unknown", "the leader was lost")
            return {"plan_id": 40, "moves": MOVES, "bytes_total": 1, "bytes_minimum": 1, "op_id": 41}
        actions = ("rebalance", "node_drain", "replica_move", "node_remove", "throttle", "leader_transfer")
        with FakeRouter({do: unknown_twice for do in actions}) as router, omendb.connect(router.listen) as db:
            for args in (["rebalance", "--apply"], ["node", "drain", 2], ["replica", "move", 1, 2, 3], ["node", "remove", 2],
                         ["cluster", "throttle", 0]):
                self.omenctl(router, *args)
            for do, members in (("rebalance", {"apply": True}), ("node_drain", {"node_id": 2})):
                self.assertEqual(db.cluster(do, **members)["plan_id"], 40)
            tries = [router.op_ids[i:i + 3] for i in range(0, len(router.op_ids), 3)]
            self.assertEqual(len(tries), 7)
            self.assertTrue(all(t[0] is not None and t[0] == t[1] == t[2] for t in tries), tries)
            self.assertEqual(len({tuple(t[0]) for t in tries}), 7)  # a new one for each command
            router.asked.clear()
            router.op_ids.clear()
            self.omenctl(router, "leader", "transfer", 12, code=1)  # not recorded: told, not tried again
            self.assertIn("(outcome_unknown", self.stderr)
            with self.assertRaises(omendb.OutcomeUnknown):
                db.cluster("leader_transfer", shard_id=12)
            self.assertEqual(router.op_ids, [None, None])
            db.cluster("node_drain", node_id=2, dry_run=True)  # a look needs none
            self.assertEqual(router.op_ids[2:], [None])

    def test_an_unknown_outcome_tells_the_op_id_to_ask_again_under(self):
        def lost(request):
            raise Refused(11, "outcome_unknown", "the leader was lost")
        with FakeRouter({do: lost for do in ("node_drain", "leader_transfer")}) as router:
            self.omenctl(router, "node", "drain", 2, code=1)
            (op_id,) = re.findall(r"--op-id (\S+)", self.stderr)
            sent = [int(n) for n in op_id.split("-")]
            self.assertEqual({tuple(i) for i in router.op_ids}, {tuple(sent)})
            self.omenctl(router, "leader", "transfer", 12, code=1)  # has none
            self.assertNotIn("--op-id", self.stderr)
        with FakeRouter({"node_drain": lambda r: {"plan_id": 40, "moves": MOVES}, "status": lambda r: status()}) as router:
            self.omenctl(router, "--op-id", op_id, "node", "drain", 2)
            self.assertEqual(router.op_ids, [sent])
            self.omenctl(router, "node", "drain", 2)
            self.assertNotIn(router.op_ids[1], [None, sent])
            for args in (["cluster", "status", "--op-id", op_id], ["node", "drain", 2, "--op-id", "1-2"],
                         ["node", "drain", 2, "--op-id", "0-2-3"], ["node", "drain", 2, "--op-id", "1-2-3x"],
                         ["rebalance", "--apply", "--throttle", "1MB", "--op-id", op_id]):
                self.omenctl(router, *args, code=2)
            self.assertEqual(len(router.op_ids), 2)

    def test_the_python_client_reads_the_status(self):
        with FakeRouter({"status": lambda r: status([OPERATION])}) as router, omendb.connect(router.listen) as db:
            self.assertEqual(db.cluster_status(), status([OPERATION]))
            with self.assertRaises(omendb.InvalidRequest):
                db.cluster("of the next release")

    def test_the_python_client_leaves_a_router_that_has_stopped_without_a_word(self):
        with FakeRouter({"status": lambda r: status()}) as one, FakeRouter({"status": lambda r: status()}) as two:
            with omendb.connect([one.listen, two.listen], timeout=20) as db:
                db.cluster_status()
                self.assertEqual(len(one.asked), 1)
                one.silent = True
                self.assertEqual(db.cluster_status(), status())
                self.assertEqual(len(two.asked), 1)
                db.cluster_status()  # and stays away from it
                self.assertEqual(len(two.asked), 2)

    def test_a_single_node_says_that_it_is_one(self):
        with Server() as server:
            done = server.omenctl("cluster", "status", check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn("this is a single node", done.stderr)
            with omendb.connect(server.address) as db, self.assertRaises(omendb.InvalidRequest):
                db.cluster_status()


if __name__ == "__main__":
    unittest.main()

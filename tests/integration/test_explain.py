"""Explain, end to end through a router: which shards and segments a search went to, by which plans and why, for people and as
data; and how far indexing is, where memory is, which payload paths have an index."""
import json
import os
import random
import time
import unittest

import numpy as np

import omendb
from omen_server import Node, Router

DIM, ROWS, TAIL, SHARDS = 16, 6000, 90, 3
SEED = int(os.environ.get("OMEN_TEST_SEED", random.randrange(1 << 32)))
TENANTS = ["acme", "globex", "initech", "umbrella", "stark", "wayne"]  # of all three shards


def setUpModule():
    print(f"seed {SEED}")


def rows(n, seed=1):
    return np.random.default_rng((SEED, seed)).standard_normal((n, DIM), dtype=np.float32)


def payloads(first, n):
    return [{"tenant": TENANTS[i % 6], "n": i, "rare": i % 200 == 0} for i in range(first, first + n)]


def match(key, value):
    return {"must": [{"key": key, "match": {"value": value}}]}


class Explain(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.node = Node(args=["--set", "recall.cpu_percent=100"]).start()
        cls.router = Router([cls.node.node_listen], cls.node.secret_file).start()
        cls.db = omendb.connect(cls.router.address)
        cls.docs = cls.db.create_collection("docs", dim=DIM, shards=SHARDS, shard_key="tenant",
                                            options={"write_mode": "immediate_index"})
        cls.docs.upsert(range(ROWS), rows(ROWS), payloads(0, ROWS), batch_points=ROWS, wait="indexed")
        cls.db.set_options("docs", write_mode="stream_only", index_delay_ms=3_600_000)  # what comes now stays in the tail
        cls.docs.upsert(range(ROWS, ROWS + TAIL), rows(TAIL, 2), payloads(ROWS, TAIL))
        cls.query = rows(1, 3)[0]

    @classmethod
    def tearDownClass(cls):
        cls.db.close()
        cls.router.close()
        cls.node.close()

    def explain(self, **search):
        found = self.docs.search(self.query, explain=True, **search)
        self.assertIsNotNone(found.explain)
        return found, found.explain

    @staticmethod
    def parts(explain, tail):
        return [p for shard in explain["shards"] for p in shard["parts"] if ("segment" not in p) == tail]

    def test_a_search_is_told_of_shard_by_shard_and_part_by_part(self):
        found, explain = self.explain(k=10)
        asked = explain["shards"]
        self.assertEqual(len(asked) + len(explain["shards_pruned"]), SHARDS)
        self.assertEqual(explain["shards_pruned"], [])
        self.assertEqual(explain["collection"], "docs")
        self.assertAlmostEqual(explain["recall_target"], 0.95)
        described = {s["id"]: s for s in self.docs.describe()["shards"]}
        for shard in asked:
            told = described[shard["shard"]]
            self.assertEqual(shard["role"], "alone")
            self.assertEqual(shard["sequence"], told["applied"])
            self.assertEqual(shard["unindexed"], told["unindexed"])
            self.assertEqual(sum(p["rows"] for p in shard["parts"]), told["points"])
        segments, tail = self.parts(explain, False), self.parts(explain, True)
        self.assertEqual(sum(p["rows"] for p in segments), ROWS)
        self.assertEqual(sum(p["rows"] for p in tail), TAIL)
        for part in segments:
            self.assertIn(part["plan"], ("walk", "gather", "scan"))
            self.assertIn(part["why"], ("no_filter", "cheapest", "gave_up"))
            self.assertEqual(part["index"], "sealed")
            self.assertGreater(part["bits"], 0)
            self.assertGreater(part["distances"], 0)
            self.assertGreater(part["recall_target"], 0.9)
        for part in tail:
            self.assertEqual((part["plan"], part["why"]), ("rows", "not_sealed"))
        self.assertEqual(explain["totals"]["segments_searched"], len(segments))
        self.assertEqual(explain["totals"]["tail_rows"], TAIL)
        self.assertGreaterEqual(explain["us"]["total"], explain["us"]["shards"])
        self.assertEqual(len(found), 10)
        self.assertIsNone(self.docs.search(self.query).explain)  # only when asked

    def test_shards_and_segments_without_an_answer_are_pruned_and_say_why(self):
        _, explain = self.explain(filter=match("tenant", "acme"))
        self.assertEqual(len(explain["shards"]), 1)
        self.assertEqual({p["why"] for p in explain["shards_pruned"]}, {"shard_key"})
        self.assertEqual(len(explain["shards_pruned"]), SHARDS - 1)
        for condition, why, path in [({"key": "n", "range": {"gte": 10**9}}, "range", "n"),
                                     ({"key": "nowhere", "match": {"value": 1}}, "field", "nowhere"),
                                     ({"key": "tenant", "match": {"except": TENANTS}}, "values", "tenant")]:
            found, explain = self.explain(filter={"must": [condition]})
            segments = self.parts(explain, False)
            self.assertEqual(len(found), 0)
            self.assertEqual({p["plan"] for p in segments}, {"pruned"}, explain)
            self.assertLessEqual({p["pruned_by"] for p in segments}, {why, "filter"}, explain)
            for part in segments:
                self.assertEqual(part.get("pruned_path", path), path)
            self.assertNotIn("distances", segments[0])
            self.assertEqual(explain["totals"]["segments_pruned"], len(segments))

    def test_a_filter_is_told_with_estimated_and_counted_rows(self):
        found, explain = self.explain(filter=match("rare", True), k=100)
        segments = self.parts(explain, False)
        self.assertEqual(sum(p["real"] for p in segments), ROWS // 200)
        self.assertEqual({p["filter"] for p in segments}, {"index"})
        self.assertLessEqual({p["filter_by"] for p in segments if "filter_by" in p},
                             {"values", "numbers", "values, numbers"})
        for part in segments:
            self.assertAlmostEqual(part["estimated"], part["real"], delta=part["real"] + 5)
            self.assertNotIn("filter_evaluated", part)
        for part in self.parts(explain, True):
            self.assertEqual(part.get("filter", "payload"), "payload")
        self.assertEqual(len(found), len(range(0, ROWS + TAIL, 200)))

    def test_exact_looks_at_every_row_and_says_so(self):
        found, explain = self.explain(exact=True)
        parts = self.parts(explain, True)
        self.assertEqual(self.parts(explain, False), [])
        self.assertEqual({(p["plan"], p["why"]) for p in parts}, {("rows", "exact")})
        self.assertEqual(sum(p["distances"] for p in parts), ROWS + TAIL)
        every = np.linalg.norm(rows(ROWS), axis=1)  # cosine: the nearest of all is there
        best = int(np.argmax(rows(ROWS) @ self.query / every))
        self.assertIn(best, found.ids.tolist())

    def test_searches_of_a_batch_are_told_apart(self):
        batch = self.docs.search_batch(rows(5, 4), explain=True, k=3)
        explain = batch[0].explain
        self.assertEqual({p["search"] for p in self.parts(explain, False)}, set(range(5)))
        for shard in explain["shards"]:
            self.assertEqual(shard["searches"], 5)
            self.assertEqual(shard["hits"], 15)
        for part in self.parts(explain, True):
            self.assertNotIn("search", part)  # one pass for all five
        self.assertEqual(batch[4].explain, explain)

    def test_a_search_by_id_tells_of_the_fetch(self):
        found = self.docs.search(id=7, shard_key=TENANTS[1], explain=True)
        self.assertGreater(found.explain["us"]["by_id"], 0)

    def test_measured_recall_comes_with_the_reply(self):
        deadline = time.monotonic() + 60
        while True:
            _, explain = self.explain(k=10)
            if "recall" in explain:
                break
            self.assertLess(time.monotonic(), deadline, explain)
            time.sleep(0.02)
        recall = explain["recall"]
        self.assertGreater(recall["searches"], 0)
        self.assertLessEqual(recall["low"], recall["measured"])
        self.assertLessEqual(recall["measured"], recall["high"])
        self.assertTrue(any("recall" in s for s in explain["shards"]))

    def test_people_get_tables_and_programs_get_data(self):
        vector = json.dumps([float(x) for x in self.query])
        run = lambda *args: self.router.omenctl(*args).stdout
        text = run("search", "docs", "--vector", vector, "--no-payload", "--explain", "--filter",
                   json.dumps(match("tenant", "acme")))
        self.assertRegex(text, r"docs, 1 of 3 shards asked, session, epoch \d+")
        self.assertRegex(text, r"not asked, the filter on the shard key leaves them out: shard \d+ \d+")
        self.assertRegex(text, r"(?m)^shard \d+, replica \d+, alone, at sequence \d+; 10 hits; waited \d+ us")
        self.assertRegex(text, r"(?m)^  part +rows +plan +filter by +pass +hops +scanned +distances +rescored +us +index +why$")
        self.assertRegex(text, r"(?m)^  segment \d+ +\d+ +(walk|gather|scan) .*sealed (fast|compact) \w+ \d+ bit")
        self.assertRegex(text, r"(?m)^  tail +\d+ +rows .*in no segment yet$")
        pruned = run("search", "docs", "--vector", vector, "--explain", "--filter",
                     json.dumps({"must": [{"key": "n", "range": {"lt": -5}}]}))
        self.assertRegex(pruned, r"(?m)^  segment \d+ +\d+ +pruned .*no value at n lies within the range$")
        data = json.loads(run("--json", "search", "docs", "--vector", vector, "--explain"))
        self.assertEqual(len(data["explain"]["shards"]), SHARDS)
        self.assertNotIn("explain", json.loads(run("--json", "search", "docs", "--vector", vector)))
        refused = self.router.omenctl("search", "docs", "--query-file", "x.fbin", "--all", "--explain", check=False)
        self.assertEqual(refused.returncode, 2)

    def test_indexing_is_described_with_its_lag_memory_and_payload_paths(self):
        described = self.docs.describe()
        index = described["index"]
        self.assertEqual((index["rows"], index["tail_rows"], index["work"]), (ROWS, TAIL, []))
        self.assertGreaterEqual(index["segments"], SHARDS)
        for shard in described["shards"]:
            told = shard["index"]
            self.assertEqual(told["lag"], shard["applied"] - told["indexed"])
            self.assertGreater(told["lag"], 0)
            self.assertEqual(told["tail_rows"], shard["unindexed"])
        self.assertEqual(index["lag"], max(s["index"]["lag"] for s in described["shards"]))
        self.assertGreater(index["memory"]["graphs"], 0)
        paths = {f["path"]: f for f in index["payload"]}
        self.assertLessEqual({"n", "tenant", "rare"}, set(paths))
        self.assertEqual(paths["n"]["rows"], ROWS)
        self.assertGreater(paths["n"]["numbers"], ROWS * 0.99)
        text = self.router.omenctl("collections", "describe", "docs").stdout
        self.assertRegex(text, rf"(?m)^index +{ROWS} rows in \d+ segments, {TAIL} in none; built \d+$")
        self.assertRegex(text, r"(?m)^index_lag +\d+ entries, of the shard that is furthest behind$")
        self.assertRegex(text, r"(?m)^index_memory +graphs [\d.]+ \wB, mapped graphs ")
        self.assertRegex(text, r"(?m)^tenant +auto +\d+ +6000 +\d+ +0 +0 +\d+ +0$")
        metrics = self.node.http_get("/metrics")[1]
        self.assertRegex(metrics, r'omendb_node_index_lag_entries\{collection="docs",shard="\d+"\} [1-9]')
        self.assertRegex(metrics, r'omendb_node_index_segments\{collection="docs",shard="\d+"\} [1-9]')
        self.assertRegex(metrics, r'omendb_node_index_work_percent\{collection="docs",shard="\d+"\} 0')

    def test_a_payload_index_that_is_asked_for_comes_before_more_frequent_paths(self):
        notes = self.db.create_collection("notes", dim=DIM, options={"write_mode": "immediate_index",
                                                                     "payload_indexes": ["rare.word"]})
        many = {f"p{i}": i for i in range(80)}
        notes.upsert(range(1000), rows(1000, 5), [{**many, **({"rare": {"word": "x", "other": 1}} if i < 3 else {})}
                                                  for i in range(1000)], batch_points=1000, wait="indexed")
        paths = {f["path"] for f in notes.describe()["index"]["payload"]}
        self.assertIn("rare.word", paths)
        self.assertNotIn("rare.other", paths)
        for path, answered in (("rare.word", {"index"}), ("rare.other", {"partly", "payload"})):
            found = notes.search(self.query, k=10, explain=True, filter={"must": [{"key": path, "match": {"any": ["x", 1]}}]}
                                 if path == "rare.other" else match(path, "x"))
            self.assertLessEqual({p["filter"] for p in self.parts(found.explain, False)}, answered, found.explain)
        text = self.router.omenctl("collections", "describe", "notes").stdout
        self.assertRegex(text, r"(?m)^rare\.word +asked +1 +1000 ")
        self.assertRegex(text, r"(?m)^p0 +auto +1 +1000 ")

    def test_memory_is_shown_by_component_against_the_budget(self):
        deadline = time.monotonic() + 60
        while True:  # looked at now and then
            memory = self.db.status()["cluster"]["nodes"][0].get("memory", {})
            if memory.get("graphs", 0) > 0:
                break
            self.assertLess(time.monotonic(), deadline, memory)
            time.sleep(0.05)
        self.assertGreater(memory["budget"], memory["used"])
        self.assertFalse(memory["full"])
        self.assertLessEqual({"graphs", "mapped_graphs", "sketches", "rows", "deltas"}, set(memory))

    def test_what_is_being_built_tells_how_far_it_is(self):
        big = self.db.create_collection("big", dim=128, options={"write_mode": "immediate_index"})
        big.upsert(range(10000), np.random.default_rng(SEED).standard_normal((10000, 128), dtype=np.float32),
                   batch_points=10000)
        seen, deadline = [], time.monotonic() + 120
        while True:
            index = big.describe()["index"]
            seen += index["work"]
            if index["tail_rows"] == 0:
                break
            self.assertLess(time.monotonic(), deadline, index)
        self.assertGreater(len(seen), 0)
        percents = [w["percent"] for w in seen if w["rows"] == seen[0]["rows"]]
        self.assertEqual(percents, sorted(percents))
        for work in seen:
            self.assertTrue(0 <= work["percent"] <= 100.01 and work["phase"] and work["seconds"] >= 0, work)
        self.assertTrue(any("seconds_left" in w for w in seen))
        self.assertEqual(index["lag"], 0)

    def test_explain_is_a_bool(self):
        with self.assertRaises(omendb.OmenError) as caught:
            self.db._call({"op": "points.search", "collection": "docs", "explain": 1,
                           "searches": [{"vector": self.query.tobytes()}]})
        self.assertEqual(caught.exception.field, "explain")


if __name__ == "__main__":
    unittest.main()

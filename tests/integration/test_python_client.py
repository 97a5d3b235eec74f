"""The Python package against a real server: every operation, numpy in and out, typed errors."""
import time
import unittest
import uuid

import numpy as np

import omendb
from omen_server import Server

DIM = 24


class PythonClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server().start()
        cls.db = omendb.connect(cls.server.address)

    @classmethod
    def tearDownClass(cls):
        cls.db.close()
        cls.server.close()

    def fresh(self, **options):
        """A collection of this test's own."""
        options.setdefault("dim", DIM)
        return self.db.create_collection(f"c.{self._testMethodName}", **options)

    def rows(self, n, seed=1, dim=DIM):
        return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)

    def test_search_finds_exactly_what_numpy_finds_in_every_metric(self):
        x = self.rows(3000)
        for metric in ("l2", "ip", "cosine"):
            docs = self.db.create_collection(f"exact.{metric}", dim=DIM, metric=metric)
            docs.upsert(np.arange(3000), x, [{"n": i} for i in range(3000)])
            for q in self.rows(5, seed=2):
                found = docs.search(q, k=20)
                if metric == "l2":
                    want = np.sqrt(((x - q) ** 2).sum(axis=1))
                    order = np.argsort(want, kind="stable")[:20]
                elif metric == "ip":
                    want = x @ q
                    order = np.argsort(-want, kind="stable")[:20]
                else:
                    want = x @ q / np.linalg.norm(x, axis=1) / np.linalg.norm(q)
                    order = np.argsort(-want, kind="stable")[:20]
                self.assertEqual(found.ids.tolist(), order.tolist())
                np.testing.assert_allclose(found.scores, want[order], rtol=1e-4, atol=1e-5)
                self.assertEqual(found.higher_is_nearer, metric != "l2")
                self.assertEqual([h.payload["n"] for h in found], order.tolist())

    def test_payload_round_trips_every_type(self):
        docs = self.fresh()
        payload = {"null": None, "true": True, "false": False, "int": -2**63, "big": 2**63 - 1, "float": 0.1, "one": 1.0,
                   "text": "Grüße, 世界 \u0000 \"quoted\"", "empty": "", "list": [1, "a", [], {}], "map": {"a": {"b": {}}}}
        docs.upsert([1], self.rows(1), [payload])
        got = docs.get([1])[0].payload
        self.assertEqual(got, payload)
        self.assertIsInstance(got["one"], float)
        self.assertIsInstance(got["int"], int)

    def test_points_end_at_their_time(self):
        docs = self.fresh()
        soon = int(time.time() * 1000) + 1500
        docs.upsert(range(4), self.rows(4), expires_ms=[soon, None, soon + 3_600_000, 1])
        docs.upsert([10, 11], self.rows(2), ttl=3600)
        docs.upsert([12], self.rows(1), expires_ms=soon)
        docs.set_payload([0], {"kept": True})  # the time stays
        docs.upsert([12], self.rows(1))        # and here it goes
        before = docs.get(range(13))
        if time.time() * 1000 < soon:
            self.assertEqual([p.id for p in before], [0, 1, 2, 10, 11, 12])
        while time.time() * 1000 <= soon:
            time.sleep(0.05)
        got = docs.get(range(13))
        self.assertEqual([p.id for p in got], [1, 2, 10, 11, 12])
        self.assertEqual([p.expires_ms is not None for p in got], [False, True, True, True, False])
        self.assertEqual(got[1].expires_ms, soon + 3_600_000)
        self.assertEqual(docs.count(), 5)
        self.assertEqual(sorted(docs.search(self.rows(1)[0], k=10).ids.tolist()), [1, 2, 10, 11, 12])
        self.assertEqual([p.id for p in docs.scroll()], [1, 2, 10, 11, 12])
        self.assertEqual(docs.delete([0]).affected, 0)
        with self.assertRaises(ValueError):
            docs.upsert([1], self.rows(1), ttl=-1)
        with self.assertRaises(omendb.OmenError) as e:
            docs.upsert([1], self.rows(1), expires_ms=2**63)
        self.assertIn("expires_ms", str(e.exception))

    def test_writes_by_filter(self):
        for shards, key in [(1, None), (3, "tenant")]:
            docs = self.db.create_collection(f"byfilter.{shards}", dim=DIM, shards=shards, shard_key=key)
            docs.upsert(range(5000), self.rows(5000), [{"n": i, "tenant": f"t{i % 7}"} for i in range(5000)])
            low = {"must": [{"key": "n", "range": {"lt": 3000}}]}
            self.assertEqual(docs.set_payload(None, {"low": True}, filter=low).affected, 3000)
            self.assertEqual(docs.count({"must": [{"key": "low", "match": {"value": True}}]}), 3000)
            self.assertEqual(docs.delete_payload(None, ["low"], filter={"must": [{"key": "n", "range": {"lt": 10}}]}).affected,
                             10)
            self.assertEqual(docs.count({"must": [{"key": "low", "match": {"value": True}}]}), 2990)
            self.assertEqual(docs.delete(filter={"must": [{"key": "tenant", "match": {"value": "t3"}}]}).affected, 714)
            self.assertEqual(docs.delete(filter=low).affected, 3000 - 429)
            self.assertEqual(docs.delete(filter=low).affected, 0)
            self.assertEqual(docs.count(), 5000 - 714 - 3000 + 429)
            if key is None:
                docs.overwrite_payload(None, {"all": 1}, filter={})
                self.assertEqual(docs.count({"must": [{"key": "all", "match": {"value": 1}}]}), docs.count())
            else:
                with self.assertRaises(omendb.OmenError) as e:
                    docs.overwrite_payload(None, {"all": 1}, filter={})
                self.assertIn("filter", str(e.exception))
                with self.assertRaises(omendb.OmenError) as e:
                    docs.set_payload(None, {"tenant": "x"}, filter={})
                self.assertIn("tenant", str(e.exception))
            self.assertEqual(docs.delete(filter={}).affected, 1715)
            self.assertEqual(docs.count(), 0)
            with self.assertRaises(omendb.OmenError) as e:
                docs.delete(filter={"must": [{"key": "n", "rnge": {}}]})
            self.assertIn("filter.must[0]", str(e.exception))

    def test_writes_wait_for_what_they_are_told(self):
        docs = self.fresh(options={"write_mode": "immediate_index"})
        x = self.rows(1500)
        docs.upsert(range(1500), x, batch_points=1500, wait="indexed")
        self.assertEqual(docs.describe()["unindexed"], 0)
        self.assertEqual(docs.search(x[7], k=1)[0].id, 7)
        self.assertEqual(docs.upsert([5000], x[:1], wait="accepted"), omendb.WriteResult(1, 0, False))
        deadline = time.time() + 10
        while not docs.get([5000]):
            self.assertLess(time.time(), deadline)
        docs.upsert([5001], x[:1], wait="committed")
        self.assertEqual(docs.count(), 1502)
        with self.assertRaises(omendb.OmenError) as e:
            docs.upsert([1], x[:1], wait="tomorrow")
        self.assertIn("wait", str(e.exception))

    def test_options_are_given_at_creation_and_changed_later(self):
        docs = self.fresh(profile="speed", options={"index_delay_ms": 5000})
        self.db.set_options(docs.name, write_mode="async_index", recall_target=0.99)
        described = docs.describe()
        self.assertEqual(described["options"]["write_mode"], "async_index")
        self.assertEqual(described["options"]["index_delay_ms"], 5000)
        self.assertAlmostEqual(described["recall_target"], 0.99, places=6)
        with self.assertRaises(omendb.OmenError) as e:
            self.db.set_options(docs.name, colour="red")
        self.assertIn("options.colour", str(e.exception))

    def load(self, docs, ids, x, payloads):
        """As one build: nothing is indexed before all is there."""
        self.db.set_options(docs.name, bulk_until_ms=int(time.time() * 1000) + 300_000)
        docs.upsert(ids, x, payloads, batch_points=1000)
        self.db.set_options(docs.name, bulk_until_ms=0)
        deadline = time.time() + 120
        while docs.describe()["unindexed"] >= 1000:  # fewer are not worth a graph
            self.assertLess(time.time(), deadline)
            time.sleep(0.05)

    def looked_at(self, docs, x, tenant):
        """Parts of segments that were searched for a tenant's points, which are found."""
        found = docs.search(x[0], k=5, explain=True, filter={"must": [{"key": "user.id", "match": {"value": tenant}}]},
                            with_payload=True)
        self.assertEqual([h.payload["user"]["id"] for h in found], [tenant] * 5)
        parts = [p for p in found.explain["shards"][0]["parts"] if "segment" in p]
        return [p for p in parts if p["plan"] != "pruned"]

    def test_large_tenants_have_segments_of_their_own_and_small_ones_share(self):
        docs = self.fresh(options={"write_mode": "immediate_index", "segments": "payload_aware",
                                   "tenant_path": "user.id", "tenant_points": 1000})
        tenants = ["big" if i % 2 else f"small {i % 100}" for i in range(4000)]
        payloads = [{"user": {"id": t}, "n": i} for i, t in enumerate(tenants)]
        x = self.rows(4000)
        self.load(docs, range(4000), x, payloads)
        index = docs.describe()["index"]  # (2, 1) when all was taken at once, as it is on an idle machine
        self.assertGreaterEqual(index["segments"], 2)
        self.assertGreaterEqual(index["own_segments"], 1)
        big, small = self.looked_at(docs, x, "big"), self.looked_at(docs, x, "small 4")
        own = {p["segment"] for p in big if p["rows"] == p["real"] >= 1000}
        self.assertGreaterEqual(len(own), 1)
        self.assertEqual(own & {p["segment"] for p in small}, set())
        self.assertLessEqual(sum(p["real"] for p in small), 40)
        self.assertEqual(len(docs.search(x[0], k=4000)), 4000)
        docs.delete([i for i in range(1, 3000, 2)])
        self.looked_at(docs, x, "big")
        self.assertEqual(len(docs.search(x[0], k=4000)), 2500)
        # Other rules for what is built from now on: written again, all share one segment.
        self.db.set_options(docs.name, segments="mixed")
        self.load(docs, range(4000), x, payloads)
        for tenant in ("big", "small 4"):
            self.looked_at(docs, x, tenant)
        self.assertEqual(len(docs.search(x[0], k=5000)), 4000)
        with self.assertRaises(omendb.OmenError) as e:
            self.db.set_options(docs.name, tenant_path="user[].id")
        self.assertIn("options.tenant_path", str(e.exception))

    def test_uuid_and_number_ids_live_together(self):
        docs = self.fresh()
        ids = [7, uuid.uuid4(), 2**64 - 1, str(uuid.uuid4())]
        x = self.rows(4)
        docs.upsert(ids, x)
        self.assertEqual(docs.count(), 4)
        want = [uuid.UUID(i) if isinstance(i, str) else i for i in ids]
        got = docs.get(ids, with_vectors=True)
        self.assertEqual([p.id for p in got], want)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        np.testing.assert_allclose([p.vector for p in got], unit, atol=1e-6)
        self.assertEqual(docs.search(x[1], k=1)[0].id, want[1])

    def test_several_vector_fields_are_searched_apart(self):
        docs = self.fresh(dim=None, fields={"title": omendb.VectorField(8, "l2"), "image": omendb.VectorField(16, "ip")})
        title, image = self.rows(50, dim=8), self.rows(50, seed=3, dim=16)
        docs.upsert(range(50), {"title": title, "image": image})
        docs.upsert([100], {"title": title[:1] + 0.001})
        self.assertEqual(docs.search(title[4], k=1, field="title")[0].id, 4)
        self.assertEqual(docs.search(image[9] * 100, k=1, field="image")[0].id, int(np.argmax(image @ image[9])))
        self.assertEqual(len(docs.search(image[0], k=100, field="image")), 50)
        self.assertEqual(len(docs.search(title[0], k=100, field="title")), 51)
        points = {p.id: p for p in docs.get([100, 5], with_vectors=True)}
        self.assertEqual(set(points[100].vectors), {"title"})
        np.testing.assert_array_equal(points[5].vectors["image"], image[5])

    def test_search_by_id_leaves_the_point_out(self):
        docs = self.fresh()
        x = self.rows(30)
        docs.upsert(range(30), x)
        by_id = docs.search(id=3, k=5)
        by_vector = docs.search(x[3], k=6)
        self.assertEqual(by_vector.ids[0], 3)
        self.assertEqual(by_id.ids.tolist(), by_vector.ids[1:].tolist())
        with self.assertRaises(omendb.NotFound):
            docs.search(id=999)

    def test_offset_threshold_and_selection(self):
        docs = self.fresh(metric="l2")
        x = self.rows(100)
        docs.upsert(range(100), x, [{"a": i, "b": {"c": i, "d": 1}, "e": "x"} for i in range(100)])
        all_of_them = docs.search(x[0], k=100)
        np.testing.assert_array_equal(docs.search(x[0], k=10, offset=20).ids, all_of_them.ids[20:30])
        limit = float(all_of_them.scores[9])
        self.assertEqual(len(docs.search(x[0], k=100, score_threshold=limit)), 10)
        hit = docs.search(x[0], k=1, with_payload=["b.c"])[0]
        self.assertEqual(hit.payload, {"b": {"c": 0}})
        hit = docs.search(x[0], k=1, with_payload={"exclude": ["b.c", "e"]})[0]
        self.assertEqual(hit.payload, {"a": 0, "b": {"d": 1}})
        hit = docs.search(x[0], k=1, with_payload=False, with_vectors=True)[0]
        self.assertIsNone(hit.payload)
        np.testing.assert_array_equal(hit.vector, x[0])

    def test_batch_of_searches_equals_single_searches(self):
        docs = self.fresh()
        x = self.rows(500)
        docs.upsert(range(500), x, [{"even": i % 2 == 0} for i in range(500)])
        queries = self.rows(40, seed=5)
        condition = {"must": [{"key": "even", "match": {"value": True}}]}
        for q, found in zip(queries, docs.search_batch(queries, k=7, filter=condition)):
            alone = docs.search(q, k=7, filter=condition)
            np.testing.assert_array_equal(found.ids, alone.ids)
            np.testing.assert_array_equal(found.scores, alone.scores)

    def test_scroll_pages_through_everything_once(self):
        docs = self.fresh(shards=5)
        docs.upsert(range(1000), self.rows(1000), [{"n": i} for i in range(1000)])
        self.assertEqual([p.id for p in docs.scroll(page=37)], list(range(1000)))
        some = [p.id for p in docs.scroll(page=10, filter={"must": [{"key": "n", "range": {"gte": 500, "lt": 600}}]})]
        self.assertEqual(some, list(range(500, 600)))
        self.assertEqual(len(list(docs.scroll(limit=5))), 5)

    def test_payload_writes_and_deletes(self):
        docs = self.fresh()
        docs.upsert([1, 2], self.rows(2), [{"a": 1, "b": 2}, {"a": 1}])
        docs.set_payload([1, 2], {"a": 9, "c": 3})
        docs.overwrite_payload([2], [{"z": 0}])
        docs.delete_payload([1], ["b"])
        self.assertEqual([p.payload for p in docs.get([1, 2])], [{"a": 9, "c": 3}, {"z": 0}])
        self.assertEqual(docs.delete([2, 77]).affected, 1)
        self.assertEqual(docs.count(), 1)
        self.assertEqual([p.id for p in docs.get([1, 2])], [1])

    def test_shard_key_is_part_of_the_identity(self):
        docs = self.fresh(shard_key="tenant", shards=8)
        x = self.rows(3)
        docs.upsert([1, 1, 2], x, [{"tenant": "a", "v": 1}, {"tenant": "b", "v": 2}, {"tenant": "a", "v": 3}])
        self.assertEqual(docs.count(), 3)
        self.assertEqual(sorted(p.payload["v"] for p in docs.get([1])), [1, 2])
        self.assertEqual(docs.get([1], shard_keys=["b"])[0].payload["v"], 2)
        docs.delete([1], shard_keys=["a"])
        self.assertEqual([p.payload["v"] for p in docs.get([1])], [2])
        condition = {"must": [{"key": "tenant", "match": {"value": "a"}}]}
        reply = self.db._call({"op": "points.search", "collection": docs.name, "searches": [
            {"vector": x[0].tobytes(), "filter": condition}]})
        self.assertEqual((reply["shards_asked"], reply["shards_total"]), (1, 8))
        with self.assertRaises(omendb.InvalidRequest) as caught:
            docs.upsert([5], self.rows(1), [{"no": "key"}])
        self.assertIn("tenant", caught.exception.field)
        with self.assertRaises(omendb.InvalidRequest):
            docs.set_payload([1], {"tenant": "c"}, shard_keys=["b"])

    def test_pipeline_acknowledges_everything(self):
        docs = self.fresh()
        x = self.rows(2000)
        seen = []
        with docs.pipeline(in_flight=32, on_ack=lambda ids, result: seen.extend(ids)) as pipeline:
            for i in range(0, 2000, 10):
                pipeline.upsert(range(i, i + 10), x[i:i + 10])
        self.assertEqual(sorted(seen), list(range(2000)))
        self.assertEqual(docs.count(), 2000)

    def test_aliases_and_descriptions(self):
        docs = self.fresh(shards=3)
        self.db.set_alias("nick", docs.name)
        self.db.collection("nick").upsert([1], self.rows(1))
        self.assertEqual(docs.count(), 1)
        about = self.db.describe("nick")
        self.assertEqual((about["name"], about["points"], about["shard_count"]), (docs.name, 1, 3))
        self.assertIn(docs.name, [c["name"] for c in self.db.collections()])
        self.db.drop_alias("nick")
        with self.assertRaises(omendb.NotFound):
            self.db.collection("nick").count()
        with self.assertRaises(omendb.AlreadyExists):
            self.db.create_collection(docs.name, dim=3)
        docs.drop()
        with self.assertRaises(omendb.NotFound):
            docs.count()

    def test_lost_server_is_a_typed_error(self):
        with self.assertRaises(omendb.Unavailable):
            omendb.connect("127.0.0.1:1", timeout=1)


if __name__ == "__main__":
    unittest.main()

"""Bad input over the wire: an error that names the field, nothing half-applied, and the server lives on."""
import socket
import struct
import unittest

import msgpack
import numpy as np

import omendb
from omen_server import Server

DIM = 4
ROW = np.ones((1, DIM), dtype="<f4")


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server().start()
        cls.db = omendb.connect(cls.server.address)
        cls.docs = cls.db.create_collection("docs", dim=DIM, metric="l2")
        cls.docs.upsert([1], ROW, [{"a": 1}])
        cls.keyed = cls.db.create_collection("keyed", dim=DIM, metric="l2", shard_key="t.name", shards=4)

    @classmethod
    def tearDownClass(cls):
        cls.db.close()
        cls.server.close()

    def tearDown(self):
        self.assertIsNone(self.server.process.poll(), "the server died")
        self.assertEqual(self.docs.count(), 1, "something was half applied")
        self.assertEqual(self.keyed.count(), 0, "something was half applied")

    def refused(self, request, code, field=None, message=None):
        with self.assertRaises(omendb.OmenError) as caught:
            self.db._call(request, timeout=20)
        error = caught.exception
        self.assertEqual(error.name, code, str(error))
        if field is not None:
            self.assertEqual(error.field, field, str(error))
        if message is not None:
            self.assertIn(message, error.message)
        return error

    def upsert(self, **members):
        request = {"op": "points.upsert", "collection": "docs", "ids": [5, 6], "vectors": np.ones((2, DIM), "<f4").tobytes()}
        request.update(members)
        return {k: v for k, v in request.items() if v is not ...}

    def search(self, **members):
        search = {"vector": ROW.tobytes(), "k": 3, **members}
        return {"op": "points.search", "collection": "docs", "searches": [{k: v for k, v in search.items() if v is not ...}]}

    # ---- writes ----

    def test_wrong_dimension_names_the_field_and_both_sizes(self):
        e = self.refused(self.upsert(vectors=np.ones((2, 3), "<f4").tobytes()), "invalid", "vectors")
        self.assertIn("4", e.message)
        self.refused(self.upsert(vectors={"": b"123"}), "invalid")
        self.refused(self.upsert(vectors={"": b""}), "invalid")

    def test_unknown_vector_field(self):
        self.refused(self.upsert(vectors={"colour": np.ones((2, DIM), "<f4").tobytes()}), "invalid", "vectors.colour")

    def test_nan_and_infinity_name_the_row(self):
        for bad in (np.nan, np.inf, -np.inf):
            x = np.ones((2, DIM), "<f4")
            x[1, 2] = bad
            e = self.refused(self.upsert(vectors=x.tobytes()), "invalid")
            self.assertTrue(e.field.startswith("vectors"), e.field)

    def test_ids(self):
        self.refused(self.upsert(ids=[]), "invalid", "ids")
        self.refused(self.upsert(ids=b"1234567"), "invalid", "ids")
        self.refused(self.upsert(ids=...), "invalid", "ids")
        self.refused(self.upsert(ids=[5, -1]), "invalid", "ids[1]")
        self.refused(self.upsert(ids=[5, 1.5]), "invalid", "ids[1]")
        self.refused(self.upsert(ids=["not-a-uuid", 2]), "invalid", "ids[0]")
        self.refused(self.upsert(ids=[5, [6]]), "invalid", "ids[1]")

    def test_batch_past_its_limit(self):
        n = 10001
        e = self.refused(self.upsert(ids=np.arange(n, dtype="<u8").tobytes(), vectors=bytes(n * DIM * 4)), "too_big", "ids")
        self.assertIn("10000", e.message.replace(",", ""))

    def test_payloads(self):
        self.refused(self.upsert(payloads=[{}]), "invalid", "payloads")
        self.refused(self.upsert(payloads=[{}, 3]), "invalid", "payloads[1]")
        self.refused(self.upsert(payloads=[{}, {"a": {"b": float("nan")}}]), "invalid", "payloads[1].a.b")
        self.refused(self.upsert(payloads=[{}, {"a": 2**63}]), "invalid", "payloads[1].a")
        self.refused(self.upsert(payloads=[{}, {"x": "y" * 70000}]), "too_big", "payloads[1].x")
        deep = {}
        for _ in range(40):
            deep = {"d": deep}
        self.assertTrue(self.refused(self.upsert(payloads=[{}, deep]), "too_big").field.startswith("payloads"))
        self.refused(self.upsert(payloads=[{}, {1: 2}]), "invalid")
        self.refused(self.upsert(payloads=[{}, {"b": b"bytes"}]), "invalid", "payloads[1].b")

    def test_one_bad_row_changes_nothing(self):
        x = np.ones((1000, DIM), "<f4")
        x[999, 0] = np.nan
        self.refused(self.upsert(ids=np.arange(1000, dtype="<u8").tobytes(), vectors=x.tobytes()), "invalid")

    def test_unknown_collection_member_and_operation(self):
        self.refused(self.upsert(collection="nope"), "not_found", "collection")
        self.refused(self.upsert(vektors=1), "invalid", "vektors")
        self.refused(self.upsert(op="points.upsrt"), "protocol", "op")
        self.refused(self.upsert(collection=...), "invalid", "collection")
        self.refused(self.upsert(op=3), "invalid", "op")

    def test_missing_and_wrong_shard_keys_name_the_row(self):
        def keyed(payloads):
            return self.upsert(collection="keyed", payloads=payloads)
        good = {"t": {"name": "x"}}
        self.refused(keyed(None), "invalid", "payloads[0].t.name")
        for bad in ({}, {"t": {}}, {"t": {"name": None}}, {"t": {"name": 1.5}}, {"t": {"name": ["x"]}},
                    {"t": {"name": {"a": 1}}}, {"t": {"name": "x" * 600}}, {"t": 5}):
            e = self.refused(keyed([good, bad]), "too_big" if "x" * 600 in str(bad) else "invalid")
            self.assertEqual(e.field, "payloads[1].t.name")

    # ---- searches ----

    def test_k(self):
        self.refused(self.search(k=0), "invalid", "searches[0].k")
        self.refused(self.search(k=10001), "too_big", "searches[0].k")
        self.refused(self.search(k=-1), "invalid", "searches[0].k")
        self.refused(self.search(k="3"), "invalid", "searches[0].k")
        self.refused(self.search(k=10000, offset=1), "too_big", "searches[0].offset")

    def test_query_vectors(self):
        self.refused(self.search(vector=b"12"), "invalid", "searches[0].vector")
        self.refused(self.search(vector=np.ones(5, "<f4").tobytes()), "invalid", "searches[0].vector")
        self.refused(self.search(vector=np.full(4, np.nan, "<f4").tobytes()), "invalid", "searches[0].vector")
        self.refused(self.search(vector=...), "invalid", "searches[0].vector")
        self.refused(self.search(vector=[1, 2, "3", 4]), "invalid")
        self.refused(self.search(id=1), "invalid", "searches[0].vector")
        self.refused(self.search(field="colour"), "invalid", "searches[0].field")
        self.refused({"op": "points.search", "collection": "docs", "searches": []}, "invalid", "searches")
        many = [{"vector": ROW.tobytes()}] * 1001
        self.refused({"op": "points.search", "collection": "docs", "searches": many}, "too_big", "searches")

    def test_filters_name_the_place(self):
        def place(filter):
            return self.refused(self.search(filter=filter), "invalid").field
        self.assertEqual(place({"must": [{"key": "a", "rnage": {}}]}), "searches[0].filter.must[0].rnage")
        self.assertEqual(place({"muss": []}), "searches[0].filter.muss")
        self.assertEqual(place({"must": [{"key": "a[", "match": {"value": 1}}]}), "searches[0].filter.must[0].key")
        self.assertEqual(place({"must": [{"key": "", "match": {"value": 1}}]}), "searches[0].filter.must[0].key")
        self.assertEqual(place({"must": [{"key": "a", "match": {"value": 1.5}}]}), "searches[0].filter.must[0].match.value")
        self.assertEqual(place({"must": [{"key": "a", "range": {"gte": "x"}}]}), "searches[0].filter.must[0].range.gte")
        self.assertEqual(place({"must": 7}), "searches[0].filter.must")

    def test_deep_and_huge_filters(self):
        nested = {"key": "a", "match": {"value": 1}}
        for _ in range(9):
            nested = {"must": [nested]}
        self.assertEqual(self.refused(self.search(filter=nested), "too_big").name, "too_big")
        many = {"should": [{"key": "a", "match": {"value": i}} for i in range(1100)]}
        self.refused(self.search(filter=many), "too_big")
        values = {"must": [{"key": "a", "match": {"any": list(range(70000))}}]}
        self.refused(self.search(filter=values), "too_big")

    def test_scroll_and_get(self):
        self.refused({"op": "points.scroll", "collection": "docs", "limit": 0}, "invalid", "limit")
        self.refused({"op": "points.scroll", "collection": "docs", "limit": 10001}, "too_big", "limit")
        self.refused({"op": "points.scroll", "collection": "docs", "cursor": b"garbage"}, "invalid", "cursor")
        self.refused({"op": "points.get", "collection": "docs", "ids": []}, "invalid", "ids")

    # ---- collections ----

    def test_collections(self):
        def create(**members):
            request = {"op": "collection.create", "collection": "new", "vectors": {"": {"dim": 4}}}
            request.update(members)
            return request
        self.refused(create(collection="a b"), "invalid", "collection")
        self.refused(create(collection=".hidden"), "invalid", "collection")
        self.refused(create(collection="x" * 129), "too_big", "collection")
        self.refused(create(collection="docs"), "exists", "collection")
        self.refused(create(vectors={}), "invalid", "vectors")
        self.refused(create(vectors={"": {"dim": 0}}), "invalid")
        self.refused(create(vectors={"": {"dim": 5000}}), "too_big")
        self.refused(create(vectors={"": {"dim": 4, "metric": "manhattan"}}), "invalid")
        self.refused(create(shards=0), "invalid", "shards")
        self.refused(create(shards=257), "too_big", "shards")
        self.refused(create(shard_key="a["), "invalid", "shard_key")
        self.refused(create(recall_target=1.5), "invalid", "recall_target")
        self.assertEqual({c["name"] for c in self.db.collections()}, {"docs", "keyed"})

    # ---- bytes ----

    def raw(self, frame, hello=b"\x00SP\x00\x00\x30\x00\x00"):
        """Send raw bytes; what comes back until the peer closes or a second passes."""
        host, port = self.server.address.split(":")
        with socket.create_connection((host, int(port)), 10) as s:
            s.sendall(hello + frame)
            s.settimeout(1)
            got = b""
            try:
                while True:
                    piece = s.recv(65536)
                    if not piece:
                        return got
                    got += piece
            except (socket.timeout, ConnectionResetError):
                return got

    def message(self, body):
        reply = self.raw(struct.pack(">QI", len(body) + 4, 0x80000001) + body)
        return msgpack.unpackb(reply[8 + 8 + 4:], raw=False)

    def test_malformed_msgpack_gets_an_error(self):
        whole = msgpack.packb({"v": 1, "op": "points.count", "collection": "docs"})
        for body in (b"", b"\xc1", whole[:-3], whole + b"\x00", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\xa1a",
                     b"\xc6\xff\xff\xff\xff", b"\x91" * 1000 + b"\xc0", msgpack.packb([1, 2]), b"\x82\xa1v\x01\xa1v\x01"):
            reply = self.message(body)
            self.assertFalse(reply["ok"], body[:20])
            self.assertIn(reply["error"]["name"], ("protocol", "invalid", "too_big"), (body[:20], reply))

    def test_announced_gigabytes_are_cut_without_allocating(self):
        before = self.server.rss_bytes()
        for length in (49 << 20, 8 << 30, 2**63):
            self.raw(struct.pack(">QI", length, 0x80000001) + b"x" * 100)
        self.assertLess(self.server.rss_bytes() - before, 40 << 20)

    def test_garbage_instead_of_a_handshake(self):
        self.raw(b"", hello=b"GET / HTTP/1.1\r\n\r\n")
        self.raw(b"\x00" * 1000, hello=b"\xff" * 8)

    def test_wrong_version(self):
        body = msgpack.packb({"v": 99, "op": "points.count", "collection": "docs"})
        self.assertEqual(self.message(body)["error"]["name"], "version")
        body = msgpack.packb({"v": 1, "op": "hello", "versions": [7, 9]})
        self.assertEqual(self.message(body)["error"]["name"], "version")


if __name__ == "__main__":
    unittest.main()

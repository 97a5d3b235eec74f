"""The Python package against peers made of a few lines: wrong arguments, lost and silent servers, interrupted callers.

No omen-node is needed: a Peer speaks PROTOCOL.md's transport and answers what the test says."""
import socket
import struct
import threading
import time
import unittest
import uuid

import msgpack
import numpy as np

import omendb
from omendb import collection, connection, values

OPENING = bytes.fromhex("0053500000310000")


class Peer:
    """Answers each request by ``answer(peer, request)``: a reply map, bytes, None (silence) or ConnectionError (hang up)."""

    def __init__(self, answer):
        self.answer, self.requests = answer, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(one)
            threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def _serve(self, one):
        stream = one.makefile("rb")
        try:
            stream.read(8)
            one.sendall(OPENING)
            while True:
                (length,) = struct.unpack(">Q", stream.read(8))
                frame = stream.read(length)
                request = msgpack.unpackb(frame[4:])
                if request["op"] == "hello":
                    reply = {"ok": True, "version": 1}
                else:
                    self.requests.append(request)
                    reply = self.answer(self, request)
                if reply is None:
                    continue
                body = reply if isinstance(reply, bytes) else msgpack.packb(reply)
                one.sendall(struct.pack(">Q", len(body) + 4) + frame[:4] + body)
        except (OSError, ValueError, struct.error):  # the client left, maybe amid a frame
            one.close()

    def close(self):
        self.listener.close()
        for one in self.sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def written(peer, request):
    return {"ok": True, "affected": len(request["ids"]) // 8, "duplicate": False}


def error(code, name, **more):
    return {"ok": False, "error": {"code": code, "name": name, "message": "said the peer", **more}}


class PythonPackage(unittest.TestCase):
    def peer(self, answer=written):
        peer = Peer(answer)
        self.addCleanup(peer.close)
        return peer

    def client(self, *peers, timeout=1.0):
        client = omendb.connect([p.address for p in peers], timeout=timeout)
        self.addCleanup(client.close)
        return client

    # ---- arguments ----

    def test_ids_outside_u64_are_refused_and_never_wrapped(self):
        for ids in ([-1], [2**64], np.array([-1]), range(-1, 2), [np.int64(-5)], [True], [1.0], [None], ["x"]):
            with self.assertRaises(ValueError, msg=repr(ids)):
                collection.encode_ids(ids)
        self.assertEqual(collection.encode_ids([2**64 - 1]), b"\xff" * 8)
        self.assertEqual(collection.encode_ids(np.array([1], dtype=np.int32)), struct.pack("<Q", 1))
        one = uuid.uuid4()
        self.assertEqual(collection.encode_ids([7, one]), [7, str(one)])
        for ids in (5, "abc", np.zeros((2, 2), dtype=int)):
            with self.assertRaises(ValueError, msg=repr(ids)):
                collection.as_id_list(ids)

    def test_columns_must_have_one_row_per_id(self):
        peer = self.peer()
        docs = self.client(peer).collection("c")
        x = np.ones((1000, 2), dtype=np.float32)
        for call in (lambda: docs.upsert(range(1000), x[:999]), lambda: docs.upsert(range(1000), None),
                     lambda: docs.upsert(range(1000), x, [{}] * 1001), lambda: docs.upsert([1], x[:1], {"a": 1}),
                     lambda: docs.upsert([1, 2], [[1, 2], [3]]),
                     lambda: docs.upsert([1], np.array([[object()]], dtype=object)),
                     lambda: docs.set_payload(range(1000), [{}] * 1500), lambda: docs.delete([1], shard_keys="a"),
                     lambda: docs.delete(range(1000), shard_keys=["a"] * 2000), lambda: docs.delete_payload([1], "abc"),
                     lambda: docs.search(), lambda: docs.search([1, 2], id=3), lambda: docs.search([[1, 2], [3, 4]]),
                     lambda: docs.search_batch([1, 2])):
            with self.assertRaises(ValueError):
                call()
        self.assertEqual(peer.requests, [])

    def test_nothing_asked_is_nothing_sent(self):
        peer = self.peer()
        docs = self.client(peer).collection("c")
        self.assertEqual(docs.upsert([], []).affected, 0)
        self.assertEqual(docs.upsert([], np.zeros((0, 3)), []).affected, 0)
        self.assertEqual(docs.delete([]).affected, 0)
        self.assertEqual((docs.get([]), docs.search_batch([])), ([], []))
        self.assertEqual(peer.requests, [])

    def test_an_empty_shard_key_is_sent(self):
        peer = self.peer(lambda _, request: {"ok": True, "higher_is_nearer": True, "results": [{"ids": b""}]})
        self.client(peer).collection("c").search(id=1, shard_key="")
        self.assertEqual(peer.requests[0]["searches"][0]["key"], "")

    def test_large_calls_are_cut_to_what_a_server_takes(self):
        peer = self.peer(lambda peer, request: written(peer, request) if "ids" in request else
                         {"ok": True, "higher_is_nearer": True, "results": [{"ids": b""}] * len(request["searches"])})
        docs = self.client(peer, timeout=20).collection("c")
        docs.upsert(range(1000), np.ones((1000, 2)), [{"text": "x" * 60000}] * 1000)
        self.assertEqual(sum(len(r["payloads"]) for r in peer.requests), 1000)
        self.assertLess(max(len(r["payloads"]) for r in peer.requests), 100)
        ids = [i for r in peer.requests for i in struct.unpack(f"<{len(r['ids']) // 8}Q", r["ids"])]
        self.assertEqual(ids, list(range(1000)))
        peer.requests.clear()
        self.assertEqual(len(docs.search_batch(np.ones((2500, 2)), k=1000)), 2500)
        self.assertEqual([len(r["searches"]) for r in peer.requests], [400] * 6 + [100])

    def test_numpy_values_go_where_python_values_go(self):
        packed = values.pack({"a": np.int64(1), "b": np.float32(0.5), "c": np.bool_(True), "d": np.arange(2), "e": np.str_("x")})
        self.assertEqual(msgpack.unpackb(packed), {"a": 1, "b": 0.5, "c": True, "d": [0, 1], "e": "x"})
        docs = self.client(self.peer()).collection("c")
        with self.assertRaisesRegex(ValueError, r"payloads\[1\]: .*object.* cannot be stored"):
            docs.upsert([1, 2], np.ones((2, 1)), [{}, {"a": object()}])

    def test_endpoints_are_checked_at_once(self):
        for endpoints in ("host", "host:", "host:x", "h:70000", "", []):
            with self.assertRaises(ValueError, msg=repr(endpoints)):
                omendb.connect(endpoints)

    # ---- servers that fail ----

    def test_a_dead_first_endpoint_is_passed_over(self):
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        peer = self.peer()
        with omendb.connect(f"127.0.0.1:{port},{peer.address}", timeout=5) as db:
            self.assertEqual(db.collection("c").delete([1]).affected, 1)

    def test_a_lost_write_is_sent_again_with_its_op_id(self):
        def first_hangs_up(peer, request):
            if len(peer.requests) == 1:
                raise ConnectionError
            return written(peer, request)
        peer = self.peer(first_hangs_up)
        self.assertEqual(self.client(peer, timeout=5).collection("c").delete([1]).affected, 1)
        self.assertEqual(len(peer.requests), 2)
        self.assertEqual(peer.requests[0]["op_id"], peer.requests[1]["op_id"])

    def test_unavailable_after_a_lost_write_is_an_unknown_outcome(self):
        def hangs_up_for_good(peer, request):
            peer.close()
            raise ConnectionError
        with self.assertRaises(omendb.OutcomeUnknown):
            self.client(self.peer(hangs_up_for_good), timeout=0.5).collection("c").delete([1])
        with self.assertRaises(omendb.OmenError) as caught:  # a read has no outcome
            self.client(self.peer(hangs_up_for_good), timeout=0.5).collection("c").count()
        self.assertNotIsInstance(caught.exception, omendb.ClientClosed)

        def unknown_then_full(peer, request):
            return error(11, "outcome_unknown") if len(peer.requests) == 1 else error(13, "full")
        with self.assertRaises(omendb.OutcomeUnknown):
            self.client(self.peer(unknown_then_full), timeout=5).collection("c").delete([1])
        with self.assertRaises(omendb.DiskFull):
            self.client(self.peer(lambda *_: error(13, "full"))).collection("c").delete([1])

    def test_silence_ends_with_the_timeout(self):
        docs = self.client(self.peer(lambda *_: None), timeout=0.3).collection("c")
        with self.assertRaises(omendb.DeadlineExceeded):
            docs.count()
        with self.assertRaises(omendb.OutcomeUnknown):
            docs.delete([1])
        with self.assertRaises(omendb.OutcomeUnknown):
            with docs.pipeline() as pipeline:
                pipeline.upsert([1], [[1.0]])

    def test_a_silent_connection_is_given_up(self):
        silent, alive = self.peer(lambda *_: None), self.peer()
        client = self.client(silent, alive, timeout=0.3)
        client._connection.heard -= connection.SILENCE_SECONDS + 1
        with self.assertRaises(omendb.OutcomeUnknown):
            client.collection("c").delete([1])
        self.assertTrue(client._connection.closed)

    def test_a_peer_that_takes_nothing_does_not_hold_the_caller(self):
        stop = threading.Event()
        self.addCleanup(stop.set)
        docs = self.client(self.peer(lambda *_: stop.wait() and None), timeout=0.5).collection("c")
        with self.assertRaises(omendb.OutcomeUnknown):
            docs.delete([1])
        with self.assertRaises(omendb.OmenError):  # 30 MiB fit in no socket buffer
            docs.client._call({"op": "points.count", "collection": "c", "key": "x" * (30 << 20)})

    def test_replies_are_read_while_a_request_waits_for_room(self):
        """A server that is full of replies to us reads on only when we take them."""
        filler = {"ok": True, "count": 1, "filler": b"x" * (8 << 20)}
        client = self.client(self.peer(lambda *_: filler), timeout=20)
        done = []

        def ask():
            client._call({"op": "points.count", "collection": "c", "filter": {"must": []}, "key": "x" * (8 << 20)})
            done.append(1)
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(done), 4)

    def test_a_reply_that_is_none_is_a_typed_error(self):
        for body in (b"\xc1", b"\x93", b"\x01", b"\x81\xa1a\xff\xff"):
            with self.assertRaises(omendb.ProtocolError, msg=repr(body)):
                self.client(self.peer(lambda *_, body=body: body)).collection("c").count()

    def test_tokens_of_another_incarnation_are_forgotten(self):
        """The database was restored: the tokens of before are refused, and must not be sent for ever."""
        def restored_after_two(peer, request):
            incarnation = 7 if len(peer.requests) <= 2 else 8
            if any(t[0] != incarnation for t in request.get("tokens", ())):
                return error(1, "invalid", field="tokens[0].incarnation")
            return {"ok": True, "affected": 1, "count": 1, "tokens": [[incarnation, 1, 5]]}
        peer = self.peer(restored_after_two)
        docs = self.client(peer, timeout=5).collection("c")
        docs.delete([1])
        docs.delete([1])
        self.assertEqual(docs.count(), 1)
        self.assertEqual([r.get("tokens") for r in peer.requests], [None, [[7, 1, 5]], [[7, 1, 5]], None])
        self.assertEqual(docs.count(), 1)
        self.assertEqual(peer.requests[-1]["tokens"], [[8, 1, 5]])

    def test_a_closed_client_says_so_at_once(self):
        client = self.client(self.peer(), timeout=60)
        client.close()
        with self.assertRaises(omendb.ClientClosed):
            client.collection("c").count()

    # ---- pipelines ----

    def test_pipeline_ends_when_its_caller_fails(self):
        docs = self.client(self.peer(), timeout=60).collection("c")
        with self.assertRaises(ValueError):
            with docs.pipeline() as pipeline:
                pipeline.upsert([1], [[1.0]], [{"a": object()}])

        def refuse(ids, result):
            raise RuntimeError("no")
        with self.assertRaisesRegex(RuntimeError, "no"):
            with docs.pipeline(on_ack=refuse) as pipeline:
                pipeline.upsert([1], [[1.0]])
        with self.assertRaises(ValueError):
            pipeline.upsert([1], [[1.0]])

    def test_an_interrupt_amid_sending_leaves_no_half_frame_and_no_waiter(self):
        peer = self.peer()
        client = self.client(peer, timeout=60)
        docs = client.collection("c")
        lost, sent = client._connection, []

        class Interrupting:
            def __init__(self, real):
                self.real = real

            def sendall(self, data):
                sent.append(self.real.send(data[:10]))
                raise KeyboardInterrupt

            def __getattr__(self, name):
                return getattr(self.real, name)
        lost._socket = Interrupting(lost._socket)
        with self.assertRaises(KeyboardInterrupt):
            with docs.pipeline() as pipeline:
                pipeline.upsert([1], [[1.0]])
        self.assertEqual(sent, [10])
        self.assertTrue(lost.closed)
        self.assertEqual(docs.delete([1, 2]).affected, 2)  # over a new connection

    def test_one_client_serves_many_threads(self):
        peer = self.peer()
        docs = self.client(peer, timeout=20).collection("c")
        results = []
        threads = [threading.Thread(target=lambda: results.extend(docs.delete([i]).affected for i in range(50)))
                   for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sum(results), 400)
        self.assertEqual(len({tuple(r["op_id"][:2]) for r in peer.requests}), 400)


if __name__ == "__main__":
    unittest.main()

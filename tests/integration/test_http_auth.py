"""The HTTP port and API keys."""
import socket
import struct
import unittest

import msgpack
import numpy as np

import omendb
from omen_server import Server

CONFIG = """
auth:
  keys:
    - name: root
      key: admin-secret
      role: admin
    - name: app
      key: write-secret
      role: read-write
    - name: dashboard
      key: read-secret
      role: read-only
"""


class HttpAndKeys(unittest.TestCase):
    def test_roles_allow_what_they_say_and_nothing_more(self):
        row = np.ones((1, 3), dtype=np.float32)
        with Server(config=CONFIG) as server:
            with omendb.connect(server.address, api_key="admin-secret") as admin:
                admin.create_collection("docs", dim=3)
            with omendb.connect(server.address, api_key="write-secret") as app:
                app.collection("docs").upsert([1], row)
                self.assertEqual(app.collection("docs").count(), 1)
                for forbidden in (lambda: app.create_collection("more", dim=3), lambda: app.drop_collection("docs")):
                    self.assertRaises(omendb.PermissionDenied, forbidden)
            with omendb.connect(server.address, api_key="read-secret") as dashboard:
                self.assertEqual(len(dashboard.collection("docs").search(row[0])), 1)
                self.assertRaises(omendb.PermissionDenied, dashboard.collection("docs").upsert, [2], row)
                self.assertRaises(omendb.PermissionDenied, dashboard.collection("docs").delete, [1])
            for key in (None, "", "wrong", "admin-secre", "admin-secret "):
                with omendb.connect(server.address, api_key=key) as stranger:
                    self.assertRaises(omendb.AuthenticationFailed, stranger.collection("docs").count)
                    self.assertRaises(omendb.AuthenticationFailed, stranger.collections)
            self.assertNotIn("secret", server.log())
            self.assertNotIn("secret", server.http_get("/metrics")[1])

    def test_a_stranger_learns_nothing_and_costs_little(self):
        """Without a key nothing of a message is decoded: damage further on is not even looked at."""
        with Server(config=CONFIG) as server:
            host, port = server.address.split(":")
            for body in (b"\x83\xa1v\x01\xa2op\xacpoints.count\xaacollection\xc1", b"\x82\xa1v\x01\xa2op\xa4nope", b"\x81\xa1v\x63"):
                with socket.create_connection((host, int(port)), 10) as s:
                    s.sendall(b"\x00SP\x00\x00\x30\x00\x00" + struct.pack(">QI", len(body) + 4, 0x80000001) + body)
                    s.settimeout(10)
                    got = b""
                    while len(got) < 20 or len(got) < 16 + struct.unpack(">Q", got[8:16])[0]:
                        got += s.recv(65536)
                self.assertEqual(msgpack.unpackb(got[20:], raw=False)["error"]["name"], "unauthenticated", body)

    def test_http_pages(self):
        with Server() as server:
            with omendb.connect(server.address) as db:
                docs = db.create_collection("docs", dim=3)
                docs.upsert([1, 2], np.ones((2, 3), dtype=np.float32))
                docs.search(np.ones(3))
            self.assertEqual(server.http_get("/healthz")[0], 200)
            self.assertEqual(server.http_get("/readyz")[0], 200)
            self.assertEqual(server.http_get("/nothing")[0], 404)
            status, text = server.http_get("/metrics")
            self.assertEqual(status, 200)
            for line in text.splitlines():
                self.assertRegex(line, r'^(# (HELP|TYPE) \w+ .*|\w+(\{.*\})? [-+0-9.eEinfNa]+)$')
            self.assertRegex(text, r'omendb_router_requests_total\{.*op="points.search".*\} 1\b')
            helps = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
            self.assertEqual(len(helps), len(set(helps)), "a family is described twice")

    def test_wrong_configuration_names_file_line_and_key(self):
        for text, words in (("listne: tcp://127.0.0.1:0\n", [":1", "listne"]),
                            ("log:\n  level: loud\n", [":2", "log.level"]),
                            ("storage:\n  chunk_bytes: banana\n", [":2", "storage.chunk_bytes"]),
                            ("a: [\n", ["omendb.yaml"])):
            server = Server(config=text)
            try:
                code, log = server.start_fails(60)
                self.assertNotEqual(code, 0)
                for word in ["omendb.yaml"] + words:
                    self.assertIn(word, log)
            finally:
                server.close()

    def test_second_server_on_the_same_directory_is_refused(self):
        with Server() as first:
            second = Server(data=first.data)
            try:
                code, log = second.start_fails(60)
                self.assertNotEqual(code, 0)
                self.assertIn(str(first.data), log)
            finally:
                second.close()
            self.assertEqual(first.http_get("/healthz")[0], 200)


if __name__ == "__main__":
    unittest.main()

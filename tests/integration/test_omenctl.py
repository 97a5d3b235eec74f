"""omenctl against a real omen-node: every command, its output for people and for machines, and its exit codes."""
import gzip
import json
import os
import shutil
import struct
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from omen_server import BUILD, TOP, Server

BOOKS = """\
{"id": 1, "vector": [0.9, 0.1, 0.0, 0.2], "payload": {"title": "Dune", "year": 1965, "tags": ["desert", "classic"]}}

{"id": 2, "vector": [0.8, 0.2, 0.1, 0.1], "payload": {"title": "Hyperion 日本語", "year": 1989}}
{"id": "6f1c2a1e-8a52-4f0e-9b1a-0c6f5b7d9e11", "vector": [0.0, 0.9, 0.4, 0.0], "payload": {"title": "Emma", "year": 1815}}
{"id": 4, "vector": [0.1, 0.1, 0.1, 0.1]}
"""
UUID = "6f1c2a1e-8a52-4f0e-9b1a-0c6f5b7d9e11"


class OmenctlTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server().start()

    @classmethod
    def tearDownClass(cls):
        cls.server.close()

    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp(prefix="omen-"))
        self.addCleanup(shutil.rmtree, self.tmp, ignore_errors=True)
        self.name = self.id().rsplit(".", 1)[1].replace("test_", "")[:40]

    def run_(self, *args, stdin=None, code=0):
        """Standard output; the exit code must be `code`."""
        done = self.server.omenctl(*args, stdin=stdin, check=False)
        self.assertEqual(done.returncode, code, f"{args}: {done.stdout}{done.stderr}")
        self.stderr = done.stderr
        return done.stdout

    def json_(self, *args, **kwargs):
        return json.loads(self.run_("--json", *args, **kwargs))

    def lines(self, *args, **kwargs):
        return [json.loads(line) for line in self.run_("--json", *args, **kwargs).splitlines()]

    def books(self):
        self.run_("collections", "create", self.name, "--dim", 4, "--metric", "cosine")
        self.run_("points", "upsert", self.name, "-", stdin=BOOKS)


class Collections(OmenctlTest):
    def test_create_list_describe_drop(self):
        self.assertEqual(self.json_("collections", "create", self.name, "--field", "text:3", "--field", "image:2:l2",
                                    "--shard-key", "tenant", "--shards", 2), {"created": self.name})
        self.run_("collections", "create", self.name, "--dim", 3, code=1)
        self.assertIn("(exists", self.stderr)
        described = self.json_("collections", "describe", self.name)
        self.assertEqual({f["name"]: (f["dim"], f["metric"]) for f in described["fields"]},
                         {"text": (3, "cosine"), "image": (2, "l2")})
        self.assertEqual((described["shard_key"], described["shard_count"], len(described["shards"])), ("tenant", 2, 2))
        self.assertEqual(sum(s["slot_count"] for s in described["shards"]), 4096)
        self.assertIn(self.name, [c["name"] for c in self.json_("collections", "list")])
        self.assertIn("image:2 l2", self.run_("collections", "list"))
        self.assertIn("slot_first", self.run_("collections", "describe", self.name))
        self.run_("collections", "drop", self.name, stdin="", code=2)  # no terminal, no --yes
        self.run_("collections", "drop", self.name, "--yes")
        self.run_("collections", "describe", self.name, code=4)
        self.run_("collections", "drop", self.name, "--yes", code=4)

    def test_profiles_and_options(self):
        created = {}
        for profile in ["speed", "quality", "balanced"]:
            for how in [profile, TOP / "deploy" / "profiles" / f"{profile}.yaml"]:
                name = f"{self.name}{profile}{how == profile}"
                self.run_("collections", "create", name, "--dim", 2, "--profile", how)
                described = self.json_("collections", "describe", name)
                options = described["options"]
                self.assertEqual(options.pop("profile", None), profile if how == profile else None)
                created.setdefault(profile, []).append((options, described["recall_target"]))
            self.assertEqual(*created[profile])  # the file says what the name means
        self.assertEqual(created["speed"][0], ({"write_mode": "stream_only", "index_delay_ms": 60000, "segments": "mixed",
                                                "quantization": "aggressive", "time_bucket_ms": 86400000}, 0.85))
        self.run_("collections", "create", self.name, "--dim", 2, "--profile", "speed", "--option", "index_delay=5s",
                  "--option", "segments=time_based", "--recall-target", "0.9")
        self.run_("collections", "set", self.name, "time_bucket=2h", "recall_target=0.99")
        described = self.json_("collections", "describe", self.name)
        self.assertEqual((described["options"], described["recall_target"]),
                         ({"profile": "speed", "write_mode": "stream_only", "index_delay_ms": 5000,
                           "segments": "time_based", "quantization": "aggressive", "time_bucket_ms": 7200000}, 0.99))
        self.assertIn("stream_only", self.run_("collections", "describe", self.name))
        self.run_("collections", "set", self.name, "segments=payload_aware", "tenant_path=user.id", "time_path=at",
                  "type_path=kind", "tenant_points=5000")
        options = self.json_("collections", "describe", self.name)["options"]
        self.assertEqual({k: options[k] for k in ("tenant_path", "time_path", "type_path", "tenant_points")},
                         {"tenant_path": "user.id", "time_path": "at", "type_path": "kind", "tenant_points": 5000})
        self.run_("collections", "set", self.name, "payload_indexes=user.id, tags[]")
        self.assertEqual(self.json_("collections", "describe", self.name)["options"]["payload_indexes"],
                         ["user.id", "tags[]"])
        self.run_("collections", "set", self.name, "type_path=", "tenant_points=20000", "payload_indexes=")
        options = self.json_("collections", "describe", self.name)["options"]
        self.assertNotIn("type_path", options)
        self.assertNotIn("tenant_points", options)
        self.assertNotIn("payload_indexes", options)
        for wrong, code, complaint in [("tenant_path=a[]", 1, "options.tenant_path"), ("write_mode=never", 1, "options.write_mode"), ("colour=red", 1, "options.colour"),
                                       ("index_delay=5", 2, "duration"), ("profile", 2, "KEY=VALUE")]:
            self.run_("collections", "set", self.name, wrong, code=code)
            self.assertIn(complaint, self.stderr)
        bad = self.tmp / "bad.yaml"
        bad.write_text("write_mode: stream_only\nqantization: adaptive\n")
        self.run_("collections", "create", self.name + "2", "--dim", 2, "--profile", bad, code=1)
        self.assertIn("qantization", self.stderr)

    def test_alias(self):
        self.books()
        self.run_("collections", "alias", "set", "alias1", self.name)
        self.assertEqual(self.run_("points", "count", "alias1"), "4\n")
        self.assertEqual(self.json_("collections", "describe", self.name)["aliases"], ["alias1"])
        self.run_("alias", "drop", "alias1")
        self.run_("points", "count", "alias1", code=4)

    def test_status(self):
        self.assertTrue(self.json_("status")["ready"])
        self.assertIn("uptime_s", self.run_("status"))


class Points(OmenctlTest):
    def test_get_and_count(self):
        self.books()
        self.assertEqual(self.json_("points", "count", self.name), {"points": 4})
        year = '{"must": [{"key": "year", "range": {"gte": 1900}}]}'
        self.assertEqual(self.run_("points", "count", self.name, "--filter", year), "2\n")
        got = self.lines("points", "get", self.name, 1, UUID, "--with-vectors")
        self.assertEqual([p["id"] for p in got], [1, UUID])
        self.assertEqual(got[0]["payload"]["title"], "Dune")
        self.assertAlmostEqual(sum(x * x for x in got[0]["vector"]), 1, places=5)
        self.assertIn("Hyperion 日本語", self.run_("points", "get", self.name, 2))
        self.run_("points", "get", self.name, 2, 99, code=4)
        self.assertIn("point 99 does not exist", self.stderr)

    def test_what_scroll_prints_can_be_written_again(self):
        self.books()
        exported = self.run_("--json", "points", "scroll", self.name, "--all", "--with-vectors")
        self.assertEqual(len(exported.splitlines()), 4)
        self.run_("collections", "create", self.name + "2", "--dim", 4)
        self.assertEqual(self.json_("points", "upsert", self.name + "2", "--batch", 3, stdin=exported),
                         {"points": 4, "batches": 2})

        def content(text):
            return sorted((str(p["id"]), json.dumps(p.get("payload")), [round(x, 5) for x in p["vector"]])
                          for p in map(json.loads, text.splitlines()))
        again = self.run_("--json", "points", "scroll", self.name + "2", "--all", "--with-vectors")
        self.assertEqual(content(again), content(exported))
        self.assertEqual(len(self.run_("points", "scroll", self.name, "--limit", 2).splitlines()), 3)

    def test_payload_changes(self):
        self.books()
        self.run_("points", "set-payload", self.name, 1, 2, '{"read": true}')
        self.assertEqual(self.lines("points", "get", self.name, 2)[0]["payload"],
                         {"title": "Hyperion 日本語", "year": 1989, "read": True})
        self.assertEqual(self.json_("points", "delete-payload", self.name, 1, "--path", "read", "--path", "tags"),
                         {"changed": 1})
        self.assertEqual(self.lines("points", "get", self.name, 1)[0]["payload"], {"title": "Dune", "year": 1965})
        self.run_("points", "overwrite-payload", self.name, 1, '{"a": 1}')
        self.assertEqual(self.lines("points", "get", self.name, 1)[0]["payload"], {"a": 1})
        self.run_("points", "set-payload", self.name, 1, '{"a": ', code=1)
        self.assertIn("payloads[0]: ", self.stderr)

    def test_delete(self):
        self.books()
        self.assertEqual(self.json_("points", "delete", self.name, 1, 77), {"deleted": 1})
        (self.tmp / "ids").write_text(f'2\n"{UUID}",\n\n')
        self.assertEqual(self.run_("points", "delete", self.name, "--from", self.tmp / "ids"), "deleted 2 points\n")
        self.assertEqual(self.run_("points", "count", self.name), "1\n")
        self.run_("points", "delete", self.name, "--from", "-", stdin="x1\n", code=1)
        self.assertIn("line 1", self.stderr)

    def test_writes_by_filter(self):
        self.books()
        old = json.dumps({"must": [{"key": "year", "range": {"lt": 1970}}]})
        before = int(self.run_("points", "count", self.name, "--filter", old))
        self.assertEqual(self.json_("points", "set-payload", self.name, "--filter", old, '{"old": true}'), {"changed": before})
        self.assertEqual(self.json_("points", "delete-payload", self.name, "--filter", old, "--path", "old"),
                         {"changed": before})
        self.assertEqual(self.json_("points", "delete", self.name, "--filter", old), {"deleted": before})
        self.assertEqual(self.run_("points", "count", self.name), f"{4 - before}\n")
        for args in (["delete", self.name], ["delete", self.name, 1, "--filter", old], ["set-payload", self.name, "{}"],
                     ["delete-payload", self.name, 1, "--filter", old, "--path", "a"]):
            self.run_("points", *args, code=2)

    def test_a_wrong_line_is_named_and_its_batch_not_written(self):
        self.run_("collections", "create", self.name, "--dim", 2)
        for line, complaint in [('{"id": 9, "vector": [1, "x"]}', "no number"), ('{"vector": [1, 2]}', '"id"'),
                                ('{"id": 9, "vector": [1, 2], "paylod": {}}', "unknown member"),
                                ('{"id": -1, "vector": [1, 2]}', '"id"'), ('{"id": 9, ', "column"),
                                ('{"id": 9, "vector": [1, 2], "payload": []}', "no object")]:
            with self.subTest(line=line):
                self.run_("points", "upsert", self.name, stdin='{"id": 1, "vector": [1, 2]}\n' + line + "\n", code=1)
                self.assertIn("line 2: ", self.stderr)
                self.assertIn(complaint, self.stderr)
        self.run_("points", "upsert", self.name, stdin='{"id": 1, "vector": [1, 2, 3]}\n', code=1)
        self.assertIn("line 1: ", self.stderr)
        self.assertEqual(self.run_("points", "count", self.name), "0\n")

    def test_points_that_end(self):
        self.run_("collections", "create", self.name, "--dim", 2)
        later = int(time.time() * 1000) + 3_600_000
        self.run_("points", "upsert", self.name, "--ttl", 7200, stdin="".join(json.dumps(p) + "\n" for p in [
            {"id": 1, "vector": [1, 2]}, {"id": 2, "vector": [1, 2], "expires_ms": later},
            {"id": 3, "vector": [1, 2], "ttl": 0.001}, {"id": 4, "vector": [1, 2], "expires_ms": 0}]))
        time.sleep(0.05)
        got = self.lines("points", "scroll", self.name)
        self.assertEqual([p["id"] for p in got], [1, 2, 4])
        self.assertGreater(got[0]["expires_ms"], later)
        self.assertEqual(got[1]["expires_ms"], later)
        self.assertNotIn("expires_ms", got[2])
        self.assertEqual(self.run_("points", "count", self.name), "3\n")
        self.run_("points", "upsert", self.name, stdin='{"id": 9, "vector": [1, 2], "ttl": "1h"}\n', code=1)
        self.assertIn('"ttl"', self.stderr)

    def test_points_under_a_shard_key(self):
        self.run_("collections", "create", self.name, "--dim", 2, "--shard-key", "tenant", "--shards", 3)
        self.run_("points", "upsert", self.name, stdin="".join(
            json.dumps({"id": 1, "vector": [1, n], "payload": {"tenant": f"t{n}"}}) + "\n" for n in range(5)))
        self.assertEqual(self.run_("points", "count", self.name), "5\n")
        one = self.lines("points", "get", self.name, 1, "--shard-key", '"t3"')
        self.assertEqual([p["shard_key"] for p in one], ["t3"])
        self.run_("points", "delete", self.name, 1, "--shard-key", '"t3"')
        self.assertEqual(len(self.lines("points", "get", self.name, 1)), 4)


class Search(OmenctlTest):
    def test_vector_id_and_file_give_the_nearest(self):
        self.books()
        found = self.json_("search", self.name, "--vector", "[1, 0, 0, 0]", "--k", 2)
        self.assertEqual([p["id"] for p in found["results"]], [1, 2])
        self.assertTrue(found["higher_is_nearer"])
        self.assertEqual(found["results"][0]["payload"]["title"], "Dune")
        self.assertNotIn("payload", self.json_("search", self.name, "--id", 1, "--no-payload")["results"][0])
        self.assertNotIn(1, [p["id"] for p in self.json_("search", self.name, "--id", 1)["results"]])
        (self.tmp / "q.json").write_text("[1, 0, 0, 0]")
        (self.tmp / "q.fbin").write_bytes(struct.pack("<II8f", 2, 4, 0, 1, 0, 0, 1, 0, 0, 0))
        for args in [("--vector-file", self.tmp / "q.json"), ("--query-file", self.tmp / "q.fbin", "--row", 1)]:
            same = self.json_("search", self.name, *args, "--k", 2)
            self.assertEqual(same["results"], found["results"])
        near = self.json_("search", self.name, "--vector", "[1, 0, 0, 0]", "--score-threshold", 0.96)
        self.assertEqual([p["id"] for p in near["results"]], [1])
        rest = self.json_("search", self.name, "--vector", "[1, 0, 0, 0]", "--k", 1, "--offset", 1)
        self.assertEqual([p["id"] for p in rest["results"]], [2])

    def test_table_for_people(self):
        self.books()
        out = self.run_("search", self.name, "--vector", "[1, 0, 0, 0]", "--k", 2, "--show", "title,year").splitlines()
        self.assertRegex(out[0], r"^2 hits, 4 rows scanned, in \d+\.\d ms \(engine \d+\.\d ms\); higher score is nearer$")
        self.assertEqual(out[1].split(), ["rank", "id", "score", "title", "year"])
        self.assertEqual(out[2].split(), ["1", "1", "0.9705", "Dune", "1965"])
        # Wide characters take two columns: "year" starts where the title column ends for the terminal.
        self.assertEqual(out[2].index("1965") - out[3].index("1989"), 3)

    def test_payload_is_cut_to_the_terminal(self):
        self.books()
        os.environ["COLUMNS"] = "50"
        self.addCleanup(os.environ.pop, "COLUMNS")
        out = self.run_("search", self.name, "--vector", "[1, 0, 0, 0]", "--k", 2).splitlines()
        self.assertTrue(out[2].endswith("…") and len(out[2]) == 50, out)

    def test_control_characters_do_not_reach_the_terminal(self):
        self.run_("collections", "create", self.name, "--dim", 1)
        self.run_("points", "upsert", self.name, stdin='{"id": 1, "vector": [1], "payload": {"t": "a\\u001b[31mb\\u009b"}}\n')
        out = self.run_("search", self.name, "--vector", "[1]", "--show", "t")
        self.assertIn("a [31mb", out)
        self.assertNotIn("\x1b", out)

    def test_errors_name_the_field(self):
        self.books()
        self.run_("search", self.name, "--vector", "[1]", code=1)
        self.assertIn("(invalid, field ", self.stderr)
        self.run_("search", self.name, "--id", 1, "--filter", '{"must": [{"key": "a", "rnage": {}}]}', code=1)
        self.assertIn("filter.must[0].rnage", self.stderr)
        self.run_("search", "nowhere", "--vector", "[1]", code=4)
        self.assertIn("not_found", self.stderr)

    def test_recall_counts_ties(self):
        """Points 0..3 lie on one spot: any two of them are the two nearest."""
        self.run_("collections", "create", self.name, "--dim", 2, "--metric", "l2")
        spots = [(1, 0)] * 4 + [(5, 5)]
        self.run_("points", "upsert", self.name,
                  stdin="".join(json.dumps({"id": i, "vector": s}) + "\n" for i, s in enumerate(spots)))
        (self.tmp / "q.fbin").write_bytes(struct.pack("<II2f", 1, 2, 0, 0))
        for truth, recall in [((2, 3), 1.0), ((0, 1), 1.0)]:
            (self.tmp / "t.ibin").write_bytes(struct.pack("<IIII", 1, 2, *truth))
            measured = self.json_("search", self.name, "--query-file", self.tmp / "q.fbin", "--all", "--truth",
                                  self.tmp / "t.ibin", "--k", 2)
            self.assertEqual(measured["recall"], recall)
        self.run_("points", "delete", self.name, 2, 3)
        (self.tmp / "t.ibin").write_bytes(struct.pack("<II3I", 1, 3, 0, 1, 0))
        self.assertEqual(self.json_("search", self.name, "--query-file", self.tmp / "q.fbin", "--all", "--truth",
                                    self.tmp / "t.ibin", "--k", 3)["recall"], round(2 / 3, 6))


class Import(OmenctlTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.data = Path(tempfile.mkdtemp(prefix="omen-"))
        source = TOP / "deploy" / "demo" / "data"
        for name in ["meta.json", "base.f16bin", "query.fbin", "truth.ibin"]:
            shutil.copy(source / name, cls.data)
        (cls.data / "payload.jsonl").write_bytes(gzip.decompress((source / "payload.jsonl.gz").read_bytes()))

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.data)
        super().tearDownClass()

    def test_import_is_complete_repeatable_and_exact(self):
        for _ in range(2):
            done = self.json_("import", self.data, "--collection", self.name, "--create")
            self.assertEqual((done["points"], done["acknowledged"]), (20000, 20000))
            self.assertGreater(done["vectors_per_second"], 0)
            self.assertEqual(self.run_("points", "count", self.name), "20000\n")
        measured = self.json_("search", self.name, "--query-file", self.data / "query.fbin", "--all", "--truth",
                              self.data / "truth.ibin")
        self.assertEqual((measured["queries"], measured["recall"]), (200, 1.0))
        self.assertIn("recall", self.run_("search", self.name, "--query-file", self.data / "query.fbin", "--all"))

    def test_a_text_a_line_is_a_payload_of_one_member(self):
        folder = self.tmp / "set"
        folder.mkdir()
        (folder / "meta.json").write_text(json.dumps({"name": "t", "metric": "l2", "base": "base.fbin",
                                                      "payload": "category.txt"}))
        (folder / "base.fbin").write_bytes(struct.pack("<II6f", 3, 2, 1, 2, 3, 4, 5, 6))
        (folder / "category.txt").write_bytes('hedgehog\nsay "hé"\n\n'.encode())
        self.run_("import", folder, "--collection", self.name, "--create")
        self.assertEqual([p["payload"] for p in self.lines("points", "scroll", self.name)],
                         [{"category": "hedgehog"}, {"category": 'say "hé"'}, {"category": ""}])
        (folder / "category.txt").write_bytes(b"a\nb\n\xff\n")
        self.run_("import", folder, "--collection", self.name, code=1)
        self.assertIn("row 2", self.stderr)

    def test_limit_and_ids_from_the_payload(self):
        out = self.run_("import", self.data, "--collection", self.name, "--create", "--limit", 1234, "--batch", 100,
                        "--id-field", "deb_bytes")
        self.assertIn("1234 of 1234 points acknowledged", out)
        first = json.loads((self.data / "payload.jsonl").read_text().split("\n", 1)[0])
        self.assertEqual(self.lines("points", "get", self.name, first["deb_bytes"])[0]["payload"]["deb_bytes"],
                         first["deb_bytes"])
        self.run_("import", self.data, "--collection", self.name, "--id-field", "title", "--limit", 10, code=1)
        self.assertIn("payload of row 0", self.stderr)

    def test_failures_are_told(self):
        self.run_("import", self.data, "--collection", "not-there", code=4)
        self.run_("import", self.tmp, "--collection", self.name, code=1)
        self.assertIn("meta.json", self.stderr)


class CommandLine(OmenctlTest):
    def test_wrong_command_lines_are_usage(self):
        for args, hint in [(["colections", "list"], 'did you mean "collections list"'), (["points", "upsrt"], "points upsert"),
                           (["search", "c", "--vektor", "[1]"], "did you mean --vector"), (["search", "c"], "give one of"),
                           (["points", "get", "c", "x"], "no id"), (["collections", "create", "c"], "--dim"),
                           (["points", "count"], "too few"), (["points", "count", "a", "b"], "too many"),
                           (["--timeout", "soon", "status"], "--timeout"), (["search", "c", "--k"], "wants a value"),
                           (["search", "c", "--vector", "[1]", "--k", "0"], "--k"),
                           (["--endpoint", "nonsense", "status"], "no endpoint")]:
            with self.subTest(args=args):
                done = subprocess.run([str(BUILD / "omenctl"), *args], stdin=subprocess.DEVNULL, capture_output=True, text=True)
                self.assertEqual(done.returncode, 2, done.stderr)
                self.assertIn(hint, done.stderr)

    def test_every_command_has_help_with_an_example(self):
        listed = subprocess.run([str(BUILD / "omenctl"), "--help"], capture_output=True, text=True, check=True).stdout
        commands = [line[2:28].strip() for line in listed.split("Commands:\n")[1].split("\n\n")[0].splitlines()]
        self.assertGreater(len(commands), 15)
        for command in commands:
            text = subprocess.run([str(BUILD / "omenctl"), *command.split(), "--help"], capture_output=True, text=True,
                                  check=True).stdout
            self.assertIn("Example", text, command)
            self.assertIn("Exit codes: 0 done", text, command)

    def test_completion_knows_every_command(self):
        script = TOP / "deploy" / "completion" / "omenctl.bash"
        listed = subprocess.run([str(BUILD / "omenctl"), "--help"], capture_output=True, text=True, check=True).stdout
        for line in listed.split("Commands:\n")[1].split("\n\n")[0].splitlines():
            words = line[2:28].split()
            before = " ".join(["omenctl"] + words[:-1])
            bash = (f"source '{script}'; COMP_WORDS=({before} ''); COMP_CWORD={len(words)}; _omenctl; "
                    'printf "%s\\n" "${COMPREPLY[@]}"')
            done = subprocess.run(["bash", "-c", bash], capture_output=True, text=True, check=True)
            self.assertIn(words[-1], done.stdout.split(), words)

    def test_a_server_that_is_not_there(self):
        done = subprocess.run([str(BUILD / "omenctl"), "--endpoint", "tcp://127.0.0.1:1", "status"], capture_output=True,
                              text=True)
        self.assertEqual((done.returncode, done.stdout), (3, ""))
        done = subprocess.run([str(BUILD / "omenctl"), "--endpoint", "tcp://127.0.0.1:1," + self.server.listen, "--json",
                               "status"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_endpoint_from_the_environment(self):
        env = {**os.environ, "OMENDB_ENDPOINT": self.server.listen}
        done = subprocess.run([str(BUILD / "omenctl"), "status", "--json"], capture_output=True, text=True, env=env)
        self.assertEqual(done.returncode, 0, done.stderr)
        json.loads(done.stdout)

    def test_full_output_device_is_a_failure(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([str(BUILD / "omenctl"), "--endpoint", self.server.listen, "status"], stdout=full,
                                  stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 1)


class Restart(unittest.TestCase):
    def test_a_loader_outlives_a_killed_server(self):
        """The server is killed with -9 in the middle of an upsert and started again: nothing is lost, nothing twice."""
        count = 6000
        with Server() as server:
            server.omenctl("collections", "create", "c", "--dim", 8)
            loader = subprocess.Popen([str(BUILD / "omenctl"), "--endpoint", server.listen, "--json", "points", "upsert", "c",
                                       "--batch", "20"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True)
            for i in range(count):
                loader.stdin.write(json.dumps({"id": i, "vector": [i % 7 + 1, 1, 2, 3, 4, 5, 6, 7], "payload": {"n": i}}) + "\n")
                if i in (count // 3, 2 * count // 3):
                    loader.stdin.flush()
                    server.kill9()
                    server.start()
            out, err = loader.communicate(timeout=120)
            self.assertEqual(loader.returncode, 0, err)
            self.assertEqual(json.loads(out)["points"], count)
            self.assertEqual(server.omenctl("points", "count", "c").stdout, f"{count}\n")


if __name__ == "__main__":
    unittest.main()

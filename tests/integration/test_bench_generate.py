"""omen-bench generate: the same bytes from the same seed, and a truth that a plain loop agrees with."""

import os
import struct
import subprocess
import tempfile
import unittest

BENCH = os.path.join(os.environ.get("OMEN_BUILD", "build/release"), "omen-bench")
FILES = ["base.fbin", "query.fbin", "truth.ibin", "meta.json"]


def generate(kind, out, *more):
    command = [BENCH, "generate", kind, "--out", out, "--count", "300", "--dim", "9", "--queries", "20"]
    subprocess.run(command + list(more), check=True, timeout=60)
    return {name: open(os.path.join(out, name), "rb").read() for name in FILES}


def matrix(data, code):
    rows, dim = struct.unpack_from("<II", data)
    cells = struct.unpack_from("<%d%s" % (rows * dim, code), data, 8)
    return [cells[i * dim:(i + 1) * dim] for i in range(rows)]


class Generate(unittest.TestCase):
    def test_seed_decides_every_byte(self):
        with tempfile.TemporaryDirectory() as tmp:
            for kind in ("clustered", "ip", "ood"):
                one = generate(kind, os.path.join(tmp, kind + "1"), "--seed", "5", "--threads", "1")
                two = generate(kind, os.path.join(tmp, kind + "2"), "--seed", "5", "--threads", "3")
                other = generate(kind, os.path.join(tmp, kind + "3"), "--seed", "6")
                self.assertEqual(one, two)
                self.assertNotEqual(one["base.fbin"], other["base.fbin"])

    def test_truth_is_true(self):
        with tempfile.TemporaryDirectory() as tmp:
            for kind in ("clustered", "ip", "ood"):
                files = generate(kind, os.path.join(tmp, kind))
                base, queries = matrix(files["base.fbin"], "f"), matrix(files["query.fbin"], "f")
                for query, truth in zip(queries, matrix(files["truth.ibin"], "I")):
                    if kind == "ip":
                        far = [-sum(a * b for a, b in zip(query, row)) for row in base]
                    else:
                        far = [sum((a - b) ** 2 for a, b in zip(query, row)) for row in base]
                    self.assertEqual(len(set(truth)), 100)
                    for told, true in zip((far[row] for row in truth), sorted(far)):
                        self.assertAlmostEqual(told, true, delta=1e-4 * (1 + abs(true)))

    def test_wrong_arguments_are_refused(self):
        for arguments in ([], ["sideways", "--out", "x"], ["ip"], ["ip", "--out", "x", "--count", "9"]):
            done = subprocess.run([BENCH, "generate"] + arguments, capture_output=True, timeout=60)
            self.assertEqual(done.returncode, 2, done.stderr)


if __name__ == "__main__":
    unittest.main()
